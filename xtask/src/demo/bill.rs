//! The *NAT bill* as the agent's metrics have it: what each workload's connections were made into, and what that uses
//! up on the node.

use std::collections::BTreeMap;

use super::scrape::Scrape;

/// So many pairs of workloads.
const PAIRS: usize = 14;

/// Who talks to whom, by connections: `namespace/workload`, as the metrics name them.
pub(super) fn workloads(scrape: &Scrape) -> Vec<String> {
    let labels = [
        "class",
        "nat",
        "scope",
        "src_namespace",
        "src_workload",
        "dst_namespace",
        "dst_workload",
    ];
    let connections = scrape.sums_by("aksnet_flow_connections_total", labels);
    // Replies open nothing.
    let mut opened: Vec<_> = connections.into_iter().filter(|(_, n)| *n > 0.0).collect();
    opened.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let who = |namespace: &str, workload: &str| match (namespace, workload) {
        ("", "") => "?".to_owned(),
        ("", workload) => workload.to_owned(),
        (namespace, workload) => format!("{namespace}/{workload}"),
    };
    let mut lines = vec![format!(
        "  {:<32} {:<28} {:<15} {:<4} {:<10} {:>5}",
        "WHO", "TO WHOM", "CLASS", "NAT", "SCOPE", "CONN"
    )];
    for ([class, nat, scope, sn, sw, dn, dw], n) in opened.iter().take(PAIRS) {
        let (from, to) = (who(sn, sw), who(dn, dw));
        lines.push(format!(
            "  {from:<32} {to:<28} {class:<15} {nat:<4} {scope:<10} {n:>5}"
        ));
    }
    lines
}

/// What the node is, and what NAT and pods use up on it.
pub(super) fn node(scrape: &Scrape) -> Vec<String> {
    let info = scrape.sums_by(
        "aksnet_node_info",
        ["node", "cni", "proxy_mode", "policy_engine", "zone"],
    );
    let mut lines: Vec<String> = info
        .keys()
        .map(|[node, cni, proxy, engine, zone]| {
            format!("  {node}: CNI {cni}, kube-proxy {proxy}, policy engine {engine}, zone {zone}")
        })
        .collect();
    let worst = scrape.sums_by("aksnet_snat_port_saturation_ratio", ["protocol", "family"]);
    for ([protocol, family], in_use) in
        scrape.sums_by("aksnet_snat_ports_in_use", ["protocol", "family"])
    {
        let labels = [("protocol", protocol.as_str()), ("family", family.as_str())];
        let limit = scrape.sum("aksnet_snat_ports_limit", &labels);
        let ratio = worst.get(&[protocol.clone(), family.clone()]);
        lines.push(format!(
            "  {:<34} {in_use:>6} of {limit:<7} {:.2} % towards the busiest destination",
            format!("SNAT ports, {protocol} {family}"),
            100.0 * ratio.copied().unwrap_or(0.0)
        ));
    }
    let used: BTreeMap<_, _> =
        scrape.sums_by("aksnet_snat_connections", ["src_namespace", "src_workload"]);
    for ([namespace, workload], n) in used {
        let who = if namespace.is_empty() {
            workload
        } else {
            format!("{namespace}/{workload}")
        };
        lines.push(format!(
            "  {:<34} {n:>6}",
            format!("SNATed connections of {who}")
        ));
    }
    lines.push(format!(
        "  {:<34} {:>6} of {}",
        "conntrack entries",
        scrape.sum("aksnet_conntrack_entries", &[]),
        scrape.sum("aksnet_conntrack_entries_limit", &[])
    ));
    for ([source], n) in scrape.sums_by("aksnet_pod_ips_in_use", ["source"]) {
        let limit = scrape.sum("aksnet_pod_ips_limit", &[("source", &source)]);
        lines.push(format!(
            "  {:<34} {n:>6} of {limit}",
            format!("pod addresses ({source})")
        ));
    }
    lines
}

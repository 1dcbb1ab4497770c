//! The rules that *kube-proxy* writes in iptables mode, rendered as `iptables-restore --noflush` input.
//!
//! Chain names, marks, comments and the order of rules are kube-proxy's own
//! (`pkg/proxy/iptables/proxier.go`, the level of Kubernetes 1.33). Every sync flushes and refills the chains it
//! owns, as kube-proxy does, and leaves all others and their counters alone.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::plan::Family;
use super::service::{Endpoint, Service, TrafficPolicy};

/// The mark that asks for masquerade.
pub const MASQUERADE_MARK: &str = "0x4000";

/// What decides, besides the services, which rules a node gets.
#[derive(Debug, Clone, Copy)]
pub struct Locality {
    /// All pods of the cluster: traffic from elsewhere is masqueraded.
    pub cluster: IpNet,
    /// The node's own pods: the endpoints of `externalTrafficPolicy: Local`.
    pub node: IpNet,
}

/// Which rules kube-proxy writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Proxy {
    /// iptables: a list of services that every new connection walks.
    #[default]
    Iptables,
    /// nftables: services in a map ([`super::nftables`]).
    Nftables,
}

/// What kubelet itself writes in iptables, whichever mode kube-proxy is in.
#[must_use]
pub fn kubelet() -> String {
    "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
     *filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\nCOMMIT\n"
        .to_owned()
}

/// The jumps and fixed chains, written once. kubelet's hint chain is among them, as it tells which iptables
/// backend is in use.
#[must_use]
pub fn base() -> String {
    let new = "-m conntrack --ctstate NEW";
    let portals = "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
    let externals = "-m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES";
    let firewall =
        "-m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL";
    [
        "*mangle",
        ":KUBE-IPTABLES-HINT - [0:0]",
        ":KUBE-KUBELET-CANARY - [0:0]",
        ":KUBE-PROXY-CANARY - [0:0]",
        "COMMIT",
        "*filter",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-EXTERNAL-SERVICES - [0:0]",
        ":KUBE-FORWARD - [0:0]",
        ":KUBE-NODEPORTS - [0:0]",
        ":KUBE-PROXY-FIREWALL - [0:0]",
        ":KUBE-FIREWALL - [0:0]",
        &format!("-A INPUT {new} {firewall}"),
        "-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS",
        &format!("-A INPUT {new} {externals}"),
        "-A INPUT -j KUBE-FIREWALL",
        &format!("-A FORWARD {new} {firewall}"),
        "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD",
        &format!("-A FORWARD {new} {portals}"),
        &format!("-A FORWARD {new} {externals}"),
        &format!("-A OUTPUT {new} {firewall}"),
        &format!("-A OUTPUT {new} {portals}"),
        "-A OUTPUT -j KUBE-FIREWALL",
        "COMMIT",
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-NODEPORTS - [0:0]",
        ":KUBE-POSTROUTING - [0:0]",
        ":KUBE-MARK-MASQ - [0:0]",
        &format!("-A PREROUTING {portals}"),
        &format!("-A OUTPUT {portals}"),
        "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
        "COMMIT",
        "",
    ]
    .join("\n")
}

/// Both tables of one sync. `stale` are chains of earlier syncs that no service has any more.
#[must_use]
pub fn sync(
    family: Family,
    locality: Locality,
    services: &[Service],
    stale: &BTreeSet<String>,
) -> String {
    let services: Vec<&Service> = services
        .iter()
        .filter(|service| service.family == family)
        .collect();
    filter(locality, &services) + &nat(locality, &services, stale)
}

/// The per-service chains that a sync writes.
#[must_use]
pub fn chains(family: Family, locality: Locality, services: &[Service]) -> BTreeSet<String> {
    let mut rules = Nat {
        locality,
        chains: BTreeSet::new(),
        lines: Vec::new(),
    };
    services
        .iter()
        .filter(|service| service.family == family)
        .for_each(|service| rules.service(service));
    rules.chains
}

fn filter(locality: Locality, services: &[&Service]) -> String {
    let mut lines: Vec<String> = [
        "*filter",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-EXTERNAL-SERVICES - [0:0]",
        ":KUBE-FORWARD - [0:0]",
        ":KUBE-PROXY-FIREWALL - [0:0]",
    ]
    .map(str::to_owned)
    .into();
    lines.extend([
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP".to_owned(),
        format!("-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j ACCEPT"),
        "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
    ]);
    for service in services {
        let (id, transport, port) = (service.port_id(), service.transport, service.port);
        if let (true, Some(ip)) = (service.endpoints.is_empty(), service.cluster_ip) {
            lines.push(format!(
                "-A KUBE-SERVICES -m comment --comment \"{id} has no endpoints\" -m {transport} -p {transport} -d {ip} --dport {port} -j REJECT"
            ));
        }
        let verdict = if service.endpoints.is_empty() {
            Some(("no endpoints", "REJECT"))
        } else if service.policy == TrafficPolicy::Local && local(locality, service).is_empty() {
            Some(("no local endpoints", "DROP"))
        } else {
            None
        };
        if let Some((why, target)) = verdict {
            for ip in &service.frontends {
                lines.push(format!(
                    "-A KUBE-EXTERNAL-SERVICES -m comment --comment \"{id} has {why}\" -m {transport} -p {transport} -d {ip} --dport {port} -j {target}"
                ));
            }
            if let Some(node_port) = service.node_port {
                lines.push(format!(
                    "-A KUBE-EXTERNAL-SERVICES -m comment --comment \"{id} has {why}\" -m addrtype --dst-type LOCAL -m {transport} -p {transport} --dport {node_port} -j {target}"
                ));
            }
        }
        if !service.source_ranges.is_empty() {
            for ip in &service.frontends {
                lines.push(format!(
                    "-A KUBE-PROXY-FIREWALL -m comment --comment \"{id} traffic not accepted by {}\" -m {transport} -p {transport} -d {ip} --dport {port} -j DROP",
                    service.fw_chain()
                ));
            }
        }
    }
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

fn nat(locality: Locality, services: &[&Service], stale: &BTreeSet<String>) -> String {
    let mut rules = Nat {
        locality,
        chains: BTreeSet::new(),
        lines: Vec::new(),
    };
    for service in services {
        rules.service(service);
    }
    let fixed = [
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
    ]
    .map(str::to_owned);
    let mut lines = vec!["*nat".to_owned()];
    lines.extend(
        fixed
            .iter()
            .chain(&rules.chains)
            .chain(stale.difference(&rules.chains))
            .map(|chain| format!(":{chain} - [0:0]")),
    );
    lines.extend([
        format!("-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN"),
        format!("-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE_MARK}"),
        "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully".to_owned(),
        format!("-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE_MARK}"),
    ]);
    lines.append(&mut rules.lines);
    lines.push("-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS".to_owned());
    lines.extend(
        stale
            .difference(&rules.chains)
            .map(|chain| format!("-X {chain}")),
    );
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

/// The endpoints of a service that are on the node.
pub(super) fn local(locality: Locality, service: &Service) -> Vec<Endpoint> {
    service
        .endpoints
        .iter()
        .copied()
        .filter(|endpoint| locality.node.contains(&endpoint.ip()))
        .collect()
}

/// The nat table's per-service chains and rules, as they are being collected.
struct Nat {
    locality: Locality,
    chains: BTreeSet<String>,
    lines: Vec<String>,
}

impl Nat {
    fn service(&mut self, service: &Service) {
        if service.endpoints.is_empty() {
            return;
        }
        let (id, transport, port) = (service.port_id(), service.transport, service.port);
        let (svc, ext, cluster) = (
            service.svc_chain(),
            service.ext_chain(),
            self.locality.cluster,
        );
        self.chains.insert(svc.clone());
        if let Some(ip) = service.cluster_ip {
            self.lines.extend([
                format!("-A KUBE-SERVICES -m comment --comment \"{id} cluster IP\" -m {transport} -p {transport} -d {ip} --dport {port} -j {svc}"),
                format!("-A {svc} -m comment --comment \"{id} cluster IP\" -m {transport} -p {transport} -d {ip} --dport {port} ! -s {cluster} -j KUBE-MARK-MASQ"),
            ]);
        }
        let entry = if service.source_ranges.is_empty() {
            ext.clone()
        } else {
            service.fw_chain()
        };
        for ip in &service.frontends {
            self.lines.push(format!(
                "-A KUBE-SERVICES -m comment --comment \"{id} loadbalancer IP\" -m {transport} -p {transport} -d {ip} --dport {port} -j {entry}"
            ));
        }
        if let Some(node_port) = service.node_port {
            self.lines.push(format!(
                "-A KUBE-NODEPORTS -m comment --comment {id} -m {transport} -p {transport} --dport {node_port} -j {ext}"
            ));
        }
        if service.node_port.is_some() || !service.frontends.is_empty() {
            self.external(service);
        }
        self.balance(service, &svc, &service.endpoints);
        for endpoint in &service.endpoints {
            let sep = service.sep_chain(*endpoint);
            self.lines.extend([
                format!("-A {sep} -m comment --comment {id} -s {} -j KUBE-MARK-MASQ", endpoint.ip()),
                format!("-A {sep} -m comment --comment {id} -m {transport} -p {transport} -j DNAT --to-destination {endpoint}"),
            ]);
            self.chains.insert(sep);
        }
    }

    /// How traffic from outside the cluster gets to the service.
    fn external(&mut self, service: &Service) {
        let (id, ext, svc, cluster) = (
            service.port_id(),
            service.ext_chain(),
            service.svc_chain(),
            self.locality.cluster,
        );
        self.chains.insert(ext.clone());
        if !service.source_ranges.is_empty() {
            let fw = service.fw_chain();
            self.chains.insert(fw.clone());
            for range in &service.source_ranges {
                self.lines.push(format!(
                    "-A {fw} -m comment --comment \"{id} loadbalancer IP\" -s {range} -j {ext}"
                ));
            }
            self.lines.push(format!("-A {fw} -m comment --comment \"other traffic to {id} will be dropped by KUBE-PROXY-FIREWALL\""));
        }
        match service.policy {
            TrafficPolicy::Cluster => self.lines.extend([
                format!("-A {ext} -m comment --comment \"masquerade traffic for {id} external destinations\" -j KUBE-MARK-MASQ"),
                format!("-A {ext} -j {svc}"),
            ]),
            TrafficPolicy::Local => {
                self.lines.extend([
                    format!("-A {ext} -m comment --comment \"pod traffic for {id} external destinations\" -s {cluster} -j {svc}"),
                    format!("-A {ext} -m comment --comment \"masquerade LOCAL traffic for {id} external destinations\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"),
                    format!("-A {ext} -m comment --comment \"route LOCAL traffic for {id} external destinations\" -m addrtype --src-type LOCAL -j {svc}"),
                ]);
                let local = local(self.locality, service);
                if !local.is_empty() {
                    let svl = service.svl_chain();
                    self.lines.push(format!("-A {ext} -j {svl}"));
                    self.balance(service, &svl, &local);
                    self.chains.insert(svl);
                }
            }
        }
    }

    /// A chain that picks one endpoint at random, each with the same chance.
    fn balance(&mut self, service: &Service, chain: &str, endpoints: &[Endpoint]) {
        let id = service.port_id();
        for (at, endpoint) in endpoints.iter().enumerate() {
            let sep = service.sep_chain(*endpoint);
            let left = u32::try_from(endpoints.len() - at).unwrap_or(u32::MAX);
            // The last one takes what is left.
            let chance = if left == 1 {
                String::new()
            } else {
                format!(
                    " -m statistic --mode random --probability {:.10}",
                    1.0 / f64::from(left)
                )
            };
            self.lines.push(format!(
                "-A {chain} -m comment --comment \"{id} -> {endpoint}\"{chance} -j {sep}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locality() -> Locality {
        Locality {
            cluster: "10.244.0.0/16".parse().unwrap(),
            node: "10.244.0.0/24".parse().unwrap(),
        }
    }

    fn service() -> Service {
        Service::cluster_ip("shop", "web", 80)
            .port_name("http")
            .at("10.0.0.10".parse::<std::net::IpAddr>().unwrap())
            .endpoints([
                "10.244.0.2:8080".parse().unwrap(),
                "10.244.1.2:8080".parse().unwrap(),
            ])
    }

    fn rendered(service: Service) -> String {
        sync(Family::V4, locality(), &[service], &BTreeSet::new())
    }

    #[test]
    fn endpoints_share_evenly_and_the_last_takes_the_rest() {
        let text = rendered(service());
        let svc = service().svc_chain();
        assert!(text.contains(&format!("-A {svc} -m comment --comment \"shop/web:http -> 10.244.0.2:8080\" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-")));
        assert!(text.contains(&format!(
            "-A {svc} -m comment --comment \"shop/web:http -> 10.244.1.2:8080\" -j KUBE-SEP-"
        )));
    }

    #[test]
    fn traffic_from_outside_the_pods_and_hairpins_are_marked() {
        let text = rendered(service());
        assert!(text.contains("--dport 80 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ"));
        assert!(
            text.contains("-m comment --comment shop/web:http -s 10.244.0.2 -j KUBE-MARK-MASQ")
        );
        assert!(text.contains("-j MASQUERADE --random-fully"));
    }

    #[test]
    fn local_policy_uses_only_the_nodes_own_endpoints() {
        let service = Service {
            frontends: vec!["198.51.100.20".parse().unwrap()],
            node_port: Some(30080),
            ..service()
        }
        .local();
        let (svl, local) = (service.svl_chain(), service.sep_chain(service.endpoints[0]));
        let text = rendered(service);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with(&format!("-A {svl} ")))
            .collect();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with(&local));
    }

    #[test]
    fn local_policy_without_local_endpoints_drops() {
        let mut service = Service {
            node_port: Some(30080),
            ..service()
        }
        .local();
        service.endpoints.remove(0);
        assert!(rendered(service).contains("has no local endpoints\" -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j DROP"));
    }

    #[test]
    fn service_without_endpoints_rejects_and_has_no_chain() {
        let service = Service {
            endpoints: Vec::new(),
            ..service()
        };
        let svc = service.svc_chain();
        let text = rendered(service);
        assert!(text.contains(
            "shop/web:http has no endpoints\" -m tcp -p tcp -d 10.0.0.10 --dport 80 -j REJECT"
        ));
        assert!(!text.contains(&svc));
    }

    #[test]
    fn source_ranges_guard_the_frontend() {
        let service = Service {
            frontends: vec!["198.51.100.20".parse().unwrap()],
            ..service()
        }
        .source_ranges(["203.0.113.0/24".parse().unwrap()]);
        let (fw, ext) = (service.fw_chain(), service.ext_chain());
        let text = rendered(service);
        assert!(text.contains(&format!("-d 198.51.100.20 --dport 80 -j {fw}")));
        assert!(text.contains(&format!("-s 203.0.113.0/24 -j {ext}")));
        assert!(text.contains(&format!(
            "traffic not accepted by {fw}\" -m tcp -p tcp -d 198.51.100.20 --dport 80 -j DROP"
        )));
    }

    #[test]
    fn stale_chains_are_flushed_then_removed() {
        let stale = chains(Family::V4, locality(), &[service()]);
        let text = sync(Family::V4, locality(), &[], &stale);
        for chain in stale {
            assert!(
                text.contains(&format!(":{chain} - [0:0]"))
                    && text.contains(&format!("-X {chain}"))
            );
        }
    }

    #[test]
    fn nodeports_rule_is_the_last_of_its_chain() {
        let text = rendered(service());
        let last = text
            .lines()
            .rfind(|line| line.starts_with("-A KUBE-SERVICES "))
            .unwrap();
        assert!(last.ends_with("-j KUBE-NODEPORTS"));
    }
}

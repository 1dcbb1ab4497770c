//! The rules that *kube-proxy* writes in nftables mode, rendered as one `nft -f` transaction.
//!
//! Names, priorities and the order of rules are kube-proxy's own (`pkg/proxy/nftables/proxier.go` and its
//! `proxier_test.go`, the level of Kubernetes 1.33): one table per family, services found by verdict maps in place of
//! a linear list, a chain per service and per endpoint. kube-proxy writes what has changed; here a sync adds what is
//! new, and replaces the table where anything else has changed, so that no packet meets half of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;

use super::hash::chain_suffix;
use super::netns::Netns;
use super::plan::Family;
use super::proxy::{Locality, local};
use super::service::{Endpoint, Service, TrafficPolicy};

/// The table of each family.
pub const TABLE: &str = "kube-proxy";

/// What decides, besides the services, which rules a node gets.
#[derive(Debug, Clone, Copy)]
pub struct Ground {
    /// IPv4 or IPv6.
    pub family: Family,
    /// What counts as a pod.
    pub locality: Locality,
    /// All ClusterIPs.
    pub services: IpNet,
    /// Where node ports are taken.
    pub node: IpAddr,
}

/// Loads a transaction.
///
/// # Errors
/// When nft refuses it.
pub fn load(netns: &Netns, text: &str) -> Result<()> {
    netns
        .output_with_input("nft", ["-f", "-"], text)
        .with_context(|| {
            let start: String = text.chars().take(20_000).collect();
            format!("in these rules:\n{start}")
        })?;
    Ok(())
}

/// What each service adds to the table, by its name.
pub type Blocks = BTreeMap<String, String>;

/// What these services add to the table.
#[must_use]
pub fn blocks(ground: &Ground, services: &[Service]) -> Blocks {
    let of_family = services.iter().filter(|s| s.family == ground.family);
    of_family
        .map(|service| {
            let mut rules = Rules::new(ground);
            rules.service(service);
            (name(service), rules.text)
        })
        .collect()
}

/// The transaction that leads from what is there, if anything is, to these services.
#[must_use]
pub fn transaction(ground: &Ground, before: Option<&Blocks>, after: &Blocks) -> String {
    let stays = |before: &&Blocks| {
        before
            .iter()
            .all(|(name, text)| after.get(name) == Some(text))
    };
    let mut rules = Rules::new(ground);
    let before = before.filter(stays);
    if before.is_none() {
        rules.base();
    }
    for (name, text) in after {
        if before.is_none_or(|before| !before.contains_key(name)) {
            rules.text.push_str(text);
        }
    }
    rules.text
}

/// `HASH-namespace/name/protocol/port`, as kube-proxy names what belongs to a service port.
#[must_use]
pub fn name(service: &Service) -> String {
    hashed(&plain_name(service))
}

/// The name of one endpoint of a service port. nft takes no colons in names.
#[must_use]
pub fn endpoint_name(service: &Service, endpoint: Endpoint) -> String {
    let ip = endpoint.ip().to_string().replace(':', ".");
    hashed(&format!(
        "{}__{ip}/{}",
        plain_name(service),
        endpoint.port()
    ))
}

fn plain_name(service: &Service) -> String {
    let Service {
        namespace,
        name,
        transport,
        port_name,
        ..
    } = service;
    format!("{namespace}/{name}/{transport}/{port_name}")
}

fn hashed(name: &str) -> String {
    format!("{}-{name}", &chain_suffix(name)[..8])
}

/// A transaction that is being written.
struct Rules {
    ground: Ground,
    ip: &'static str,
    text: String,
}

impl Rules {
    fn new(ground: &Ground) -> Self {
        Self {
            ground: *ground,
            ip: match ground.family {
                Family::V4 => "ip",
                Family::V6 => "ip6",
            },
            text: String::new(),
        }
    }

    /// One command: `add WHAT ip kube-proxy REST`.
    fn add(&mut self, what: &str, rest: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "add {what} {} {TABLE} {rest}", self.ip);
    }

    fn base(&mut self) {
        let (ip, node) = (self.ip, self.ground.node);
        let address = if ip == "ip" { "ipv4_addr" } else { "ipv6_addr" };
        let _ = writeln!(
            self.text,
            "add table {ip} {TABLE}\ndelete table {ip} {TABLE}\nadd table {ip} {TABLE} {{ comment \"rules for kube-proxy\" ; }}"
        );
        for (name, comment) in [
            ("cluster-ips", "Active ClusterIPs"),
            ("nodeport-ips", "IPs that accept NodePort traffic"),
        ] {
            self.add(
                "set",
                format_args!("{name} {{ type {address} ; comment \"{comment}\" ; }}"),
            );
        }
        let full = format!("{address} . inet_proto . inet_service");
        for (name, key, comment) in [
            (
                "firewall-ips",
                full.as_str(),
                "destinations that are subject to LoadBalancerSourceRanges",
            ),
            (
                "no-endpoint-nodeports",
                "inet_proto . inet_service",
                "vmap to drop or reject packets to service nodeports with no endpoints",
            ),
            (
                "no-endpoint-services",
                &full,
                "vmap to drop or reject packets to services with no endpoints",
            ),
            (
                "service-ips",
                &full,
                "ClusterIP, ExternalIP and LoadBalancer IP traffic",
            ),
            (
                "service-nodeports",
                "inet_proto . inet_service",
                "NodePort traffic",
            ),
        ] {
            self.add(
                "map",
                format_args!("{name} {{ type {key} : verdict ; comment \"{comment}\" ; }}"),
            );
        }
        for chain in [
            "cluster-ips-check",
            "filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }",
            "filter-output-pre-dnat { type filter hook output priority -110 ; }",
            "filter-forward { type filter hook forward priority 0 ; }",
            "filter-input { type filter hook input priority 0 ; }",
            "filter-output { type filter hook output priority 0 ; }",
            "firewall-check",
            "mark-for-masquerade",
            "masquerading",
            "nat-output { type nat hook output priority -100 ; }",
            "nat-postrouting { type nat hook postrouting priority 100 ; }",
            "nat-prerouting { type nat hook prerouting priority -100 ; }",
            "nodeport-endpoints-check",
            "reject-chain { comment \"helper for @no-endpoint-services / @no-endpoint-nodeports\" ; }",
            "services",
            "service-endpoints-check",
        ] {
            self.add("chain", format_args!("{chain}"));
        }
        self.base_rules();
        self.add("element", format_args!("nodeport-ips {{ {node} }}"));
    }

    fn base_rules(&mut self) {
        let (ip, services) = (self.ip, self.ground.services);
        let dialled = format!("{ip} daddr . meta l4proto . th dport vmap");
        let node_port = format!("{ip} daddr @nodeport-ips meta l4proto . th dport vmap");
        for rule in [
            &format!(
                "cluster-ips-check {ip} daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\""
            ),
            &format!(
                "cluster-ips-check {ip} daddr {{ {services} }} drop comment \"Drop traffic to unallocated ClusterIPs\""
            ),
            "filter-prerouting-pre-dnat ct state new jump firewall-check",
            "filter-forward ct state new jump service-endpoints-check",
            "filter-forward ct state new jump cluster-ips-check",
            "filter-input ct state new jump nodeport-endpoints-check",
            "filter-input ct state new jump service-endpoints-check",
            "filter-output ct state new jump service-endpoints-check",
            "filter-output-pre-dnat ct state new jump firewall-check",
            "filter-output ct state new jump cluster-ips-check",
            &format!("firewall-check {dialled} @firewall-ips"),
            "mark-for-masquerade mark set mark or 0x4000",
            "masquerading mark and 0x4000 == 0 return",
            "masquerading mark set mark xor 0x4000",
            "masquerading masquerade fully-random",
            "nat-output jump services",
            "nat-postrouting jump masquerading",
            "nat-prerouting jump services",
            &format!("nodeport-endpoints-check {node_port} @no-endpoint-nodeports"),
            "reject-chain reject",
            &format!("services {dialled} @service-ips"),
            &format!("services {node_port} @service-nodeports"),
            &format!("service-endpoints-check {dialled} @no-endpoint-services"),
        ] {
            self.add("rule", format_args!("{rule}"));
        }
    }

    fn service(&mut self, service: &Service) {
        if let Some(ip) = service.cluster_ip {
            self.add("element", format_args!("cluster-ips {{ {ip} }}"));
        }
        self.refuse(service);
        if service.endpoints.is_empty() {
            return;
        }
        let (name, port, transport) = (name(service), service.port, service.transport);
        let (ip, cluster) = (self.ip, self.ground.locality.cluster);
        for endpoint in &service.endpoints {
            let chain = format!("endpoint-{}", endpoint_name(service, *endpoint));
            self.add("chain", format_args!("{chain}"));
            self.add(
                "rule",
                format_args!(
                    "{chain} {ip} saddr {} jump mark-for-masquerade",
                    endpoint.ip()
                ),
            );
            self.add(
                "rule",
                format_args!("{chain} meta l4proto {transport} dnat to {endpoint}"),
            );
        }
        self.add("chain", format_args!("service-{name}"));
        if let Some(dialled) = service.cluster_ip {
            self.add("rule", format_args!("service-{name} {ip} daddr {dialled} {ip} saddr != {cluster} jump mark-for-masquerade"));
            self.add(
                "element",
                format_args!(
                    "service-ips {{ {dialled} . {transport} . {port} : goto service-{name} }}"
                ),
            );
        }
        self.balance(service, &format!("service-{name}"), &service.endpoints);
        if service.node_port.is_some() || !service.frontends.is_empty() {
            self.external(service, &name);
        }
    }

    /// What answers where there is no endpoint, and what keeps strangers out.
    fn refuse(&mut self, service: &Service) {
        let (id, port, transport) = (service.port_id(), service.port, service.transport);
        let verdict = if service.endpoints.is_empty() {
            "goto reject-chain"
        } else if service.policy == TrafficPolicy::Local
            && local(self.ground.locality, service).is_empty()
        {
            "drop"
        } else {
            return;
        };
        let cluster_ip = service.cluster_ip.filter(|_| service.endpoints.is_empty());
        for ip in cluster_ip.iter().chain(&service.frontends) {
            self.add("element", format_args!("no-endpoint-services {{ {ip} . {transport} . {port} comment \"{id}\" : {verdict} }}"));
        }
        if let Some(node_port) = service.node_port {
            self.add("element", format_args!("no-endpoint-nodeports {{ {transport} . {node_port} comment \"{id}\" : {verdict} }}"));
        }
    }

    /// How traffic from outside the cluster gets to the service.
    fn external(&mut self, service: &Service, name: &str) {
        let (port, transport, ip) = (service.port, service.transport, self.ip);
        let (chain, inner) = (format!("external-{name}"), format!("service-{name}"));
        self.add("chain", format_args!("{chain}"));
        match service.policy {
            TrafficPolicy::Cluster => {
                self.add("rule", format_args!("{chain} jump mark-for-masquerade"));
                self.add("rule", format_args!("{chain} goto {inner}"));
            }
            TrafficPolicy::Local => {
                let cluster = self.ground.locality.cluster;
                self.add("rule", format_args!("{chain} {ip} saddr {cluster} goto {inner} comment \"short-circuit pod traffic\""));
                self.add("rule", format_args!("{chain} fib saddr type local jump mark-for-masquerade comment \"masquerade local traffic\""));
                self.add("rule", format_args!("{chain} fib saddr type local goto {inner} comment \"short-circuit local traffic\""));
                let local = local(self.ground.locality, service);
                if !local.is_empty() {
                    self.add("chain", format_args!("local-{name}"));
                    self.balance(service, &format!("local-{name}"), &local);
                    self.add("rule", format_args!("{chain} goto local-{name}"));
                }
            }
        }
        for frontend in &service.frontends {
            self.add(
                "element",
                format_args!("service-ips {{ {frontend} . {transport} . {port} : goto {chain} }}"),
            );
        }
        if let Some(node_port) = service.node_port {
            self.add(
                "element",
                format_args!("service-nodeports {{ {transport} . {node_port} : goto {chain} }}"),
            );
        }
        if !service.source_ranges.is_empty() {
            let ranges: Vec<String> = service.source_ranges.iter().map(IpNet::to_string).collect();
            self.add("chain", format_args!("firewall-{name}"));
            self.add(
                "rule",
                format_args!(
                    "firewall-{name} {ip} saddr != {{ {} }} drop",
                    ranges.join(", ")
                ),
            );
            for frontend in &service.frontends {
                self.add("element", format_args!("firewall-ips {{ {frontend} . {transport} . {port} : goto firewall-{name} }}"));
            }
        }
    }

    /// Picks one endpoint at random, each with the same chance.
    fn balance(&mut self, service: &Service, chain: &str, endpoints: &[Endpoint]) {
        let choices: Vec<String> = endpoints
            .iter()
            .enumerate()
            .map(|(at, endpoint)| {
                format!("{at} : goto endpoint-{}", endpoint_name(service, *endpoint))
            })
            .collect();
        self.add(
            "rule",
            format_args!(
                "{chain} numgen random mod {} vmap {{ {} }}",
                endpoints.len(),
                choices.join(" , ")
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground() -> Ground {
        Ground {
            family: Family::V4,
            locality: Locality {
                cluster: "10.0.0.0/8".parse().unwrap(),
                node: "10.180.1.0/24".parse().unwrap(),
            },
            services: "172.30.0.0/16".parse().unwrap(),
            node: "192.168.0.2".parse().unwrap(),
        }
    }

    fn at(name: &str, ip: &str) -> Service {
        Service::cluster_ip("ns1", name, 80)
            .port_name("p80")
            .at(ip.parse::<IpAddr>().unwrap())
    }

    fn table(ground: &Ground, services: &[Service]) -> String {
        transaction(ground, None, &blocks(ground, services))
    }

    fn rendered(service: Service) -> String {
        table(&ground(), &[service])
    }

    #[test]
    fn what_is_new_is_added_and_what_has_changed_replaces_the_table() {
        let service = |n: u8| {
            at(&format!("svc{n}"), &format!("172.30.0.{n}"))
                .endpoints(["10.180.0.1:80".parse().unwrap()])
        };
        let one = blocks(&ground(), &[service(1)]);
        let two = blocks(&ground(), &[service(1), service(2)]);
        let text = transaction(&ground(), Some(&one), &two);
        assert!(text.contains("svc2") && !text.contains("svc1") && !text.contains("table"));
        let text = transaction(&ground(), Some(&two), &one);
        assert!(text.contains("delete table ip kube-proxy") && !text.contains("svc2"));
        assert_eq!(transaction(&ground(), Some(&two), &two), "");
    }

    #[test]
    fn names_are_those_that_kube_proxy_derives() {
        // From kube-proxy's own tests.
        let service = at("svc1", "172.30.0.41").endpoints(["10.180.0.1:80".parse().unwrap()]);
        assert_eq!(name(&service), "ULMVA6XW-ns1/svc1/tcp/p80");
        assert_eq!(
            endpoint_name(&service, service.endpoints[0]),
            "5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"
        );
    }

    #[test]
    fn cluster_ip_is_an_element_that_leads_to_a_random_endpoint() {
        let endpoints = [
            "10.180.0.1:80".parse().unwrap(),
            "10.180.1.1:80".parse().unwrap(),
        ];
        let text = rendered(at("svc1", "172.30.0.41").endpoints(endpoints));
        for line in [
            "add element ip kube-proxy service-ips { 172.30.0.41 . tcp . 80 : goto service-ULMVA6XW-ns1/svc1/tcp/p80 }",
            "add rule ip kube-proxy service-ULMVA6XW-ns1/svc1/tcp/p80 ip daddr 172.30.0.41 ip saddr != 10.0.0.0/8 jump mark-for-masquerade",
            "add rule ip kube-proxy endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80 meta l4proto tcp dnat to 10.180.0.1:80",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.contains("tcp/p80 numgen random mod 2 vmap { 0 : goto endpoint-5OJB2KTY-"));
    }

    #[test]
    fn service_without_endpoints_rejects_and_has_no_chain() {
        let text = rendered(at("svc1", "172.30.0.41"));
        assert!(text.contains(
            "no-endpoint-services { 172.30.0.41 . tcp . 80 comment \"ns1/svc1:p80\" : goto reject-chain }"
        ));
        assert!(!text.contains("chain ip kube-proxy service-ULMVA6XW"));
    }

    #[test]
    fn local_policy_without_local_endpoints_drops_and_with_them_uses_only_them() {
        let service = |endpoint: &str| {
            Service {
                node_port: Some(30_080),
                ..at("svc1", "172.30.0.41").endpoints([endpoint.parse().unwrap()])
            }
            .local()
        };
        let text = rendered(service("10.180.0.1:80"));
        assert!(
            text.contains("no-endpoint-nodeports { tcp . 30080 comment \"ns1/svc1:p80\" : drop }")
        );
        assert!(!text.contains("goto local-"));
        let text = rendered(service("10.180.1.1:80"));
        assert!(text.contains("external-ULMVA6XW-ns1/svc1/tcp/p80 goto local-ULMVA6XW"));
        assert!(!text.contains(": drop }"));
    }

    #[test]
    fn names_hold_no_colons_and_addresses_do() {
        let service = Service::cluster_ip("a", "b", 80)
            .at("fd00:10::a".parse::<IpAddr>().unwrap())
            .endpoints(["[fd00:244::2]:8080".parse().unwrap()]);
        let v6 = Ground {
            family: Family::V6,
            locality: Locality {
                cluster: "fd00:244::/48".parse().unwrap(),
                node: "fd00:244::/64".parse().unwrap(),
            },
            services: "fd00:10::/108".parse().unwrap(),
            node: "fd00:224::4".parse().unwrap(),
        };
        let text = table(&v6, &[service]);
        assert!(
            text.contains("a/b/tcp/__fd00.244..2/8080 meta l4proto tcp dnat to [fd00:244::2]:8080")
        );
        assert!(
            text.lines()
                .all(|l| l.split_whitespace().nth(2) == Some("ip6"))
        );
    }
}

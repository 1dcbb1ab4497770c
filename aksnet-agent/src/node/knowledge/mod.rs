//! What the node's own addresses and routes tell about the address plan, each piece with its source, so
//! that `/status` can show why an address is taken for what it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aksnet_common::stats::Role;
use ipnet::IpNet;

use super::{
    Context, Snapshot,
    address::is_link_local,
    found::Found,
    link::Link,
    roles::Watched,
    route::{Route, RouteKind},
};
use crate::{
    config::Config,
    plan::{self, Plan, SourceNat},
};

/// Devices through which other nodes' pods are reached in a tunnel (flannel, Calico).
const TUNNELS: [&str; 6] = ["vxlan", "ipip", "sit", "geneve", "wireguard", "ip6tnl"];
/// The dummy on which IPVS keeps the services' addresses.
const IPVS: &str = "kube-ipvs0";
/// Part of the name of the dummy on which the node's DNS cache listens.
const LOCAL_DNS_DEVICE: &str = "localdns";

/// What a range or address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// An address that this node owns.
    NodeAddress,
    /// The node's DNS cache: bound on the node, but a destination of its own kind.
    LocalDns,
    /// A pod on this node, with the index of its interface.
    LocalPod(u32),
    /// Only this node's pods.
    LocalPods,
    /// Pods of any node.
    Pods,
    /// Services.
    Services,
    /// Other nodes.
    Nodes,
    /// The virtual network.
    Vnet,
    /// Private endpoints.
    PrivateEndpoints,
    /// A range with a name of its own.
    Named(String),
    /// A load balancer's frontend.
    LoadBalancer,
    /// The API server, with its port (0: any).
    ApiServer(u16),
}

impl What {
    /// As `/status` shows it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::NodeAddress => "node_address".to_owned(),
            Self::LocalDns => "local_dns".to_owned(),
            Self::LocalPod(_) => "local_pod".to_owned(),
            Self::LocalPods => "local_pod_cidr".to_owned(),
            Self::Pods => "pod_cidr".to_owned(),
            Self::Services => "service_cidr".to_owned(),
            Self::Nodes => "node_cidr".to_owned(),
            Self::Vnet => "vnet_cidr".to_owned(),
            Self::PrivateEndpoints => "private_endpoint_cidr".to_owned(),
            Self::Named(name) => format!("named_cidr {name}"),
            Self::LoadBalancer => "load_balancer".to_owned(),
            Self::ApiServer(port) => format!("api_server port {port}"),
        }
    }
}

/// One piece of knowledge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// What it is.
    pub what: What,
    /// The range; a single address as a range of one.
    pub net: IpNet,
    /// Who says so.
    pub source: String,
}

/// Gathers what the config says, and what addresses and routes tell where it says nothing.
#[must_use]
pub fn gather(
    snapshot: &Snapshot,
    watched: &[Watched],
    config: &Config,
    context: &Context,
) -> Vec<Fact> {
    let mut facts = configured(config);
    let view = View {
        snapshot,
        pods: indices(watched, Role::Pod),
        uplinks: indices(watched, Role::Uplink),
    };
    facts.extend(view.node_addresses());
    let local = view.local_pods();
    facts.extend(local.iter().cloned());
    let remote = view.remote_pods();
    if config.node_cidr.is_empty() {
        facts.extend(next_hops(&remote));
    }
    if config.pod_cidr.is_empty() {
        facts.extend(local_block(&local, &remote));
        facts.extend(remote.into_iter().map(|(fact, _)| fact));
        facts.extend(by_kubernetes(context));
        facts.extend(spared(context, &facts, &view));
    }
    facts.extend(dns_caches(context));
    if config.vnet_cidr.is_empty() {
        facts.extend(view.uplink_subnets());
    }
    if config.service_cidr.is_empty() {
        facts.extend(view.ipvs_services(&facts));
    }
    facts.sort();
    facts.dedup_by(|a, b| a.what == b.what && a.net == b.net);
    facts
}

/// The plan that the facts make, with the names of all `links`.
#[must_use]
pub fn plan(
    facts: &[Fact],
    watched: &[Watched],
    links: &[Link],
    node_name: &str,
    found: Option<&Found>,
) -> Plan {
    let zone = found.and_then(|found| found.zone.value.as_deref());
    let mut plan = Plan::builder()
        .node_name(node_name)
        .zone(zone.unwrap_or_default())
        .source_nat(found.map_or(SourceNat::NotExpected, source_nat));
    for fact in facts {
        let net = fact.net;
        plan = match &fact.what {
            What::NodeAddress => plan.node_address(net.addr()),
            What::LocalDns => plan.local_dns(net.addr()),
            What::LocalPod(index) => plan.local_pod(net.addr(), *index),
            What::LocalPods => plan.local_pod_cidr(net),
            What::Pods => plan.pod_cidr(net),
            What::Services => plan.service_cidr(net),
            What::Nodes => plan.node_cidr(net),
            What::Vnet => plan.vnet_cidr(net),
            What::PrivateEndpoints => plan.private_endpoint_cidr(net),
            What::Named(name) => plan.named_cidr(name, net),
            What::LoadBalancer => plan.load_balancer(net.addr()),
            What::ApiServer(port) => plan.api_server(net.addr(), *port),
        };
    }
    for w in watched {
        plan = plan.interface(w.interface.index, w.interface.role, &w.interface.name);
    }
    for link in links {
        plan = plan.link(link.index, &link.name);
    }
    plan.build()
}

/// What of the pods' egress the node is expected to source-NAT; see [`SourceNat`].
fn source_nat(found: &Found) -> SourceNat {
    match found.cni.value {
        Some("kubenet" | "azure_overlay" | "kindnet" | "flannel") => SourceNat::Everything,
        Some("azure_node_subnet") => SourceNat::Internet,
        _ => SourceNat::NotExpected,
    }
}

fn by_kubernetes(context: &Context) -> impl Iterator<Item = Fact> {
    let pods = context.pod_cidrs.iter();
    let pods = pods.map(|net| fact(What::Pods, *net, "spec.podCIDRs of the nodes"));
    let own = context.own_pod_cidrs.iter();
    pods.chain(own.map(|net| fact(What::LocalPods, *net, "spec.podCIDRs of this node")))
}

/// A range that the masquerade agent spares and that holds this node's pods is where the cluster's pods live, unless
/// it is so wide that it holds the node's own network, too (`RETURN 10.0.0.0/8`).
fn spared(context: &Context, facts: &[Fact], view: &View) -> Vec<Fact> {
    let masquerade = context
        .found
        .as_ref()
        .and_then(|found| found.masquerade.value.as_ref());
    let Some(Some(masquerade)) = masquerade else {
        return Vec::new();
    };
    let local = |net: &IpNet| {
        let own = |fact: &&Fact| matches!(fact.what, What::LocalPod(_) | What::LocalPods);
        facts.iter().filter(own).any(|fact| net.contains(&fact.net))
    };
    let uplinks: Vec<IpNet> = view
        .uplink_subnets()
        .into_iter()
        .map(|fact| fact.net)
        .collect();
    let wide = |net: &IpNet| uplinks.iter().any(|uplink| net.contains(uplink));
    let ranges = masquerade
        .spared
        .iter()
        .filter(|net| local(net) && !wide(net));
    ranges
        .map(|net| {
            let source = format!(
                "not masqueraded by {}, and holds this node's pods",
                masquerade.agent
            );
            fact(What::Pods, *net, source)
        })
        .collect()
}

/// Where the node's DNS cache was found to listen.
fn dns_caches(context: &Context) -> Vec<Fact> {
    let found = context.found.as_ref();
    let addresses = found.and_then(|found| found.local_dns.value.as_deref());
    let addresses = addresses.unwrap_or_default().iter();
    addresses
        .map(|address| fact(What::LocalDns, *address, "found to be a DNS cache"))
        .collect()
}

fn configured(config: &Config) -> Vec<Fact> {
    let named = config
        .named_cidr
        .iter()
        .map(|(name, net)| (What::Named(name.clone()), *net));
    let frontends = config
        .load_balancer
        .iter()
        .map(|address| (What::LoadBalancer, IpNet::from(*address)));
    let api_servers = config
        .api_server
        .iter()
        .map(|server| (What::ApiServer(server.port()), IpNet::from(server.ip())));
    [
        (What::Pods, &config.pod_cidr),
        (What::Services, &config.service_cidr),
        (What::Nodes, &config.node_cidr),
        (What::Vnet, &config.vnet_cidr),
        (What::PrivateEndpoints, &config.private_endpoint_cidr),
    ]
    .into_iter()
    .flat_map(|(what, nets)| nets.iter().map(move |net| (what.clone(), *net)))
    .chain(named)
    .chain(frontends)
    .chain(api_servers)
    .map(|(what, net)| fact(what, net, "configured"))
    .collect()
}

fn fact(what: What, net: impl Into<IpNet>, source: impl Into<String>) -> Fact {
    Fact {
        what,
        net: net.into(),
        source: source.into(),
    }
}

fn indices(watched: &[Watched], role: Role) -> BTreeSet<u32> {
    watched
        .iter()
        .filter(|w| w.interface.role == role)
        .map(|w| w.interface.index)
        .collect()
}

struct View<'a> {
    snapshot: &'a Snapshot,
    pods: BTreeSet<u32>,
    uplinks: BTreeSet<u32>,
}

impl View<'_> {
    fn name(&self, index: u32) -> &str {
        self.snapshot.link(index).map_or("?", |l| &l.name)
    }

    /// Every address counts, the bridge's too: MASQUERADE uses the outgoing device's.
    fn node_addresses(&self) -> impl Iterator<Item = Fact> {
        self.snapshot
            .addresses
            .iter()
            .filter(|a| self.name(a.index) != IPVS)
            .map(|a| {
                let device = self.name(a.index);
                // AKS's `localdns`, upstream's `nodelocaldns`, which binds the cluster's DNS address too.
                let dns = device.contains(LOCAL_DNS_DEVICE)
                    || plan::LOCAL_DNS.iter().any(|dns| IpAddr::V4(*dns) == a.ip());
                let what = if dns {
                    What::LocalDns
                } else {
                    What::NodeAddress
                };
                fact(what, a.ip(), format!("address of {device}"))
            })
    }

    /// Whether the node has this address itself.
    fn is_own(&self, address: IpAddr) -> bool {
        self.snapshot.addresses.iter().any(|a| a.ip() == address)
    }

    /// The bridges that pods hang on, host routes to pods, and ranges that a routing daemon has set aside.
    fn local_pods(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        let default = |index| {
            self.snapshot
                .routes
                .iter()
                .any(|r| r.is_default() && r.hops.iter().any(|(device, _)| *device == index))
        };
        for bridge in self.snapshot.links.iter().filter(|l| l.is_bridge()) {
            let has_pods = self
                .snapshot
                .links
                .iter()
                .any(|l| l.master == Some(bridge.index) && self.pods.contains(&l.index));
            // The bridge stays when its last pod has gone, and what it is stays with it.
            let is_pods = has_pods || ["cbr0", "cni0"].contains(&bridge.name.as_str());
            // A bridge with the default route stands for the uplink; its subnet is the network's.
            if !is_pods || default(bridge.index) {
                continue;
            }
            for address in self
                .snapshot
                .addresses
                .iter()
                .filter(|a| a.index == bridge.index)
            {
                if let Some(subnet) = address.subnet() {
                    facts.push(fact(
                        What::LocalPods,
                        subnet,
                        format!("subnet of bridge {}", bridge.name),
                    ));
                }
            }
        }
        for route in &self.snapshot.routes {
            match route.kind {
                RouteKind::Blackhole if route.bird && !route.is_host() => {
                    facts.push(fact(What::LocalPods, route.to, "blackhole route of BIRD"));
                }
                // Not the gateway's address on each pod's interface: IPv6 has a route to that, too.
                RouteKind::Unicast if route.is_host() && !self.is_own(route.to.addr()) => {
                    if let Some((device, _)) = route
                        .hops
                        .iter()
                        .find(|(device, _)| self.pods.contains(device))
                    {
                        let source = format!("route to {}", self.name(*device));
                        facts.push(fact(What::LocalPod(*device), route.to.addr(), source));
                    }
                }
                _ => {}
            }
        }
        facts
    }

    /// Ranges behind another machine of the uplink's network that is not the default gateway (kind, Calico
    /// and Cilium without a tunnel), or behind a tunnel; with their next hops.
    fn remote_pods(&self) -> Vec<(Fact, Vec<IpAddr>)> {
        let default_gateways: BTreeSet<IpAddr> = self
            .snapshot
            .routes
            .iter()
            .filter(|r| r.is_default())
            .flat_map(|r| r.hops.iter().filter_map(|(_, gateway)| *gateway))
            .collect();
        let mut found = Vec::new();
        for route in &self.snapshot.routes {
            if route.is_default()
                || route.kind == RouteKind::Blackhole
                || is_link_local(route.to.addr())
            {
                continue;
            }
            for (device, gateway) in &route.hops {
                let kind = self.snapshot.link(*device).map_or("", |l| &l.kind);
                if TUNNELS.contains(&kind) {
                    let source = format!("route through {}", self.name(*device));
                    found.push((fact(What::Pods, route.to, source), vec![]));
                } else if let Some(gateway) = gateway
                    && self.uplinks.contains(device)
                    && !default_gateways.contains(gateway)
                    && self.is_neighbour(*gateway, *device)
                    && !self.is_own_subnet(route)
                {
                    let source = format!("route through {gateway}");
                    found.push((fact(What::Pods, route.to, source), vec![*gateway]));
                }
            }
        }
        found
    }

    fn is_neighbour(&self, ip: IpAddr, device: u32) -> bool {
        self.snapshot
            .addresses
            .iter()
            .any(|a| a.index == device && a.subnet().is_some_and(|net| net.contains(&ip)))
    }

    fn is_own_subnet(&self, route: &Route) -> bool {
        self.snapshot
            .addresses
            .iter()
            .any(|a| a.subnet().is_some_and(|net| net.contains(&route.to)))
    }

    fn uplink_subnets(&self) -> Vec<Fact> {
        // Where a bridge stands before the uplink, it has the address.
        let carriers = self.uplinks.iter().flat_map(|index| {
            let master = self.snapshot.link(*index).and_then(|l| l.master);
            [Some(*index), master].into_iter().flatten()
        });
        let carriers: BTreeSet<u32> = carriers.collect();
        self.snapshot
            .addresses
            .iter()
            .filter(|a| carriers.contains(&a.index))
            .filter_map(|a| {
                let source = format!("subnet of {}", self.name(a.index));
                Some(fact(What::Vnet, a.subnet()?, source))
            })
            .collect()
    }

    /// IPVS binds every service address on the node. Those in the virtual network and public ones are load
    /// balancers' frontends, which only Kubernetes can tell.
    fn ipvs_services(&self, facts: &[Fact]) -> Vec<Fact> {
        let in_vnet = |ip: IpAddr| {
            facts
                .iter()
                .any(|f| f.what == What::Vnet && f.net.contains(&ip))
        };
        self.snapshot
            .addresses
            .iter()
            .filter(|a| self.name(a.index) == IPVS && is_private(a.ip()) && !in_vnet(a.ip()))
            .map(|a| fact(What::Services, a.ip(), format!("address of {IPVS}")))
            .collect()
    }
}

/// Who forwards to other nodes' pods is another node.
fn next_hops(remote: &[(Fact, Vec<IpAddr>)]) -> Vec<Fact> {
    let mut facts: BTreeMap<IpAddr, Fact> = BTreeMap::new();
    for (route, gateways) in remote {
        for gateway in gateways {
            let source = format!("next hop of the route to {}", route.net);
            facts
                .entry(*gateway)
                .or_insert_with(|| fact(What::Nodes, *gateway, source));
        }
    }
    facts.into_values().collect()
}

/// Where the other nodes' pods all live in ranges of one size and this node's pods fit into one such range
/// that is nobody else's, it is this node's (kind: a /24 each, and no route for the own one).
fn local_block(local: &[Fact], remote: &[(Fact, Vec<IpAddr>)]) -> Vec<Fact> {
    let mut blocks = Vec::new();
    for v4 in [true, false] {
        let of_family = |net: &IpNet| net.addr().is_ipv4() == v4;
        let remote: Vec<IpNet> = remote
            .iter()
            .map(|(f, _)| f.net)
            .filter(of_family)
            .collect();
        let lengths: BTreeSet<u8> = remote.iter().map(IpNet::prefix_len).collect();
        let [length] = lengths.into_iter().collect::<Vec<_>>()[..] else {
            continue;
        };
        let own: BTreeSet<IpNet> = local
            .iter()
            .filter(|f| matches!(f.what, What::LocalPod(_)) && of_family(&f.net))
            .filter_map(|f| Some(IpNet::new(f.net.addr(), length).ok()?.trunc()))
            .collect();
        if let [block] = own.into_iter().collect::<Vec<_>>()[..]
            && length < block.max_prefix_len()
            && !remote.contains(&block)
        {
            let source = format!("as long as the /{length} routes to other nodes' pods");
            blocks.push(fact(What::LocalPods, block, source));
        }
    }
    blocks
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => a.is_private() || (a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64),
        IpAddr::V6(a) => a.is_unique_local(),
    }
}

#[cfg(test)]
mod tests;

//! The address plan: what an address is, before anybody asks Kubernetes.
//!
//! A *place* says which part of the network an address belongs to: a pod, a service, a node, the virtual
//! network, the platform, the outside. The plan is a value: the agent's edge builds one from the
//! configuration and the node's routes, addresses and interfaces, and builds another when those change.
//! It knows ranges and addresses, never workloads; who an address belongs to is the identity index's word.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use aksnet_common::{
    flow::{Addr, mix},
    stats::Role,
};
use ipnet::IpNet;

/// Azure's DHCP, DNS, wireserver, and the source of load-balancer probes.
pub const WIRESERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// Azure's instance metadata service.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where AKS `LocalDNS` (first two) and upstream `NodeLocal` DNS listen on every node.
pub const LOCAL_DNS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(169, 254, 10, 10),
    Ipv4Addr::new(169, 254, 10, 11),
    Ipv4Addr::new(169, 254, 20, 10),
];
/// Kubernetes' default range of node ports.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Which part of the network an address belongs to.
///
/// Where two entries of a plan have the same range, the one that stands first here wins; otherwise the
/// longer prefix does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Any address that this node owns, the pod bridge's included.
    ThisNode,
    /// A pod on this node.
    LocalPod,
    /// The API server.
    ApiServer,
    /// A frontend of the cluster's load balancer.
    LoadBalancer,
    /// The node's DNS cache.
    LocalDns,
    /// Azure's wireserver, which also sends the load balancer's probes.
    Wireserver,
    /// Azure's instance metadata service.
    Metadata,
    /// A private endpoint in the virtual network.
    PrivateEndpoint,
    /// A service's cluster address.
    Service,
    /// A pod, not known to be on this node.
    RemotePod,
    /// Another node.
    OtherNode,
    /// A range that the configuration names.
    Named,
    /// The virtual network, apart from what is listed above.
    Vnet,
    /// Link-local, multicast, broadcast, loopback, unspecified: never routed.
    Link,
    /// Private address space that the plan does not know.
    Private,
    /// Any other address.
    Internet,
}

impl Place {
    /// Whether it is a pod, wherever it runs.
    #[must_use]
    pub const fn is_pod(self) -> bool {
        matches!(self, Self::LocalPod | Self::RemotePod)
    }

    /// Whether it is a node, this one or another.
    #[must_use]
    pub const fn is_node(self) -> bool {
        matches!(self, Self::ThisNode | Self::OtherNode)
    }

    /// Whether it lies outside the cluster and is nothing that has a class of its own.
    #[must_use]
    pub const fn is_outside(self) -> bool {
        matches!(
            self,
            Self::Named | Self::Vnet | Self::Private | Self::Internet
        )
    }

    /// The workload label of an address about which nothing better is known. Pods and services have none:
    /// only Kubernetes knows theirs.
    const fn name(self) -> &'static str {
        match self {
            Self::LocalPod | Self::RemotePod | Self::Service | Self::LoadBalancer | Self::Named => {
                ""
            }
            Self::ThisNode | Self::OtherNode => "node",
            Self::ApiServer => "api_server",
            Self::LocalDns => "local_dns",
            Self::Wireserver | Self::Metadata => "azure_platform",
            Self::PrivateEndpoint => "private_endpoint",
            Self::Vnet => "vnet",
            Self::Link => "link_local",
            Self::Private => "private",
            Self::Internet => "internet",
        }
    }
}

/// What the plan says about one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// The part of the network.
    pub place: Place,
    name: u16,
}

/// A watched interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Interface {
    /// A pod's veth, or a way out.
    pub role: Role,
    /// As `ip link` shows it.
    pub name: Box<str>,
}

/// The address plan; see the module's header.
#[derive(Clone, Debug)]
pub struct Plan {
    sites: HashMap<Prefix, Site, BuildHasherDefault<PrefixHasher>>,
    /// Prefix lengths in use, longest first, of IPv4 (plus 96) and of IPv6.
    lengths: [Vec<u8>; 2],
    names: Vec<Box<str>>,
    interfaces: HashMap<u32, Interface>,
    pods: HashMap<Addr, u32>,
    node_ports: RangeInclusive<u16>,
    id: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self::builder().build()
    }
}

/// Hashes a prefix in a few instructions, as a lookup tries several. What the table holds is the operator's
/// choice, so nobody outside can fill it with collisions.
#[derive(Clone, Copy, Debug, Default)]
struct PrefixHasher(u64);

impl Hasher for PrefixHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.0 = mix(self.0 ^ u64::from(n));
    }

    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    fn write_u128(&mut self, n: u128) {
        self.0 = mix(self.0 ^ n as u64).wrapping_add((n >> 64) as u64);
        self.0 = mix(self.0);
    }
}

/// IPv4 addresses live where they do in a flow's key: mapped into `::ffff:0:0/96`.
const MAPPED: u8 = 96;

fn bits(address: Addr) -> u128 {
    u128::from_be_bytes(address.0)
}

fn is_v4(bits: u128) -> bool {
    bits >> 32 == 0xffff
}

fn mask(length: u8) -> u128 {
    if length == 0 {
        0
    } else {
        u128::MAX << (128 - u32::from(length))
    }
}

impl Plan {
    /// A plan that knows only what holds on every Azure node.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A number that differs between plans that differ. What was derived from a plan is stale when it
    /// changes.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// What is known about an address: the entry with the longest prefix that holds it.
    #[must_use]
    pub fn site(&self, address: Addr) -> Site {
        let bits = bits(address);
        for &length in &self.lengths[usize::from(!is_v4(bits))] {
            if let Some(site) = self.sites.get(&(length, bits & mask(length))) {
                return *site;
            }
        }
        Self::site_of(Self::default_place(address))
    }

    /// The site of an address about which an interface has told more than its number does.
    #[must_use]
    pub const fn site_of(place: Place) -> Site {
        // The names of places come first in the table, in the order of the places.
        Site {
            place,
            name: place as u16,
        }
    }

    /// What an address is when no plan knows it: link-local, private, or the internet's.
    #[must_use]
    pub fn default_place(address: Addr) -> Place {
        elsewhere(address.into())
    }

    /// The part of the network an address belongs to.
    #[must_use]
    pub fn place(&self, address: Addr) -> Place {
        self.site(address).place
    }

    /// The workload label of a site: a configured name, `node/<name>`, `internet`, ...; empty for pods and
    /// services.
    #[must_use]
    pub fn name(&self, site: Site) -> &str {
        self.names
            .get(usize::from(site.name))
            .map_or("", AsRef::as_ref)
    }

    /// A watched interface.
    #[must_use]
    pub fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.get(&ifindex)
    }

    /// What a watched interface is.
    #[must_use]
    pub fn role(&self, ifindex: u32) -> Option<Role> {
        self.interfaces.get(&ifindex).map(|i| i.role)
    }

    /// The host side of a local pod's veth, if the plan was told.
    #[must_use]
    pub fn pod_interface(&self, address: Addr) -> Option<u32> {
        self.pods.get(&address).copied()
    }

    /// The ports at which nodes take connections for services.
    #[must_use]
    pub const fn node_ports(&self) -> &RangeInclusive<u16> {
        &self.node_ports
    }
}

/// The place of an address that no entry holds.
fn elsewhere(address: IpAddr) -> Place {
    let (link, private) = match address {
        IpAddr::V4(a) => (
            a.is_link_local()
                || a.is_multicast()
                || a.is_broadcast()
                || a.is_loopback()
                || a.is_unspecified(),
            // 100.64.0.0/10 is carrier-grade NAT (RFC 6598): no more public than RFC 1918.
            a.is_private() || (a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64),
        ),
        IpAddr::V6(a) => (
            a.is_unicast_link_local() || a.is_multicast() || a.is_loopback() || a.is_unspecified(),
            a.is_unique_local(),
        ),
    };
    match (link, private) {
        (true, _) => Place::Link,
        (_, true) => Place::Private,
        _ => Place::Internet,
    }
}

/// Length, as of IPv6, and bits of a range.
type Prefix = (u8, u128);
/// What a range holds, and the name that the configuration gives it.
type Entry = (Place, Option<Box<str>>);

/// Collects what is known, in any order, and builds a [`Plan`].
#[derive(Clone, Debug)]
pub struct Builder {
    entries: BTreeMap<Prefix, Entry>,
    interfaces: BTreeMap<u32, Interface>,
    pods: BTreeMap<Addr, u32>,
    node_name: Option<Box<str>>,
    node_ports: RangeInclusive<u16>,
}

impl Builder {
    fn new() -> Self {
        let mut builder = Self {
            entries: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            node_name: None,
            node_ports: NODE_PORTS,
        };
        builder.enter(host(WIRESERVER.into()), Place::Wireserver, None);
        builder.enter(host(METADATA.into()), Place::Metadata, None);
        for address in LOCAL_DNS {
            builder.enter(host(address.into()), Place::LocalDns, None);
        }
        builder
    }

    fn enter(&mut self, net: IpNet, place: Place, name: Option<&str>) {
        let (address, length) = match net {
            IpNet::V4(_) => (net.network(), net.prefix_len() + MAPPED),
            IpNet::V6(_) => (net.network(), net.prefix_len()),
        };
        let key = (length, bits(address.into()) & mask(length));
        let entry = (place, name.map(Box::from));
        match self.entries.get(&key) {
            Some((present, _)) if *present < place => {}
            _ => {
                self.entries.insert(key, entry);
            }
        }
    }

    fn with(mut self, net: IpNet, place: Place, name: Option<&str>) -> Self {
        self.enter(net, place, name);
        self
    }

    /// A range of pod addresses, of any node.
    #[must_use]
    pub fn pod_cidr(self, net: IpNet) -> Self {
        self.with(net, Place::RemotePod, None)
    }

    /// A range from which only this node's pods have their addresses.
    #[must_use]
    pub fn local_pod_cidr(self, net: IpNet) -> Self {
        self.with(net, Place::LocalPod, None)
    }

    /// A pod on this node, and the host side of its veth (0: not known).
    #[must_use]
    pub fn local_pod(mut self, address: IpAddr, ifindex: u32) -> Self {
        if ifindex != 0 {
            self.pods.insert(address.into(), ifindex);
        }
        self.with(host(address), Place::LocalPod, None)
    }

    /// A range of service addresses.
    #[must_use]
    pub fn service_cidr(self, net: IpNet) -> Self {
        self.with(net, Place::Service, None)
    }

    /// This node's name, for the label `node/<name>`.
    #[must_use]
    pub fn node_name(mut self, name: &str) -> Self {
        self.node_name = (!name.is_empty()).then(|| name.into());
        self
    }

    /// An address that this node owns: each one, the pod bridge's too, as MASQUERADE may use any.
    #[must_use]
    pub fn node_address(self, address: IpAddr) -> Self {
        self.with(host(address), Place::ThisNode, None)
    }

    /// Another node, by name.
    #[must_use]
    pub fn other_node(self, name: &str, address: IpAddr) -> Self {
        self.with(
            host(address),
            Place::OtherNode,
            Some(&format!("node/{name}")),
        )
    }

    /// A range that holds the addresses of nodes.
    #[must_use]
    pub fn node_cidr(self, net: IpNet) -> Self {
        self.with(net, Place::OtherNode, None)
    }

    /// A range of the virtual network.
    #[must_use]
    pub fn vnet_cidr(self, net: IpNet) -> Self {
        self.with(net, Place::Vnet, None)
    }

    /// A range of private endpoints in the virtual network.
    #[must_use]
    pub fn private_endpoint_cidr(self, net: IpNet) -> Self {
        self.with(net, Place::PrivateEndpoint, None)
    }

    /// A range outside the cluster with a name of its own: `on_premises`, `payment_provider`.
    #[must_use]
    pub fn named_cidr(self, name: &str, net: IpNet) -> Self {
        self.with(net, Place::Named, Some(name))
    }

    /// An address of the API server (its endpoint, not its service address).
    #[must_use]
    pub fn api_server(self, address: IpAddr) -> Self {
        self.with(host(address), Place::ApiServer, None)
    }

    /// A frontend address of the cluster's load balancer.
    #[must_use]
    pub fn load_balancer(self, address: IpAddr) -> Self {
        self.with(host(address), Place::LoadBalancer, None)
    }

    /// A further address of a DNS cache on the node.
    #[must_use]
    pub fn local_dns(self, address: IpAddr) -> Self {
        self.with(host(address), Place::LocalDns, None)
    }

    /// A watched interface.
    #[must_use]
    pub fn interface(mut self, ifindex: u32, role: Role, name: &str) -> Self {
        let name = name.into();
        self.interfaces.insert(ifindex, Interface { role, name });
        self
    }

    /// The cluster's range of node ports, where it is not the default.
    #[must_use]
    pub fn node_ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.node_ports = ports;
        self
    }

    /// The plan.
    #[must_use]
    pub fn build(self) -> Plan {
        let mut hasher = DefaultHasher::new();
        self.entries.hash(&mut hasher);
        self.interfaces.hash(&mut hasher);
        self.pods.hash(&mut hasher);
        self.node_name.hash(&mut hasher);
        self.node_ports.hash(&mut hasher);

        let mut names: Vec<Box<str>> = PLACES.iter().map(|p| p.name().into()).collect();
        if let Some(node) = self.node_name {
            names[Place::ThisNode as usize] = format!("node/{node}").into();
        }
        let mut known: HashMap<Box<str>, u16> = HashMap::new();
        let mut lengths = [Vec::new(), Vec::new()];
        let mut sites =
            HashMap::with_capacity_and_hasher(self.entries.len(), BuildHasherDefault::default());
        // From the longest prefix to the shortest.
        for ((length, prefix), (place, name)) in self.entries.into_iter().rev() {
            let number = match name {
                None => place as u16,
                Some(name) => *known.entry(name).or_insert_with_key(|name| {
                    names.push(name.clone());
                    u16::try_from(names.len() - 1).unwrap_or(place as u16)
                }),
            };
            sites.insert(
                (length, prefix),
                Site {
                    place,
                    name: number,
                },
            );
            let lengths = &mut lengths[usize::from(!(length >= MAPPED && is_v4(prefix)))];
            if lengths.last() != Some(&length) {
                lengths.push(length);
            }
        }
        Plan {
            sites,
            lengths,
            names,
            interfaces: self.interfaces.into_iter().collect(),
            pods: self.pods.into_iter().collect(),
            node_ports: self.node_ports,
            id: hasher.finish(),
        }
    }
}

fn host(address: IpAddr) -> IpNet {
    address.into()
}

/// All places in order; their number is the index of their name in a plan.
const PLACES: [Place; 16] = [
    Place::ThisNode,
    Place::LocalPod,
    Place::ApiServer,
    Place::LoadBalancer,
    Place::LocalDns,
    Place::Wireserver,
    Place::Metadata,
    Place::PrivateEndpoint,
    Place::Service,
    Place::RemotePod,
    Place::OtherNode,
    Place::Named,
    Place::Vnet,
    Place::Link,
    Place::Private,
    Place::Internet,
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addr(s: &str) -> Addr {
        s.parse::<IpAddr>().expect("an address").into()
    }

    fn net(s: &str) -> IpNet {
        s.parse().expect("a range")
    }

    fn plan() -> Plan {
        Plan::builder()
            .pod_cidr(net("10.244.0.0/16"))
            .pod_cidr(net("fd00:10:244::/56"))
            .local_pod_cidr(net("10.244.1.0/24"))
            .service_cidr(net("10.0.0.0/16"))
            .node_name("aks-1")
            .node_address("10.224.0.4".parse().expect("ip"))
            .node_address("10.244.1.1".parse().expect("ip"))
            .other_node("aks-2", "10.224.0.5".parse().expect("ip"))
            .node_cidr(net("10.224.0.0/24"))
            .vnet_cidr(net("10.224.0.0/12"))
            .named_cidr("on_premises", net("10.100.0.0/16"))
            .named_cidr("everything6", net("::/0"))
            .interface(7, Role::Pod, "veth7")
            .local_pod("10.244.1.9".parse().expect("ip"), 7)
            .build()
    }

    #[test]
    fn longest_prefix_wins() {
        let plan = plan();
        for (address, place, name) in [
            ("10.244.2.3", Place::RemotePod, ""),
            ("10.244.1.3", Place::LocalPod, ""),
            ("10.244.1.1", Place::ThisNode, "node/aks-1"),
            ("10.224.0.4", Place::ThisNode, "node/aks-1"),
            ("10.224.0.5", Place::OtherNode, "node/aks-2"),
            ("10.224.0.6", Place::OtherNode, "node"),
            ("10.225.0.6", Place::Vnet, "vnet"),
            ("10.100.9.9", Place::Named, "on_premises"),
            ("10.0.0.1", Place::Service, ""),
            ("fd00:10:244::9", Place::RemotePod, ""),
        ] {
            let site = plan.site(addr(address));
            assert_eq!((site.place, plan.name(site)), (place, name), "of {address}");
        }
    }

    #[test]
    fn addresses_outside_the_plan_are_told_apart_by_kind() {
        let plan = plan();
        for (address, place) in [
            ("1.1.1.1", Place::Internet),
            ("172.16.0.1", Place::Private),
            ("100.64.0.1", Place::Private),
            ("169.254.1.1", Place::Link),
            ("224.0.0.251", Place::Link),
            ("168.63.129.16", Place::Wireserver),
            ("169.254.169.254", Place::Metadata),
            ("169.254.20.10", Place::LocalDns),
        ] {
            assert_eq!(plan.place(addr(address)), place, "of {address}");
        }
        let plan = Plan::default();
        for (address, place) in [
            ("2001:db8::1", Place::Internet),
            ("fd12::1", Place::Private),
            ("fe80::1", Place::Link),
            ("ff02::2", Place::Link),
        ] {
            assert_eq!(plan.place(addr(address)), place, "of {address}");
        }
    }

    #[test]
    fn an_ipv6_range_never_holds_an_ipv4_address() {
        let plan = plan();
        assert_eq!(plan.place(addr("8.8.8.8")), Place::Internet);
        assert_eq!(plan.place(addr("2001:db8::1")), Place::Named);
    }

    #[test]
    fn a_node_address_stays_the_nodes_when_the_range_is_entered_later() {
        let plan = Plan::builder()
            .node_address("10.244.1.1".parse().expect("ip"))
            .local_pod("10.244.1.1".parse().expect("ip"), 3)
            .build();
        assert_eq!(plan.place(addr("10.244.1.1")), Place::ThisNode);
    }

    #[test]
    fn the_id_tells_plans_apart_and_not_the_order_of_building() {
        let a = Plan::builder()
            .pod_cidr(net("10.244.0.0/16"))
            .service_cidr(net("10.0.0.0/16"));
        let b = Plan::builder()
            .service_cidr(net("10.0.0.0/16"))
            .pod_cidr(net("10.244.0.0/16"));
        assert_eq!(a.clone().build().id(), b.build().id());
        assert_ne!(
            a.clone().build().id(),
            a.interface(3, Role::Uplink, "eth0").build().id()
        );
    }

    #[test]
    fn every_place_is_at_its_number() {
        for (number, place) in PLACES.iter().enumerate() {
            assert_eq!(*place as usize, number);
        }
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_trying_every_range(
            nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            address in any::<u32>(),
        ) {
            let mut builder = Plan::builder();
            let nets: Vec<IpNet> = nets
                .iter()
                .map(|(a, l)| ipnet::Ipv4Net::new(Ipv4Addr::from(*a), *l).expect("a length").trunc().into())
                .collect();
            for net in &nets {
                builder = builder.named_cidr(&net.to_string(), *net);
            }
            let plan = builder.build();
            // Half of the time an address within one of the ranges.
            let address = match nets.first() {
                Some(IpNet::V4(n)) if address % 2 == 0 =>
                    Ipv4Addr::from(u32::from(n.network()) | (address & !u32::from(n.netmask()))),
                _ => Ipv4Addr::from(address),
            };
            let best = nets.iter().filter(|n| n.contains(&IpAddr::V4(address))).max_by_key(|n| n.prefix_len());
            let site = plan.site(IpAddr::V4(address).into());
            if let Some(best) = best
                && best.prefix_len() < 32
                && site.place == Place::Named
            {
                prop_assert_eq!(plan.name(site), best.to_string());
            } else if best.is_none() {
                prop_assert_ne!(site.place, Place::Named);
            }
        }
    }
}

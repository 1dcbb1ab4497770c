//! The address plan: what an address is, before anybody asks Kubernetes.
//!
//! A *place* says which part of the network an address belongs to: a pod, a service, a node, the virtual
//! network, the platform, the outside. The plan is a value: the agent's edge builds one from the
//! configuration and the node's routes, addresses and interfaces, and builds another when those change.
//! It knows ranges and addresses, never workloads; who an address belongs to is the identity index's word.

mod builder;

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use aksnet_common::{
    flow::{Addr, mix},
    stats::Role,
};

pub use self::builder::Builder;

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
    /// Names of all links.
    links: HashMap<u32, Box<str>>,
    pods: HashMap<Addr, u32>,
    /// Addresses of the API server, each with its port (0: any).
    api_servers: Vec<(Addr, u16)>,
    node_ports: RangeInclusive<u16>,
    zone: Box<str>,
    source_nat: SourceNat,
    id: u64,
}

/// What of the pods' egress the node is expected to source-NAT.
///
/// Pod addresses of kubenet, Azure CNI Overlay, kindnet and flannel mean nothing outside the cluster. With Azure
/// CNI node subnet they are the virtual network's, but only the node's own address has a way out of Azure. With
/// Azure CNI pod subnet the pod's address is kept everywhere (AKS documentation, concepts-network-legacy-cni).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceNat {
    /// Not known, or none.
    #[default]
    NotExpected,
    /// Whatever goes to the internet.
    Internet,
    /// Whatever leaves the cluster.
    Everything,
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

    /// An interface's name, watched or not; `if<number>` for one that is not known, empty for none.
    #[must_use]
    pub fn interface_name(&self, ifindex: u32) -> String {
        let watched = self.interface(ifindex).map(|interface| &interface.name);
        match watched.or_else(|| self.links.get(&ifindex)) {
            Some(name) => name.to_string(),
            None if ifindex == 0 => String::new(),
            None => format!("if{ifindex}"),
        }
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

    /// Whether the configuration says that the API server is at this address and port.
    #[must_use]
    pub fn is_api_server(&self, address: Addr, port: u16) -> bool {
        let here = |(a, p): &(Addr, u16)| *a == address && (*p == port || *p == 0);
        self.api_servers.iter().any(here)
    }

    /// This node's zone; empty: none, or not known.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// What of the pods' egress the node is expected to source-NAT.
    #[must_use]
    pub const fn source_nat(&self) -> SourceNat {
        self.source_nat
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
mod tests;

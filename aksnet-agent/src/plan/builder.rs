//! Building a plan from what the edge knows, in any order.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    net::IpAddr,
    ops::RangeInclusive,
};

use aksnet_common::{flow::Addr, stats::Role};
use ipnet::IpNet;

use super::{
    Entry, Interface, LOCAL_DNS, MAPPED, METADATA, NODE_PORTS, PLACES, Place, Plan, Prefix, Site,
    SourceNat, WIRESERVER, bits, is_v4, mask,
};

/// Collects what is known, in any order, and builds a [`Plan`].
#[derive(Clone, Debug)]
pub struct Builder {
    entries: BTreeMap<Prefix, Entry>,
    interfaces: BTreeMap<u32, Interface>,
    links: BTreeMap<u32, Box<str>>,
    pods: BTreeMap<Addr, u32>,
    api_servers: BTreeSet<(Addr, u16)>,
    node_name: Option<Box<str>>,
    node_ports: RangeInclusive<u16>,
    zone: Box<str>,
    source_nat: SourceNat,
}

impl Builder {
    pub(super) fn new() -> Self {
        let mut builder = Self {
            entries: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            links: BTreeMap::new(),
            pods: BTreeMap::new(),
            api_servers: BTreeSet::new(),
            node_name: None,
            node_ports: NODE_PORTS,
            zone: Box::default(),
            source_nat: SourceNat::default(),
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

    /// An address of the API server (its endpoint, not its service address) and its port; 0: any. On kind it is
    /// a node's own address, so only the port tells.
    #[must_use]
    pub fn api_server(mut self, address: IpAddr, port: u16) -> Self {
        self.api_servers.insert((address.into(), port));
        self
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

    /// The name of any link: those that are not watched, such as the pods' bridge, have one, too.
    #[must_use]
    pub fn link(mut self, ifindex: u32, name: &str) -> Self {
        self.links.insert(ifindex, name.into());
        self
    }

    /// The cluster's range of node ports, where it is not the default.
    #[must_use]
    pub fn node_ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.node_ports = ports;
        self
    }

    /// This node's zone.
    #[must_use]
    pub fn zone(mut self, zone: &str) -> Self {
        self.zone = zone.into();
        self
    }

    /// What of the pods' egress the node is expected to source-NAT.
    #[must_use]
    pub fn source_nat(mut self, expected: SourceNat) -> Self {
        self.source_nat = expected;
        self
    }

    /// The plan.
    #[must_use]
    pub fn build(self) -> Plan {
        let mut hasher = DefaultHasher::new();
        self.entries.hash(&mut hasher);
        self.interfaces.hash(&mut hasher);
        self.links.hash(&mut hasher);
        self.pods.hash(&mut hasher);
        self.node_name.hash(&mut hasher);
        self.api_servers.hash(&mut hasher);
        self.node_ports.hash(&mut hasher);
        self.zone.hash(&mut hasher);
        self.source_nat.hash(&mut hasher);

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
            links: self.links.into_iter().collect(),
            pods: self.pods.into_iter().collect(),
            api_servers: self.api_servers.into_iter().collect(),
            zone: self.zone,
            source_nat: self.source_nat,
            node_ports: self.node_ports,
            id: hasher.finish(),
        }
    }
}

fn host(address: IpAddr) -> IpNet {
    address.into()
}

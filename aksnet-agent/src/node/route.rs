//! A route of the main table, reduced to where it leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia,
    },
};

/// What becomes of a packet that the route matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// It is sent on.
    Unicast,
    /// It is dropped: Calico and kube-router mark the node's own pod range so.
    Blackhole,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// What becomes of the packet.
    pub kind: RouteKind,
    /// Next hops: device, and gateway unless the destination is on the link. More than one for multipath.
    pub hops: Vec<(u32, Option<IpAddr>)>,
    /// Whether a routing daemon (BIRD) entered it.
    pub bird: bool,
}

impl Route {
    /// Whether it is a default route.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.to.prefix_len() == 0 && self.kind == RouteKind::Unicast
    }

    /// Whether it leads to one address.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.to.prefix_len() == self.to.max_prefix_len()
    }

    /// From a netlink message; `None` for what is not in the main table or leads nowhere of interest.
    #[must_use]
    pub fn from_message(message: &RouteMessage) -> Option<Self> {
        let kind = match message.header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::BlackHole => RouteKind::Blackhole,
            _ => return None,
        };
        let mut table = u32::from(message.header.table);
        let mut to = None;
        let mut gateway = None;
        let mut device = None;
        let mut hops = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(n) => table = *n,
                RouteAttribute::Destination(a) => to = ip(a),
                RouteAttribute::Gateway(a) => gateway = ip(a),
                RouteAttribute::Via(via) => gateway = via_ip(via),
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::MultiPath(paths) => {
                    for path in paths {
                        let gateway = path.attributes.iter().find_map(|a| match a {
                            RouteAttribute::Gateway(a) => ip(a),
                            RouteAttribute::Via(via) => via_ip(via),
                            _ => None,
                        });
                        hops.push((path.interface_index, gateway));
                    }
                }
                _ => {}
            }
        }
        if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
            return None;
        }
        // The default route has no destination attribute.
        let to = to.or(match message.header.address_family {
            AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
            AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
            _ => None,
        })?;
        if let Some(device) = device {
            hops.insert(0, (device, gateway));
        }
        Some(Self {
            to: IpNet::new(to, message.header.destination_prefix_length).ok()?,
            kind,
            hops,
            bird: message.header.protocol == RouteProtocol::Bird,
        })
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

fn via_ip(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(a) => Some((*a).into()),
        RouteVia::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

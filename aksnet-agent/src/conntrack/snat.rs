//! What source NAT uses up: ports, of the node and of Azure's load balancer in front of it.
//!
//! A translated connection needs a tuple of its own: protocol, node address, node port, destination, destination port.
//! So a node port can serve many destinations at once, and ports run out for *one* destination. How many there are is
//! the kernel's rule (`nf_nat_l4proto_unique_tuple` in `net/netfilter/nf_nat_core.c`): without a range in the rule a
//! source port from 1024 on is moved within 1024..65535, one from 512 on within 600..1023, a lower one within 1..511,
//! an ICMP identifier within 0..65535. `net.ipv4.ip_local_port_range` does not matter: it is for sockets, not for NAT. A
//! rule with `--to-ports` has a range of its own, which has to be told (`snat_ports`).
//!
//! Azure's load balancer translates once more, with so many ports for each node ([`allocated`]). It cannot be seen from
//! here. What is counted is what the node sends to public addresses: TCP by destination and port, UDP by destination
//! alone. Estimates, both ways: the balancer keeps a port for up to four minutes after a FIN while conntrack forgets
//! the entry after two, and it forgets idle connections which conntrack keeps for hours.

use std::net::Ipv4Addr;

use aksnet_common::{
    flow::Addr,
    packet::{DCCP, ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE},
};

use super::message::{Entry, family_of};

/// What is known about how many ports there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Ports of the masquerading rule's own range; else the kernel's.
    pub ports: Option<u32>,
    /// SNAT ports that Azure's load balancer keeps for this node; `None`: not known.
    pub azure: Option<u32>,
}

/// A range of ports within which the kernel moves a source port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pool {
    /// 1..511.
    Low,
    /// 600..1023.
    Reserved,
    /// 1024..65535, and all of ICMP's identifiers.
    Main,
}

impl Pool {
    /// The pool that a port of this protocol is from; `None` for a protocol without ports.
    #[must_use]
    pub fn of(protocol: u8, port: u16) -> Option<Self> {
        match protocol {
            ICMP | ICMPV6 => Some(Self::Main),
            TCP | UDP | UDPLITE | SCTP | DCCP => Some(match port {
                0..512 => Self::Low,
                512..1024 => Self::Reserved,
                _ => Self::Main,
            }),
            _ => None,
        }
    }

    /// How many ports it has.
    #[must_use]
    pub fn ports(self, protocol: u8, limits: Limits) -> u32 {
        match (limits.ports, self) {
            (Some(ports), _) => ports.max(1),
            (None, Self::Low) => 511,
            (None, Self::Reserved) => 424,
            (None, Self::Main) if matches!(protocol, ICMP | ICMPV6) => 65_536,
            (None, Self::Main) => 64_512,
        }
    }
}

/// Where a connection uses an Azure SNAT port: protocol, destination and port (0 for UDP, which takes one for each
/// destination). `None` where it uses none: it is IPv6, stays private, or comes from outside.
#[must_use]
pub fn azure_use(entry: &Entry) -> Option<(u8, Addr, u16)> {
    if !matches!(entry.protocol, TCP | UDP)
        || !is_private(entry.after.src)
        || !is_public(entry.after.dst)
    {
        return None;
    }
    let port = if entry.protocol == TCP {
        entry.after.dst_port
    } else {
        0
    };
    Some((entry.protocol, entry.after.dst, port))
}

fn v4(address: Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = address.0;
    (family_of(address) == 4).then(|| Ipv4Addr::new(a, b, c, d))
}

/// RFC 1918 and RFC 6598.
fn is_private(address: Addr) -> bool {
    v4(address)
        .is_some_and(|a| a.is_private() || a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64)
}

/// An IPv4 address that Azure's load balancer would translate for: not private, local, multicast, nor the platform's.
fn is_public(address: Addr) -> bool {
    const PLATFORM: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    v4(address).is_some_and(|a| {
        !is_private(address)
            && !a.is_link_local()
            && !a.is_loopback()
            && !matches!(a.octets()[0], 0 | 224..=255)
            && a != PLATFORM
    })
}

/// How many SNAT ports Azure's load balancer keeps for each node by default: by the number of nodes behind it, for each
/// frontend address, and never more than 1,024 in all. `None` beyond the table (no nodes, no frontend, or more than
/// 1,000 nodes). Source: "Default port allocation" in Azure's load-balancer-outbound-connections.
#[must_use]
pub fn allocated(nodes: u32, frontends: u32) -> Option<u32> {
    let each: u32 = match nodes {
        1..=50 => 1024,
        51..=100 => 512,
        101..=200 => 256,
        201..=400 => 128,
        401..=800 => 64,
        801..=1000 => 32,
        _ => return None,
    };
    (frontends > 0).then(|| each.saturating_mul(frontends).min(1024))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use aksnet_common::passage::Tuple;

    use super::*;

    #[test]
    fn the_allocation_is_azures_table() {
        for (nodes, ports) in [
            (1, 1024),
            (50, 1024),
            (51, 512),
            (100, 512),
            (101, 256),
            (200, 256),
            (201, 128),
            (400, 128),
            (401, 64),
            (800, 64),
            (801, 32),
            (1000, 32),
        ] {
            assert_eq!(allocated(nodes, 1), Some(ports), "{nodes} nodes");
        }
        assert_eq!(allocated(100, 2), Some(1024));
        assert_eq!(allocated(100, 16), Some(1024), "capped");
        assert_eq!(allocated(900, 3), Some(96));
        assert_eq!(
            [allocated(0, 1), allocated(1001, 1), allocated(10, 0)],
            [None; 3]
        );
    }

    #[test]
    fn a_port_is_moved_within_its_own_range() {
        let ports = |protocol, port| {
            Pool::of(protocol, port).map(|pool| pool.ports(protocol, Limits::default()))
        };
        assert_eq!(ports(TCP, 40_000), Some(64_512));
        assert_eq!(ports(UDP, 1024), Some(64_512));
        assert_eq!(ports(TCP, 1023), Some(424));
        assert_eq!(ports(TCP, 511), Some(511));
        assert_eq!(ports(ICMP, 7), Some(65_536));
        assert_eq!(ports(47, 0), None, "GRE has no ports");
        let told = Limits {
            ports: Some(2),
            azure: None,
        };
        assert_eq!(Pool::Main.ports(TCP, told), 2);
    }

    fn to(protocol: u8, src: &str, dst: &str) -> Option<(u8, Addr, u16)> {
        let addr = |s: &str| Addr::from(s.parse::<IpAddr>().unwrap());
        let tuple = Tuple {
            src: addr(src),
            dst: addr(dst),
            src_port: 40_000,
            dst_port: 443,
        };
        azure_use(&Entry {
            original: tuple,
            after: tuple,
            id: 0,
            zone: 0,
            protocol,
        })
    }

    #[test]
    fn only_public_destinations_use_azures_ports() {
        for public in ["203.0.113.10", "8.8.8.8", "100.128.0.1", "168.63.129.17"] {
            assert!(to(TCP, "10.224.0.4", public).is_some(), "{public}");
        }
        for other in [
            "10.1.2.3",
            "172.20.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "100.64.0.1",
            "0.0.0.0",
            "2001:db8::1",
        ] {
            assert_eq!(to(TCP, "10.224.0.4", other), None, "{other}");
        }
        assert_eq!(
            to(TCP, "20.1.2.3", "8.8.8.8"),
            None,
            "not from a private address"
        );
        assert_eq!(to(ICMP, "10.224.0.4", "8.8.8.8"), None);
    }

    #[test]
    fn udp_takes_a_port_for_each_destination_whatever_the_port() {
        assert_eq!(to(UDP, "10.224.0.4", "8.8.8.8").unwrap().2, 0);
        assert_eq!(to(TCP, "10.224.0.4", "8.8.8.8").unwrap().2, 443);
    }
}

//! A *flow* as a policy engine in user space sees it: the ends of a packet that it was handed, from the IP header on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Isolation, Side};
use crate::testbed::plan::Family;
use crate::testbed::service::Transport;

/// Who sends what to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// The protocol and the port it is sent to, where it has ports and this packet shows them.
    pub port: Option<(Transport, u16)>,
}

impl Flow {
    /// Reads a packet. `None` when it is none of IP, or cut off before its addresses.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::v4(packet),
            6 => Self::v6(packet),
            _ => None,
        }
    }

    fn v4(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..20)?;
        let address = |at: usize| {
            Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into()
        };
        let length = usize::from(header[0] & 15) * 4;
        let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        let transport = packet.get(length..).filter(|_| offset == 0);
        Some(Self {
            source: address(12),
            destination: address(16),
            port: transport.and_then(|transport| port(header[9], transport)),
        })
    }

    fn v6(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..40)?;
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 16] = header[at..at + 16].try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        };
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            port: after_extensions(header[6], &packet[40..]),
        })
    }

    /// The policies that deny it, each with its side: those that select an end of it on the side in question, when
    /// none of them allows it. A pod always reaches itself.
    #[must_use]
    pub fn denied_by(&self, isolations: &[Isolation]) -> Vec<(String, Side)> {
        if self.source == self.destination {
            return Vec::new();
        }
        let mut denied = Vec::new();
        // As the engine does: first what the sender may, then what the receiver may.
        for side in [Side::Egress, Side::Ingress] {
            let (own, peer) = match side {
                Side::Egress => (self.source, self.destination),
                Side::Ingress => (self.destination, self.source),
            };
            let selecting: Vec<&Isolation> = isolations
                .iter()
                .filter(|isolation| isolation.side == side)
                .filter(|isolation| isolation.addresses(Family::of(own)).any(|ip| ip == own))
                .collect();
            if !selecting
                .iter()
                .any(|isolation| self.allowed(isolation, peer))
            {
                denied.extend(selecting.iter().map(|isolation| (isolation.key(), side)));
            }
            if !denied.is_empty() {
                break;
            }
        }
        denied
    }

    fn allowed(&self, isolation: &Isolation, peer: IpAddr) -> bool {
        isolation.allow.iter().any(|allow| {
            let with =
                allow.peers.is_empty() || allow.peers.iter().any(|range| range.contains(&peer));
            let at = allow.ports.is_empty()
                || self.port.is_some_and(|(transport, port)| {
                    allow
                        .ports
                        .iter()
                        .any(|p| p.transport == transport && (p.from..=p.to).contains(&port))
                });
            with && at
        })
    }
}

/// The transport header behind IPv6's extension headers.
fn after_extensions(mut next: u8, mut rest: &[u8]) -> Option<(Transport, u16)> {
    loop {
        let length = match next {
            // Hop-by-hop options, routing, destination options: in units of 8, the first not counted.
            0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
            // A fragment: only the first shows ports.
            44 if u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) & 0xfff8 == 0 => 8,
            44 => return None,
            _ => return port(next, rest),
        };
        next = *rest.first()?;
        rest = rest.get(length..)?;
    }
}

fn port(protocol: u8, transport: &[u8]) -> Option<(Transport, u16)> {
    let kind = match protocol {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        132 => Transport::Sctp,
        _ => return None,
    };
    let port = transport.get(2..4)?;
    Some((kind, u16::from_be_bytes([port[0], port[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::enforce::{Allow, Selected};
    use crate::testbed::frame::Packet;
    use crate::testbed::plan::Addresses;
    use std::net::SocketAddr;

    fn packet(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        Packet::udp(from, to, b"x").build()
    }

    #[test]
    fn ends_are_read_in_both_families() {
        for (from, to) in [
            ("10.0.0.1:1", "10.0.0.2:53"),
            ("[fd00::1]:1", "[fd00::2]:53"),
        ] {
            let flow = Flow::parse(&packet(from, to)).unwrap();
            assert_eq!(flow.port, Some((Transport::Udp, 53)));
            assert_eq!(flow.destination, to.parse::<SocketAddr>().unwrap().ip());
        }
    }

    #[test]
    fn extension_headers_are_passed_and_later_fragments_have_no_port() {
        let mut whole = packet("[fd00::1]:1", "[fd00::2]:53");
        let udp = whole.split_off(40);
        // A destination options header, then a fragment header, then UDP.
        whole[6] = 60;
        let mut first = whole.clone();
        first.extend([44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 1]);
        first.extend(&udp);
        assert_eq!(
            Flow::parse(&first).unwrap().port,
            Some((Transport::Udp, 53))
        );
        whole.extend([44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 8, 0, 0, 0, 1]);
        whole.extend(&udp);
        assert_eq!(Flow::parse(&whole).unwrap().port, None);
    }

    #[test]
    fn cut_off_packets_are_no_flow_and_never_a_panic() {
        for whole in [
            packet("10.0.0.1:1", "10.0.0.2:53"),
            packet("[fd00::1]:1", "[fd00::2]:53"),
        ] {
            for length in 0..whole.len() {
                let flow = Flow::parse(&whole[..length]);
                assert_eq!(
                    flow.is_some(),
                    length >= if whole[0] >> 4 == 4 { 20 } else { 40 }
                );
            }
        }
    }

    #[test]
    fn several_policies_allow_together_and_each_denies_what_none_allows() {
        let pod = Selected {
            address: Addresses {
                v4: "10.0.0.2".parse().unwrap(),
                v6: None,
            },
            veth: "v".to_owned(),
            namespace: "shop".to_owned(),
        };
        let isolate = |name: &str, allow: Vec<Allow>| Isolation {
            pods: vec![pod.clone()],
            allow,
            ..Isolation::new("shop", name, Side::Ingress)
        };
        let both = [
            isolate("a", vec![Allow::all().udp(53)]),
            isolate(
                "b",
                vec![Allow::all().peer("10.0.0.9".parse::<IpAddr>().unwrap())],
            ),
        ];
        let denied =
            |from: &str, to: &str| Flow::parse(&packet(from, to)).unwrap().denied_by(&both);
        assert_eq!(denied("10.0.0.1:1", "10.0.0.2:53"), []);
        assert_eq!(denied("10.0.0.9:1", "10.0.0.2:54"), []);
        let by = ["shop/a", "shop/b"].map(|key| (key.to_owned(), Side::Ingress));
        assert_eq!(denied("10.0.0.1:1", "10.0.0.2:54"), by);
        assert_eq!(denied("10.0.0.2:1", "10.0.0.1:54"), []);
        assert_eq!(denied("10.0.0.2:1", "10.0.0.2:54"), []);
    }
}

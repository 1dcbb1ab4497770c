//! Joining a flow with the flow of its replies, through NAT.
//!
//! B replies to A where B's packets enter as A's packets left, turned round; or leave as A's entered, turned
//! round. One of the two is enough: the other is not seen where a packet left the node's call chain or was
//! delivered on the node. Which of the two opened the connection is a second question, answered by evidence
//! in the flow itself as far as there is any.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use aksnet_common::{
    flow::{FlowKey, HotCell},
    packet::{ICMP, ICMPV6, TCP},
    passage::Tuple,
};

use crate::{classify::Whois, plan::Place};

/// Which side of a connection a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its packets come from whoever opened the connection.
    Originator,
    /// Its packets are the answers.
    Reply,
}

impl Side {
    /// The side at the other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Originator => Self::Reply,
            Self::Reply => Self::Originator,
        }
    }
}

/// Requests and their replies, by ICMP type: echo, timestamp, information, address mask.
const ICMP_PAIRS: [(u8, u8); 4] = [(8, 0), (13, 14), (15, 16), (17, 18)];
/// The same for `ICMPv6`.
const ICMPV6_PAIRS: [(u8, u8); 1] = [(128, 129)];

/// What an ICMP type is to a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Request(u8),
    Reply(u8),
    /// About another flow, as errors are, or about none.
    Other,
}

fn message(protocol: u8, tuple: &Tuple) -> Message {
    let kind = tuple.dst_port.to_be_bytes()[0];
    let pairs: &[(u8, u8)] = if protocol == ICMP {
        &ICMP_PAIRS
    } else {
        &ICMPV6_PAIRS
    };
    for (request, reply) in pairs {
        if kind == *request {
            return Message::Request(*reply);
        }
        if kind == *reply {
            return Message::Reply(*request);
        }
    }
    Message::Other
}

/// The tuple of a packet's reply. Of an ICMP message that has none, the same message in the other direction.
#[must_use]
pub fn reverse(protocol: u8, tuple: &Tuple) -> Tuple {
    let (src_port, dst_port) = match protocol {
        ICMP | ICMPV6 => match message(protocol, tuple) {
            Message::Request(kind) | Message::Reply(kind) => {
                let code = tuple.dst_port.to_be_bytes()[1];
                (tuple.src_port, u16::from_be_bytes([kind, code]))
            }
            Message::Other => (tuple.src_port, tuple.dst_port),
        },
        _ => (tuple.dst_port, tuple.src_port),
    };
    Tuple {
        src: tuple.dst,
        dst: tuple.src,
        src_port,
        dst_port,
    }
}

/// Whether replies to a flow are flows that mirror its tuple: not those of ICMP errors.
#[must_use]
pub fn has_replies(key: &FlowKey) -> bool {
    !matches!(key.protocol, ICMP | ICMPV6) || message(key.protocol, &key.tuple()) != Message::Other
}

/// Which side a flow is, as far as it shows by itself.
///
/// A TCP flow that has sent a SYN opened its connection, and one that has sent only SYN-ACK did not. Past
/// that, what NAT did tells: only an originator dials a service or a frontend and has it replaced, and only
/// a reply gets such an address as its source.
#[must_use]
pub fn evidence(hot: &HotCell, after: Option<&Tuple>, whois: &Whois) -> Option<Side> {
    let before = hot.key.tuple();
    match hot.key.protocol {
        TCP if hot.connections > 0 => return Some(Side::Originator),
        TCP if hot.syn_ns != 0 => return Some(Side::Reply),
        ICMP | ICMPV6 => {
            return Some(match message(hot.key.protocol, &before) {
                Message::Reply(_) => Side::Reply,
                // Errors answer something; neighbour discovery and the like stand for themselves.
                Message::Other if is_error(hot.key.protocol, &before) => Side::Reply,
                Message::Request(_) | Message::Other => Side::Originator,
            });
        }
        _ => {}
    }
    let stands_for_others =
        |place: Place| matches!(place, Place::Service | Place::LoadBalancer) || place.is_outside();
    let place = |address, port| whois.peer(address, port, hot.first_ns).place();
    let dialled = place(before.dst, before.dst_port);
    if dialled == Place::Service {
        return Some(Side::Originator);
    }
    let after = after?;
    // From node:port to somewhere else, MASQUERADE and node ports look alike: no evidence.
    if before.dst != after.dst && stands_for_others(dialled) {
        return Some(Side::Originator);
    }
    if before.src != after.src && stands_for_others(place(after.src, after.src_port)) {
        return Some(Side::Reply);
    }
    None
}

fn is_error(protocol: u8, tuple: &Tuple) -> bool {
    let kind = tuple.dst_port.to_be_bytes()[0];
    match protocol {
        ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        _ => kind < 128,
    }
}

/// The side of a flow without evidence or partner: servers listen on the lower port.
#[must_use]
pub fn guess(tuple: &Tuple) -> Side {
    if tuple.src_port < tuple.dst_port {
        Side::Reply
    } else {
        Side::Originator
    }
}

/// A hash table whose keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ready(u64);

impl Hasher for Ready {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

/// Hashes of tuples to the cells of the flows that have them. What a lookup finds must still be compared:
/// two tuples may share a hash.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    cells: HashMap<u64, u32, BuildHasherDefault<Ready>>,
}

impl Index {
    pub(super) fn get(&self, hash: u64) -> Option<u32> {
        self.cells.get(&hash).copied()
    }

    pub(super) fn insert(&mut self, hash: u64, cell: u32) {
        self.cells.insert(hash, cell);
    }

    /// Forgets a cell, if the hash is still its own.
    pub(super) fn remove(&mut self, hash: u64, cell: u32) {
        if self.get(hash) == Some(cell) {
            self.cells.remove(&hash);
        }
    }
}

/// The hash under which a tuple is indexed; protocol, family and fragments are told apart.
pub(super) fn hash(key: &FlowKey, tuple: &Tuple, seed: u64) -> u64 {
    FlowKey {
        src: tuple.src,
        dst: tuple.dst,
        src_port: tuple.src_port,
        dst_port: tuple.dst_port,
        ifindex: 0,
        origin: 0,
        ..*key
    }
    .hash(seed)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use aksnet_common::{flow::Addr, packet::UDP};
    use proptest::prelude::*;

    use super::*;
    use crate::plan::Plan;

    fn addr(s: &str) -> Addr {
        s.parse::<IpAddr>().expect("an address").into()
    }

    fn tuple(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
        Tuple {
            src: addr(src),
            dst: addr(dst),
            src_port,
            dst_port,
        }
    }

    fn hot(protocol: u8, t: Tuple) -> HotCell {
        HotCell {
            key: FlowKey {
                src: t.src,
                dst: t.dst,
                src_port: t.src_port,
                dst_port: t.dst_port,
                protocol,
                family: 4,
                ..FlowKey::default()
            },
            ..HotCell::default()
        }
    }

    fn plan() -> Plan {
        Plan::builder()
            .pod_cidr("10.244.0.0/16".parse().expect("a range"))
            .service_cidr("10.0.0.0/16".parse().expect("a range"))
            .node_address("10.224.0.4".parse().expect("an address"))
            .build()
    }

    #[test]
    fn the_reply_of_an_echo_keeps_its_identifier() {
        let request = tuple("10.244.1.5", 77, "1.1.1.1", 8 << 8);
        let reply = tuple("1.1.1.1", 77, "10.244.1.5", 0);
        assert_eq!(reverse(ICMP, &request), reply);
        assert_eq!(reverse(ICMP, &reply), request);
        let request = tuple("fd00::5", 77, "2606::1", 128 << 8);
        let reply = tuple("2606::1", 77, "fd00::5", 129 << 8);
        assert_eq!(reverse(ICMPV6, &request), reply);
        assert_eq!(reverse(ICMPV6, &reply), request);
    }

    #[test]
    fn icmp_errors_have_no_reply_and_answer_something() {
        for (protocol, kind) in [(ICMP, 3u16), (ICMP, 11), (ICMPV6, 1), (ICMPV6, 2)] {
            let cell = hot(protocol, tuple("1.1.1.1", 0, "10.244.1.5", kind << 8));
            assert!(!has_replies(&cell.key));
            assert_eq!(
                evidence(&cell, None, &Whois::without_names(&plan())),
                Some(Side::Reply)
            );
        }
        let solicitation = hot(ICMPV6, tuple("fe80::1", 0, "ff02::1", 135 << 8));
        assert_eq!(
            evidence(&solicitation, None, &Whois::without_names(&plan())),
            Some(Side::Originator)
        );
    }

    #[test]
    fn syn_and_syn_ack_tell_the_sides() {
        let mut cell = hot(TCP, tuple("10.244.1.5", 80, "10.244.1.6", 40000));
        assert_eq!(evidence(&cell, None, &Whois::without_names(&plan())), None);
        assert_eq!(guess(&cell.key.tuple()), Side::Reply);
        cell.syn_ns = 5;
        assert_eq!(
            evidence(&cell, None, &Whois::without_names(&plan())),
            Some(Side::Reply)
        );
        cell.connections = 1;
        assert_eq!(
            evidence(&cell, None, &Whois::without_names(&plan())),
            Some(Side::Originator)
        );
    }

    #[test]
    fn a_service_address_tells_the_sides_of_a_connection_seen_midway() {
        let request = hot(UDP, tuple("10.244.1.5", 50, "10.0.0.10", 53));
        assert_eq!(
            evidence(&request, None, &Whois::without_names(&plan())),
            Some(Side::Originator)
        );
        let answer = hot(UDP, tuple("10.244.1.6", 53, "10.244.1.5", 50));
        let after = tuple("10.0.0.10", 53, "10.244.1.5", 50);
        assert_eq!(
            evidence(&answer, Some(&after), &Whois::without_names(&plan())),
            Some(Side::Reply)
        );
        assert_eq!(
            evidence(&answer, None, &Whois::without_names(&plan())),
            None
        );
    }

    #[test]
    fn masquerade_and_node_port_are_no_evidence_alone() {
        let unsnat = hot(UDP, tuple("1.1.1.1", 53, "10.224.0.4", 5000));
        let after = tuple("1.1.1.1", 53, "10.244.1.5", 5000);
        assert_eq!(
            evidence(&unsnat, Some(&after), &Whois::without_names(&plan())),
            None
        );
        assert_eq!(guess(&unsnat.key.tuple()), Side::Reply);
    }

    proptest! {
        #[test]
        fn a_reply_of_a_reply_is_the_flow_itself(
            protocol in prop::sample::select(vec![TCP, UDP, ICMP, ICMPV6, 132, 47]),
            src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(),
            src_port in any::<u16>(), dst_port in any::<u16>(),
        ) {
            let t = Tuple { src: Addr(src), dst: Addr(dst), src_port, dst_port };
            prop_assert_eq!(reverse(protocol, &reverse(protocol, &t)), t);
        }
    }
}

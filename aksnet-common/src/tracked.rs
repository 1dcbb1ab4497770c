//! What conntrack and routing had made of a packet when it was dropped.
//!
//! An entry of the connection table is on the packet itself (`skb->_nfct`): a pointer whose lowest three bits
//! are `enum ip_conntrack_info`. No entry has a packet that conntrack has not seen yet (PREROUTING's raw table),
//! one that it calls INVALID, one for which the table had no room, and one that a socket of the node has already
//! taken (`nf_reset_ct` in `tcp_v4_rcv` and `udp_queue_rcv_skb`).

use crate::{
    flow::Addr,
    packet::{DCCP, ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE},
    passage::Tuple,
};

/// What the kernel knew of a dropped packet, as a word of bits; 0: nothing could be found out.
///
/// Bits 0 to 15 are `nf_conn.status` (`IPS_*` in `include/uapi/linux/netfilter/nf_conntrack_common.h`), bits 16 to
/// 18 `enum ip_conntrack_info`, the bits above are this type's own.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct DropState(pub u32);

/// The connection table's view of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tracking {
    /// It could not be asked: this kernel has no conntrack, or the packet could not be read.
    Unknown,
    /// No entry: see the module's header for what that means.
    NoEntry,
    /// Exempt from tracking (`NOTRACK`).
    Untracked,
    /// A template that a rule in the raw table put there (`CT --zone`), no connection yet.
    Template,
    /// It opens a connection (NEW).
    New,
    /// It belongs to a connection that has seen packets both ways, in the direction of the client.
    Established,
    /// It belongs to a connection as an answer, in the direction of the server.
    Reply,
    /// It is related to a connection (an ICMP error, or an expected connection such as FTP's data).
    Related,
}

impl DropState {
    /// `IPS_SEEN_REPLY`: packets went both ways.
    pub const SEEN_REPLY: u32 = 0x2;
    /// `IPS_CONFIRMED`: the entry is in the table; without it the packet that made it never got through.
    pub const CONFIRMED: u32 = 0x8;
    /// `IPS_SRC_NAT`: the source is translated.
    pub const SRC_NAT: u32 = 0x10;
    /// `IPS_DST_NAT`: the destination is translated.
    pub const DST_NAT: u32 = 0x20;
    /// `IPS_DST_NAT_DONE`: the nat rules for the destination were walked.
    pub const DST_NAT_DONE: u32 = 0x100;
    /// `IPS_TEMPLATE`: no connection, but a rule's template for one.
    pub const TEMPLATE: u32 = 0x800;
    /// The bits that are `nf_conn.status`.
    pub const STATUS: u32 = 0xffff;

    /// Where `enum ip_conntrack_info` lies.
    pub const INFO_SHIFT: u32 = 16;
    /// Its three bits.
    pub const INFO: u32 = 0x7 << Self::INFO_SHIFT;

    /// `skb->_nfct` was read; without it this kernel has no conntrack, or the packet was not readable.
    pub const CT_READ: u32 = 1 << 19;
    /// The packet has an entry (or a template).
    pub const ENTRY: u32 = 1 << 20;
    /// The entry was read: the status bits and `DropStats::dialled` are its. `ENTRY` without it: the layout of
    /// `nf_conn` is not known, as where `nf_conntrack` is a module whose BTF could not be read.
    pub const ENTRY_READ: u32 = 1 << 21;
    /// `skb->_skb_refdst` was read.
    pub const ROUTE_READ: u32 = 1 << 22;
    /// The packet had a route: it was past PREROUTING, or the node's own.
    pub const ROUTED: u32 = 1 << 23;

    /// The low bits of `skb->_nfct` that are not the pointer.
    pub const NFCT_INFO: u64 = 0x7;

    /// What conntrack made of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn tracking(self) -> Tracking {
        let info = (self.0 & Self::INFO) >> Self::INFO_SHIFT;
        match (self.has(Self::CT_READ), self.has(Self::ENTRY)) {
            (false, _) => Tracking::Unknown,
            (true, false) if info == 7 => Tracking::Untracked,
            (true, false) => Tracking::NoEntry,
            (true, true) if self.has(Self::TEMPLATE) => Tracking::Template,
            (true, true) => match info {
                0 => Tracking::Established,
                1 | 4 => Tracking::Related,
                2 => Tracking::New,
                3 => Tracking::Reply,
                _ => Tracking::Unknown,
            },
        }
    }

    /// Whether any of these bits is set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// The entry's status (`IPS_*`), if there is an entry and it could be read.
    #[must_use]
    pub const fn status(self) -> Option<u32> {
        if self.has(Self::ENTRY_READ) {
            Some(self.0 & Self::STATUS)
        } else {
            None
        }
    }

    /// Whether `DropStats::dialled` says something.
    #[must_use]
    pub const fn dialled_is_known(self) -> bool {
        self.has(Self::ENTRY_READ) && !self.has(Self::TEMPLATE)
    }

    /// Whether the entry is in the table; `None` where there is no entry or it could not be read. A packet that
    /// opens a connection and is dropped has an entry that is not in the table, and never will be.
    #[must_use]
    pub const fn confirmed(self) -> Option<bool> {
        match self.status() {
            Some(status) => Some(status & Self::CONFIRMED != 0),
            None => None,
        }
    }

    /// Whether the packet had a route; `None` where that could not be read.
    #[must_use]
    pub const fn routed(self) -> Option<bool> {
        if self.has(Self::ROUTE_READ) {
            Some(self.has(Self::ROUTED))
        } else {
            None
        }
    }
}

/// Where the members of `struct nf_conntrack_tuple` lie: `src.u3`, `src.u`, `src.l3num`, `dst.u3`, `dst.u`,
/// `dst.protonum`. The agent compares this with the running kernel's BTF and leaves entries alone where it differs.
pub const CT_TUPLE_LAYOUT: [u32; 6] = [0, 16, 18, 20, 36, 38];

/// A `struct nf_conntrack_tuple` as it lies in memory.
pub type CtTuple = [u64; 5];

const AF_INET: u16 = 2;

/// A conntrack tuple in the terms of a [`Tuple`], with its protocol.
///
/// Ports follow the convention of [`crate::flow::FlowKey`]: for ICMP echo the source's is the identifier, for
/// every ICMP the destination's is type and code (which lie in the place of the port), and protocols without
/// ports have none, whatever conntrack keeps there (a GRE call's key).
#[inline(always)]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "each cast takes the part of a word that it names"
)]
pub const fn dialled(raw: &CtTuple) -> (Tuple, u8) {
    // Little-endian, as asserted at the crate's root.
    let [src_0, src_1, mixed, dst_mid, tail] = *raw;
    let family = (mixed >> 16) as u16;
    let protocol = (tail >> 48) as u8;
    let dst_0 = mixed >> 32 | dst_mid << 32;
    let dst_1 = dst_mid >> 32 | tail << 32;
    let mut tuple = Tuple {
        src: address(family, src_0, src_1),
        dst: address(family, dst_0, dst_1),
        src_port: (mixed as u16).swap_bytes(),
        dst_port: ((tail >> 32) as u16).swap_bytes(),
    };
    match (protocol, tuple.dst_port >> 8) {
        // With ports, or with an identifier: echo request and reply.
        (TCP | UDP | SCTP | DCCP | UDPLITE, _) | (ICMP, 0 | 8) | (ICMPV6, 128 | 129) => {}
        (ICMP | ICMPV6, _) => tuple.src_port = 0,
        _ => {
            tuple.src_port = 0;
            tuple.dst_port = 0;
        }
    }
    (tuple, protocol)
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an IPv4 address is the first four bytes"
)]
const fn address(family: u16, first: u64, second: u64) -> Addr {
    if family == AF_INET {
        return Addr::mapped(first as u32);
    }
    Addr::of_words(first, second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(bits: u32, info: u32) -> DropState {
        DropState(bits | info << DropState::INFO_SHIFT)
    }

    #[test]
    fn no_entry_is_not_the_same_as_not_knowing() {
        assert_eq!(DropState::default().tracking(), Tracking::Unknown);
        assert_eq!(DropState::default().routed(), None);
        let read = DropState::CT_READ;
        assert_eq!(state(read, 0).tracking(), Tracking::NoEntry);
        assert_eq!(state(read, 7).tracking(), Tracking::Untracked);
        assert_eq!(state(read, 0).status(), None);
        // An entry whose layout is not known: it is there, and its direction is, but nothing of it.
        let closed = state(read | DropState::ENTRY, 2);
        assert_eq!(closed.tracking(), Tracking::New);
        assert_eq!((closed.status(), closed.confirmed()), (None, None));
        assert!(!closed.dialled_is_known());
    }

    #[test]
    fn an_entry_says_which_way_the_packet_goes_and_whether_it_is_in_the_table() {
        let entry = DropState::CT_READ | DropState::ENTRY | DropState::ENTRY_READ;
        for (info, tracking) in [
            (0, Tracking::Established),
            (1, Tracking::Related),
            (2, Tracking::New),
            (3, Tracking::Reply),
            (4, Tracking::Related),
        ] {
            assert_eq!(state(entry, info).tracking(), tracking);
        }
        let new = state(entry | DropState::DST_NAT | DropState::DST_NAT_DONE, 2);
        assert_eq!(new.confirmed(), Some(false));
        assert_eq!(new.status(), Some(0x120));
        assert!(new.dialled_is_known());
        assert_eq!(
            state(entry | DropState::CONFIRMED, 3).confirmed(),
            Some(true)
        );
        let template = state(entry | DropState::TEMPLATE, 2);
        assert_eq!(template.tracking(), Tracking::Template);
        assert!(!template.dialled_is_known());
    }

    #[test]
    fn a_route_is_there_or_not_or_not_known() {
        assert_eq!(state(DropState::ROUTE_READ, 0).routed(), Some(false));
        let routed = DropState::ROUTE_READ | DropState::ROUTED;
        assert_eq!(state(routed, 0).routed(), Some(true));
    }

    fn raw(family: u8, protocol: u8, src: &[u8], dst: &[u8], ports: [[u8; 2]; 2]) -> CtTuple {
        let mut raw = [0; 40];
        raw[..src.len()].copy_from_slice(src);
        raw[16..18].copy_from_slice(&ports[0]);
        raw[18] = family;
        raw[20..20 + dst.len()].copy_from_slice(dst);
        raw[36..38].copy_from_slice(&ports[1]);
        raw[38] = protocol;
        core::array::from_fn(|i| {
            u64::from_ne_bytes(raw[8 * i..8 * i + 8].try_into().expect("eight bytes"))
        })
    }

    #[test]
    fn a_conntrack_tuple_has_the_conventions_of_a_flow() {
        let (from, to) = ([10, 244, 0, 5], [10, 0, 0, 10]);
        let ports = [[0x9c, 0x40], [0, 80]];
        let (tuple, protocol) = dialled(&raw(2, TCP, &from, &to, ports));
        assert_eq!(protocol, TCP);
        assert_eq!(
            tuple,
            Tuple {
                src: Addr::v4(from),
                dst: Addr::v4(to),
                src_port: 40_000,
                dst_port: 80
            }
        );

        let six: [u8; 16] = core::array::from_fn(|i| u8::try_from(i + 1).expect("small"));
        let (tuple, _) = dialled(&raw(10, UDP, &six, &six, ports));
        assert_eq!((tuple.src, tuple.dst), (Addr(six), Addr(six)));

        // Echo request: identifier, type and code.
        let (tuple, _) = dialled(&raw(2, ICMP, &from, &to, [[0x12, 0x34], [8, 0]]));
        assert_eq!((tuple.src_port, tuple.dst_port), (0x1234, 0x0800));
        // A timestamp request has an identifier as well, but not in a flow's key.
        let (tuple, _) = dialled(&raw(2, ICMP, &from, &to, [[0x12, 0x34], [13, 0]]));
        assert_eq!((tuple.src_port, tuple.dst_port), (0, 0x0d00));
        let (tuple, _) = dialled(&raw(10, ICMPV6, &six, &six, [[0x12, 0x34], [128, 0]]));
        assert_eq!((tuple.src_port, tuple.dst_port), (0x1234, 0x8000));
        // GRE: what lies there is no port.
        let (tuple, _) = dialled(&raw(2, 47, &from, &to, ports));
        assert_eq!((tuple.src_port, tuple.dst_port), (0, 0));
    }
}

//! The fast path: the shapes that nearly all packets have (Ethernet; IPv4 without options or IPv6 without
//! extension headers; TCP or UDP; no fragment), read in place.

use super::{ETH_IPV4, ETH_IPV6, ETH_LEN, Head, IPV4_LEN, IPV6_LEN, Packet, Parsed, TCP, UDP};
use crate::flow::{Addr, FlowKey};

/// The shapes that nearly all packets have; `None` for any other, and for anything doubtful.
#[expect(
    clippy::too_many_lines,
    reason = "the headers read once, top to bottom; parts would pass the heads around"
)]
#[inline(always)]
pub fn parse_common<P: Packet>(packet: &P) -> Option<Parsed> {
    // The shortest common packet: Ethernet, IPv4, UDP.
    let head = packet.head::<42>()?;
    let kind = head.half::<12>();
    let mut parsed = Parsed {
        key: FlowKey {
            src: Addr([0; 16]),
            dst: Addr([0; 16]),
            src_port: 0,
            dst_port: 0,
            ifindex: 0,
            protocol: 0,
            family: 4,
            origin: 0,
            flags: 0,
            padding: 0,
        },
        l3_offset: ETH_LEN,
        l3_len: 0,
        l4_offset: ETH_LEN + IPV4_LEN,
        payload_len: 0,
        ip_id: 0,
        fragment_offset: 0,
        tcp_flags: 0,
        icmp_echo: false,
        tcp_seq: 0,
    };
    let (protocol, carried) = if kind == ETH_IPV4.to_be() {
        // Version 4, five words; neither offset nor more fragments.
        if head.byte::<14>() != 0x45 || head.half::<20>() & 0x3fff_u16.to_be() != 0 {
            return None;
        }
        parsed.l3_len = u32::from(u16::from_be(head.half::<16>()));
        parsed.key.src = Addr::mapped(head.word::<26>());
        parsed.key.dst = Addr::mapped(head.word::<30>());
        parsed.ip_id = u16::from_be(head.half::<18>());
        if parsed.l3_len < IPV4_LEN {
            return None;
        }
        (head.byte::<23>(), parsed.l3_len - IPV4_LEN)
    } else if kind == ETH_IPV6.to_be() {
        let head = packet.head::<62>()?;
        let payload = u32::from(u16::from_be(head.half::<18>()));
        // A payload length of 0 is a jumbogram or a GSO super-packet beyond 64 KiB.
        if head.byte::<14>() >> 4 != 6 || payload == 0 {
            return None;
        }
        parsed.l3_len = IPV6_LEN + payload;
        parsed.l4_offset = ETH_LEN + IPV6_LEN;
        parsed.key.family = 6;
        parsed.key.src = Addr::of_words(head.double::<22>(), head.double::<30>());
        parsed.key.dst = Addr::of_words(head.double::<38>(), head.double::<46>());
        (head.byte::<20>(), payload)
    } else {
        return None;
    };
    if parsed.l3_len > packet.len() - ETH_LEN {
        return None;
    }
    parsed.key.protocol = protocol;
    let ipv4 = parsed.key.family == 4;
    if protocol == UDP {
        if carried < 8 {
            return None;
        }
        let (src, dst) = if ipv4 {
            (head.half::<34>(), head.half::<36>())
        } else {
            let head = packet.head::<62>()?;
            (head.half::<54>(), head.half::<56>())
        };
        parsed.key.src_port = u16::from_be(src);
        parsed.key.dst_port = u16::from_be(dst);
        parsed.payload_len = carried - 8;
        return Some(parsed);
    }
    if protocol == TCP {
        let (src, dst, seq, offset, flags) = if ipv4 {
            let head = packet.head::<54>()?;
            (
                head.half::<34>(),
                head.half::<36>(),
                head.word::<38>(),
                head.byte::<46>(),
                head.byte::<47>(),
            )
        } else {
            let head = packet.head::<74>()?;
            (
                head.half::<54>(),
                head.half::<56>(),
                head.word::<58>(),
                head.byte::<66>(),
                head.byte::<67>(),
            )
        };
        let header = u32::from(offset >> 4) * 4;
        if header < 20 || carried < header {
            return None;
        }
        parsed.key.src_port = u16::from_be(src);
        parsed.key.dst_port = u16::from_be(dst);
        parsed.tcp_seq = u32::from_be(seq);
        parsed.tcp_flags = flags;
        parsed.payload_len = carried - header;
        return Some(parsed);
    }
    None
}

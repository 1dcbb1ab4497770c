//! The general path: every shape, in three steps.

use super::{
    DCCP, ETH_IPV4, ETH_IPV6, ETH_QINQ, ETH_VLAN, ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, Link, Packet,
    Parsed, SCTP, TCP, UDP, UDPLITE,
};
use crate::{
    flow::{Addr, FlowKey, KEY_FRAGMENT},
    stats::Skip,
};

/// IPv6 extension headers walked at the most. RFC 8200 4.1 recommends six kinds, destination options twice.
const EXTENSIONS: usize = 8;

/// A packet read as far as its IP header: `parsed` has no ports yet, and its `payload_len` is all that follows
/// the headers read so far. The general path goes through this in three steps, so that the programs can take
/// each by itself: the kernel's verifier follows every way through all that it sees at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// What is known so far.
    pub parsed: Parsed,
    /// Whether further fragments of the same packet follow.
    pub more_fragments: bool,
}

/// First step: the link layer and the fixed IP header.
///
/// # Errors
/// A [`Skip`] that says what is missing or wrong.
#[inline(always)]
pub fn network<P: Packet>(packet: &P, link: Link) -> Result<Network, Skip> {
    match link {
        Link::Ip => match packet.read::<1>(0) {
            Some([b]) if b >> 4 == 4 => ipv4(packet, 0),
            Some([b]) if b >> 4 == 6 => ipv6(packet, 0),
            Some(_) => Err(Skip::NotIp),
            None => Err(Skip::TruncatedIp),
        },
        Link::Ethernet => {
            let mut offset = 12;
            let Some([a, b]) = packet.read::<2>(offset) else {
                return Err(Skip::TruncatedLink);
            };
            let mut kind = be16(a, b);
            for _ in 0..2 {
                if kind == ETH_VLAN || kind == ETH_QINQ {
                    offset += 4;
                    let Some([a, b]) = packet.read::<2>(offset) else {
                        return Err(Skip::TruncatedLink);
                    };
                    kind = be16(a, b);
                }
            }
            match kind {
                ETH_IPV4 => ipv4(packet, offset + 2),
                ETH_IPV6 => ipv6(packet, offset + 2),
                ETH_VLAN | ETH_QINQ => Err(Skip::TooManyTags),
                _ => Err(Skip::NotIp),
            }
        }
    }
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, l3_offset: u32) -> Result<Network, Skip> {
    let Some(h) = packet.read::<20>(l3_offset) else {
        return Err(Skip::TruncatedIp);
    };
    if h[0] >> 4 != 4 {
        return Err(Skip::BadVersion);
    }
    let header = u32::from(h[0] & 0x0f) * 4;
    let available = packet.len() - l3_offset;
    // A total length of 0 is a GSO super-packet beyond 64 KiB (BIG TCP): then the packet's own length counts.
    let total = match be16(h[2], h[3]) {
        0 if available > 0xffff => available,
        n => u32::from(n),
    };
    if header < IPV4_LEN || total < header {
        return Err(Skip::BadLength);
    }
    if total > available {
        return Err(Skip::TruncatedIp);
    }
    let fragment = be16(h[6], h[7]) & 0x1fff;
    let parsed = Parsed {
        key: FlowKey {
            src: Addr::v4([h[12], h[13], h[14], h[15]]),
            dst: Addr::v4([h[16], h[17], h[18], h[19]]),
            src_port: 0,
            dst_port: 0,
            ifindex: 0,
            protocol: h[9],
            family: 4,
            origin: 0,
            flags: if fragment == 0 { 0 } else { KEY_FRAGMENT },
            padding: 0,
        },
        l3_offset,
        l3_len: total,
        l4_offset: l3_offset + header,
        payload_len: total - header,
        ip_id: be16(h[4], h[5]),
        fragment_offset: fragment,
        tcp_flags: 0,
        icmp_echo: false,
        tcp_seq: 0,
    };
    Ok(Network {
        parsed,
        more_fragments: h[6] & 0x20 != 0,
    })
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, l3_offset: u32) -> Result<Network, Skip> {
    let Some(h) = packet.read::<40>(l3_offset) else {
        return Err(Skip::TruncatedIp);
    };
    if h[0] >> 4 != 6 {
        return Err(Skip::BadVersion);
    }
    let available = packet.len() - l3_offset;
    let total = match be16(h[4], h[5]) {
        0 if available > 0xffff => available,
        n => u32::from(n) + IPV6_LEN,
    };
    if total > available {
        return Err(Skip::TruncatedIp);
    }
    let parsed = Parsed {
        key: FlowKey {
            src: addr_at::<40, 8>(&h),
            dst: addr_at::<40, 24>(&h),
            src_port: 0,
            dst_port: 0,
            ifindex: 0,
            protocol: h[6],
            family: 6,
            origin: 0,
            flags: 0,
            padding: 0,
        },
        l3_offset,
        l3_len: total,
        l4_offset: l3_offset + IPV6_LEN,
        payload_len: total - IPV6_LEN,
        ip_id: 0,
        fragment_offset: 0,
        tcp_flags: 0,
        icmp_echo: false,
        tcp_seq: 0,
    };
    Ok(Network {
        parsed,
        more_fragments: false,
    })
}

/// Second step: the extension headers of IPv6. Nothing to do for IPv4.
///
/// # Errors
/// A [`Skip`] that says what is missing or wrong.
#[inline(always)]
pub fn extensions<P: Packet>(packet: &P, mut network: Network) -> Result<Network, Skip> {
    let parsed = &mut network.parsed;
    if parsed.key.family != 6 {
        return Ok(network);
    }
    let end = parsed.l3_offset + parsed.l3_len;
    let mut next = parsed.key.protocol;
    let mut at = parsed.l4_offset;
    for _ in 0..EXTENSIONS {
        if !is_extension(next) {
            break;
        }
        // None is shorter than eight bytes.
        let Some(h) = packet.read::<8>(at) else {
            return Err(Skip::TruncatedIp);
        };
        let kind = next;
        next = h[0];
        at += match kind {
            44 => 8,
            51 => (u32::from(h[1]) + 2) * 4,
            _ => (u32::from(h[1]) + 1) * 8,
        };
        if kind == 44 {
            parsed.fragment_offset = be16(h[2], h[3]) >> 3;
            parsed.ip_id = be16(h[6], h[7]);
            network.more_fragments = h[3] & 1 != 0;
            if parsed.fragment_offset != 0 {
                parsed.key.flags = KEY_FRAGMENT;
                break;
            }
        }
    }
    if at > end {
        return Err(Skip::TruncatedIp);
    }
    if parsed.key.flags != KEY_FRAGMENT && is_extension(next) {
        return Err(Skip::TooManyExtensions);
    }
    parsed.key.protocol = next;
    parsed.l4_offset = at;
    parsed.payload_len = end - at;
    Ok(network)
}

/// RFC 8200 4 (hop-by-hop 0, routing 43, fragment 44, destination 60), RFC 6275 (mobility 135), RFC 7401
/// (HIP 139), RFC 5533 (shim6 140), RFC 4302 (authentication 51).
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// Third step: ports, flags and payload length.
///
/// # Errors
/// A [`Skip`] that says what is missing or wrong.
#[inline(always)]
pub fn transport<P: Packet>(packet: &P, network: Network) -> Result<Parsed, Skip> {
    let Network {
        mut parsed,
        more_fragments,
    } = network;
    if parsed.key.flags & KEY_FRAGMENT != 0 {
        return Ok(parsed);
    }
    let at = parsed.l4_offset;
    let here = parsed.payload_len;
    match parsed.key.protocol {
        TCP => {
            if here < 20 {
                return Err(Skip::TruncatedTransport);
            }
            let Some(h) = packet.read::<20>(at) else {
                return Err(Skip::TruncatedTransport);
            };
            let header = u32::from(h[12] >> 4) * 4;
            // The options of a first fragment may lie in the next one.
            if header < 20 || (header > here && !more_fragments) {
                return Err(Skip::BadTransport);
            }
            parsed.key.src_port = be16(h[0], h[1]);
            parsed.key.dst_port = be16(h[2], h[3]);
            parsed.tcp_seq = be32(h[4], h[5], h[6], h[7]);
            parsed.tcp_flags = h[13];
            parsed.payload_len = here.saturating_sub(header);
        }
        UDP | UDPLITE | DCCP | SCTP => {
            let header = match parsed.key.protocol {
                SCTP | DCCP => 12,
                _ => 8,
            };
            if here < header {
                return Err(Skip::TruncatedTransport);
            }
            let Some(h) = packet.read::<4>(at) else {
                return Err(Skip::TruncatedTransport);
            };
            parsed.key.src_port = be16(h[0], h[1]);
            parsed.key.dst_port = be16(h[2], h[3]);
            parsed.payload_len = here - header;
        }
        ICMP | ICMPV6 if (parsed.key.protocol == ICMP) == (parsed.key.family == 4) => {
            if here < 8 {
                return Err(Skip::TruncatedTransport);
            }
            let Some(h) = packet.read::<6>(at) else {
                return Err(Skip::TruncatedTransport);
            };
            parsed.icmp_echo = match parsed.key.protocol {
                ICMP => h[0] == 8 || h[0] == 0,
                _ => h[0] == 128 || h[0] == 129,
            };
            if parsed.icmp_echo {
                parsed.key.src_port = be16(h[4], h[5]);
            }
            parsed.key.dst_port = be16(h[0], h[1]);
            parsed.payload_len = here - 8;
        }
        _ => {}
    }
    Ok(parsed)
}

#[inline(always)]
const fn be16(a: u8, b: u8) -> u16 {
    u16::from_be_bytes([a, b])
}

#[inline(always)]
const fn be32(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

/// The 16 bytes from `AT`; the bound is checked at compile time.
#[inline(always)]
fn addr_at<const N: usize, const AT: usize>(bytes: &[u8; N]) -> Addr {
    const { assert!(AT + 16 <= N) };
    let mut a = [0; 16];
    let mut i = 0;
    while i < 16 {
        a[i] = bytes[AT + i];
        i += 1;
    }
    Addr(a)
}

//! From header bytes to a [`Parsed`] packet, for frames (link layer first) and bare IP packets.
//!
//! The parser never guesses: what is truncated or contradicts itself is a [`Skip`] with its reason. It has
//! one fast path for the shapes that nearly all packets have (Ethernet, IPv4 without options or IPv6
//! without extension headers, TCP or UDP, no fragment) and one general path; tests hold the two together.

use crate::{
    flow::{Addr, FlowKey, KEY_FRAGMENT},
    stats::Skip,
};

/// IP protocol numbers (IANA).
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of DCCP.
pub const DCCP: u8 = 33;
/// IP protocol number of `ICMPv6`.
pub const ICMPV6: u8 = 58;
/// IP protocol number of SCTP.
pub const SCTP: u8 = 132;
/// IP protocol number of UDP-Lite.
pub const UDPLITE: u8 = 136;

/// TCP flag bit FIN.
pub const FIN: u8 = 0x01;
/// TCP flag bit SYN.
pub const SYN: u8 = 0x02;
/// TCP flag bit RST.
pub const RST: u8 = 0x04;
/// TCP flag bit ACK.
pub const ACK: u8 = 0x10;

const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_VLAN: u16 = 0x8100;
const ETH_QINQ: u16 = 0x88a8;

const ETH_LEN: u32 = 14;
const IPV4_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;

/// IPv6 extension headers walked at the most. RFC 8200 4.1 recommends six kinds, destination options twice.
const EXTENSIONS: usize = 8;

/// Bytes of a packet, wherever they are.
pub trait Packet {
    /// The packet's first bytes, in place.
    type Head<'a>: Head
    where
        Self: 'a;

    /// Length of the whole packet, from the first header that [`parse`] is to read.
    fn len(&self) -> u32;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `N` bytes at `offset`, or `None` where the packet ends before.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The first `N` bytes in place, where that costs nothing; `None` says only 'use `read`'.
    fn head<const N: usize>(&self) -> Option<Self::Head<'_>>;
}

/// Bytes in place. The offsets are constants, within the length that was asked for; integers are as they lie
/// in memory, that is in network byte order.
pub trait Head: Copy {
    /// One byte.
    fn byte<const AT: usize>(self) -> u8;
    /// Two bytes.
    fn half<const AT: usize>(self) -> u16;
    /// Four bytes.
    fn word<const AT: usize>(self) -> u32;
    /// Eight bytes.
    fn double<const AT: usize>(self) -> u64;
}

impl Packet for &[u8] {
    type Head<'a>
        = &'a [u8]
    where
        Self: 'a;

    #[allow(
        clippy::cast_possible_truncation,
        reason = "no frame is longer than u32"
    )]
    fn len(&self) -> u32 {
        <[u8]>::len(self) as u32
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(offset as usize..)?.first_chunk::<N>().copied()
    }

    fn head<const N: usize>(&self) -> Option<&[u8]> {
        self.get(..N)
    }
}

impl Head for &[u8] {
    fn byte<const AT: usize>(self) -> u8 {
        self[AT]
    }

    fn half<const AT: usize>(self) -> u16 {
        u16::from_ne_bytes([self[AT], self[AT + 1]])
    }

    fn word<const AT: usize>(self) -> u32 {
        u32::from_ne_bytes([self[AT], self[AT + 1], self[AT + 2], self[AT + 3]])
    }

    fn double<const AT: usize>(self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self[AT..AT + 8]);
        u64::from_ne_bytes(bytes)
    }
}

/// What the first byte of a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header, perhaps with VLAN tags.
    Ethernet,
    /// An IP header (tunnels, raw IP devices, dropped packets).
    Ip,
}

/// A packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Addresses, ports, protocol; `ifindex` and `origin` are 0.
    pub key: FlowKey,
    /// Offset of the IP header.
    pub l3_offset: u32,
    /// IP length in bytes: header and payload, without link-layer padding.
    pub l3_len: u32,
    /// Offset of the transport header; of the payload in a later fragment.
    pub l4_offset: u32,
    /// Bytes of transport payload; for protocols without a known header, all after the IP header.
    pub payload_len: u32,
    /// IPv4 identification; 0 in IPv6, the fragment header's low 16 bits in an IPv6 fragment.
    pub ip_id: u16,
    /// Fragment offset in units of 8 bytes; 0 unless a later fragment.
    pub fragment_offset: u16,
    /// The TCP flag byte; 0 for other protocols.
    pub tcp_flags: u8,
    /// Whether it is an ICMP or `ICMPv6` echo request or reply.
    pub icmp_echo: bool,
    /// TCP sequence number, host byte order.
    pub tcp_seq: u32,
}

/// Reads a packet's headers.
///
/// # Errors
/// A [`Skip`] that says what is missing or wrong.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, link: Link) -> Result<Parsed, Skip> {
    if let Link::Ethernet = link
        && let Some(parsed) = parse_common(packet)
    {
        return Ok(parsed);
    }
    parse_any(packet, link)
}

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

/// Every shape.
///
/// # Errors
/// A [`Skip`] that says what is missing or wrong.
#[inline(always)]
pub fn parse_any<P: Packet>(packet: &P, link: Link) -> Result<Parsed, Skip> {
    let network = extensions(packet, network(packet, link)?)?;
    transport(packet, network)
}

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

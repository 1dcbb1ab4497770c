//! From header bytes to a [`Parsed`] packet, for frames (link layer first) and bare IP packets.
//!
//! The parser never guesses: what is truncated or contradicts itself is a [`Skip`] with its reason. It has
//! one fast path for the shapes that nearly all packets have (Ethernet, IPv4 without options or IPv6
//! without extension headers, TCP or UDP, no fragment) and one general path; tests hold the two together.

use crate::{flow::FlowKey, stats::Skip};

// The shapes that nearly all packets have.
mod common;

// Every shape.
mod general;

pub use common::parse_common;
pub use general::{Network, extensions, network, transport};

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

    #[expect(
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

/// Every shape.
///
/// # Errors
/// A [`Skip`] that says what is missing or wrong.
#[inline(always)]
pub fn parse_any<P: Packet>(packet: &P, link: Link) -> Result<Parsed, Skip> {
    let network = extensions(packet, network(packet, link)?)?;
    transport(packet, network)
}

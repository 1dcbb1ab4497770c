//! Frames as a test describes them: built with `pnet` where it knows the header, by hand where it does not,
//! and read back with `pnet` to check the builder itself.

use std::net::{IpAddr, SocketAddr};

use aksnet_common::flow::{Addr, FlowKey, KEY_FRAGMENT};
use pnet::packet::{
    Packet as _,
    ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket},
    icmp::{IcmpPacket, echo_request},
    icmpv6::Icmpv6Packet,
    ip::IpNextHeaderProtocol,
    ipv4::{Ipv4Packet, MutableIpv4Packet},
    ipv6::{FragmentPacket, Ipv6Packet, MutableIpv6Packet},
    tcp::{MutableTcpPacket, TcpPacket},
    udp::{MutableUdpPacket, UdpPacket},
    vlan::{MutableVlanPacket, VlanPacket},
};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// `EtherType` of a VLAN tag.
pub const VLAN: u16 = 0x8100;
/// `EtherType` of a provider's VLAN tag.
pub const QINQ: u16 = 0x88a8;

/// IPv6 extension header numbers.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION: u8 = 60;
pub const MOBILITY: u8 = 135;
pub const HIP: u8 = 139;
pub const SHIM6: u8 = 140;

/// What the IP packet carries.
#[derive(Clone, Debug)]
pub enum Transport {
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
        /// Bytes of options, a multiple of 4.
        options: usize,
    },
    Udp,
    /// UDP-Lite, SCTP, DCCP: ports first, a header of this many bytes.
    Ports {
        protocol: u8,
        header: usize,
    },
    /// ICMP or `ICMPv6`; `id` is the word that an echo has there.
    Icmp {
        kind: u8,
        code: u8,
        id: u16,
        sequence: u16,
    },
    Other(u8),
}

/// A piece of a fragmented packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// In units of 8 bytes.
    pub offset: u16,
    pub more: bool,
}

/// A frame; its IP version is that of its addresses.
#[derive(Clone, Debug)]
pub struct Frame {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// `EtherTypes` of the VLAN tags, outermost first.
    pub tags: Vec<u16>,
    /// IPv4 identification, or that of an IPv6 fragment.
    pub id: u16,
    pub ttl: u8,
    pub piece: Option<Piece>,
    /// IPv4: bytes of options, a multiple of 4.
    pub options: usize,
    /// IPv6 extension headers by number. A fragment header is where `FRAGMENT` stands, else the last one.
    pub extensions: Vec<u8>,
    /// Bytes behind the IP packet.
    pub padding: usize,
}

impl Frame {
    fn new(src: &str, dst: &str, transport: Transport) -> Self {
        Self {
            src: src.parse().expect("source address and port"),
            dst: dst.parse().expect("destination address and port"),
            transport,
            payload: (0..32).collect(),
            tags: Vec::new(),
            id: 0x1234,
            ttl: 64,
            piece: None,
            options: 0,
            extensions: Vec::new(),
            padding: 0,
        }
    }

    pub fn tcp(src: &str, dst: &str, flags: u8) -> Self {
        let transport = Transport::Tcp {
            flags,
            seq: 1_000,
            ack: 77,
            options: 0,
        };
        let payload = if flags & (SYN | RST) == 0 { 32 } else { 0 };
        Self::new(src, dst, transport).payload(payload)
    }

    pub fn udp(src: &str, dst: &str) -> Self {
        Self::new(src, dst, Transport::Udp)
    }

    pub fn sctp(src: &str, dst: &str) -> Self {
        let transport = Transport::Ports {
            protocol: 132,
            header: 12,
        };
        Self::new(src, dst, transport)
    }

    /// An echo request from one address to another (the ports are ignored).
    pub fn echo(src: &str, dst: &str, id: u16) -> Self {
        let kind = if dst.starts_with('[') { 128 } else { 8 };
        let transport = Transport::Icmp {
            kind,
            code: 0,
            id,
            sequence: 7,
        };
        Self::new(src, dst, transport)
    }

    pub fn other(src: &str, dst: &str, protocol: u8) -> Self {
        Self::new(src, dst, Transport::Other(protocol))
    }

    pub fn src(mut self, src: &str) -> Self {
        self.src = src.parse().expect("source address and port");
        self
    }

    pub fn dst(mut self, dst: &str) -> Self {
        self.dst = dst.parse().expect("destination address and port");
        self
    }

    /// Sets the payload to `len` bytes that count up.
    pub fn payload(mut self, len: usize) -> Self {
        self.payload = (0..len).map(|i| i as u8).collect();
        self
    }

    pub fn seq(mut self, number: u32) -> Self {
        if let Transport::Tcp { seq, .. } = &mut self.transport {
            *seq = number;
        }
        self
    }

    pub fn echo_id(mut self, to: u16) -> Self {
        if let Transport::Icmp { id, .. } = &mut self.transport {
            *id = to;
        }
        self
    }

    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn tags(mut self, tags: &[u16]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    pub fn options(mut self, bytes: usize) -> Self {
        self.options = bytes;
        self
    }

    pub fn tcp_options(mut self, bytes: usize) -> Self {
        if let Transport::Tcp { options, .. } = &mut self.transport {
            *options = bytes;
        }
        self
    }

    pub fn extensions(mut self, headers: &[u8]) -> Self {
        self.extensions = headers.to_vec();
        self
    }

    pub fn piece(mut self, offset: u16, more: bool) -> Self {
        self.piece = Some(Piece { offset, more });
        self
    }

    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    pub fn is_ipv4(&self) -> bool {
        self.src.is_ipv4()
    }

    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp => 17,
            Transport::Ports { protocol, .. } | Transport::Other(protocol) => protocol,
            Transport::Icmp { .. } if self.is_ipv4() => 1,
            Transport::Icmp { .. } => 58,
        }
    }

    fn is_later_fragment(&self) -> bool {
        self.piece.is_some_and(|p| p.offset != 0)
    }

    /// The flow it belongs to, as the issue defines it; not by parsing.
    pub fn key(&self, ifindex: u32, origin: u8) -> FlowKey {
        let (src_port, dst_port) = match self.transport {
            _ if self.is_later_fragment() => (0, 0),
            Transport::Tcp { .. } | Transport::Udp | Transport::Ports { .. } => {
                (self.src.port(), self.dst.port())
            }
            Transport::Icmp { kind, code, id, .. } => {
                let echo = matches!((self.is_ipv4(), kind), (true, 0 | 8) | (false, 128 | 129));
                (if echo { id } else { 0 }, u16::from_be_bytes([kind, code]))
            }
            Transport::Other(_) => (0, 0),
        };
        FlowKey {
            src: Addr::from(self.src.ip()),
            dst: Addr::from(self.dst.ip()),
            src_port,
            dst_port,
            ifindex,
            protocol: self.protocol(),
            family: if self.is_ipv4() { 4 } else { 6 },
            origin,
            flags: if self.is_later_fragment() {
                KEY_FRAGMENT
            } else {
                0
            },
            padding: 0,
        }
    }

    /// Bytes before the IP header.
    pub fn link_len(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Bytes of the IP header with its options or extension headers.
    pub fn header_len(&self) -> usize {
        if self.is_ipv4() {
            20 + self.options
        } else {
            40 + self.extension_bytes(0).len()
        }
    }

    /// Bytes of the transport header; 0 where it has none that is known, or in a later fragment.
    pub fn transport_len(&self) -> usize {
        match self.transport {
            _ if self.is_later_fragment() => 0,
            Transport::Tcp { options, .. } => 20 + options,
            Transport::Udp | Transport::Icmp { .. } => 8,
            Transport::Ports { header, .. } => header,
            Transport::Other(_) => 0,
        }
    }

    /// Bytes of the IP packet: what is counted.
    pub fn ip_len(&self) -> usize {
        self.header_len() + self.transport_len() + self.payload.len()
    }

    /// The frame, link layer first. Checked against `pnet`'s own reading.
    pub fn ethernet(&self) -> Vec<u8> {
        let ip = self.ip();
        let mut bytes = vec![0; self.link_len()];
        let inner = if self.is_ipv4() {
            EtherTypes::Ipv4
        } else {
            EtherTypes::Ipv6
        };
        let kind_behind = |i: usize| {
            self.tags
                .get(i)
                .map_or(inner, |&t| pnet::packet::ethernet::EtherType::new(t))
        };
        let mut link = MutableEthernetPacket::new(&mut bytes).expect("room for Ethernet");
        link.set_source("02:00:00:00:00:01".parse().expect("a MAC address"));
        link.set_destination("02:00:00:00:00:02".parse().expect("a MAC address"));
        link.set_ethertype(kind_behind(0));
        for i in 0..self.tags.len() {
            let mut tag = MutableVlanPacket::new(&mut bytes[14 + 4 * i..]).expect("room for a tag");
            tag.set_vlan_identifier(100 + i as u16);
            tag.set_ethertype(kind_behind(i + 1));
        }
        bytes.extend_from_slice(&ip);
        bytes.resize(bytes.len() + self.padding, 0xa5);
        self.check(&bytes);
        bytes
    }

    /// The IP packet alone.
    pub fn ip(&self) -> Vec<u8> {
        let body = self.body();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut bytes = vec![0; 20 + self.options];
                let total = bytes.len() + body.len();
                let words = bytes.len() / 4;
                let mut ip = MutableIpv4Packet::new(&mut bytes).expect("room for IPv4");
                ip.set_version(4);
                ip.set_header_length(words as u8);
                // What does not fit is a super-packet beyond 64 KiB, which says 0.
                ip.set_total_length(u16::try_from(total).unwrap_or(0));
                ip.set_identification(self.id);
                ip.set_ttl(self.ttl);
                ip.set_next_level_protocol(IpNextHeaderProtocol(self.protocol()));
                ip.set_source(src);
                ip.set_destination(dst);
                if let Some(piece) = self.piece {
                    ip.set_flags(u8::from(piece.more));
                    ip.set_fragment_offset(piece.offset);
                }
                // Options: no-operation, all of them.
                bytes[20..].fill(1);
                bytes.extend_from_slice(&body);
                bytes
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let extensions = self.extension_bytes(self.protocol());
                let mut bytes = vec![0; 40];
                let mut ip = MutableIpv6Packet::new(&mut bytes).expect("room for IPv6");
                ip.set_version(6);
                ip.set_payload_length(u16::try_from(extensions.len() + body.len()).unwrap_or(0));
                ip.set_hop_limit(self.ttl);
                let first = self.extension_order().first().copied();
                ip.set_next_header(IpNextHeaderProtocol(first.unwrap_or(self.protocol())));
                ip.set_source(src);
                ip.set_destination(dst);
                bytes.extend_from_slice(&extensions);
                bytes.extend_from_slice(&body);
                bytes
            }
            (src, dst) => panic!("{src} and {dst} are not of one version"),
        }
    }

    fn extension_order(&self) -> Vec<u8> {
        let mut order = self.extensions.clone();
        if self.piece.is_some() && !order.contains(&FRAGMENT) {
            order.push(FRAGMENT);
        }
        order
    }

    /// The extension headers, the last of which says that `protocol` follows. By hand: `pnet` has the
    /// fields of some of them, but not their lengths.
    fn extension_bytes(&self, protocol: u8) -> Vec<u8> {
        let order = self.extension_order();
        let mut bytes = Vec::new();
        for (i, &kind) in order.iter().enumerate() {
            let next = order.get(i + 1).copied().unwrap_or(protocol);
            match kind {
                FRAGMENT => {
                    let piece = self.piece.unwrap_or(Piece {
                        offset: 0,
                        more: false,
                    });
                    let [a, b] = (piece.offset << 3 | u16::from(piece.more)).to_be_bytes();
                    let [c, d] = self.id.to_be_bytes();
                    bytes.extend_from_slice(&[next, 0, a, b, 0, 0, c, d]);
                }
                // In units of 4 bytes beyond the first two: 24 bytes.
                AUTHENTICATION => {
                    bytes.extend_from_slice(&[next, 4]);
                    bytes.resize(bytes.len() + 22, 0);
                }
                // In units of 8 bytes beyond the first: 16 bytes; PadN.
                _ => bytes.extend_from_slice(&[next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            }
        }
        bytes
    }

    /// What follows the IP headers.
    fn body(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.transport_len()];
        if !self.is_later_fragment() {
            match self.transport {
                Transport::Tcp {
                    flags,
                    seq,
                    ack,
                    options,
                } => {
                    let mut tcp = MutableTcpPacket::new(&mut bytes).expect("room for TCP");
                    tcp.set_source(self.src.port());
                    tcp.set_destination(self.dst.port());
                    tcp.set_sequence(seq);
                    tcp.set_acknowledgement(ack);
                    tcp.set_data_offset((5 + options / 4) as u8);
                    tcp.set_flags(flags);
                    tcp.set_window(501);
                    bytes[20..].fill(1);
                }
                Transport::Udp => {
                    let length = 8 + self.payload.len();
                    let mut udp = MutableUdpPacket::new(&mut bytes).expect("room for UDP");
                    udp.set_source(self.src.port());
                    udp.set_destination(self.dst.port());
                    udp.set_length(u16::try_from(length).unwrap_or(0));
                }
                Transport::Ports { .. } => {
                    bytes[..2].copy_from_slice(&self.src.port().to_be_bytes());
                    bytes[2..4].copy_from_slice(&self.dst.port().to_be_bytes());
                    bytes[4..].fill(0x5c);
                }
                Transport::Icmp {
                    kind,
                    code,
                    id,
                    sequence,
                } => {
                    bytes[0] = kind;
                    bytes[1] = code;
                    bytes[4..6].copy_from_slice(&id.to_be_bytes());
                    bytes[6..8].copy_from_slice(&sequence.to_be_bytes());
                }
                Transport::Other(_) => {}
            }
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Reads the frame with `pnet` alone and compares.
    fn check(&self, frame: &[u8]) {
        let ethernet = EthernetPacket::new(frame).expect("an Ethernet header");
        let mut kind = ethernet.get_ethertype();
        let mut rest = ethernet.payload().to_vec();
        for &tag in &self.tags {
            assert_eq!(kind.0, tag);
            let vlan = VlanPacket::new(&rest).expect("a VLAN tag");
            kind = vlan.get_ethertype();
            let inner = vlan.payload().to_vec();
            rest = inner;
        }
        let (protocol, body) = if self.is_ipv4() {
            assert_eq!(kind, EtherTypes::Ipv4);
            let ip = Ipv4Packet::new(&rest).expect("an IPv4 header");
            assert_eq!(
                (
                    IpAddr::from(ip.get_source()),
                    IpAddr::from(ip.get_destination())
                ),
                (self.src.ip(), self.dst.ip())
            );
            assert_eq!(usize::from(ip.get_header_length()) * 4, self.header_len());
            if self.ip_len() <= 0xffff {
                assert_eq!(usize::from(ip.get_total_length()), self.ip_len());
            }
            assert_eq!(ip.get_fragment_offset(), self.piece.map_or(0, |p| p.offset));
            let protocol = ip.get_next_level_protocol().0;
            (protocol, rest[self.header_len()..].to_vec())
        } else {
            assert_eq!(kind, EtherTypes::Ipv6);
            let ip = Ipv6Packet::new(&rest).expect("an IPv6 header");
            assert_eq!(
                (
                    IpAddr::from(ip.get_source()),
                    IpAddr::from(ip.get_destination())
                ),
                (self.src.ip(), self.dst.ip())
            );
            if self.ip_len() <= 0xffff {
                assert_eq!(usize::from(ip.get_payload_length()) + 40, self.ip_len());
            }
            let mut next = ip.get_next_header().0;
            let mut at = 40;
            for kind in self.extension_order() {
                assert_eq!(next, kind);
                next = rest[at];
                if kind == FRAGMENT {
                    let fragment = FragmentPacket::new(&rest[at..]).expect("a fragment header");
                    let piece = self.piece.unwrap_or(Piece {
                        offset: 0,
                        more: false,
                    });
                    let word = fragment.get_fragment_offset_with_flags();
                    assert_eq!((word >> 3, word & 1 == 1), (piece.offset, piece.more));
                    at += 8;
                } else if kind == AUTHENTICATION {
                    at += (usize::from(rest[at + 1]) + 2) * 4;
                } else {
                    at += (usize::from(rest[at + 1]) + 1) * 8;
                }
            }
            assert_eq!(at, self.header_len());
            (next, rest[at..].to_vec())
        };
        assert_eq!(protocol, self.protocol());
        if self.is_later_fragment() {
            return;
        }
        match self.transport {
            Transport::Tcp { flags, seq, .. } => {
                let tcp = TcpPacket::new(&body).expect("a TCP header");
                assert_eq!(
                    (tcp.get_source(), tcp.get_destination()),
                    (self.src.port(), self.dst.port())
                );
                assert_eq!((tcp.get_flags(), tcp.get_sequence()), (flags, seq));
                assert_eq!(usize::from(tcp.get_data_offset()) * 4, self.transport_len());
            }
            Transport::Udp => {
                let udp = UdpPacket::new(&body).expect("a UDP header");
                assert_eq!(
                    (udp.get_source(), udp.get_destination()),
                    (self.src.port(), self.dst.port())
                );
            }
            Transport::Icmp { kind, id, .. } if self.is_ipv4() => {
                let icmp = IcmpPacket::new(&body).expect("an ICMP header");
                assert_eq!(icmp.get_icmp_type().0, kind);
                let echo = echo_request::EchoRequestPacket::new(&body).expect("an echo header");
                assert_eq!(echo.get_identifier(), id);
            }
            Transport::Icmp { kind, .. } => {
                let icmp = Icmpv6Packet::new(&body).expect("an ICMPv6 header");
                assert_eq!(icmp.get_icmpv6_type().0, kind);
            }
            Transport::Ports { .. } | Transport::Other(_) => {}
        }
    }
}

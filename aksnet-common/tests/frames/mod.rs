//! Builders of frames: every header that the parser knows, in every arrangement. A [`Frame`] knows its bytes
//! and, independently of the parser, what is to be read from them.

use std::net::IpAddr;

use aksnet_common::{
    flow::{Addr, FlowKey, KEY_FRAGMENT},
    packet::{ACK, DCCP, ICMP, ICMPV6, Parsed, SCTP, TCP, UDP, UDPLITE},
};
use proptest::prelude::*;

pub(crate) const VLAN: u16 = 0x8100;
pub(crate) const QINQ: u16 = 0x88a8;

pub(crate) const GRE: u8 = 47;
pub(crate) const ESP: u8 = 50;

/// IPv6 extension headers that carry no data of their own here.
pub(crate) const PLAIN_EXTENSIONS: [u8; 7] = [0, 43, 60, 135, 139, 140, AUTHENTICATION];
pub(crate) const AUTHENTICATION: u8 = 51;
pub(crate) const FRAGMENT: u8 = 44;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Transport {
    Tcp {
        src: u16,
        dst: u16,
        seq: u32,
        ack: u32,
        flags: u8,
        window: u16,
        options: Vec<u8>,
    },
    Udp {
        src: u16,
        dst: u16,
    },
    UdpLite {
        src: u16,
        dst: u16,
    },
    Dccp {
        src: u16,
        dst: u16,
        seq: u32,
    },
    Sctp {
        src: u16,
        dst: u16,
        tag: u32,
    },
    /// ICMP in IPv4, `ICMPv6` in IPv6; `rest` is the second word of the header.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    /// A protocol without a header that is read.
    Raw(u8),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// Kinds of the VLAN tags, outermost first.
    pub(crate) tags: Vec<u16>,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// DSCP and ECN: type of service or traffic class.
    pub(crate) class: u8,
    /// Identification in IPv4, or in a fragment header of IPv6.
    pub(crate) id: u32,
    /// IPv4: don't fragment.
    pub(crate) dont_fragment: bool,
    /// In units of 8 bytes.
    pub(crate) fragment_offset: u16,
    pub(crate) more_fragments: bool,
    /// IPv4 options; whole words.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: kind, and length in units of 8 bytes.
    pub(crate) extensions: Vec<(u8, u8)>,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
    /// The link layer fills the frame up to this length.
    pub(crate) padded_to: usize,
}

/// A failing case is printed in its smallest form; what is worth keeping of it becomes a named test.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr(a.octets()),
    }
}

pub(crate) fn len16(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("at most 64 KiB")
}

pub(crate) fn len32(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("at most 4 GiB")
}

impl Frame {
    pub(crate) fn new(src: IpAddr, dst: IpAddr, transport: Transport) -> Self {
        Self {
            tags: Vec::new(),
            src,
            dst,
            ttl: 64,
            class: 0,
            id: 0x1234,
            dont_fragment: true,
            fragment_offset: 0,
            more_fragments: false,
            options: Vec::new(),
            extensions: Vec::new(),
            transport,
            payload: b"sixteen bytes, at least".to_vec(),
            padded_to: 0,
        }
    }

    pub(crate) fn v4(transport: Transport) -> Self {
        Self::new(ip("10.244.1.7"), ip("10.0.96.10"), transport)
    }

    pub(crate) fn v6(transport: Transport) -> Self {
        Self::new(ip("fd00:10:244::7"), ip("2001:db8::a"), transport)
    }

    pub(crate) fn tagged(mut self, kinds: &[u16]) -> Self {
        self.tags.extend(kinds);
        self
    }

    pub(crate) fn with_options(mut self, words: usize) -> Self {
        self.options = vec![1; 4 * words];
        self
    }

    pub(crate) fn with_extensions(mut self, extensions: &[(u8, u8)]) -> Self {
        self.extensions.extend(extensions);
        self
    }

    pub(crate) fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The first of several fragments.
    pub(crate) fn first_fragment(mut self) -> Self {
        self.dont_fragment = false;
        self.more_fragments = true;
        if self.src.is_ipv6() {
            self.extensions.push((FRAGMENT, 1));
        }
        self
    }

    /// A fragment that does not start with the transport header.
    pub(crate) fn later_fragment(mut self, offset: u16, more: bool) -> Self {
        self = self.first_fragment();
        self.fragment_offset = offset;
        self.more_fragments = more;
        self.transport = Transport::Raw(self.protocol());
        self
    }

    /// As Ethernet fills up short frames, though not with zeros: what is read of it shows.
    pub(crate) fn padded(mut self) -> Self {
        self.padded_to = 60;
        self
    }

    pub(crate) fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => TCP,
            Transport::Udp { .. } => UDP,
            Transport::UdpLite { .. } => UDPLITE,
            Transport::Dccp { .. } => DCCP,
            Transport::Sctp { .. } => SCTP,
            Transport::Icmp { .. } if self.src.is_ipv4() => ICMP,
            Transport::Icmp { .. } => ICMPV6,
            Transport::Raw(protocol) => protocol,
        }
    }

    /// Bytes before the IP header.
    pub(crate) fn link_len(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Bytes of the IP header that its length field does not count (IPv6) or that it must count (IPv4).
    pub(crate) fn base_len(&self) -> usize {
        match self.src {
            IpAddr::V4(_) => 20 + self.options.len(),
            IpAddr::V6(_) => 40,
        }
    }

    pub(crate) fn extensions_len(&self) -> usize {
        match self.src {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => self.extensions.iter().map(|e| 8 * usize::from(e.1)).sum(),
        }
    }

    /// The shortest transport header of the kind, and the one that this frame has.
    pub(crate) fn transport_lens(&self) -> (usize, usize) {
        match &self.transport {
            Transport::Tcp { options, .. } => (20, 20 + options.len()),
            Transport::Udp { .. } | Transport::UdpLite { .. } | Transport::Icmp { .. } => (8, 8),
            Transport::Dccp { .. } | Transport::Sctp { .. } => (12, 12),
            Transport::Raw(_) => (0, 0),
        }
    }

    fn is_later_fragment(&self) -> bool {
        self.fragment_offset != 0
            && (self.src.is_ipv4() || self.extensions.iter().any(|e| e.0 == FRAGMENT))
    }

    /// The frame, link layer first.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        for tag in &self.tags {
            out.extend(tag.to_be_bytes());
            out.extend(100_u16.to_be_bytes());
        }
        out.extend(if self.src.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        });
        out.extend(self.ip_bytes());
        while out.len() < self.padded_to {
            out.push(0xa5);
        }
        out
    }

    /// The packet, IP header first, without padding.
    pub(crate) fn ip_bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let mut out = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut h =
                    vec![0x40 | u8::try_from(self.base_len() / 4).expect("at most 15 words")];
                h.push(self.class);
                h.extend(len16(self.base_len() + transport.len()).to_be_bytes());
                h.extend(self.id.to_be_bytes()[2..].iter());
                let flags =
                    u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13;
                h.extend((flags | self.fragment_offset).to_be_bytes());
                h.extend([self.ttl, self.protocol(), 0, 0]);
                h.extend(src.octets());
                h.extend(dst.octets());
                h.extend(&self.options);
                let sum = checksum(&h);
                h[10..12].copy_from_slice(&sum);
                h
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut h = vec![0x60 | self.class >> 4, self.class << 4, 0, 0];
                h.extend(len16(self.extensions_len() + transport.len()).to_be_bytes());
                h.push(self.extensions.first().map_or(self.protocol(), |e| e.0));
                h.push(self.ttl);
                h.extend(src.octets());
                h.extend(dst.octets());
                h.extend(self.extension_bytes());
                h
            }
            mixed => panic!("two families: {mixed:?}"),
        };
        out.extend(transport);
        out
    }

    /// The frame with an IP length that stops after `carried` bytes behind the fixed IP header. The bytes
    /// beyond stay in the frame as a trailer, or are cut off.
    pub(crate) fn shortened(&self, carried: usize, trailer: bool) -> Vec<u8> {
        let mut out = self.bytes();
        let ip = self.link_len();
        let field = if self.src.is_ipv4() {
            out[ip + 2..ip + 4].copy_from_slice(&len16(self.base_len() + carried).to_be_bytes());
            self.base_len() + carried
        } else {
            out[ip + 4..ip + 6].copy_from_slice(&len16(carried).to_be_bytes());
            40 + carried
        };
        if !trailer {
            out.truncate(ip + field);
        }
        out
    }

    fn extension_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, &(kind, units)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(i + 1).map_or(self.protocol(), |e| e.0);
            if kind == FRAGMENT {
                out.extend([next, 0]);
                out.extend(
                    (self.fragment_offset << 3 | u16::from(self.more_fragments)).to_be_bytes(),
                );
                out.extend(self.id.to_be_bytes());
            } else {
                let len = if kind == AUTHENTICATION {
                    2 * units - 2
                } else {
                    units - 1
                };
                out.extend([next, len]);
                out.resize(out.len() + 8 * usize::from(units) - 2, 0x11);
            }
        }
        out
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let sum_at = match &self.transport {
            Transport::Tcp {
                src,
                dst,
                seq,
                ack,
                flags,
                window,
                options,
            } => {
                out.extend(src.to_be_bytes());
                out.extend(dst.to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                out.extend([
                    u8::try_from(5 + options.len() / 4).expect("at most 15 words") << 4,
                    *flags,
                ]);
                out.extend(window.to_be_bytes());
                out.extend([0; 4]);
                out.extend(options);
                Some(16)
            }
            Transport::Udp { src, dst } | Transport::UdpLite { src, dst } => {
                out.extend(src.to_be_bytes());
                out.extend(dst.to_be_bytes());
                out.extend(len16(8 + self.payload.len()).to_be_bytes());
                out.extend([0; 2]);
                Some(6)
            }
            Transport::Dccp { src, dst, seq } => {
                out.extend(src.to_be_bytes());
                out.extend(dst.to_be_bytes());
                out.extend([3, 0, 0, 0, 2 << 1, seq.to_be_bytes()[1]]);
                out.extend(&seq.to_be_bytes()[2..]);
                Some(6)
            }
            Transport::Sctp { src, dst, tag } => {
                out.extend(src.to_be_bytes());
                out.extend(dst.to_be_bytes());
                out.extend(tag.to_be_bytes());
                // In place of the CRC32c; it changes as that does.
                out.extend(checksum(&out));
                out.extend([0x5a; 2]);
                None
            }
            Transport::Icmp { kind, code, rest } => {
                out.extend([*kind, *code, 0, 0]);
                out.extend(rest);
                Some(2)
            }
            Transport::Raw(_) => None,
        };
        out.extend(&self.payload);
        if let Some(at) = sum_at {
            let mut summed = Vec::new();
            if self.protocol() != ICMP {
                summed.extend(addr(self.src).0);
                summed.extend(addr(self.dst).0);
                summed.extend([0, self.protocol()]);
                summed.extend(len16(out.len()).to_be_bytes());
            }
            summed.extend(&out);
            out[at..at + 2].copy_from_slice(&checksum(&summed));
        }
        out
    }

    /// Source port and destination port as the flow key has them.
    pub(crate) fn ports(&self) -> (u16, u16) {
        match self.transport {
            Transport::Tcp { src, dst, .. }
            | Transport::Udp { src, dst }
            | Transport::UdpLite { src, dst }
            | Transport::Dccp { src, dst, .. }
            | Transport::Sctp { src, dst, .. } => (src, dst),
            Transport::Icmp { kind, code, rest } => {
                let id = if self.is_echo() {
                    u16::from_be_bytes([rest[0], rest[1]])
                } else {
                    0
                };
                (id, u16::from_be_bytes([kind, code]))
            }
            Transport::Raw(_) => (0, 0),
        }
    }

    pub(crate) fn is_echo(&self) -> bool {
        match (&self.transport, self.src) {
            (Transport::Icmp { kind, .. }, IpAddr::V4(_)) => matches!(kind, 0 | 8),
            (Transport::Icmp { kind, .. }, IpAddr::V6(_)) => matches!(kind, 128 | 129),
            _ => false,
        }
    }

    /// What the parser is to say of the frame.
    pub(crate) fn parsed(&self) -> Parsed {
        let (src_port, dst_port) = self.ports();
        let (tcp_flags, tcp_seq) = match self.transport {
            Transport::Tcp { flags, seq, .. } => (flags, seq),
            _ => (0, 0),
        };
        let headers = self.base_len() + self.extensions_len();
        let has_id = self.src.is_ipv4() || self.extensions.iter().any(|e| e.0 == FRAGMENT);
        let transport = self.transport_bytes().len();
        Parsed {
            key: FlowKey {
                src: addr(self.src),
                dst: addr(self.dst),
                src_port,
                dst_port,
                ifindex: 0,
                protocol: self.protocol(),
                family: if self.src.is_ipv4() { 4 } else { 6 },
                origin: 0,
                flags: if self.is_later_fragment() {
                    KEY_FRAGMENT
                } else {
                    0
                },
                padding: 0,
            },
            l3_offset: len32(self.link_len()),
            l3_len: len32(headers + transport),
            l4_offset: len32(self.link_len() + headers),
            payload_len: len32(transport - self.transport_lens().1),
            ip_id: if has_id { (self.id & 0xffff) as u16 } else { 0 },
            fragment_offset: if self.is_later_fragment() {
                self.fragment_offset
            } else {
                0
            },
            tcp_flags,
            icmp_echo: self.is_echo(),
            tcp_seq,
        }
    }
}

pub(crate) fn tcp(src: u16, dst: u16) -> Transport {
    Transport::Tcp {
        src,
        dst,
        seq: 0x1020_3040,
        ack: 0x5060_7080,
        flags: ACK,
        window: 512,
        options: Vec::new(),
    }
}

pub(crate) fn tcp_with_options(src: u16, dst: u16, words: usize) -> Transport {
    Transport::Tcp {
        src,
        dst,
        seq: 0x1020_3040,
        ack: 0x5060_7080,
        flags: ACK,
        window: 512,
        options: vec![1; 4 * words],
    }
}

pub(crate) fn udp(src: u16, dst: u16) -> Transport {
    Transport::Udp { src, dst }
}

pub(crate) fn icmp(kind: u8, code: u8, id: u16, sequence: u16) -> Transport {
    let (id, sequence) = (id.to_be_bytes(), sequence.to_be_bytes());
    Transport::Icmp {
        kind,
        code,
        rest: [id[0], id[1], sequence[0], sequence[1]],
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, a, b] = (!sum).to_be_bytes();
    [a, b]
}

/// One frame of each kind, with a name for messages.
pub(crate) fn kinds() -> Vec<(&'static str, Frame)> {
    let transports = [
        ("tcp", tcp(40000, 443)),
        ("tcp with options", tcp_with_options(40000, 443, 5)),
        ("udp", udp(40000, 53)),
        (
            "udplite",
            Transport::UdpLite {
                src: 40000,
                dst: 53,
            },
        ),
        (
            "dccp",
            Transport::Dccp {
                src: 40000,
                dst: 5001,
                seq: 7,
            },
        ),
        (
            "sctp",
            Transport::Sctp {
                src: 40000,
                dst: 3868,
                tag: 0x0102_0304,
            },
        ),
        ("gre", Transport::Raw(GRE)),
        ("esp", Transport::Raw(ESP)),
    ];
    let mut all = Vec::new();
    for (name, transport) in transports {
        all.push((name, Frame::v4(transport.clone())));
        all.push((name, Frame::v6(transport)));
    }
    all.extend([
        ("icmp echo", Frame::v4(icmp(8, 0, 77, 1))),
        ("icmp error", Frame::v4(icmp(3, 1, 0, 0))),
        ("icmpv6 echo", Frame::v6(icmp(128, 0, 77, 1))),
        ("icmpv6 error", Frame::v6(icmp(1, 4, 0, 0))),
        ("options", Frame::v4(tcp(1, 2)).with_options(1)),
        ("options, the most", Frame::v4(udp(1, 2)).with_options(10)),
        ("vlan", Frame::v4(tcp(1, 2)).tagged(&[VLAN])),
        ("qinq", Frame::v6(udp(1, 2)).tagged(&[QINQ, VLAN])),
        ("extension", Frame::v6(tcp(1, 2)).with_extensions(&[(0, 1)])),
        (
            "extensions",
            Frame::v6(udp(1, 2)).with_extensions(&[(0, 1), (60, 2), (43, 3), (51, 3), (60, 1)]),
        ),
        ("first fragment", Frame::v4(udp(1, 2)).first_fragment()),
        ("first fragment", Frame::v6(udp(1, 2)).first_fragment()),
        (
            "later fragment",
            Frame::v4(udp(1, 2)).later_fragment(185, true),
        ),
        (
            "later fragment",
            Frame::v6(udp(1, 2)).later_fragment(185, true),
        ),
    ]);
    all
}

fn any_transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        4 => (any::<[u16; 3]>(), any::<[u32; 2]>(), any::<u8>(), 0..=10_usize).prop_map(
            |([src, dst, window], [seq, ack], flags, words)| Transport::Tcp {
                src, dst, seq, ack, flags, window, options: vec![1; 4 * words],
            }
        ),
        3 => any::<[u16; 2]>().prop_map(|[src, dst]| Transport::Udp { src, dst }),
        1 => any::<[u16; 2]>().prop_map(|[src, dst]| Transport::UdpLite { src, dst }),
        1 => (any::<[u16; 2]>(), any::<u32>())
            .prop_map(|([src, dst], seq)| Transport::Dccp { src, dst, seq }),
        1 => (any::<[u16; 2]>(), any::<u32>())
            .prop_map(|([src, dst], tag)| Transport::Sctp { src, dst, tag }),
        2 => (prop::sample::select(vec![0, 3, 5, 8, 11, 12, 13, 128, 129, 1, 2, 135]), any::<u8>(), any::<[u8; 4]>())
            .prop_map(|(kind, code, rest)| Transport::Icmp { kind, code, rest }),
        1 => prop::sample::select(vec![GRE, ESP, 4, 41, 59, 89, 112]).prop_map(Transport::Raw),
    ]
}

fn any_addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<[[u8; 4]; 2]>().prop_map(|[a, b]| (a.into(), b.into())),
        any::<[[u8; 16]; 2]>().prop_map(|[a, b]| (a.into(), b.into())),
    ]
}

prop_compose! {
    /// Any frame that the parser accepts.
    pub(crate) fn any_frame()(
        tags in prop_oneof![3 => Just(vec![]), 2 => prop::collection::vec(prop::sample::select(vec![VLAN, QINQ]), 1..=2)],
        (src, dst) in any_addresses(),
        [ttl, class] in any::<[u8; 2]>(),
        id in any::<u32>(),
        (dont_fragment, later, more_fragments) in prop_oneof![
            4 => any::<bool>().prop_map(|d| (d, 0, false)),
            1 => (Just(false), prop_oneof![Just(0), 1..0x1fff_u16], any::<bool>()),
        ],
        option_words in prop_oneof![3 => Just(0), 1 => 1..=10_usize],
        extensions in prop_oneof![
            3 => Just(vec![]),
            1 => prop::collection::vec((prop::sample::select(PLAIN_EXTENSIONS.to_vec()), 1..4_u8), 1..=7),
        ],
        fragment_header in any::<bool>(),
        transport in any_transport(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
        padded in any::<bool>(),
    ) -> Frame {
        let mut frame = Frame {
            tags, src, dst, ttl, class, id, dont_fragment, more_fragments,
            fragment_offset: 0,
            options: vec![1; 4 * option_words],
            extensions: if src.is_ipv6() { extensions } else { vec![] },
            transport, payload,
            padded_to: if padded { 60 } else { 0 },
        };
        if src.is_ipv6() && (fragment_header || later != 0 || more_fragments) {
            frame.extensions.push((FRAGMENT, 1));
        }
        if later != 0 {
            frame.fragment_offset = later;
            frame.transport = Transport::Raw(frame.protocol());
        }
        frame
    }
}

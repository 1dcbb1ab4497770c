//! What the parser reads from frames of every kind, and why it refuses the others.

mod frames;

use aksnet_common::{
    flow::{Addr, FlowKey, KEY_FRAGMENT},
    packet::{
        ACK, DCCP, ICMP, ICMPV6, Link, Packet, Parsed, SCTP, SYN, TCP, UDP, UDPLITE, parse,
        parse_any, parse_common,
    },
    stats::Skip,
};
use frames::{
    ESP, FRAGMENT, Frame, GRE, PLAIN_EXTENSIONS, QINQ, Transport, VLAN, any_frame, cases, icmp, ip,
    kinds, len32, tcp, tcp_with_options, udp,
};
use pnet::packet::{
    Packet as _, ethernet::EthernetPacket, ethernet::MutableEthernetPacket,
    ip::IpNextHeaderProtocol, ipv4::Ipv4Packet, ipv4::MutableIpv4Packet, ipv6::Ipv6Packet,
    ipv6::MutableIpv6Packet, tcp::MutableTcpPacket, tcp::TcpPacket, udp::MutableUdpPacket,
    udp::UdpPacket,
};
use proptest::prelude::*;

fn ethernet(bytes: &[u8]) -> Result<Parsed, Skip> {
    parse(&bytes, Link::Ethernet)
}

fn bare_ip(bytes: &[u8]) -> Result<Parsed, Skip> {
    parse(&bytes, Link::Ip)
}

/// Bytes of which none are at hand in place, as in a packet whose headers lie in fragments.
struct Scattered<'a>(&'a [u8]);

impl Packet for Scattered<'_> {
    type Head<'a>
        = &'a [u8]
    where
        Self: 'a;

    fn len(&self) -> u32 {
        Packet::len(&self.0)
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.read(offset)
    }

    fn head<const N: usize>(&self) -> Option<&[u8]> {
        None
    }
}

/// What every frame from 10.244.1.7 to 10.0.96.10 has, without options and tags, with 23 bytes of payload.
fn v4(protocol: u8, header: u32) -> Parsed {
    Parsed {
        key: FlowKey {
            src: Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, 1, 7]),
            dst: Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 96, 10]),
            protocol,
            family: 4,
            ..FlowKey::default()
        },
        l3_offset: 14,
        l3_len: 20 + header + 23,
        l4_offset: 34,
        payload_len: 23,
        ip_id: 0x1234,
        fragment_offset: 0,
        tcp_flags: 0,
        icmp_echo: false,
        tcp_seq: 0,
    }
}

/// What every frame from `fd00:10:244::7` to `2001:db8::a` has.
fn v6(protocol: u8, header: u32) -> Parsed {
    Parsed {
        key: FlowKey {
            src: Addr([0xfd, 0, 0, 0x10, 2, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]),
            dst: Addr([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa]),
            protocol,
            family: 6,
            ..FlowKey::default()
        },
        l3_len: 40 + header + 23,
        l4_offset: 54,
        ip_id: 0,
        ..v4(protocol, header)
    }
}

impl Ports for Parsed {
    fn ports(mut self, src: u16, dst: u16) -> Self {
        self.key.src_port = src;
        self.key.dst_port = dst;
        self
    }
}

trait Ports {
    fn ports(self, src: u16, dst: u16) -> Self;
}

fn assert_reads(frame: &Frame, expected: Parsed) {
    assert_eq!(ethernet(&frame.bytes()), Ok(expected), "{frame:?}");
    assert_eq!(
        frame.parsed(),
        expected,
        "the builder's own view of {frame:?}"
    );
}

// Every header kind.

#[test]
fn tcp_gives_ports_flags_and_sequence() {
    let seen = Parsed {
        tcp_flags: ACK,
        tcp_seq: 0x1020_3040,
        ..v4(TCP, 20)
    };
    assert_reads(&Frame::v4(tcp(40000, 443)), seen.ports(40000, 443));
    let seen = Parsed {
        tcp_flags: ACK,
        tcp_seq: 0x1020_3040,
        ..v6(TCP, 20)
    };
    assert_reads(&Frame::v6(tcp(40000, 443)), seen.ports(40000, 443));
}

#[test]
fn tcp_flag_byte_is_taken_whole() {
    for flags in 0..=255 {
        let frame = Frame::v6(Transport::Tcp {
            src: 1,
            dst: 2,
            seq: 3,
            ack: 4,
            flags,
            window: 5,
            options: vec![],
        });
        let seen = ethernet(&frame.bytes()).map(|p| p.tcp_flags);
        assert_eq!(seen, Ok(flags));
    }
}

#[test]
fn tcp_options_are_not_payload() {
    let seen = Parsed {
        tcp_flags: ACK,
        tcp_seq: 0x1020_3040,
        ..v4(TCP, 60)
    };
    assert_reads(&Frame::v4(tcp_with_options(1, 2, 10)), seen.ports(1, 2));
    let seen = Parsed {
        tcp_flags: ACK,
        tcp_seq: 0x1020_3040,
        ..v6(TCP, 32)
    };
    assert_reads(&Frame::v6(tcp_with_options(1, 2, 3)), seen.ports(1, 2));
}

#[test]
fn udp_gives_ports() {
    assert_reads(&Frame::v4(udp(40000, 53)), v4(UDP, 8).ports(40000, 53));
    assert_reads(&Frame::v6(udp(40000, 53)), v6(UDP, 8).ports(40000, 53));
}

#[test]
fn udplite_gives_ports() {
    let transport = Transport::UdpLite { src: 1, dst: 2 };
    assert_reads(&Frame::v4(transport.clone()), v4(UDPLITE, 8).ports(1, 2));
    assert_reads(&Frame::v6(transport), v6(UDPLITE, 8).ports(1, 2));
}

#[test]
fn sctp_gives_ports() {
    let transport = Transport::Sctp {
        src: 1,
        dst: 2,
        tag: 3,
    };
    assert_reads(&Frame::v4(transport.clone()), v4(SCTP, 12).ports(1, 2));
    assert_reads(&Frame::v6(transport), v6(SCTP, 12).ports(1, 2));
}

#[test]
fn dccp_gives_ports() {
    let transport = Transport::Dccp {
        src: 1,
        dst: 2,
        seq: 3,
    };
    assert_reads(&Frame::v4(transport.clone()), v4(DCCP, 12).ports(1, 2));
    assert_reads(&Frame::v6(transport), v6(DCCP, 12).ports(1, 2));
}

#[test]
fn echo_gives_its_identifier_type_and_code() {
    for kind in [8, 0] {
        let seen = Parsed {
            icmp_echo: true,
            ..v4(ICMP, 8)
        };
        let code = u16::from(kind) << 8;
        assert_reads(&Frame::v4(icmp(kind, 0, 77, 5)), seen.ports(77, code));
    }
    for kind in [128, 129] {
        let seen = Parsed {
            icmp_echo: true,
            ..v6(ICMPV6, 8)
        };
        let code = u16::from(kind) << 8;
        assert_reads(&Frame::v6(icmp(kind, 0, 77, 5)), seen.ports(77, code));
    }
}

#[test]
fn other_icmp_messages_give_type_and_code_only() {
    assert_reads(
        &Frame::v4(icmp(3, 4, 0, 1400)),
        v4(ICMP, 8).ports(0, 0x0304),
    );
    assert_reads(
        &Frame::v4(icmp(128, 0, 77, 5)),
        v4(ICMP, 8).ports(0, 0x8000),
    );
    assert_reads(
        &Frame::v6(icmp(2, 0, 0, 1400)),
        v6(ICMPV6, 8).ports(0, 0x0200),
    );
    assert_reads(
        &Frame::v6(icmp(8, 0, 77, 5)),
        v6(ICMPV6, 8).ports(0, 0x0800),
    );
}

#[test]
fn the_other_family_s_icmp_is_a_protocol_by_number() {
    assert_reads(&Frame::v4(Transport::Raw(ICMPV6)), v4(ICMPV6, 0));
    assert_reads(&Frame::v6(Transport::Raw(ICMP)), v6(ICMP, 0));
}

#[test]
fn protocols_without_a_known_header_have_no_ports() {
    for protocol in [GRE, ESP, 4, 41, 89, 112, 255] {
        assert_reads(&Frame::v4(Transport::Raw(protocol)), v4(protocol, 0));
        assert_reads(&Frame::v6(Transport::Raw(protocol)), v6(protocol, 0));
    }
}

#[test]
fn ipv6_without_next_header_is_protocol_59() {
    assert_reads(
        &Frame::v6(Transport::Raw(59)).with_payload(&[]),
        Parsed {
            payload_len: 0,
            l3_len: 40,
            ..v6(59, 0)
        },
    );
}

#[test]
fn ipv4_options_are_skipped() {
    for words in [1_u32, 3, 10] {
        let frame = Frame::v4(udp(1, 2)).with_options(words as usize);
        let seen = v4(UDP, 8).ports(1, 2);
        assert_reads(
            &frame,
            Parsed {
                l3_len: seen.l3_len + 4 * words,
                l4_offset: seen.l4_offset + 4 * words,
                ..seen
            },
        );
    }
}

#[test]
fn one_and_two_vlan_tags_are_skipped() {
    for tags in [&[VLAN][..], &[QINQ], &[QINQ, VLAN], &[VLAN, VLAN]] {
        let tagged = 4 * len32(tags.len());
        let seen = Parsed {
            tcp_flags: ACK,
            tcp_seq: 0x1020_3040,
            ..v6(TCP, 20)
        }
        .ports(1, 2);
        assert_reads(
            &Frame::v6(tcp(1, 2)).tagged(tags),
            Parsed {
                l3_offset: 14 + tagged,
                l4_offset: 54 + tagged,
                ..seen
            },
        );
        let seen = v4(UDP, 8).ports(1, 2);
        assert_reads(
            &Frame::v4(udp(1, 2)).tagged(tags),
            Parsed {
                l3_offset: 14 + tagged,
                l4_offset: 34 + tagged,
                ..seen
            },
        );
    }
}

#[test]
fn each_ipv6_extension_header_is_walked() {
    for kind in PLAIN_EXTENSIONS {
        for units in [1_u8, 2, 5] {
            let frame = Frame::v6(udp(1, 2)).with_extensions(&[(kind, units)]);
            let seen = v6(UDP, 8).ports(1, 2);
            let extension = 8 * u32::from(units);
            assert_reads(
                &frame,
                Parsed {
                    l3_len: seen.l3_len + extension,
                    l4_offset: 54 + extension,
                    ..seen
                },
            );
        }
    }
}

#[test]
fn eight_ipv6_extension_headers_are_walked() {
    let frame = Frame::v6(tcp(1, 2)).with_extensions(&[(60, 1); 8]);
    let seen = Parsed {
        tcp_flags: ACK,
        tcp_seq: 0x1020_3040,
        ..v6(TCP, 20)
    }
    .ports(1, 2);
    assert_reads(
        &frame,
        Parsed {
            l3_len: seen.l3_len + 64,
            l4_offset: 54 + 64,
            ..seen
        },
    );
}

#[test]
fn first_fragment_has_ports() {
    assert_reads(
        &Frame::v4(udp(1, 2)).first_fragment(),
        v4(UDP, 8).ports(1, 2),
    );
    assert_reads(
        &Frame::v6(udp(1, 2)).first_fragment(),
        Parsed {
            l3_len: 79,
            l4_offset: 62,
            ip_id: 0x1234,
            ..v6(UDP, 8).ports(1, 2)
        },
    );
}

#[test]
fn first_fragment_may_end_within_the_tcp_options() {
    let frame = Frame::v4(tcp_with_options(1, 2, 5)).first_fragment();
    let seen = Parsed {
        tcp_flags: ACK,
        tcp_seq: 0x1020_3040,
        ..v4(TCP, 4)
    };
    assert_eq!(
        ethernet(&frame.shortened(24, false)),
        Ok(Parsed {
            payload_len: 0,
            l3_len: 44,
            ..seen
        }
        .ports(1, 2))
    );
}

#[test]
fn later_fragment_has_no_ports_and_is_marked() {
    for more in [true, false] {
        for transport in [tcp(1, 2), udp(1, 2), icmp(8, 0, 3, 4)] {
            let frame = Frame::v4(transport.clone()).later_fragment(185, more);
            let mut seen = Parsed {
                fragment_offset: 185,
                ..v4(frame.protocol(), 0)
            };
            seen.key.flags = KEY_FRAGMENT;
            assert_reads(&frame, seen);
        }
        for transport in [tcp(1, 2), udp(1, 2), icmp(128, 0, 3, 4)] {
            let frame = Frame::v6(transport).later_fragment(185, more);
            let mut seen = Parsed {
                fragment_offset: 185,
                ..v6(frame.protocol(), 0)
            };
            seen.key.flags = KEY_FRAGMENT;
            seen.l3_len += 8;
            seen.l4_offset += 8;
            seen.ip_id = 0x1234;
            assert_reads(&frame, seen);
        }
    }
}

#[test]
fn later_fragment_of_one_byte_is_read() {
    let frame = Frame::v4(tcp(1, 2))
        .later_fragment(1, false)
        .with_payload(&[9])
        .padded();
    let mut seen = Parsed {
        fragment_offset: 1,
        l3_len: 21,
        payload_len: 1,
        ..v4(TCP, 0)
    };
    seen.key.flags = KEY_FRAGMENT;
    assert_reads(&frame, seen);
}

#[test]
fn headers_behind_a_later_fragment_are_data() {
    // The fragment's first bytes would be a destination options header of 2048 bytes.
    let mut frame = Frame::v6(Transport::Raw(60)).later_fragment(5, true);
    frame.payload = vec![0xff; 24];
    let seen = ethernet(&frame.bytes()).expect("readable");
    assert_eq!((seen.key.protocol, seen.payload_len), (60, 24));
}

#[test]
fn atomic_fragment_is_a_whole_packet() {
    let mut frame = Frame::v6(udp(1, 2)).first_fragment();
    frame.more_fragments = false;
    assert_reads(
        &frame,
        Parsed {
            l3_len: 79,
            l4_offset: 62,
            ip_id: 0x1234,
            ..v6(UDP, 8).ports(1, 2)
        },
    );
}

#[test]
fn padding_is_not_payload() {
    let frame = Frame::v4(udp(1, 2)).with_payload(b"ab").padded();
    assert_eq!(frame.bytes().len(), 60);
    assert_reads(
        &frame,
        Parsed {
            l3_len: 30,
            payload_len: 2,
            ..v4(UDP, 8)
        }
        .ports(1, 2),
    );
    let frame = Frame::v4(Transport::Raw(ESP)).with_payload(b"").padded();
    assert_reads(
        &frame,
        Parsed {
            l3_len: 20,
            payload_len: 0,
            ..v4(ESP, 0)
        },
    );
}

#[test]
fn super_packet_beyond_64_kib_has_the_length_of_its_frame() {
    // BIG TCP: the length field of a GSO packet that it cannot hold is 0.
    let mut frame = Frame::v4(tcp(1, 2)).bytes();
    frame.resize(14 + 150_000, 0);
    frame[16..18].copy_from_slice(&[0, 0]);
    let seen = ethernet(&frame).expect("readable");
    assert_eq!((seen.l3_len, seen.payload_len), (150_000, 150_000 - 40));

    let mut frame = Frame::v6(tcp(1, 2)).bytes();
    frame.resize(14 + 150_000, 0);
    frame[18..20].copy_from_slice(&[0, 0]);
    let seen = ethernet(&frame).expect("readable");
    assert_eq!((seen.l3_len, seen.payload_len), (150_000, 150_000 - 60));

    // With the jumbo payload option that some kernels put before it.
    let mut frame = Frame::v6(tcp(1, 2)).with_extensions(&[(0, 1)]).bytes();
    frame.resize(14 + 150_000, 0);
    frame[18..20].copy_from_slice(&[0, 0]);
    let seen = ethernet(&frame).expect("readable");
    assert_eq!(
        (seen.l3_len, seen.payload_len, seen.l4_offset),
        (150_000, 150_000 - 68, 62)
    );
}

// Every reason to refuse.

#[test]
fn other_ethernet_types_are_not_ip() {
    for kind in [0x0806_u16, 0x88cc, 0x8847, 0x05dc, 0] {
        for tags in [&[][..], &[VLAN], &[QINQ, VLAN]] {
            let frame = Frame::v4(tcp(1, 2)).tagged(tags);
            let mut bytes = frame.bytes();
            let at = frame.link_len() - 2;
            bytes[at..at + 2].copy_from_slice(&kind.to_be_bytes());
            assert_eq!(ethernet(&bytes), Err(Skip::NotIp));
        }
    }
}

#[test]
fn bare_packet_of_another_version_is_not_ip() {
    for version in (0..16_u8).filter(|v| !matches!(v, 4 | 6)) {
        let mut bytes = Frame::v4(tcp(1, 2)).ip_bytes();
        bytes[0] = version << 4 | 5;
        assert_eq!(bare_ip(&bytes), Err(Skip::NotIp));
    }
}

#[test]
fn third_vlan_tag_is_too_many() {
    let frame = Frame::v4(tcp(1, 2)).tagged(&[QINQ, VLAN, VLAN]);
    assert_eq!(ethernet(&frame.bytes()), Err(Skip::TooManyTags));
}

#[test]
fn version_other_than_announced_is_bad() {
    for version in (0..16_u8).filter(|&v| v != 4) {
        let mut bytes = Frame::v4(tcp(1, 2)).bytes();
        bytes[14] = version << 4 | 5;
        assert_eq!(ethernet(&bytes), Err(Skip::BadVersion));
    }
    for version in (0..16_u8).filter(|&v| v != 6) {
        let mut bytes = Frame::v6(tcp(1, 2)).bytes();
        bytes[14] = version << 4;
        assert_eq!(ethernet(&bytes), Err(Skip::BadVersion));
    }
}

#[test]
fn ipv4_header_below_five_words_is_bad() {
    for words in 0..5 {
        let mut bytes = Frame::v4(tcp(1, 2)).bytes();
        bytes[14] = 0x40 | words;
        assert_eq!(ethernet(&bytes), Err(Skip::BadLength));
    }
}

#[test]
fn ipv4_length_below_its_header_is_bad() {
    for total in 0..28 {
        let mut bytes = Frame::v4(tcp(1, 2)).with_options(2).bytes();
        bytes[16..18].copy_from_slice(&u16::to_be_bytes(total));
        assert_eq!(ethernet(&bytes), Err(Skip::BadLength));
    }
}

#[test]
fn ipv4_header_beyond_its_length_is_bad() {
    let mut bytes = Frame::v4(Transport::Raw(ESP))
        .with_payload(&[0; 20])
        .bytes();
    bytes[14] = 0x4f;
    assert_eq!(ethernet(&bytes), Err(Skip::BadLength));
}

#[test]
fn length_beyond_the_frame_is_truncated() {
    for frame in [Frame::v4(udp(1, 2)), Frame::v6(udp(1, 2))] {
        let at = if frame.src.is_ipv4() { 17 } else { 19 };
        let mut bytes = frame.bytes();
        bytes[at] += 1;
        assert_eq!(ethernet(&bytes), Err(Skip::TruncatedIp));
    }
}

#[test]
fn nine_ipv6_extension_headers_are_too_many() {
    let frame = Frame::v6(tcp(1, 2)).with_extensions(&[(60, 1); 9]);
    assert_eq!(ethernet(&frame.bytes()), Err(Skip::TooManyExtensions));
    let frame = Frame::v6(tcp(1, 2))
        .with_extensions(&[(60, 1); 8])
        .first_fragment();
    assert_eq!(ethernet(&frame.bytes()), Err(Skip::TooManyExtensions));
}

#[test]
fn tcp_data_offset_below_five_is_bad() {
    for frame in [
        Frame::v4(tcp(1, 2)),
        Frame::v6(tcp(1, 2)),
        Frame::v4(tcp(1, 2)).first_fragment(),
    ] {
        for words in 0..5 {
            let mut bytes = frame.bytes();
            bytes[frame.link_len() + frame.base_len() + 12] = words << 4;
            assert_eq!(ethernet(&bytes), Err(Skip::BadTransport));
        }
    }
}

#[test]
fn tcp_data_offset_beyond_the_packet_is_bad() {
    for frame in [Frame::v4(tcp(1, 2)), Frame::v6(tcp(1, 2))] {
        let frame = frame.with_payload(b"").padded();
        let mut bytes = frame.bytes();
        bytes[frame.link_len() + frame.base_len() + 12] = 6 << 4;
        assert_eq!(ethernet(&bytes), Err(Skip::BadTransport));
    }
}

// Truncation.

#[test]
fn every_frame_cut_short_is_truncated_where_it_ends() {
    for (name, frame) in kinds() {
        let bytes = frame.bytes();
        for cut in 0..bytes.len() {
            let reason = if cut < frame.link_len() {
                Skip::TruncatedLink
            } else {
                Skip::TruncatedIp
            };
            assert_eq!(
                ethernet(&bytes[..cut]),
                Err(reason),
                "{name}: {cut} of {} bytes",
                bytes.len()
            );
        }
        assert!(ethernet(&bytes).is_ok(), "{name}");
    }
}

#[test]
fn every_bare_packet_cut_short_is_truncated() {
    for (name, frame) in kinds() {
        let bytes = frame.ip_bytes();
        for cut in 0..bytes.len() {
            assert_eq!(
                bare_ip(&bytes[..cut]),
                Err(Skip::TruncatedIp),
                "{name}: {cut} of {}",
                bytes.len()
            );
        }
        assert!(bare_ip(&bytes).is_ok(), "{name}");
    }
}

#[test]
fn every_header_that_the_ip_length_cuts_is_truncated_whatever_trails() {
    for (name, frame) in kinds() {
        let extensions = frame.extensions_len();
        let (least, header) = frame.transport_lens();
        for carried in 0..=extensions + header {
            let (reason, first) = if carried < extensions {
                (Some(Skip::TruncatedIp), false)
            } else if carried < extensions + least {
                (Some(Skip::TruncatedTransport), false)
            } else if carried < extensions + header {
                (Some(Skip::BadTransport), frame.more_fragments)
            } else {
                (None, false)
            };
            for trailer in [true, false] {
                let seen = ethernet(&frame.shortened(carried, trailer));
                if let Some(reason) = reason
                    && !first
                {
                    assert_eq!(
                        seen,
                        Err(reason),
                        "{name}: {carried} bytes, trailer {trailer}"
                    );
                } else {
                    let seen = seen.unwrap_or_else(|e| panic!("{name}: {carried} bytes: {e:?}"));
                    assert_eq!(seen.payload_len, 0, "{name}: {carried} bytes");
                }
            }
        }
    }
}

// Agreement.

#[test]
fn bare_packet_is_read_as_its_frame_is() {
    for (name, frame) in kinds() {
        let link = len32(frame.link_len());
        let framed = ethernet(&frame.bytes()).expect(name);
        let bare = bare_ip(&frame.ip_bytes()).expect(name);
        assert_eq!(
            bare,
            Parsed {
                l3_offset: 0,
                l4_offset: framed.l4_offset - link,
                ..framed
            },
            "{name}"
        );
    }
}

#[test]
fn common_shapes_take_the_fast_path_and_no_other_does() {
    let plain = [tcp(1, 2), tcp_with_options(1, 2, 10), udp(1, 2)];
    for transport in plain {
        for frame in [Frame::v4(transport.clone()), Frame::v6(transport)] {
            assert!(parse_common(&&frame.bytes()[..]).is_some(), "{frame:?}");
            assert!(parse_common(&&frame.clone().with_payload(b"").padded().bytes()[..]).is_some());
        }
    }
    for (name, frame) in kinds() {
        let common = matches!(
            frame.transport,
            Transport::Tcp { .. } | Transport::Udp { .. }
        ) && frame.tags.is_empty()
            && frame.options.is_empty()
            && frame.extensions.is_empty()
            && !frame.more_fragments;
        assert_eq!(
            parse_common(&&frame.bytes()[..]).is_some(),
            common,
            "{name}"
        );
    }
}

/// What holds for whatever bytes: the lengths lie within each other, and both paths say the same.
fn assert_sound(bytes: &[u8]) {
    let len = len32(bytes.len());
    for link in [Link::Ethernet, Link::Ip] {
        let seen = parse(&bytes, link);
        assert_eq!(
            seen,
            parse_any(&bytes, link),
            "the fast path differs for {bytes:02x?}"
        );
        assert_eq!(
            seen,
            parse(&Scattered(bytes), link),
            "scattered: {bytes:02x?}"
        );
        let Ok(p) = seen else { continue };
        assert!(p.l3_offset < p.l4_offset, "{p:?}");
        assert!(p.l3_offset + p.l3_len <= len, "{p:?}");
        assert!(
            p.l4_offset + p.payload_len <= p.l3_offset + p.l3_len,
            "{p:?}"
        );
        if p.key.flags & KEY_FRAGMENT != 0 {
            assert_eq!(
                (p.key.src_port, p.key.dst_port, p.tcp_flags, p.tcp_seq),
                (0, 0, 0, 0)
            );
        } else {
            let header = match p.key.protocol {
                TCP => 20,
                UDP | UDPLITE => 8,
                SCTP | DCCP => 12,
                _ => 0,
            };
            assert!(
                p.l4_offset + header <= p.l3_offset + p.l3_len,
                "ports from beyond the packet: {p:?}"
            );
        }
        assert_eq!((p.key.ifindex, p.key.origin, p.key.padding), (0, 0, 0));
    }
    if let Some(common) = parse_common(&bytes) {
        assert_eq!(
            Ok(common),
            parse_any(&bytes, Link::Ethernet),
            "{bytes:02x?}"
        );
    }
}

/// Bytes to overwrite, most of them within the headers.
fn any_damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(cases(4096))]

    #[test]
    fn any_valid_frame_is_read_as_it_was_built(frame in any_frame()) {
        prop_assert_eq!(ethernet(&frame.bytes()), Ok(frame.parsed()));
        assert_sound(&frame.bytes());
        let bare = bare_ip(&frame.ip_bytes()).expect("readable");
        prop_assert_eq!((bare.key, bare.l3_len, bare.payload_len),
            (frame.parsed().key, frame.parsed().l3_len, frame.parsed().payload_len));
    }

    #[test]
    fn any_damaged_frame_is_read_soundly(frame in any_frame(), damage in any_damage(), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
        let mut bytes = frame.bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        assert_sound(&bytes);
    }

    #[test]
    fn any_bytes_are_read_soundly(mut bytes in prop::collection::vec(any::<u8>(), 0..160), kind in 0..6_usize, version in any::<bool>()) {
        assert_sound(&bytes);
        // Most random bytes are not IP: steer them deeper.
        let (ethernet_type, first) = [([0x08, 0x00], 0x45), ([0x86, 0xdd], 0x60)][kind & 1];
        if bytes.len() > 14 && kind < 4 {
            bytes[12..14].copy_from_slice(&ethernet_type);
            if version {
                bytes[14] = first;
                let payload = bytes.len() - 14;
                let at = if first == 0x45 { 16 } else { 18 };
                if bytes.len() > at + 1 {
                    bytes[at] = 0;
                    bytes[at + 1] %= u8::try_from(payload).expect("below 160");
                }
            }
            assert_sound(&bytes);
        }
    }

    #[test]
    fn any_extension_chain_is_walked_or_refused(kinds in prop::collection::vec(prop::sample::select(vec![0_u8, 43, 44, 60, 135, 139, 140, 51]), 0..12), cut in 0..200_usize) {
        let chain: Vec<_> = kinds.iter().map(|&k| (k, if k == 51 { 2 } else { 1 })).collect();
        let frame = Frame::v6(udp(1, 2)).with_extensions(&chain);
        let seen = ethernet(&frame.bytes());
        if chain.len() > 8 {
            prop_assert_eq!(seen, Err(Skip::TooManyExtensions));
        } else {
            prop_assert_eq!(seen, Ok(frame.parsed()));
        }
        let bytes = frame.bytes();
        assert_sound(&bytes[..cut.min(bytes.len())]);
    }
}

// pnet as the second opinion.

fn pnet_ports(protocol: u8, transport: &[u8]) -> (u16, u16, u8, u32, usize) {
    if protocol == TCP {
        let t = TcpPacket::new(transport).expect("TCP");
        (
            t.get_source(),
            t.get_destination(),
            t.get_flags(),
            t.get_sequence(),
            t.payload().len(),
        )
    } else {
        let u = UdpPacket::new(transport).expect("UDP");
        (u.get_source(), u.get_destination(), 0, 0, u.payload().len())
    }
}

fn pnet_agrees(frame: &[u8], protocol: u8) {
    let ours = ethernet(frame).expect("readable");
    let link = EthernetPacket::new(frame).expect("Ethernet");
    let (src, dst, seen, transport, total): (std::net::IpAddr, std::net::IpAddr, _, _, _) =
        if link.get_ethertype().0 == 0x0800 {
            let p = Ipv4Packet::new(link.payload()).expect("IPv4");
            assert_eq!(ours.ip_id, p.get_identification());
            let total = u32::from(p.get_total_length());
            (
                p.get_source().into(),
                p.get_destination().into(),
                p.get_next_level_protocol(),
                p.payload().to_vec(),
                total,
            )
        } else {
            let p = Ipv6Packet::new(link.payload()).expect("IPv6");
            let total = 40 + u32::from(p.get_payload_length());
            (
                p.get_source().into(),
                p.get_destination().into(),
                p.get_next_header(),
                p.payload().to_vec(),
                total,
            )
        };
    assert_eq!(seen.0, protocol);
    assert_eq!(ours.key.protocol, protocol);
    assert_eq!(
        (ours.key.src, ours.key.dst),
        (frames::addr(src), frames::addr(dst))
    );
    assert_eq!(ours.l3_len, total);
    let (src_port, dst_port, flags, seq, payload) = pnet_ports(protocol, &transport);
    assert_eq!((ours.key.src_port, ours.key.dst_port), (src_port, dst_port));
    assert_eq!((ours.tcp_flags, ours.tcp_seq), (flags, seq));
    assert_eq!(ours.payload_len, len32(payload));
}

/// A transport header written by pnet.
fn pnet_transport(
    protocol: u8,
    ports: [u16; 2],
    seq: u32,
    flags: u8,
    words: u8,
    payload: &[u8],
) -> Vec<u8> {
    let header = if protocol == TCP {
        20 + 4 * usize::from(words)
    } else {
        8
    };
    let mut bytes = vec![0; header + payload.len()];
    bytes[header..].copy_from_slice(payload);
    if protocol == TCP {
        let mut t = MutableTcpPacket::new(&mut bytes).expect("room");
        t.set_source(ports[0]);
        t.set_destination(ports[1]);
        t.set_sequence(seq);
        t.set_acknowledgement(!seq);
        t.set_data_offset(5 + words);
        t.set_flags(flags);
        t.set_window(1000);
    } else {
        let mut u = MutableUdpPacket::new(&mut bytes).expect("room");
        u.set_source(ports[0]);
        u.set_destination(ports[1]);
        u.set_length(frames::len16(header + payload.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(cases(2048))]

    #[test]
    fn pnet_reads_the_same_from_what_it_wrote(
        v4 in any::<bool>(), is_tcp in any::<bool>(), addresses in any::<[[u8; 16]; 2]>(), ports in any::<[u16; 2]>(),
        id in any::<u16>(), seq in any::<u32>(), flags in any::<u8>(), [ip_words, tcp_words] in [0..=10_u8, 0..=10],
        payload in prop::collection::vec(any::<u8>(), 0..80), padding in 0..20_usize,
    ) {
        let protocol = if is_tcp { TCP } else { UDP };
        let transport = pnet_transport(protocol, ports, seq, flags, tcp_words, &payload);
        let header = if v4 { 20 + 4 * usize::from(ip_words) } else { 40 };
        let mut frame = vec![0; 14 + header + transport.len() + padding];
        let mut link = MutableEthernetPacket::new(&mut frame).expect("room");
        link.set_ethertype(pnet::packet::ethernet::EtherType(if v4 { 0x0800 } else { 0x86dd }));
        let l3 = &mut frame[14..];
        if v4 {
            let mut p = MutableIpv4Packet::new(l3).expect("room");
            p.set_version(4);
            p.set_header_length(5 + ip_words);
            p.set_total_length(frames::len16(header + transport.len()));
            p.set_identification(id);
            p.set_next_level_protocol(IpNextHeaderProtocol(protocol));
            let [a, b] = addresses.map(|a| <[u8; 4]>::try_from(&a[..4]).expect("four"));
            p.set_source(a.into());
            p.set_destination(b.into());
        } else {
            let mut p = MutableIpv6Packet::new(l3).expect("room");
            p.set_version(6);
            p.set_payload_length(frames::len16(transport.len()));
            p.set_next_header(IpNextHeaderProtocol(protocol));
            let [a, b] = addresses;
            p.set_source(a.into());
            p.set_destination(b.into());
        }
        l3[header..header + transport.len()].copy_from_slice(&transport);
        pnet_agrees(&frame, protocol);
    }

    #[test]
    fn pnet_reads_the_same_from_what_the_builders_wrote(any in any_frame(), ports in any::<[u16; 2]>(), is_tcp in any::<bool>()) {
        // pnet knows neither tags nor extension headers as part of IP.
        let transport = if is_tcp { tcp_with_options(ports[0], ports[1], 3) } else { udp(ports[0], ports[1]) };
        let frame = Frame {
            tags: vec![],
            extensions: vec![],
            fragment_offset: 0,
            more_fragments: false,
            transport,
            ..any
        };
        pnet_agrees(&frame.bytes(), frame.protocol());
    }
}

#[test]
fn syn_of_a_small_frame_is_common() {
    let frame = Frame::new(
        ip("192.0.2.1"),
        ip("198.51.100.2"),
        Transport::Tcp {
            src: 1,
            dst: 2,
            seq: u32::MAX,
            ack: 0,
            flags: SYN,
            window: 0,
            options: vec![],
        },
    )
    .with_payload(b"")
    .padded();
    let seen = parse_common(&&frame.bytes()[..]).expect("common");
    assert_eq!(
        (seen.tcp_flags, seen.tcp_seq, seen.payload_len),
        (SYN, u32::MAX, 0)
    );
}

#[test]
fn fragment_header_first_or_last_gives_the_same() {
    let first = Frame::v6(udp(1, 2)).with_extensions(&[(FRAGMENT, 1), (60, 1)]);
    let last = Frame::v6(udp(1, 2)).with_extensions(&[(60, 1), (FRAGMENT, 1)]);
    assert_eq!(ethernet(&first.bytes()), ethernet(&last.bytes()));
    assert_eq!(ethernet(&first.bytes()), Ok(first.parsed()));
}

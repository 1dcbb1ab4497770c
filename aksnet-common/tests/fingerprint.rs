//! A packet is recognised after whatever NAT and forwarding did to it, and is not taken for another one.

#[expect(dead_code, reason = "the parser's tests use the rest")]
mod frames;

use std::net::IpAddr;

use aksnet_common::{
    packet::{Link, parse},
    passage::{NatKind, Tuple, fingerprint},
};
use frames::{
    ESP, Frame, GRE, QINQ, Transport, VLAN, addr, any_frame, cases, icmp, ip, kinds, tcp, udp,
};
use proptest::prelude::*;

fn print(bytes: &[u8], link: Link) -> u64 {
    let parsed = parse(&bytes, link).expect("readable");
    fingerprint(&bytes, &parsed)
}

fn of(frame: &Frame) -> u64 {
    print(&frame.bytes(), Link::Ethernet)
}

/// What NAT makes of a packet: new ends.
#[derive(Clone, Copy, Debug)]
struct Nat {
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    src_port: Option<u16>,
    dst_port: Option<u16>,
}

const NO_NAT: Nat = Nat {
    src: None,
    dst: None,
    src_port: None,
    dst_port: None,
};

impl Nat {
    fn apply(self, frame: &Frame) -> Frame {
        let mut frame = frame.clone();
        frame.src = self.src.unwrap_or(frame.src);
        frame.dst = self.dst.unwrap_or(frame.dst);
        let echo = frame.is_echo();
        match &mut frame.transport {
            Transport::Tcp { src, dst, .. }
            | Transport::Udp { src, dst }
            | Transport::UdpLite { src, dst }
            | Transport::Dccp { src, dst, .. }
            | Transport::Sctp { src, dst, .. } => {
                *src = self.src_port.unwrap_or(*src);
                *dst = self.dst_port.unwrap_or(*dst);
            }
            Transport::Icmp { rest, .. } if echo => {
                if let Some(id) = self.src_port {
                    rest[..2].copy_from_slice(&id.to_be_bytes());
                }
            }
            Transport::Icmp { .. } | Transport::Raw(_) => {}
        }
        frame
    }

    /// The rewrites of the same connection's replies.
    fn of_reply(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
        }
    }
}

/// An ICMP error about a packet.
fn error_about(inner: &Frame, from: IpAddr) -> Frame {
    let transport = if inner.src.is_ipv4() {
        icmp(3, 4, 0, 1400)
    } else {
        icmp(1, 4, 0, 0)
    };
    Frame::new(from, inner.src, transport).with_payload(&inner.ip_bytes())
}

/// The same family's addresses of a node and of a backend.
fn others(frame: &Frame) -> (IpAddr, IpAddr) {
    if frame.src.is_ipv4() {
        (ip("10.224.0.4"), ip("203.0.113.9"))
    } else {
        (ip("2001:db8:1::4"), ip("fd00:10:244:1::9"))
    }
}

fn rewrites(frame: &Frame) -> [(&'static str, Nat); 8] {
    let (node, backend) = others(frame);
    [
        (
            "SNAT",
            Nat {
                src: Some(node),
                ..NO_NAT
            },
        ),
        (
            "SNAT with port",
            Nat {
                src: Some(node),
                src_port: Some(1024),
                ..NO_NAT
            },
        ),
        (
            "source port",
            Nat {
                src_port: Some(1024),
                ..NO_NAT
            },
        ),
        (
            "DNAT",
            Nat {
                dst: Some(backend),
                ..NO_NAT
            },
        ),
        (
            "DNAT with port",
            Nat {
                dst: Some(backend),
                dst_port: Some(8443),
                ..NO_NAT
            },
        ),
        (
            "destination port",
            Nat {
                dst_port: Some(8443),
                ..NO_NAT
            },
        ),
        (
            "SNAT and DNAT",
            Nat {
                src: Some(node),
                dst: Some(backend),
                ..NO_NAT
            },
        ),
        (
            "everything",
            Nat {
                src: Some(node),
                dst: Some(backend),
                src_port: Some(1024),
                dst_port: Some(8443),
            },
        ),
    ]
}

// What it survives.

#[test]
fn every_kind_of_packet_survives_every_rewrite() {
    for (kind, frame) in kinds() {
        for (rewrite, nat) in rewrites(&frame) {
            let after = nat.apply(&frame);
            assert_eq!(of(&frame), of(&after), "{kind} after {rewrite}");
        }
    }
}

#[test]
fn every_kind_of_packet_survives_forwarding() {
    for (kind, frame) in kinds() {
        let after = Frame {
            ttl: frame.ttl - 1,
            ..frame.clone()
        };
        assert_eq!(of(&frame), of(&after), "{kind}, one hop on");
        let after = Frame {
            class: 0xb8,
            ..frame.clone()
        };
        assert_eq!(of(&frame), of(&after), "{kind} with another DSCP");
    }
}

#[test]
fn every_kind_of_packet_survives_a_change_of_link_layer() {
    for (kind, frame) in kinds() {
        let seen = print(&frame.ip_bytes(), Link::Ip);
        assert_eq!(of(&frame), seen, "{kind} without link layer");
        for tags in [&[][..], &[VLAN], &[QINQ, VLAN]] {
            let tagged = Frame {
                tags: tags.to_vec(),
                ..frame.clone()
            };
            assert_eq!(of(&tagged), seen, "{kind} with {} tags", tags.len());
        }
    }
}

/// Conntrack reassembles fragments; on the way out `ip6_fragment` gives them an identification of its own.
#[test]
fn ipv6_fragment_survives_a_new_identification() {
    for whole in [Frame::v6(udp(1, 2)), Frame::v6(tcp(1, 2))] {
        for frame in [
            whole.clone().first_fragment(),
            whole.later_fragment(185, false),
        ] {
            let after = Frame {
                id: 0xcafe_f00d,
                ..frame.clone()
            };
            assert_eq!(of(&frame), of(&after));
        }
    }
}

/// The stack trims a received frame to its IP length before it sends it on.
#[test]
fn every_kind_of_packet_survives_the_loss_of_its_padding() {
    for (kind, frame) in kinds() {
        for payload in 0..24 {
            let frame = frame.clone().with_payload(&[7; 24][..payload]);
            let padded = frame.clone().padded();
            assert_eq!(
                of(&frame),
                of(&padded),
                "{kind} with {payload} bytes of payload"
            );
        }
    }
}

#[test]
fn every_checksum_may_be_updated_or_left_to_the_card() {
    for (kind, frame) in kinds() {
        let Some((at, len)) = checksum_of(&frame) else {
            continue;
        };
        let mut bytes = frame.bytes();
        for value in [0, 0xff, 0x5a] {
            bytes[at..at + len].fill(value);
            assert_eq!(of(&frame), print(&bytes, Link::Ethernet), "{kind}");
        }
        if frame.src.is_ipv4() {
            let at = frame.link_len() + 10;
            bytes[at..at + 2].fill(0);
            assert_eq!(of(&frame), print(&bytes, Link::Ethernet), "{kind}");
        }
    }
}

/// Where the transport checksum lies in the frame, and how long it is.
fn checksum_of(frame: &Frame) -> Option<(usize, usize)> {
    let at = frame.link_len() + frame.base_len() + frame.extensions_len();
    match frame.transport {
        Transport::Tcp { .. } => Some((at + 16, 2)),
        Transport::Udp { .. } | Transport::UdpLite { .. } | Transport::Dccp { .. } => {
            Some((at + 6, 2))
        }
        Transport::Sctp { .. } => Some((at + 8, 4)),
        Transport::Icmp { .. } => Some((at + 2, 2)),
        Transport::Raw(_) => None,
    }
}

#[test]
fn icmp_error_survives_the_rewrite_of_the_tuple_within() {
    for (kind, inner) in kinds() {
        if !inner.tags.is_empty() || inner.fragment_offset != 0 {
            continue;
        }
        let router = others(&inner).0;
        for (rewrite, nat) in rewrites(&inner) {
            // The error goes back the way that the packet came: within, the packet as it was sent.
            let about_after = error_about(&nat.apply(&inner), router);
            let about_before = error_about(&inner, router);
            assert_eq!(
                of(&about_after),
                of(&about_before),
                "about {kind} after {rewrite}"
            );
        }
    }
}

#[test]
fn icmp_identifier_may_be_rewritten_but_not_the_sequence() {
    for frame in [Frame::v4 as fn(_) -> _, Frame::v6] {
        for kind in [8, 0, 128, 129, 13, 14] {
            let id = |id| of(&frame(icmp(kind, 0, id, 5)));
            assert_eq!(id(1), id(2), "type {kind}");
            assert_ne!(
                of(&frame(icmp(kind, 0, 1, 5))),
                of(&frame(icmp(kind, 0, 1, 6))),
                "type {kind}"
            );
        }
    }
}

fn any_rewrite() -> impl Strategy<Value = (Nat, [u8; 2])> {
    (
        any::<[Option<[u8; 16]>; 2]>(),
        any::<[Option<u16>; 2]>(),
        any::<[u8; 2]>(),
    )
        .prop_map(|([src, dst], [src_port, dst_port], changed)| {
            let address = |a: [u8; 16]| IpAddr::from(a);
            (
                Nat {
                    src: src.map(address),
                    dst: dst.map(address),
                    src_port,
                    dst_port,
                },
                changed,
            )
        })
}

/// The rewrite with addresses of the frame's family.
fn fitted(nat: Nat, frame: &Frame) -> Nat {
    let fit = |a: Option<IpAddr>| match (a, frame.src) {
        (Some(IpAddr::V6(a)), IpAddr::V4(_)) => {
            let o = a.octets();
            Some(IpAddr::from([o[0], o[1], o[2], o[3]]))
        }
        (a, _) => a,
    };
    Nat {
        src: fit(nat.src),
        dst: fit(nat.dst),
        ..nat
    }
}

proptest! {
    #![proptest_config(cases(4096))]

    #[test]
    fn any_packet_survives_any_rewrite(frame in any_frame(), (nat, [ttl, class]) in any_rewrite()) {
        let mut after = fitted(nat, &frame).apply(&frame);
        (after.ttl, after.class) = (ttl, class);
        prop_assert_eq!(of(&frame), of(&after));
        let tagless = Frame { tags: vec![], padded_to: 0, ..after };
        prop_assert_eq!(of(&frame), of(&tagless));
        prop_assert_eq!(of(&frame), print(&tagless.ip_bytes(), Link::Ip));
        prop_assert_ne!(of(&frame), 0);
    }

    #[test]
    fn any_icmp_error_survives_any_rewrite(inner in any_frame(), (nat, _) in any_rewrite()) {
        let nat = fitted(nat, &inner);
        let before = error_about(&nat.apply(&inner), others(&inner).0);
        let after = error_about(&inner, others(&inner).0);
        prop_assert_eq!(of(&before), of(&after));
    }

    #[test]
    fn nat_kind_names_the_ends_that_changed(frame in any_frame(), (nat, _) in any_rewrite()) {
        let tuple = |f: &Frame| parse(&&f.bytes()[..], Link::Ethernet).expect("readable").key.tuple();
        let (before, after) = (tuple(&frame), tuple(&fitted(nat, &frame).apply(&frame)));
        let kind = NatKind::between(&before, &after);
        let source = (before.src, before.src_port) != (after.src, after.src_port);
        let destination = (before.dst, before.dst_port) != (after.dst, after.dst_port);
        prop_assert_eq!(kind as u32 & 1 != 0, source);
        prop_assert_eq!(kind as u32 & 2 != 0, destination);
        prop_assert_eq!(NatKind::between(&after, &before), kind);
    }
}

// What it tells apart.

/// The fingerprints are all different.
fn assert_distinct(mut prints: Vec<u64>, what: &str) {
    let made = prints.len();
    prints.sort_unstable();
    prints.dedup();
    assert_eq!(prints.len(), made, "{what}: packets taken for one another");
}

/// A million packets that differ in one field, counted up by `step`.
fn assert_counts(what: &str, frame: &Frame, at: usize, step: u32) {
    let mut bytes = frame.bytes();
    let prints = (0..1_000_000_u32).map(|i| {
        bytes[at..at + 4].copy_from_slice(&i.wrapping_mul(step).to_be_bytes());
        print(&bytes, Link::Ethernet)
    });
    assert_distinct(prints.collect(), what);
}

#[test]
fn a_million_consecutive_segments_are_told_apart() {
    let frame = Frame::v6(tcp(40000, 443));
    assert_counts("sequence", &frame, 54 + 4, 1448);
}

#[test]
fn a_million_consecutive_acknowledgements_are_told_apart() {
    let frame = Frame::v6(tcp(40000, 443)).with_payload(b"");
    assert_counts("acknowledgement", &frame, 54 + 8, 1);
}

#[test]
fn a_million_datagrams_with_a_counter_are_told_apart() {
    let frame = Frame::v6(udp(40000, 53)).with_payload(&[0; 32]);
    assert_counts("payload", &frame, 54 + 8, 1);
}

#[test]
fn a_million_random_packets_are_told_apart() {
    // A counter through a bijection, so that the packets are surely distinct; a fixed seed.
    let mut frames: Vec<_> = kinds()
        .into_iter()
        .map(|(_, f)| f.with_payload(&[0; 32]))
        .collect();
    frames.retain(|f| {
        f.fragment_offset == 0 && !matches!(f.transport, Transport::Icmp { .. }) || f.is_echo()
    });
    let mut templates: Vec<_> = frames
        .iter()
        .map(|f| {
            let transport = f.link_len() + f.base_len() + f.extensions_len();
            let at = match f.transport {
                Transport::Tcp { .. } => transport + 4,
                Transport::Sctp { .. } => transport + 12,
                Transport::Raw(_) => transport,
                _ => transport + 8,
            };
            (f.bytes(), at)
        })
        .collect();
    let kinds = templates.len() as u64;
    let prints = (0..1_000_000_u64).map(|i| {
        let (bytes, at) = &mut templates[usize::try_from(i % kinds).expect("small")];
        let value = aksnet_common::flow::mix(i + 1);
        bytes[*at..*at + 8].copy_from_slice(&value.to_be_bytes());
        print(bytes, Link::Ethernet)
    });
    assert_distinct(prints.collect(), "random");
}

#[test]
fn packets_that_differ_only_in_identification_are_told_apart() {
    for (kind, frame) in kinds() {
        if frame.src.is_ipv6() {
            continue;
        }
        let prints = (0..=0xffff).map(|id| {
            of(&Frame {
                id,
                ..frame.clone()
            })
        });
        assert_distinct(prints.step_by(7).collect(), kind);
    }
}

#[test]
fn every_byte_of_a_short_payload_counts() {
    for transport in [
        udp(1, 2),
        Transport::UdpLite { src: 1, dst: 2 },
        Transport::Raw(GRE),
        Transport::Raw(ESP),
    ] {
        for len in 4..=16 {
            let mut prints = vec![];
            for at in 0..len {
                let mut payload = vec![0; len];
                payload[at] = 1;
                prints.push(of(&Frame::v6(transport.clone()).with_payload(&payload)));
            }
            assert_distinct(prints, &format!("{transport:?} with {len} bytes"));
        }
    }
}

#[test]
fn each_field_that_nat_leaves_alone_counts() {
    let base = |src, dst, seq, ack, flags, window| {
        of(&Frame::v6(Transport::Tcp {
            src,
            dst,
            seq,
            ack,
            flags,
            window,
            options: vec![],
        }))
    };
    assert_distinct(
        vec![
            base(1, 2, 3, 4, 5, 6),
            base(1, 2, 4, 4, 5, 6),
            base(1, 2, 3, 5, 5, 6),
            base(1, 2, 3, 4, 6, 6),
            base(1, 2, 3, 4, 5, 7),
            of(&Frame::v4(tcp(1, 2))),
            of(&Frame::v4(tcp(1, 2)).with_payload(b"longer than it was before")),
            of(&Frame::v4(udp(1, 2))),
        ],
        "TCP",
    );
    let sctp = |tag, chunk: &[u8; 8]| {
        of(&Frame::v6(Transport::Sctp {
            src: 1,
            dst: 2,
            tag,
        })
        .with_payload(chunk))
    };
    assert_distinct(
        vec![
            sctp(1, &[0, 3, 0, 32, 0, 0, 0, 1]),
            sctp(2, &[0, 3, 0, 32, 0, 0, 0, 1]),
            sctp(1, &[0, 3, 0, 32, 0, 0, 0, 2]),
            sctp(1, &[3, 3, 0, 32, 0, 0, 0, 1]),
        ],
        "SCTP",
    );
    let dccp = |seq| {
        of(&Frame::v6(Transport::Dccp {
            src: 1,
            dst: 2,
            seq,
        }))
    };
    assert_distinct(vec![dccp(1), dccp(2), dccp(256)], "DCCP");
    let echo = |kind, sequence, data: &[u8; 8]| {
        of(&Frame::v6(icmp(kind, 0, 1, sequence)).with_payload(data))
    };
    assert_distinct(
        vec![
            echo(128, 1, b"abcdefgh"),
            echo(129, 1, b"abcdefgh"),
            echo(128, 2, b"abcdefgh"),
            echo(128, 1, b"abcdefgi"),
        ],
        "echo",
    );
}

#[test]
fn the_fragments_of_a_packet_are_told_apart() {
    for whole in [Frame::v4(udp(1, 2)), Frame::v6(udp(1, 2))] {
        let mut prints = vec![of(&whole.clone().first_fragment())];
        for offset in 1..1000 {
            prints.push(of(&whole.clone().later_fragment(offset, true)));
        }
        assert_distinct(prints, "fragments");
    }
}

#[test]
fn later_fragments_of_two_packets_are_told_apart_by_their_data() {
    for whole in [Frame::v4(udp(1, 2)), Frame::v6(udp(1, 2))] {
        let later = whole.later_fragment(185, false);
        let prints = (0..=255_u8).map(|i| of(&later.clone().with_payload(&[i; 16])));
        assert_distinct(prints.collect(), "later fragments");
    }
}

// The kinds of NAT.

#[test]
fn nat_kind_follows_the_table() {
    let before = Tuple {
        src: addr(ip("10.0.0.1")),
        dst: addr(ip("10.0.0.2")),
        src_port: 1,
        dst_port: 2,
    };
    let (src, dst) = (addr(ip("10.0.0.3")), addr(ip("10.0.0.4")));
    let table = [
        (before, NatKind::None, NatKind::None),
        (Tuple { src, ..before }, NatKind::Snat, NatKind::Dnat),
        (
            Tuple {
                src_port: 9,
                ..before
            },
            NatKind::Snat,
            NatKind::Dnat,
        ),
        (
            Tuple {
                src,
                src_port: 9,
                ..before
            },
            NatKind::Snat,
            NatKind::Dnat,
        ),
        (Tuple { dst, ..before }, NatKind::Dnat, NatKind::Snat),
        (
            Tuple {
                dst_port: 9,
                ..before
            },
            NatKind::Dnat,
            NatKind::Snat,
        ),
        (
            Tuple {
                dst,
                dst_port: 9,
                ..before
            },
            NatKind::Dnat,
            NatKind::Snat,
        ),
        (Tuple { src, dst, ..before }, NatKind::Both, NatKind::Both),
        (
            Tuple {
                src_port: 9,
                dst_port: 9,
                ..before
            },
            NatKind::Both,
            NatKind::Both,
        ),
        (
            Tuple {
                src,
                dst_port: 9,
                ..before
            },
            NatKind::Both,
            NatKind::Both,
        ),
    ];
    for (after, kind, of_reply) in table {
        assert_eq!(NatKind::between(&before, &after), kind, "{after:?}");
        assert_eq!(kind.of_reply(), of_reply);
    }
}

#[test]
fn reply_undoes_the_nat_of_its_connection() {
    let frame = Frame::v4(tcp(40000, 443));
    let reverse = |t: Tuple| Tuple {
        src: t.dst,
        dst: t.src,
        src_port: t.dst_port,
        dst_port: t.src_port,
    };
    for (rewrite, nat) in rewrites(&frame) {
        let (before, after) = (
            frame.parsed().key.tuple(),
            nat.apply(&frame).parsed().key.tuple(),
        );
        // The reply comes in with the ends after NAT swapped, and goes out with those before.
        let kind = NatKind::between(&reverse(after), &reverse(before));
        assert_eq!(
            kind,
            NatKind::between(&before, &after).of_reply(),
            "{rewrite}"
        );
        let reply = nat.of_reply().apply(&frame).parsed().key.tuple();
        assert_eq!(NatKind::between(&before, &reply), kind, "{rewrite}");
    }
}

#[test]
fn nat_kind_keeps_its_number() {
    for kind in [NatKind::None, NatKind::Snat, NatKind::Dnat, NatKind::Both] {
        assert_eq!(NatKind::try_from(kind as u32), Ok(kind));
    }
    assert_eq!(NatKind::try_from(4), Err(4));
}

//! Each kind of header makes exactly one flow with its key and its IP length, or is skipped once for the
//! right reason, in every program.

use aksnet_agent::bpf::LoadOptions;
use aksnet_common::{
    flow::{FlowKey, HotCell},
    packet::Link,
    stats::{Event, Skip},
};

use crate::{
    frame::{
        ACK, AUTHENTICATION, DESTINATION, FRAGMENT, Frame, HIP, HOP_BY_HOP, MOBILITY, PSH, QINQ,
        ROUTING, SHIM6, SYN, Transport, VLAN,
    },
    rig::{self, HOOKS, Hook, LO, Rig, Skb},
};

pub const A4: &str = "10.244.1.7:40001";
pub const B4: &str = "10.0.0.10:443";
pub const A6: &str = "[fd12:3456::1:7]:40001";
pub const B6: &str = "[fd00:10::a]:443";

/// A small table, every packet timed, and the same buckets on every run.
pub fn small() -> LoadOptions {
    LoadOptions {
        flow_cells: 64,
        sample: 1,
        hash_seed: Some(0x5eed),
        ..LoadOptions::default()
    }
}

/// Every kind of packet that belongs to a flow, without link-layer variants.
pub fn flows() -> Vec<(String, Frame)> {
    [of_both_versions(), of_ipv4(), of_ipv6()].concat()
}

fn of_both_versions() -> Vec<(String, Frame)> {
    let mut table = Vec::new();
    for (family, a, b) in [("ipv4", A4, B4), ("ipv6", A6, B6)] {
        let mut row = |name: &str, frame: Frame| table.push((format!("{family} {name}"), frame));
        row("tcp syn", Frame::tcp(a, b, SYN).tcp_options(20));
        row("tcp syn-ack", Frame::tcp(a, b, SYN | ACK).tcp_options(40));
        row("tcp data", Frame::tcp(a, b, PSH | ACK));
        row("tcp pure ack", Frame::tcp(a, b, ACK).payload(0));
        row("udp", Frame::udp(a, b));
        row("udp without payload", Frame::udp(a, b).payload(0));
        row("sctp", Frame::sctp(a, b));
        for (name, protocol, header) in [("dccp", 33, 12), ("udp-lite", 136, 8)] {
            let mut frame = Frame::udp(a, b);
            frame.transport = Transport::Ports { protocol, header };
            row(name, frame);
        }
        row("echo request", Frame::echo(a, b, 0xbeef));
        row("echo without payload", Frame::echo(a, b, 1).payload(0));
        let icmp = |kind, code| {
            let mut frame = Frame::echo(a, b, 0);
            frame.transport = Transport::Icmp {
                kind,
                code,
                id: 0x5555,
                sequence: 1400,
            };
            frame
        };
        let (reply, unreachable, timestamp) = if family == "ipv4" {
            (0, 3, 13)
        } else {
            (129, 1, 135)
        };
        row("echo reply", icmp(reply, 0));
        row("icmp unreachable", icmp(unreachable, 4));
        row("icmp neither echo nor error", icmp(timestamp, 0));
        row("gre", Frame::other(a, b, 47));
        row("esp", Frame::other(a, b, 50));
        row("unknown protocol", Frame::other(a, b, 253));
        row("no payload at all", Frame::other(a, b, 253).payload(0));
        let icmp_of_the_other_family = if family == "ipv4" { 58 } else { 1 };
        row(
            "icmp number of the other family",
            Frame::other(a, b, icmp_of_the_other_family),
        );
        for (name, frame) in [
            ("tcp", Frame::tcp(a, b, ACK)),
            ("udp", Frame::udp(a, b)),
            ("echo", Frame::echo(a, b, 9)),
        ] {
            let first = frame.clone().piece(0, true);
            row(&format!("first fragment of {name}"), first);
            let later = frame.clone().piece(185, true);
            row(&format!("middle fragment of {name}"), later);
            let last = frame.piece(370, false).payload(3);
            row(&format!("last fragment of {name}"), last);
        }
        let first_without_options = Frame::tcp(a, b, ACK).tcp_options(40).piece(0, true);
        row("first fragment of tcp with options", first_without_options);
    }
    table
}

/// Options.
fn of_ipv4() -> Vec<(String, Frame)> {
    let mut table = Vec::new();
    for options in [4, 20, 40] {
        for (name, frame) in [
            ("tcp", Frame::tcp(A4, B4, ACK)),
            ("udp", Frame::udp(A4, B4)),
            ("esp", Frame::other(A4, B4, 50)),
        ] {
            table.push((
                format!("ipv4 {name} with {options} bytes of options"),
                frame.options(options),
            ));
        }
    }
    let later = Frame::udp(A4, B4).options(8).piece(8, false);
    table.push(("ipv4 later fragment with options".to_owned(), later));
    // AH is a protocol of its own in IPv4, an extension header in IPv6.
    table.push(("ipv4 ah".to_owned(), Frame::other(A4, B4, 51)));
    table
}

/// Extension headers.
fn of_ipv6() -> Vec<(String, Frame)> {
    let mut table = Vec::new();
    for chain in [
        &[HOP_BY_HOP][..],
        &[ROUTING],
        &[DESTINATION],
        &[MOBILITY],
        &[HIP],
        &[SHIM6],
        &[AUTHENTICATION],
        &[FRAGMENT],
        &[
            HOP_BY_HOP,
            DESTINATION,
            ROUTING,
            FRAGMENT,
            AUTHENTICATION,
            DESTINATION,
        ],
        &[FRAGMENT, DESTINATION],
        &[DESTINATION; 8],
    ] {
        for (name, frame) in [
            ("tcp", Frame::tcp(A6, B6, SYN)),
            ("udp", Frame::udp(A6, B6)),
            ("echo", Frame::echo(A6, B6, 3)),
            ("esp", Frame::other(A6, B6, 50)),
            ("nothing", Frame::other(A6, B6, 59).payload(0)),
        ] {
            table.push((
                format!("ipv6 {name} behind {chain:?}"),
                frame.extensions(chain),
            ));
        }
    }
    let later = Frame::udp(A6, B6)
        .extensions(&[HOP_BY_HOP, FRAGMENT])
        .piece(8, true);
    table.push(("ipv6 later fragment behind options".to_owned(), later));
    table
}

/// What an Ethernet program is given; a raw one gets the IP packet.
pub fn bytes(frame: &Frame, hook: Hook) -> Vec<u8> {
    match hook.link {
        Link::Ethernet => frame.ethernet(),
        Link::Ip => {
            let mut bytes = frame.ip();
            bytes.resize(bytes.len() + frame.padding, 0xa5);
            bytes
        }
    }
}

/// The cell of a flow that had this one packet, without its state and its times.
pub fn cell_after(frame: &Frame, key: FlowKey) -> HotCell {
    let mut hot = HotCell {
        key,
        skbs: 1,
        bytes: frame.ip_len() as u64,
        connections: 1,
        ..HotCell::default()
    };
    if frame.protocol() == 6 {
        hot.connections = 0;
    }
    if let Transport::Tcp { flags, seq, .. } = frame.transport
        && key.flags == 0
    {
        let syn = flags & SYN != 0;
        hot.tcp_flags = u32::from(flags);
        hot.connections = u32::from(syn && flags & ACK == 0);
        hot.max_seq = seq + u32::from(syn) + frame.payload.len() as u32;
        hot.syn_seq = if syn { seq } else { 0 };
    }
    hot
}

/// One flow, exactly as the frame says.
#[track_caller]
pub fn expect_flow(rig: &mut Rig, hook: Hook, name: &str, frame: &Frame) {
    let seen = rig.take();
    assert_eq!(seen.skips(), 0, "{name}: {seen:?}");
    assert!(seen.spill.is_empty(), "{name}: {seen:?}");
    assert_eq!(seen.event(Event::CellClaimed), 1, "{name}");
    let left = u64::from(hook.origin == aksnet_common::flow::ORIGIN_ENTER);
    assert_eq!(seen.event(Event::PassageLeft), left, "{name}");
    let hot = seen.flow().hot;
    let expected = cell_after(frame, frame.key(LO, hook.origin));
    assert_ne!(hot.first_ns, 0, "{name}");
    assert_ne!(hot.last_jiffies, 0, "{name}");
    let has_syn = expected.tcp_flags & u32::from(SYN) != 0;
    assert_eq!(hot.syn_ns != 0, has_syn, "{name}");
    let hot = HotCell {
        state: 0,
        first_ns: 0,
        last_jiffies: 0,
        syn_ns: 0,
        ..hot
    };
    assert_eq!(
        format!("{hot:?}"),
        format!("{expected:?}"),
        "{name} in {}",
        hook.program
    );
}

/// One skipped packet, and nothing else.
#[track_caller]
pub fn expect_skip(rig: &mut Rig, name: &str, reason: Skip, frame_len: usize) {
    let seen = rig.take();
    assert!(seen.flows.is_empty(), "{name}: {seen:?}");
    assert!(seen.spill.is_empty(), "{name}: {seen:?}");
    assert_eq!(seen.skip(), (reason, frame_len as u64), "{name}");
    assert_eq!(seen.event(Event::CellClaimed), 0, "{name}");
    assert_eq!(seen.event(Event::PassageLeft), 0, "{name}");
}

#[test]
fn every_kind_of_header_is_one_flow_with_its_key_and_bytes() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS {
            for (name, frame) in flows() {
                rig.run(hook, &bytes(&frame, hook), Skb::default());
                expect_flow(&mut rig, hook, &name, &frame);
            }
        }
    });
}

#[test]
fn vlan_tags_and_padding_change_neither_key_nor_bytes() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS {
            for (name, frame) in flows() {
                let tags: &[&[u16]] = match hook.link {
                    Link::Ethernet => &[
                        &[],
                        &[VLAN],
                        &[QINQ],
                        &[QINQ, VLAN],
                        &[VLAN, VLAN],
                        &[QINQ, QINQ],
                    ],
                    Link::Ip => &[&[]],
                };
                for tags in tags {
                    let frame = frame.clone().tags(tags).padding(6);
                    let name = format!("{name} with tags {tags:x?}");
                    rig.run(hook, &bytes(&frame, hook), Skb::default());
                    expect_flow(&mut rig, hook, &name, &frame);
                }
            }
        }
    });
}

/// Headers outside the linear part of the packet, as after GRO or from a NIC that splits them off.
#[test]
fn headers_in_fragments_of_the_buffer_are_read_all_the_same() {
    rig::with(&small(), |mut rig| {
        if !rig.makes_long_packets() {
            return;
        }
        for hook in HOOKS {
            for (name, frame) in flows() {
                for linear in [14, 20, 34, 40, 54] {
                    let bytes = bytes(&frame, hook);
                    let skb = Skb {
                        linear: linear.min(bytes.len() as u32),
                        ..Skb::default()
                    };
                    // The kernel makes no packet whose IP header is not linear.
                    if rig.try_run(hook, &bytes, skb) {
                        let name = format!("{name} with {linear} bytes linear");
                        expect_flow(&mut rig, hook, &name, &frame);
                    }
                }
            }
        }
    });
}

#[test]
fn more_than_two_tags_are_skipped_as_such() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS.into_iter().filter(|h| h.link == Link::Ethernet) {
            for tags in [[VLAN; 3], [QINQ, VLAN, VLAN], [QINQ; 3]] {
                for frame in [Frame::tcp(A4, B4, SYN), Frame::udp(A6, B6)] {
                    let frame = frame.tags(&tags).ethernet();
                    rig.run(hook, &frame, Skb::default());
                    let name = format!("{tags:x?}");
                    expect_skip(&mut rig, &name, Skip::TooManyTags, frame.len());
                }
            }
        }
    });
}

#[test]
fn what_is_not_ip_is_skipped_as_such() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS {
            match hook.link {
                Link::Ethernet => {
                    // ARP, LLDP, MPLS, PPPoE, an 802.3 length, and the loopback test protocol.
                    for kind in [0x0806, 0x88cc, 0x8847, 0x8864, 0x0026, 0x9000_u16] {
                        for tags in [&[][..], &[VLAN], &[QINQ, VLAN]] {
                            let tagged = Frame::udp(A4, B4).tags(tags);
                            let mut frame = tagged.ethernet();
                            let at = tagged.link_len() - 2;
                            frame[at..at + 2].copy_from_slice(&kind.to_be_bytes());
                            rig.run(hook, &frame, Skb::default());
                            let name = format!("{kind:x} behind {tags:x?}");
                            expect_skip(&mut rig, &name, Skip::NotIp, frame.len());
                        }
                    }
                }
                Link::Ip => {
                    for version in (0..16).filter(|v| ![4, 6].contains(v)) {
                        let mut packet = Frame::udp(A4, B4).ip();
                        packet[0] = version << 4 | 5;
                        rig.run(hook, &packet, Skb::default());
                        let name = format!("version {version}");
                        expect_skip(&mut rig, &name, Skip::NotIp, packet.len());
                    }
                }
            }
        }
    });
}

#[test]
fn more_extension_headers_than_are_walked_are_skipped_as_such() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS {
            for chain in [
                vec![DESTINATION; 9],
                vec![HOP_BY_HOP; 20],
                [vec![DESTINATION; 8], vec![FRAGMENT]].concat(),
                [vec![ROUTING; 8], vec![AUTHENTICATION]].concat(),
            ] {
                let bytes = bytes(&Frame::tcp(A6, B6, SYN).extensions(&chain), hook);
                rig.run(hook, &bytes, Skb::default());
                let name = format!("{chain:?}");
                expect_skip(&mut rig, &name, Skip::TooManyExtensions, bytes.len());
            }
        }
    });
}

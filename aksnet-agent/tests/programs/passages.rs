//! A packet that enters and leaves on the same CPU: what NAT made of it, through which interface it left,
//! how long it took. Every test thread is bound to one CPU.

use std::time::Duration;

use aksnet_agent::{bpf::LoadOptions, collect::source::Source as _};
use aksnet_common::{
    flow::{ColdCell, ORIGIN_ENTER, STAGE_ESTABLISHED, STAGE_FIRST, time_bucket},
    packet::Link,
    passage::NatKind,
    stats::Event,
};

use crate::{
    frame::{ACK, Frame, PSH, QINQ, SYN, Transport, VLAN},
    headers::{A4, A6, B4, B6, bytes, small},
    rig::{
        self, ENTER_POD, ENTER_UPLINK, ENTER_UPLINK_IP, EXIT_POD, EXIT_UPLINK, EXIT_UPLINK_IP, LO,
        Rig, Seen, Skb, bind,
    },
};

const NODE4: &str = "10.224.0.4:31007";
const NODE6: &str = "[fd00:224::4]:31007";
const POD4: &str = "10.244.2.9:8443";
const POD6: &str = "[fd12:3456::2:9]:8443";

/// Enters through loopback at a pod's hook.
#[track_caller]
fn enter(rig: &mut Rig, frame: &Frame) {
    rig.run(ENTER_POD, &frame.ethernet(), Skb::from_to(LO, LO));
}

/// Leaves through an interface, having come in through loopback.
#[track_caller]
fn exit(rig: &mut Rig, frame: &Frame, ifindex: u32) {
    rig.run(EXIT_UPLINK, &frame.ethernet(), Skb::from_to(LO, ifindex));
}

fn events(seen: &Seen) -> [u64; 4] {
    [
        Event::PassageLeft,
        Event::ExitMatched,
        Event::ExitUnmatched,
        Event::ExitSkipped,
    ]
    .map(|event| seen.event(event))
}

/// One timed exit, with this translation, in this stage and in the histogram's right bucket.
#[track_caller]
fn expect_exit(cold: &ColdCell, after: &Frame, ifindex: u32, nat: NatKind, stage: usize) {
    let tuple = after.key(0, ORIGIN_ENTER).tuple();
    assert_eq!(cold.after, tuple, "{after:?}");
    assert_eq!(NatKind::try_from(cold.nat), Ok(nat), "{after:?}");
    assert_eq!(cold.exit_ifindex, ifindex);
    assert_eq!((cold.translations, cold.exits), (0, 1));
    assert_eq!((cold.drops, cold.drop_reason), (0, 0));
    assert!(cold.sequence != 0 && cold.sequence.is_multiple_of(2));
    let other = 1 - stage;
    assert_ne!(cold.sum_ns[stage], 0);
    assert_eq!(cold.sum_ns[other], 0);
    let mut times = [[0; 16]; 2];
    times[stage][time_bucket(cold.sum_ns[stage])] = 1;
    assert_eq!(cold.times, times);
}

/// Packets of each protocol whose tuple NAT may rewrite, with the stage each is in as a flow's first.
fn kinds(a: &str, b: &str) -> Vec<(Frame, usize)> {
    vec![
        (Frame::tcp(a, b, SYN).tcp_options(20), STAGE_FIRST),
        (Frame::tcp(a, b, SYN | ACK), STAGE_ESTABLISHED),
        (Frame::tcp(a, b, PSH | ACK), STAGE_ESTABLISHED),
        (Frame::tcp(a, b, ACK).payload(0), STAGE_ESTABLISHED),
        (Frame::udp(a, b), STAGE_FIRST),
        (Frame::udp(a, b).payload(3), STAGE_FIRST),
        (Frame::udp(a, b).payload(0), STAGE_FIRST),
        (Frame::sctp(a, b), STAGE_FIRST),
    ]
}

#[test]
fn each_nat_is_seen_with_its_exact_translation() {
    rig::with(&small(), |mut rig| {
        let [_, out] = rig::devices();
        for (a, b, node, pod) in [(A4, B4, NODE4, POD4), (A6, B6, NODE6, POD6)] {
            for (frame, stage) in kinds(a, b) {
                for (after, nat) in [
                    (frame.clone(), NatKind::None),
                    (frame.clone().src(node), NatKind::Snat),
                    (frame.clone().dst(pod), NatKind::Dnat),
                    (frame.clone().src(node).dst(pod), NatKind::Both),
                ] {
                    // Routing takes one off, and may add a tag.
                    for tags in [&[][..], &[VLAN], &[QINQ, VLAN]] {
                        let after = after.clone().ttl(63).tags(tags);
                        enter(&mut rig, &frame);
                        exit(&mut rig, &after, out);
                        let seen = rig.take();
                        assert_eq!(events(&seen), [1, 1, 0, 0], "{after:?}");
                        expect_exit(&seen.flow().cold, &after, out, nat, stage);
                        assert_eq!(seen.flow().hot.skbs, 1, "counted once");
                    }
                }
            }
        }
    });
}

#[test]
fn a_port_alone_rewritten_is_nat_too() {
    rig::with(&small(), |mut rig| {
        for (after, nat) in [
            (Frame::udp("10.244.1.7:999", B4), NatKind::Snat),
            (Frame::udp(A4, "10.0.0.10:53"), NatKind::Dnat),
            (Frame::udp("10.244.1.7:999", "10.0.0.10:53"), NatKind::Both),
        ] {
            enter(&mut rig, &Frame::udp(A4, B4));
            exit(&mut rig, &after, LO);
            expect_exit(&rig.take().flow().cold, &after, LO, nat, STAGE_FIRST);
        }
    });
}

#[test]
fn an_echo_with_a_rewritten_identifier_is_the_same_packet() {
    rig::with(&small(), |mut rig| {
        for (a, b, node, pod) in [(A4, B4, NODE4, POD4), (A6, B6, NODE6, POD6)] {
            for reply in [false, true] {
                let mut before = Frame::echo(a, b, 0x0102);
                if reply && let Transport::Icmp { kind, .. } = &mut before.transport {
                    *kind = if *kind == 8 { 0 } else { 129 };
                }
                for (after, nat) in [
                    (before.clone(), NatKind::None),
                    (before.clone().echo_id(0xfeed), NatKind::Snat),
                    (before.clone().src(node).echo_id(0xfeed), NatKind::Snat),
                    (before.clone().src(node), NatKind::Snat),
                    (before.clone().dst(pod), NatKind::Dnat),
                    (before.clone().src(node).dst(pod).echo_id(0), NatKind::Both),
                ] {
                    enter(&mut rig, &before);
                    exit(&mut rig, &after, LO);
                    let seen = rig.take();
                    expect_exit(&seen.flow().cold, &after, LO, nat, STAGE_FIRST);
                }
            }
        }
    });
}

#[test]
fn packets_without_ports_are_recognised_with_rewritten_addresses() {
    rig::with(&small(), |mut rig| {
        for (a, b, node, pod) in [(A4, B4, NODE4, POD4), (A6, B6, NODE6, POD6)] {
            let mut error = Frame::echo(a, b, 0);
            error.transport = Transport::Icmp {
                kind: if error.is_ipv4() { 3 } else { 1 },
                code: 3,
                id: 0,
                sequence: 1400,
            };
            for frame in [
                Frame::other(a, b, 47),
                Frame::other(a, b, 50).payload(5),
                Frame::other(a, b, 253).payload(0),
                Frame::udp(a, b).piece(185, true),
                error,
            ] {
                for (after, nat) in [
                    (frame.clone(), NatKind::None),
                    (frame.clone().src(node), NatKind::Snat),
                    (frame.clone().dst(pod), NatKind::Dnat),
                    (frame.clone().src(node).dst(pod), NatKind::Both),
                ] {
                    enter(&mut rig, &frame);
                    exit(&mut rig, &after, LO);
                    let seen = rig.take();
                    expect_exit(&seen.flow().cold, &after, LO, nat, STAGE_FIRST);
                }
            }
        }
    });
}

#[test]
fn every_pair_of_hooks_shares_its_passages() {
    rig::with(&small(), |mut rig| {
        let [inner, outer] = rig::devices();
        let frame = Frame::tcp(A4, B4, SYN).payload(4);
        let after = frame.clone().src(NODE4);
        for enter in [ENTER_POD, ENTER_UPLINK, ENTER_UPLINK_IP] {
            for exit in [EXIT_POD, EXIT_UPLINK, EXIT_UPLINK_IP] {
                rig.run(enter, &bytes(&frame, enter), Skb::from_to(inner, inner));
                rig.run(exit, &bytes(&after, exit), Skb::from_to(inner, outer));
                let seen = rig.take();
                assert_eq!(events(&seen), [1, 1, 0, 0]);
                assert_eq!(seen.flow().hot.key, frame.key(inner, ORIGIN_ENTER));
                let cold = seen.flow().cold;
                expect_exit(&cold, &after, outer, NatKind::Snat, STAGE_FIRST);
            }
        }
    });
}

#[test]
fn later_packets_of_a_flow_are_of_the_established_stage() {
    rig::with(&small(), |mut rig| {
        for (frames, first) in [
            (
                [
                    Frame::tcp(A4, B4, SYN),
                    Frame::tcp(A4, B4, ACK).payload(0),
                    Frame::tcp(A4, B4, PSH | ACK),
                ],
                1,
            ),
            // A repeated SYN walks the nat rules again if the first was dropped.
            (
                [
                    Frame::tcp(A4, B4, SYN),
                    Frame::tcp(A4, B4, SYN),
                    Frame::tcp(A4, B4, ACK),
                ],
                2,
            ),
            (
                [
                    Frame::udp(A6, B6).payload(20),
                    Frame::udp(A6, B6).payload(21),
                    Frame::udp(A6, B6).payload(22),
                ],
                1,
            ),
        ] {
            for frame in frames {
                enter(&mut rig, &frame);
                exit(&mut rig, &frame, LO);
            }
            let cold = rig.take().flow().cold;
            let of_stage = cold.times.map(|times| times.iter().sum::<u32>());
            assert_eq!(of_stage[STAGE_FIRST], first);
            assert_eq!(of_stage[STAGE_ESTABLISHED], 3 - first);
            assert_eq!(cold.exits, 3);
        }
    });
}

#[test]
fn the_time_between_the_hooks_is_the_time_measured() {
    rig::with(&small(), |mut rig| {
        let frame = Frame::udp(A4, B4);
        enter(&mut rig, &frame);
        std::thread::sleep(Duration::from_millis(20));
        exit(&mut rig, &frame, LO);
        let cold = rig.take().flow().cold;
        expect_exit(&cold, &frame, LO, NatKind::None, STAGE_FIRST);
        let ns = cold.sum_ns[STAGE_FIRST];
        assert!((20_000_000..5_000_000_000).contains(&ns), "{ns}");
        assert_eq!(cold.times[STAGE_FIRST][15], 1, "the last bucket");
    });
}

#[test]
fn a_changed_translation_is_told_and_counted() {
    rig::with(&small(), |mut rig| {
        let [one, two] = rig::devices();
        let frame = |i| Frame::udp(A4, B4).id(i);
        for (i, (after, ifindex, translations)) in [
            (frame(0).dst(POD4), one, 0),
            (frame(1).dst(POD4), one, 0),
            // Another way out is not another translation.
            (frame(2).dst(POD4), two, 0),
            (frame(3).dst("10.244.3.3:8443"), two, 1),
            (frame(4).src(NODE4).dst("10.244.3.3:8443"), two, 2),
            (frame(5), one, 3),
        ]
        .into_iter()
        .enumerate()
        {
            enter(&mut rig, &frame(i as u16));
            exit(&mut rig, &after, ifindex);
            let cold = rig.look().flow().cold;
            assert_eq!(cold.after, after.key(0, ORIGIN_ENTER).tuple());
            assert_eq!(
                (cold.exit_ifindex, cold.translations, cold.exits),
                (ifindex, translations, i as u64 + 1)
            );
        }
    });
}

#[test]
fn a_forwarded_packet_with_nothing_pending_changes_nothing() {
    let options = LoadOptions {
        sample: 64,
        ..small()
    };
    rig::with(&options, |mut rig| {
        for exit in [EXIT_POD, EXIT_UPLINK, EXIT_UPLINK_IP] {
            for (_, frame) in super::headers::flows() {
                rig.run(exit, &bytes(&frame, exit), Skb::from_to(LO, LO));
            }
            // Nor one that has no headers to speak of.
            rig.run(exit, &[0; 60], Skb::from_to(LO, LO));
        }
        let seen = rig.take();
        assert!(seen.is_nothing(), "{seen:?}");
    });
}

#[test]
fn a_sampled_packet_is_matched_and_the_others_are_not_looked_for() {
    let options = LoadOptions {
        sample: 64,
        first_packets: 1,
        ..small()
    };
    rig::with(&options, |mut rig| {
        let frame = |i| Frame::udp(A4, B4).id(i);
        // The test thread may lose its CPU for longer than a passage is pending.
        let matched = (0..100).any(|_| {
            enter(&mut rig, &frame(0));
            exit(&mut rig, &frame(0).src(NODE4), LO);
            let seen = rig.look();
            assert_eq!(seen.event(Event::PassageLeft), 1);
            if seen.event(Event::ExitMatched) == 0 {
                assert!(seen.flow().cold.sequence == 0);
                rig.take();
                return false;
            }
            let cold = seen.flow().cold;
            expect_exit(&cold, &frame(0).src(NODE4), LO, NatKind::Snat, STAGE_FIRST);
            true
        });
        assert!(matched);
        for i in 1..64 {
            enter(&mut rig, &frame(i));
            exit(&mut rig, &frame(i).src(NODE4), LO);
        }
        let seen = rig.look();
        assert_eq!(events(&seen), [0, 0, 0, 0], "only the first was timed");
        assert_eq!(seen.flow().hot.skbs, 64);
        assert_eq!(seen.flow().cold.exits, 1);
    });
}

#[test]
fn a_passage_that_nothing_took_is_not_pending_for_long() {
    let options = LoadOptions {
        sample: 64,
        ..small()
    };
    rig::with(&options, |mut rig| {
        enter(&mut rig, &Frame::udp(A4, B4));
        rig.take();
        std::thread::sleep(Duration::from_millis(100));
        exit(&mut rig, &Frame::udp(A4, B4), LO);
        exit(&mut rig, &Frame::udp(A6, B6), LO);
        let seen = rig.take();
        assert!(seen.is_nothing(), "{seen:?}");
    });
}

#[test]
fn an_unmatched_exit_is_counted_and_leaves_the_passages() {
    rig::with(&small(), |mut rig| {
        exit(&mut rig, &Frame::udp(A4, B4), LO);
        let seen = rig.take();
        assert_eq!(events(&seen), [0, 0, 1, 0]);
        assert!(seen.flows.is_empty());

        let frame = Frame::tcp(A4, B4, PSH | ACK);
        enter(&mut rig, &frame);
        // Another packet of the same flow, by each thing that tells packets apart.
        let others = [
            frame.clone().id(7),
            frame.clone().seq(1),
            frame.clone().payload(31),
            Frame::tcp(A4, B4, ACK),
            Frame::udp(A4, B4),
        ];
        for other in &others {
            exit(&mut rig, other, LO);
        }
        let seen = rig.look();
        assert_eq!(events(&seen), [1, 0, others.len() as u64, 0]);
        assert_eq!(seen.flow().cold.exits, 0);
        exit(&mut rig, &frame, LO);
        assert_eq!(events(&rig.look()), [0, 1, 0, 0]);
        // A copy of it, as a bridge floods it: its passage is taken.
        exit(&mut rig, &frame, LO);
        let seen = rig.take();
        assert_eq!(events(&seen), [0, 0, 1, 0]);
        assert_eq!(seen.flow().cold.exits, 1);
    });
}

#[test]
fn a_forwarded_packet_without_readable_headers_is_counted_as_that() {
    rig::with(&small(), |mut rig| {
        for exit in [EXIT_POD, EXIT_UPLINK, EXIT_UPLINK_IP] {
            rig.run(exit, &[0; 60], Skb::from_to(LO, LO));
            let mut frame = bytes(&Frame::tcp(A4, B4, ACK), exit);
            let offset = if exit.link == Link::Ip { 32 } else { 46 };
            frame[offset] = 0x40;
            rig.run(exit, &frame, Skb::from_to(LO, LO));
            let seen = rig.take();
            assert_eq!(events(&seen), [0, 0, 0, 2]);
            assert!(seen.flows.is_empty());
            assert_eq!(seen.skips(), 0, "it was when it came in");
        }
    });
}

#[test]
fn the_nodes_own_packets_leave_no_passage() {
    rig::with(&small(), |mut rig| {
        for exit in [EXIT_POD, EXIT_UPLINK, EXIT_UPLINK_IP] {
            let frame = Frame::tcp(A4, B4, SYN);
            rig.run(exit, &bytes(&frame, exit), Skb::from_to(0, LO));
            rig.run(exit, &bytes(&frame, exit), Skb::from_to(LO, LO));
            let seen = rig.take();
            assert_eq!(events(&seen), [0, 0, 1, 0]);
            assert_eq!(seen.flow().hot.connections, 1);
            assert_eq!(seen.flow().cold.sequence, 0);
        }
    });
}

/// Two pods send the same datagram at once: its fingerprint is the same, as it leaves out the addresses.
#[test]
fn equal_datagrams_of_two_pods_are_told_apart_by_address() {
    rig::with(&small(), |mut rig| {
        let one = Frame::udp("10.244.1.1:5000", B4);
        let two = Frame::udp("10.244.1.2:5000", B4);
        let to = |frame: &Frame, dst| frame.clone().dst(dst);
        let from = |frame: &Frame, src| frame.clone().src(src);
        for (first, second, nat) in [
            (one.clone(), two.clone(), NatKind::None),
            (to(&one, POD4), to(&two, POD4), NatKind::Dnat),
            (to(&one, POD4), to(&two, "10.244.2.8:8443"), NatKind::Dnat),
        ] {
            for swapped in [false, true] {
                enter(&mut rig, &one);
                enter(&mut rig, &two);
                let (x, y) = if swapped {
                    (&second, &first)
                } else {
                    (&first, &second)
                };
                exit(&mut rig, x, LO);
                exit(&mut rig, y, LO);
                let seen = rig.take();
                assert_eq!(events(&seen), [2, 2, 0, 0]);
                for (before, after) in [(&one, &first), (&two, &second)] {
                    let cold = seen.flow_of(&before.key(LO, ORIGIN_ENTER)).cold;
                    expect_exit(&cold, after, LO, nat, STAGE_FIRST);
                }
            }
        }
        // Behind SNAT only the source port is left to tell, where NAT kept it.
        let one = Frame::udp("10.244.1.1:5000", B4);
        let two = Frame::udp("10.244.1.2:5001", B4);
        for swapped in [false, true] {
            enter(&mut rig, &one);
            enter(&mut rig, &two);
            let first = from(&one, "10.224.0.4:5000");
            let second = from(&two, "10.224.0.4:5001");
            let order = if swapped {
                [&second, &first]
            } else {
                [&first, &second]
            };
            for frame in order {
                exit(&mut rig, frame, LO);
            }
            let seen = rig.take();
            for (before, after) in [(&one, &first), (&two, &second)] {
                let cold = seen.flow_of(&before.key(LO, ORIGIN_ENTER)).cold;
                expect_exit(&cold, after, LO, NatKind::Snat, STAGE_FIRST);
            }
        }
    });
}

#[test]
fn an_overfull_passage_table_replaces_passages_and_loses_no_packet() {
    let options = LoadOptions {
        flow_cells: 65_536,
        ..small()
    };
    rig::with(&options, |mut rig| {
        let frames: Vec<Frame> = (0..2_000_u16)
            .map(|i| Frame::udp(&format!("10.244.1.1:{}", 1_000 + i), B4).id(i))
            .collect();
        for frame in &frames {
            enter(&mut rig, frame);
        }
        let seen = rig.look();
        let replaced = seen.event(Event::PassageReplaced);
        assert_eq!(seen.event(Event::PassageLeft), 2_000);
        assert!(replaced >= 2_000 - 512, "{replaced}");
        let sums = seen.by_key();
        assert_eq!(sums.len(), 2_000);
        assert!(sums.values().all(|&sum| sum == (1, 60)));
        for frame in &frames {
            exit(&mut rig, &frame.clone().src(NODE4), LO);
        }
        let seen = rig.take();
        assert_eq!(events(&seen), [0, 2_000 - replaced, replaced, 0]);
        let exits: u64 = seen.flows.iter().map(|f| f.cold.exits).sum();
        let spilled = seen.event(Event::Spilled);
        assert_eq!((exits, spilled), (2_000 - replaced, 0));
        // The older of two makes room.
        let last = seen.flow_of(&frames[1_999].key(LO, ORIGIN_ENTER));
        assert_eq!(last.cold.exits, 1);
    });
}

#[test]
fn a_packet_that_leaves_on_another_cpu_is_unmatched() {
    rig::with(&small(), |mut rig| {
        enter(&mut rig, &Frame::udp(A4, B4));
        if !bind(1) {
            println!("skipped: needs two CPUs");
            return;
        }
        exit(&mut rig, &Frame::udp(A4, B4), LO);
        assert_eq!(events(&rig.look()), [1, 0, 1, 0]);
        bind(0);
    });
}

#[test]
fn a_passage_of_a_retired_flow_is_credited_to_nobody() {
    rig::with(
        &LoadOptions {
            flow_cells: 4,
            ..small()
        },
        |mut rig| {
            let frame = Frame::udp(A4, B4);
            enter(&mut rig, &frame);
            let index = rig.look().flow().index;
            assert!(rig.datapath.source.close(index));
            exit(&mut rig, &frame, LO);
            let seen = rig.look();
            assert_eq!(events(&seen), [0, 1, 0, 0]);
            assert_eq!(seen.flow().cold.exits, 0, "closing");

            rig.datapath.source.free(index);
            enter(&mut rig, &frame);
            rig.take();
            // Other flows in all cells now.
            for port in 0..4 {
                enter(
                    &mut rig,
                    &Frame::udp("10.9.9.9:9", &format!("10.8.8.8:{port}")).id(port),
                );
            }
            exit(&mut rig, &frame, LO);
            let seen = rig.take();
            assert_eq!(events(&seen), [4, 1, 0, 0]);
            assert_eq!(seen.flows.len(), 4);
            assert!(seen.flows.iter().all(|f| f.cold.exits == 0));
        },
    );
}

#[test]
fn a_passage_of_a_spilled_flow_is_matched_without_a_cell() {
    rig::with(
        &LoadOptions {
            flow_cells: 4,
            ..small()
        },
        |mut rig| {
            for port in 0..10 {
                let frame = Frame::udp("10.9.9.9:9", &format!("10.8.8.8:{port}")).id(port);
                enter(&mut rig, &frame);
                exit(&mut rig, &frame.src(NODE4), LO);
            }
            let seen = rig.take();
            assert_eq!(events(&seen), [10, 10, 0, 0]);
            assert_eq!((seen.flows.len(), seen.spill.len()), (4, 6));
            assert!(seen.flows.iter().all(|f| f.cold.exits == 1));
        },
    );
}

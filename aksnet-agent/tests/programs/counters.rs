//! What one flow's counters say after several packets.

use aksnet_agent::bpf::LoadOptions;
use aksnet_common::{
    flow::{ORIGIN_ENTER, ORIGIN_NODE},
    stats::Event,
};

use crate::{
    frame::{ACK, FIN, Frame, PSH, QINQ, RST, SYN, VLAN},
    headers::{A4, A6, B4, B6, small},
    rig::{self, ENTER_POD, ENTER_UPLINK, ENTER_UPLINK_IP, EXIT_POD, HOOKS, LO, Rig, Skb},
};

fn enter(rig: &mut Rig, frame: &Frame) {
    rig.run(ENTER_POD, &frame.ethernet(), Skb::default());
}

#[test]
fn a_super_packet_counts_as_the_packets_and_bytes_it_stands_for() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS {
            for frame in [
                Frame::tcp(A4, B4, PSH | ACK),
                Frame::tcp(A4, B4, ACK).tcp_options(12),
                Frame::tcp(A4, B4, ACK).options(8).tags(&[VLAN]),
                Frame::tcp(A6, B6, ACK).tcp_options(12),
                Frame::tcp(A6, B6, ACK)
                    .extensions(&[60])
                    .tags(&[QINQ, VLAN]),
                Frame::udp(A4, B4),
                Frame::udp(A6, B6),
            ] {
                // What the kernel says of the packet, its payload, and the packets it stands for.
                for (segs, size, payload, packets) in [
                    (0, 0, 3000, 1),
                    (1, 0, 3000, 1),
                    (1, 1448, 1448, 1),
                    (3, 1000, 3000, 3),
                    (3, 1000, 2001, 3),
                    (45, 64, 2880, 45),
                    // A guest's packet: the kernel knows only the size.
                    (0, 1000, 3000, 3),
                    (0, 1000, 3001, 4),
                    (0, 1000, 2999, 3),
                    (0, 1000, 1001, 2),
                    (0, 1000, 1000, 1),
                    (0, 1000, 999, 1),
                    (0, 1000, 0, 1),
                    (0, 1, 100, 100),
                ] {
                    let frame = frame.clone().payload(payload);
                    let bytes = super::headers::bytes(&frame, hook);
                    rig.run(hook, &bytes, Skb::gso(segs, size));
                    let seen = rig.take();
                    let hot = seen.flow().hot;
                    let further = packets - 1;
                    let headers = (frame.header_len() + frame.transport_len()) as u64;
                    assert_eq!(
                        (hot.skbs, hot.bytes, hot.gso_packets, hot.gso_bytes),
                        (1, frame.ip_len() as u64, further, further * headers),
                        "{segs} of {size} in {payload}: {frame:?}"
                    );
                }
            }
        }
    });
}

#[test]
fn a_super_packet_beyond_64_kib_counts_its_own_length() {
    rig::with(&small(), |mut rig| {
        if !rig.makes_long_packets() {
            return;
        }
        for (frame, header) in [(Frame::tcp(A4, B4, ACK), 40), (Frame::tcp(A6, B6, ACK), 60)] {
            for payload in [65_540_usize, 66_000, 68_000] {
                let frame = frame.clone().payload(payload);
                let skb = Skb::gso(0, 1400);
                rig.run(ENTER_POD, &frame.ethernet(), skb);
                let hot = rig.take().flow().hot;
                let further = payload.div_ceil(1400) as u64 - 1;
                assert_eq!(
                    (hot.skbs, hot.bytes, hot.gso_packets, hot.gso_bytes),
                    (
                        1,
                        (payload + header) as u64,
                        further,
                        further * header as u64
                    )
                );
            }
        }
    });
}

#[test]
fn counts_of_one_flow_add_up() {
    rig::with(&small(), |mut rig| {
        let mut expected = (0, 0, 0, 0);
        for i in 0..100 {
            let frame = Frame::udp(A6, B6).payload(500 + i);
            let segs = i as u32 % 4;
            rig.run(ENTER_UPLINK, &frame.ethernet(), Skb::gso(segs, 0));
            let further = u64::from(segs.max(1) - 1);
            expected.0 += 1;
            expected.1 += frame.ip_len() as u64;
            expected.2 += further;
            expected.3 += further * 48;
        }
        let hot = rig.take().flow().hot;
        assert_eq!(
            (hot.skbs, hot.bytes, hot.gso_packets, hot.gso_bytes),
            expected
        );
    });
}

#[test]
fn tcp_flags_are_those_of_all_packets() {
    rig::with(&small(), |mut rig| {
        for (a, b) in [(A4, B4), (A6, B6)] {
            let mut all = 0;
            for flags in [SYN, ACK, PSH | ACK, 0x20, 0x40 | ACK, 0x80, FIN | ACK, RST] {
                enter(&mut rig, &Frame::tcp(a, b, flags));
                all |= u32::from(flags);
                let seen = rig.look();
                assert_eq!(seen.flow().hot.tcp_flags, all);
            }
            assert_eq!(all, 0xff);
            rig.take();
        }
    });
}

#[test]
fn each_new_syn_is_a_connection_and_each_repeated_one_a_retransmit() {
    rig::with(&small(), |mut rig| {
        let syn = Frame::tcp(A4, B4, SYN);
        // A first sequence number of 0 is as good as any.
        for (seq, connections, retransmits) in [
            (0, 1, 0),
            (0, 1, 1),
            (0, 1, 2),
            (5, 2, 2),
            (5, 2, 3),
            (0xffff_ffff, 3, 3),
        ] {
            let before = rig.look().flows.first().map_or(0, |f| f.hot.syn_ns);
            enter(&mut rig, &syn.clone().seq(seq));
            let hot = rig.look().flow().hot;
            assert_eq!(
                (hot.connections, hot.retransmits),
                (connections, retransmits)
            );
            assert_eq!((hot.syn_seq, hot.max_seq), (seq, seq.wrapping_add(1)));
            let repeated = before != 0 && hot.syn_ns == before;
            let news = hot.syn_ns > before;
            assert!(
                repeated != news,
                "the time of the SYN that was not repeated"
            );
            assert_eq!(
                news,
                [(0, 0), (5, 2), (0xffff_ffff, 3)].contains(&(seq, retransmits))
            );
        }
    });
}

#[test]
fn a_syn_ack_has_a_time_but_opens_no_connection() {
    rig::with(&small(), |mut rig| {
        let answer = Frame::tcp(A6, B6, SYN | ACK);
        enter(&mut rig, &answer);
        let first = rig.look().flow().hot;
        assert_eq!((first.connections, first.retransmits), (0, 0));
        assert_ne!(first.syn_ns, 0);
        enter(&mut rig, &answer);
        let second = rig.look().flow().hot;
        assert_eq!((second.connections, second.retransmits), (0, 1));
        assert_eq!(second.syn_ns, first.syn_ns);
    });
}

#[test]
fn data_below_the_highest_sequence_number_is_retransmitted() {
    rig::with(&small(), |mut rig| {
        for start in [0, 1_000, 0x7fff_fff0, 0x8000_0000, 0xffff_fff0_u32] {
            enter(&mut rig, &Frame::tcp(A4, B4, SYN).seq(start));
            let data = |at: u32, len: usize| {
                Frame::tcp(A4, B4, ACK)
                    .seq(start.wrapping_add(at))
                    .payload(len)
            };
            for (frame, segs, retransmits) in [
                (data(1, 100), 0, 0),
                (data(101, 100), 0, 0),
                // Wholly below.
                (data(1, 100), 0, 1),
                (data(101, 100), 0, 2),
                (data(150, 20), 0, 3),
                // Partly new, and new beyond a gap.
                (data(150, 100), 0, 3),
                (data(1_000, 100), 0, 3),
                // Neither an empty packet nor a keep-alive without data.
                (data(1, 0), 0, 3),
                (data(1_099, 0), 0, 3),
                // A whole super-packet.
                (data(100, 1_000), 4, 7),
                (data(1_100, 1_000), 4, 7),
            ] {
                rig.run(ENTER_POD, &frame.ethernet(), Skb::gso(segs, 0));
                let hot = rig.look().flow().hot;
                assert_eq!(hot.retransmits, retransmits, "{start}: {frame:?}");
            }
            let hot = rig.take().flow().hot;
            assert_eq!(hot.max_seq, start.wrapping_add(2_100));
        }
    });
}

/// The agent starts, or a cell is taken anew, in the middle of a connection.
#[test]
fn a_flow_first_met_with_an_empty_packet_has_no_retransmits() {
    rig::with(&small(), |mut rig| {
        for start in [1_000, 0x7fff_ff00, 0x9000_0000, 0xffff_ff00_u32] {
            enter(&mut rig, &Frame::tcp(A4, B4, ACK).seq(start).payload(0));
            for i in 0..10 {
                let seq = start.wrapping_add(i * 100);
                enter(&mut rig, &Frame::tcp(A4, B4, ACK).seq(seq).payload(100));
            }
            let hot = rig.take().flow().hot;
            assert_eq!((hot.retransmits, hot.connections), (0, 0), "from {start}");
            assert_eq!(hot.max_seq, start.wrapping_add(1_000));
        }
    });
}

#[test]
fn later_fragments_of_tcp_are_never_retransmits() {
    rig::with(&small(), |mut rig| {
        for (a, b) in [(A4, B4), (A6, B6)] {
            for i in 0..10 {
                let data = Frame::tcp(a, b, ACK).id(i).payload(160);
                enter(&mut rig, &data.clone().piece(20, true));
                enter(&mut rig, &data.piece(40, false));
            }
            let hot = rig.take().flow().hot;
            assert_eq!((hot.skbs, hot.retransmits, hot.max_seq), (20, 0, 0));
            assert_eq!((hot.connections, hot.tcp_flags), (0, 0));
        }
    });
}

#[test]
fn other_protocols_are_one_connection_however_many_packets() {
    rig::with(&small(), |mut rig| {
        for (a, b) in [(A4, B4), (A6, B6)] {
            for frame in [
                Frame::udp(a, b),
                Frame::sctp(a, b),
                Frame::echo(a, b, 5),
                Frame::other(a, b, 47),
                Frame::udp(a, b).piece(20, true),
            ] {
                for _ in 0..10 {
                    enter(&mut rig, &frame);
                }
                let hot = rig.take().flow().hot;
                assert_eq!((hot.skbs, hot.connections), (10, 1), "{frame:?}");
            }
        }
    });
}

#[test]
fn times_are_those_of_the_first_and_the_last_packet() {
    rig::with(&small(), |mut rig| {
        let now = || {
            let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
                .expect("the monotonic clock");
            time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
        };
        let before = now();
        enter(&mut rig, &Frame::udp(A4, B4));
        let after = now();
        let first = rig.look().flow().hot;
        assert!((before..=after).contains(&first.first_ns));
        std::thread::sleep(std::time::Duration::from_millis(50));
        enter(&mut rig, &Frame::udp(A4, B4));
        let second = rig.look().flow().hot;
        assert_eq!(second.first_ns, first.first_ns);
        let jiffies = second.last_jiffies.wrapping_sub(first.last_jiffies);
        assert!((4..1000).contains(&jiffies), "{jiffies} in 50 ms");
    });
}

#[test]
fn the_first_packets_and_one_in_n_are_timed() {
    // One in, first, packets → timed.
    for (sample, first_packets, packets, timed) in [
        (64, 4, 200, 4 + 3),
        (2, 0, 99, 50),
        (64, 100, 200, 100 + 2),
        (1024, 0, 200, 1),
        (1, 4, 150, 150),
    ] {
        let options = LoadOptions {
            sample,
            first_packets,
            ..small()
        };
        rig::with(&options, |mut rig| {
            for (a, b) in [(A4, B4), (A6, B6)] {
                for frame in [Frame::udp(a, b), Frame::tcp(a, b, ACK)] {
                    for i in 0..packets {
                        enter(&mut rig, &frame.clone().id(i).seq(1_000 * u32::from(i)));
                    }
                    let seen = rig.take();
                    assert_eq!(seen.flow().hot.skbs, u64::from(packets));
                    assert_eq!(
                        seen.event(Event::PassageLeft),
                        timed,
                        "one in {sample} and the first {first_packets} of {packets}: {frame:?}"
                    );
                }
            }
            assert_eq!(
                (sample, rig.take().event(Event::PassageLeft)),
                (sample, 0),
                "each packet once"
            );
        });
    }
}

#[test]
fn every_syn_is_timed() {
    let options = LoadOptions {
        sample: 1024,
        first_packets: 0,
        ..small()
    };
    rig::with(&options, |mut rig| {
        for i in 0..20 {
            enter(&mut rig, &Frame::tcp(A4, B4, SYN).seq(i * 7));
            enter(&mut rig, &Frame::tcp(A4, B4, ACK).seq(i * 7 + 1));
        }
        let seen = rig.take();
        assert_eq!(seen.event(Event::PassageLeft), 20);
        assert_eq!(seen.flow().hot.connections, 20);
    });
}

#[test]
fn interface_and_origin_tell_flows_apart() {
    rig::with(&small(), |mut rig| {
        let [a, b] = rig::devices();
        let frame = Frame::tcp(A4, B4, ACK);
        for (hook, skb) in [
            (ENTER_POD, Skb::default()),
            (ENTER_POD, Skb::from_to(a, a)),
            (ENTER_UPLINK, Skb::from_to(b, b)),
            (EXIT_POD, Skb::from_to(0, a)),
            (EXIT_POD, Skb::from_to(0, b)),
        ] {
            rig.run(hook, &frame.ethernet(), skb);
        }
        rig.run(ENTER_UPLINK_IP, &frame.ip(), Skb::from_to(b, b));
        let seen = rig.take();
        assert_eq!(seen.flows.len(), 5);
        for (ifindex, origin, packets) in [
            (LO, ORIGIN_ENTER, 1),
            (a, ORIGIN_ENTER, 1),
            (b, ORIGIN_ENTER, 2),
            (a, ORIGIN_NODE, 1),
            (b, ORIGIN_NODE, 1),
        ] {
            let flow = seen.flow_of(&frame.key(ifindex, origin));
            assert_eq!(flow.hot.skbs, packets);
        }
    });
}

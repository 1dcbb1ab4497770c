//! Random packets through the real cell protocol: every count is found again, once.

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{FlowKey, Sampling},
    packet::{ACK, SYN, TCP, UDP},
    passage::Tuple,
};
use proptest::prelude::*;

use super::{Node, UPLINK, egress};
use crate::collect::{
    Accounted,
    fake::{FakeExit, FakePacket, FakeSource, Ticket},
};

/// What a random node does next.
#[derive(Clone, Debug)]
enum Step {
    Packet {
        flow: u8,
        bytes: u16,
        gso: u8,
        tcp: u8,
        again: bool,
        exit: Option<(u32, bool)>,
    },
    /// The same, but the packet stays under way until the next step that is not a packet.
    Slow {
        flow: u8,
    },
    Sweep {
        ms: u16,
    },
    Drop {
        flow: u8,
        n: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (any::<u8>(), 20u16..1500, 0u8..44, any::<u8>(), prop::bool::weighted(0.1),
               prop::option::of((0u32..1_000_000, any::<bool>())))
            .prop_map(|(flow, bytes, gso, tcp, again, exit)| Step::Packet { flow, bytes, gso, tcp, again, exit }),
        2 => any::<u8>().prop_map(|flow| Step::Slow { flow }),
        3 => prop_oneof![Just(1u16), 15u16..200, 4_000u16..65_000].prop_map(|ms| Step::Sweep { ms }),
        1 => (any::<u8>(), 1u8..9).prop_map(|(flow, n)| Step::Drop { flow, n }),
    ]
}

/// One of 48 flows: TCP and UDP, out and back, with NAT and without.
fn random_flow(n: u8) -> (FlowKey, Tuple) {
    let protocol = if n & 1 == 0 { TCP } else { UDP };
    let port = 40_000 + u16::from(n / 4 % 12);
    let (out, out_after, back, back_after) = egress(port);
    let (mut key, after) = if n & 2 == 0 {
        (out, out_after)
    } else {
        (back, back_after)
    };
    key.protocol = protocol;
    let after = if (n / 4).is_multiple_of(3) {
        key.tuple()
    } else {
        after
    };
    (key, after)
}

proptest! {
    #[test]
    fn everything_played_is_accounted_exactly_once(
        steps in prop::collection::vec(step(), 1..200),
        buckets in prop::sample::select(vec![1usize, 2, 8, 64]),
        spill in 0usize..6,
    ) {
        let mut node = Node::with(FakeSource::new(buckets, spill));
        let mut played = Accounted::default();
        let mut slow: Vec<(FakePacket, Ticket)> = Vec::new();
        let account = |played: &mut Accounted, packet: &FakePacket, ticket: Ticket| {
            if ticket == Ticket::Overflow {
                return;
            }
            played.skbs += 1;
            played.packets += 1 + packet.gso_packets;
            played.bytes += packet.bytes + packet.gso_bytes;
            if let (Some(exit), Ticket::Cell(..)) = (packet.exit, ticket) {
                if exit.ifindex == 0 {
                    played.timed_drops += 1;
                } else {
                    played.exits += 1;
                }
            }
        };
        let mut tcp_opened = 0;
        for step in steps {
            match step {
                Step::Packet { flow, bytes, gso, tcp, again, exit } => {
                    let (key, after) = random_flow(flow);
                    let packet = FakePacket {
                        key,
                        ns: node.ns,
                        bytes: u64::from(bytes),
                        gso_packets: u64::from(gso),
                        gso_bytes: u64::from(gso) * 40,
                        tcp,
                        again,
                        exit: exit.map(|(ns, dropped)| FakeExit {
                            after: if dropped { key.tuple() } else { after },
                            ifindex: if dropped { 0 } else { UPLINK },
                            ns: u64::from(ns),
                            stage: usize::from(ns % 2 == 0),
                        }),
                    };
                    let ticket = node.source.begin(&packet);
                    node.source.complete(&packet, ticket);
                    account(&mut played, &packet, ticket);
                    let opens = key.protocol == TCP && tcp & (SYN | ACK) == SYN && !again;
                    tcp_opened += u64::from(opens && ticket != Ticket::Overflow);
                }
                Step::Slow { flow } => {
                    let (key, _) = random_flow(flow);
                    let packet = FakePacket { key, ns: node.ns, bytes: 64, ..FakePacket::default() };
                    let ticket = node.source.begin(&packet);
                    // A spill entry may be taken before its packet counts; the kernel's epochs rule that out.
                    if let Ticket::Cell(..) = ticket {
                        slow.push((packet, ticket));
                    } else {
                        node.source.complete(&packet, ticket);
                    }
                    account(&mut played, &packet, ticket);
                }
                Step::Sweep { ms } => {
                    // Packets are under way for less than the quiet time.
                    node.after(1).sweep();
                    for (packet, ticket) in slow.drain(..) {
                        node.source.complete(&packet, ticket);
                    }
                    node.after(u64::from(ms));
                    let report = node.sweep();
                    prop_assert!(report.errors.is_empty());
                }
                Step::Drop { flow, n } => {
                    let (key, _) = random_flow(flow);
                    let stats = DropStats {
                        skbs: u64::from(n),
                        bytes: u64::from(n) * 60,
                        last_ns: node.ns,
                        ..DropStats::default()
                    };
                    node.source.drop(DropKey { key, reason: u32::from(flow % 4), ..DropKey::default() }, &stats);
                    played.dropped_packets += u64::from(n);
                    played.dropped_bytes += u64::from(n) * 60;
                }
            }
        }
        for (packet, ticket) in slow.drain(..) {
            node.source.complete(&packet, ticket);
        }
        node.finish();
        let mut accounted = *node.collector.accounted();
        let connections = std::mem::take(&mut accounted.connections);
        prop_assert_eq!(accounted, played);
        prop_assert!(connections >= tcp_opened);

        // A second last sweep finds nothing more, and the families hold what was accounted.
        node.finish();
        prop_assert_eq!(node.collector.accounted().packets, played.packets);
        let families = node.collector.metrics().lock();
        let total = families.flow.total(&families.symbols);
        prop_assert_eq!((total.packets, total.bytes, total.connections), (played.packets, played.bytes, connections));
        prop_assert_eq!(families.nat.count(), played.exits);
        prop_assert_eq!(families.drops.total(&families.symbols), (played.dropped_packets, played.dropped_bytes));
    }
}

proptest! {
    /// Each step: packets of some flows, of which some leave only after the next look, which is then all that is not known.
    #[test]
    fn where_few_packets_are_timed_no_look_misses_one_that_has_left(
        steps in prop::collection::vec(
            prop::collection::vec((any::<u8>(), any::<u8>(), any::<bool>(), any::<bool>()), 0..12),
            1..40,
        ),
        mask in prop::sample::select(vec![0u32, 1, 3, 63]),
        first in 0u32..4,
    ) {
        let mut node = Node::new();
        node.source.sampling = Sampling { mask, first };
        let mut late: Vec<(FakePacket, Ticket)> = Vec::new();
        let mut left = 0;
        for packets in steps {
            for (packet, ticket) in late.drain(..) {
                node.source.leave(&packet, ticket);
                left += 1;
            }
            for (flow, tcp, again, stays) in packets {
                let (key, after) = random_flow(flow);
                let packet = FakePacket {
                    key,
                    ns: node.ns,
                    bytes: 64,
                    tcp,
                    again,
                    exit: Some(FakeExit { after, ifindex: UPLINK, ns: 3_000, stage: 1 }),
                    ..FakePacket::default()
                };
                let ticket = node.source.begin(&packet);
                if !node.source.count(&packet, ticket) {
                    continue;
                }
                if stays {
                    late.push((packet, ticket));
                } else {
                    node.source.leave(&packet, ticket);
                    left += 1;
                }
            }
            // Long enough for new flows to settle.
            node.after(200).sweep();
            prop_assert_eq!(node.collector.accounted().exits, left);
        }
    }
}

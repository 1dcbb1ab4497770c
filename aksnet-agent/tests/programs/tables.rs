//! Tables too small for their flows lose detail but no packet; cells are given back and used again.

use std::{collections::BTreeMap, time::Duration};

use aksnet_agent::{bpf::LoadOptions, collect::source::Source as _};
use aksnet_common::{
    cell::{self, QUIET_MS},
    flow::{ColdCell, FlowKey, HotCell, ORIGIN_ENTER, SpillStats},
    stats::{Event, Role},
};

use crate::{
    frame::{ACK, Frame, PSH, SYN},
    headers::{A4, B4, small},
    rig::{self, ENTER_POD, ENTER_UPLINK, EXIT_POD, LO, Rig, Seen, Skb},
};

/// Flow number `i`: every third TCP, every second IPv6.
pub fn numbered(i: u16, flags: u8) -> Frame {
    let (src, dst) = if i.is_multiple_of(2) {
        (format!("10.244.3.{}:{i}", i % 250), B4.to_owned())
    } else {
        (format!("[fd12::{i}]:{i}"), "[fd00::1]:53".to_owned())
    };
    if i.is_multiple_of(3) {
        Frame::tcp(&src, &dst, flags).payload(usize::from(i % 100))
    } else {
        Frame::udp(&src, &dst).payload(usize::from(i % 100))
    }
}

/// Sums over cells, spill and overflow.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    skbs: u64,
    bytes: u64,
    gso_packets: u64,
    gso_bytes: u64,
}

impl Sum {
    fn add(&mut self, skbs: u64, bytes: u64, gso_packets: u64, gso_bytes: u64) {
        self.skbs += skbs;
        self.bytes += bytes;
        self.gso_packets += gso_packets;
        self.gso_bytes += gso_bytes;
    }

    fn add_cell(&mut self, c: &HotCell) {
        self.add(c.skbs, c.bytes, c.gso_packets, c.gso_bytes);
    }

    fn add_spill(&mut self, s: &SpillStats) {
        self.add(s.skbs, s.bytes, s.gso_packets, s.gso_bytes);
    }

    fn of(seen: &Seen) -> Self {
        let mut sum = Self::default();
        seen.flows.iter().for_each(|f| sum.add_cell(&f.hot));
        seen.spill.iter().for_each(|(_, s)| sum.add_spill(s));
        seen.overflow.iter().for_each(|s| sum.add_spill(s));
        sum
    }
}

#[test]
fn totals_stay_exact_when_cells_and_spill_are_full() {
    for flow_cells in [4, 16] {
        let options = LoadOptions {
            flow_cells,
            spill_entries: 2,
            ..small()
        };
        rig::with(&options, |mut rig| {
            let mut expected = Sum::default();
            let mut by_key: BTreeMap<FlowKey, u64> = BTreeMap::new();
            let mut syns = 0;
            for round in 0..10 {
                for i in 0..1_000 {
                    let frame = numbered(i, if round == 0 { SYN } else { PSH | ACK });
                    let hook = [ENTER_POD, ENTER_UPLINK, EXIT_POD][usize::from(i % 3)];
                    let segs = u32::from(i % 4);
                    rig.run(hook, &frame.ethernet(), Skb::gso(segs, 0));
                    let further = u64::from(segs.max(1) - 1);
                    let headers = (frame.header_len() + frame.transport_len()) as u64;
                    expected.add(1, frame.ip_len() as u64, further, further * headers);
                    *by_key.entry(frame.key(LO, hook.origin)).or_default() += 1;
                    syns += u64::from(round == 0 && frame.protocol() == 6);
                }
            }
            assert_eq!((expected.skbs, by_key.len()), (10_000, 1_000));
            let seen = rig.look();
            assert_eq!(Sum::of(&seen), expected);
            assert_eq!(
                (seen.flows.len(), seen.spill.len()),
                (flow_cells as usize, 2)
            );
            // A flow that has a place has all its packets there: they came to it from the first on.
            for (key, (skbs, _)) in seen.by_key() {
                assert_eq!(skbs, by_key[&key], "{key:?}");
            }
            let spilled: u64 = seen.spill.iter().map(|(_, s)| s.skbs).sum();
            let overflowed: u64 = seen.overflow.iter().map(|s| s.skbs).sum();
            assert_eq!(seen.event(Event::CellClaimed), u64::from(flow_cells));
            assert_eq!(seen.event(Event::Spilled), spilled);
            assert_eq!(seen.event(Event::Overflowed), overflowed);
            assert_eq!(spilled, 20);

            // By role: each flow kept to one of the programs.
            let mut of_role = [0; Role::COUNT as usize];
            for i in 0..1_000_u16 {
                let hook = [ENTER_POD, ENTER_UPLINK, EXIT_POD][usize::from(i % 3)];
                let key = numbered(i, 0).key(LO, hook.origin);
                if !seen.by_key().contains_key(&key) {
                    of_role[hook.role as usize] += 10;
                }
            }
            assert_eq!(seen.overflow.map(|o| o.skbs), of_role);

            // Connections of TCP: every SYN, wherever it was counted.
            let of_tcp = |key: &FlowKey| key.protocol == 6;
            let in_cells = seen.flows.iter().filter(|f| of_tcp(&f.hot.key));
            let in_spill = seen.spill.iter().filter(|(k, _)| of_tcp(k));
            let connections = in_cells
                .map(|f| u64::from(f.hot.connections))
                .chain(in_spill.map(|(_, s)| s.connections))
                .chain(seen.overflow.iter().map(|o| o.connections))
                .sum::<u64>();
            assert_eq!(connections, syns);
        });
    }
}

#[test]
fn a_spilled_flow_has_the_same_counts_as_one_in_a_cell() {
    let options = LoadOptions {
        flow_cells: 4,
        ..small()
    };
    rig::with(&options, |mut rig| {
        for i in 0..4 {
            rig.run(ENTER_POD, &numbered(i, SYN).ethernet(), Skb::default());
        }
        let tcp = |flags| Frame::tcp(A4, B4, flags).payload(100);
        for (flags, segs) in [(SYN, 0), (PSH | ACK, 0), (ACK, 3), (SYN, 0), (SYN | ACK, 0)] {
            rig.run(ENTER_POD, &tcp(flags).ethernet(), Skb::gso(segs, 0));
        }
        let udp = Frame::udp(A4, B4).payload(10);
        for _ in 0..3 {
            rig.run(ENTER_POD, &udp.ethernet(), Skb::default());
        }
        let seen = rig.take();
        assert_eq!(seen.flows.len(), 4);
        let mut spill = seen.spill.clone();
        spill.sort_unstable_by_key(|(key, _)| key.protocol);
        let expected = [
            (
                tcp(SYN).key(LO, ORIGIN_ENTER),
                SpillStats {
                    skbs: 5,
                    bytes: 5 * 140,
                    gso_packets: 2,
                    gso_bytes: 80,
                    tcp_flags: u64::from(SYN | ACK | PSH),
                    // Every SYN that opens; nobody keeps the last sequence number here.
                    connections: 2,
                },
            ),
            (
                udp.key(LO, ORIGIN_ENTER),
                SpillStats {
                    skbs: 3,
                    bytes: 3 * 38,
                    connections: 1,
                    ..SpillStats::default()
                },
            ),
        ];
        assert_eq!(spill, expected);
    });
}

#[test]
fn each_spilled_packet_is_taken_once_over_many_sweeps() {
    let options = LoadOptions {
        flow_cells: 4,
        spill_entries: 8,
        ..small()
    };
    rig::with(&options, |mut rig| {
        let mut spilled: BTreeMap<FlowKey, u64> = BTreeMap::new();
        let (mut overflowed, mut packets) = (0, 0);
        for sweep in 0..40_u16 {
            for i in 0..sweep {
                let frame = numbered(i % 20, ACK);
                rig.run(ENTER_UPLINK, &frame.ethernet(), Skb::default());
                packets += 1;
            }
            let seen = rig.look();
            for (key, stats) in &seen.spill {
                *spilled.entry(*key).or_default() += stats.skbs;
            }
            assert!(seen.spill.len() <= 8);
            overflowed += seen.overflow[Role::Uplink as usize].skbs;
            // Nothing came meanwhile.
            let again = rig.look();
            assert!(again.spill.is_empty());
        }
        let in_cells: u64 = rig.look().flows.iter().map(|f| f.hot.skbs).sum();
        let in_spill: u64 = spilled.values().sum();
        assert!(in_cells > 0 && in_spill > 0 && overflowed > 0);
        assert_eq!(in_cells + in_spill + overflowed, packets);
        let drops = rig.datapath.source.take_drops().expect("the drops");
        assert!(drops.is_empty());
    });
}

fn all_zero(hot: &HotCell, cold: &ColdCell) -> bool {
    format!("{hot:?}") == format!("{:?}", HotCell::default())
        && format!("{cold:?}") == format!("{:?}", ColdCell::default())
}

#[track_caller]
fn enter(rig: &mut Rig, frame: &Frame) {
    rig.run(ENTER_POD, &frame.ethernet(), Skb::from_to(LO, LO));
}

#[test]
fn a_closed_cell_takes_no_packet_and_a_freed_one_is_used_again() {
    rig::with(
        &LoadOptions {
            flow_cells: 4,
            ..small()
        },
        |mut rig| {
            let frame = Frame::tcp(A4, B4, SYN);
            let data = Frame::tcp(A4, B4, ACK).seq(1_001);
            enter(&mut rig, &frame);
            rig.run(EXIT_POD, &frame.ethernet(), Skb::from_to(LO, LO));
            let first = *rig.look().flow();
            let index = first.index;
            assert_eq!(first.cold.exits, 1);
            let source = &rig.datapath.source;
            source.free(index);
            assert_eq!(source.state(index) & cell::PHASE, cell::LIVE, "not closed");
            assert!(source.close(index));
            assert!(!source.close(index), "closed already");
            assert_eq!(source.state(index) & cell::PHASE, cell::CLOSING);
            for other in (0..4).filter(|&other| other != index) {
                assert!(!source.close(other), "nobody's");
            }

            // The flow goes on in another cell; the closed one keeps its last counts.
            enter(&mut rig, &data);
            let seen = rig.look();
            assert_eq!(seen.flows.len(), 2);
            for flow in &seen.flows {
                assert_eq!((flow.hot.key, flow.hot.skbs), (first.hot.key, 1));
            }
            std::thread::sleep(Duration::from_millis(QUIET_MS));
            let source = &rig.datapath.source;
            let last = source.hot(index);
            assert_eq!((last.skbs, last.bytes, last.connections), (1, 40, 1));
            assert_eq!(source.counts(index), (1, 40));
            source.free(index);
            assert!(all_zero(&source.hot(index), &source.cold(index)));

            // Three other flows: one of them gets the freed cell, and starts from nothing there.
            for i in 1..4 {
                enter(&mut rig, &numbered(i * 2, SYN));
            }
            let seen = rig.look();
            assert_eq!((seen.flows.len(), seen.spill.len()), (4, 0));
            let reused = seen.flows.iter().find(|f| f.index == index);
            let reused = reused.expect("the freed cell is in use");
            assert_ne!(reused.hot.key, first.hot.key);
            assert_eq!((reused.hot.skbs, reused.hot.retransmits), (1, 0));
            assert_eq!(reused.cold.exits, 0);
            assert_ne!(reused.hot.first_ns, 0);
        },
    );
}

#[test]
fn a_flow_whose_bucket_is_full_of_closing_cells_spills_until_they_are_freed() {
    rig::with(
        &LoadOptions {
            flow_cells: 4,
            ..small()
        },
        |mut rig| {
            for i in 0..4 {
                enter(&mut rig, &numbered(i, ACK));
            }
            assert_eq!(rig.look().flows.len(), 4);
            for index in 0..4 {
                assert!(rig.datapath.source.close(index));
            }
            for i in 0..4 {
                enter(&mut rig, &numbered(i, ACK));
            }
            let seen = rig.look();
            assert_eq!((seen.flows.len(), seen.spill.len()), (4, 4));
            assert!(seen.by_key().values().all(|&(skbs, _)| skbs == 2));
            for index in 0..4 {
                rig.datapath.source.free(index);
            }
            for i in 0..4 {
                enter(&mut rig, &numbered(i, ACK));
            }
            let seen = rig.look();
            assert_eq!((seen.flows.len(), seen.spill.len()), (4, 0));
            assert!(seen.flows.iter().all(|f| f.hot.skbs == 1));
        },
    );
}

#[test]
fn every_cell_of_the_table_can_be_used() {
    rig::with(
        &LoadOptions {
            flow_cells: 256,
            spill_entries: 4_096,
            ..small()
        },
        |mut rig| {
            for i in 0..4_000 {
                enter(&mut rig, &numbered(i, ACK));
            }
            let seen = rig.take();
            assert_eq!(seen.flows.len(), 256);
            assert_eq!(seen.spill.len(), 4_000 - 256);
            assert_eq!(seen.by_key().len(), 4_000, "no flow in two places");
        },
    );
}

//! What a cell's counters added since the last look, and the compact memory that this takes.
//!
//! Counters of a cell only grow, so a delta is a difference, and a count that one look misses (its packet
//! lay between two reads) is in the next. There is one `Seen` per cell in a flat table, one cache line
//! each, as a sweep walks all of them; a `ColdSeen` is touched only when a packet of the flow was timed.

use aksnet_common::flow::{ColdCell, HotCell, Sampling, TIME_BUCKETS};
use bytemuck::Zeroable;

use crate::{
    classify::{Anomaly, Class},
    metrics::{
        flow::{FlowHandles, NOT_NATED},
        histogram::PathTimes,
    },
};

/// The cell's flow has been judged: it has a class and series.
pub(super) const KNOWN: u16 = 1;
/// Its packets are the replies of a connection.
pub(super) const REPLY: u16 = 1 << 1;
/// Which side it is rests on evidence or on its partner, not on a guess.
pub(super) const SURE: u16 = 1 << 2;
/// The agent has closed the cell.
pub(super) const CLOSED: u16 = 1 << 3;
/// Look at the cell once more even if no packet came: the last one may still have been under way.
pub(super) const RECHECK: u16 = 1 << 4;
/// Its latest SYN has neither been answered nor given up.
pub(super) const PENDING: u16 = 1 << 5;
/// A connection was opened after an earlier one of the same tuple had finished.
pub(super) const REOPENED: u16 = 1 << 6;
/// The flow has another cell that was there first.
pub(super) const TWIN: u16 = 1 << 7;
/// A flow that spilled, so that its times are not known, has answered the latest SYN.
pub(super) const HEARD: u16 = 1 << 10;
/// Two bits: the connection's [`aksnet_common::passage::NatKind`].
pub(super) const NAT_SHIFT: u16 = 8;
/// An end of it had no name when it was judged.
pub(super) const NAMELESS: u16 = 1 << 11;
/// Two bits: one more than the number of the connection's [`Anomaly`], 0 for none.
const ANOMALY_SHIFT: u16 = 12;

/// Policies deny it; see `gap`.
pub(super) const GAP: u16 = 1 << 14;
/// Of the packets that were new at the last look, some may be timed, and still have been under way then.
pub(super) const TIMED: u16 = 1 << 15;

/// What of a cell's hot half has been accounted, and to which series.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Seen {
    pub(super) skbs: u64,
    pub(super) bytes: u64,
    pub(super) syn_ns: u64,
    gso_bytes: u64,
    /// Low 32 bits: no flow carries 2^32 further packets from one sweep to the next.
    gso_packets: u32,
    connections: u32,
    retransmits: u32,
    /// Low 32 bits of the number of timed packets.
    pub(super) timed: u32,
    /// When the counters last changed, or when the cell was closed; milliseconds of the collector's clock.
    pub(super) changed: u32,
    pub(super) flow: u32,
    pub(super) nat_bytes: u32,
    pub(super) flags: u16,
    pub(super) class: u8,
    /// TCP flags seen.
    pub(super) tcp: u8,
}

const _: () = assert!(size_of::<Seen>() == 64);

/// What a flow's every packet adds to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotDelta {
    /// Packets as the kernel handles them.
    pub skbs: u64,
    /// Packets on the wire.
    pub packets: u64,
    /// Bytes on the wire, IP length.
    pub bytes: u64,
    /// Connections opened.
    pub connections: u64,
    /// TCP packets sent again.
    pub retransmits: u64,
    /// There is a SYN or SYN-ACK that was not there before.
    pub new_syn: bool,
}

impl Seen {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u16, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    pub(super) fn class(&self) -> Class {
        Class::from_number(self.class)
    }

    pub(super) fn nat(&self) -> aksnet_common::passage::NatKind {
        use aksnet_common::passage::NatKind;
        NatKind::try_from(u32::from(self.flags >> NAT_SHIFT) & 3).unwrap_or(NatKind::None)
    }

    pub(super) fn anomaly(&self) -> Option<Anomaly> {
        let number = usize::from(self.flags >> ANOMALY_SHIFT & 3);
        Anomaly::ALL.get(number.checked_sub(1)?).copied()
    }

    pub(super) fn set_anomaly(&mut self, anomaly: Option<Anomaly>) {
        let number = anomaly.map_or(0, |anomaly| anomaly as u16 + 1);
        self.flags = (self.flags & !(3 << ANOMALY_SHIFT)) | number << ANOMALY_SHIFT;
    }

    pub(super) fn handles(&self) -> FlowHandles {
        FlowHandles {
            flow: self.flow,
            nat_bytes: self.nat_bytes,
        }
    }

    /// Whether there may be timed packets that were not read yet: some came since the last look, or may have been under
    /// way then. SYNs are always timed; one more or one again changes `syn_ns` or `retransmits`.
    #[inline]
    pub(super) fn may_have_times(&self, hot: &HotCell, sampling: Sampling) -> bool {
        self.has(TIMED) || self.times_new(hot, sampling)
    }

    /// Whether some of the packets since the last look may be timed.
    fn times_new(&self, hot: &HotCell, sampling: Sampling) -> bool {
        sampling.selects_any(self.skbs, hot.skbs)
            || hot.syn_ns != self.syn_ns
            || hot.retransmits != self.retransmits
    }

    /// Accounts what is new in the cell.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "low 32 bits are meant; TCP flags are one byte"
    )]
    pub(super) fn advance(&mut self, hot: &HotCell, sampling: Sampling) -> HotDelta {
        self.set(TIMED, self.times_new(hot, sampling));
        let skbs = hot.skbs.saturating_sub(self.skbs);
        let gso = u64::from((hot.gso_packets as u32).wrapping_sub(self.gso_packets));
        let bytes = hot.bytes.saturating_sub(self.bytes);
        let delta = HotDelta {
            skbs,
            packets: skbs + gso,
            bytes: bytes + hot.gso_bytes.saturating_sub(self.gso_bytes),
            connections: u64::from(hot.connections.wrapping_sub(self.connections)),
            retransmits: u64::from(hot.retransmits.wrapping_sub(self.retransmits)),
            new_syn: hot.syn_ns != self.syn_ns,
        };
        self.skbs = hot.skbs;
        self.bytes = hot.bytes;
        self.gso_packets = hot.gso_packets as u32;
        self.gso_bytes = hot.gso_bytes;
        self.connections = hot.connections;
        self.retransmits = hot.retransmits;
        self.syn_ns = hot.syn_ns;
        self.tcp = hot.tcp_flags as u8;
        delta
    }

    /// Packets and bytes on the wire so far. Of super-packets' further packets the low 32 bits are known.
    pub(super) fn so_far(&self) -> (u64, u64) {
        (
            self.skbs + u64::from(self.gso_packets),
            self.bytes + self.gso_bytes,
        )
    }

    /// A cell that has no series yet.
    pub(super) fn unknown() -> Self {
        Self {
            nat_bytes: NOT_NATED,
            ..Self::default()
        }
    }
}

/// What of a cell's cold half has been accounted.
#[derive(Clone, Copy, Debug, Default, Zeroable)]
pub(super) struct ColdSeen {
    /// The translation that the flow's class was judged by.
    pub(super) sequence: u64,
    exits: u64,
    drops: u64,
    sum_ns: [u64; 2],
    times: [[u32; TIME_BUCKETS]; 2],
}

/// What timed packets added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColdDelta {
    /// Timed packets that left the node.
    pub exits: u64,
    /// Timed packets that were dropped.
    pub drops: u64,
    /// Nanoseconds on the NAT path, by stage.
    pub sum_ns: [u64; 2],
    /// Times by stage and bucket.
    pub times: [[u32; TIME_BUCKETS]; 2],
}

impl ColdSeen {
    /// Timed packets that left the node so far.
    pub(super) const fn exits(&self) -> u64 {
        self.exits
    }

    /// Times by stage so far.
    pub(super) fn so_far(&self) -> [PathTimes; 2] {
        [0, 1].map(|stage| PathTimes {
            buckets: self.times[stage].map(u64::from),
            sum_ns: self.sum_ns[stage],
        })
    }

    /// Timed packets that were dropped so far.
    pub(super) const fn drops(&self) -> u64 {
        self.drops
    }

    /// Accounts what is new in the cell; the translation is not part of it.
    pub(super) fn advance(&mut self, cold: &ColdCell) -> ColdDelta {
        let mut delta = ColdDelta {
            exits: cold.exits.saturating_sub(self.exits),
            drops: cold.drops.saturating_sub(self.drops),
            ..ColdDelta::default()
        };
        for stage in 0..2 {
            delta.sum_ns[stage] = cold.sum_ns[stage].saturating_sub(self.sum_ns[stage]);
            for bucket in 0..TIME_BUCKETS {
                delta.times[stage][bucket] =
                    cold.times[stage][bucket].wrapping_sub(self.times[stage][bucket]);
            }
        }
        self.exits = cold.exits;
        self.drops = cold.drops;
        self.sum_ns = cold.sum_ns;
        self.times = cold.times;
        delta
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn deltas_of_any_number_of_looks_add_up(
            steps in prop::collection::vec((0u64..1000, 0u64..100_000, 0u64..44, 0u32..3, any::<bool>()), 0..50),
        ) {
            let mut hot = HotCell::default();
            let mut seen = Seen::unknown();
            let mut sum = HotDelta::default();
            let mut add = |d: HotDelta| {
                sum.skbs += d.skbs;
                sum.packets += d.packets;
                sum.bytes += d.bytes;
                sum.connections += d.connections;
            };
            for (skbs, bytes, gso, connections, look) in &steps {
                hot.skbs += skbs;
                hot.bytes += bytes;
                hot.gso_packets += skbs * gso;
                hot.gso_bytes += skbs * gso * 40;
                hot.connections += connections;
                if *look {
                    add(seen.advance(&hot, Sampling::EVERY));
                }
            }
            add(seen.advance(&hot, Sampling::EVERY));
            prop_assert_eq!(seen.advance(&hot, Sampling::EVERY), HotDelta::default());
            prop_assert_eq!(sum.skbs, hot.skbs);
            prop_assert_eq!(sum.packets, hot.skbs + hot.gso_packets);
            prop_assert_eq!(sum.bytes, hot.bytes + hot.gso_bytes);
            prop_assert_eq!(sum.connections, u64::from(hot.connections));
        }
    }

    #[test]
    fn a_wrapped_counter_is_a_small_delta() {
        let mut cold = ColdCell::default();
        let mut seen = ColdSeen::default();
        cold.times[1][3] = u32::MAX;
        seen.advance(&cold);
        cold.times[1][3] = 1;
        assert_eq!(seen.advance(&cold).times[1][3], 2);
    }
}

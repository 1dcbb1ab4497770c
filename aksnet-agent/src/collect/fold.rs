//! Folding: adding what is new in a judged cell to the series of its flow.

use aksnet_common::{
    flow::{ColdCell, HotCell, STAGE_ESTABLISHED, STAGE_FIRST, TIME_BUCKETS},
    packet::{FIN, RST, TCP},
};

use super::{
    delta::{GAP, HEARD, PENDING, REOPENED, REPLY, TWIN},
    sweep::{Collector, Last, Sweep},
};
use crate::metrics::FlowCounts;

/// What of a cell's news is too rare to have a handle.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rare {
    /// Packets that were sent again.
    pub(super) resent: u64,
    /// Connections that were opened.
    pub(super) opened: u64,
}

impl Collector {
    /// Adds what is new in a judged cell to its series; returns what is left for [`Self::fold_rare`].
    #[inline]
    #[expect(
        clippy::cast_precision_loss,
        reason = "rates are shown with three digits"
    )]
    pub(super) fn fold(
        &mut self,
        sweep: &mut Sweep,
        cell: u32,
        hot: &HotCell,
        cold: Option<&ColdCell>,
    ) -> Rare {
        let index = cell as usize;
        let seen = &mut self.seen[index];
        let finished = seen.tcp & (FIN | RST) != 0;
        let delta = seen.advance(hot, sweep.sampling);
        let tcp = hot.key.protocol == TCP;
        // A protocol without SYN has 1 for every cell: replies and second cells open nothing.
        let connections = if !tcp && (seen.has(REPLY) || seen.has(TWIN)) {
            0
        } else {
            delta.connections
        };
        if finished && delta.connections > 0 {
            seen.set(REOPENED, true);
        }
        let counts = FlowCounts {
            packets: delta.packets,
            bytes: delta.bytes,
            connections,
        };
        sweep.families.flow.add(seen.handles(), counts);
        self.last[index] = Last {
            packets: delta.packets as f32,
            bytes: delta.bytes as f32,
        };
        self.accounted.skbs += delta.skbs;
        self.accounted.packets += delta.packets;
        self.accounted.bytes += delta.bytes;
        self.accounted.connections += connections;
        if delta.new_syn && tcp && !seen.has(REPLY) && !seen.has(PENDING) {
            seen.set(PENDING, true);
            seen.set(HEARD, false);
            self.pending.push(cell);
        }
        if let Some(cold) = cold {
            self.fold_cold(sweep, cell, cold);
        }
        if self.seen[index].has(GAP) {
            self.fold_gap(sweep, cell, counts.packets, counts.connections);
        }
        Rare {
            resent: delta.retransmits,
            opened: connections,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "low 32 bits are meant")]
    fn fold_cold(&mut self, sweep: &mut Sweep, cell: u32, cold: &ColdCell) {
        let index = cell as usize;
        let seen = &mut self.seen[index];
        seen.timed = (cold.exits + cold.drops) as u32;
        let mut delta = self.cold[index].advance(cold);
        self.accounted.exits += delta.exits;
        self.accounted.timed_drops += delta.drops;
        if delta.drops > 0 {
            let link = &mut self.links[index];
            link.dropped_ns = link.dropped_ns.max(sweep.now.monotonic_ns);
        }
        if seen.has(REPLY) {
            // The first packet of a reply flow finds its connection already known.
            let [first, established] = &mut delta.times;
            for (sum, n) in established.iter_mut().zip(first) {
                *sum += *n;
                *n = 0;
            }
            delta.sum_ns[STAGE_ESTABLISHED] += delta.sum_ns[STAGE_FIRST];
            delta.sum_ns[STAGE_FIRST] = 0;
        }
        for stage in [STAGE_FIRST, STAGE_ESTABLISHED] {
            if delta.times[stage] != [0; TIME_BUCKETS] || delta.sum_ns[stage] != 0 {
                sweep.families.nat.add(
                    seen.class(),
                    seen.nat(),
                    stage,
                    &delta.times[stage],
                    delta.sum_ns[stage],
                );
            }
        }
    }
}

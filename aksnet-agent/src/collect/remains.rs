//! What is not in a cell: flows that spilled, packets that were dropped, and the totals.

use std::collections::{HashMap, HashSet};

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{ColdCell, FlowKey, HotCell, SpillStats},
    packet::TCP,
};

use super::{
    cause::Cause,
    delta::HEARD,
    dropped::Dropped,
    join::{self, Side},
    judge::{Half, facts, labels},
    source::Source,
    sweep::{Collector, Sweep},
};
use crate::{
    classify::classify,
    metrics::{FlowCounts, labels::FlowLabels},
};

/// What was remembered of packets that do not have a cell.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// Drops whose tuple is no live flow's: counted together, as long as they are recent.
    pub(super) drops: HashMap<DropKey, (DropStats, Cause)>,
    /// Drops whose flow is there but too young to be judged: the next sweep knows what they belong to.
    pub(super) young: Vec<Dropped>,
    /// Flows without SYN in the spill that was taken last: one that is still there opened nothing.
    spilled: HashSet<FlowKey>,
}

impl Collector {
    /// Takes and folds everything that is not in a cell.
    pub(super) fn take_remains<S: Source>(&mut self, source: &mut S, sweep: &mut Sweep) {
        match source.take_spill() {
            Ok(spill) => self.fold_spill(source, sweep, &spill),
            Err(error) => sweep
                .report
                .errors
                .push(format!("spilled flows: {error:#}")),
        }
        match source.take_drops() {
            Ok(drops) => self.fold_drops(source, sweep, drops),
            Err(error) => sweep.report.errors.push(format!("drops: {error:#}")),
        }
        match source.totals() {
            Ok(totals) => sweep.families.agent.totals = totals,
            Err(error) => sweep.report.errors.push(format!("totals: {error:#}")),
        }
    }

    fn fold_spill<S: Source>(
        &mut self,
        source: &S,
        sweep: &mut Sweep,
        spill: &[(FlowKey, SpillStats)],
    ) {
        let before = std::mem::take(&mut self.orphans.spilled);
        for (key, stats) in spill {
            sweep.report.spilled += 1;
            let (side, labels) = self.judge_spilled(source, sweep, key, stats);
            let opens = key.protocol == TCP || {
                self.orphans.spilled.insert(*key);
                side == Side::Originator && !before.contains(key)
            };
            let counts = FlowCounts {
                packets: stats.skbs + stats.gso_packets,
                bytes: stats.bytes + stats.gso_bytes,
                connections: if opens { stats.connections } else { 0 },
            };
            self.record_spilled(source, sweep, key, stats, side);
            let handles = sweep.families.flow.handles(labels);
            sweep.families.flow.add(handles, counts);
            self.accounted.skbs += stats.skbs;
            self.accounted.packets += counts.packets;
            self.accounted.bytes += counts.bytes;
            self.accounted.connections += counts.connections;
        }
    }

    /// A spilled flow has no translation of its own, but perhaps a partner that has.
    fn judge_spilled<S: Source>(
        &mut self,
        source: &S,
        sweep: &mut Sweep,
        key: &FlowKey,
        stats: &SpillStats,
    ) -> (Side, FlowLabels) {
        let mut hot = HotCell {
            key: *key,
            ..HotCell::default()
        };
        if key.protocol == TCP {
            hot.connections = u32::from(stats.connections > 0);
        }
        let half = Half::new(hot, &ColdCell::default());
        if let Some(partner) = self.mirror(source, &half, u32::MAX) {
            self.seen[partner as usize].set(HEARD, true);
            let (labels, _) = self.labels(source, sweep, partner);
            let labels = FlowLabels {
                src: labels.dst,
                dst: labels.src,
                ..labels
            };
            return (self.side(partner).other(), labels);
        }
        let whois = &sweep.whois;
        let evidence = join::evidence(&half.hot, None, whois);
        let side = evidence.unwrap_or_else(|| match key.protocol {
            TCP => join::guess(&key.tuple()),
            _ => Side::Originator,
        });
        let verdict = classify(&facts(&half, side, None, whois), whois);
        let labels = labels(sweep.families, whois, &half, side, &verdict);
        (side, labels)
    }
}

//! What is not in a cell: flows that spilled, packets that were dropped, and the totals.

use std::collections::{HashMap, HashSet};

use aksnet_common::{
    cell::{LIVE, PHASE},
    drops::{DropKey, DropStats},
    flow::{ColdCell, FlowKey, HotCell, SpillStats},
    packet::TCP,
    stats::Role,
};

use super::{
    cause::{Direction, cause_to},
    delta::HEARD,
    join::{self, Side},
    judge::{Half, facts, labels},
    source::Source,
    sweep::{Collector, Sweep},
};
use crate::{
    classify::{Peer, Whois, classify},
    metrics::{
        DropLabels, FlowCounts,
        labels::{FlowLabels, party},
    },
    plan::Place,
};

/// How many kinds of drops without a live flow are remembered for `top`.
const ORPHANS: usize = 256;
/// For how long, in nanoseconds.
const ORPHAN_AGE_NS: u64 = 60_000_000_000;

/// What was remembered of packets that do not have a cell.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// Drops whose tuple is no live flow's: counted together, as long as they are recent.
    pub(super) drops: HashMap<DropKey, DropStats>,
    /// Drops whose flow is there but too young to be judged: the next sweep knows what they belong to.
    young: Vec<(DropKey, DropStats)>,
    /// Flows in the spill that was taken last: one that is still there opened nothing.
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
            let opens = key.protocol == TCP || (side == Side::Originator && !before.contains(key));
            let counts = FlowCounts {
                packets: stats.skbs + stats.gso_packets,
                bytes: stats.bytes + stats.gso_bytes,
                connections: if opens { stats.connections } else { 0 },
            };
            let handles = sweep.families.flow.handles(labels);
            sweep.families.flow.add(handles, counts);
            self.accounted.skbs += stats.skbs;
            self.accounted.packets += counts.packets;
            self.accounted.bytes += counts.bytes;
            self.accounted.connections += counts.connections;
            self.orphans.spilled.insert(*key);
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

    fn fold_drops<S: Source>(
        &mut self,
        source: &S,
        sweep: &mut Sweep,
        drops: Vec<(DropKey, DropStats)>,
    ) {
        let now = sweep.now.monotonic_ns;
        self.orphans
            .drops
            .retain(|_, stats| stats.last_ns.saturating_add(ORPHAN_AGE_NS) > now);
        let waited = std::mem::take(&mut self.orphans.young);
        for (key, stats) in waited.into_iter().chain(drops) {
            if !sweep.last && self.is_of_young_flow(source, &stats) {
                self.orphans.young.push((key, stats));
                continue;
            }
            sweep.report.drops += 1;
            let packets = stats.skbs + stats.gso_packets;
            let bytes = stats.bytes + stats.gso_bytes;
            let cell = self.dropped_flow(source, &key, &stats);
            let labels = self.drop_labels(source, sweep, &key, &stats, cell);
            sweep.families.drops.add(labels, packets, bytes);
            self.accounted.dropped_packets += packets;
            self.accounted.dropped_bytes += bytes;
            if let Some(cell) = cell {
                let link = &mut self.links[cell as usize];
                link.drops += packets;
                link.drop_reason = key.reason;
                link.drop_cause = labels.cause;
                link.dropped_ns = link.dropped_ns.max(stats.last_ns);
            } else {
                self.remember_orphan(key, &stats);
            }
        }
    }

    /// Whether the passage names a cell whose flow was not judged yet.
    fn is_of_young_flow<S: Source>(&self, source: &S, stats: &DropStats) -> bool {
        let cell = stats
            .cell
            .checked_sub(1)
            .and_then(|c| u32::try_from(c).ok());
        cell.is_some_and(|cell| !self.known(cell) && source.state(cell) & PHASE == LIVE)
    }

    /// The flow that a dropped packet belonged to, if it is live.
    fn dropped_flow<S: Source>(
        &self,
        source: &S,
        drop: &DropKey,
        stats: &DropStats,
    ) -> Option<u32> {
        // The passage names the cell, unless that has been another's since.
        if let Some(cell) = stats.cell.checked_sub(1)
            && let Ok(cell) = u32::try_from(cell)
            && self.known(cell)
        {
            let hot = source.hot(cell);
            if hot.first_ns <= stats.last_ns && hot.key.protocol == drop.key.protocol {
                return Some(cell);
            }
        }
        let hash = join::hash(&drop.key, &drop.key.tuple(), self.seed);
        let known = |cell: &u32| self.known(*cell);
        let same = |hot: &HotCell| {
            (hot.key.protocol, hot.key.family) == (drop.key.protocol, drop.key.family)
        };
        if let Some(cell) = self.after.get(hash).filter(known) {
            let half = Half::new(source.hot(cell), &source.cold(cell));
            if same(&half.hot) && half.after == Some(drop.key.tuple()) {
                return Some(cell);
            }
        }
        let cell = self.before.get(hash).filter(known)?;
        let hot = source.hot(cell);
        (same(&hot) && hot.key.tuple() == drop.key.tuple()).then_some(cell)
    }

    fn drop_labels<S: Source>(
        &self,
        source: &S,
        sweep: &mut Sweep,
        drop: &DropKey,
        stats: &DropStats,
        cell: Option<u32>,
    ) -> DropLabels {
        let whois = &sweep.whois;
        let (src, dst) = match cell {
            Some(cell) => {
                let (_, verdict) = self.verdict(source, whois, cell);
                match self.side(cell) {
                    Side::Originator => (verdict.client, verdict.server),
                    Side::Reply => (verdict.server, verdict.client),
                }
            }
            None => drop_peers(drop, stats, whois),
        };
        let reason = sweep.names.reason(drop.reason);
        let symbol = sweep.names.symbol(drop.location);
        DropLabels {
            cause: cause_to(&reason, symbol, dst.place(), drop.key.dst_port),
            reason: sweep.families.symbols.intern(&reason),
            direction: Direction::between(src.place(), dst.place()),
            src: party(&mut sweep.families.symbols, whois, &src),
            dst: party(&mut sweep.families.symbols, whois, &dst),
        }
    }

    /// Remembers a drop without a flow; when there are too many kinds, the oldest makes room.
    fn remember_orphan(&mut self, key: DropKey, stats: &DropStats) {
        let drops = &mut self.orphans.drops;
        if !drops.contains_key(&key) && drops.len() >= ORPHANS {
            let oldest = drops.iter().min_by_key(|(_, s)| s.last_ns).map(|(k, _)| *k);
            if let Some(oldest) = oldest {
                drops.remove(&oldest);
            }
        }
        drops.entry(key).or_default().add(stats);
    }
}

/// The ends of a dropped packet by its own addresses and interfaces.
pub(super) fn drop_peers(drop: &DropKey, stats: &DropStats, whois: &Whois) -> (Peer, Peer) {
    let key = &drop.key;
    let at_pod = |peer: Peer, ifindex: u32| match peer.place() {
        Place::Link | Place::ThisNode | Place::LocalDns => peer,
        _ if whois.plan.role(ifindex) == Some(Role::Pod) => peer.local_pod(),
        _ => peer,
    };
    let src = whois.peer(key.src, key.src_port, stats.last_ns);
    let dst = whois.peer(key.dst, key.dst_port, stats.last_ns);
    // The device is where the packet came in, or where it was to leave.
    let out = if drop.key.ifindex == drop.iif {
        0
    } else {
        drop.key.ifindex
    };
    (at_pod(src, drop.iif), at_pod(dst, out))
}

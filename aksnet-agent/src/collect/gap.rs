//! A *gap*: a flow that policies deny and the node forwards all the same, as nothing enforces them here, or the engine
//! does not cover it, or its rules are stale.
//!
//! The policies are taken by the text of the API, not as the node's engine reads them. A flow is a candidate only if its
//! connection began when the policies and the labels that decide had been so for a while: an engine needs time, and most
//! judge a connection by its first packet alone. A candidate's packets count once one of them was seen to leave, and
//! never if one of them was dropped. When policies or labels that decide change, candidates that began before are none
//! any more, be they still denied or not.

use std::collections::HashMap;

use aksnet_common::{flow::HotCell, packet::TCP};

use super::{
    attribute::Opinion,
    delta::GAP,
    denial::{Asked, judge, label},
    join::Side,
    judge::Half,
    source::Source,
    sweep::{Collector, REPLAN_CELLS, Sweep},
};
use crate::{
    classify::{Peer, Verdict},
    metrics::{labels::party, policy::GapLabels},
    plan::Place,
    policy::{engine::Engine, index::When, model},
};

/// For how long conntrack remembers a stream of datagrams that pauses (`nf_conntrack_udp_timeout_stream`), in
/// nanoseconds: what is first seen so long after the agent's start is new.
const LONGEST_PAUSE_NS: u64 = 120_000_000_000;

/// A candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    labels: GapLabels,
    /// Whether a packet of it was seen to leave.
    forwarded: bool,
    /// What waits for that.
    packets: u64,
    connections: u64,
}

/// Candidates by cell: few, if all is well.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    by_cell: HashMap<u32, Gap>,
    /// The policies' generation of the last look at all of them.
    reviewed: u64,
    /// Those that this look has not come to yet.
    waiting: Vec<u32>,
}

impl Gaps {
    pub(super) fn forget(&mut self, cell: u32) {
        self.by_cell.remove(&cell);
    }
}

impl Collector {
    /// Whether a flow is a candidate, when it is judged.
    pub(super) fn judge_gap<S: Source>(
        &mut self,
        source: &S,
        sweep: &mut Sweep,
        cell: u32,
        verdict: &Verdict,
    ) {
        let old = self.seen[cell as usize].has(GAP);
        if !old && sweep.whois.index.policies().is_empty() {
            return;
        }
        let labels = self.denied(source, sweep, cell, verdict);
        self.seen[cell as usize].set(GAP, labels.is_some());
        let Some(labels) = labels else {
            self.gaps.forget(cell);
            return;
        };
        let gap = self.gaps.by_cell.entry(cell).or_insert(Gap {
            labels,
            forwarded: false,
            packets: 0,
            connections: 0,
        });
        gap.labels = labels;
    }

    /// The labels of a flow that policies deny, if they have done so for long enough.
    fn denied<S: Source>(
        &self,
        source: &S,
        sweep: &mut Sweep,
        cell: u32,
        verdict: &Verdict,
    ) -> Option<GapLabels> {
        if self.side(cell) == Side::Reply {
            return None;
        }
        let local = |peer: &Peer| peer.place() == Place::LocalPod;
        if !local(&verdict.client) && !local(&verdict.server) {
            return None;
        }
        let half = Half::read(source, cell);
        if !self.began_in_sight(&half.hot) {
            return None;
        }
        let before = half.hot.key.tuple();
        let after = half.after.unwrap_or(before);
        let asked = Asked {
            src: (before.src, verdict.client),
            dst: (after.dst, verdict.server),
            protocol: half.hot.key.protocol,
            port: super::denial::port(half.hot.key.protocol, after.dst_port),
        };
        let whois = &sweep.whois;
        let now = sweep.now.monotonic_ns;
        let judged = judge(whois, Engine::Kubernetes, &asked, When::At(now), false);
        let side = [model::Side::Egress, model::Side::Ingress]
            .into_iter()
            .find(|side| judged.side(*side).opinion == Opinion::Denies)?;
        let settled = whois.index.settled(before.src, after.dst, now);
        let mut grace = u64::from(self.config.policy_grace_ms) * 1_000_000;
        if half.hot.key.protocol != TCP {
            // Its first packet here may go on with what conntrack, and so the engine, still remembers.
            grace = grace.max(LONGEST_PAUSE_NS);
        }
        if half.hot.first_ns < settled.saturating_add(grace) {
            return None;
        }
        let policies = label(&judged.side(side).policies);
        Some(GapLabels {
            side,
            policy: sweep.families.symbols.intern(&policies),
            src: party(&mut sweep.families.symbols, whois, &verdict.client),
            dst: party(&mut sweep.families.symbols, whois, &verdict.server),
        })
    }

    /// Whether the connection began while the agent looked. One that was there before may be older than the policies,
    /// which the agent finds at its start without knowing since when they are there.
    fn began_in_sight(&self, hot: &HotCell) -> bool {
        if hot.key.protocol == TCP {
            return hot.connections > 0;
        }
        let started = self.started_ns.unwrap_or_default();
        hot.first_ns >= started.saturating_add(LONGEST_PAUSE_NS)
    }

    /// Counts a candidate's packets, if they are known to be forwarded.
    pub(super) fn fold_gap(
        &mut self,
        sweep: &mut Sweep,
        cell: u32,
        packets: u64,
        connections: u64,
    ) {
        let index = cell as usize;
        let dropped = self.cold[index].drops() > 0 || self.links[index].drops > 0;
        let Some(gap) = self.gaps.by_cell.get_mut(&cell) else {
            return;
        };
        if dropped {
            // Enforced after all.
            self.gaps.forget(cell);
            self.seen[index].set(GAP, false);
            return;
        }
        gap.forwarded |= self.cold[index].exits() > 0;
        gap.packets += packets;
        gap.connections += connections;
        if gap.forwarded && (gap.packets > 0 || gap.connections > 0) {
            let (packets, connections) = (gap.packets, gap.connections);
            (gap.packets, gap.connections) = (0, 0);
            let policy = &mut sweep.families.policy;
            policy.add_gap(gap.labels, packets, connections);
        }
    }

    /// Looks at all candidates again when policies or labels have changed, at so many in a sweep: what they no longer
    /// deny, or what began before, is no gap.
    pub(super) fn review_gaps<S: Source>(&mut self, source: &S, sweep: &mut Sweep) {
        let generation = sweep.whois.index.policy_generation();
        if std::mem::replace(&mut self.gaps.reviewed, generation) != generation {
            self.gaps.waiting = self.gaps.by_cell.keys().copied().collect();
        }
        let rest = self
            .gaps
            .waiting
            .len()
            .saturating_sub(REPLAN_CELLS as usize);
        for cell in self.gaps.waiting.split_off(rest) {
            if !self.gaps.by_cell.contains_key(&cell) {
                continue;
            }
            if !self.known(cell) {
                self.gaps.forget(cell);
                continue;
            }
            let (_, verdict) = self.verdict(source, &sweep.whois, cell);
            self.judge_gap(source, sweep, cell, &verdict);
        }
    }
}

//! Judging a flow: who replies to whom, what the connection is, and which series it adds to.
//!
//! New flows are indexed before any is judged, so that a connection's two flows find each other whichever
//! cell comes first.

use aksnet_common::{
    flow::{ColdCell, HotCell, ORIGIN_NODE},
    packet::TCP,
    passage::Tuple,
};

use super::{
    delta::{CLOSED, ColdSeen, KNOWN, NAT_SHIFT, RECHECK, REPLY, SURE, Seen, TWIN},
    join::{self, Side},
    source::Source,
    sweep::{Collector, NONE, Sweep},
};
use crate::{
    classify::{FlowFacts, Verdict, classify},
    metrics::{
        Families,
        labels::{FlowLabels, Party, Symbol},
    },
    plan::{Plan, Site},
};

/// Flows that begin within this time of the first sweep may have begun long before.
const MIDSTREAM_NS: u64 = 2_000_000_000;

/// One flow, as far as judging needs it.
#[derive(Clone, Copy)]
pub(super) struct Half {
    pub(super) hot: HotCell,
    /// The tuple with which it left, if that was seen.
    pub(super) after: Option<Tuple>,
    exit_ifindex: u32,
}

impl Half {
    pub(super) fn new(hot: HotCell, cold: &ColdCell) -> Self {
        let seen = cold.sequence != 0 && cold.sequence & 1 == 0;
        Self {
            hot,
            after: seen.then_some(cold.after),
            exit_ifindex: if seen { cold.exit_ifindex } else { 0 },
        }
    }

    fn read<S: Source>(source: &S, cell: u32) -> Self {
        Self::new(source.hot(cell), &source.cold(cell))
    }

    fn reversed_before(&self) -> Tuple {
        join::reverse(self.hot.key.protocol, &self.hot.key.tuple())
    }

    fn reversed_after(&self) -> Tuple {
        let after = self.after.unwrap_or(self.hot.key.tuple());
        join::reverse(self.hot.key.protocol, &after)
    }

    fn node_sends(&self) -> bool {
        self.hot.key.origin == ORIGIN_NODE
    }

    /// The interface its packets come in through; 0 for the node itself.
    fn in_ifindex(&self) -> u32 {
        if self.node_sends() {
            0
        } else {
            self.hot.key.ifindex
        }
    }

    /// The interface its packets leave through, if seen.
    fn out_ifindex(&self) -> u32 {
        if self.node_sends() {
            self.hot.key.ifindex
        } else {
            self.exit_ifindex
        }
    }

    /// Whether a flow with this key could be one of this flow's connection.
    fn alike(&self, other: &HotCell) -> bool {
        let (a, b) = (&self.hot.key, &other.key);
        (a.protocol, a.family, a.flags) == (b.protocol, b.family, b.flags)
    }
}

/// What is seen of a connection of which one flow is `half`, which is on `side`, and the other, if any, is
/// `partner`.
pub(super) fn facts(half: &Half, side: Side, partner: Option<&Half>) -> FlowFacts {
    let (originator, reply) = match side {
        Side::Originator => (Some(half), partner),
        Side::Reply => (partner, Some(half)),
    };
    let turned = reply.map(Half::reversed_before);
    let before = originator.map_or_else(
        || half.reversed_after(),
        |originator| originator.hot.key.tuple(),
    );
    let client_ifindex =
        originator.map_or_else(|| reply.map_or(0, Half::out_ifindex), Half::in_ifindex);
    let server_ifindex = match originator.map_or(0, Half::out_ifindex) {
        0 => reply.map_or(0, Half::in_ifindex),
        ifindex => ifindex,
    };
    FlowFacts {
        before,
        after: originator.and_then(|o| o.after).or(turned),
        from_node: originator.is_some_and(Half::node_sends),
        to_node: reply.is_some_and(Half::node_sends),
        client_ifindex,
        server_ifindex,
    }
}

/// The labels of a connection's flow.
pub(super) fn labels(
    families: &mut Families,
    plan: &Plan,
    half: &Half,
    side: Side,
    verdict: &Verdict,
) -> FlowLabels {
    let client = party(families, plan, verdict.client);
    let server = party(families, plan, verdict.server);
    let (src, dst) = match side {
        Side::Originator => (client, server),
        Side::Reply => (server, client),
    };
    FlowLabels {
        class: verdict.class,
        nat: verdict.nat,
        scope: verdict.scope,
        protocol: half.hot.key.protocol,
        family: half.hot.key.family,
        src,
        dst,
    }
}

/// Who is at a site, as far as the address plan knows.
pub(super) fn party(families: &mut Families, plan: &Plan, site: Site) -> Party {
    Party {
        namespace: Symbol::EMPTY,
        workload: families.symbols.intern(plan.name(site)),
    }
}

impl Collector {
    /// Judges what is new or changed, and folds it.
    pub(super) fn judge<S: Source>(&mut self, source: &S, sweep: &mut Sweep) {
        let fresh = std::mem::take(&mut self.fresh);
        let rejudged = std::mem::take(&mut self.rejudged);
        for &cell in &fresh {
            self.enter(source, sweep, cell);
        }
        for &cell in &rejudged {
            self.index_translation(source, cell);
        }
        for &cell in &rejudged {
            self.pair(source, sweep, cell);
        }
        for &cell in &fresh {
            // Its partner may have come first, and paired the two.
            if self.partner(cell).is_none() {
                self.pair(source, sweep, cell);
            }
        }
        for &cell in fresh.iter().chain(&rejudged) {
            let (hot, cold) = (source.hot(cell), source.cold(cell));
            self.bind(source, sweep, cell);
            let resent = self.fold(sweep, cell, &hot, Some(&cold));
            self.fold_retransmits(source, sweep, cell, resent);
        }
        let mut rebind = std::mem::take(&mut self.rebind);
        for &cell in &rebind {
            self.bind(source, sweep, cell);
        }
        rebind.clear();
        // Keep the lists' memory, unless a burst made them huge.
        for (list, mut used) in [(&mut self.fresh, fresh), (&mut self.rejudged, rejudged)] {
            used.clear();
            used.shrink_to(4096);
            *list = used;
        }
        self.rebind = rebind;
    }

    /// Takes a new flow into the tables.
    fn enter<S: Source>(&mut self, source: &S, sweep: &Sweep, cell: u32) {
        let index = cell as usize;
        let hot = source.hot(cell);
        let closing =
            source.state(cell) & aksnet_common::cell::PHASE == aksnet_common::cell::CLOSING;
        let mut seen = Seen::unknown();
        seen.flags = KNOWN | RECHECK;
        seen.set(CLOSED, closing);
        seen.changed = sweep.ms;
        let hash = join::hash(&hot.key, &hot.key.tuple(), self.seed);
        match self.before.get(hash) {
            Some(other)
                if other != cell
                    && self.known(other)
                    && !self.seen[other as usize].has(CLOSED)
                    && source.hot(other).key == hot.key =>
            {
                seen.set(TWIN, true);
            }
            _ => self.before.insert(hash, cell),
        }
        self.seen[index] = seen;
        self.cold[index] = ColdSeen::default();
        self.links[index].before = hash;
        self.index_translation(source, cell);
    }

    /// Indexes the tuple with which a flow leaves, when that is new.
    fn index_translation<S: Source>(&mut self, source: &S, cell: u32) {
        let index = cell as usize;
        let (hot, cold) = (source.hot(cell), source.cold(cell));
        if !self.is_retranslated(cell, &cold) {
            return;
        }
        self.cold[index].sequence = cold.sequence;
        self.after.remove(self.links[index].after, cell);
        self.links[index].after = 0;
        if cold.after != hot.key.tuple() {
            let hash = join::hash(&hot.key, &cold.after, self.seed);
            self.links[index].after = hash;
            self.after.insert(hash, cell);
        }
    }

    /// The cell of a flow that mirrors this one.
    pub(super) fn mirror<S: Source>(&self, source: &S, half: &Half, not: u32) -> Option<u32> {
        if !join::has_replies(&half.hot.key) {
            return None;
        }
        let wanted = half.reversed_after();
        let found = self
            .before
            .get(join::hash(&half.hot.key, &wanted, self.seed));
        if let Some(cell) = found.filter(|cell| *cell != not && self.known(*cell)) {
            let hot = source.hot(cell);
            if half.alike(&hot) && hot.key.tuple() == wanted {
                return Some(cell);
            }
        }
        let wanted = half.reversed_before();
        let found = self
            .after
            .get(join::hash(&half.hot.key, &wanted, self.seed));
        let cell = found.filter(|cell| *cell != not && self.known(*cell))?;
        let other = Half::read(source, cell);
        (half.alike(&other.hot) && other.after == Some(wanted)).then_some(cell)
    }

    /// Finds a flow's partner and decides which side it is.
    fn pair<S: Source>(&mut self, source: &S, sweep: &Sweep, cell: u32) {
        let half = Half::read(source, cell);
        let evidence = join::evidence(&half.hot, half.after.as_ref(), sweep.plan);
        let Some(other) = self.mirror(source, &half, cell) else {
            self.unlink(cell);
            let side = evidence.or_else(|| {
                let seen = &self.seen[cell as usize];
                seen.has(SURE).then(|| self.side(cell))
            });
            let guess = || {
                if half.hot.key.protocol == TCP || self.is_midstream(&half.hot) {
                    join::guess(&half.hot.key.tuple())
                } else {
                    Side::Originator
                }
            };
            self.set_side(cell, side.unwrap_or_else(guess), side.is_some());
            return;
        };
        let partner = Half::read(source, other);
        let side = self.decide(cell, &half, evidence, other, &partner, sweep.plan);
        self.set_side(cell, side, true);

        // A flow that is being closed makes room for the one that continues it.
        let taken = self
            .partner(other)
            .filter(|current| *current != cell && !self.seen[*current as usize].has(CLOSED));
        if taken.is_some() {
            return;
        }
        let changed =
            self.side(other) != side.other() || self.links[other as usize].partner != cell;
        self.unlink(cell);
        self.unlink(other);
        self.links[cell as usize].partner = other;
        self.links[other as usize].partner = cell;
        self.set_side(other, side.other(), true);
        // Without packets accounted it is new itself, and about to be bound.
        if changed && self.seen[other as usize].skbs != 0 {
            self.rebind.push(other);
        }
    }

    fn unlink(&mut self, cell: u32) {
        let partner = std::mem::replace(&mut self.links[cell as usize].partner, NONE);
        if partner != NONE && self.links[partner as usize].partner == cell {
            self.links[partner as usize].partner = NONE;
        }
    }

    /// Which side a flow is that has a partner.
    fn decide(
        &self,
        cell: u32,
        half: &Half,
        evidence: Option<Side>,
        other: u32,
        partner: &Half,
        plan: &Plan,
    ) -> Side {
        let theirs = join::evidence(&partner.hot, partner.after.as_ref(), plan);
        match (evidence, theirs.map(Side::other)) {
            (Some(a), Some(b)) if a == b => return a,
            (Some(side), None) | (None, Some(side)) => return side,
            _ => {}
        }
        let sure = |cell: u32| self.seen[cell as usize].has(SURE);
        match (sure(cell), sure(other)) {
            (true, false) => return self.side(cell),
            (false, true) => return self.side(other).other(),
            _ => {}
        }
        let tuple = half.hot.key.tuple();
        let midstream = half.hot.key.protocol == TCP && evidence.is_none()
            || self.is_midstream(&half.hot) && self.is_midstream(&partner.hot);
        if midstream && tuple.src_port != tuple.dst_port {
            join::guess(&tuple)
        } else if half.hot.first_ns <= partner.hot.first_ns {
            Side::Originator
        } else {
            Side::Reply
        }
    }

    /// Whether a flow may have begun before the agent did.
    fn is_midstream(&self, hot: &HotCell) -> bool {
        self.started_ns
            .is_some_and(|started| hot.first_ns < started.saturating_add(MIDSTREAM_NS))
    }

    pub(super) fn side(&self, cell: u32) -> Side {
        if self.seen[cell as usize].has(REPLY) {
            Side::Reply
        } else {
            Side::Originator
        }
    }

    fn set_side(&mut self, cell: u32, side: Side, sure: bool) {
        let seen = &mut self.seen[cell as usize];
        seen.set(REPLY, side == Side::Reply);
        seen.set(SURE, sure);
    }

    /// What a judged flow's connection is.
    pub(super) fn verdict<S: Source>(&self, source: &S, plan: &Plan, cell: u32) -> (Half, Verdict) {
        let half = Half::read(source, cell);
        let partner = self.partner(cell).map(|other| Half::read(source, other));
        let facts = facts(&half, self.side(cell), partner.as_ref());
        (half, classify(&facts, plan))
    }

    /// The labels of a judged flow, made anew.
    pub(super) fn labels<S: Source>(
        &self,
        source: &S,
        sweep: &mut Sweep,
        cell: u32,
    ) -> (FlowLabels, Verdict) {
        let (half, verdict) = self.verdict(source, sweep.plan, cell);
        let labels = labels(sweep.families, sweep.plan, &half, self.side(cell), &verdict);
        (labels, verdict)
    }

    /// Gives a flow its class and series.
    pub(super) fn bind<S: Source>(&mut self, source: &S, sweep: &mut Sweep, cell: u32) {
        if !self.known(cell) {
            return;
        }
        let (labels, _) = self.labels(source, sweep, cell);
        let handles = sweep.families.flow.handles(labels);
        let seen = &mut self.seen[cell as usize];
        seen.flow = handles.flow;
        seen.nat_bytes = handles.nat_bytes;
        seen.class = labels.class as u8;
        seen.flags = (seen.flags & !(3 << NAT_SHIFT)) | (labels.nat as u16) << NAT_SHIFT;
    }

    /// Adds packets that were sent again to their series: seldom enough to look it up each time.
    pub(super) fn fold_retransmits<S: Source>(
        &self,
        source: &S,
        sweep: &mut Sweep,
        cell: u32,
        packets: u64,
    ) {
        if packets > 0 {
            let (labels, _) = self.labels(source, sweep, cell);
            sweep.families.tcp.retransmits(labels, packets);
        }
    }
}

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
    delta::{CLOSED, ColdSeen, KNOWN, NAMELESS, NAT_SHIFT, RECHECK, REPLY, SURE, Seen, TWIN},
    fold::Rare,
    join::{self, Side},
    source::Source,
    sweep::{Collector, NONE, Sweep},
};
use crate::{
    classify::{FlowFacts, Verdict, Whois, classify},
    metrics::{
        Families,
        labels::{FlowLabels, Symbol, party},
    },
};

/// Flows that begin within this time of the first sweep may have begun long before.
const MIDSTREAM_NS: u64 = 2_000_000_000;
/// A flow that has no name when it is so old gets none.
const NAME_AGE_NS: u64 = 60_000_000_000;
/// How many nameless flows one sweep asks about.
const NAMES_PER_SWEEP: usize = 4_096;

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

    pub(super) fn read<S: Source>(source: &S, cell: u32) -> Self {
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
    pub(super) fn out_ifindex(&self) -> u32 {
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
pub(super) fn facts(half: &Half, side: Side, partner: Option<&Half>, whois: &Whois) -> FlowFacts {
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
    let from_node = originator.is_some_and(Half::node_sends);
    let after = originator.and_then(|o| o.after).or(turned);
    // What a process of the node sends is translated before it reaches any interface.
    let dialled = from_node
        .then(|| whois.dialled(half.hot.key.protocol, &before))
        .flatten();
    let began = [originator, reply].into_iter().flatten();
    FlowFacts {
        after: after.or(dialled.map(|_| before)),
        before: dialled.unwrap_or(before),
        from_node,
        to_node: reply.is_some_and(Half::node_sends),
        client_ifindex,
        server_ifindex,
        began: began.map(|half| half.hot.first_ns).min().unwrap_or(0),
    }
}

/// The labels of a connection's flow.
pub(super) fn labels(
    families: &mut Families,
    whois: &Whois,
    half: &Half,
    side: Side,
    verdict: &Verdict,
) -> FlowLabels {
    let (src, dst) = match side {
        Side::Originator => (&verdict.client, &verdict.server),
        Side::Reply => (&verdict.server, &verdict.client),
    };
    let mut pod = |peer| {
        if families.flow.pod_labels() {
            families.symbols.intern(whois.pod(peer))
        } else {
            Symbol::EMPTY
        }
    };
    let (src_pod, dst_pod) = (pod(src), pod(dst));
    FlowLabels {
        class: verdict.class,
        nat: verdict.nat,
        scope: verdict.scope,
        protocol: half.hot.key.protocol,
        family: half.hot.key.family,
        src: party(&mut families.symbols, whois, src),
        dst: party(&mut families.symbols, whois, dst),
        src_pod,
        dst_pod,
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
            let rare = self.fold(sweep, cell, &hot, Some(&cold));
            self.fold_rare(source, sweep, cell, rare);
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
        let evidence = join::evidence(&half.hot, half.after.as_ref(), &sweep.whois);
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
        let side = self.decide(cell, &half, evidence, other, &partner, &sweep.whois);
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
        whois: &Whois,
    ) -> Side {
        let theirs = join::evidence(&partner.hot, partner.after.as_ref(), whois);
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
    pub(super) fn verdict<S: Source>(
        &self,
        source: &S,
        whois: &Whois,
        cell: u32,
    ) -> (Half, Verdict) {
        let half = Half::read(source, cell);
        let partner = self.partner(cell).map(|other| Half::read(source, other));
        let facts = facts(&half, self.side(cell), partner.as_ref(), whois);
        (half, classify(&facts, whois))
    }

    /// The labels of a judged flow, made anew.
    pub(super) fn labels<S: Source>(
        &self,
        source: &S,
        sweep: &mut Sweep,
        cell: u32,
    ) -> (FlowLabels, Verdict) {
        let whois = &sweep.whois;
        let (half, verdict) = self.verdict(source, whois, cell);
        let labels = labels(sweep.families, whois, &half, self.side(cell), &verdict);
        (labels, verdict)
    }

    /// Gives a flow its class and series.
    pub(super) fn bind<S: Source>(&mut self, source: &S, sweep: &mut Sweep, cell: u32) {
        if !self.known(cell) {
            return;
        }
        let (labels, verdict) = self.labels(source, sweep, cell);
        let handles = sweep.families.flow.handles(labels);
        let nameless = verdict.client.awaits_name() || verdict.server.awaits_name();
        if nameless {
            self.nameless.push(cell);
        }
        let seen = &mut self.seen[cell as usize];
        seen.set(NAMELESS, nameless);
        seen.set_anomaly(verdict.anomaly);
        seen.flow = handles.flow;
        seen.nat_bytes = handles.nat_bytes;
        seen.class = labels.class as u8;
        seen.flags = (seen.flags & !(3 << NAT_SHIFT)) | (labels.nat as u16) << NAT_SHIFT;
        self.judge_gap(source, sweep, cell, &verdict);
    }

    /// Asks again who the flows' ends are that had no name when they were judged.
    pub(super) fn ask_for_names<S: Source>(&mut self, source: &S, sweep: &mut Sweep) {
        for cell in self.nameless.take(NAMES_PER_SWEEP) {
            let index = cell as usize;
            if !self.seen[index].has(NAMELESS) {
                continue;
            }
            self.seen[index].set(NAMELESS, false);
            let age = sweep
                .now
                .monotonic_ns
                .saturating_sub(source.hot(cell).first_ns);
            if age < NAME_AGE_NS {
                // Puts it at the end of the queue, if it still has none.
                self.bind(source, sweep, cell);
            }
        }
    }

    /// Adds what is seldom enough to look its series up each time.
    pub(super) fn fold_rare<S: Source>(
        &self,
        source: &S,
        sweep: &mut Sweep,
        cell: u32,
        rare: Rare,
    ) {
        let anomaly = self.seen[cell as usize]
            .anomaly()
            .filter(|_| rare.opened > 0);
        if rare.resent == 0 && anomaly.is_none() {
            return;
        }
        let (labels, _) = self.labels(source, sweep, cell);
        if rare.resent > 0 {
            sweep.families.tcp.retransmits(labels, rare.resent);
        }
        if let Some(anomaly) = anomaly {
            sweep.families.flow.anomalous(anomaly, labels, rare.opened);
        }
    }
}

//! One sweep: every cell is looked at once, what changed is folded into the metrics, what is idle is retired.
//!
//! A flow is judged (joined with its replies, classified, given series) when it is new or when its
//! translation, its partner or the address plan changes; a steady flow's counts are added to the series it
//! already has. Folding is exact: a cell's counters are accounted to the last packet, as a cell is given
//! back only when its counters were read after the last packet that could have found it.

use std::{collections::HashSet, ops::Range};

use aksnet_common::{
    cell::{CLOSING, LIVE, PHASE, QUIET_MS},
    flow::{Addr, ColdCell, Sampling},
    packet::{FIN, RST},
};
use bytemuck::Zeroable;

use super::{
    attempts::Attempts,
    cause::{Cause, DropNames},
    delta::{CLOSED, ColdSeen, GAP, KNOWN, RECHECK, REOPENED, SURE, Seen},
    export::Export,
    gap::Gaps,
    join::Index,
    remains::Orphans,
    report::{Accounted, Circumstances, CollectConfig, Found, Now, SweepReport},
    source::Source,
    waiting::Waiting,
};
use crate::{
    classify::Whois,
    identify::{self, object::Kind},
    metrics::{Families, Metrics},
    plan::Place,
};

/// How many cells a sweep judges again at the most, when the plan has changed.
pub(super) const REPLAN_CELLS: u32 = 4_096;

/// No cell.
pub(super) const NONE: u32 = u32::MAX;

/// What is seldom needed about a cell's flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Hash of the tuple before NAT, and after it (0: not translated).
    pub(super) before: u64,
    pub(super) after: u64,
    /// When a packet of the flow was last dropped; `CLOCK_MONOTONIC` nanoseconds.
    pub(super) dropped_ns: u64,
    pub(super) drops: u64,
    pub(super) drop_reason: u32,
    pub(super) drop_cause: Cause,
    /// The cell of the flow at the other end of the connection, or [`NONE`].
    pub(super) partner: u32,
    /// When the counters last changed, once the cell is closed; milliseconds of the collector's clock.
    pub(super) ended: u32,
}

impl Link {
    const NEW: Self = Self {
        before: 0,
        after: 0,
        dropped_ns: 0,
        drops: 0,
        drop_reason: 0,
        drop_cause: Cause::Other,
        partner: NONE,
        ended: 0,
    };
}

/// What a flow did between the last two sweeps.
#[derive(Clone, Copy, Debug, Default, Zeroable)]
pub(super) struct Last {
    pub(super) packets: f32,
    pub(super) bytes: f32,
}

/// Reads the maps sweep by sweep, and knows every live flow.
#[derive(Debug)]
pub struct Collector {
    pub(super) config: CollectConfig,
    pub(super) metrics: Metrics,
    /// Seed of the hashes of tuples, so that nobody outside can aim at one slot.
    pub(super) seed: u64,

    // By cell.
    pub(super) seen: Vec<Seen>,
    pub(super) cold: Vec<ColdSeen>,
    pub(super) links: Vec<Link>,
    pub(super) last: Vec<Last>,

    pub(super) before: Index,
    pub(super) after: Index,
    pub(super) orphans: Orphans,
    pub(super) attempts: Attempts,
    pub(super) gaps: Gaps,
    /// What is known of the node besides its flows.
    pub(super) circumstances: Circumstances,
    /// Drops of this sweep, for the drop log.
    pub(super) records: Vec<Found>,
    /// Flow records: which are made, and those that wait to be taken.
    pub(super) export: Export,
    /// Flows whose SYN waits for its answer.
    pub(super) pending: Vec<u32>,
    pub(super) accounted: Accounted,

    // Lists of one sweep, kept for their memory.
    pub(super) fresh: Vec<u32>,
    pub(super) rejudged: Vec<u32>,
    pub(super) rebind: Vec<u32>,
    pub(super) freeing: Vec<u32>,

    pub(super) started_ns: Option<u64>,
    pub(super) now: Now,
    /// Milliseconds between the last two sweeps.
    pub(super) interval_ms: u32,
    /// What was judged by: the plan's number and the index's generation; `None` before the first sweep.
    judged_by: Option<(u64, u64)>,
    /// Flows of pods whose names were not known when they were judged.
    pub(super) nameless: Waiting,
    /// The flows of so many cells, from this one on, were judged by an older plan.
    stale: (u32, u32),
}

/// What all steps of a sweep need.
pub(super) struct Sweep<'a> {
    pub(super) families: &'a mut Families,
    pub(super) whois: Whois<'a>,
    pub(super) names: &'a DropNames,
    pub(super) now: Now,
    /// Addresses of this node's pods whose names are known; `None` where nobody tells of them.
    named: Option<HashSet<Addr>>,
    /// Milliseconds of the collector's clock.
    pub(super) ms: u32,
    /// Which packets are timed.
    pub(super) sampling: Sampling,
    /// Cells whose flows are judged again in this sweep, as the plan has changed.
    replan: Range<u32>,
    /// The last sweep: everything is accounted, nothing is retired.
    pub(super) last: bool,
    pub(super) report: SweepReport,
}

impl Collector {
    /// A collector that adds to `metrics`. `seed` should be random.
    #[must_use]
    pub fn new(config: CollectConfig, metrics: Metrics, seed: u64) -> Self {
        Self {
            config,
            metrics,
            seed,
            seen: Vec::new(),
            cold: Vec::new(),
            links: Vec::new(),
            last: Vec::new(),
            before: Index::default(),
            after: Index::default(),
            orphans: Orphans::default(),
            attempts: Attempts::default(),
            gaps: Gaps::default(),
            circumstances: Circumstances::default(),
            records: Vec::new(),
            export: Export::default(),
            pending: Vec::new(),
            accounted: Accounted::default(),
            fresh: Vec::new(),
            rejudged: Vec::new(),
            rebind: Vec::new(),
            freeing: Vec::new(),
            started_ns: None,
            now: Now::default(),
            interval_ms: 0,
            judged_by: None,
            nameless: Waiting::default(),
            stale: (0, 0),
        }
    }

    /// Everything accounted so far.
    #[must_use]
    pub const fn accounted(&self) -> &Accounted {
        &self.accounted
    }

    /// What is known of the node besides its flows; to be told before a sweep.
    pub const fn set_circumstances(&mut self, circumstances: Circumstances) {
        self.circumstances = circumstances;
    }

    /// The drops of the last sweep, for the drop log, the oldest first: at most [`super::report::RECORDS`] of them.
    pub fn take_records(&mut self) -> Vec<Found> {
        let mut records = std::mem::take(&mut self.records);
        records.sort_by_key(|found| found.record.unix_ms);
        records
    }

    /// The metrics that this collector adds to.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Looks at every cell once.
    pub fn sweep<S: Source>(
        &mut self,
        source: &mut S,
        now: Now,
        whois: Whois,
        names: &DropNames,
    ) -> SweepReport {
        self.run(source, now, whois, names, false)
    }

    /// The last sweep, when the programs are detached: accounts everything there is, however young, and
    /// retires nothing.
    pub fn finish<S: Source>(
        &mut self,
        source: &mut S,
        now: Now,
        whois: Whois,
        names: &DropNames,
    ) -> SweepReport {
        self.run(source, now, whois, names, true)
    }

    fn run<S: Source>(
        &mut self,
        source: &mut S,
        now: Now,
        whois: Whois,
        names: &DropNames,
        last: bool,
    ) -> SweepReport {
        let metrics = self.metrics.clone();
        let mut families = metrics.lock();
        // Once for the whole sweep: a table that grows meanwhile has more by then than there is room for.
        let cells = source.cells();
        self.make_room(cells);
        let started = *self.started_ns.get_or_insert(now.monotonic_ns);
        let ms = milliseconds(now.monotonic_ns.saturating_sub(started));
        let before = milliseconds(self.now.monotonic_ns.saturating_sub(started));
        self.interval_ms = ms.wrapping_sub(before);
        self.now = now;
        let mut sweep = Sweep {
            families: &mut families,
            whois,
            names,
            now,
            ms,
            sampling: source.sampling(),
            named: named_pods(whois.index),
            replan: self.replan(whois, cells),
            last,
            report: SweepReport::default(),
        };
        sweep.families.nat.advance(now.monotonic_ns);
        sweep.families.symbols.forget_names();

        self.scan(source, &mut sweep, cells);
        self.judge(source, &mut sweep);
        self.ask_for_names(source, &mut sweep);
        self.review_gaps(source, &mut sweep);
        self.take_remains(source, &mut sweep);
        self.settle_handshakes(source, &mut sweep);
        self.record_long(source, &mut sweep);
        self.give_back(source, &mut sweep);

        let agent = &mut sweep.families.agent;
        agent.entries = u64::from(sweep.report.live);
        agent.limit = u64::from(source.limit());
        sweep.report
    }

    /// The cells to judge again in this sweep. A plan changes with every pod, and to judge a full table takes
    /// longer than a sweep should: it is spread over several.
    fn replan(&mut self, whois: Whois, cells: u32) -> Range<u32> {
        let (mut from, mut count) = self.stale;
        let judging_by = Some((whois.plan.id(), whois.index.generation()));
        let before = std::mem::replace(&mut self.judged_by, judging_by);
        // The first sweep judges everything anyway.
        if before.is_some() && before != judging_by {
            count = cells;
        }
        if from >= cells {
            from = 0;
        }
        let now = count.min(REPLAN_CELLS).min(cells - from);
        self.stale = (from + now, count - now);
        from..from + now
    }

    fn make_room(&mut self, cells: u32) {
        let cells = cells as usize;
        if self.seen.len() < cells {
            self.seen.resize(cells, Seen::unknown());
            self.links.resize(cells, Link::NEW);
            grow(&mut self.cold, cells);
            grow(&mut self.last, cells);
        }
    }

    /// Whether the cell holds a flow that has been judged.
    pub(super) fn known(&self, cell: u32) -> bool {
        self.seen
            .get(cell as usize)
            .is_some_and(|seen| seen.has(KNOWN))
    }

    /// The cell of the flow at the other end.
    pub(super) fn partner(&self, cell: u32) -> Option<u32> {
        let partner = self.links[cell as usize].partner;
        (partner != NONE && self.known(partner)).then_some(partner)
    }

    fn scan<S: Source>(&mut self, source: &S, sweep: &mut Sweep, cells: u32) {
        for cell in 0..cells {
            let state = source.state(cell);
            match state & PHASE {
                LIVE => {
                    sweep.report.live += 1;
                    let seen = &self.seen[cell as usize];
                    if !seen.has(KNOWN) {
                        self.meet(source, sweep, cell);
                        continue;
                    }
                    let (skbs, bytes) = source.counts(cell);
                    if skbs != seen.skbs || bytes != seen.bytes || seen.has(RECHECK) || sweep.last {
                        self.look(source, sweep, cell);
                    } else {
                        self.replan_cell(source, sweep, cell);
                        self.retire(source, sweep, cell);
                    }
                }
                CLOSING => {
                    sweep.report.live += 1;
                    self.end(source, sweep, cell);
                }
                _ => {
                    // Nobody but this collector frees cells; if somebody did, the flow is gone.
                    if self.seen[cell as usize].has(KNOWN) {
                        self.forget(cell);
                    }
                }
            }
        }
    }

    /// A cell whose flow was not there before.
    fn meet<S: Source>(&mut self, source: &S, sweep: &mut Sweep, cell: u32) {
        let settled = source
            .hot(cell)
            .first_ns
            .saturating_add(u64::from(self.config.settle_ms) * 1_000_000);
        let unsettled = settled > sweep.now.monotonic_ns || self.awaits_name(source, sweep, cell);
        if unsettled && !sweep.last {
            sweep.report.unsettled += 1;
            return;
        }
        sweep.report.new += 1;
        sweep.report.changed += 1;
        self.fresh.push(cell);
    }

    /// Whether a young flow is a pod's of this node that no object was heard of yet. Its counts wait in the cell.
    fn awaits_name<S: Source>(&self, source: &S, sweep: &Sweep, cell: u32) -> bool {
        let Some(named) = &sweep.named else {
            return false;
        };
        let (whois, hot) = (sweep.whois, source.hot(cell));
        let young = u64::from(self.config.name_wait_ms) * 1_000_000;
        if hot.first_ns.saturating_add(young) <= sweep.now.monotonic_ns {
            return false;
        }
        // The plan alone knows where this node's pods are; only of those that nobody named is the index asked.
        let awaited = |address: Addr| {
            !named.contains(&address)
                && whois.plan.place(address) == Place::LocalPod
                && whois.index.lookup(address, hot.first_ns).is_none()
        };
        awaited(hot.key.src) || awaited(hot.key.dst)
    }

    /// A known cell with news: folds it, or leaves it to be judged again first.
    #[expect(clippy::cast_possible_truncation, reason = "low 32 bits are meant")]
    fn look<S: Source>(&mut self, source: &S, sweep: &mut Sweep, cell: u32) {
        let index = cell as usize;
        let hot = source.hot(cell);
        let seen = &mut self.seen[index];
        let moved = hot.skbs != seen.skbs || hot.bytes != seen.bytes;
        // A look without news is for what the last packet did after it was counted: read everything.
        let timed =
            || seen.may_have_times(&hot, sweep.sampling) && source.timed(cell) as u32 != seen.timed;
        let cold = (!moved || sweep.last || timed()).then(|| source.cold(cell));
        seen.set(RECHECK, moved);
        if moved {
            seen.changed = sweep.ms;
            sweep.report.changed += 1;
        }
        let translated = cold.is_some_and(|cold| self.is_retranslated(cell, &cold));
        if translated {
            self.rejudged.push(cell);
            return;
        }
        if self.replan_cell(source, sweep, cell) {
            return;
        }
        let rare = self.fold(sweep, cell, &hot, cold.as_ref());
        self.fold_rare(source, sweep, cell, rare);
    }

    /// Where the plan has changed: gives the flow its class anew, or leaves it to be judged, if the new plan
    /// may also tell which side it is. True if it is left.
    fn replan_cell<S: Source>(&mut self, source: &S, sweep: &mut Sweep, cell: u32) -> bool {
        if !sweep.replan.contains(&cell) {
            return false;
        }
        if self.seen[cell as usize].has(SURE) {
            self.bind(source, sweep, cell);
            return false;
        }
        self.rejudged.push(cell);
        true
    }

    pub(super) fn is_retranslated(&self, cell: u32, cold: &ColdCell) -> bool {
        cold.sequence & 1 == 0 && cold.sequence != self.cold[cell as usize].sequence
    }

    /// Closes a cell that is idle for long enough.
    fn retire<S: Source>(&mut self, source: &S, sweep: &mut Sweep, cell: u32) {
        let seen = &self.seen[cell as usize];
        let mut idle = sweep.ms.wrapping_sub(seen.changed);
        if idle < self.config.idle_ms.min(self.config.closed_idle_ms) || sweep.last {
            return;
        }
        let over = FIN | RST;
        let mut finished = seen.tcp & over != 0 && !seen.has(REOPENED);
        if let Some(partner) = self.partner(cell) {
            // A connection is retired as a whole: while one side talks, the other keeps its place.
            let other = &self.seen[partner as usize];
            if !other.has(CLOSED) {
                idle = idle.min(sweep.ms.wrapping_sub(other.changed));
            }
            finished &= (seen.tcp | other.tcp) & RST != 0 || seen.tcp & other.tcp & FIN != 0;
        }
        let allowed = if finished {
            self.config.closed_idle_ms
        } else {
            self.config.idle_ms
        };
        if idle >= allowed && source.close(cell) {
            let seen = &mut self.seen[cell as usize];
            seen.set(CLOSED, true);
            self.links[cell as usize].ended = seen.changed;
            seen.changed = sweep.ms;
            sweep.report.closed += 1;
        }
    }

    /// A closing cell: once no packet can be under way to it, its last counts are folded.
    fn end<S: Source>(&mut self, source: &S, sweep: &mut Sweep, cell: u32) {
        let index = cell as usize;
        if !self.seen[index].has(KNOWN) {
            // Closed by an agent before this one.
            self.fresh.push(cell);
            return;
        }
        if !self.seen[index].has(CLOSED) {
            self.seen[index].set(CLOSED, true);
            self.links[index].ended = self.seen[index].changed;
            self.seen[index].changed = sweep.ms;
        }
        let quiet = u64::from(sweep.ms.wrapping_sub(self.seen[index].changed)) > QUIET_MS;
        if !quiet && !sweep.last {
            return;
        }
        let (hot, cold) = (source.hot(cell), source.cold(cell));
        if self.is_retranslated(cell, &cold) {
            // Judged and folded below; freed by the next sweep.
            self.rejudged.push(cell);
            return;
        }
        let rare = self.fold(sweep, cell, &hot, Some(&cold));
        self.fold_rare(source, sweep, cell, rare);
        if !sweep.last {
            self.freeing.push(cell);
        }
    }

    /// Forgets a cell's flow.
    pub(super) fn forget(&mut self, cell: u32) {
        let index = cell as usize;
        let link = self.links[index];
        self.before.remove(link.before, cell);
        self.after.remove(link.after, cell);
        if link.partner != NONE && self.links[link.partner as usize].partner == cell {
            self.links[link.partner as usize].partner = NONE;
        }
        if self.seen[index].has(GAP) {
            self.gaps.forget(cell);
        }
        self.export.forget(cell);
        self.seen[index] = Seen::unknown();
        self.cold[index] = ColdSeen::default();
        self.links[index] = Link::NEW;
        self.last[index] = Last::default();
    }

    /// Gives back the cells whose last counts are folded.
    fn give_back<S: Source>(&mut self, source: &S, sweep: &mut Sweep) {
        self.record_ended(source, sweep);
        for at in 0..self.freeing.len() {
            let cell = self.freeing[at];
            self.forget(cell);
            source.free(cell);
            sweep.report.freed += 1;
            sweep.report.live -= 1;
        }
        self.freeing.clear();
    }
}

/// Makes room for so many cells. Memory that the kernel gives is zero without having been written: of a cell that never
/// held a flow none is taken.
fn grow<T: Zeroable + Clone>(of_cells: &mut Vec<T>, cells: usize) {
    if of_cells.is_empty() {
        *of_cells = bytemuck::zeroed_vec(cells);
    } else {
        of_cells.resize(cells, T::zeroed());
    }
}

/// The addresses of this node's pods, if a source has told of all of them.
fn named_pods(index: &identify::index::Index) -> Option<HashSet<Addr>> {
    let told = [Kind::LocalPod, Kind::Sandbox];
    if !told.iter().any(|kind| index.synced(*kind)) {
        return None;
    }
    let pods = index.pods_on_node();
    Some(pods.flat_map(|pod| pod.addresses.iter().copied()).collect())
}

/// Milliseconds on the collector's own clock, which wraps after 49 days: only differences count.
#[expect(clippy::cast_possible_truncation, reason = "wraps, as said")]
pub(super) fn milliseconds(ns: u64) -> u32 {
    (ns / 1_000_000) as u32
}

//! Making flow records: of each connection that ends, and of those that go on for longer than the active timeout. Both
//! directions are one record, as a connection is retired as a whole.
//!
//! While nobody follows, a sweep makes a few records of what has ended, for whoever asks later, and looks for nothing
//! else.

// What a record says.
mod record;

use std::collections::HashMap;

use aksnet_common::packet::{FIN, RST};

use super::{
    cause::DropNames,
    delta::CLOSED,
    join::Side,
    source::Source,
    sweep::{Collector, Sweep, milliseconds},
};
use crate::{
    classify::Whois,
    flowlog::{BEHIND, End, FlowRecord},
};

/// Records of a sweep while nobody follows.
const FEW: usize = 64;
/// A look at all flows for those that are due is worth it so many times in an active timeout.
const LOOKS: u32 = 10;

/// Which records are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recording {
    /// A few of what has ended.
    #[default]
    Few,
    /// All of what ends, and those of long connections.
    All,
}

/// How much of a cell is in records already.
#[derive(Clone, Copy, Debug, Default)]
struct Base {
    packets: u64,
    bytes: u64,
    ms: u32,
}

/// The state of recording.
#[derive(Debug, Default)]
pub(super) struct Export {
    recording: Recording,
    node: String,
    /// Of cells that had a record and still live.
    bases: HashMap<u32, Base>,
    /// Policies that denied packets of a live flow.
    policies: HashMap<u32, Vec<String>>,
    records: Vec<FlowRecord>,
    missed: u64,
    looked_ms: u32,
}

impl Export {
    pub(super) fn forget(&mut self, cell: u32) {
        if !self.bases.is_empty() {
            self.bases.remove(&cell);
        }
        if !self.policies.is_empty() {
            self.policies.remove(&cell);
        }
    }

    pub(super) fn denied(&mut self, cell: u32, policies: &[String]) {
        let known = self.policies.entry(cell).or_default();
        for policy in policies {
            if !known.contains(policy) {
                known.push(policy.clone());
            }
        }
    }

    /// Whether there is room for one more record of this sweep.
    fn room(&mut self) -> bool {
        let most = match self.recording {
            Recording::Few => FEW,
            Recording::All => BEHIND - 1,
        };
        let room = self.records.len() < most;
        self.missed += u64::from(!room && self.recording == Recording::All);
        room
    }
}

/// A connection: who sent first, and who answered, as far as each was seen.
#[derive(Clone, Copy)]
struct Pair {
    originator: Option<u32>,
    reply: Option<u32>,
}

impl Collector {
    /// Which records the next sweep makes, in the name of which node.
    pub fn record(&mut self, recording: Recording, node: &str) {
        let export = &mut self.export;
        if export.recording == Recording::All && recording == Recording::Few {
            export.bases = HashMap::new();
        }
        export.recording = recording;
        if export.node != node {
            node.clone_into(&mut export.node);
        }
    }

    /// The flow records of the last sweep, and how many there were beyond those that it could make.
    pub fn take_flows(&mut self) -> (Vec<FlowRecord>, u64) {
        let missed = std::mem::take(&mut self.export.missed);
        (std::mem::take(&mut self.export.records), missed)
    }

    /// The live connections, the largest first, at most so many; all of them if `most` is 0.
    pub fn live_connections<S: Source>(
        &self,
        source: &S,
        whois: &Whois,
        names: &DropNames,
        most: usize,
    ) -> Vec<FlowRecord> {
        let mut pairs: Vec<(u64, u32)> = self
            .live()
            .filter(|cell| self.tells(*cell))
            .map(|cell| {
                let theirs = self.partner(cell).map_or(0, |other| source.counts(other).1);
                (source.counts(cell).1 + theirs, cell)
            })
            .collect();
        pairs.sort_unstable_by_key(|(bytes, cell)| (std::cmp::Reverse(*bytes), *cell));
        if most > 0 {
            pairs.truncate(most);
        }
        let record = |(_, cell): &(u64, u32)| {
            let mut record = self.connection(source, whois, names, *cell, End::Live);
            for counts in [Some(&mut record.forward), record.reply.as_mut()]
                .into_iter()
                .flatten()
            {
                (counts.packets, counts.bytes) = (counts.total_packets, counts.total_bytes);
            }
            record
        };
        pairs.iter().map(record).collect()
    }

    /// Whether the cell's connection is told of when its turn comes: an answer is part of what it answers.
    fn tells(&self, cell: u32) -> bool {
        self.side(cell) == Side::Originator || self.partner(cell).is_none()
    }

    fn pair_of(&self, cell: u32) -> Pair {
        let (one, other) = (Some(cell), self.partner(cell));
        match self.side(cell) {
            Side::Originator => Pair {
                originator: one,
                reply: other,
            },
            Side::Reply => Pair {
                originator: other,
                reply: one,
            },
        }
    }

    /// Records the connections whose cells are about to be given back; at the agent's end, all of them.
    pub(super) fn record_ended<S: Source>(&mut self, source: &S, sweep: &mut Sweep) {
        if sweep.last {
            if self.export.recording == Recording::All {
                let cells: Vec<u32> = self.live().filter(|cell| self.tells(*cell)).collect();
                for cell in cells {
                    self.tell(source, sweep, cell, End::AgentEnd);
                }
            }
            return;
        }
        // The two of a connection end together: one whose partner still waits for its last counts waits, too.
        let mut freeing = std::mem::take(&mut self.freeing);
        let all = freeing.clone();
        let ends = |cell: u32| all.binary_search(&cell).is_ok();
        freeing.retain(|cell| match self.partner(*cell) {
            Some(other) => ends(other) || !self.seen[other as usize].has(CLOSED),
            None => true,
        });
        for &cell in &freeing {
            let with_partner = self.partner(cell).is_some_and(&ends);
            if with_partner && self.side(cell) == Side::Reply {
                continue;
            }
            let tcp = |cell: u32| self.seen[cell as usize].tcp;
            let own = tcp(cell);
            let theirs = self.partner(cell).map_or(0, tcp);
            let over =
                (own | theirs) & RST != 0 || own & FIN != 0 && (theirs & FIN != 0 || theirs == 0);
            let end = if over { End::Closed } else { End::Idle };
            self.tell(source, sweep, cell, end);
        }
        self.freeing = freeing;
    }

    /// Records the connections that go on for longer than the active timeout.
    pub(super) fn record_long<S: Source>(&mut self, source: &S, sweep: &mut Sweep) {
        let active = self.config.active_ms;
        if self.export.recording != Recording::All || sweep.last || active == 0 {
            return;
        }
        if sweep.ms.wrapping_sub(self.export.looked_ms) < active / LOOKS {
            return;
        }
        self.export.looked_ms = sweep.ms;
        let started = self.started_ns.unwrap_or_default();
        let due = |cell: u32| {
            let since = self.export.bases.get(&cell).map_or_else(
                || milliseconds(source.hot(cell).first_ns.saturating_sub(started)),
                |base| base.ms,
            );
            sweep.ms.wrapping_sub(since) >= active
        };
        let moved = |cell: u32| {
            let base = self.export.bases.get(&cell).map_or(0, |base| base.packets);
            let hot = source.hot(cell);
            hot.skbs + hot.gso_packets != base
        };
        let cells: Vec<u32> = self
            .live()
            .filter(|cell| self.tells(*cell) && !self.seen[*cell as usize].has(CLOSED))
            .filter(|cell| due(*cell) && (moved(*cell) || self.partner(*cell).is_some_and(moved)))
            .collect();
        for cell in cells {
            self.tell(source, sweep, cell, End::Active);
        }
    }

    /// Makes a record, and notes how much of the connection it has.
    fn tell<S: Source>(&mut self, source: &S, sweep: &Sweep, cell: u32, end: End) {
        if !self.export.room() {
            return;
        }
        let record = self.connection(source, &sweep.whois, sweep.names, cell, end);
        if self.export.recording == Recording::All {
            let Pair { originator, reply } = self.pair_of(cell);
            for cell in [originator, reply].into_iter().flatten() {
                let hot = source.hot(cell);
                let base = Base {
                    packets: hot.skbs + hot.gso_packets,
                    bytes: hot.bytes + hot.gso_bytes,
                    ms: sweep.ms,
                };
                self.export.bases.insert(cell, base);
            }
        }
        self.export.records.push(record);
    }
}

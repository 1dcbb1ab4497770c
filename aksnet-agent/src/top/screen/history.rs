//! What flows did in the looks before, of those that are shown: enough for a small chart, forgotten with the flow.

use std::collections::{HashMap, VecDeque};

use crate::{live::FlowId, top::model::Row};

/// How many looks are kept.
pub const LOOKS: usize = 120;
/// A flow that is not shown for so many looks is forgotten.
const ABSENT: u32 = 30;
/// No more flows than this are kept.
const FLOWS: usize = 6_000;

/// One flow's.
#[derive(Clone, Debug, Default)]
struct Past {
    /// Bytes per second, the oldest first.
    bytes: VecDeque<f64>,
    absent: u32,
}

/// All flows'.
#[derive(Clone, Debug, Default)]
pub struct History(HashMap<FlowId, Past>);

impl History {
    /// A look has these rows.
    pub fn add<'a>(&mut self, rows: impl Iterator<Item = &'a Row>) {
        for past in self.0.values_mut() {
            past.absent += 1;
        }
        for row in rows {
            let id = FlowId::of(row);
            if self.0.len() >= FLOWS && !self.0.contains_key(&id) {
                continue;
            }
            let past = self.0.entry(id).or_default();
            if past.absent == 0 && !past.bytes.is_empty() {
                // Followed and listed: once is enough.
                continue;
            }
            past.absent = 0;
            if past.bytes.len() == LOOKS {
                past.bytes.pop_front();
            }
            past.bytes.push_back(row.bytes_per_second);
        }
        self.0.retain(|_, past| past.absent < ABSENT);
    }

    /// Bytes per second of a flow, the oldest first.
    pub fn of(&self, id: &FlowId) -> impl Iterator<Item = f64> + '_ {
        self.0
            .get(id)
            .into_iter()
            .flat_map(|past| past.bytes.iter().copied())
    }
}

//! TCP handshakes: how long from SYN to SYN-ACK, and what became of a SYN without one.
//!
//! A handshake is measured once, at the flow that sent the SYN, when both of a connection's flows have been
//! read, in whichever order. Without a SYN-ACK it is *refused* when the other side answered with RST, and
//! *unanswered* when nothing came back in time and nothing here dropped the SYN. Answers that spilled have no
//! times: such a handshake is neither measured nor called unanswered.

use aksnet_common::packet::{ACK, RST};

use super::{
    delta::{HEARD, KNOWN, PENDING, REPLY},
    source::Source,
    sweep::{Collector, Sweep, milliseconds},
};
use crate::metrics::Outcome;

/// What became of a SYN.
enum Fate {
    /// Answered after this many nanoseconds.
    Answered(u64),
    Failed(Outcome),
    /// It waits.
    Waiting,
    /// It is not known, or accounted elsewhere (dropped here).
    Unknown,
}

impl Collector {
    /// Settles the SYNs that wait, as far as that can be told now.
    pub(super) fn settle_handshakes<S: Source>(&mut self, source: &S, sweep: &mut Sweep) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|&cell| {
            let seen = self.seen[cell as usize];
            if !seen.has(KNOWN) || !seen.has(PENDING) {
                return false;
            }
            match self.fate(sweep, cell) {
                Fate::Waiting => return true,
                Fate::Answered(ns) => {
                    sweep.families.tcp.handshake(seen.class(), seen.nat(), ns);
                }
                Fate::Failed(outcome) => {
                    let (labels, _) = self.labels(source, sweep, cell);
                    sweep.families.tcp.failure(labels, outcome);
                }
                Fate::Unknown => {}
            }
            self.seen[cell as usize].set(PENDING, false);
            false
        });
        self.pending = pending;
    }

    fn fate(&self, sweep: &Sweep, cell: u32) -> Fate {
        let seen = &self.seen[cell as usize];
        if seen.has(REPLY) || seen.syn_ns == 0 {
            return Fate::Unknown;
        }
        let syn_ms = milliseconds(
            seen.syn_ns
                .saturating_sub(self.started_ns.unwrap_or_default()),
        );
        let mut heard = seen.has(HEARD);
        if let Some(partner) = self.partner(cell) {
            let answer = &self.seen[partner as usize];
            if answer.syn_ns >= seen.syn_ns {
                return Fate::Answered(answer.syn_ns - seen.syn_ns);
            }
            // The clock wraps: the difference tells which came first.
            heard |= answer.changed.wrapping_sub(syn_ms) < u32::MAX / 2;
            // An answer that once held a SYN-ACK belongs, with its RST, to an earlier connection.
            if heard && answer.syn_ns == 0 && answer.tcp & RST != 0 {
                return Fate::Failed(Outcome::Refused);
            }
        } else {
            // The answers have no cell, perhaps as the table is full; but who acknowledges has heard something.
            heard |= seen.tcp & ACK != 0;
        }
        let waited = sweep.now.monotonic_ns.saturating_sub(seen.syn_ns);
        if waited < u64::from(self.config.unanswered_ms) * 1_000_000 {
            Fate::Waiting
        } else if heard || self.links[cell as usize].dropped_ns >= seen.syn_ns {
            Fate::Unknown
        } else {
            Fate::Failed(Outcome::Unanswered)
        }
    }
}

//! TCP handshakes: how long from SYN to SYN-ACK, and what became of a SYN without one.
//!
//! A handshake is measured once, at the flow that sent the SYN, when both of a connection's flows have been
//! read, in whichever order. Without a SYN-ACK it is *refused* when the other side answered with RST. It is *unanswered*
//! when it left the node through an uplink, nothing came back in time and nothing here dropped it: a network security
//! group, a route table or a firewall outside lost it, or the far end did. One that was handed to a pod of this node
//! instead found that pod *silent*. A SYN of which nothing was seen to leave (delivered on the node, dropped, or taken out
//! of its way by a queue to user space) is none of these. Answers that spilled have no times: such a handshake is neither
//! measured nor called unanswered.
//!
//! A load balancer's health probe is a handshake, too, and counted apart: there silence counts wherever it came from.

use aksnet_common::{
    packet::{ACK, RST, TCP},
    stats::Role,
};

use super::{
    delta::{HEARD, KNOWN, PENDING, REPLY},
    judge::Half,
    source::Source,
    sweep::{Collector, Sweep, milliseconds},
};
use crate::{
    classify::Class,
    metrics::{Outcome, labels::Party},
};

/// What became of a SYN.
enum Fate {
    /// Answered after this many nanoseconds.
    Answered(u64),
    Refused,
    /// Nothing came back in time, and nothing here dropped it.
    Silent,
    /// It was dropped here, and accounted there.
    Dropped,
    /// It waits.
    Waiting,
    /// It is not known.
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
            let fate = self.fate(sweep, cell);
            if matches!(fate, Fate::Waiting) {
                return true;
            }
            if seen.class() == Class::LbHealthProbe {
                self.settle_probe(source, sweep, cell, &fate);
            }
            match fate {
                Fate::Answered(ns) => {
                    sweep.families.tcp.handshake(seen.class(), seen.nat(), ns);
                }
                Fate::Refused => self.fail(source, sweep, cell, Outcome::Refused),
                Fate::Silent => match left_by(source, sweep, cell) {
                    Some(Role::Uplink) => self.fail(source, sweep, cell, Outcome::Unanswered),
                    Some(Role::Pod) => self.fail(source, sweep, cell, Outcome::PodSilent),
                    _ => {}
                },
                Fate::Dropped | Fate::Unknown | Fate::Waiting => {}
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
                return Fate::Refused;
            }
        } else {
            // The answers have no cell, perhaps as the table is full; but who acknowledges has heard something.
            heard |= seen.tcp & ACK != 0;
        }
        let waited = sweep.now.monotonic_ns.saturating_sub(seen.syn_ns);
        if waited < u64::from(self.config.unanswered_ms) * 1_000_000 {
            Fate::Waiting
        } else if heard {
            Fate::Unknown
        } else if self.links[cell as usize].dropped_ns >= seen.syn_ns {
            Fate::Dropped
        } else {
            Fate::Silent
        }
    }

    fn fail<S: Source>(&self, source: &S, sweep: &mut Sweep, cell: u32, outcome: Outcome) {
        let (labels, _) = self.labels(source, sweep, cell);
        sweep.families.tcp.failure(labels, outcome);
    }

    /// Counts a health probe for the service whose port it asks.
    fn settle_probe<S: Source>(&self, source: &S, sweep: &mut Sweep, cell: u32, fate: &Fate) {
        let failure = match fate {
            Fate::Answered(_) => None,
            Fate::Refused => Some(Outcome::Refused),
            Fate::Silent | Fate::Dropped => Some(Outcome::Unanswered),
            Fate::Waiting | Fate::Unknown => return,
        };
        let port = source.hot(cell).key.dst_port;
        let index = sweep.whois.index;
        let party = match index.node_port(TCP, port) {
            Some(service) => Party {
                namespace: sweep.families.symbols.of_name(index, service.namespace),
                workload: sweep.families.symbols.of_name(index, service.workload),
            },
            None => self.labels(source, sweep, cell).0.dst,
        };
        sweep.families.probes.add(party, port, failure);
    }
}

/// The kind of interface through which a flow was seen to leave the node.
fn left_by<S: Source>(source: &S, sweep: &Sweep, cell: u32) -> Option<Role> {
    let out = Half::read(source, cell).out_ifindex();
    (out != 0).then(|| sweep.whois.plan.role(out)).flatten()
}

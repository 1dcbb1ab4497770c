//! *Denial*: what the policies say of a flow that the node dropped or forwarded, in values that outlive the index.

// How it reads.
mod words;

use std::collections::HashMap;

use aksnet_common::{flow::Addr, packet};

pub(super) use self::words::words;
use super::attribute::Opinion;
use crate::{
    classify::{Peer, Whois},
    plan::Place,
    policy::{
        engine::Engine,
        evaluate::Judgement,
        explain::of_policy,
        flow::{End, Flow, Who},
        index::When,
        model::{NetworkPolicy, Side},
        words::Named,
    },
};

/// For how long an engine may still enforce a policy that was changed or deleted, in nanoseconds.
const ENGINE_LAG_NS: u64 = 30_000_000_000;

/// Policies whose reasoning a record has.
const FEW: usize = 3;

/// Policies that a metric's label names; if a pod is isolated by more, the last of them reads `other`.
const NAMED: usize = 16;

/// Flows whose judgements one sweep remembers: a client that is denied tries again from port to port.
const MOST: usize = 4_096;

/// A flow as policies see it: after DNAT and before SNAT.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) src: (Addr, Peer),
    pub(super) dst: (Addr, Peer),
    pub(super) protocol: u8,
    /// The server's port; 0 where the protocol has none.
    pub(super) port: u16,
}

/// What the policies say of one side of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) opinion: Opinion,
    /// `namespace/name` of those that isolate the pod where they do not allow it, in order.
    pub(super) policies: Vec<String>,
    /// Why no rule allows it.
    pub(super) words: String,
}

/// What they say of both.
#[derive(Clone, Debug, Default)]
pub(super) struct Judged {
    pub(super) egress: Said,
    pub(super) ingress: Said,
}

impl Judged {
    pub(super) fn side(&self, side: Side) -> &Said {
        match side {
            Side::Egress => &self.egress,
            Side::Ingress => &self.ingress,
        }
    }
}

/// Judges flows for one sweep, each pair once.
#[derive(Debug, Default)]
pub(super) struct Judge {
    known: HashMap<(Addr, Addr, u16, u8), Judged>,
}

impl Judge {
    /// What the policies say of a flow, as the node's engine would have it. An engine may still enforce what was
    /// changed or deleted a moment ago: what is not denied now, but was then, is denied.
    pub(super) fn ask(
        &mut self,
        whois: &Whois,
        engine: Engine,
        asked: &Asked,
        now: u64,
    ) -> &Judged {
        let key = (asked.src.0, asked.dst.0, asked.port, asked.protocol);
        if self.known.len() >= MOST && !self.known.contains_key(&key) {
            self.known.clear();
        }
        self.known.entry(key).or_insert_with(|| {
            let mut judged = judge(whois, engine, asked, When::At(now), true);
            let lately = When::Lately {
                at: now,
                lag: ENGINE_LAG_NS,
            };
            let mut before = None;
            for side in [Side::Egress, Side::Ingress] {
                if judged.side(side).opinion == Opinion::Denies || !is_local(asked, side) {
                    continue;
                }
                let before =
                    before.get_or_insert_with(|| judge(whois, engine, asked, lately, true));
                let said = before.side(side);
                if said.opinion == Opinion::Denies {
                    let mut said = said.clone();
                    said.words = format!("changed or deleted a moment ago: {}", said.words);
                    *judged.side_mut(side) = said;
                }
            }
            judged
        })
    }
}

impl Judged {
    fn side_mut(&mut self, side: Side) -> &mut Said {
        match side {
            Side::Egress => &mut self.egress,
            Side::Ingress => &mut self.ingress,
        }
    }
}

/// Whether this node is where a side is enforced: where its pod runs.
fn is_local(asked: &Asked, side: Side) -> bool {
    let peer = match side {
        Side::Egress => &asked.src.1,
        Side::Ingress => &asked.dst.1,
    };
    peer.place() == Place::LocalPod
}

/// What the policies say of a flow now, or did at that time; why, only if that is asked for, as it takes longer.
pub(super) fn judge(
    whois: &Whois,
    engine: Engine,
    asked: &Asked,
    when: When,
    with_words: bool,
) -> Judged {
    let policies = whois.index.policies();
    let at = match when {
        When::At(at) | When::Lately { at, .. } => at,
    };
    let flow = Flow {
        src: end(whois, asked.src, at),
        dst: end(whois, asked.dst, at),
        protocol: asked.protocol,
        port: asked.port,
        by_node_port: false,
    };
    let verdict = policies.evaluate(&flow, when, engine);
    let said = |side: Side| {
        if !is_local(asked, side) {
            return Said::default();
        }
        let judgement = verdict.side(side);
        let opinion = match judgement {
            Judgement::NotSubject(_) | Judgement::NotIsolated => Opinion::None,
            Judgement::Allowed { .. } => Opinion::Allows,
            Judgement::Denied(_) => Opinion::Denies,
            Judgement::Undetermined { policies, .. } if policies.is_empty() => Opinion::None,
            Judgement::Undetermined { .. } => Opinion::Undetermined,
        };
        if !matches!(opinion, Opinion::Denies | Opinion::Undetermined) {
            return Said {
                opinion,
                ..Said::default()
            };
        }
        let policies = judgement.policies();
        Said {
            opinion,
            policies: policies
                .iter()
                .map(|policy| Named(policy).to_string())
                .collect(),
            words: if with_words {
                reasons(policies, &flow, side, engine)
            } else {
                String::new()
            },
        }
    };
    Judged {
        egress: said(Side::Egress),
        ingress: said(Side::Ingress),
    }
}

/// Why each of the policies does not allow it; a line names a few at most.
fn reasons(isolating: &[&NetworkPolicy], flow: &Flow<'_>, side: Side, engine: Engine) -> String {
    let few = isolating.iter().take(FEW);
    let mut words: Vec<String> = few
        .map(|policy| of_policy(policy, flow, side, engine).to_string())
        .collect();
    if isolating.len() > FEW {
        words.push(format!("and {} more policies", isolating.len() - FEW));
    }
    words.join("; ")
}

/// The policies as a metric's label.
pub(super) fn label(policies: &[String]) -> String {
    if policies.len() <= NAMED {
        return policies.join(",");
    }
    format!("{},other", policies[..NAMED - 1].join(","))
}

/// The port that policies know of: ICMP and what has no ports match rules without ports only.
pub(super) const fn port(protocol: u8, port: u16) -> u16 {
    match protocol {
        packet::TCP | packet::UDP | packet::SCTP => port,
        _ => 0,
    }
}

/// An end as policies see it: whose the address was at that time.
fn end<'a>(whois: &Whois<'a>, (address, peer): (Addr, Peer), at: u64) -> End<'a> {
    let who = match (whois.party(address, at), peer.place()) {
        // A pod by its interface alone.
        (Who::External, Place::LocalPod) => Who::UnknownPod,
        (who, _) => who,
    };
    End {
        address: address.into(),
        who,
    }
}

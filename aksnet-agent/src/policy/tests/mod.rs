//! What the evaluator says, point by point, by engine, of odd policies, and against a second implementation.

mod compared;

mod engines;

mod explained;

mod history;

mod odd;

mod points;

use std::net::IpAddr;

use serde_json::{Value, json};

pub(super) use super::random::{ICMP, Owned, SCTP, TCP, UDP, labels};
use super::{
    engine::Engine,
    evaluate::{Judgement, Outcome, Verdict},
    flow::{End, Flow, Who},
    index::{Policies, When},
    model::{NetworkPolicy, Side},
};
use crate::identify::{
    object::{Kind, Object},
    reduce::Reducer,
};

/// A policy as it is written: name, and what `spec` says.
pub(super) fn policy(name: &str, spec: &Value) -> NetworkPolicy {
    let (namespace, name) = name.split_once('/').unwrap();
    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    let reduced = Reducer::default()
        .object(Kind::Policy, object.to_string().as_bytes())
        .unwrap();
    match reduced.object {
        Some(Object::Policy(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

pub(super) fn end<'a>(address: &str, who: Who<'a>) -> End<'a> {
    End {
        address: address.parse().unwrap(),
        who,
    }
}

pub(super) fn external(address: &str) -> End<'_> {
    end(address, Who::External)
}

pub(super) fn flow<'a>(src: End<'a>, dst: End<'a>, protocol: u8, port: u16) -> Flow<'a> {
    Flow {
        src,
        dst,
        protocol,
        port,
        by_node_port: false,
    }
}

/// Policies that are in force.
pub(super) fn policies(all: impl IntoIterator<Item = NetworkPolicy>) -> Policies {
    let mut policies = Policies::default();
    for policy in all {
        policies.apply(policy, 0);
    }
    policies
}

pub(super) fn say<'p>(policies: &'p Policies, flow: &Flow<'_>) -> Verdict<'p> {
    policies.evaluate(flow, When::At(1), Engine::Kubernetes)
}

pub(super) fn outcome(policies: &Policies, flow: &Flow<'_>) -> Outcome {
    say(policies, flow).outcome()
}

/// Whether it is allowed; it must be determined.
pub(super) fn allowed(policies: &Policies, flow: &Flow<'_>) -> bool {
    match outcome(policies, flow) {
        Outcome::Allowed => true,
        Outcome::Denied => false,
        Outcome::Undetermined => panic!("undetermined: {flow:?}"),
    }
}

pub(super) fn names<'p>(judgement: &Judgement<'p>) -> Vec<&'p str> {
    judgement.policies().iter().map(|one| &*one.name).collect()
}

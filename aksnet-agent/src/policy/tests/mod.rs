//! What the evaluator says, point by point, by engine, of odd policies, and against a second implementation.

mod compared;

mod engines;

mod explained;

mod history;

mod odd;

mod points;

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    engine::Engine,
    evaluate::{Judgement, Outcome, Verdict},
    flow::{End, Flow, Pod, Who},
    index::{Policies, When},
    model::{NetworkPolicy, Side},
};
use crate::identify::{
    object::{Kind, Labels, Object, Text},
    reduce::Reducer,
};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const SCTP: u8 = 132;

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

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let mut pairs: Vec<(Text, Text)> = pairs
        .iter()
        .map(|(key, value)| (Text::from(*key), Text::from(*value)))
        .collect();
    pairs.sort();
    pairs.into()
}

/// A pod with what belongs to it.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) namespace_labels: Option<Labels>,
    pub(super) named_ports: Option<Vec<(Text, u8, u16)>>,
    pub(super) address: IpAddr,
}

impl Owned {
    /// `shop/web` with the label `app=web`, in a namespace with the label `name`.
    pub(super) fn new(name: &str, last: u8) -> Self {
        let (namespace, name) = name.split_once('/').unwrap();
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: labels(&[("app", name)]),
            namespace_labels: Some(labels(&[("name", namespace)])),
            named_ports: Some(Vec::new()),
            address: IpAddr::from([10, 244, 0, last]),
        }
    }

    pub(super) fn pod(&self) -> Pod<'_> {
        Pod {
            namespace: &self.namespace,
            name: &self.name,
            labels: &self.labels,
            namespace_labels: self.namespace_labels.as_deref(),
            named_ports: self.named_ports.as_deref(),
        }
    }

    pub(super) fn end(&self) -> End<'_> {
        End {
            address: self.address,
            who: Who::Pod(self.pod()),
        }
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

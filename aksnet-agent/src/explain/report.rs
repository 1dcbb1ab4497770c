//! The answer of `explain`, in words and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::policy::{
    engine::Engine,
    evaluate::{Judgement, Outcome},
    explain::{Explanation, Failure, Part, PolicyReason, RuleReason, SideReason},
    flow::{End, Flow, Who},
    words::{Named, Protocol, RuleWords},
};

/// What is said.
#[derive(Debug)]
pub struct Report<'r> {
    /// What was asked about.
    pub flow: &'r Flow<'r>,
    /// What the policies say of it.
    pub explanation: &'r Explanation<'r>,
    /// Who enforces them.
    pub engine: Engine,
    /// What is to be known besides.
    pub notes: &'r [String],
}

/// A verdict in a word.
pub(super) const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Allowed => "allowed",
        Outcome::Denied => "denied",
        Outcome::Undetermined => "undetermined",
    }
}

const fn judgement(judgement: &Judgement<'_>) -> &'static str {
    match judgement {
        Judgement::NotSubject(_) => "not_subject",
        Judgement::NotIsolated => "not_isolated",
        Judgement::Allowed { .. } => "allowed",
        Judgement::Denied(_) => "denied",
        Judgement::Undetermined { .. } => "undetermined",
    }
}

impl Report<'_> {
    /// In words: the verdict in the first line, then everything that led to it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let verdict = outcome(self.explanation.outcome());
        let (src, dst) = (self.flow.src, self.flow.dst);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{verdict}: {src} -> {dst}, {}", self.port());
        for side in self.explanation.sides() {
            text.push('\n');
            side_text(&mut text, side);
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    fn port(&self) -> String {
        let protocol = Protocol(self.flow.protocol);
        match self.flow.port {
            0 => protocol.to_string(),
            port => format!("port {port}/{protocol}"),
        }
    }

    /// The same as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "verdict": outcome(self.explanation.outcome()),
            "engine": self.engine.name(),
            "from": end_json(&self.flow.src),
            "to": end_json(&self.flow.dst),
            "protocol": Protocol(self.flow.protocol).to_string(),
            "port": self.flow.port,
            "egress": side_json(&self.explanation.egress),
            "ingress": side_json(&self.explanation.ingress),
            "notes": self.notes,
        })
    }
}

fn side_text(text: &mut String, side: &SideReason<'_>) {
    let (name, own) = (side.side.name(), side.own);
    let verdict = outcome(side.judgement.outcome());
    let _ = write!(text, "{name} of {own}: {verdict}: ");
    let _ = match (&side.judgement, side.policies.len()) {
        (Judgement::Denied(_), 1) => {
            writeln!(text, "a policy isolates it, and no rule matches")
        }
        (Judgement::Denied(_), several) => {
            writeln!(text, "{several} policies isolate it, and no rule matches")
        }
        _ => writeln!(text, "{side}"),
    };
    for PolicyReason { policy, rules, .. } in &side.policies {
        let _ = writeln!(text, "  policy {} isolates it", Named(policy));
        if rules.is_empty() {
            let _ = writeln!(text, "    it has no {name} rule and allows nothing");
        }
        for (rule, n) in rules.iter().zip(1..) {
            let words = RuleWords {
                side: side.side,
                rule,
            };
            let _ = match rule {
                RuleReason::Matches { .. } => writeln!(text, "    rule {n} matches: {words}"),
                RuleReason::Maybe(_) => writeln!(text, "    rule {n} may match: {words}"),
                RuleReason::Fails { items, .. } if items.len() == 1 => {
                    writeln!(text, "    rule {n} does not match: {words}")
                }
                RuleReason::Fails { part, items } => {
                    let what = match part {
                        Part::Peers => "peers",
                        Part::Ports => "ports",
                    };
                    let many = items.len();
                    let _ = writeln!(
                        text,
                        "    rule {n} does not match: none of its {many} {what}"
                    );
                    for item in items {
                        let _ = writeln!(text, "      {item}");
                    }
                    Ok(())
                }
            };
        }
    }
}

fn end_json(end: &End<'_>) -> Value {
    let who = match &end.who {
        Who::Pod(_) => "pod",
        Who::UnknownPod => "unknown_pod",
        Who::Node { .. } => "node",
        Who::External => "external",
        Who::Service => "service",
    };
    let mut value = json!({"who": who});
    if !end.address.is_unspecified() {
        value["address"] = json!(end.address);
    }
    if let Some(pod) = end.who.pod() {
        value["namespace"] = json!(pod.namespace);
        value["name"] = json!(pod.name);
    }
    value
}

fn side_json(side: &SideReason<'_>) -> Value {
    let policies: Vec<Value> = side
        .policies
        .iter()
        .map(|PolicyReason { policy, rules, .. }| {
            let rules: Vec<Value> = rules
                .iter()
                .zip(1..)
                .map(|(rule, n)| {
                    let words = RuleWords {
                        side: side.side,
                        rule,
                    };
                    let mut value = json!({"rule": n, "text": words.to_string()});
                    match rule {
                        RuleReason::Matches { .. } => value["result"] = json!("matches"),
                        RuleReason::Maybe(_) => value["result"] = json!("may_match"),
                        RuleReason::Fails { part, items } => {
                            let failed: Vec<Value> = items.iter().map(failure_json).collect();
                            value["result"] = json!("does_not_match");
                            value["failed"] = json!(failed);
                            value["part"] = json!(match part {
                                Part::Peers => "peers",
                                Part::Ports => "ports",
                            });
                        }
                    }
                    value
                })
                .collect();
            json!({"namespace": *policy.namespace, "name": *policy.name, "rules": rules})
        })
        .collect();
    let mut value = json!({
        "outcome": outcome(side.judgement.outcome()),
        "judgement": judgement(&side.judgement),
        "text": side.to_string(),
        "isolated_by": policies,
    });
    if let Judgement::Allowed { policy, rule } = &side.judgement {
        value["allowed_by"] = json!({
            "namespace": *policy.namespace, "name": *policy.name, "rule": rule + 1,
        });
    }
    value
}

fn failure_json(failure: &Failure<'_>) -> Value {
    let kind = match failure {
        Failure::Namespace { .. } => "namespace",
        Failure::NamespaceLabel { .. } => "namespace_label",
        Failure::PeerLabel { .. } => "peer_label",
        Failure::NoPod { .. } => "no_pod",
        Failure::Cidr { .. } => "cidr",
        Failure::Except { .. } => "except",
        Failure::Outside { .. } => "not_outside",
        Failure::Nobody(_) => "unreadable_peer",
        Failure::Protocol { .. } => "protocol",
        Failure::Port { .. } => "port",
        Failure::NamedPort { .. } => "named_port",
        Failure::Nothing(_) => "unreadable_port",
    };
    json!({"kind": kind, "text": failure.to_string()})
}

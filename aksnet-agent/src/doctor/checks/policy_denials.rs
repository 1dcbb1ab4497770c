//! What network policies denied lately, and which.

use super::{Check, Evidence, Finding, Severity, blind, connections, lately, packets, some, sum};
use crate::doctor::evidence::Denial;

pub(super) const CHECK: Check = Check {
    name: "policy-denials",
    looks_at: "packets that network policies denied in the last minutes, by policy",
    runbook: "docs/runbooks/policy.md",
    findings: check,
};

fn check(evidence: &Evidence) -> Vec<Finding> {
    if let Some(blind) = blind(evidence, &["drop"]) {
        return vec![blind];
    }
    let mut recent: Vec<&Denial> = evidence
        .denials
        .iter()
        .filter(|denial| denial.packets.recent > 0)
        .collect();
    if recent.is_empty() {
        let total = sum(evidence.denials.iter().map(|denial| denial.packets)).total;
        let before = if total > 0 {
            format!("; {} since the agent's start", packets(total))
        } else {
            String::new()
        };
        return vec![Finding::ok(format!(
            "no network policy denied a packet {}{before}",
            lately(evidence)
        ))];
    }
    recent.sort_by_key(|denial| std::cmp::Reverse(denial.packets.recent));
    let mut policies: Vec<&str> = recent.iter().map(|denial| name(denial)).collect();
    policies.sort_unstable();
    policies.dedup();
    let denied = sum(recent.iter().map(|denial| denial.connections)).recent;
    let lost = sum(recent.iter().map(|denial| denial.packets)).recent;
    let by = match policies.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("{} policies", many.len()),
    };
    let lines = recent.iter().flat_map(|denial| {
        let confidence = match denial.confidence.as_str() {
            "exact" => "",
            "candidates" => " (one of these)",
            _ => " (the engine says so; no policy that is known does)",
        };
        let line = format!(
            "{} {}{confidence}: {} → {}, {} ({})",
            name(denial),
            denial.direction,
            denial.src,
            denial.dst,
            packets(denial.packets.recent),
            connections(denial.connections.recent),
        );
        let why = Some(&denial.why).filter(|why| !why.is_empty());
        [Some(line), why.map(|why| format!("  {why}"))]
            .into_iter()
            .flatten()
    });
    let first = recent[0];
    let explain = if first.src.contains('/') && first.dst.contains('/') {
        format!(
            "Meant so? Then nothing. If not: aksnet-agent explain {} {} PORT says which part of which rule fails.",
            first.src, first.dst
        )
    } else {
        "Meant so? Then nothing. If not: aksnet-agent explain FROM TO PORT says which part of which rule fails."
            .to_owned()
    };
    vec![
        Finding::new(
            Severity::Warning,
            format!(
                "{by} denied {} ({}) {}",
                connections(denied),
                packets(lost),
                lately(evidence)
            ),
        )
        .because_all(some(lines))
        .fix(explain),
    ]
}

fn name(denial: &Denial) -> &str {
    if denial.policy.is_empty() {
        "an unknown policy"
    } else {
        &denial.policy
    }
}

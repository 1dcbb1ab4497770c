//! Whether NAT slows packets down by more than the budget.

use super::{Check, Evidence, Finding, Severity, blind, plural, some};

pub(super) const CHECK: Check = Check {
    name: "nat-time",
    looks_at: "what NAT adds to a packet's time on the node, against the budget",
    runbook: "docs/nat-bill.md",
    findings: check,
};

fn check(evidence: &Evidence) -> Vec<Finding> {
    if let Some(blind) = blind(evidence, &["enter", "exit"]) {
        return vec![blind];
    }
    if evidence.nat_judged == 0 {
        return vec![Finding::unknown(
            "too few packets were timed in the last minute, with NAT and without, to compare them",
        )];
    }
    let flagged = &evidence.nat_flagged;
    if flagged.is_empty() {
        return vec![Finding::ok(format!(
            "NAT is within its budget for {}",
            plural(
                evidence.nat_judged,
                "class of traffic",
                "classes of traffic"
            )
        ))];
    }
    vec![
        Finding::new(
            Severity::Warning,
            format!(
                "NAT takes longer than its budget for {}",
                plural(flagged.len() as u64, "class of traffic", "classes of traffic")
            ),
        )
        .because_all(some(
            flagged.iter().map(|f| format!("{} with {}", f.class, f.nat)),
        ))
        .fix(
            "Thousands of services in iptables mode make the first packet slow: kube-proxy's nftables mode, or Cilium. \
             aksnet-agent top --sort nat-time names the flows.",
        ),
    ]
}

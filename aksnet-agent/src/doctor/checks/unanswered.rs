//! Whether what leaves the node gets answers: a network security group or a route beside the node drops in silence.

use super::{Check, Evidence, Finding, Severity, blind, connections, lately, some, sum};
use crate::doctor::evidence::Pair;

pub(super) const CHECK: Check = Check {
    name: "unanswered",
    looks_at: "connection attempts that left the node and got no answer, by who and where to",
    runbook: "docs/runbooks/unanswered-egress.md",
    findings: check,
};

/// A lost SYN or two happen.
const SOME: u64 = 3;
/// An outage: so many, and hardly any that came through.
const MANY: u64 = 20;
/// An attempt counts as unanswered after so long.
const VERDICT_S: f64 = 10.0;

fn check(evidence: &Evidence) -> Vec<Finding> {
    if let Some(blind) = blind(evidence, &["enter", "exit"]) {
        return vec![blind];
    }
    let mut recent: Vec<&Pair> = evidence
        .unanswered
        .iter()
        .filter(|pair| pair.count.recent > 0)
        .collect();
    recent.sort_by_key(|pair| std::cmp::Reverse(pair.count.recent));
    let silent = sum(recent.iter().map(|pair| pair.count)).recent;
    if silent == 0 {
        if evidence.window_s <= VERDICT_S {
            return vec![Finding::unknown(format!(
                "an attempt counts as unanswered after {VERDICT_S:.0} s, and this look took {:.0} s",
                evidence.window_s
            ))];
        }
        let left = sum(evidence.opened_to.values().copied());
        return vec![if left.total == 0 {
            Finding::unknown("no connection has left the cluster yet")
        } else {
            Finding::ok(format!(
                "everything that left was answered {}",
                lately(evidence)
            ))
        }];
    }
    let opened = |to: &str| evidence.opened_to.get(to).map_or(0, |count| count.recent);
    // For one destination: so many in vain, of so many.
    let outage = recent.iter().any(|pair| {
        let same = recent.iter().filter(|other| other.dst == pair.dst);
        let silent: u64 = same.map(|other| other.count.recent).sum();
        silent >= MANY && silent.saturating_mul(10) >= opened(&pair.dst).saturating_mul(9)
    });
    let severity = if outage {
        Severity::Critical
    } else if silent >= SOME {
        Severity::Warning
    } else {
        Severity::Info
    };
    let lines = recent.iter().map(|pair| {
        let of = opened(&pair.dst);
        let of = if of >= pair.count.recent {
            format!("; {} to there in all", connections(of))
        } else {
            String::new()
        };
        format!(
            "{} → {}: {} without an answer{of}",
            pair.src, pair.dst, pair.count.recent
        )
    });
    vec![
        Finding::new(
            severity,
            format!(
                "{} left the node and got no answer {}: a network security group, a route or a firewall beside the node",
                connections(silent),
                lately(evidence)
            ),
        )
        .because_all(some(lines))
        .because("the node did not drop them: they left by the uplink")
        .fix(
            "az network watcher test-ip-flow from the node's NIC names the rule of a network security group, and \
             az network watcher show-next-hop the route. To one public destination only: SNAT ports (check snat-ports).",
        ),
    ]
}

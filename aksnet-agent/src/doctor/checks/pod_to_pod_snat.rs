//! Whether pods see each other's own addresses.

use super::{Check, Evidence, Finding, Severity, blind, connections, lately, some, sum};

pub(super) const CHECK: Check = Check {
    name: "pod-to-pod-snat",
    looks_at: "connections between pods whose source the node replaced",
    runbook: "docs/runbooks/needless-nat.md",
    findings: check,
};

fn check(evidence: &Evidence) -> Vec<Finding> {
    if let Some(blind) = blind(evidence, &["enter", "exit"]) {
        return vec![blind];
    }
    let of = || {
        let all = evidence.anomalies.iter();
        all.filter(|a| a.anomaly == "pod_to_pod_snat")
    };
    let count = sum(of().map(|a| a.connections));
    if count.total == 0 {
        let judged = evidence
            .opened
            .get("pod_to_pod")
            .copied()
            .unwrap_or_default();
        return vec![if judged.total == 0 {
            Finding::unknown("no connection between pods was seen yet")
        } else {
            Finding::ok(format!(
                "{} between pods, none with another source address",
                connections(judged.total)
            ))
        }];
    }
    let spared = &evidence.node.masquerade.spared;
    let spared = if spared.is_empty() {
        "none".to_owned()
    } else {
        spared.join(" ")
    };
    let agent = evidence.node.masquerade.agent.as_deref();
    let agent = agent.unwrap_or("the masquerade agent");
    let (severity, when, shown) = if count.recent > 0 {
        (Severity::Warning, lately(evidence), count.recent)
    } else {
        let when = format!("since the agent's start, and none {}", lately(evidence));
        (Severity::Info, when, count.total)
    };
    let mut who: Vec<_> = of().collect();
    who.sort_by_key(|a| std::cmp::Reverse(a.connections));
    let who = who.into_iter().map(|a| {
        let n = if count.recent > 0 {
            a.connections.recent
        } else {
            a.connections.total
        };
        format!("{} → {}: {}", a.src, a.dst, connections(n))
    });
    vec![
        Finding::new(
            severity,
            format!(
                "{} between pods had the node's address for the pod's {when}: network policies and logs see the node",
                connections(shown)
            ),
        )
        .because_all(some(who))
        .because(format!("{agent} spares: {spared}"))
        .fix(
            "Add the pods' range to nonMasqueradeCIDRs (on AKS: ConfigMap azure-ip-masq-agent-config in kube-system); \
             it takes effect within a minute.",
        ),
    ]
}

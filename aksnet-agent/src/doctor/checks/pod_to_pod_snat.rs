//! Whether pods see each other's own addresses.

use super::{Check, Evidence, Finding, Severity, anomalous, blind, connections};

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
    let Some(found) = anomalous(evidence, "pod_to_pod_snat") else {
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
    };
    let spared = &evidence.node.masquerade.spared;
    let spared = if spared.is_empty() {
        "none".to_owned()
    } else {
        spared.join(" ")
    };
    let agent = evidence.node.masquerade.agent.as_deref();
    let agent = agent.unwrap_or("the masquerade agent");
    let severity = if found.recent {
        Severity::Warning
    } else {
        Severity::Info
    };
    vec![
        Finding::new(
            severity,
            format!(
                "{} between pods had the node's address for the pod's {}: network policies and logs see the node",
                connections(found.count),
                found.when
            ),
        )
        .because_all(found.who)
        .because(format!("{agent} spares: {spared}"))
        .fix(
            "Add the pods' range to nonMasqueradeCIDRs (on AKS: ConfigMap azure-ip-masq-agent-config in kube-system); \
             it takes effect within a minute.",
        ),
    ]
}

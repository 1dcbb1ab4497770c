//! Whether pods' connections to the outside have an address that can be answered.

use super::{Check, Evidence, Finding, Severity, anomalous, blind, connections, sum};
use crate::doctor::evidence::Anomaly;

pub(super) const CHECK: Check = Check {
    name: "egress-snat",
    looks_at: "connections that leave with a pod's own address from where that has no way back; a missing masquerade agent",
    runbook: "docs/runbooks/needless-nat.md",
    findings: check,
};

/// The value of the label `anomaly`.
const ANOMALY: &str = "egress_without_snat";
/// Where pods' addresses mean nothing outside of the cluster.
const OVERLAYS: [&str; 4] = ["kubenet", "azure_overlay", "kindnet", "flannel"];

fn check(evidence: &Evidence) -> Vec<Finding> {
    let node = &evidence.node;
    let Some(cni) = node.cni.value.as_deref() else {
        return vec![
            Finding::unknown("what pods' addresses mean outside is not known, as the CNI is not")
                .because_all(node.cni.because.clone()),
        ];
    };
    let mut findings = Vec::new();
    findings.extend(no_agent(evidence, cni));
    if let Some(blind) = blind(evidence, &["enter", "exit"]) {
        findings.push(blind);
        return findings;
    }
    findings.extend(seen(evidence, cni));
    if !findings.is_empty() {
        return findings;
    }
    if !OVERLAYS.contains(&cni) && cni != "azure_node_subnet" {
        return vec![Finding::ok(format!(
            "with {cni} pods' own addresses have a way back, or the CNI sees to it"
        ))];
    }
    if !node.masquerade.known {
        return vec![
            Finding::unknown("the masquerading rules cannot be read")
                .because_all(node.masquerade.because.clone()),
        ];
    }
    let left = sum(evidence.opened_to.values().copied());
    let agent = node.masquerade.agent.as_deref().unwrap_or("nobody");
    vec![if left.total == 0 {
        Finding::unknown(format!(
            "no connection has left the cluster yet ({agent} masquerades)"
        ))
    } else {
        Finding::ok(format!(
            "{} left or came, none with an address that has no way back ({agent} masquerades)",
            connections(left.total)
        ))
    }]
}

fn no_agent(evidence: &Evidence, cni: &str) -> Option<Finding> {
    let masquerade = &evidence.node.masquerade;
    if !masquerade.known || masquerade.agent.is_some() {
        return None;
    }
    let severity = if OVERLAYS.contains(&cni) {
        Severity::Critical
    } else if cni == "azure_node_subnet" {
        Severity::Warning
    } else {
        return None;
    };
    let beyond = if cni == "azure_node_subnet" {
        "the internet"
    } else {
        "anything outside of the cluster"
    };
    Some(
        Finding::new(
            severity,
            format!("nothing masquerades pods on this {cni} node: they cannot reach {beyond}"),
        )
        .because_all(masquerade.because.clone())
        .fix(
            "On AKS: is azure-ip-masq-agent running on this node (kubectl -n kube-system get ds azure-ip-masq-agent), \
             and what does its log say? On kind: kindnet.",
        ),
    )
}

fn seen(evidence: &Evidence, cni: &str) -> Option<Finding> {
    let found = anomalous(evidence, ANOMALY)?;
    // Answers show that somebody has a route back to pods, which is odd and no outage.
    let silent = evidence.unanswered.iter().any(|pair| {
        let same = |a: &Anomaly| a.anomaly == ANOMALY && (&a.src, &a.dst) == (&pair.src, &pair.dst);
        pair.count.recent > 0 && evidence.anomalies.iter().any(same)
    });
    let severity = match (found.recent, silent) {
        (true, true) => Severity::Critical,
        (true, false) => Severity::Warning,
        (false, _) => Severity::Info,
    };
    let spared = &evidence.node.masquerade.spared;
    Some(
        Finding::new(
            severity,
            format!(
                "{} left with a pod's own address, which has no way back ({cni}) {}",
                connections(found.count),
                found.when
            ),
        )
        .because_all(found.who)
        .because_all(silent.then(|| "and connections between the same ends got no answer".to_owned()))
        .because(if spared.is_empty() {
            "no masquerading rule spares a range".to_owned()
        } else {
            format!("not masqueraded: {}", spared.join(" "))
        })
        .fix(
            "nonMasqueradeCIDRs is too wide: it should hold the pods' range (with node subnet: the virtual network's), \
             and not what lies outside. An empty list in azure-ip-masq-agent-config means 10.0.0.0/8 and more.",
        ),
    )
}

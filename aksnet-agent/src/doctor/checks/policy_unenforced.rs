//! Whether network policies that select this node's pods are enforced.

use super::{Check, Evidence, Finding, Severity, connections, lately, no_names, plural, some, sum};

pub(super) const CHECK: Check = Check {
    name: "policy-unenforced",
    looks_at: "network policies that select pods here, who enforces them, and what was forwarded in spite of them",
    runbook: "docs/runbooks/policy-gap.md",
    findings: check,
};

fn check(evidence: &Evidence) -> Vec<Finding> {
    let Some(policies) = &evidence.policies else {
        return vec![Finding::unknown(no_names(evidence, "network_policies"))];
    };
    let engine = &evidence.node.policy_engine;
    let selecting = policies.selecting.len() as u64;
    let forwarded = sum(evidence.gaps.iter().map(|gap| gap.connections));
    let mut gaps: Vec<_> = evidence
        .gaps
        .iter()
        .filter(|gap| gap.connections.recent > 0)
        .collect();
    gaps.sort_by_key(|gap| std::cmp::Reverse(gap.connections.recent));
    let seen = gaps.iter().map(|gap| {
        format!(
            "forwarded against {} ({}): {} {}: {} → {}",
            gap.policy,
            gap.direction,
            connections(gap.connections.recent),
            lately(evidence),
            gap.src,
            gap.dst
        )
    });
    let selected = policies
        .selecting
        .iter()
        .map(|(policy, pods)| format!("{policy} selects {} here", plural(*pods, "pod", "pods")));
    let why_engine = |value: &str| {
        let because = engine.because.first().map_or("", String::as_str);
        format!("policy engine: {value} ({because})")
    };
    match engine.value.as_deref() {
        Some("none") if selecting > 0 => vec![
            Finding::new(
                Severity::Critical,
                format!(
                    "{} pods here, and nothing enforces network policies: every pod can reach every pod",
                    plural(
                        selecting,
                        "network policy selects",
                        "network policies select"
                    )
                ),
            )
            .because(why_engine("none"))
            .because_all(some(seen))
            .because_all(some(selected))
            .fix(
                "On AKS: az aks update --network-policy, with Cilium as dataplane (--network-dataplane cilium). \
                 Until then nobody is protected by these policies.",
            ),
        ],
        Some(value) if forwarded.recent > 0 => vec![
            Finding::new(
                Severity::Critical,
                format!(
                    "{value} lets through what network policies deny: {} {}",
                    connections(forwarded.recent),
                    lately(evidence)
                ),
            )
            .because_all(some(seen))
            .because(why_engine(value))
            .fix(format!(
                "Look at the engine's pod on this node (kubectl -n kube-system get pods -o wide --field-selector spec.nodeName={}) and its log.",
                evidence.node.name
            )),
        ],
        None if selecting > 0 => vec![
            Finding::unknown(format!(
                "{} pods here, and who enforces them is not known",
                plural(selecting, "network policy selects", "network policies select")
            ))
            .because_all(engine.because.clone())
            .because_all(some(selected)),
        ],
        _ if forwarded.total > 0 => vec![
            Finding::new(
                Severity::Info,
                format!(
                    "{} went through in spite of network policies earlier, and none {}",
                    connections(forwarded.total),
                    lately(evidence)
                ),
            )
            .because_all(some(selected))
            .fix("An engine that was restarted leaves such a gap; if it comes back, look at the engine's log."),
        ],
        value => {
            let engine = value.unwrap_or("not known");
            vec![Finding::ok(if selecting == 0 {
                format!("no network policy selects a pod here (policy engine: {engine})")
            } else {
                format!(
                    "{} pods here, {engine} enforces, and nothing was forwarded in spite of them",
                    plural(selecting, "network policy selects", "network policies select")
                )
            })]
        }
    }
}

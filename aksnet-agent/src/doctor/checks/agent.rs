//! Whether the agent sees what it should: its programs, its tables, its sources of names.

use super::{Check, Evidence, Finding, Severity, packets, share, some};

pub(super) const CHECK: Check = Check {
    name: "agent",
    looks_at: "the agent itself: programs, sweeps, flow table, sources of names",
    runbook: "docs/doctor.md#agent",
    findings: check,
};

/// Beyond this share of its room the flow table is as good as full.
const FULL: f64 = 95.0;

fn check(evidence: &Evidence) -> Vec<Finding> {
    let findings: Vec<Finding> = [
        programs(evidence),
        sweeps(evidence),
        interfaces(evidence),
        table(evidence),
        sources(evidence),
        node(evidence),
        translations(evidence),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !findings.is_empty() {
        return findings;
    }
    let agent = &evidence.agent;
    if agent.programs.is_empty() {
        return vec![Finding::unknown("the agent says nothing of its programs")];
    }
    vec![Finding::ok(format!(
        "{} programs run, {} of {} flows in use, {} sources of names are in touch",
        agent.programs.len(),
        agent.flow_cells,
        agent.flow_cells_limit,
        agent.sources.len()
    ))]
}

fn programs(evidence: &Evidence) -> Option<Finding> {
    let down = evidence.agent.programs.iter().filter(|p| !p.up);
    let names: Vec<&str> = down.clone().map(|p| p.program.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    // Without the one that sees drops, all the rest is still right.
    let only_drops = names.iter().all(|name| *name == "drop");
    let (severity, title) = if only_drops {
        (
            Severity::Warning,
            "drops cannot be seen on this node".to_owned(),
        )
    } else {
        let names = names.join(", ");
        (
            Severity::Critical,
            format!("traffic cannot be seen on this node: {names} does not run"),
        )
    };
    let finding = Finding::new(severity, title)
        .because_all(down.map(|p| format!("program {} ({}): {}", p.program, p.hook, p.state)))
        .fix("The reason stands in the line above: a kernel that lacks the hook (docs/kernels.md), or a capability that the pod was not given.");
    Some(if only_drops {
        finding.see("docs/runbooks/drops-not-visible.md")
    } else {
        finding
    })
}

fn sweeps(evidence: &Evidence) -> Option<Finding> {
    let agent = &evidence.agent;
    if let Some(error) = &agent.sweep_error {
        return Some(
            Finding::new(Severity::Critical, "the agent cannot read its maps")
                .because(error)
                .fix("Restart the agent's pod on this node; if that does not help, its log says what the kernel refuses."),
        );
    }
    let why = agent.not_ready_because.as_ref().filter(|_| !agent.ready)?;
    Some(
        Finding::new(Severity::Warning, "the agent is not ready")
            .because(why)
            .fix("Wait for it if it has just started; otherwise the reason is above, and in the agent's log."),
    )
}

fn interfaces(evidence: &Evidence) -> Option<Finding> {
    let unattached = &evidence.agent.unattached;
    let n = unattached.len();
    (n > 0).then(|| {
        Finding::new(
            Severity::Warning,
            format!("{n} of the node's interfaces should be watched and are not: their pods are missing from everything below"),
        )
        .because_all(some(unattached.iter().cloned()))
        .fix("The kernel's reason stands with each; the agent tries again by itself.")
    })
}

fn table(evidence: &Evidence) -> Option<Finding> {
    let agent = &evidence.agent;
    let used = share(agent.flow_cells, agent.flow_cells_limit);
    let lost = agent.overflow.recent;
    (lost > 0 || used >= FULL).then(|| {
        let finding = Finding::new(
            Severity::Warning,
            "the flow table is full: traffic is counted, but not by whom",
        )
        .because(format!(
            "{} of {} flows in use ({used:.0} %)",
            agent.flow_cells, agent.flow_cells_limit
        ))
        .fix("Raise flow_cells (docs/configuration.md); each takes 384 bytes.");
        if lost > 0 {
            finding.because(format!("{} were counted without a flow", packets(lost)))
        } else {
            finding
        }
    })
}

fn sources(evidence: &Evidence) -> Option<Finding> {
    let agent = &evidence.agent;
    if !agent.asks_kubernetes {
        let because = agent.asks_not_because.clone();
        return Some(
            Finding::new(
                Severity::Info,
                "the Kubernetes API is not asked: services, policies and workloads have no names",
            )
            .because_all(because)
            .fix("Run the agent with a service account or a kubeconfig (docs/identity.md)."),
        );
    }
    // The runtime only fills in for the API.
    let silent = agent
        .sources
        .iter()
        .filter(|(name, source)| *name != "sandboxes" && !(source.synced && source.connected));
    let lines: Vec<String> = silent
        .map(|(name, source)| {
            let state = if source.synced {
                "out of touch"
            } else {
                "not listed yet"
            };
            match &source.last_error {
                Some(error) => format!("{name}: {state}: {error}"),
                None => format!("{name}: {state}"),
            }
        })
        .collect();
    (!lines.is_empty()).then(|| {
        Finding::new(
            Severity::Warning,
            "not all of the Kubernetes API's objects are known: names may be missing or old",
        )
        .because_all(lines)
        .fix("403: apply deploy/base/rbac.yaml. Otherwise: can this node reach the API server?")
    })
}

fn node(evidence: &Evidence) -> Option<Finding> {
    (evidence.agent.known_node == Some(false)).then(|| {
        Finding::new(
            Severity::Warning,
            format!(
                "Kubernetes has no node '{}': this node's pods have no names",
                evidence.node.name
            ),
        )
        .fix("Set --node-name (in a pod: from spec.nodeName) to the node's name in Kubernetes.")
    })
}

fn translations(evidence: &Evidence) -> Option<Finding> {
    let conntrack = &evidence.conntrack;
    let lost = conntrack.table_known == Some(false);
    (lost || !conntrack.statistics_known && evidence.agent.uptime_s > 30).then(|| {
        let what = if lost { "table" } else { "statistics" };
        Finding::new(
            Severity::Info,
            format!("the conntrack {what} cannot be read: ports in use and losses are not judged"),
        )
        .fix("The agent needs CAP_NET_ADMIN in the node's network namespace.")
    })
}

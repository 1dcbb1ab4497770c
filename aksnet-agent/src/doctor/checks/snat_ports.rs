//! Whether ports for source NAT run out: the node's own, and those that Azure's load balancer keeps for the node.

use super::{Check, Evidence, Finding, Severity, some};
use crate::doctor::evidence::Ports;

pub(super) const CHECK: Check = Check {
    name: "snat-ports",
    looks_at: "ports in use by source NAT towards the busiest destination: the node's, and Azure's (an estimate)",
    runbook: "docs/runbooks/snat-ports.md",
    findings: check,
};

/// Of the ports towards one destination.
const NEAR: f64 = 0.8;
/// Nearly every further connection fails, or takes long to find a port.
const FULL: f64 = 0.95;

fn check(evidence: &Evidence) -> Vec<Finding> {
    let Some(ports) = &evidence.snat_ports else {
        return vec![Finding::unknown(
            "ports in use are not known: the conntrack table is not followed, or cannot be read",
        )];
    };
    let worst = |of: &str| {
        let mine = ports.iter().filter(|ports| ports.of == of);
        mine.max_by(|a, b| a.saturation.total_cmp(&b.saturation))
    };
    let users = || {
        let users = evidence.snat_users.iter();
        some(users.map(|user| format!("{}: {} connections with NAT", user.who, user.connections)))
    };
    let mut findings = Vec::new();
    for (of, whose, fix) in [
        (
            "node",
            "of the node's address",
            "Fewer connections to that destination: keep-alive and connection pools in the workloads above, pods on more nodes.",
        ),
        (
            "azure",
            "that Azure's load balancer keeps for this node (an estimate)",
            "Azure answers with silence when they are gone. Raise allocatedOutboundPorts or outbound addresses (az aks update \
             --load-balancer-outbound-ports), or use a NAT gateway; in the workloads above: keep-alive, private endpoints.",
        ),
    ] {
        let Some(ports) = worst(of).filter(|ports| ports.saturation >= NEAR) else {
            continue;
        };
        let (severity, how) = if ports.saturation >= FULL {
            (Severity::Critical, "are used up towards one destination")
        } else {
            (Severity::Warning, "get few towards one destination")
        };
        findings.push(
            Finding::new(
                severity,
                format!("{} ports {whose} {how}", ports.protocol.to_uppercase()),
            )
            .because(line(ports))
            .because_all(users())
            .fix(fix),
        );
    }
    if findings.is_empty() {
        let mut lines: Vec<String> = [worst("node"), worst("azure")]
            .into_iter()
            .flatten()
            .map(line)
            .collect();
        if worst("azure").is_none() {
            lines.push("Azure's are not known (azure_snat_ports)".to_owned());
        }
        return vec![Finding::ok(lines.join("; "))];
    }
    findings
}

fn line(ports: &Ports) -> String {
    let percent = ports.saturation * 100.0;
    let whose = if ports.of == "azure" {
        "Azure's"
    } else {
        "the node's"
    };
    format!(
        "{whose} {} {}: {percent:.0} % of {} towards the busiest destination",
        ports.protocol, ports.family, ports.limit
    )
}

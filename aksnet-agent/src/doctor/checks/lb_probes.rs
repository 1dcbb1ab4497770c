//! Whether Azure's load balancer gets answers to its health probes on this node.

use super::{Check, Evidence, Finding, Severity, blind, lately, some, sum};
use crate::doctor::evidence::Probe;

pub(super) const CHECK: Check = Check {
    name: "lb-probes",
    looks_at: "health probes of Azure's load balancer, by port and what became of them",
    runbook: "docs/runbooks/lb-probes.md",
    findings: check,
};

/// Azure probes each 5 to 15 s: after so long there should have been some.
const ENOUGH_S: f64 = 60.0;

type Fails = fn(&Probe) -> bool;

fn check(evidence: &Evidence) -> Vec<Finding> {
    if let Some(blind) = blind(evidence, &["enter", "exit"]) {
        return vec![blind];
    }
    let recent: Vec<&Probe> = evidence
        .probes
        .iter()
        .filter(|probe| all(probe).recent > 0)
        .collect();
    if recent.is_empty() {
        return vec![none(evidence)];
    }
    let mut findings = Vec::new();
    let kinds: [(Severity, &str, Fails); 2] = [
        (
            Severity::Critical,
            "this node fails all of the load balancer's probes, and is out of service for",
            |probe| probe.answered.recent == 0,
        ),
        (
            Severity::Warning,
            "the load balancer's probes fail now and then for",
            |probe| probe.answered.recent > 0 && failed(probe) > 0,
        ),
    ];
    for (severity, title, fails) in kinds {
        let failing: Vec<&&Probe> = recent.iter().filter(|probe| fails(probe)).collect();
        let Some(first) = failing.first() else {
            continue;
        };
        let name = match failing.len() {
            1 => format!("{} (port {})", first.dst, first.port),
            n => format!("{n} ports"),
        };
        let lines = failing.iter().map(|probe| line(evidence, probe));
        findings.push(
            Finding::new(severity, format!("{title} {name}"))
                .because_all(some(lines))
                .fix(fix(&failing)),
        );
    }
    if findings.is_empty() {
        let answered = sum(recent.iter().map(|probe| probe.answered)).recent;
        return vec![Finding::ok(format!(
            "{answered} probes of {} ports were answered {}",
            recent.len(),
            lately(evidence)
        ))];
    }
    findings
}

fn failed(probe: &Probe) -> u64 {
    probe.refused.recent + probe.unanswered.recent
}

fn all(probe: &Probe) -> crate::doctor::evidence::Count {
    sum([probe.answered, probe.refused, probe.unanswered].into_iter())
}

fn line(evidence: &Evidence, probe: &Probe) -> String {
    format!(
        "{} at node port {}: {} answered, {} refused, {} without an answer {}",
        probe.dst,
        probe.port,
        probe.answered.recent,
        probe.refused.recent,
        probe.unanswered.recent,
        lately(evidence)
    )
}

fn fix(failing: &[&&Probe]) -> String {
    let refused: u64 = failing.iter().map(|probe| probe.refused.recent).sum();
    let silent: u64 = failing.iter().map(|probe| probe.unanswered.recent).sum();
    if refused >= silent {
        "Refused: nothing listens on the port that the service's targetPort names, or it has no ready endpoint: kubectl get endpointslices."
    } else {
        "Silence: the service has no ready endpoint, its pod does not answer, or a policy drops the probe (168.63.129.16 has \
         to be let in): aksnet-agent drops --recent says which."
    }
    .to_owned()
}

fn none(evidence: &Evidence) -> Finding {
    let Some(balanced) = &evidence.balanced else {
        return Finding::unknown("no probe was seen, and services are not known");
    };
    let served: Vec<&str> = balanced
        .iter()
        .filter(|service| !service.pending)
        .map(|service| service.service.as_str())
        .collect();
    if served.is_empty() {
        return Finding::ok(
            "no service has a frontend on the load balancer: there is nothing to probe",
        );
    }
    if evidence.window_s < ENOUGH_S {
        return Finding::unknown(format!(
            "no probe was seen in {:.0} s, which is too short: look for a minute",
            evidence.window_s
        ));
    }
    Finding::new(
        Severity::Info,
        "no probe of the load balancer was seen on this node, though services have frontends",
    )
    .because(format!("services with a frontend: {}", served.join(", ")))
    .fix(
        "A network security group that denies the service tag AzureLoadBalancer keeps them away; the label \
         node.kubernetes.io/exclude-from-external-load-balancers keeps the node out. On kind there is no Azure load balancer.",
    )
}

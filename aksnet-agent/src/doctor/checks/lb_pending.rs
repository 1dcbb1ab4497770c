//! Services of type `LoadBalancer` that have no frontend.

use super::{Check, Evidence, Finding, Severity, ago, no_names, plural, some};
use crate::doctor::evidence::Balanced;

pub(super) const CHECK: Check = Check {
    name: "lb-pending",
    looks_at: "services of type LoadBalancer whose status has no ingress",
    runbook: "docs/doctor.md#lb-pending",
    findings: check,
};

/// Azure takes up to a minute or two to make a frontend.
const PATIENCE_S: u64 = 120;
/// Nobody waits that long for one that will come.
const TOO_LONG_S: u64 = 600;

fn check(evidence: &Evidence) -> Vec<Finding> {
    let Some(balanced) = &evidence.balanced else {
        return vec![Finding::unknown(no_names(evidence, "services"))];
    };
    let pending: Vec<&Balanced> = balanced.iter().filter(|service| service.pending).collect();
    if pending.is_empty() {
        let n = balanced.len() as u64;
        let services = plural(
            n,
            "load-balanced service has",
            "load-balanced services have",
        );
        return vec![Finding::ok(format!("{services} a frontend"))];
    }
    let waits =
        |service: &Balanced, seconds| service.pending_before || service.pending_s >= seconds;
    let severity = if pending
        .iter()
        .any(|service| service.pending_s >= TOO_LONG_S)
    {
        Severity::Critical
    } else if pending.iter().any(|service| waits(service, PATIENCE_S)) {
        Severity::Warning
    } else {
        Severity::Info
    };
    let services = plural(
        pending.len() as u64,
        "service of type LoadBalancer has",
        "services of type LoadBalancer have",
    );
    #[expect(
        clippy::cast_precision_loss,
        reason = "a time is shown in one unit, rounded"
    )]
    let lines = pending.iter().map(|service| {
        let at_least = if service.pending_before {
            "at least "
        } else {
            ""
        };
        let for_s = ago(service.pending_s as f64);
        format!("{}: pending for {at_least}{for_s}", service.service)
    });
    let first = &pending[0].service;
    let (namespace, name) = first.split_once('/').unwrap_or(("default", first.as_str()));
    vec![
        Finding::new(severity, format!("{services} no frontend address"))
            .because_all(some(lines))
            .fix(format!(
                "kubectl -n {namespace} describe service {name}: the event SyncLoadBalancerFailed has Azure's own reason \
                 (quota of public addresses, an address in use or of another resource group, a missing role on the subnet)."
            )),
    ]
}

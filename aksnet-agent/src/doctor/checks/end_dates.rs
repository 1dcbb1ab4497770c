//! What this node runs that Azure will stop to support, or has stopped to. Sources: see `docs/doctor.md`.

use super::{Check, Evidence, Finding, Severity, ago};

pub(super) const CHECK: Check = Check {
    name: "end-dates",
    looks_at: "kubenet, Azure NPM and Basic Load Balancer, and when Azure ends them",
    runbook: "docs/doctor.md#end-dates",
    findings: check,
};

/// 31 March 2028, 00:00 UTC.
const KUBENET: (u64, &str) = (1_838_073_600, "31 March 2028");
/// 30 September 2028, 00:00 UTC.
const NPM: (u64, &str) = (1_853_884_800, "30 September 2028");
/// 30 September 2025, 00:00 UTC.
const BASIC: &str = "30 September 2025";
/// Half a year before, it is time.
const SOON_S: u64 = 183 * 86_400;

fn check(evidence: &Evidence) -> Vec<Finding> {
    let node = &evidence.node;
    let mut findings = Vec::new();
    if node.cni.value.as_deref() == Some("kubenet") {
        findings.push(
            ending(
                evidence,
                KUBENET,
                "this node runs kubenet, which AKS ends on",
            )
            .because_all(node.cni.because.clone())
            .fix("Move to Azure CNI Overlay: az aks update --network-plugin azure --network-plugin-mode overlay. Every node is reimaged."),
        );
    }
    if node.policy_engine.value.as_deref() == Some("azure_npm") {
        findings.push(
            ending(
                evidence,
                NPM,
                "this node runs Azure NPM, which AKS ends on Linux nodes on",
            )
            .because_all(node.policy_engine.because.first().cloned())
            .fix("Move to Cilium: az aks update --network-dataplane cilium. Before that, try the policies with aksnet-agent explain --engine cilium."),
        );
    }
    findings.push(basic(evidence));
    findings
}

fn ending(evidence: &Evidence, (at, date): (u64, &str), what: &str) -> Finding {
    let now = evidence.taken_unix_s;
    #[expect(
        clippy::cast_precision_loss,
        reason = "a time is shown in one unit, rounded"
    )]
    let (severity, left) = if now >= at {
        (
            Severity::Warning,
            format!("that was {} ago", ago((now - at) as f64)),
        )
    } else {
        let left = at - now;
        let severity = if left <= SOON_S {
            Severity::Warning
        } else {
            Severity::Info
        };
        (severity, format!("in {}", ago(left as f64)))
    };
    Finding::new(severity, format!("{what} {date} ({left})"))
}

/// Which load balancer is in front shows from two things only: the basic one knows no zones, and Azure's metadata service
/// does not know the basic one.
fn basic(evidence: &Evidence) -> Finding {
    let node = &evidence.node;
    if node.cni.value.as_deref() == Some("kindnet") {
        return Finding::ok("a kind node: nothing here has an end date");
    }
    if let Some(zone) = node.zone.value.as_deref().filter(|zone| !zone.is_empty()) {
        return Finding::ok(format!(
            "the node is in zone {zone}, which Basic Load Balancer (ended {BASIC}) does not know"
        ));
    }
    let look = "az aks show --query networkProfile.loadBalancerSku: it should say standard.";
    let served: Vec<&str> = evidence
        .balanced
        .iter()
        .flatten()
        .filter(|service| !service.frontends.is_empty())
        .map(|service| service.service.as_str())
        .collect();
    match node.standard_balancer {
        Some(true) => Finding::ok("a standard load balancer is in front of the node"),
        Some(false) if !served.is_empty() => Finding::new(
            Severity::Warning,
            format!("services have frontends on what looks like Basic Load Balancer, which ended on {BASIC}"),
        )
        .because("Azure's metadata service knows no load balancer in front of this node, and it knows all but basic ones")
        .because(format!("services with a frontend: {}", served.join(", ")))
        .fix(format!(
            "{look} Move: az aks update --load-balancer-sku standard (frontends' addresses change unless they are kept; see the page)."
        )),
        Some(false) => Finding::unknown(format!(
            "no standard load balancer is in front of the node: none at all, or a basic one (ended {BASIC})"
        ))
        .fix(look),
        None => Finding::unknown(format!(
            "whether this cluster still has Basic Load Balancer (ended {BASIC}) cannot be seen from a node in no zone"
        ))
        .fix(look),
    }
}

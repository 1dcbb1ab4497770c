//! Whether pods can still get addresses, and whether addresses are held by nobody.

use super::{Check, Evidence, Finding, Severity, ago, share, some};
use crate::doctor::evidence::Account;

pub(super) const CHECK: Check = Check {
    name: "pod-ips",
    looks_at: "pod addresses in use, of how many, and leaked ones, by each account",
    runbook: "docs/runbooks/pod-ips.md",
    findings: check,
};

/// From this share on, in percent.
const NEAR: f64 = 90.0;

fn check(evidence: &Evidence) -> Vec<Finding> {
    let ips = &evidence.pod_ips;
    let mut findings = Vec::new();
    findings.extend(exhausted(evidence));
    findings.extend(leaked(evidence));
    for (source, why) in &ips.skipped {
        let fix = if source == "azure_cns" {
            "Does CNS answer at cns_url (docs/configuration.md)? Its pod: kubectl -n kube-system get pods -l k8s-app=azure-cns -o wide."
        } else {
            "Mount the directory into the agent's pod, below host_root (deploy/base/daemonset.yaml)."
        };
        findings.push(
            Finding::unknown(format!("the account {source} cannot be read"))
                .because(why)
                .fix(fix),
        );
    }
    if findings
        .iter()
        .any(|finding| finding.severity > Severity::Unknown)
    {
        return findings;
    }
    let limited: Vec<String> = ips
        .accounts
        .iter()
        .filter(|account| account.limit.is_some())
        .map(line)
        .collect();
    if limited.is_empty() && !findings.is_empty() {
        return findings;
    }
    if limited.is_empty() {
        let why = if ips.known {
            "no account of pod addresses was found on this node"
        } else {
            "the node was not surveyed yet"
        };
        return vec![Finding::unknown(why)];
    }
    findings.push(Finding::ok(limited.join("; ")));
    findings
}

fn line(account: &Account) -> String {
    match account.limit {
        Some(limit) => format!(
            "{}: {} of {limit} in use ({:.0} %)",
            account.source,
            account.in_use,
            share(account.in_use, limit)
        ),
        None => format!("{}: {} in use", account.source, account.in_use),
    }
}

fn exhausted(evidence: &Evidence) -> Option<Finding> {
    let used = |account: &Account| {
        let limit = account.limit?;
        Some((account.in_use >= limit, share(account.in_use, limit)))
    };
    let near: Vec<&Account> = evidence
        .pod_ips
        .accounts
        .iter()
        .filter(|account| used(account).is_some_and(|(full, used)| full || used >= NEAR))
        .collect();
    if near.is_empty() {
        return None;
    }
    let full = near
        .iter()
        .any(|account| used(account).is_some_and(|(full, _)| full));
    let (severity, title) = if full {
        (
            Severity::Critical,
            "this node has no address left for another pod: new pods stay in ContainerCreating",
        )
    } else {
        (
            Severity::Warning,
            "this node has few addresses left for pods",
        )
    };
    let leaked = evidence.pod_ips.leaks.len();
    let fix = if leaked > 0 {
        format!("Free the {leaked} leaked addresses (next finding); then fewer pods on this node.")
    } else {
        match evidence.node.cni.value.as_deref() {
            Some("azure_node_subnet") => "Move pods elsewhere, or add nodes: a node's addresses are reserved by its maxPods. For good: Azure CNI Overlay, whose pods take no address of the subnet.",
            Some("azure_pod_subnet") => "The pod subnet is too small, or full: kubectl get nodenetworkconfig -A -o yaml. Add a pod subnet, or move to Azure CNI Overlay.",
            _ => "Move pods elsewhere: the node's range is fixed. maxPods below its size keeps the scheduler from trying.",
        }
        .to_owned()
    };
    Some(
        Finding::new(severity, title)
            .because_all(near.into_iter().map(line))
            .fix(fix),
    )
}

fn leaked(evidence: &Evidence) -> Option<Finding> {
    let leaks = &evidence.pod_ips.leaks;
    let first = leaks.first()?;
    let now = evidence.taken_unix_s;
    #[expect(
        clippy::cast_precision_loss,
        reason = "an age is shown in one unit, rounded"
    )]
    let lines = leaks.iter().map(|leak| {
        format!(
            "{} held for {} by container {}, which does not exist ({})",
            leak.address,
            ago(now.saturating_sub(leak.since_unix_s) as f64),
            leak.container.get(..13).unwrap_or(&leak.container),
            leak.file,
        )
    });
    let n = leaks.len();
    let addresses = if n == 1 {
        "address is"
    } else {
        "addresses are"
    };
    Some(
        Finding::new(
            Severity::Warning,
            format!("{n} pod {addresses} held by nobody"),
        )
        .because_all(some(lines))
        .fix(format!(
            "On the node: check that no pod has the address (crictl pods, kubectl get pods -A -o wide), then rm {}{}.",
            first.file,
            match n {
                1 => "",
                2 => " and the other",
                _ => " and the others",
            }
        )),
    )
}

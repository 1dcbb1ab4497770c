//! What else the node drops, apart from what policies deny.

use std::collections::BTreeMap;

use super::{Check, Evidence, Finding, Severity, blind, lately, packets, plural, some};
use crate::doctor::evidence::Drop;

pub(super) const CHECK: Check = Check {
    name: "drops",
    looks_at: "packets that the kernel dropped for another cause than a policy, by cause",
    runbook: "docs/drops.md",
    findings: check,
};

/// Fewer packets than this in the window are noise.
const NOISE: u64 = 10;
/// A port scan, or a pod that is kept from the platform's addresses by AKS: somebody else's affair.
const HARMLESS: [&str; 3] = ["azure_platform_block", "socket", "other"];

fn check(evidence: &Evidence) -> Vec<Finding> {
    if let Some(blind) = blind(evidence, &["drop"]) {
        return vec![blind];
    }
    let mut causes: BTreeMap<&str, Vec<&Drop>> = BTreeMap::new();
    for drop in &evidence.drops {
        if drop.packets.recent > 0 && drop.cause != "policy" {
            causes.entry(&drop.cause).or_default().push(drop);
        }
    }
    if causes.is_empty() {
        return vec![Finding::ok(format!(
            "nothing was dropped {} but by policies",
            lately(evidence)
        ))];
    }
    causes
        .into_iter()
        .map(|(cause, mut drops)| {
            drops.sort_by_key(|drop| std::cmp::Reverse(drop.packets.recent));
            let lost: u64 = drops.iter().map(|drop| drop.packets.recent).sum();
            let severity = if lost >= NOISE && !HARMLESS.contains(&cause) {
                Severity::Warning
            } else {
                Severity::Info
            };
            let lines = drops.iter().map(|drop| {
                let line = format!(
                    "{} → {}: {} ({})",
                    drop.src,
                    drop.dst,
                    packets(drop.packets.recent),
                    drop.reason
                );
                if drop.why.is_empty() {
                    line
                } else {
                    format!("{line}: {}", drop.why)
                }
            });
            Finding::new(
                severity,
                format!(
                    "{} dropped {}: cause {cause}",
                    plural(lost, "packet was", "packets were"),
                    lately(evidence)
                ),
            )
            .because_all(some(lines))
            .fix(format!(
                "Live, with addresses: aksnet-agent drops --recent --cause {cause}"
            ))
            .see(format!("docs/runbooks/{}.md", cause.replace('_', "-")))
        })
        .collect()
}

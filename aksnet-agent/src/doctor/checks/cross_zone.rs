//! How much of pods' traffic crosses zones, which costs money and time.

use super::{Check, Evidence, Finding, Severity, blind, lately, share, some};
use crate::doctor::evidence::Count;

pub(super) const CHECK: Check = Check {
    name: "cross-zone",
    looks_at: "the share of bytes between pods that crosses zones",
    runbook: "docs/runbooks/cross-zone.md",
    findings: check,
};

/// Percent. Chance alone gives 67 with three zones: more than this has another reason.
const MUCH: f64 = 80.0;
/// Below so many bytes a share says nothing.
const ENOUGH: u64 = 10 << 20;
/// Percent, below which it is not worth a line.
const LITTLE: f64 = 5.0;

fn check(evidence: &Evidence) -> Vec<Finding> {
    let zone = &evidence.node.zone;
    match zone.value.as_deref() {
        None => {
            return vec![
                Finding::unknown("this node's zone is not known").because_all(zone.because.clone()),
            ];
        }
        Some("") => return vec![Finding::ok("this node is in no zone")],
        Some(_) => {}
    }
    if let Some(blind) = blind(evidence, &["enter", "exit"]) {
        return vec![blind];
    }
    let bytes =
        |scope: &str| -> Count { evidence.scope_bytes.get(scope).copied().unwrap_or_default() };
    let (crossing, zonal) = (bytes("cross_zone"), bytes("same_zone"));
    let within = bytes("same_node");
    let known = |of: fn(Count) -> u64| of(crossing) + of(zonal) + of(within);
    // What is recent, unless nothing is.
    let recent = known(|c| c.recent) + bytes("cross_node").recent;
    let (of, when): (fn(Count) -> u64, String) = if recent > 0 {
        (|c| c.recent, lately(evidence))
    } else {
        (|c| c.total, "since the agent's start".to_owned())
    };
    let all = known(of);
    let elsewhere = of(bytes("cross_node"));
    if all == 0 && elsewhere == 0 {
        return vec![Finding::unknown("no traffic between pods was seen yet")];
    }
    if elsewhere >= all {
        return vec![
            Finding::unknown("most of pods' traffic goes to nodes whose zones are not known")
                .because(format!(
                    "{} to such nodes, {} within known zones",
                    size(elsewhere),
                    size(all)
                ))
                .fix("With remote_pods = true the agent knows the nodes of all pods."),
        ];
    }
    let percent = share(of(crossing), all);
    let title = format!(
        "{percent:.0} % of the bytes between pods cross zones ({} of {}) {when}",
        size(of(crossing)),
        size(all)
    );
    if percent < LITTLE {
        return vec![Finding::ok(title)];
    }
    let severity = if percent > MUCH && of(crossing) >= ENOUGH {
        Severity::Warning
    } else {
        Severity::Info
    };
    let pairs = evidence
        .cross_zone
        .iter()
        .filter(|pair| of(pair.count) > 0)
        .map(|pair| format!("{} → {}: {}", pair.src, pair.dst, size(of(pair.count))));
    vec![
        Finding::new(severity, title)
            .because_all(some(pairs))
            .because(format!(
                "on this node {}, within its zone {}; by chance three zones give 67 %",
                size(of(within)),
                size(of(zonal))
            ))
            .fix(
                "trafficDistribution: PreferClose on the services that these pods dial (Kubernetes 1.31 and later), \
                 with replicas in each zone (topologySpreadConstraints).",
            ),
    ]
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a size is shown with three digits"
)]
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

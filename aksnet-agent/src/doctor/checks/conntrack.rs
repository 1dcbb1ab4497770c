//! Whether the conntrack table has room, and whether it loses packets.

use super::{Check, Evidence, Finding, Severity, lately, packets, share};

pub(super) const CHECK: Check = Check {
    name: "conntrack",
    looks_at: "entries of the conntrack table against its limit, and the kernel's counts of failed inserts, drops and evictions",
    runbook: "docs/runbooks/conntrack.md",
    findings: check,
};

/// Percent of the table.
const NEAR: f64 = 80.0;
/// From here on the next burst does not fit.
const FULL: f64 = 95.0;
/// One or two lost races are life on a busy node.
const CLASHES: u64 = 3;

fn check(evidence: &Evidence) -> Vec<Finding> {
    let conntrack = &evidence.conntrack;
    let (Some(entries), Some(limit)) = (conntrack.entries, conntrack.limit) else {
        return vec![
            Finding::unknown("the size of the conntrack table cannot be read")
                .fix("The agent needs CAP_NET_ADMIN in the node's network namespace."),
        ];
    };
    let used = share(entries, limit);
    let lately = lately(evidence);
    let recent = |count: Option<crate::doctor::evidence::Count>| count.map_or(0, |c| c.recent);
    let (failed, dropped, evicted) = (
        recent(conntrack.insert_failed),
        recent(conntrack.drop),
        recent(conntrack.early_drop),
    );
    let size = format!("{entries} of {limit} entries in use ({used:.0} %)");
    let mut findings = Vec::new();
    // A failed insert is counted as a drop, too: what is beyond is for want of room.
    let no_room = dropped.saturating_sub(failed);
    if used >= FULL || (used >= NEAR && no_room > 0) {
        let title = if no_room > 0 {
            format!(
                "the conntrack table is full: {} of new connections were dropped {lately}",
                packets(no_room)
            )
        } else {
            "the conntrack table is about to be full: new connections will be dropped".to_owned()
        };
        findings.push(full(Severity::Critical, title, &size));
    } else if used >= NEAR || evicted > 0 {
        let finding = full(
            Severity::Warning,
            "the conntrack table is getting full".to_owned(),
            &size,
        );
        findings.push(if evicted > 0 {
            finding.because(format!(
                "{evicted} entries were evicted to make room {lately}"
            ))
        } else {
            finding
        });
    } else if no_room > 0 {
        findings.push(
            Finding::new(
                Severity::Warning,
                format!("conntrack dropped {} {lately}", packets(no_room)),
            )
            .because(size.clone())
            .because("dmesg has the reason: no memory, or a table that was full for a moment")
            .fix("Watch aksnet_conntrack_entries for peaks; raise net.netfilter.nf_conntrack_max if there are."),
        );
    }
    if failed > 0 {
        let severity = if failed >= CLASHES {
            Severity::Warning
        } else {
            Severity::Info
        };
        findings.push(
            Finding::new(
                severity,
                format!("{failed} connections lost their first packet {lately}: another had the same tuple (insert_failed)"),
            )
            .because(size.clone())
            .fix("Source ports clash in NAT: see the checks snat-ports and snat-clash.")
            .see("docs/runbooks/nat.md"),
        );
    }
    if findings.is_empty() {
        if !conntrack.statistics_known {
            return vec![
                Finding::unknown("conntrack's counts of losses cannot be read").because(size),
            ];
        }
        return vec![Finding::ok(format!("{size}, nothing lost {lately}"))];
    }
    findings
}

fn full(severity: Severity, title: String, size: &str) -> Finding {
    Finding::new(severity, title).because(size).fix(
        "Now: sysctl -w net.netfilter.nf_conntrack_max=… on the node. For good: linuxOSConfig.sysctls.netFilterNfConntrackMax \
         of the node pool. Who has most connections: aksnet-agent top.",
    )
}

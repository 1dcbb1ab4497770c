//! Whether source ports clash because the masquerading rule keeps them: without `--random-fully` two pods that dial one
//! destination from the same port race for one tuple, and one of them loses its first packet.

use super::{Check, Evidence, Finding, Severity, lately, sum};

pub(super) const CHECK: Check = Check {
    name: "snat-clash",
    looks_at: "masquerading rules without --random-fully, while NAT ports clash",
    runbook: "docs/runbooks/nat.md",
    findings: check,
};

/// Below this, a clash is chance.
const CLASHES: u64 = 3;

fn check(evidence: &Evidence) -> Vec<Finding> {
    let masquerade = &evidence.node.masquerade;
    let failed = evidence.conntrack.insert_failed;
    let drops = evidence.drops.iter().filter(|drop| drop.cause == "nat");
    let dropped = sum(drops.map(|drop| drop.packets)).recent;
    let Some(failed) = failed.map(|count| count.recent) else {
        return vec![Finding::unknown(
            "whether NAT ports clash is not known: conntrack's statistics cannot be read",
        )];
    };
    if !masquerade.known {
        return vec![
            Finding::unknown("the masquerading rules cannot be read")
                .because_all(masquerade.because.clone()),
        ];
    }
    let Some(agent) = &masquerade.agent else {
        return vec![Finding::ok("no agent masquerades pods here")];
    };
    let chain = format!("chain {} of {agent}", masquerade.chain);
    if masquerade.random_fully {
        return vec![Finding::ok(format!("{chain} draws ports at random"))];
    }
    let clashes = failed.max(dropped);
    if clashes == 0 {
        return vec![Finding::ok(format!(
            "{chain} keeps source ports (no --random-fully), and none clashed {}",
            lately(evidence)
        ))];
    }
    let severity = if clashes >= CLASHES {
        Severity::Warning
    } else {
        Severity::Info
    };
    vec![
        Finding::new(
            severity,
            format!(
                "{clashes} connections were lost to clashes of NAT ports {}, and {agent} masquerades without --random-fully",
                lately(evidence)
            ),
        )
        .because(format!("insert_failed grew by {failed}; {dropped} packets dropped with cause nat"))
        .because(format!("{chain}: MASQUERADE without --random-fully"))
        .because_all(masquerade.because.clone())
        .fix(
            "AKS's ip-masq-agent has no switch for it. Use fewer short connections to one destination (keep-alive), \
             or let pods keep their addresses (Azure CNI pod subnet). On kind and with your own agent: add --random-fully.",
        ),
    ]
}

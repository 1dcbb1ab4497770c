//! Who enforces network policies on the node.

use super::{Finding, evidence::Evidence};

pub(super) fn conclude(evidence: &Evidence) -> Finding<&'static str> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    // Empty while no policy exists: the chain alone tells that NPM runs.
    if let Some(chain) = evidence.chain("filter", "AZURE-NPM") {
        let rules: usize = evidence
            .chains("filter", "AZURE-NPM")
            .iter()
            .map(|(_, _, c)| c.rules.len())
            .sum();
        found.push(("azure_npm", format!("{chain} with {rules} rules")));
    }
    if let Some(why) = evidence
        .chain("filter", "cali-FORWARD")
        .or_else(|| evidence.table("calico"))
    {
        found.push(("calico", why));
    }
    for (engine, table) in [
        ("kindnet", "kindnet-network-policies"),
        ("kube_network_policies", "kube-network-policies"),
    ] {
        if let Some(why) = evidence.table(table) {
            found.push((engine, why));
        }
    }
    if let Some(why) = evidence.chain("filter", "CILIUM_FORWARD").or_else(|| {
        evidence
            .link("cilium_host")
            .map(|l| format!("interface {}", l.name))
    }) {
        found.push(("cilium", why));
    }
    let unreadable = evidence.rules.unreadable();
    match found.first().map(|(engine, _)| *engine) {
        Some(engine) => {
            let seen = found.into_iter().map(|(other, why)| {
                if other == engine {
                    why
                } else {
                    format!("{other} as well: {why}")
                }
            });
            Finding::known(engine, seen.chain(unreadable).collect())
        }
        None if unreadable.is_empty() => Finding::known(
            "none",
            vec!["no chain, table or device of a policy engine".to_owned()],
        ),
        None => Finding::not_known(unreadable),
    }
}

//! Who enforces network policies on the node.

use super::{Finding, evidence::Evidence};
use crate::policy::engine::Engine;

pub(super) fn conclude(evidence: &Evidence) -> Finding<&'static str> {
    let mut found: Vec<(Engine, String)> = Vec::new();
    // Empty while no policy exists: the chain alone tells that NPM runs.
    if let Some(chain) = evidence.chain("filter", "AZURE-NPM") {
        let rules: usize = evidence
            .chains("filter", "AZURE-NPM")
            .iter()
            .map(|(_, _, c)| c.rules.len())
            .sum();
        found.push((Engine::AzureNpm, format!("{chain} with {rules} rules")));
    }
    if let Some(why) = evidence
        .chain("filter", "cali-FORWARD")
        .or_else(|| evidence.table("calico"))
    {
        found.push((Engine::Calico, why));
    }
    for (engine, table) in [
        (Engine::Kindnet, "kindnet-network-policies"),
        (Engine::KubeNetworkPolicies, "kube-network-policies"),
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
        found.push((Engine::Cilium, why));
    }
    let unreadable = evidence.rules.unreadable();
    match found.first().map(|(engine, _)| *engine) {
        Some(engine) => {
            let seen = found.into_iter().map(|(other, why)| {
                if other == engine {
                    why
                } else {
                    format!("{} as well: {why}", other.name())
                }
            });
            Finding::known(engine.name(), seen.chain(unreadable).collect())
        }
        None if unreadable.is_empty() => Finding::known(
            Engine::None.name(),
            vec!["no chain, table or device of a policy engine".to_owned()],
        ),
        None => Finding::not_known(unreadable),
    }
}

//! How services are translated: by kube-proxy, in one of its modes, or by programs in its place.

use super::{Finding, evidence::Evidence};

pub(super) fn conclude(evidence: &Evidence) -> Finding<&'static str> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    if let Some(table) = evidence.table("kube-proxy") {
        found.push(("nftables", table));
    }
    if evidence.link("kube-ipvs0").is_some() {
        found.push(("ipvs", "interface kube-ipvs0".to_owned()));
    }
    // In IPVS mode the chain exists as well.
    if let Some(chain) = evidence.chain("nat", "KUBE-SERVICES") {
        found.push(("iptables", chain));
    }
    if evidence.link("cilium_host").is_some() {
        found.push((
            "ebpf",
            "Cilium (interface cilium_host), and no kube-proxy".to_owned(),
        ));
    }
    let unreadable = evidence.rules.unreadable();
    let strongest = found.first().map(|(mode, _)| *mode);
    match strongest {
        // A reader that is refused could not show that kube-proxy is there all the same.
        Some("ebpf") if !unreadable.is_empty() => {
            let seen = found.into_iter().map(|(_, why)| why);
            Finding::not_known(seen.chain(unreadable).collect())
        }
        Some(mode) => {
            let seen = found.into_iter().filter_map(|(other, why)| match other {
                _ if other == mode => Some(why),
                // These two do not speak against what stands above them.
                "ebpf" => None,
                "iptables" if mode == "ipvs" => None,
                _ => Some(format!("against it: {why}")),
            });
            Finding::known(mode, seen.chain(unreadable).collect())
        }
        None if unreadable.is_empty() => Finding::known(
            "none",
            vec!["no rules and no device of kube-proxy".to_owned()],
        ),
        None => Finding::not_known(unreadable),
    }
}

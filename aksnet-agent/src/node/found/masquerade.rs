//! Who gives pods' packets the node's address on their way out, and to where not.
//!
//! Agents' chains all have one shape: RETURN for each range that is spared, MASQUERADE for the rest
//! (Azure/ip-masq-agent-v2, kubernetes-sigs/ip-masq-agent, kindnetd in kubernetes-sigs/kind).

use std::fmt;

use ipnet::IpNet;

use super::{Finding, evidence::Evidence};
use crate::node::rules::{Chain, Verdict};

/// The chains in which pods are masqueraded, and whose they are.
const AGENTS: [(&str, &str); 7] = [
    ("IP-MASQ-AGENT", "ip-masq-agent"),
    ("KIND-MASQ-AGENT", "kindnetd"),
    ("FLANNEL-POSTRTG", "flannel"),
    ("cali-nat-outgoing", "calico"),
    ("CILIUM_POST_nat", "cilium"),
    ("SWIFT-POSTROUTING", "azure-cns"),
    ("SWIFT", "azure-vnet"),
];

/// A masquerade agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Whose the chain is.
    pub agent: &'static str,
    /// The chain, in table nat.
    pub chain: &'static str,
    /// The ranges that are not masqueraded (`nonMasqueradeCIDRs`), link-local ones included.
    pub spared: Vec<IpNet>,
    /// Whether link-local destinations are masqueraded (`masqLinkLocal`); `None` where no family's chain
    /// masquerades everything else.
    pub link_local: Option<bool>,
    /// Whether ports are drawn at random (`--random-fully`), which makes clashes of ports rarer.
    pub random_fully: bool,
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.link_local.is_none() {
            return write!(f, "{} for what its rules name", self.agent);
        }
        let spared: Vec<String> = self.spared.iter().map(ToString::to_string).collect();
        let spared = if spared.is_empty() {
            "none".to_owned()
        } else {
            spared.join(" ")
        };
        write!(f, "{} but not to {spared}", self.agent)
    }
}

pub(super) fn conclude(evidence: &Evidence) -> Finding<Option<Masquerade>> {
    let mut seen = Vec::new();
    let mut found: Option<Masquerade> = None;
    for (chain, agent) in AGENTS {
        let Some(why) = evidence.chain("nat", chain) else {
            continue;
        };
        if found.is_some() {
            seen.push(format!("{agent} as well: {why}"));
            continue;
        }
        // One family's chain may live in another backend than the other's; all are read together.
        let chains: Vec<&Chain> = evidence
            .chains("nat", chain)
            .into_iter()
            .map(|(_, _, chain)| chain)
            .collect();
        let masquerade = read(agent, chain, &chains);
        if chains.iter().all(|c| !masquerades(c)) {
            // Left over, or not filled yet: nobody is masqueraded by it.
            seen.push(format!("{why}, without a rule that masquerades"));
            continue;
        }
        let from = jumps(evidence, chain);
        if from {
            seen.insert(0, why);
        } else {
            seen.insert(0, format!("{why}; POSTROUTING does not jump there itself"));
        }
        found = Some(masquerade);
    }
    let unreadable = evidence.rules.unreadable();
    if found.is_none() && !unreadable.is_empty() {
        seen.extend(unreadable);
        return Finding::not_known(seen);
    }
    if found.is_none() {
        seen.push("no chain of a masquerade agent".to_owned());
    }
    seen.extend(unreadable);
    Finding::known(found, seen)
}

fn masquerades(chain: &Chain) -> bool {
    chain.rules.iter().any(|rule| match &rule.verdict {
        Verdict::Masquerade { .. } => true,
        // Cilium and CNS translate to an address that they name; `nat` is nft's word for it.
        Verdict::Other(target) => target == "SNAT" || target == "nat",
        _ => false,
    })
}

fn jumps(evidence: &Evidence, chain: &str) -> bool {
    evidence
        .rules
        .chains("nat", "POSTROUTING")
        .flat_map(|(_, _, base)| &base.rules)
        .any(|r| match &r.verdict {
            Verdict::Jump(to) | Verdict::Goto(to) => to == chain,
            _ => false,
        })
}

fn read(agent: &'static str, chain: &'static str, chains: &[&Chain]) -> Masquerade {
    let mut spared: Vec<IpNet> = chains
        .iter()
        .flat_map(|c| &c.rules)
        .filter(|r| r.verdict == Verdict::Return)
        .filter_map(super::super::rules::Rule::only_destination)
        .collect();
    spared.sort();
    spared.dedup();
    let everything = chains.iter().flat_map(|c| &c.rules).any(|r| {
        matches!(r.verdict, Verdict::Masquerade { .. }) && !r.narrowed && r.destination.is_none()
    });
    let is_spared = spared.iter().any(|net| match net {
        IpNet::V4(net) => net.contains(&LINK_LOCAL),
        IpNet::V6(_) => false,
    });
    let random_fully = chains
        .iter()
        .flat_map(|c| &c.rules)
        .any(|r| r.verdict == Verdict::Masquerade { random_fully: true });
    Masquerade {
        agent,
        chain,
        spared,
        link_local: everything.then_some(!is_spared),
        random_fully,
    }
}

/// Stands for 169.254.0.0/16, which an agent spares as a whole.
const LINK_LOCAL: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 0, 0);

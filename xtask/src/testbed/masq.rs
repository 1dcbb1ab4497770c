//! The rules that SNAT pods' traffic on its way out of the node (*masquerade agents*), and the drops that AKS itself
//! puts on every node. All rendered as `iptables-restore --noflush` input.

use ipnet::IpNet;

use super::plan::{Family, Flavour, Plan, WIRESERVER};

/// The nat chain of a flavour's masquerade agent.
#[must_use]
pub fn chain(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Kind => "KIND-MASQ-AGENT",
        _ => "IP-MASQ-AGENT",
    }
}

/// What the flavour's agent leaves alone by default: the pod range, or the VNet where pods have its addresses.
#[must_use]
pub fn spared(plan: &Plan, family: Family) -> Vec<IpNet> {
    plan.pods.of(family).into_iter().collect()
}

/// The agent's chain. Neither agent uses `--random-fully`: a pod's source port is kept unless it clashes.
#[must_use]
pub fn agent(flavour: Flavour, spared: &[IpNet]) -> String {
    let chain = chain(flavour);
    let name = chain.to_lowercase();
    let spare = spared.iter().map(|range| {
        format!("-A {chain} -d {range} -m comment --comment \"{name}: local traffic is not subject to MASQUERADE\" -j RETURN\n")
    });
    format!(
        "*nat\n:{chain} - [0:0]\n\
         -A POSTROUTING -m comment --comment \"{name}: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom {chain} chain\" -m addrtype ! --dst-type LOCAL -j {chain}\n\
         {}\
         -A {chain} -m comment --comment \"{name}: outbound traffic is subject to MASQUERADE (must be last in chain)\" -j MASQUERADE\n\
         COMMIT\n",
        spare.collect::<String>()
    )
}

/// AKS keeps pods from Azure's wireserver: a drop on every node that is no network policy. As AKS writes them
/// (`block_wireserver.sh`), the rules have no comment.
#[must_use]
pub fn wireserver_block() -> String {
    format!(
        "*filter\n\
         -I FORWARD -d {WIRESERVER} -p tcp -m tcp --dport 80 -j DROP\n\
         -I FORWARD -d {WIRESERVER} -p tcp -m tcp --dport 32526 -j DROP\n\
         COMMIT\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_spares_pods_then_masquerades_without_random_ports() {
        let plan = Plan::new(Flavour::Kubenet, false);
        let text = agent(plan.flavour, &spared(&plan, Family::V4));
        let rules: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("-A IP-MASQ-AGENT"))
            .collect();
        assert_eq!(rules.len(), 2);
        assert!(rules[0].contains("-d 10.244.0.0/16") && rules[0].ends_with("RETURN"));
        assert!(rules[1].ends_with("-j MASQUERADE"));
    }

    #[test]
    fn node_subnet_spares_the_vnet() {
        let plan = Plan::new(Flavour::AzureNodeSubnet, false);
        assert_eq!(
            spared(&plan, Family::V4),
            ["10.224.0.0/16".parse::<IpNet>().unwrap()]
        );
    }
}

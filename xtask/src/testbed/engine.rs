//! What a *policy engine* leaves on a node while it has no policy to enforce: its chains and jumps, by their names.
//! They let everything pass; they are the evidence by which an engine is known. What it writes for policies is in
//! [`super::enforce`].

use super::enforce::queue;
use super::plan::Family;

/// Which engine is installed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Engine {
    /// None: nothing enforces network policies.
    #[default]
    None,
    /// Azure Network Policy Manager, version 2 (`npm/pkg/dataplane/policies/chain-management_linux.go`).
    AzureNpm,
    /// Calico's Felix with iptables, for policy only, as on AKS (`felix/rules/static.go`).
    Calico,
    /// kindnet's engine, which is kube-network-policies with a table of another name
    /// (`pkg/networkpolicy/controller.go`).
    Kindnet,
    /// kube-network-policies by itself (`pkg/dataplane/controller.go`).
    KubeNetworkPolicies,
}

impl Engine {
    /// Its rules in iptables, as `iptables-restore --noflush` input; `pods` begins the names of pods' interfaces.
    #[must_use]
    pub fn iptables(self, pods: &str) -> Option<String> {
        match self {
            Self::AzureNpm => Some(azure_npm()),
            Self::Calico => Some(calico(pods)),
            Self::None | Self::Kindnet | Self::KubeNetworkPolicies => None,
        }
    }

    /// What it adds to its rules in iptables for IPv6: Felix lets neighbour and router discovery of pods through to the
    /// node, whatever their policies say (`felix/rules/static.go`, `filterWorkloadToHostChain`).
    #[must_use]
    pub fn iptables_v6(self) -> Option<String> {
        if self != Self::Calico {
            return None;
        }
        let accept = [136, 135, 133, 132, 131, 130].map(|kind| {
            format!("-I cali-wl-to-host -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j ACCEPT\n")
        });
        Some(format!("*filter\n{}COMMIT\n", accept.concat()))
    }

    /// Its table in nftables, as `nft -f` input, with empty sets. It is one for both families.
    #[must_use]
    pub fn nftables(self) -> Option<String> {
        let queue = match self {
            Self::Kindnet => queue::KINDNET,
            Self::KubeNetworkPolicies => queue::STANDALONE,
            Self::None | Self::AzureNpm | Self::Calico => return None,
        };
        Some(queue::render(queue, &[]))
    }

    /// Whether it works in this family: Azure NPM knows IPv4 only.
    #[must_use]
    pub fn has(self, family: Family) -> bool {
        self != Self::AzureNpm || family == Family::V4
    }
}

/// As in its deactivated mode: all chains are there, and the first rule of the first one goes back at once.
fn azure_npm() -> String {
    "*filter\n\
     :AZURE-NPM - [0:0]\n\
     :AZURE-NPM-INGRESS - [0:0]\n\
     :AZURE-NPM-INGRESS-ALLOW-MARK - [0:0]\n\
     :AZURE-NPM-EGRESS - [0:0]\n\
     :AZURE-NPM-ACCEPT - [0:0]\n\
     -A AZURE-NPM -m comment --comment LET-TRAFFIC-THROUGH-SINCE-THERE-ARE-NO-POLICIES -j RETURN\n\
     -A AZURE-NPM -j AZURE-NPM-INGRESS\n\
     -A AZURE-NPM -j AZURE-NPM-EGRESS\n\
     -A AZURE-NPM -j AZURE-NPM-ACCEPT\n\
     -A AZURE-NPM-INGRESS -m mark --mark 0x400/0x400 -m comment --comment DROP-ON-INGRESS-DROP-MARK-0x400/0x400 -j DROP\n\
     -A AZURE-NPM-INGRESS-ALLOW-MARK -m comment --comment SET-INGRESS-ALLOW-MARK-0x200/0x200 -j MARK --set-xmark 0x200/0x200\n\
     -A AZURE-NPM-INGRESS-ALLOW-MARK -j AZURE-NPM-EGRESS\n\
     -A AZURE-NPM-EGRESS -m mark --mark 0x800/0x800 -m comment --comment DROP-ON-EGRESS-DROP-MARK-0x800/0x800 -j DROP\n\
     -A AZURE-NPM-EGRESS -m mark --mark 0x200/0x200 -m comment --comment ACCEPT-ON-INGRESS-ALLOW-MARK-0x200/0x200 -j AZURE-NPM-ACCEPT\n\
     -A AZURE-NPM-ACCEPT -m comment --comment ACCEPT -j ACCEPT\n\
     COMMIT\n"
        .to_owned()
}

/// As without workload endpoints; Felix ends the dispatch chains with a drop for interfaces that it does not know,
/// which is left out here, as nobody tells this Felix of any.
fn calico(pods: &str) -> String {
    format!(
        "*filter\n\
         :cali-FORWARD - [0:0]\n\
         :cali-INPUT - [0:0]\n\
         :cali-OUTPUT - [0:0]\n\
         :cali-cidr-block - [0:0]\n\
         :cali-from-hep-forward - [0:0]\n\
         :cali-from-wl-dispatch - [0:0]\n\
         :cali-to-hep-forward - [0:0]\n\
         :cali-to-wl-dispatch - [0:0]\n\
         :cali-wl-to-host - [0:0]\n\
         -I INPUT -m comment --comment \"cali:Cz_u1IQiXIMmKD4c\" -j cali-INPUT\n\
         -I FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD\n\
         -I OUTPUT -m comment --comment \"cali:tVnHkvAo15HuiPy0\" -j cali-OUTPUT\n\
         -A FORWARD -m comment --comment \"cali:S93hcgKJrXEqnTfs\" -m comment --comment \"Policy explicitly accepted packet.\" -m mark --mark 0x10000/0x10000 -j ACCEPT\n\
         -A FORWARD -m comment --comment \"cali:mp77cMpurHhyjLrM\" -j MARK --set-xmark 0x10000/0x10000\n\
         -A cali-FORWARD -m comment --comment \"cali:vjrMJCRpqwy5oRoX\" -j MARK --set-xmark 0x0/0xe0000\n\
         -A cali-FORWARD -m comment --comment \"cali:A_sPAO0mcxbT9mOV\" -m mark --mark 0x0/0x10000 -j cali-from-hep-forward\n\
         -A cali-FORWARD -i {pods}+ -m comment --comment \"cali:8ZoYfO5HKXWbB3pk\" -j cali-from-wl-dispatch\n\
         -A cali-FORWARD -o {pods}+ -m comment --comment \"cali:jdEuaPBe14V2hutn\" -j cali-to-wl-dispatch\n\
         -A cali-FORWARD -m comment --comment \"cali:12bc6HljsMKsmfr-\" -j cali-to-hep-forward\n\
         -A cali-FORWARD -m comment --comment \"cali:NOSxoaGx8OIstr1z\" -j cali-cidr-block\n\
         -A cali-INPUT -i {pods}+ -m comment --comment \"cali:FewJpBykm9iJ-YNH\" -g cali-wl-to-host\n\
         -A cali-wl-to-host -m comment --comment \"cali:Ee9Sbo10IpVujdIY\" -j cali-from-wl-dispatch\n\
         COMMIT\n\
         *nat\n\
         :cali-POSTROUTING - [0:0]\n\
         :cali-PREROUTING - [0:0]\n\
         :cali-nat-outgoing - [0:0]\n\
         -I PREROUTING -m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING\n\
         -I POSTROUTING -m comment --comment \"cali:O3lYWMrLQYEMJtB5\" -j cali-POSTROUTING\n\
         -A cali-POSTROUTING -m comment --comment \"cali:Z-c7XtVd2Bq7s_hA\" -j cali-nat-outgoing\n\
         COMMIT\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_npm_goes_back_before_any_other_rule_while_it_has_no_policy() {
        let text = Engine::AzureNpm.iptables("azv").unwrap();
        let first = text
            .lines()
            .find(|l| l.starts_with("-A AZURE-NPM "))
            .unwrap();
        assert!(first.ends_with("-j RETURN"), "{first}");
        assert!(!Engine::AzureNpm.has(Family::V6) && Engine::Calico.has(Family::V6));
    }

    #[test]
    fn calico_watches_the_interfaces_of_the_cni_that_wires_the_pods() {
        let text = Engine::Calico.iptables("azv").unwrap();
        assert!(text.contains("-A cali-FORWARD -i azv+ ") && !text.contains("DROP"));
    }
}

//! An *engine* is what enforces network policies on a node. Where engines differ from the API's text, and the difference
//! changes what is allowed, it stands in the table here and nowhere else.

/// Who enforces policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Engine {
    /// Nobody in particular: the text of the API (k8s.io/api `networking/v1/types.go`).
    #[default]
    Kubernetes,
    /// Azure NPM v2 (Azure/azure-container-networking, `npm/`).
    AzureNpm,
    /// Calico with iptables or nftables (projectcalico/calico, `felix/`).
    Calico,
    /// kindnet, which contains kube-network-policies.
    Kindnet,
    /// kube-network-policies by itself (kubernetes-sigs/kube-network-policies).
    KubeNetworkPolicies,
    /// Cilium.
    Cilium,
    /// It is certain that there is none. What policies say is what the API's text says all the same.
    None,
}

/// How an engine differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a table of differences, each by itself"
)]
pub struct Traits {
    /// Traffic from a pod to the node that it runs on is never judged.
    pub own_node_egress_free: bool,
    /// IPv6 is judged.
    pub ipv6: bool,
    /// Ingress is judged, too, where a node port or a load balancer with `externalTrafficPolicy: Cluster` led to the pod.
    pub node_port_ingress: bool,
    /// An `ipBlock` can match an address of a pod or a node.
    pub block_matches_cluster: bool,
}

/// The API's text.
const TEXT: Traits = Traits {
    own_node_egress_free: false,
    ipv6: true,
    node_port_ingress: true,
    block_matches_cluster: true,
};

impl Engine {
    /// All, as `--engine` takes them.
    pub const ALL: [Self; 7] = [
        Self::Kubernetes,
        Self::AzureNpm,
        Self::Calico,
        Self::Kindnet,
        Self::KubeNetworkPolicies,
        Self::Cilium,
        Self::None,
    ];

    /// The engine of that name, as `/status` and the metrics have it. Any other, such as `unknown`, is judged by the
    /// API's text.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::AzureNpm => "azure_npm",
            Self::Calico => "calico",
            Self::Kindnet => "kindnet",
            Self::KubeNetworkPolicies => "kube_network_policies",
            Self::Cilium => "cilium",
            Self::None => "none",
        }
    }

    /// What it is called in a sentence.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Kubernetes | Self::None => "the Kubernetes API",
            Self::AzureNpm => "Azure NPM",
            Self::Calico => "Calico",
            Self::Kindnet => "kindnet",
            Self::KubeNetworkPolicies => "kube-network-policies",
            Self::Cilium => "Cilium",
        }
    }

    /// How it differs.
    ///
    /// Sources: NPM has no IPv6 (Microsoft Learn, "Use network policies in AKS"); it always allows egress to the pod's
    /// node, as its chains hang in FORWARD (azure-container-networking,
    /// `npm/pkg/dataplane/policies/chain-management_linux.go`), and does not enforce ingress on what came by
    /// `externalTrafficPolicy: Cluster`, while Cilium's `ipBlock` matches neither pods nor nodes (Microsoft Learn,
    /// "Migrate from NPM to Cilium Network Policy").
    ///
    /// That engines judge a connection by its first packets is no part of it, as a connection's age is no part of a
    /// [`Flow`](super::flow::Flow): who asks sees to that.
    #[must_use]
    pub const fn traits(self) -> Traits {
        match self {
            Self::Kubernetes
            | Self::Calico
            | Self::Kindnet
            | Self::KubeNetworkPolicies
            | Self::None => TEXT,
            Self::AzureNpm => Traits {
                own_node_egress_free: true,
                ipv6: false,
                node_port_ingress: false,
                ..TEXT
            },
            Self::Cilium => Traits {
                block_matches_cluster: false,
                ..TEXT
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_is_found_by_its_name() {
        for engine in Engine::ALL {
            assert_eq!(Engine::from_name(engine.name()), Some(engine));
        }
        assert_eq!(Engine::from_name("unknown"), None);
    }

    #[test]
    fn without_an_engine_the_text_of_the_api_counts() {
        assert_eq!(Engine::None.traits(), Engine::default().traits());
    }
}

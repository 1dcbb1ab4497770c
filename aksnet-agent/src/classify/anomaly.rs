//! Anomalies: translations that a connection should not have, or lacks.

use aksnet_common::{
    passage::{NatKind, Tuple},
    stats::Role,
};

use super::{Class, FlowFacts, Peer};
use crate::plan::{Place, Plan, SourceNat};

/// What is wrong, or dearer than it need be, with how the node translates a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Anomaly {
    /// A connection between pods is source-NATed: the masquerading rules lack the pods' range, and network
    /// policies see a node in place of the pod.
    PodToPodSnat,
    /// A pod's connection leaves with the pod's own address, which nobody out there can answer.
    EgressWithoutSnat,
    /// A load balancer's or node port's connection came to this node only to go on to another one
    /// (`externalTrafficPolicy: Cluster`).
    ExtraHop,
}

impl Anomaly {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PodToPodSnat, Self::EgressWithoutSnat, Self::ExtraHop];

    /// The value of the label `anomaly`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodToPodSnat => "pod_to_pod_snat",
            Self::EgressWithoutSnat => "egress_without_snat",
            Self::ExtraHop => "extra_hop",
        }
    }

    /// What it means, as `docs/classes.md` has it.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::PodToPodSnat => {
                "Pods talk to each other, and the node puts its own address for the client's: the masquerading rules lack the pods' range. Network policies then see a node, not the pod."
            }
            Self::EgressWithoutSnat => {
                "A pod's connection leaves with the pod's own address, which has no way back from there: kubenet, overlay, kindnet and flannel outside the cluster, Azure CNI node subnet on the internet."
            }
            Self::ExtraHop => {
                "A frontend's or node port's connection came to this node only to go on to another one: externalTrafficPolicy Cluster."
            }
        }
    }
}

/// The anomaly of a connection whose packets were seen to leave as `after`.
pub(super) fn of(
    class: Class,
    nat: NatKind,
    server: &Peer,
    after: &Tuple,
    facts: &FlowFacts,
    plan: &Plan,
) -> Option<Anomaly> {
    let snat = matches!(nat, NatKind::Snat | NatKind::Both);
    match class {
        Class::PodToPod if snat => Some(Anomaly::PodToPodSnat),
        Class::LoadBalancer | Class::NodePort
            if is_elsewhere(server.place())
                && plan.role(facts.client_ifindex) == Some(Role::Uplink) =>
        {
            Some(Anomaly::ExtraHop)
        }
        Class::PodToExternal
        | Class::PodToService
        | Class::PrivateEndpoint
        | Class::AzurePlatform
        | Class::ApiServer
            if !snat
                && plan.role(facts.client_ifindex) == Some(Role::Pod)
                && plan.role(facts.server_ifindex) == Some(Role::Uplink)
                && needs_snat(plan, server.place(), after) =>
        {
            Some(Anomaly::EgressWithoutSnat)
        }
        _ => None,
    }
}

/// A pod of another node, or what a node that does not know the cluster's pods takes for one.
fn is_elsewhere(place: Place) -> bool {
    matches!(place, Place::RemotePod | Place::OtherNode)
}

/// Whether what goes there has no way back to a pod's own address.
fn needs_snat(plan: &Plan, to: Place, after: &Tuple) -> bool {
    let leaves = to.is_outside()
        || matches!(
            to,
            Place::PrivateEndpoint | Place::ApiServer | Place::Wireserver | Place::Metadata
        );
    match plan.source_nat() {
        SourceNat::NotExpected => false,
        SourceNat::Internet => leaves && Plan::default_place(after.dst) == Place::Internet,
        SourceNat::Everything => leaves,
    }
}

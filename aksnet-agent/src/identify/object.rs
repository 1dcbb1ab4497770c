//! What the agent keeps of a Kubernetes object: plain values, reduced as they arrive.
//!
//! An object comes from a *source*: a watch of the API server, or the container runtime. The same pod may be
//! told of by several; [`Kind`] says which told, and the index ranks them.

use std::sync::Arc;

use aksnet_common::flow::Addr;
use ipnet::IpNet;

use crate::policy::model::NetworkPolicy;

/// A string that many objects share.
pub type Text = Arc<str>;

/// A moment by `CLOCK_MONOTONIC`, in nanoseconds: the clock of the datapath. Wall clocks step, so no object's
/// own times are compared with it.
pub type Moment = u64;

/// Labels in the order of their keys.
pub type Labels = Arc<[(Text, Text)]>;

/// Container ports that have a name: name, IP protocol number, port.
pub type NamedPorts = Arc<[(Text, u8, u16)]>;

/// What an object is, and which source told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A pod of this node, by the API server.
    LocalPod,
    /// A pod of another node, by the API server.
    RemotePod,
    /// A pod of this node, by the container runtime.
    Sandbox,
    /// A service.
    Service,
    /// A part of a service's endpoints.
    Slice,
    /// A node.
    Node,
    /// A namespace.
    Namespace,
    /// A network policy.
    Policy,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::LocalPod,
        Self::RemotePod,
        Self::Sandbox,
        Self::Service,
        Self::Slice,
        Self::Node,
        Self::Namespace,
        Self::Policy,
    ];

    /// The value of the labels `kind` and `source`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LocalPod => "local_pods",
            Self::RemotePod => "remote_pods",
            Self::Sandbox => "sandboxes",
            Self::Service => "services",
            Self::Slice => "endpoint_slices",
            Self::Node => "nodes",
            Self::Namespace => "namespaces",
            Self::Policy => "network_policies",
        }
    }
}

/// Which object: unique within its kind. Namespace is empty for nodes and namespaces. A sandbox's name is the
/// runtime's id of it, as a restarted pod may have two of them for a while.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
}

/// A pod, whichever source told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Which of the three kinds of pods.
    pub kind: Kind,
    /// As in [`Key`].
    pub key_name: Text,
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
    /// `metadata.uid`: a pod of the same name with another one is another pod. Empty: not known.
    pub uid: Text,
    /// `status.podIPs`, as far as they are addresses; none while the pod has no network.
    pub addresses: Vec<Addr>,
    /// The owning controller's name; see `workload`. The pod's own name where it has none.
    pub workload: Text,
    /// `spec.nodeName`.
    pub node: Text,
    /// It uses the node's network: its addresses are the node's, and no pod's.
    pub host_network: bool,
    /// Succeeded or failed: its addresses are free for others.
    pub finished: bool,
    /// Its labels.
    pub labels: Labels,
    /// Container ports that have a name: name, IP protocol number, port.
    pub named_ports: Vec<(Text, u8, u16)>,
    /// Ports of the node that lead to a port of the pod (`hostPort`): host port, IP protocol number.
    pub host_ports: Vec<(u16, u8)>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty if it has none.
    pub name: Text,
    /// IP protocol number.
    pub protocol: u8,
    /// The port that clients dial.
    pub port: u16,
    /// The port on every node; 0: none.
    pub node_port: u16,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
    /// `spec.clusterIPs`; none for a headless service.
    pub cluster: Vec<Addr>,
    /// `status.loadBalancer.ingress[].ip`.
    pub frontends: Vec<Addr>,
    /// `spec.externalIPs`.
    pub external: Vec<Addr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// Type `LoadBalancer`, whether it has a frontend yet or not.
    pub load_balancer: bool,
    /// `status.loadBalancer.ingress` is not empty: an address or a host name was assigned.
    pub has_ingress: bool,
    /// `spec.healthCheckNodePort`; 0: none.
    pub health_check_port: u16,
    /// `spec.loadBalancerSourceRanges`: who may come by the frontends; empty: anybody. An entry that cannot be read is
    /// left out, as kube-proxy does (`MapCIDRsByIPFamily`).
    pub source_ranges: Vec<IpNet>,
    /// `spec.selector`: which pods are behind it; empty: its endpoints are given by hand.
    pub selector: Labels,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address; the first of `addresses`, as consumers are to take.
    pub address: Addr,
    /// The pod that it is (`targetRef` of kind Pod); empty: none, or something else.
    pub pod: Text,
    /// `nodeName`.
    pub node: Text,
    /// `zone`.
    pub zone: Text,
}

/// A part of a service's endpoints (`discovery.k8s.io/v1` `EndpointSlice`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its namespace.
    pub namespace: Text,
    /// Its own name.
    pub name: Text,
    /// The service's name (label `kubernetes.io/service-name`); empty: of no service.
    pub service: Text,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Ports, each with its IP protocol number.
    pub ports: Vec<(u8, u16)>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Text,
    /// `InternalIP` and `ExternalIP` of `status.addresses`.
    pub addresses: Vec<Addr>,
    /// Label `topology.kubernetes.io/zone`; empty: none, or a bare number, which Azure gives nodes that are in
    /// no zone (cloud-provider-azure, `azure_zones.go`).
    pub zone: Text,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Its labels, as they tell how AKS has set it up.
    pub labels: Labels,
    /// `status.capacity.pods`; 0: not known.
    pub pod_capacity: u32,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Text,
    /// Its labels.
    pub labels: Labels,
}

/// Any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A service.
    Service(Service),
    /// A part of a service's endpoints.
    Slice(Slice),
    /// A node.
    Node(Node),
    /// A namespace.
    Namespace(Namespace),
    /// A network policy.
    Policy(NetworkPolicy),
}

impl Object {
    /// Which object it is.
    #[must_use]
    pub fn key(&self) -> Key {
        let (kind, namespace, name) = match self {
            Self::Pod(pod) => (pod.kind, &pod.namespace, &pod.key_name),
            Self::Service(service) => (Kind::Service, &service.namespace, &service.name),
            Self::Slice(slice) => (Kind::Slice, &slice.namespace, &slice.name),
            Self::Policy(policy) => (Kind::Policy, &policy.namespace, &policy.name),
            Self::Node(node) => return Key::global(Kind::Node, &node.name),
            Self::Namespace(namespace) => return Key::global(Kind::Namespace, &namespace.name),
        };
        Key {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }
}

impl Key {
    /// The key of an object that is in no namespace.
    #[must_use]
    pub fn global(kind: Kind, name: &Text) -> Self {
        Self {
            kind,
            namespace: Text::default(),
            name: name.clone(),
        }
    }
}

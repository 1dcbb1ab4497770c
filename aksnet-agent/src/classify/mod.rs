//! The class of a connection: what kind of traffic it is, by the truth table of the node's packet paths.
//!
//! A connection has a *client*, which opened it, the address that was *dialled*, and the *server* that it
//! reached once the node had translated it. [`classify`] sees these as addresses and interfaces only, and
//! tries its rules from top to bottom; what no rule knows is [`Class::Unknown`]. A class says neither what
//! NAT did nor how far the traffic went: [`NatKind`] and [`Scope`] do, so that an anomaly (a pod-to-pod
//! connection that was source-NATed) stands out in a query instead of hiding in a class of its own.
//! [`anomaly`] names and counts those.

// Whose an address is.
pub mod whois;

// What should not be.
pub mod anomaly;

use aksnet_common::{
    flow::Addr,
    passage::{NatKind, Tuple},
    stats::Role,
};

pub use self::{
    anomaly::Anomaly,
    whois::{Peer, Whois},
};
use crate::{
    identify::object::Moment,
    plan::{Place, Plan},
};

/// What kind of traffic a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// A pod to a pod by its own address.
    PodToPod = 0,
    /// A pod to a service's cluster address.
    PodToService,
    /// A pod to a node's address.
    PodToNode,
    /// A node to a pod: kubelet's probes, host-network pods, the second leg of a load-balanced connection.
    NodeToPod,
    /// A pod to anywhere outside the cluster.
    PodToExternal,
    /// From outside straight to a pod's address.
    ExternalToPod,
    /// To a frontend of the load balancer.
    LoadBalancer,
    /// To a node port or host port.
    NodePort,
    /// A node to a service's cluster address.
    NodeToService,
    /// The Azure load balancer's probes.
    LbHealthProbe,
    /// Azure's wireserver, DNS and metadata service.
    AzurePlatform,
    /// To a private endpoint in the virtual network.
    PrivateEndpoint,
    /// To the API server, by whichever address.
    ApiServer,
    /// To the node's DNS cache.
    LocalDns,
    /// The node itself to anywhere outside the cluster.
    NodeToExternal,
    /// From outside to the node itself.
    ExternalToNode,
    /// A node to a node.
    NodeToNode,
    /// No rule knows it.
    Unknown,
}

impl Class {
    /// All classes, in the order of their numbers.
    pub const ALL: [Self; 18] = [
        Self::PodToPod,
        Self::PodToService,
        Self::PodToNode,
        Self::NodeToPod,
        Self::PodToExternal,
        Self::ExternalToPod,
        Self::LoadBalancer,
        Self::NodePort,
        Self::NodeToService,
        Self::LbHealthProbe,
        Self::AzurePlatform,
        Self::PrivateEndpoint,
        Self::ApiServer,
        Self::LocalDns,
        Self::NodeToExternal,
        Self::ExternalToNode,
        Self::NodeToNode,
        Self::Unknown,
    ];

    /// The class with a number.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        Self::ALL
            .get(usize::from(number))
            .copied()
            .unwrap_or(Self::Unknown)
    }

    /// The value of the label `class`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodToPod => "pod_to_pod",
            Self::PodToService => "pod_to_service",
            Self::PodToNode => "pod_to_node",
            Self::NodeToPod => "node_to_pod",
            Self::PodToExternal => "pod_to_external",
            Self::ExternalToPod => "external_to_pod",
            Self::LoadBalancer => "load_balancer",
            Self::NodePort => "node_port",
            Self::NodeToService => "node_to_service",
            Self::LbHealthProbe => "lb_health_probe",
            Self::AzurePlatform => "azure_platform",
            Self::PrivateEndpoint => "private_endpoint",
            Self::ApiServer => "api_server",
            Self::LocalDns => "local_dns",
            Self::NodeToExternal => "node_to_external",
            Self::ExternalToNode => "external_to_node",
            Self::NodeToNode => "node_to_node",
            Self::Unknown => "unknown",
        }
    }

    /// What traffic it is, as `docs/classes.md` has it.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::PodToPod => "A pod to a pod by its own address, on this node or another.",
            Self::PodToService => {
                "A pod to a service's cluster address, whoever serves it; its own pod too (hairpin)."
            }
            Self::PodToNode => "A pod to a node's address: kubelet, host-network pods.",
            Self::NodeToPod => {
                "A node to a pod: kubelet's probes, host-network pods, the second leg of a load-balanced connection."
            }
            Self::PodToExternal => {
                "A pod to anywhere outside the cluster: internet, virtual network, on premises."
            }
            Self::ExternalToPod => {
                "From outside straight to a pod's address: Application Gateway (AGIC), peers in the virtual network."
            }
            Self::LoadBalancer => {
                "To a frontend of a load balancer, public or internal, or to an external IP of a service."
            }
            Self::NodePort => {
                "To a node port or host port, or what a load balancer without floating IP sends there."
            }
            Self::NodeToService => "A process of the node to a service's cluster address.",
            Self::LbHealthProbe => "The Azure load balancer's health probes, from 168.63.129.16.",
            Self::AzurePlatform => {
                "Azure's DNS, wireserver (168.63.129.16) and metadata service (169.254.169.254)."
            }
            Self::PrivateEndpoint => "To a private endpoint in the virtual network.",
            Self::ApiServer => "To the API server, by its service or by its own address.",
            Self::LocalDns => "To the node's DNS cache (AKS LocalDNS, NodeLocal DNSCache).",
            Self::NodeToExternal => "The node itself to anywhere outside the cluster.",
            Self::ExternalToNode => "From outside to the node itself.",
            Self::NodeToNode => "A node to a node.",
            Self::Unknown => {
                "None of these: transit, and what is never routed (link-local, multicast)."
            }
        }
    }
}

/// How far a connection reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scope {
    /// Both ends are on this node.
    SameNode = 0,
    /// To another node in the same zone.
    SameZone,
    /// To another node in another zone.
    CrossZone,
    /// To another node; zones are not known.
    CrossNode,
    /// Within the virtual network, beyond the cluster.
    Vnet,
    /// Beyond the virtual network.
    External,
    /// The far end is not known: a service address of which no endpoint was seen.
    Unknown,
}

impl Scope {
    /// All of them, from near to far.
    pub const ALL: [Self; 7] = [
        Self::SameNode,
        Self::SameZone,
        Self::CrossZone,
        Self::CrossNode,
        Self::Vnet,
        Self::External,
        Self::Unknown,
    ];

    /// What it means, as `docs/classes.md` has it.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::SameNode => "Both ends are on this node.",
            Self::SameZone => "To another node in the same zone.",
            Self::CrossZone => "To another node in another zone.",
            Self::CrossNode => "To another node; the zone of one is not known, or it is in none.",
            Self::Vnet => "Within the virtual network, beyond the cluster.",
            Self::External => "Beyond the virtual network, or from there.",
            Self::Unknown => "The far end is not known: a service of which no endpoint was seen.",
        }
    }

    /// The value of the label `scope`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same_node",
            Self::SameZone => "same_zone",
            Self::CrossZone => "cross_zone",
            Self::CrossNode => "cross_node",
            Self::Vnet => "vnet",
            Self::External => "external",
            Self::Unknown => "",
        }
    }
}

/// What is seen of a connection on this node, from its client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowFacts {
    /// The client's packets before any NAT: source is the client, destination is what it dialled.
    pub before: Tuple,
    /// The same packets as they left the node; `None` while none was seen to leave.
    pub after: Option<Tuple>,
    /// The node itself sends the client's packets.
    pub from_node: bool,
    /// The node itself sends the server's packets.
    pub to_node: bool,
    /// The interface behind which the client is; 0: not known.
    pub client_ifindex: u32,
    /// The interface behind which the server is; 0: not known.
    pub server_ifindex: u32,
    /// When the connection began: names are those of that time.
    pub began: Moment,
}

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What kind of traffic.
    pub class: Class,
    /// What the node's NAT did to the client's packets.
    pub nat: NatKind,
    /// How far it reaches.
    pub scope: Scope,
    /// Who opened it.
    pub client: Peer,
    /// Who answers; who is at the dialled address, as long as no translation was seen.
    pub server: Peer,
    /// What should not be so.
    pub anomaly: Option<Anomaly>,
}

/// Names a connection's class, NAT and reach.
#[must_use]
pub fn classify(facts: &FlowFacts, whois: &Whois) -> Verdict {
    let after = facts.after.unwrap_or(facts.before);
    let client = client(facts, whois);
    let server = server(facts, &after, whois);
    let dialled = whois
        .peer(facts.before.dst, facts.before.dst_port, facts.began)
        .place();
    let nat = NatKind::between(&facts.before, &after);
    let redirected = matches!(nat, NatKind::Dnat | NatKind::Both);
    let class = class(
        client.place(),
        dialled,
        server.place(),
        redirected,
        whois.plan.node_ports().contains(&facts.before.dst_port),
    );
    let scope = scope(
        whois,
        (&client, reach(client.place(), facts.before.src)),
        (&server, reach(server.place(), after.dst)),
    );
    Verdict {
        class,
        nat,
        scope,
        client,
        server,
        anomaly: facts
            .after
            .and_then(|after| anomaly::of(class, nat, &server, &after, facts, whois.plan)),
    }
}

/// Who the client is. Its interface is better evidence than its address: with Azure CNI, pods and nodes share
/// the virtual network's ranges.
fn client(facts: &FlowFacts, whois: &Whois) -> Peer {
    let peer = whois.peer(facts.before.src, facts.before.src_port, facts.began);
    match peer.place() {
        Place::Link | Place::LocalPod | Place::ThisNode | Place::LocalDns => peer,
        _ if facts.from_node => Peer::at(Place::ThisNode),
        _ if whois.plan.role(facts.client_ifindex) == Some(Role::Pod) => peer.local_pod(),
        _ => peer,
    }
}

fn server(facts: &FlowFacts, after: &Tuple, whois: &Whois) -> Peer {
    let peer = whois.peer(after.dst, after.dst_port, facts.began);
    match peer.place() {
        Place::Link | Place::LocalPod | Place::ThisNode | Place::LocalDns | Place::ApiServer => {
            peer
        }
        _ if facts.to_node => Peer::at(Place::ThisNode),
        _ if whois.plan.role(facts.server_ifindex) == Some(Role::Pod) => peer.local_pod(),
        _ => peer,
    }
}

/// The chain of rules: the first that holds names the class.
fn class(
    client: Place,
    dialled: Place,
    server: Place,
    redirected: bool,
    to_node_port: bool,
) -> Class {
    let either = |place| dialled == place || server == place;

    // What is never routed (neighbour discovery, multicast DNS) is no traffic class.
    if client == Place::Link || dialled == Place::Link {
        return Class::Unknown;
    }
    if client == Place::Wireserver {
        return Class::LbHealthProbe;
    }
    if either(Place::LocalDns) {
        return Class::LocalDns;
    }
    if either(Place::Wireserver) || either(Place::Metadata) {
        return Class::AzurePlatform;
    }
    if either(Place::ApiServer) {
        return Class::ApiServer;
    }
    if dialled == Place::LoadBalancer {
        return Class::LoadBalancer;
    }
    if dialled == Place::Service {
        return match client {
            _ if client.is_pod() => Class::PodToService,
            _ if client.is_node() => Class::NodeToService,
            // From outside to a cluster address: whoever routes that range here is on their own.
            _ => Class::Unknown,
        };
    }
    // The range of services is often not configured, as no route shows it. What a pod dials there is a private
    // address that nothing else is known about, and the node redirects it.
    if redirected && dialled == Place::Private && client.is_pod() {
        return Class::PodToService;
    }
    // Nothing but a load balancer's frontend (or an external IP) is redirected without being the cluster's.
    if redirected && dialled.is_outside() {
        return Class::LoadBalancer;
    }
    if dialled.is_node() && (redirected || (to_node_port && client.is_outside())) {
        return Class::NodePort;
    }
    if either(Place::PrivateEndpoint) {
        return Class::PrivateEndpoint;
    }
    match (client, server) {
        _ if client.is_pod() && server.is_pod() => Class::PodToPod,
        _ if client.is_pod() && server.is_node() => Class::PodToNode,
        _ if client.is_pod() && server.is_outside() => Class::PodToExternal,
        _ if client.is_node() && server.is_pod() => Class::NodeToPod,
        _ if client.is_node() && server.is_node() => Class::NodeToNode,
        _ if client.is_node() && server.is_outside() => Class::NodeToExternal,
        (Place::LocalDns, _) if server.is_outside() => Class::NodeToExternal,
        (Place::LocalDns, _) if server.is_pod() => Class::NodeToPod,
        // A gateway or private endpoint that talks to pods is as external as any other.
        _ if outside(client) && server.is_pod() => Class::ExternalToPod,
        _ if outside(client) && server.is_node() => Class::ExternalToNode,
        _ => Class::Unknown,
    }
}

/// Whether a client is outside the cluster, whatever else the plan knows about its address.
fn outside(place: Place) -> bool {
    place.is_outside()
        || matches!(
            place,
            Place::PrivateEndpoint | Place::ApiServer | Place::LoadBalancer | Place::Metadata
        )
}

/// How far away one end is. Ordered: a connection reaches as far as its farther end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Here,
    Cluster,
    Somewhere,
    Vnet,
    Outside,
}

fn reach(place: Place, address: Addr) -> Reach {
    match place {
        Place::ThisNode | Place::LocalPod | Place::LocalDns | Place::Link => Reach::Here,
        Place::RemotePod | Place::OtherNode => Reach::Cluster,
        Place::Service | Place::LoadBalancer => Reach::Somewhere,
        Place::Vnet | Place::PrivateEndpoint | Place::Wireserver | Place::Metadata => Reach::Vnet,
        Place::ApiServer => match Plan::default_place(address) {
            Place::Internet => Reach::Outside,
            _ => Reach::Vnet,
        },
        Place::Named | Place::Private | Place::Internet => Reach::Outside,
    }
}

fn scope(whois: &Whois, client: (&Peer, Reach), server: (&Peer, Reach)) -> Scope {
    match client.1.max(server.1) {
        Reach::Here => Scope::SameNode,
        Reach::Cluster => match (whois.zone(client.0), whois.zone(server.0)) {
            ("", _) | (_, "") => Scope::CrossNode,
            (a, b) if a == b => Scope::SameZone,
            _ => Scope::CrossZone,
        },
        Reach::Somewhere => Scope::Unknown,
        Reach::Vnet => Scope::Vnet,
        Reach::Outside => Scope::External,
    }
}

#[cfg(test)]
mod tests;

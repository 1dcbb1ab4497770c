//! Who is at an address: the address plan's word on the place and the identity index's word on the name,
//! made one answer.
//!
//! What the node knows of itself (its own addresses, its DNS cache, the platform's fixed addresses) is never
//! overruled. Beyond that Kubernetes' objects say more than ranges do, and they win.

use std::sync::LazyLock;

use aksnet_common::{flow::Addr, passage::Tuple};

use crate::{
    conntrack::Follower,
    identify::{
        index::{Holder, Index, What},
        object::Moment,
    },
    plan::{Place, Plan, Site},
    policy::flow::Who,
};

/// One end of a connection, or an address that was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The part of the network.
    pub site: Site,
    /// The pod, service or node, if one is known to have held the address at the time.
    pub holder: Option<Holder>,
}

impl Peer {
    /// Somebody of whom nothing is known but where they are.
    #[must_use]
    pub const fn at(place: Place) -> Self {
        Self {
            site: Plan::site_of(place),
            holder: None,
        }
    }

    /// The part of the network.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.site.place
    }

    /// The same, known better by its interface: a pod of this node.
    #[must_use]
    pub fn local_pod(self) -> Self {
        Self {
            site: Plan::site_of(Place::LocalPod),
            holder: self.holder.filter(|holder| holder.what == What::Pod),
        }
    }

    /// Whether it should have a name, sooner or later: objects may be heard of after the first packets.
    #[must_use]
    pub fn awaits_name(&self) -> bool {
        self.holder.is_none() && matches!(self.place(), Place::LocalPod | Place::RemotePod)
    }
}

/// Knows what a process of the node dialled, where the node translated that before the packets reached an interface.
pub trait Translations {
    /// The tuple before, for the tuple with which the packets leave.
    fn dialled(&self, protocol: u8, leaving: &Tuple) -> Option<Tuple>;
}

impl Translations for Follower {
    fn dialled(&self, protocol: u8, leaving: &Tuple) -> Option<Tuple> {
        self.dialled(protocol, leaving)
    }
}

/// Answers who is at an address. A *view*: cheap to make for one sweep.
#[derive(Clone, Copy)]
pub struct Whois<'a> {
    /// Ranges, interfaces, and what the configuration says.
    pub plan: &'a Plan,
    /// Kubernetes' objects, or the container runtime's.
    pub index: &'a Index,
    /// The node's own translations, where they can be asked for.
    pub translations: Option<&'a dyn Translations>,
}

/// The index of whom nobody told anything.
static NOBODY: LazyLock<Index> = LazyLock::new(|| Index::new(""));

impl<'a> Whois<'a> {
    /// The address plan alone.
    #[must_use]
    pub fn without_names(plan: &'a Plan) -> Self {
        Self {
            plan,
            index: &NOBODY,
            translations: None,
        }
    }
}

impl<'a> Whois<'a> {
    /// Who was at an address at a time, as network policies see it: Kubernetes' objects say it, and ranges where they
    /// know nobody. What the node knows of itself is not overruled.
    #[must_use]
    pub fn party(&self, address: Addr, at: Moment) -> Who<'a> {
        let told = || self.index.party(address, at);
        match self.plan.place(address) {
            Place::Wireserver | Place::Metadata | Place::Link => Who::External,
            // A process of the node listens there.
            Place::LocalDns => Who::Node { this: true },
            // A frontend on one of the node's devices is still a service's.
            Place::ThisNode => match told() {
                Some(Who::Service) => Who::Service,
                _ => Who::Node { this: true },
            },
            place => told().unwrap_or(match place {
                Place::LocalPod | Place::RemotePod => Who::UnknownPod,
                Place::OtherNode => Who::Node { this: false },
                Place::Service | Place::LoadBalancer => Who::Service,
                _ => Who::External,
            }),
        }
    }
}

impl Whois<'_> {
    /// Who was at an address at a time. The port tells the API server from the node that it runs on.
    #[must_use]
    pub fn peer(&self, address: Addr, port: u16, at: Moment) -> Peer {
        let site = self.plan.site(address);
        if self.plan.is_api_server(address, port) || self.index.api_server(address, port) {
            return Peer::at(Place::ApiServer);
        }
        match site.place {
            Place::Wireserver | Place::Metadata | Place::LocalDns | Place::Link => {
                return Peer { site, holder: None };
            }
            _ => {}
        }
        let Some(holder) = self.index.lookup(address, at) else {
            return Peer { site, holder: None };
        };
        let place = match (site.place, holder.what) {
            // A pod cannot have the node's address; a frontend or external address on one of the node's devices
            // (IPVS, kube-vip) is still a frontend.
            (Place::ThisNode, What::Pod | What::Node) => {
                return Peer { site, holder: None };
            }
            (Place::LocalPod, What::Pod) => Place::LocalPod,
            (_, What::Pod) if holder.local => Place::LocalPod,
            (_, What::Pod) => Place::RemotePod,
            (_, What::Service) if self.is_kubernetes(&holder) => return Peer::at(Place::ApiServer),
            (_, What::Service) => Place::Service,
            (_, What::LoadBalancer | What::ExternalIp) => Place::LoadBalancer,
            (_, What::Node) if holder.local => Place::ThisNode,
            (_, What::Node) => Place::OtherNode,
        };
        Peer {
            site: if place == site.place {
                site
            } else {
                Plan::site_of(place)
            },
            holder: Some(holder),
        }
    }

    /// The API server's own service, `default/kubernetes`.
    fn is_kubernetes(&self, service: &Holder) -> bool {
        self.index.text(service.namespace) == "default"
            && self.index.text(service.workload) == "service/kubernetes"
    }

    /// The zone of a peer; empty where it is not known, or in none.
    #[must_use]
    pub fn zone(&self, peer: &Peer) -> &str {
        let told = peer
            .holder
            .map_or("", |holder| self.index.text(holder.zone));
        match peer.place() {
            Place::ThisNode | Place::LocalPod | Place::LocalDns if told.is_empty() => {
                self.own_zone()
            }
            _ => told,
        }
    }

    /// This node's zone; empty where it is not known, or in none.
    #[must_use]
    pub fn own_zone(&self) -> &str {
        match self.index.this_node() {
            Some(node) if !node.zone.is_empty() => &node.zone,
            _ => self.plan.zone(),
        }
    }

    /// What a process of the node dialled, where the node translated that before the packets reached an
    /// interface: the tuple before, for the tuple with which they leave.
    #[must_use]
    pub fn dialled(&self, protocol: u8, leaving: &Tuple) -> Option<Tuple> {
        self.translations?.dialled(protocol, leaving)
    }

    /// The namespace of a peer, for labels; empty: none.
    #[must_use]
    pub fn namespace(&self, peer: &Peer) -> &str {
        peer.holder
            .map_or("", |holder| self.index.text(holder.namespace))
    }

    /// The workload of a peer, for labels: a controller's name, `node/<name>`, `service/<name>`, or what the
    /// address plan calls the place.
    #[must_use]
    pub fn workload(&self, peer: &Peer) -> &str {
        match peer.holder {
            Some(holder) => self.index.text(holder.workload),
            None => self.plan.name(peer.site),
        }
    }

    /// The pod's own name; empty for whatever is no pod.
    #[must_use]
    pub fn pod(&self, peer: &Peer) -> &str {
        peer.holder.map_or("", |holder| self.index.text(holder.pod))
    }
}

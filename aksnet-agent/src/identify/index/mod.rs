//! The *index*: who holds an address, and who held it when a flow began.
//!
//! Sources [`apply`](Index::apply) and [`delete`](Index::delete) objects; flows [`lookup`](Index::lookup) by
//! address and the moment of their first packet. It reads no clock and opens nothing. What it is not: a cache of
//! the API server. Pods of other nodes are reduced to a name, an owner, addresses and labels.
//!
//! Addresses are reused within seconds on a busy cluster. So a holder has a tenure ([`tenure`]), and one that has
//! ended is remembered for [`KEEP`], as its flows end later than it.

use std::sync::Arc;

use aksnet_common::flow::Addr;

use super::{
    names::{Name, Names, Pool, Shape},
    object::{Key, Kind, Labels, Moment, Namespace, Node, Object, Pod, Service, Text},
};
use crate::policy::index::Policies;

// An address with who held it, and when.
mod hash;

mod tenure;

mod ledger;

// Objects, and what is folded out of them.
mod store;

mod ports;

mod ends;

mod fold;

// The same, as policies see it.
mod party;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod parties;

#[cfg(test)]
mod model;

use ends::Ends;
use ledger::Ledger;
use ports::Ports;
use store::{Id, Store};
use tenure::{Tenure, Who};

/// How long a holder is remembered after its tenure: longer than the sweep, and than a closed connection stays in
/// the flow table.
pub const KEEP: Moment = 300_000_000_000;

/// How much later than its first packet a pod may be seen. A watch is behind by the time between the CNI's giving
/// the address and the kubelet's telling it: the start of its containers, which takes seconds.
pub const GRACE: Moment = 30_000_000_000;

/// What holds an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// A pod with a network of its own.
    Pod,
    /// A service, by its cluster address.
    Service,
    /// A service, by its load balancer's frontend.
    LoadBalancer,
    /// A service, by an address that its author routes to nodes (`spec.externalIPs`).
    ExternalIp,
    /// A node, and the pods that use its network.
    Node,
}

/// Who holds an address. Names are read by [`Index::text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// What it is.
    pub what: What,
    /// Its namespace; empty for a node, and for a frontend that several services share.
    pub namespace: Name,
    /// The owning controller of a pod, `node/<name>`, or `service/<name>`; empty for a frontend that several
    /// services share: [`Index::service`] tells them apart.
    pub workload: Name,
    /// The pod's name; empty for anything else.
    pub pod: Name,
    /// The pod's node, or the node itself; empty where it is not known.
    pub node: Name,
    /// That node's zone; empty where it has none, or it is not known.
    pub zone: Name,
    /// A pod of this node, or this node.
    pub local: bool,
    /// False where the flow is older than the holder's first sight: nobody else was known to hold the address.
    pub certain: bool,
}

/// What was odd in what the sources said, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Times that a pod said to have an address which a newer live pod has, too.
    pub duplicates: u64,
    /// Objects without a name, or of a kind that they cannot be.
    pub refused_objects: u64,
    /// Addresses that no pod, node or service can have, such as loopback, and those beyond the most that are kept
    /// of one object.
    pub refused_addresses: u64,
    /// Ended holders forgotten before [`KEEP`] was over, as too many pods ended.
    pub crowded: u64,
}

/// A pod as it is kept of every node.
#[derive(Clone, Copy, Debug)]
pub struct PodView<'a> {
    /// Its namespace.
    pub namespace: Name,
    /// Its name.
    pub pod: Name,
    /// The owning controller's name.
    pub workload: Name,
    /// Its node; empty while it has none.
    pub node: Name,
    /// Its addresses; none when it is of the host network, has finished, or has no network yet.
    pub addresses: &'a [Addr],
    /// Its labels.
    pub labels: &'a Labels,
}

/// A pod in the store.
#[derive(Debug)]
struct Kept {
    uid: u64,
    namespace: Name,
    pod: Name,
    workload: Name,
    node: Name,
    addresses: Box<[Addr]>,
    /// Labels, and named ports unless the container runtime told of it, which does not know them.
    shape: Arc<Shape>,
    /// When it first had these labels.
    labels_since: Moment,
    /// The whole of it, if it is of this node.
    whole: Option<Box<Pod>>,
}

/// A namespace in the store.
#[derive(Debug)]
struct Space {
    namespace: Namespace,
    /// When it first had these labels.
    since: Moment,
}

/// A slice in the store: what it holds.
#[derive(Debug, Default)]
struct Part {
    addresses: Box<[Addr]>,
    api_server: Box<[(Addr, u16)]>,
}

/// A node's zone, and when that was last so.
#[derive(Clone, Copy, Debug)]
struct Zone {
    zone: Name,
    until: Moment,
}

/// The index; see the module's header.
#[derive(Debug)]
pub struct Index {
    names: Names,
    pool: Pool,
    this_node: Name,
    ledger: Ledger,
    /// Local pods, remote pods, sandboxes.
    pods: [Store<Kept>; 3],
    services: Store<Service>,
    slices: Store<Part>,
    nodes: Store<Node>,
    namespaces: Store<Space>,
    /// Which policies there are, for listing; their content is beside.
    listed_policies: Store<()>,
    policies: Policies,
    /// When all policies were known for the first time.
    policies_since: Moment,
    ends: Ends,
    zones: std::collections::HashMap<Name, Zone, hash::Mixing>,
    ports: Ports,
    owners: u64,
    generation: u64,
    policy_generation: u64,
    problems: Problems,
}

impl Index {
    /// An index that knows nothing but the name of the node it runs on.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        let mut names = Names::new();
        Self {
            this_node: names.using(&Text::from(node_name)),
            names,
            pool: Pool::default(),
            ledger: Ledger::default(),
            pods: Default::default(),
            services: Store::default(),
            slices: Store::default(),
            nodes: Store::default(),
            namespaces: Store::default(),
            listed_policies: Store::default(),
            policies: Policies::default(),
            policies_since: 0,
            ends: Ends::default(),
            zones: std::collections::HashMap::default(),
            ports: Ports::default(),
            owners: 0,
            generation: 0,
            policy_generation: 0,
            problems: Problems::default(),
        }
    }

    /// Who held an address at a moment: nobody, if nobody is known to have.
    ///
    /// The sources are ranked: a node's own address, the API server's pods, the runtime's, an endpoint slice's, a
    /// service's. A pod that a better source knows has its better name for the whole of its tenure.
    #[must_use]
    pub fn lookup(&self, address: Addr, at: Moment) -> Option<Holder> {
        let tenures = self.ledger.of(address);
        let (tenure, certain) = tenure::at(tenures, at)?;
        Some(self.holder(tenures, tenure, certain, at))
    }

    fn holder(&self, tenures: &[Tenure], tenure: &Tenure, certain: bool, at: Moment) -> Holder {
        let mut who = tenure.who;
        let mut zone = who.zone;
        if let [_] = tenures {
        } else if who.what == What::Pod {
            let same = |other: &&Tenure| other.who.is_pod_of(&tenure.who);
            let best = tenures.iter().filter(same).min_by_key(|t| t.who.rank);
            if let Some(best) = best.filter(|best| best.who.rank < who.rank) {
                who = best.who;
            }
            if zone.is_empty() {
                let told = tenures.iter().filter(same).map(|t| t.who.zone);
                zone = told.max().unwrap_or_default();
            }
        } else if who.rank == tenure::Rank::Service
            && tenures.iter().any(|t| {
                (t.who.rank == who.rank && t.from <= at && at < t.until)
                    && (t.who.namespace, t.who.workload) != (who.namespace, who.workload)
            })
        {
            who.namespace = Name::EMPTY;
            who.workload = Name::EMPTY;
        }
        Holder {
            what: who.what,
            namespace: who.namespace,
            workload: who.workload,
            pod: who.pod,
            node: who.node,
            zone: self.zone_of(who.node).unwrap_or(zone),
            local: !who.node.is_empty() && who.node == self.this_node,
            certain,
        }
    }

    /// Whether an address and port are the API server's: an endpoint of the service `default/kubernetes`. The port
    /// counts, as the address may be a node's own.
    #[must_use]
    pub fn api_server(&self, address: Addr, port: u16) -> bool {
        self.ports.is_api_server(address, port)
    }

    /// The live service that has this address (cluster, frontend or external), protocol and port; of several the
    /// first to come.
    #[must_use]
    pub fn service(&self, address: Addr, protocol: u8, port: u16) -> Option<Holder> {
        let (what, id) = self.ports.service(address, protocol, port)?;
        self.service_holder(what, id)
    }

    /// The same, whole; or the one that has the port on every node, if the address is no service's.
    #[must_use]
    pub fn service_at(&self, address: Addr, protocol: u8, port: u16) -> Option<&Service> {
        let by_address = self.ports.service(address, protocol, port);
        let id = match by_address {
            Some((_, id)) => id,
            None => self.ports.node(protocol, port)?,
        };
        Some(&self.services.get(id)?.object)
    }

    /// The live service that has this port on every node, for its clients or for a load balancer's health probe.
    #[must_use]
    pub fn node_port(&self, protocol: u8, port: u16) -> Option<Holder> {
        self.service_holder(What::Service, self.ports.node(protocol, port)?)
    }

    /// The live pod of this node to which this port of the node leads. Not a pod of the host network, which
    /// listens there itself.
    #[must_use]
    pub fn host_port(&self, protocol: u8, port: u16) -> Option<Holder> {
        let (slot, id) = self.ports.host(protocol, port)?;
        let pod = &self.pods[usize::from(slot)].get(id)?.object;
        Some(Holder {
            what: What::Pod,
            namespace: pod.namespace,
            workload: pod.workload,
            pod: pod.pod,
            node: pod.node,
            zone: self.zone_of(pod.node).unwrap_or_default(),
            local: true,
            certain: true,
        })
    }

    fn service_holder(&self, what: What, id: Id) -> Option<Holder> {
        let service = &self.services.get(id)?.object;
        Some(Holder {
            what,
            namespace: id.0,
            workload: self.names.find(&fold::service_workload(&service.name))?,
            pod: Name::EMPTY,
            node: Name::EMPTY,
            zone: Name::EMPTY,
            local: false,
            certain: true,
        })
    }

    fn zone_of(&self, node: Name) -> Option<Name> {
        let zone = self.zones.get(&node)?.zone;
        (!zone.is_empty()).then_some(zone)
    }

    /// The text of a name; empty when what it named was forgotten.
    #[must_use]
    pub fn text(&self, name: Name) -> &str {
        self.names.text(name)
    }

    /// This node's pods in full, in no order: the API server's, or the runtime's as long as that has not listed.
    pub fn pods_on_node(&self) -> impl Iterator<Item = &Pod> {
        let slot = if self.pods[0].synced { 0 } else { 2 };
        self.pods[slot]
            .iter()
            .filter_map(|pod| pod.whole.as_deref())
    }

    /// The ids of the sandboxes that the container runtime has; `None` as long as it has not listed them.
    #[must_use]
    pub fn sandboxes(&self) -> Option<impl Iterator<Item = &Text>> {
        let sandboxes = &self.pods[2];
        let whole = || sandboxes.iter().filter_map(|pod| pod.whole.as_deref());
        sandboxes.synced.then(|| whole().map(|pod| &pod.key_name))
    }

    /// This node's pod of that name, in full.
    #[must_use]
    pub fn pod_on_node(&self, namespace: &str, name: &str) -> Option<&Pod> {
        let id = (self.names.find(namespace)?, self.names.find(name)?);
        let listed = self.pods[0]
            .get(id)
            .and_then(|pod| pod.object.whole.as_deref());
        listed.or_else(|| {
            self.pods_on_node()
                .find(|pod| *pod.namespace == *namespace && *pod.name == *name)
        })
    }

    /// All pods that the API server told of, with their labels, in no order.
    pub fn pods(&self) -> impl Iterator<Item = PodView<'_>> {
        self.pods[..2].iter().flat_map(Store::iter).map(Kept::view)
    }

    /// A pod that the API server told of.
    #[must_use]
    pub fn pod(&self, namespace: Name, pod: Name) -> Option<PodView<'_>> {
        let kept = self.pods[..2]
            .iter()
            .find_map(|pods| pods.get((namespace, pod)));
        kept.map(|entry| entry.object.view())
    }

    /// The services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter()
    }

    /// The nodes, in no order. Only this node has its labels.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// The node that the agent runs on.
    #[must_use]
    pub fn this_node(&self) -> Option<&Node> {
        let entry = self.nodes.get((Name::EMPTY, self.this_node))?;
        Some(&entry.object)
    }

    /// The namespaces, in no order.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter().map(|space| &space.namespace)
    }

    /// How many objects of each kind there are.
    #[must_use]
    pub fn counts(&self) -> [(Kind, usize); 8] {
        Kind::ALL.map(|kind| {
            let count = match kind {
                Kind::LocalPod => self.pods[0].len(),
                Kind::RemotePod => self.pods[1].len(),
                Kind::Sandbox => self.pods[2].len(),
                Kind::Service => self.services.len(),
                Kind::Slice => self.slices.len(),
                Kind::Node => self.nodes.len(),
                Kind::Namespace => self.namespaces.len(),
                Kind::Policy => self.listed_policies.len(),
            };
            (kind, count)
        })
    }

    /// Whether a source has listed its objects once in full.
    #[must_use]
    pub fn synced(&self, kind: Kind) -> bool {
        match kind {
            Kind::LocalPod => self.pods[0].synced,
            Kind::RemotePod => self.pods[1].synced,
            Kind::Sandbox => self.pods[2].synced,
            Kind::Service => self.services.synced,
            Kind::Slice => self.slices.synced,
            Kind::Node => self.nodes.synced,
            Kind::Namespace => self.namespaces.synced,
            Kind::Policy => self.listed_policies.synced,
        }
    }

    /// A number that changes when flows that were judged already may deserve another class or name: a source has
    /// listed in full, or a service, a node's address or zone, or the API server's address came, went or changed.
    /// Pods that come and go do not change it.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// What was odd in what the sources said.
    #[must_use]
    pub const fn problems(&self) -> Problems {
        Problems {
            crowded: self.ledger.crowded,
            ..self.problems
        }
    }
}

impl Kept {
    fn view(&self) -> PodView<'_> {
        PodView {
            namespace: self.namespace,
            pod: self.pod,
            workload: self.workload,
            node: self.node,
            addresses: &self.addresses,
            labels: &self.shape.labels,
        }
    }
}

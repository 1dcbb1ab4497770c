//! Objects as they come and go, folded into the index.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use aksnet_common::flow::Addr;

use super::{
    Id, Index, KEEP, Kept, Key, Kind, Moment, Name, Namespace, Node, Object, Part, Pod, Service,
    Space, Text, What, Who, Zone,
    ledger::Sight,
    store::Store,
    tenure::{Rank, is_holdable},
};
use crate::{identify::object::Slice, policy::model::NetworkPolicy};

/// Addresses of one pod, node or service that are kept at most. A pod has one of each family.
const ADDRESSES: usize = 64;

/// The slot of the container runtime's pods.
const SANDBOX: usize = 2;

/// Where endpoints are the API server's.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

impl Index {
    /// Takes an object as it is now, whether it is new or known.
    pub fn apply(&mut self, object: Object, now: Moment) {
        match object {
            Object::Pod(pod) => self.apply_pod(pod, now),
            Object::Service(service) => self.apply_service(service, now),
            Object::Slice(slice) => self.apply_slice(&slice, now),
            Object::Node(node) => self.apply_node(node, now),
            Object::Namespace(namespace) => self.apply_namespace(namespace, now),
            Object::Policy(policy) => self.apply_policy(policy, now),
        }
    }

    /// Forgets an object. Its flows keep its name for [`KEEP`].
    pub fn delete(&mut self, key: &Key, now: Moment) {
        if let Some(id) = self.find(&key.namespace, &key.name) {
            self.remove(key.kind, id, now);
        }
    }

    /// A source begins to list all its objects anew. What it knew stays until it has [settled](Self::settle).
    pub fn begin(&mut self, kind: Kind) {
        match kind {
            Kind::LocalPod | Kind::RemotePod | Kind::Sandbox => {
                if let Some(slot) = slot(kind) {
                    self.pods[slot].begin();
                }
            }
            Kind::Service => self.services.begin(),
            Kind::Slice => self.slices.begin(),
            Kind::Node => self.nodes.begin(),
            Kind::Namespace => self.namespaces.begin(),
            Kind::Policy => self.listed_policies.begin(),
        }
    }

    /// A source has listed all its objects: what it has not applied since it began is gone.
    pub fn settle(&mut self, kind: Kind, now: Moment) {
        let (gone, first) = match kind {
            Kind::LocalPod => self.pods[0].settle(),
            Kind::RemotePod => self.pods[1].settle(),
            Kind::Sandbox => self.pods[2].settle(),
            Kind::Service => self.services.settle(),
            Kind::Slice => self.slices.settle(),
            Kind::Node => self.nodes.settle(),
            Kind::Namespace => self.namespaces.settle(),
            Kind::Policy => self.listed_policies.settle(),
        };
        for id in gone {
            self.remove(kind, id, now);
        }
        if first {
            self.generation += 1;
            self.policy_generation += 1;
            if kind == Kind::Policy {
                self.policies_since = now;
            }
        }
    }

    /// Forgets holders whose tenure ended longer than [`KEEP`] ago. To be called every some seconds.
    pub fn expire(&mut self, now: Moment) {
        let before = now.saturating_sub(KEEP);
        self.ledger.expire(&mut self.names, before);
        let names = &mut self.names;
        self.zones.retain(|node, zone| {
            let stays = zone.until >= before;
            if !stays {
                names.end_all([*node, zone.zone]);
            }
            stays
        });
        self.policies.expire(now);
        self.pool.sweep();
    }

    fn find(&self, namespace: &str, name: &str) -> Option<Id> {
        Some((self.names.find(namespace)?, self.names.find(name)?))
    }

    fn remove(&mut self, kind: Kind, id: Id, now: Moment) {
        let known = match kind {
            Kind::LocalPod => self.remove_pod(0, id, now),
            Kind::RemotePod => self.remove_pod(1, id, now),
            Kind::Sandbox => self.remove_pod(SANDBOX, id, now),
            Kind::Service => self.remove_service(id, now),
            Kind::Slice => self.remove_slice(id, now),
            Kind::Node => self.remove_node(id, now),
            Kind::Namespace => self.remove_namespace(id),
            Kind::Policy => self.remove_policy(id, now),
        };
        if known {
            self.names.end_all([id.0, id.1]);
        }
    }

    /// The id of an object that is put into a store, and its number. The store uses the id's names once.
    fn enter<T>(
        names: &mut super::Names,
        owners: &mut u64,
        store: &Store<T>,
        namespace: &Text,
        name: &Text,
    ) -> (Id, u64) {
        let id = (names.using(namespace), names.using(name));
        if let Some(entry) = store.get(id) {
            names.end_all([id.0, id.1]);
            return (id, entry.owner);
        }
        *owners += 1;
        (id, *owners)
    }

    fn apply_pod(&mut self, mut pod: Pod, now: Moment) {
        let Some(slot) = slot(pod.kind) else {
            self.problems.refused_objects += 1;
            return;
        };
        if pod.namespace.is_empty() || pod.name.is_empty() || pod.key_name.is_empty() {
            self.problems.refused_objects += 1;
            return;
        }
        if pod.host_network || pod.finished {
            pod.addresses.clear();
            pod.host_ports.clear();
        }
        self.keep_holdable(&mut pod.addresses);
        let uid = identity(&pod.uid);
        if let Some(id) = self.find(&pod.namespace, &pod.key_name)
            && let Some(old) = self.pods[slot].get(id)
            && old.object.uid != 0
            && uid != 0
            && old.object.uid != uid
        {
            self.remove(pod.kind, id, now);
        }
        let store = &self.pods[slot];
        let (names, owners) = (&mut self.names, &mut self.owners);
        let (id, owner) = Self::enter(names, owners, store, &pod.namespace, &pod.key_name);
        let sight = sight(store, now);
        let named_ports = (slot != SANDBOX).then_some(&*pod.named_ports);
        let shape = self.pool.shape(&pod.labels, named_ports);
        pod.labels = shape.labels.clone();
        let kept = Kept {
            uid,
            namespace: self.names.using(&pod.namespace),
            pod: self.names.using(&pod.name),
            workload: self.names.using(&pod.workload),
            node: self.names.using(&pod.node),
            addresses: pod.addresses.as_slice().into(),
            shape,
            labels_since: now,
            whole: None,
        };
        let who = Who {
            what: What::Pod,
            rank: [Rank::LocalPod, Rank::RemotePod, Rank::Sandbox][slot],
            namespace: kept.namespace,
            workload: kept.workload,
            pod: kept.pod,
            node: kept.node,
            zone: Name::EMPTY,
        };
        let whole = (slot != 1).then(|| Box::new(pod));
        let mut kept = Kept { whole, ..kept };
        if let Some(old) = self.pods[slot].get(id).map(|entry| &entry.object) {
            kept.uid = if uid == 0 { old.uid } else { uid };
            if old.shape.labels == kept.shape.labels {
                kept.labels_since = old.labels_since;
            } else {
                self.policy_generation += u64::from(kept.whole.is_some());
            }
            for address in &old.addresses {
                if !kept.addresses.contains(address) {
                    self.ledger.release(&mut self.names, *address, owner, now);
                }
            }
        }
        for address in &kept.addresses {
            let again = self
                .ledger
                .hold(&mut self.names, *address, owner, who, sight);
            self.problems.duplicates += u64::from(again);
        }
        let host = slot_number(slot);
        let ports = kept.whole.as_ref().map(|pod| pod.host_ports.clone());
        if let Some(old) = self.pods[slot].put(id, owner, kept) {
            if let Some(pod) = &old.whole {
                self.ports.remove_host(host, id, &pod.host_ports);
            }
            self.drop_kept(&old);
        }
        self.ports.add_host(host, id, &ports.unwrap_or_default());
    }

    fn remove_pod(&mut self, slot: usize, id: Id, now: Moment) -> bool {
        let Some(entry) = self.pods[slot].remove(id) else {
            return false;
        };
        for address in &entry.object.addresses {
            let owner = entry.owner;
            self.ledger.release(&mut self.names, *address, owner, now);
        }
        if let Some(pod) = &entry.object.whole {
            let host = slot_number(slot);
            self.ports.remove_host(host, id, &pod.host_ports);
        }
        self.drop_kept(&entry.object);
        true
    }

    fn drop_kept(&mut self, kept: &Kept) {
        self.names
            .end_all([kept.namespace, kept.pod, kept.workload, kept.node]);
    }

    fn apply_service(&mut self, mut service: Service, now: Moment) {
        if service.namespace.is_empty() || service.name.is_empty() {
            self.problems.refused_objects += 1;
            return;
        }
        self.keep_holdable(&mut service.cluster);
        self.keep_holdable(&mut service.frontends);
        self.keep_holdable(&mut service.external);
        let (names, owners) = (&mut self.names, &mut self.owners);
        let (namespace, name) = (&service.namespace, &service.name);
        let (id, owner) = Self::enter(names, owners, &self.services, namespace, name);
        let sight = sight(&self.services, now);
        let held = service_addresses(&service);
        if let Some(old) = self.services.get(id).map(|entry| &entry.object) {
            if *old == service {
                self.services.put(id, owner, service);
                return;
            }
            for (what, address) in service_addresses(old) {
                if !held.contains(&(what, address)) {
                    self.ledger.release(&mut self.names, address, owner, now);
                }
            }
            self.ports.remove_service(id, old);
        }
        self.generation += 1;
        let workload = self.names.using(&service_workload(&service.name));
        for (what, address) in held {
            let who = Who {
                what,
                rank: Rank::Service,
                namespace: id.0,
                workload,
                pod: Name::EMPTY,
                node: Name::EMPTY,
                zone: Name::EMPTY,
            };
            self.ledger
                .hold(&mut self.names, address, owner, who, sight);
        }
        self.ports.add_service(id, &service);
        if self.services.put(id, owner, service).is_some() {
            self.names.done(workload);
        }
    }

    fn remove_service(&mut self, id: Id, now: Moment) -> bool {
        let Some(entry) = self.services.remove(id) else {
            return false;
        };
        self.generation += 1;
        for (_, address) in service_addresses(&entry.object) {
            let owner = entry.owner;
            self.ledger.release(&mut self.names, address, owner, now);
        }
        self.ports.remove_service(id, &entry.object);
        if let Some(workload) = self.names.find(&service_workload(&entry.object.name)) {
            self.names.done(workload);
        }
        true
    }

    fn apply_slice(&mut self, slice: &Slice, now: Moment) {
        if slice.namespace.is_empty() || slice.name.is_empty() {
            self.problems.refused_objects += 1;
            return;
        }
        let (names, owners) = (&mut self.names, &mut self.owners);
        let (id, owner) = Self::enter(names, owners, &self.slices, &slice.namespace, &slice.name);
        let sight = sight(&self.slices, now);
        let is_api = (&*slice.namespace, &*slice.service) == API_SERVER;
        let mut part = Part::default();
        if is_api {
            let mut ports = Vec::new();
            for endpoint in &slice.endpoints {
                ports.extend(
                    slice
                        .ports
                        .iter()
                        .map(|(_, port)| (endpoint.address, *port)),
                );
            }
            ports.sort_unstable();
            ports.dedup();
            part.api_server = ports.into();
        }
        // Of two endpoints with one address, the first.
        let mut pods: Vec<_> = slice
            .endpoints
            .iter()
            .filter(|e| !e.pod.is_empty())
            .collect();
        pods.sort_by_key(|endpoint| endpoint.address);
        pods.dedup_by_key(|endpoint| endpoint.address);
        let listed = pods.len();
        pods.retain(|endpoint| is_holdable(endpoint.address));
        self.problems.refused_addresses += (listed - pods.len()) as u64;
        part.addresses = pods.iter().map(|endpoint| endpoint.address).collect();

        let workload = if slice.service.is_empty() {
            Name::EMPTY
        } else {
            self.names.using(&service_workload(&slice.service))
        };
        let old = self.slices.get(id).map(|entry| &entry.object);
        for address in old.into_iter().flat_map(|part| part.addresses.iter()) {
            let stays = pods
                .binary_search_by_key(address, |endpoint| endpoint.address)
                .is_ok_and(|at| {
                    let pod = self.names.find(&pods[at].pod);
                    pod.is_some_and(|pod| self.ledger.names_pod(*address, owner, pod))
                });
            if !stays {
                self.ledger.release(&mut self.names, *address, owner, now);
            }
        }
        for endpoint in pods {
            let who = Who {
                what: What::Pod,
                rank: Rank::Endpoint,
                namespace: id.0,
                workload,
                pod: self.names.using(&endpoint.pod),
                node: self.names.using(&endpoint.node),
                zone: self.names.using(&endpoint.zone),
            };
            self.ledger
                .hold(&mut self.names, endpoint.address, owner, who, sight);
            self.names.end_all([who.pod, who.node, who.zone]);
        }
        self.names.done(workload);
        let new = part.api_server.clone();
        let old = self.slices.put(id, owner, part).unwrap_or_default();
        let api_changed = self.ports.exchange_api(&old.api_server, &new);
        self.generation += u64::from(api_changed);
    }

    fn remove_slice(&mut self, id: Id, now: Moment) -> bool {
        let Some(entry) = self.slices.remove(id) else {
            return false;
        };
        for address in &entry.object.addresses {
            let owner = entry.owner;
            self.ledger.release(&mut self.names, *address, owner, now);
        }
        let api_changed = self.ports.exchange_api(&entry.object.api_server, &[]);
        self.generation += u64::from(api_changed);
        true
    }

    fn apply_node(&mut self, mut node: Node, now: Moment) {
        if node.name.is_empty() {
            self.problems.refused_objects += 1;
            return;
        }
        self.keep_holdable(&mut node.addresses);
        let (names, owners) = (&mut self.names, &mut self.owners);
        let (id, owner) = Self::enter(names, owners, &self.nodes, &Text::default(), &node.name);
        let sight = sight(&self.nodes, now);
        if id.1 != self.this_node {
            node.labels = std::sync::Arc::default();
        }
        let mut changed = true;
        if let Some(old) = self.nodes.get(id).map(|entry| &entry.object) {
            changed = old.addresses != node.addresses || old.zone != node.zone;
            for address in &old.addresses {
                if !node.addresses.contains(address) {
                    self.ledger.release(&mut self.names, *address, owner, now);
                }
            }
        }
        self.generation += u64::from(changed);
        let workload = self.names.using(&format!("node/{}", node.name).into());
        for address in &node.addresses {
            let who = Who {
                what: What::Node,
                rank: Rank::Node,
                namespace: Name::EMPTY,
                workload,
                pod: Name::EMPTY,
                node: id.1,
                zone: Name::EMPTY,
            };
            self.ledger
                .hold(&mut self.names, *address, owner, who, sight);
        }
        self.names.done(workload);
        let zone = Zone {
            zone: self.names.using(&node.zone),
            until: Moment::MAX,
        };
        match self.zones.insert(id.1, zone) {
            Some(old) => self.names.done(old.zone),
            None => self.names.use_all([id.1]),
        }
        self.nodes.put(id, owner, node);
    }

    fn remove_node(&mut self, id: Id, now: Moment) -> bool {
        let Some(entry) = self.nodes.remove(id) else {
            return false;
        };
        self.generation += 1;
        for address in &entry.object.addresses {
            let owner = entry.owner;
            self.ledger.release(&mut self.names, *address, owner, now);
        }
        if let Some(zone) = self.zones.get_mut(&id.1) {
            zone.until = now;
        }
        true
    }

    fn apply_namespace(&mut self, namespace: Namespace, now: Moment) {
        if namespace.name.is_empty() {
            self.problems.refused_objects += 1;
            return;
        }
        let (names, owners) = (&mut self.names, &mut self.owners);
        let name = &namespace.name;
        let (id, owner) = Self::enter(names, owners, &self.namespaces, &Text::default(), name);
        let old = self.namespaces.get(id).map(|entry| &entry.object);
        let same = old.filter(|old| old.namespace.labels == namespace.labels);
        let since = same.map_or(now, |old| old.since);
        self.policy_generation += u64::from(same.is_none());
        self.namespaces.put(id, owner, Space { namespace, since });
    }

    fn remove_namespace(&mut self, id: Id) -> bool {
        let Some(entry) = self.namespaces.remove(id) else {
            return false;
        };
        self.policy_generation += 1;
        self.ends.forget(&entry.object.namespace.name);
        true
    }

    fn apply_policy(&mut self, policy: NetworkPolicy, now: Moment) {
        if policy.namespace.is_empty() || policy.name.is_empty() {
            self.problems.refused_objects += 1;
            return;
        }
        let (names, owners) = (&mut self.names, &mut self.owners);
        let (namespace, name) = (&policy.namespace, &policy.name);
        let (id, owner) = Self::enter(names, owners, &self.listed_policies, namespace, name);
        // What the first list finds was there before.
        let since = if self.listed_policies.synced { now } else { 0 };
        self.listed_policies.put(id, owner, ());
        if let Some(old) = self.policies.get(&policy.namespace, &policy.name)
            && old.policy != policy
        {
            let (namespace, pods) = (&old.policy.namespace, &old.policy.pods);
            self.ends.note(namespace, pods, now);
        }
        let news = self.policies.apply(policy, since);
        self.policy_generation += u64::from(news);
    }

    fn remove_policy(&mut self, id: Id, now: Moment) -> bool {
        if self.listed_policies.remove(id).is_none() {
            return false;
        }
        let (namespace, name) = (self.names.text(id.0), self.names.text(id.1));
        if let Some(old) = self.policies.get(namespace, name) {
            let (namespace, pods) = (&old.policy.namespace, &old.policy.pods);
            self.ends.note(namespace, pods, now);
        }
        self.policies.delete(namespace, name, now);
        self.policy_generation += 1;
        true
    }

    /// Leaves each address once, without those that nobody can hold.
    fn keep_holdable(&mut self, addresses: &mut Vec<Addr>) {
        let mut kept: Vec<Addr> = Vec::with_capacity(addresses.len().min(ADDRESSES));
        for address in &*addresses {
            if !is_holdable(*address) || kept.len() == ADDRESSES {
                self.problems.refused_addresses += 1;
            } else if !kept.contains(address) {
                kept.push(*address);
            }
        }
        *addresses = kept;
    }
}

/// The workload label of a service.
pub(super) fn service_workload(name: &str) -> Text {
    format!("service/{name}").into()
}

/// Each address of a service once, as the better known of what it is.
fn service_addresses(service: &Service) -> Vec<(What, Addr)> {
    let addresses = [
        (What::LoadBalancer, &service.frontends),
        (What::ExternalIp, &service.external),
        (What::Service, &service.cluster),
    ];
    let mut held: Vec<(What, Addr)> = Vec::new();
    for (what, addresses) in addresses {
        for address in addresses {
            if held.iter().all(|(_, known)| known != address) {
                held.push((what, *address));
            }
        }
    }
    held
}

/// A pod's uid as a number; 0 if it is not known. Two uids are one number once in 2^64.
fn identity(uid: &str) -> u64 {
    if uid.is_empty() {
        return 0;
    }
    BuildHasherDefault::<DefaultHasher>::default()
        .hash_one(uid)
        .max(1)
}

const fn slot(kind: Kind) -> Option<usize> {
    match kind {
        Kind::LocalPod => Some(0),
        Kind::RemotePod => Some(1),
        Kind::Sandbox => Some(SANDBOX),
        _ => None,
    }
}

fn slot_number(slot: usize) -> u8 {
    u8::try_from(slot).unwrap_or(u8::MAX)
}

fn sight<T>(store: &Store<T>, now: Moment) -> Sight {
    Sight {
        now,
        first: !store.synced,
        found: store.relisting,
    }
}

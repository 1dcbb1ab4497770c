//! Ports that tell one service or pod from another at a shared address.

use std::collections::BTreeMap;

use aksnet_common::flow::Addr;

use super::{What, store::Id};
use crate::identify::object::Service;

/// Ports of one service that are kept at most, so that no object costs without bound.
const PORTS: usize = 1024;

/// Who has a port. More than one has it only by mistake; then the first to come is named.
type Claims<K, V> = BTreeMap<K, Vec<V>>;

/// The port tables of an index.
#[derive(Debug, Default)]
pub(super) struct Ports {
    services: Claims<(Addr, u8, u16), (What, Id)>,
    nodes: Claims<(u8, u16), Id>,
    /// The slot of the pod's store, and its id there.
    hosts: Claims<(u8, u16), (u8, Id)>,
    api_server: BTreeMap<(Addr, u16), u32>,
}

/// IP protocol number of TCP, in which load balancers ask for health.
const TCP: u8 = 6;

impl Ports {
    pub(super) fn service(&self, address: Addr, protocol: u8, port: u16) -> Option<(What, Id)> {
        first(&self.services, &(address, protocol, port))
    }

    pub(super) fn node(&self, protocol: u8, port: u16) -> Option<Id> {
        first(&self.nodes, &(protocol, port))
    }

    pub(super) fn host(&self, protocol: u8, port: u16) -> Option<(u8, Id)> {
        // The API server's account of a pod, if there is one.
        self.hosts.get(&(protocol, port))?.iter().min().copied()
    }

    pub(super) fn is_api_server(&self, address: Addr, port: u16) -> bool {
        self.api_server.contains_key(&(address, port))
    }

    pub(super) fn add_service(&mut self, id: Id, service: &Service) {
        for (key, value) in addressed(id, service) {
            add(&mut self.services, key, value);
        }
        for key in on_nodes(service) {
            add(&mut self.nodes, key, id);
        }
    }

    pub(super) fn remove_service(&mut self, id: Id, service: &Service) {
        for (key, value) in addressed(id, service) {
            remove(&mut self.services, &key, &value);
        }
        for key in on_nodes(service) {
            remove(&mut self.nodes, &key, &id);
        }
    }

    pub(super) fn add_host(&mut self, slot: u8, id: Id, ports: &[(u16, u8)]) {
        for (port, protocol) in ports.iter().take(PORTS) {
            add(&mut self.hosts, (*protocol, *port), (slot, id));
        }
    }

    pub(super) fn remove_host(&mut self, slot: u8, id: Id, ports: &[(u16, u8)]) {
        for (port, protocol) in ports.iter().take(PORTS) {
            remove(&mut self.hosts, &(*protocol, *port), &(slot, id));
        }
    }

    /// Exchanges the API server's endpoints that one slice tells. Whether any came or went.
    pub(super) fn exchange_api(&mut self, old: &[(Addr, u16)], new: &[(Addr, u16)]) -> bool {
        for key in new {
            *self.api_server.entry(*key).or_default() += 1;
        }
        for key in old {
            if let Some(uses) = self.api_server.get_mut(key) {
                *uses -= 1;
                if *uses == 0 {
                    self.api_server.remove(key);
                }
            }
        }
        old != new
    }
}

/// What a service has at each of its addresses. A frontend and an external address are the better known.
fn addressed(id: Id, service: &Service) -> impl Iterator<Item = ((Addr, u8, u16), (What, Id))> {
    let addresses = [
        (What::LoadBalancer, &service.frontends),
        (What::ExternalIp, &service.external),
        (What::Service, &service.cluster),
    ];
    addresses.into_iter().flat_map(move |(what, addresses)| {
        addresses.iter().flat_map(move |address| {
            let ports = service.ports.iter().take(PORTS);
            ports.map(move |port| ((*address, port.protocol, port.port), (what, id)))
        })
    })
}

fn on_nodes(service: &Service) -> impl Iterator<Item = (u8, u16)> {
    let ports = service.ports.iter().take(PORTS);
    ports
        .map(|port| (port.protocol, port.node_port))
        .chain([(TCP, service.health_check_port)])
        .filter(|(_, port)| *port != 0)
}

fn first<K: Ord, V: Copy>(claims: &Claims<K, V>, key: &K) -> Option<V> {
    claims.get(key)?.first().copied()
}

fn add<K: Ord, V: PartialEq>(claims: &mut Claims<K, V>, key: K, value: V) {
    let claims = claims.entry(key).or_default();
    if !claims.contains(&value) {
        claims.push(value);
    }
}

fn remove<K: Ord, V: PartialEq>(claims: &mut Claims<K, V>, key: &K, value: &V) {
    if let Some(holders) = claims.get_mut(key) {
        holders.retain(|holder| holder != value);
        if holders.is_empty() {
            claims.remove(key);
        }
    }
}

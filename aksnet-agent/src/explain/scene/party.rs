//! A *party*: one who is meant by a name or an address. A workload and a service stand for several: their pods.

use std::net::IpAddr;

use super::{Offer, Scene};
use crate::{
    config::suggest::hint,
    exit::{Exit, Failure},
    explain::question::{Asked, AskedPort},
    identify::object::{Pod, Service, Text},
    policy::words::Protocol,
};

/// One who is meant.
#[derive(Debug)]
pub(super) struct Party<'s> {
    /// Its name, or the address that was asked for.
    pub(super) label: String,
    pub(super) who: Meant<'s>,
    pub(super) addresses: Vec<IpAddr>,
    /// Container ports that have a name, also of a pod in its node's network.
    named_ports: &'s [(Text, u8, u16)],
}

#[derive(Debug)]
pub(super) enum Meant<'s> {
    Pod(&'s Pod),
    UnknownPod,
    /// A node, or a pod in its network; its name, if that is known.
    Node(Option<&'s str>),
    External,
}

/// Whom a name or an address stands for.
struct Found<'s> {
    /// The name with its namespace, or the address.
    label: String,
    /// Whose the address is, unless it is a service's.
    address: Option<Party<'s>>,
    /// The pod of that name, or the pods of the workload of that name.
    pods: Vec<&'s Pod>,
    /// The service of that name or address.
    service: Option<&'s Offer>,
}

impl Scene {
    /// Who sends.
    pub(super) fn clients(
        &self,
        from: &str,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Party<'_>>, Failure> {
        let found = self.find(from)?;
        if let Some(party) = found.address {
            return Ok(vec![party]);
        }
        if let (Some(offer), []) = (found.service, &*found.pods) {
            let (pods, label) = (listed(names(&self.backends(offer))), offer.label());
            return Err(Failure::new(
                Exit::Usage,
                format_args!(
                    "{label} is a service, which sends nothing; name one of its pods: {pods}"
                ),
            ));
        }
        notes.extend(self.workload_note(&found));
        Ok(found.pods.into_iter().map(party_of).collect())
    }

    /// Who is meant as the server, each with its port.
    pub(super) fn servers(
        &self,
        to: &str,
        asked: &Asked,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(Party<'_>, u16)>, Failure> {
        let found = self.find(to)?;
        let mut service = found.service;
        if let (Some(offer), [_, ..]) = (service, &*found.pods) {
            let of_pod = self.declares(&found.pods, asked);
            if of_pod || offer.port(asked).is_none() {
                service = None;
                // With a headless one it makes no difference who is meant.
                if of_pod && offer.port(asked).is_some() && !offer.headless {
                    notes.push(format!(
                        "{} is also a service; the pod or workload is meant here, and the port is the pod's",
                        found.label
                    ));
                }
            }
        }
        if let Some(offer) = service {
            let (pods, target) = self.behind(offer, asked)?;
            let reached = reached(pods.into_iter().map(party_of), &target, asked.protocol)?;
            notes.push(match &*reached {
                [(party, port)] => format!(
                    "{} is a service; {} is behind it, on port {port}",
                    offer.label(),
                    party.label
                ),
                several => format!(
                    "{} is a service; the verdict holds for all {} pods behind it: {}",
                    offer.label(),
                    several.len(),
                    listed(several.iter().map(|(party, _)| party.label.clone()))
                ),
            });
            return Ok(reached);
        }
        notes.extend(self.workload_note(&found));
        let pods = found.pods.into_iter().map(party_of);
        let parties = found.address.into_iter().chain(pods);
        reached(parties, &asked.port, asked.protocol)
    }

    /// That pods stand for a workload, unless it is a pod's own name.
    fn workload_note(&self, found: &Found<'_>) -> Option<String> {
        let label = &found.label;
        match &*found.pods {
            [] => None,
            [pod] if self.pods.contains_key(&key(pod)) && name(pod) == *label => None,
            [pod] => Some(format!("{label} is a workload; its pod is {}", name(pod))),
            pods => Some(format!(
                "{label} is a workload; the verdict holds for all {} pods of it: {}",
                pods.len(),
                listed(names(pods))
            )),
        }
    }

    fn find(&self, asked: &str) -> Result<Found<'_>, Failure> {
        if let Ok(address) = asked.parse::<IpAddr>() {
            return Ok(self.by_address(asked, address.to_canonical()));
        }
        let (namespace, name) = asked.split_once('/').unwrap_or((&self.namespace, asked));
        let label = format!("{namespace}/{name}");
        let key = (Text::from(namespace), Text::from(name));
        let pods = match self.pods.get(&key) {
            Some(pod) => vec![pod],
            None => self.of_workload(&key),
        };
        let service = self.services.get(&key);
        if service.is_some() || !pods.is_empty() {
            return Ok(Found {
                label,
                address: None,
                pods,
                service,
            });
        }
        let workloads = self.pods.values().filter(|pod| !pod.finished);
        let workloads = workloads.map(|pod| format!("{}/{}", pod.namespace, pod.workload));
        let known = self.pods.keys().chain(self.services.keys());
        let known = known.map(|(space, name)| format!("{space}/{name}"));
        let known: Vec<String> = known.chain(workloads).collect();
        let hint = hint(&label, known.iter().map(String::as_str));
        Err(Failure::new(
            Exit::NoInput,
            format_args!(
                "no pod, workload or service is called {label} (pods: {}, services: {}){hint}",
                self.pods.len(),
                self.services.len()
            ),
        ))
    }

    /// The pods that a workload has now.
    fn of_workload(&self, (namespace, workload): &(Text, Text)) -> Vec<&Pod> {
        let is_of =
            |pod: &&Pod| pod.namespace == *namespace && pod.workload == *workload && !pod.finished;
        self.pods.values().filter(is_of).collect()
    }

    fn by_address(&self, asked: &str, address: IpAddr) -> Found<'_> {
        let has = |addresses: &[aksnet_common::flow::Addr]| addresses.contains(&address.into());
        let pods = || self.pods.values().filter(|pod| !pod.finished);
        let found = |address, service| Found {
            label: asked.to_owned(),
            address,
            pods: Vec::new(),
            service,
        };
        let party = |who, named_ports| {
            let party = Party {
                label: asked.to_owned(),
                who,
                addresses: vec![address],
                named_ports,
            };
            found(Some(party), None)
        };
        if let Some(pod) = pods().find(|pod| !pod.host_network && has(&pod.addresses)) {
            return party(Meant::Pod(pod), &pod.named_ports);
        }
        if let Some(node) = self.nodes.iter().find(|node| has(&node.addresses)) {
            return party(Meant::Node(Some(&node.name)), &[]);
        }
        if let Some(pod) = pods().find(|pod| has(&pod.addresses)) {
            return party(node_of(pod), &[]);
        }
        let of_service = |offer: &&Offer| {
            let Service {
                cluster,
                frontends,
                external,
                ..
            } = &offer.service;
            has(cluster) || has(frontends) || has(external)
        };
        if let Some(offer) = self.services.values().find(of_service) {
            return found(None, Some(offer));
        }
        let mut ranges = self.nodes.iter().flat_map(|node| &node.pod_cidrs);
        if ranges.any(|range| range.contains(&address)) {
            return party(Meant::UnknownPod, &[]);
        }
        party(Meant::External, &[])
    }

    /// The pods that a service selects.
    fn backends(&self, offer: &Offer) -> Vec<&Pod> {
        let Service {
            namespace,
            selector,
            ..
        } = &offer.service;
        let selected = |pod: &&Pod| {
            pod.namespace == *namespace
                && !pod.finished
                && !selector.is_empty()
                && selector.iter().all(|pair| pod.labels.contains(pair))
        };
        self.pods.values().filter(selected).collect()
    }

    /// The pods behind a service, and which port of theirs is reached.
    fn behind(&self, offer: &Offer, asked: &Asked) -> Result<(Vec<&Pod>, AskedPort), Failure> {
        let label = offer.label();
        let refuse = |why: &str| Failure::new(Exit::Usage, format_args!("{label} {why}"));
        let backends = self.backends(offer);
        if backends.is_empty() {
            return Err(refuse(if offer.service.selector.is_empty() {
                "is a service without a selector; name a pod or an address that it leads to"
            } else {
                "is a service that selects none of the pods; name a pod"
            }));
        }
        let Some(target) = offer.target(asked) else {
            let ports = offer.service.ports.iter();
            let has = ports.map(|port| format!("{}/{}", port.port, Protocol(port.protocol)));
            return Err(refuse(&format!(
                "is a service that has no such port; it has: {}",
                listed(has)
            )));
        };
        Ok((backends, target))
    }

    /// Whether a container of one of these pods declares the port, which it may have without that.
    fn declares(&self, pods: &[&Pod], asked: &Asked) -> bool {
        pods.iter().any(|pod| match &asked.port {
            AskedPort::None => false,
            AskedPort::Number(number) => self
                .declared
                .get(&key(pod))
                .is_some_and(|ports| ports.contains(&(*number, asked.protocol))),
            AskedPort::Name(name) => named(&pod.named_ports, name, asked.protocol).is_some(),
        })
    }
}

fn key(pod: &Pod) -> (Text, Text) {
    (pod.namespace.clone(), pod.name.clone())
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn names(pods: &[&Pod]) -> impl Iterator<Item = String> {
    pods.iter().map(|pod| name(pod))
}

fn party_of(pod: &Pod) -> Party<'_> {
    Party {
        label: name(pod),
        who: if pod.host_network {
            node_of(pod)
        } else {
            Meant::Pod(pod)
        },
        addresses: pod.addresses.iter().map(|one| IpAddr::from(*one)).collect(),
        named_ports: &pod.named_ports,
    }
}

/// A pod in its node's network is the node, and which one that is may not be known.
fn node_of(pod: &Pod) -> Meant<'_> {
    Meant::Node((!pod.node.is_empty()).then_some(&*pod.node))
}

/// The first few names.
pub(super) fn listed(mut names: impl Iterator<Item = String>) -> String {
    let first: Vec<String> = names.by_ref().take(5).collect();
    match names.count() {
        0 if first.is_empty() => "none".to_owned(),
        0 => first.join(", "),
        more => format!("{}, and {more} more", first.join(", ")),
    }
}

fn named(ports: &[(Text, u8, u16)], name: &str, protocol: u8) -> Option<u16> {
    let mut of_name = ports.iter();
    let of_name = of_name.find(|(one, of, _)| **one == *name && *of == protocol);
    of_name.map(|(.., port)| *port)
}

/// Servers with the number of the port that is reached on each.
fn reached<'s>(
    parties: impl Iterator<Item = Party<'s>>,
    port: &AskedPort,
    protocol: u8,
) -> Result<Vec<(Party<'s>, u16)>, Failure> {
    let with_port = |party| port_of(&party, port, protocol).map(|port| (party, port));
    parties.map(with_port).collect()
}

/// The port's number on that server.
fn port_of(party: &Party<'_>, port: &AskedPort, protocol: u8) -> Result<u16, Failure> {
    let name = match port {
        AskedPort::None => return Ok(0),
        AskedPort::Number(number) => return Ok(*number),
        AskedPort::Name(name) => name,
    };
    if let Some(port) = named(party.named_ports, name, protocol) {
        return Ok(port);
    }
    let has = party
        .named_ports
        .iter()
        .map(|(name, of, port)| format!("{name} ({port}/{})", Protocol(*of)));
    let (label, has) = (&party.label, listed(has));
    Err(Failure::new(
        Exit::NoInput,
        format_args!(
            "{label} has no {} port named '{name}'; named ports: {has}",
            Protocol(protocol)
        ),
    ))
}

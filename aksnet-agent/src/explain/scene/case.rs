//! A *case*: the question, with its parties found in the scene.

use std::net::{IpAddr, Ipv4Addr};

use aksnet_common::packet::{ICMP, ICMPV6};

use super::{Offer, Scene};
use crate::{
    config::suggest::hint,
    exit::{Exit, Failure},
    explain::question::{Asked, AskedPort},
    identify::object::{Pod, Service, Text},
    policy::{
        flow::{End, Flow, Pod as PolicyPod, Who},
        words::Protocol,
    },
};

/// Not known.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Who is meant.
#[derive(Debug)]
pub struct Party<'s> {
    /// As it was asked for.
    asked: String,
    who: Meant<'s>,
    addresses: Vec<IpAddr>,
}

#[derive(Debug)]
enum Meant<'s> {
    Pod(&'s Pod),
    UnknownPod,
    /// A node, or a pod in its network; its name, if that is known.
    Node(Option<&'s str>),
    External,
}

/// A question with its parties found.
#[derive(Debug)]
pub struct Case<'s> {
    scene: &'s Scene,
    from: Party<'s>,
    to: Party<'s>,
    protocol: u8,
    port: u16,
    by_node_port: bool,
    /// What is to be known about the answer.
    pub notes: Vec<String>,
}

impl Scene {
    /// Finds who is meant, and by which port.
    ///
    /// # Errors
    /// When a name is nobody's, or leads to several that differ.
    pub fn case(
        &self,
        from: &str,
        to: &str,
        asked: &Asked,
        by_node_port: bool,
    ) -> Result<Case<'_>, Failure> {
        let mut notes = Vec::new();
        let from = match self.find(from)? {
            Found::Party(party) => party,
            Found::Service(offer) => {
                let (pods, label) = (self.backends(offer), label_of(offer));
                let pods = listed(
                    pods.iter()
                        .map(|pod| format!("{}/{}", pod.namespace, pod.name)),
                );
                return Err(Failure::new(
                    Exit::Usage,
                    format_args!(
                        "{label} is a service, which sends nothing; name one of its pods: {pods}"
                    ),
                ));
            }
        };
        let (to, port) = match self.find(to)? {
            Found::Party(party) => {
                let port = port_of(&party, &asked.port, asked.protocol)?;
                (party, port)
            }
            Found::Service(offer) => {
                let (pod, port) = self.behind(offer, asked)?;
                let label = label_of(offer);
                notes.push(format!(
                    "{label} is a service; {}/{} is behind it, on port {port}",
                    pod.namespace, pod.name
                ));
                (party_of(pod, to.to_owned()), port)
            }
        };
        self.remark(&from, &to, &mut notes);
        let is_v6 = |party: &Party<'_>| party.addresses.first().is_some_and(IpAddr::is_ipv6);
        let protocol = match asked.protocol {
            ICMP if is_v6(&to) => ICMPV6,
            other => other,
        };
        Ok(Case {
            scene: self,
            from,
            to,
            protocol,
            port,
            by_node_port,
            notes,
        })
    }

    /// What the answer leaves open.
    fn remark(&self, from: &Party<'_>, to: &Party<'_>, notes: &mut Vec<String>) {
        for party in [from, to] {
            match &party.who {
                Meant::Node(None) => notes.push(format!(
                    "{} uses its node's network, and which node is not known: taken for another one than the pod's",
                    party.asked
                )),
                Meant::Pod(pod) if !self.namespaces.contains_key(&pod.namespace) => notes.push(format!(
                    "namespace {} is not among the objects: of its labels only its name is known",
                    pod.namespace
                )),
                _ => {}
            }
        }
        notes.dedup();
        for (kind, count) in &self.unread {
            notes.push(format!("{count} of kind {kind}: not evaluated"));
        }
        if self.policies.is_empty() {
            notes.push("there is no network policy among the objects".to_owned());
        }
    }

    fn find(&self, asked: &str) -> Result<Found<'_>, Failure> {
        if let Ok(address) = asked.parse::<IpAddr>() {
            return Ok(self.by_address(asked, address.to_canonical()));
        }
        let (namespace, name) = asked.split_once('/').unwrap_or((&self.namespace, asked));
        let key = (Text::from(namespace), Text::from(name));
        if let Some(pod) = self.pods.get(&key) {
            return Ok(Found::Party(party_of(pod, format!("{namespace}/{name}"))));
        }
        if let Some(offer) = self.services.get(&key) {
            return Ok(Found::Service(offer));
        }
        let known = self.pods.keys().chain(self.services.keys());
        let known: Vec<String> = known
            .map(|(space, name)| format!("{space}/{name}"))
            .collect();
        let hint = hint(
            &format!("{namespace}/{name}"),
            known.iter().map(String::as_str),
        );
        Err(Failure::new(
            Exit::NoInput,
            format_args!(
                "no pod, workload or service is called {namespace}/{name} (pods: {}, services: {}){hint}",
                self.pods.len(),
                self.services.len()
            ),
        ))
    }

    fn by_address(&self, asked: &str, address: IpAddr) -> Found<'_> {
        let has = |addresses: &[aksnet_common::flow::Addr]| addresses.contains(&address.into());
        let pods = || self.pods.values().filter(|pod| !pod.finished);
        let party = |who| {
            Found::Party(Party {
                asked: asked.to_owned(),
                who,
                addresses: vec![address],
            })
        };
        if let Some(pod) = pods().find(|pod| !pod.host_network && has(&pod.addresses)) {
            return party(Meant::Pod(pod));
        }
        if let Some(node) = self.nodes.iter().find(|node| has(&node.addresses)) {
            return party(Meant::Node(Some(&node.name)));
        }
        if let Some(pod) = pods().find(|pod| has(&pod.addresses)) {
            return party(Meant::Node(Some(&pod.node)));
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
            return Found::Service(offer);
        }
        let mut ranges = self.nodes.iter().flat_map(|node| &node.pod_cidrs);
        if ranges.any(|range| range.contains(&address)) {
            return party(Meant::UnknownPod);
        }
        party(Meant::External)
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

    /// The pod behind a service that stands for all of them, and its port.
    fn behind(&self, offer: &Offer, asked: &Asked) -> Result<(&Pod, u16), Failure> {
        let label = label_of(offer);
        let refuse = |why: String| Failure::new(Exit::Usage, format_args!("{label} {why}"));
        let backends = self.backends(offer);
        let Some(first) = backends.first() else {
            let why = if offer.service.selector.is_empty() {
                "is a service without a selector; name a pod or an address that it leads to"
            } else {
                "is a service that selects none of the pods; name a pod"
            };
            return Err(refuse(why.to_owned()));
        };
        let Service { ports, .. } = &offer.service;
        let of_protocol = ports.iter().filter(|port| port.protocol == asked.protocol);
        let mut matching = of_protocol.filter(|port| match &asked.port {
            AskedPort::Number(number) => port.port == *number,
            AskedPort::Name(name) => *port.name == **name,
            AskedPort::None => false,
        });
        let Some(port) = matching.next().map(|port| port.port) else {
            let has = ports
                .iter()
                .map(|port| format!("{}/{}", port.port, Protocol(port.protocol)));
            let has = listed(has);
            return Err(refuse(format!(
                "is a service that has no such port; it has: {has}"
            )));
        };
        let target = offer
            .targets
            .iter()
            .find(|(one, protocol, _)| (*one, *protocol) == (port, asked.protocol));
        let target = target.map_or(AskedPort::Number(port), |(.., target)| target.clone());
        let mut reached = Vec::new();
        for pod in &backends {
            let party = party_of(pod, format!("{}/{}", pod.namespace, pod.name));
            reached.push(port_of(&party, &target, asked.protocol)?);
        }
        let same = |(pod, port): (&&Pod, &u16)| {
            pod.labels == first.labels
                && pod.named_ports == first.named_ports
                && pod.host_network == first.host_network
                && *port == reached[0]
        };
        if !backends.iter().zip(&reached).all(same) {
            let pods = backends
                .iter()
                .map(|pod| format!("{}/{}", pod.namespace, pod.name));
            let pods = listed(pods);
            return Err(refuse(format!(
                "is a service whose pods differ; name one of them: {pods}"
            )));
        }
        Ok((first, reached[0]))
    }
}

enum Found<'s> {
    Party(Party<'s>),
    Service(&'s Offer),
}

fn party_of(pod: &Pod, asked: String) -> Party<'_> {
    let who = if pod.host_network {
        Meant::Node((!pod.node.is_empty()).then_some(&*pod.node))
    } else {
        Meant::Pod(pod)
    };
    Party {
        asked,
        who,
        addresses: pod.addresses.iter().map(|one| IpAddr::from(*one)).collect(),
    }
}

fn label_of(offer: &Offer) -> String {
    format!("{}/{}", offer.service.namespace, offer.service.name)
}

/// The first few names.
fn listed(names: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = names.collect();
    match &*all {
        [] => "none".to_owned(),
        all if all.len() <= 5 => all.join(", "),
        all => format!("{}, and {} more", all[..5].join(", "), all.len() - 5),
    }
}

/// The port's number on that server.
fn port_of(party: &Party<'_>, port: &AskedPort, protocol: u8) -> Result<u16, Failure> {
    let name = match port {
        AskedPort::None => return Ok(0),
        AskedPort::Number(number) => return Ok(*number),
        AskedPort::Name(name) => name,
    };
    let named = match &party.who {
        Meant::Pod(pod) => &*pod.named_ports,
        _ => &[],
    };
    let of_name = named
        .iter()
        .find(|(one, of, _)| **one == **name && *of == protocol);
    if let Some((.., port)) = of_name {
        return Ok(*port);
    }
    let has = named
        .iter()
        .map(|(name, of, port)| format!("{name} ({port}/{})", Protocol(*of)));
    let (asked, has) = (&party.asked, listed(has));
    Err(Failure::new(
        Exit::NoInput,
        format_args!(
            "{asked} has no {} port named '{name}'; named ports: {has}",
            Protocol(protocol)
        ),
    ))
}

impl Case<'_> {
    /// The flow that is asked about.
    #[must_use]
    pub fn flow(&self) -> Flow<'_> {
        let (src, dst) = self.addresses();
        Flow {
            src: self.end(&self.from, &self.to, src),
            dst: self.end(&self.to, &self.from, dst),
            protocol: self.protocol,
            port: self.port,
            by_node_port: self.by_node_port,
        }
    }

    /// An address of each, of one family if they share one.
    fn addresses(&self) -> (IpAddr, IpAddr) {
        let (from, to) = (&self.from.addresses, &self.to.addresses);
        for src in from {
            if let Some(dst) = to.iter().find(|dst| dst.is_ipv4() == src.is_ipv4()) {
                return (*src, *dst);
            }
        }
        let first = |all: &[IpAddr]| all.first().copied().unwrap_or(NO_ADDRESS);
        (first(from), first(to))
    }

    fn end<'a>(&'a self, party: &'a Party<'_>, other: &Party<'_>, address: IpAddr) -> End<'a> {
        let who = match &party.who {
            Meant::Pod(pod) => Who::Pod(PolicyPod {
                namespace: &pod.namespace,
                name: &pod.name,
                labels: &pod.labels,
                namespace_labels: self.scene.namespaces.get(&pod.namespace).map(|one| &**one),
                named_ports: Some(&pod.named_ports),
            }),
            Meant::UnknownPod => Who::UnknownPod,
            Meant::Node(node) => Who::Node {
                this: match (node, &other.who) {
                    (Some(node), Meant::Pod(pod)) => *pod.node == **node && !node.is_empty(),
                    _ => false,
                },
            },
            Meant::External => Who::External,
        };
        End { address, who }
    }
}

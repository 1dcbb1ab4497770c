//! The *scene*: the pods, namespaces, services, nodes and policies that somebody asks about. Pure.

// Who is meant by a name or an address.
mod party;

// The question about them.
mod case;

use std::collections::BTreeMap;

use aksnet_common::packet::{SCTP, TCP, UDP};
use serde_json::Value;

pub use self::case::{Case, Cases};

use super::{
    question::{Asked, AskedPort},
    template,
};
use crate::{
    exit::{Exit, Failure},
    identify::{
        object::{Kind, Labels, Node, Object, Pod, Service, Text},
        reduce::Reducer,
    },
    policy::{index::Policies, words::Protocol},
};

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Scene {
    reducer: Reducer,
    /// Namespace given to what has none.
    namespace: String,
    pods: BTreeMap<(Text, Text), Pod>,
    /// Ports that containers of a pod declare, named or not: port, IP protocol number.
    declared: BTreeMap<(Text, Text), Vec<(u16, u8)>>,
    services: BTreeMap<(Text, Text), Offer>,
    namespaces: BTreeMap<Text, Labels>,
    nodes: Vec<Node>,
    policies: Policies,
    /// Policies of other kinds that were met, `kind (API group)`, with how many of each.
    unread: BTreeMap<String, usize>,
    /// What was left out of an object, or replaced another one, for people.
    warnings: Vec<String>,
}

/// A service with the ports of its pods that its own lead to.
#[derive(Debug)]
struct Offer {
    service: Service,
    /// Port, protocol, and `targetPort`.
    targets: Vec<(u16, u8, AskedPort)>,
    /// `clusterIP: None`: its name leads to the pods' own addresses, and nobody translates.
    headless: bool,
}

impl Offer {
    fn label(&self) -> String {
        format!("{}/{}", self.service.namespace, self.service.name)
    }

    /// Which of its ports is asked for.
    fn port(&self, asked: &Asked) -> Option<u16> {
        let mut ports = self.service.ports.iter();
        let port = ports.find(|port| {
            port.protocol == asked.protocol
                && match &asked.port {
                    AskedPort::Number(number) => port.port == *number,
                    AskedPort::Name(name) => *port.name == **name,
                    AskedPort::None => false,
                }
        });
        port.map(|port| port.port)
    }

    /// The port of the pods that is reached. Where nobody translates, that is the one that is dialled, whichever it is;
    /// who asks for a name is told the pods' port (SRV; Kubernetes DNS specification, 2.4.2).
    fn target(&self, asked: &Asked) -> Option<AskedPort> {
        if self.headless && !matches!(asked.port, AskedPort::Name(_)) {
            return Some(asked.port.clone());
        }
        let port = self.port(asked)?;
        let mut targets = self.targets.iter();
        let target = targets.find(|(one, of, _)| (*one, *of) == (port, asked.protocol));
        Some(target.map_or(AskedPort::Number(port), |(.., target)| target.clone()))
    }
}

impl Scene {
    /// A scene whose objects are of this namespace where they name none.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            ..Self::default()
        }
    }

    /// The policies.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// What was left out, one line each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Takes an object, or a list of them. What is of no interest is left.
    ///
    /// # Errors
    /// When it is no Kubernetes object.
    pub fn take(&mut self, value: Value, place: &str) -> Result<(), Failure> {
        self.take_as(value, place, "", "")
    }

    /// Takes an object of this kind, unless it says of which it is itself: items of a list do not.
    ///
    /// # Errors
    /// When it is no Kubernetes object.
    pub fn take_as(
        &mut self,
        mut value: Value,
        place: &str,
        api: &str,
        kind: &str,
    ) -> Result<(), Failure> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let kind = text("kind").unwrap_or_else(|| kind.to_owned());
        let api = text("apiVersion").unwrap_or_else(|| api.to_owned());
        if !value.is_object() || kind.is_empty() {
            return Err(Failure::new(
                Exit::Data,
                format_args!("{place}: is no Kubernetes object: it has no kind"),
            ));
        }
        if let (Some(of), Value::Array(items)) = (kind.strip_suffix("List"), value["items"].take())
        {
            for item in items {
                self.take_as(item, place, &api, of)?;
            }
            return Ok(());
        }
        let group = api.split_once('/').map_or("", |(group, _)| group);
        if !matches!((group, kind.as_str()), ("", "Namespace" | "Node")) {
            self.give_namespace(&mut value);
        }
        let read_as = match (group, kind.as_str()) {
            ("", "Pod") => Kind::LocalPod,
            ("", "Service") => Kind::Service,
            ("", "Namespace") => Kind::Namespace,
            ("", "Node") => Kind::Node,
            ("networking.k8s.io", "NetworkPolicy") => Kind::Policy,
            (group, other) if other.ends_with("NetworkPolicy") => {
                let group = if group.is_empty() { "no group" } else { group };
                let kind = format!("{other} ({group})");
                *self.unread.entry(kind).or_default() += 1;
                return Ok(());
            }
            (group, other) => match template::pod(group, other, &value) {
                Some(pod) => {
                    value = pod;
                    Kind::LocalPod
                }
                None => return Ok(()),
            },
        };
        self.read(read_as, &value, &kind, place);
        Ok(())
    }

    fn give_namespace(&self, value: &mut Value) {
        if let Some(metadata) = value["metadata"].as_object_mut() {
            let namespace = metadata.entry("namespace").or_insert(Value::Null);
            if namespace.is_null() || namespace.as_str() == Some("") {
                *namespace = Value::from(self.namespace.as_str());
            }
        }
    }

    fn read(&mut self, read_as: Kind, value: &Value, kind: &str, place: &str) {
        // What serde_json wrote it reads.
        let json = value.to_string();
        let Ok(reduced) = self.reducer.object(read_as, json.as_bytes()) else {
            return;
        };
        if !reduced.odd.is_empty() {
            let (odd, label) = (reduced.odd.join(", "), &reduced.label);
            self.warnings.push(format!(
                "{place}: {kind} {label}: cannot be read and is left out: {odd}"
            ));
        }
        let twice = match reduced.object {
            Some(Object::Pod(pod)) => {
                let key = (pod.namespace.clone(), pod.name.clone());
                self.declared.insert(key.clone(), declared(value));
                self.pods.insert(key, pod).is_some()
            }
            Some(Object::Service(service)) => {
                let key = (service.namespace.clone(), service.name.clone());
                let offer = Offer {
                    targets: targets(value, &service),
                    headless: value["spec"]["clusterIP"] == "None",
                    service,
                };
                self.services.insert(key, offer).is_some()
            }
            Some(Object::Namespace(space)) => {
                self.namespaces.insert(space.name, space.labels).is_some()
            }
            Some(Object::Policy(policy)) => {
                let there = self.policies.get(&policy.namespace, &policy.name).is_some();
                self.policies.apply(policy, 0);
                there
            }
            Some(Object::Node(node)) => {
                self.nodes.push(node);
                false
            }
            Some(Object::Slice(_)) | None => false,
        };
        if twice {
            let label = &reduced.label;
            self.warnings.push(format!(
                "{place}: {kind} {label}: replaces an earlier one of that name"
            ));
        }
    }
}

/// Ports that a pod's containers declare.
fn declared(value: &Value) -> Vec<(u16, u8)> {
    let containers = ["/spec/containers", "/spec/initContainers"]
        .into_iter()
        .filter_map(|path| value.pointer(path)?.as_array())
        .flatten();
    let ports = containers
        .filter_map(|one| one["ports"].as_array())
        .flatten();
    let port = |port: &Value| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let mut known = [TCP, UDP, SCTP].into_iter();
        let protocol = known.find(|one| Protocol(*one).to_string() == protocol)?;
        let number = port["containerPort"].as_u64()?;
        Some((u16::try_from(number).ok()?, protocol))
    };
    ports.filter_map(port).collect()
}

/// `targetPort` of each port of a service, which the agent itself does not need.
fn targets(value: &Value, service: &Service) -> Vec<(u16, u8, AskedPort)> {
    let raw = value.pointer("/spec/ports").and_then(Value::as_array);
    let raw = raw.map(Vec::as_slice).unwrap_or_default();
    let target = |of: &crate::identify::object::ServicePort| {
        let same = |one: &&Value| {
            let protocol = one["protocol"].as_str().unwrap_or("TCP");
            one["port"] == of.port && Protocol(of.protocol).to_string() == protocol
        };
        let target = &raw.iter().find(same)?["targetPort"];
        let number = target.as_u64().and_then(|port| u16::try_from(port).ok());
        let target = match (number, target.as_str()) {
            (Some(0) | None, None) => AskedPort::Number(of.port),
            (Some(number), _) => AskedPort::Number(number),
            (None, Some(name)) => AskedPort::Name(name.to_owned()),
        };
        Some((of.port, of.protocol, target))
    };
    service.ports.iter().filter_map(target).collect()
}

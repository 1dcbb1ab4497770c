//! What policies *say of a flow*: whether the client's pod may send it, and whether the server's pod may get it.
//!
//! The rules are those of k8s.io/api `networking/v1/types.go`. What is not known makes a rule that depends on it neither
//! match nor fail: a flow is allowed where a rule surely matches, denied where all surely fail, and otherwise
//! undetermined (Kleene's three-valued logic). Nothing is allocated unless a flow is denied or undetermined.

use std::net::IpAddr;

use super::{
    engine::{Engine, Traits},
    flow::{End, Flow, Pod, Who},
    index::{Policies, Version, When},
    model::{NetworkPolicy, Operator, Peers, Port, Ports, Rule, Selector, Side, label},
};

/// The label that every namespace has, with its name (Kubernetes documentation, "Well-Known Labels"). The API server
/// sets it, so that a manifest lacks it.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What the policies say of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<'p> {
    /// Of the client's pod.
    pub egress: Judgement<'p>,
    /// Of the server's pod.
    pub ingress: Judgement<'p>,
}

/// A verdict in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Both sides let it pass.
    Allowed,
    /// One of the sides does not.
    Denied,
    /// That depends on something that is not known.
    Undetermined,
}

impl Outcome {
    /// Of both sides: denied if one denies, allowed if both let it pass.
    pub(super) const fn of_both(egress: &Judgement<'_>, ingress: &Judgement<'_>) -> Self {
        match (egress.outcome(), ingress.outcome()) {
            (Self::Denied, _) | (_, Self::Denied) => Self::Denied,
            (Self::Allowed, Self::Allowed) => Self::Allowed,
            _ => Self::Undetermined,
        }
    }
}

/// What they say of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement<'p> {
    /// No policy can say anything of it: it passes.
    NotSubject(NotSubject),
    /// No policy isolates the pod in this direction: it passes.
    NotIsolated,
    /// A rule allows it. Of several, one.
    Allowed {
        /// Whose rule.
        policy: &'p NetworkPolicy,
        /// Which of its rules for this direction, from 0.
        rule: usize,
    },
    /// Policies isolate the pod, and no rule allows it.
    Denied(Vec<&'p NetworkPolicy>),
    /// Policies isolate the pod, or may do so, and whether a rule allows it is not known.
    Undetermined {
        /// The policies that isolate the pod; none if that is what is not known.
        policies: Vec<&'p NetworkPolicy>,
        /// What is not known.
        why: Unknown,
    },
}

/// Why policies have nothing to say of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotSubject {
    /// This end is outside of the cluster.
    External,
    /// This end is a node, or a pod in its network.
    HostNetwork,
    /// This end is a service's address that nobody translated.
    Service,
    /// A pod always reaches itself.
    Itself,
    /// A pod's own node always reaches it.
    OwnNode,
    /// The engine always lets a pod reach its own node.
    ToOwnNode,
    /// The engine does not judge IPv6.
    Ipv6,
    /// The engine does not judge what came by a node port with `externalTrafficPolicy: Cluster`.
    NodePort,
}

/// What is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unknown {
    /// Which pod it is at the side's own end.
    Pod,
    /// Which pod it is at the other end.
    Peer,
    /// The address of the other end.
    Address,
    /// The labels of the other end's namespace.
    NamespaceLabels,
    /// The named ports of the server's pod.
    NamedPorts,
}

/// Whether something matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// It does not.
    No,
    /// That depends.
    Maybe(Unknown),
    /// It does.
    Yes,
}

impl Match {
    pub(super) const fn sure(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }

    /// Both must match.
    pub(super) fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::No => Self::No,
            Self::Yes => other(),
            Self::Maybe(_) => match other() {
                Self::No => Self::No,
                Self::Yes | Self::Maybe(_) => self,
            },
        }
    }

    /// One of them must match.
    fn any(all: impl Iterator<Item = Self>) -> Self {
        let mut best = Self::No;
        for one in all {
            match one {
                Self::Yes => return one,
                Self::Maybe(_) if best == Self::No => best = one,
                Self::Maybe(_) | Self::No => {}
            }
        }
        best
    }
}

impl<'p> Verdict<'p> {
    /// In one word: denied if one side denies, allowed if both let it pass.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::of_both(&self.egress, &self.ingress)
    }

    /// What is said of a side.
    #[must_use]
    pub const fn side(&self, side: Side) -> &Judgement<'p> {
        match side {
            Side::Egress => &self.egress,
            Side::Ingress => &self.ingress,
        }
    }
}

impl<'p> Judgement<'p> {
    /// In one word.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::NotSubject(_) | Self::NotIsolated | Self::Allowed { .. } => Outcome::Allowed,
            Self::Denied(_) => Outcome::Denied,
            Self::Undetermined { .. } => Outcome::Undetermined,
        }
    }

    /// The policies that isolate the pod where it is not allowed, by name.
    #[must_use]
    pub fn policies(&self) -> &[&'p NetworkPolicy] {
        match self {
            Self::Denied(policies) | Self::Undetermined { policies, .. } => policies,
            _ => &[],
        }
    }
}

/// A flow's side, with the ends told apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'f, 'a> {
    pub(super) flow: &'f Flow<'a>,
    pub(super) side: Side,
    pub(super) traits: Traits,
}

impl<'f, 'a> Seen<'f, 'a> {
    pub(super) fn new(flow: &'f Flow<'a>, side: Side, engine: Engine) -> Self {
        Self {
            flow,
            side,
            traits: engine.traits(),
        }
    }

    /// The end that policies of this side isolate.
    pub(super) const fn own(&self) -> &'f End<'a> {
        match self.side {
            Side::Egress => &self.flow.src,
            Side::Ingress => &self.flow.dst,
        }
    }

    /// The other end.
    pub(super) const fn peer(&self) -> &'f End<'a> {
        match self.side {
            Side::Egress => &self.flow.dst,
            Side::Ingress => &self.flow.src,
        }
    }

    /// Why policies have nothing to say of it; otherwise the pod, if it is known.
    fn subject(&self) -> Result<Option<&'f Pod<'a>>, NotSubject> {
        let pod = match &self.own().who {
            Who::Pod(pod) => Some(pod),
            Who::UnknownPod => None,
            Who::Node { .. } => return Err(NotSubject::HostNetwork),
            Who::External => return Err(NotSubject::External),
            Who::Service => return Err(NotSubject::Service),
        };
        if self.flow.is_to_itself() {
            return Err(NotSubject::Itself);
        }
        if matches!(self.peer().who, Who::Node { this: true }) {
            if self.side == Side::Ingress {
                return Err(NotSubject::OwnNode);
            }
            if self.traits.own_node_egress_free {
                return Err(NotSubject::ToOwnNode);
            }
        }
        if !self.traits.ipv6 && self.own().address.is_ipv6() {
            return Err(NotSubject::Ipv6);
        }
        if self.side == Side::Ingress && self.flow.by_node_port && !self.traits.node_port_ingress {
            return Err(NotSubject::NodePort);
        }
        Ok(pod)
    }

    /// Whether a rule of a policy of that namespace allows it.
    pub(super) fn rule(&self, namespace: &str, rule: &Rule) -> Match {
        let peers = if rule.peers.is_empty() {
            Match::Yes
        } else {
            Match::any(rule.peers.iter().map(|peers| self.peers(namespace, peers)))
        };
        peers.and(|| {
            if rule.ports.is_empty() {
                Match::Yes
            } else {
                Match::any(rule.ports.iter().map(|ports| self.ports(ports)))
            }
        })
    }

    /// Whether the other end is among these peers.
    pub(super) fn peers(&self, namespace: &str, peers: &Peers) -> Match {
        match peers {
            Peers::Block { cidr, except } => {
                let peer = self.peer();
                let is_cluster = !matches!(peer.who, Who::External | Who::Service);
                if is_cluster && !self.traits.block_matches_cluster {
                    return Match::No;
                }
                if peer.address.is_unspecified() {
                    return Match::Maybe(Unknown::Address);
                }
                let address = plain(peer.address);
                Match::sure(
                    cidr.contains(&address) && !except.iter().any(|net| net.contains(&address)),
                )
            }
            Peers::Pods { namespaces, pods } => match &self.peer().who {
                Who::Pod(pod) => {
                    let space = match namespaces {
                        None => Match::sure(pod.namespace == namespace),
                        Some(selector) => selects_namespace(selector, pod),
                    };
                    space.and(|| {
                        Match::sure(pods.as_ref().is_none_or(|pods| pods.matches(pod.labels)))
                    })
                }
                Who::UnknownPod => Match::Maybe(Unknown::Peer),
                Who::Node { .. } | Who::External | Who::Service => Match::No,
            },
            Peers::Nobody(_) => Match::No,
        }
    }

    /// Whether its port is among these.
    pub(super) fn ports(&self, ports: &Ports) -> Match {
        if ports.protocol != self.flow.protocol {
            return Match::No;
        }
        match &ports.port {
            Port::Any => Match::Yes,
            Port::Range(first, last) => Match::sure((*first..=*last).contains(&self.flow.port)),
            Port::Name(name) => match &self.flow.dst.who {
                Who::Pod(Pod {
                    named_ports: Some(named),
                    ..
                }) => Match::sure(named.iter().any(|(one, protocol, port)| {
                    one == name && *protocol == ports.protocol && *port == self.flow.port
                })),
                Who::Pod(_) | Who::UnknownPod => Match::Maybe(Unknown::NamedPorts),
                Who::Node { .. } | Who::External | Who::Service => Match::No,
            },
            Port::Nothing(_) => Match::No,
        }
    }
}

/// An address that is IPv4 in the guise of IPv6 is IPv4.
pub(super) fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The value of a label of a pod's namespace; an error if that is not known.
pub(super) fn namespace_label<'a>(pod: &Pod<'a>, key: &str) -> Result<Option<&'a str>, Unknown> {
    if key == NAMESPACE_NAME {
        return Ok(Some(pod.namespace));
    }
    match pod.namespace_labels {
        Some(labels) => Ok(label(labels, key)),
        None => Err(Unknown::NamespaceLabels),
    }
}

/// Whether a selector of namespaces matches a pod's.
fn selects_namespace(selector: &Selector, pod: &Pod<'_>) -> Match {
    let mut all = Match::Yes;
    for requirement in &selector.0 {
        all = all.and(|| match namespace_label(pod, &requirement.key) {
            Ok(value) => Match::sure(requirement.admits(value)),
            // What no label does is certain all the same.
            Err(_) if requirement.operator == Operator::Unknown => Match::No,
            Err(why) => Match::Maybe(why),
        });
    }
    all
}

impl Policies {
    /// What the policies say of a flow, where that engine enforces them.
    #[must_use]
    pub fn evaluate<'p>(&'p self, flow: &Flow<'_>, when: When, engine: Engine) -> Verdict<'p> {
        Verdict {
            egress: self.judge(&Seen::new(flow, Side::Egress, engine), when),
            ingress: self.judge(&Seen::new(flow, Side::Ingress, engine), when),
        }
    }

    fn judge<'p>(&'p self, seen: &Seen<'_, '_>, when: When) -> Judgement<'p> {
        let pod = match seen.subject() {
            Err(why) => return Judgement::NotSubject(why),
            Ok(_) if self.is_blank() => return Judgement::NotIsolated,
            Ok(Some(pod)) => pod,
            Ok(None) => {
                return Judgement::Undetermined {
                    policies: Vec::new(),
                    why: Unknown::Pod,
                };
            }
        };
        let mut isolated = false;
        let mut maybe = None;
        for Version { policy, .. } in self.isolating(pod, seen.side, when) {
            isolated = true;
            let rules = policy.rules(seen.side).unwrap_or_default();
            for (n, rule) in rules.iter().enumerate() {
                match seen.rule(&policy.namespace, rule) {
                    Match::Yes => return Judgement::Allowed { policy, rule: n },
                    Match::Maybe(why) => maybe = maybe.or(Some(why)),
                    Match::No => {}
                }
            }
        }
        if !isolated {
            return Judgement::NotIsolated;
        }
        let isolating = self.isolating(pod, seen.side, when);
        let mut policies: Vec<&NetworkPolicy> = isolating.map(|version| &version.policy).collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        match maybe {
            None => Judgement::Denied(policies),
            Some(why) => Judgement::Undetermined { policies, why },
        }
    }
}

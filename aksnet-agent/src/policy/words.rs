//! The words for what policies say. Each is one line, however long the policy is, and whatever stands in it.

use std::fmt::{self, Display, Formatter};

use aksnet_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};

use super::{
    evaluate::{Judgement, NotSubject, Unknown},
    explain::{Failure, Part, PolicyReason, RuleReason, SideReason},
    flow::{End, Who},
    model::{NetworkPolicy, Operator, Peers, Port, Ports, Requirement, Selector, Side},
};
use crate::escaped::Escaped;

/// Items of a list that a line names at most.
const FEW: usize = 3;

/// The first few of a list, and how many more there are.
fn few<T: Display>(f: &mut Formatter<'_>, all: &[T], between: &str, more: &str) -> fmt::Result {
    for (n, one) in all.iter().take(FEW).enumerate() {
        let between = if n == 0 { "" } else { between };
        write!(f, "{between}{one}")?;
    }
    match all.len().saturating_sub(FEW) {
        0 => Ok(()),
        rest => write!(f, "{between}and {rest} more {more}"),
    }
}

/// What an IP protocol is called in a policy; its number where policies have no name for it.
#[derive(Clone, Copy, Debug)]
pub struct Protocol(
    /// Its number.
    pub u8,
);

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            TCP => f.write_str("TCP"),
            UDP => f.write_str("UDP"),
            SCTP => f.write_str("SCTP"),
            ICMP => f.write_str("ICMP"),
            ICMPV6 => f.write_str("ICMPv6"),
            number => write!(f, "IP protocol {number}"),
        }
    }
}

impl Display for End<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Pod(pod) => write!(f, "{}/{}", Escaped(pod.namespace), Escaped(pod.name)),
            Who::UnknownPod => write!(f, "an unknown pod at {}", self.address),
            Who::Node { .. } if self.address.is_unspecified() => f.write_str("a node"),
            Who::Node { .. } => write!(f, "a node ({})", self.address),
            Who::External => write!(f, "{} outside of the cluster", self.address),
            Who::Service => write!(f, "a service ({})", self.address),
        }
    }
}

/// A policy's name with its namespace.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a>(
    /// The policy.
    pub &'a NetworkPolicy,
);

impl Display for Named<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            Escaped(&self.0.namespace),
            Escaped(&self.0.name)
        )
    }
}

impl Display for Requirement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let key = Escaped(&self.key);
        let values: Vec<Escaped<'_>> = self.values.iter().map(|one| Escaped(one)).collect();
        match (self.operator, &*values) {
            (Operator::In, [one]) => write!(f, "{key}={one}"),
            (Operator::NotIn, [one]) => write!(f, "{key}!={one}"),
            (Operator::In | Operator::NotIn, values) => {
                let not = if self.operator == Operator::In {
                    ""
                } else {
                    "not "
                };
                write!(f, "{key} {not}in (")?;
                few(f, values, ", ", "values")?;
                f.write_str(")")
            }
            (Operator::Exists, _) => write!(f, "{key} (any value)"),
            (Operator::DoesNotExist, _) => write!(f, "no label {key}"),
            (Operator::Unknown, _) => f.write_str("a requirement that cannot be read"),
        }
    }
}

impl Display for Selector {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        few(f, &self.0, ",", "requirements")
    }
}

impl Display for Peers {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody(why) => write!(f, "nobody ({})", Escaped(why)),
            Self::Block { cidr, except } => {
                write!(f, "{cidr}")?;
                if !except.is_empty() {
                    f.write_str(" except ")?;
                    few(f, except, ", ", "ranges")?;
                }
                Ok(())
            }
            Self::Pods { namespaces, pods } => {
                match pods {
                    Some(pods) if !pods.is_empty() => write!(f, "{pods}")?,
                    _ => f.write_str("any pod")?,
                }
                match namespaces {
                    None => Ok(()),
                    Some(selector) if selector.is_empty() => f.write_str(" of any namespace"),
                    Some(selector) => write!(f, " of namespaces with {selector}"),
                }
            }
        }
    }
}

impl Display for Ports {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let protocol = Protocol(self.protocol);
        match &self.port {
            Port::Any => write!(f, "any port/{protocol}"),
            Port::Range(first, last) if first == last => write!(f, "port {first}/{protocol}"),
            Port::Range(first, last) => write!(f, "ports {first}-{last}/{protocol}"),
            Port::Name(name) => write!(f, "port {}/{protocol}", Escaped(name)),
            Port::Nothing(why) => write!(f, "no port ({})", Escaped(why)),
        }
    }
}

/// What a requirement met instead.
struct Instead<'a>(&'a Requirement, Option<&'a str>);

impl Display for Instead<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let key = Escaped(&self.0.key);
        match (self.1, self.0.operator) {
            (_, Operator::Unknown) => f.write_str(" matches nobody"),
            (Some(is), _) => write!(f, " did not match {key}={}", Escaped(is)),
            (None, _) => write!(f, " did not match: no label {key}"),
        }
    }
}

impl Display for Failure<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace { wanted, is } => write!(
                f,
                "a pod of namespace {} did not match namespace {}",
                Escaped(wanted),
                Escaped(is)
            ),
            Self::NamespaceLabel {
                wanted,
                is,
                namespace,
            } => write!(
                f,
                "a namespace with {wanted}{} of namespace {}",
                Instead(wanted, *is),
                Escaped(namespace)
            ),
            Self::PeerLabel { wanted, is } => write!(f, "{wanted}{}", Instead(wanted, *is)),
            Self::NoPod { is } => write!(f, "a pod did not match {is}"),
            Self::Cidr { wanted, is } => write!(f, "{wanted} did not match {is}"),
            Self::Except { wanted, except, is } => {
                write!(f, "{wanted} except {except} did not match {is}")
            }
            Self::Outside { wanted, is } => write!(
                f,
                "{wanted} did not match {is}: this engine's blocks match neither pods nor nodes"
            ),
            Self::Nobody(why) => write!(f, "it matches nobody: {}", Escaped(why)),
            Self::Protocol { wanted, is } => write!(f, "{wanted} did not match {}", Protocol(*is)),
            Self::Port { wanted, is } => write!(f, "{wanted} did not match port {is}"),
            Self::NamedPort {
                wanted,
                named: Some(named),
                is,
            } => write!(f, "{wanted}, which is {named}, did not match port {is}"),
            Self::NamedPort {
                wanted,
                named: None,
                is,
            } => write!(
                f,
                "{wanted} did not match port {is}: the server has no port of that name"
            ),
            Self::Nothing(why) => write!(f, "it matches no port: {}", Escaped(why)),
        }
    }
}

/// What `from` and `to` are called.
const fn peers(side: Side) -> &'static str {
    match side {
        Side::Egress => "to",
        Side::Ingress => "from",
    }
}

/// What a rule says, of a direction.
#[derive(Clone, Copy, Debug)]
pub struct RuleWords<'a> {
    /// The direction.
    pub side: Side,
    /// The rule.
    pub rule: &'a RuleReason<'a>,
}

impl Display for RuleWords<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let peers = peers(self.side);
        match self.rule {
            RuleReason::Matches { peer, ports } => {
                match peer {
                    Some(peer) => write!(f, "{peers}: {peer}; ")?,
                    None => write!(f, "{peers}: anybody; ")?,
                }
                match ports {
                    Some(ports) => write!(f, "{ports}"),
                    None => f.write_str("any port"),
                }
            }
            RuleReason::Maybe(why) => write!(f, "{why}"),
            RuleReason::Fails { part, items } => {
                let part = match part {
                    Part::Peers => peers,
                    Part::Ports => "ports",
                };
                write!(f, "{part}: ")?;
                few(f, items, ", ", "items")
            }
        }
    }
}

/// `policy shop/web-policy isolates shop/web ingress; from: app=frontend did not match app=batch`.
impl Display for PolicyReason<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (name, side) = (Named(self.policy), self.side.name());
        write!(f, "policy {name} isolates {} {side}; ", self.pod)?;
        let words: Vec<Numbered<'_>> = self
            .rules
            .iter()
            .enumerate()
            .map(|(n, rule)| Numbered {
                number: (self.rules.len() > 1).then_some(n + 1),
                words: RuleWords {
                    side: self.side,
                    rule,
                },
            })
            .collect();
        match &*words {
            [] => write!(f, "it has no {side} rule and allows nothing"),
            words => few(f, words, "; ", "rules"),
        }
    }
}

struct Numbered<'a> {
    number: Option<usize>,
    words: RuleWords<'a>,
}

impl Display for Numbered<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "rule {number}: {}", self.words),
            None => write!(f, "{}", self.words),
        }
    }
}

impl Display for Unknown {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "which pod this is is not known",
            Self::Peer => "which pod the other end is is not known",
            Self::Address => "the address of the other end is not known",
            Self::NamespaceLabels => "the labels of the other end's namespace are not known",
            Self::NamedPorts => "the named ports of the server's pod are not known",
        })
    }
}

impl NotSubject {
    fn words(self) -> &'static str {
        match self {
            Self::External => "no policy isolates what is outside of the cluster",
            Self::HostNetwork => "no policy isolates a node, or a pod in its network",
            Self::Service => "no policy isolates a service, only the pods behind it",
            Self::Itself => "a pod always reaches itself",
            Self::OwnNode => "a pod's own node always reaches it",
            Self::ToOwnNode => "a pod always reaches its own node",
            Self::Ipv6 => "IPv6 is not judged",
            Self::NodePort => {
                "what came by a node port with externalTrafficPolicy Cluster is not judged"
            }
        }
    }

    /// Whether that is so because of the engine, and not by the API's text.
    const fn is_engines(self) -> bool {
        matches!(self, Self::ToOwnNode | Self::Ipv6 | Self::NodePort)
    }
}

/// The verdict of a side in one line; with every policy's reason where it is denied.
impl Display for SideReason<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let side = self.side.name();
        match &self.judgement {
            Judgement::NotSubject(why) if why.is_engines() => {
                write!(f, "{} with {}", why.words(), self.engine.title())
            }
            Judgement::NotSubject(why) => f.write_str(why.words()),
            Judgement::NotIsolated => write!(f, "no policy isolates {} {side}", self.own),
            Judgement::Allowed { policy, rule } => {
                write!(
                    f,
                    "policy {}, {side} rule {}, allows it",
                    Named(policy),
                    rule + 1
                )?;
                let reason = self.policies.iter().find(|one| one.policy == *policy);
                match reason.and_then(|reason| reason.rules.get(*rule)) {
                    Some(rule) => write!(
                        f,
                        ": {}",
                        RuleWords {
                            side: self.side,
                            rule
                        }
                    ),
                    None => Ok(()),
                }
            }
            Judgement::Denied(_) => few(f, &self.policies, "; ", "policies"),
            Judgement::Undetermined { policies, why } => {
                write!(f, "not determined: {why}")?;
                let names: Vec<Named<'_>> = policies.iter().map(|one| Named(one)).collect();
                if names.is_empty() {
                    return Ok(());
                }
                write!(f, "; {} is isolated by ", self.own)?;
                few(f, &names, ", ", "policies")
            }
        }
    }
}

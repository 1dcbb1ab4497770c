//! Why the policies say what they say of a flow: for each policy that isolates a pod, and each of its rules, *the first
//! part that failed*, or what matched.
//!
//! Made apart from [`evaluate`](super::evaluate), as it costs more, and is asked only where somebody reads it: for drops,
//! for gaps, and by `aksnet-agent explain`. What it says in words is in `words`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    engine::Engine,
    evaluate::{Judgement, Match, Outcome, Seen, Unknown, Verdict, namespace_label, plain},
    flow::{End, Flow, Pod, Who},
    index::{Policies, When},
    model::{NetworkPolicy, Operator, Peers, Port, Ports, Requirement, Rule, Side, label},
};

/// Everything that policies say of a flow.
#[derive(Clone, Debug)]
pub struct Explanation<'r> {
    /// Of the client's pod.
    pub egress: SideReason<'r>,
    /// Of the server's pod.
    pub ingress: SideReason<'r>,
}

/// What they say of one side.
#[derive(Clone, Debug)]
pub struct SideReason<'r> {
    /// Which side.
    pub side: Side,
    /// The end that policies of this side isolate.
    pub own: &'r End<'r>,
    /// The verdict.
    pub judgement: Judgement<'r>,
    /// Every policy that isolates the pod, by name.
    pub policies: Vec<PolicyReason<'r>>,
    /// Who enforces them.
    pub engine: Engine,
}

/// What one policy says.
#[derive(Clone, Debug)]
pub struct PolicyReason<'r> {
    /// The policy.
    pub policy: &'r NetworkPolicy,
    /// The direction.
    pub side: Side,
    /// The pod that it isolates.
    pub pod: &'r End<'r>,
    /// Each of its rules for the direction, in their order.
    pub rules: Vec<RuleReason<'r>>,
}

/// What one rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleReason<'r> {
    /// It allows the flow: by this peer and these ports; `None` where it says nothing of them.
    Matches {
        /// The item of `from` or `to`.
        peer: Option<&'r Peers>,
        /// The item of `ports`.
        ports: Option<&'r Ports>,
    },
    /// Whether it does depends on this.
    Maybe(Unknown),
    /// It does not.
    Fails {
        /// The part that failed first.
        part: Part,
        /// Why, for each item of that part; all of them failed.
        items: Vec<Failure<'r>>,
    },
}

/// A part of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `from` or `to`.
    Peers,
    /// `ports`.
    Ports,
}

/// What an item wanted, and what is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure<'r> {
    /// A pod of the policy's own namespace.
    Namespace {
        /// That namespace.
        wanted: &'r str,
        /// The peer's.
        is: &'r str,
    },
    /// A label of the peer's namespace.
    NamespaceLabel {
        /// The requirement that does not hold.
        wanted: &'r Requirement,
        /// The label's value; `None`: there is no such label.
        is: Option<&'r str>,
        /// The namespace.
        namespace: &'r str,
    },
    /// A label of the peer.
    PeerLabel {
        /// The requirement that does not hold.
        wanted: &'r Requirement,
        /// The label's value; `None`: there is no such label.
        is: Option<&'r str>,
    },
    /// A pod, which the peer is not.
    NoPod {
        /// What it is instead.
        is: &'r End<'r>,
    },
    /// An address of a range.
    Cidr {
        /// The range.
        wanted: IpNet,
        /// The peer's address.
        is: IpAddr,
    },
    /// An address that is not among the exceptions.
    Except {
        /// The range.
        wanted: IpNet,
        /// The exception that it is in.
        except: IpNet,
        /// The peer's address.
        is: IpAddr,
    },
    /// An address outside of the cluster, as the engine's blocks match no other.
    Outside {
        /// The range.
        wanted: IpNet,
        /// The peer.
        is: &'r End<'r>,
    },
    /// Nobody: the item cannot be read.
    Nobody(&'r str),
    /// A protocol.
    Protocol {
        /// The item.
        wanted: &'r Ports,
        /// The flow's IP protocol number.
        is: u8,
    },
    /// A port.
    Port {
        /// The item.
        wanted: &'r Ports,
        /// The flow's.
        is: u16,
    },
    /// A port by its name.
    NamedPort {
        /// The item.
        wanted: &'r Ports,
        /// The port that the server's pod calls so, with that protocol; `None`: none.
        named: Option<u16>,
        /// The flow's.
        is: u16,
    },
    /// None: the item cannot be read.
    Nothing(&'r str),
}

impl Explanation<'_> {
    /// The verdict in one word.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::of_both(&self.egress.judgement, &self.ingress.judgement)
    }

    /// Both sides, the client's first.
    pub fn sides(&self) -> impl Iterator<Item = &SideReason<'_>> {
        [&self.egress, &self.ingress].into_iter()
    }
}

impl Policies {
    /// Everything that the policies say of a flow, where that engine enforces them.
    #[must_use]
    pub fn explain<'r>(
        &'r self,
        flow: &'r Flow<'r>,
        when: When,
        engine: Engine,
    ) -> Explanation<'r> {
        let Verdict { egress, ingress } = self.evaluate(flow, when, engine);
        let side = |side, judgement| {
            let seen = Seen::new(flow, side, engine);
            let mut policies = Vec::new();
            if let (Who::Pod(pod), false) = (
                &seen.own().who,
                matches!(judgement, Judgement::NotSubject(_)),
            ) {
                let isolating = self.isolating(pod, side, when);
                policies.extend(isolating.map(|version| policy_reason(&seen, &version.policy)));
                policies.sort_by(|a, b| a.policy.name.cmp(&b.policy.name));
            }
            SideReason {
                side,
                own: seen.own(),
                judgement,
                policies,
                engine,
            }
        };
        Explanation {
            egress: side(Side::Egress, egress),
            ingress: side(Side::Ingress, ingress),
        }
    }
}

/// What one policy says of a flow, whether it isolates the pod or not.
#[must_use]
pub fn of_policy<'r>(
    policy: &'r NetworkPolicy,
    flow: &'r Flow<'r>,
    side: Side,
    engine: Engine,
) -> PolicyReason<'r> {
    policy_reason(&Seen::new(flow, side, engine), policy)
}

fn policy_reason<'r>(seen: &Seen<'r, 'r>, policy: &'r NetworkPolicy) -> PolicyReason<'r> {
    let rules = policy.rules(seen.side).unwrap_or_default();
    PolicyReason {
        policy,
        side: seen.side,
        pod: seen.own(),
        rules: rules
            .iter()
            .map(|rule| rule_reason(seen, &policy.namespace, rule))
            .collect(),
    }
}

fn rule_reason<'r>(seen: &Seen<'r, 'r>, namespace: &'r str, rule: &'r Rule) -> RuleReason<'r> {
    match seen.rule(namespace, rule) {
        Match::Maybe(why) => RuleReason::Maybe(why),
        Match::Yes => RuleReason::Matches {
            peer: rule
                .peers
                .iter()
                .find(|peers| seen.peers(namespace, peers) == Match::Yes),
            ports: rule
                .ports
                .iter()
                .find(|ports| seen.ports(ports) == Match::Yes),
        },
        Match::No => {
            let peers = rule
                .peers
                .iter()
                .map(|peers| peer_failure(seen, namespace, peers));
            let peers: Option<Vec<Failure<'r>>> = peers.collect();
            match peers {
                Some(items) if !items.is_empty() => RuleReason::Fails {
                    part: Part::Peers,
                    items,
                },
                _ => RuleReason::Fails {
                    part: Part::Ports,
                    items: rule
                        .ports
                        .iter()
                        .filter_map(|ports| port_failure(seen, ports))
                        .collect(),
                },
            }
        }
    }
}

/// Why the peer surely is none of these; `None` if it may be.
fn peer_failure<'r>(
    seen: &Seen<'r, 'r>,
    namespace: &'r str,
    peers: &'r Peers,
) -> Option<Failure<'r>> {
    let end = seen.peer();
    match peers {
        Peers::Nobody(why) => Some(Failure::Nobody(why)),
        Peers::Block { cidr, except } => {
            let (wanted, is) = (*cidr, plain(end.address));
            if !matches!(end.who, Who::External | Who::Service)
                && !seen.traits.block_matches_cluster
            {
                return Some(Failure::Outside { wanted, is: end });
            }
            if is.is_unspecified() {
                return None;
            }
            if !wanted.contains(&is) {
                return Some(Failure::Cidr { wanted, is });
            }
            let except = *except.iter().find(|net| net.contains(&is))?;
            Some(Failure::Except { wanted, except, is })
        }
        Peers::Pods { namespaces, pods } => match &end.who {
            Who::Pod(pod) => {
                let space = match namespaces {
                    None if *pod.namespace == *namespace => None,
                    None => Some(Failure::Namespace {
                        wanted: namespace,
                        is: pod.namespace,
                    }),
                    Some(selector) => selector
                        .0
                        .iter()
                        .find_map(|wanted| namespace_failure(pod, wanted)),
                };
                let labels = pods.iter().flat_map(|selector| &selector.0);
                let mut failed = labels.filter(|wanted| !wanted.holds(pod.labels));
                space.or_else(|| {
                    failed.next().map(|wanted| Failure::PeerLabel {
                        wanted,
                        is: label(pod.labels, &wanted.key),
                    })
                })
            }
            Who::UnknownPod => None,
            Who::Node { .. } | Who::External | Who::Service => Some(Failure::NoPod { is: end }),
        },
    }
}

fn namespace_failure<'r>(pod: &'r Pod<'r>, wanted: &'r Requirement) -> Option<Failure<'r>> {
    let is = match namespace_label(pod, &wanted.key) {
        Ok(is) if wanted.admits(is) => return None,
        Ok(is) => is,
        Err(_) if wanted.operator == Operator::Unknown => None,
        Err(_) => return None,
    };
    Some(Failure::NamespaceLabel {
        wanted,
        is,
        namespace: pod.namespace,
    })
}

/// Why the flow's port surely is none of these; `None` if it may be.
fn port_failure<'r>(seen: &Seen<'r, 'r>, wanted: &'r Ports) -> Option<Failure<'r>> {
    if seen.ports(wanted) != Match::No {
        return None;
    }
    if let Port::Nothing(why) = &wanted.port {
        return Some(Failure::Nothing(why));
    }
    let (protocol, is) = (seen.flow.protocol, seen.flow.port);
    if wanted.protocol != protocol {
        return Some(Failure::Protocol {
            wanted,
            is: protocol,
        });
    }
    let Port::Name(name) = &wanted.port else {
        return Some(Failure::Port { wanted, is });
    };
    let pod = seen.flow.dst.who.pod();
    let mut named = pod
        .and_then(|pod| pod.named_ports)
        .unwrap_or_default()
        .iter();
    let named = named.find(|(one, of, _)| one == name && *of == protocol);
    Some(Failure::NamedPort {
        wanted,
        named: named.map(|(_, _, port)| *port),
        is,
    })
}

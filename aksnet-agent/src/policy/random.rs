//! Random policies, pods and flows for tests and fuzzers only, judged by the evaluator and by the naive implementation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{
    engine::Engine,
    evaluate::{Judgement, Outcome},
    explain::{Explanation, Part, RuleReason},
    flow::{End, Flow, Pod, Who},
    index::{Policies, When},
    model::{NetworkPolicy, Operator, Peers, Port, Ports, Requirement, Rule, Selector, Side},
    naive::{self, Answer, Past},
};
use crate::identify::object::{Labels, Moment, Text};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const SCTP: u8 = 132;

const NAMESPACES: [&str; 3] = ["shop", "ops", "dev"];
const KEYS: [&str; 3] = ["app", "tier", "version"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 4] = [80, 443, 8080, 9000];
const PORT_NAMES: [&str; 3] = ["http", "sql", "metrics"];
const PROTOCOLS: [u8; 3] = [TCP, UDP, SCTP];

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let mut pairs: Vec<(Text, Text)> = pairs
        .iter()
        .map(|(key, value)| (Text::from(*key), Text::from(*value)))
        .collect();
    pairs.sort();
    pairs.into()
}

/// A pod with what belongs to it.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) namespace_labels: Option<Labels>,
    pub(super) named_ports: Option<Vec<(Text, u8, u16)>>,
    pub(super) address: IpAddr,
}

impl Owned {
    /// `shop/web` with the label `app=web`, in a namespace with the label `name`.
    pub(super) fn new(name: &str, last: u8) -> Self {
        let (namespace, name) = name.split_once('/').unwrap();
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: labels(&[("app", name)]),
            namespace_labels: Some(labels(&[("name", namespace)])),
            named_ports: Some(Vec::new()),
            address: IpAddr::from([10, 244, 0, last]),
        }
    }

    pub(super) fn pod(&self) -> Pod<'_> {
        Pod {
            namespace: &self.namespace,
            name: &self.name,
            labels: &self.labels,
            namespace_labels: self.namespace_labels.as_deref(),
            named_ports: self.named_ports.as_deref(),
        }
    }

    pub(super) fn end(&self) -> End<'_> {
        End {
            address: self.address,
            who: Who::Pod(self.pod()),
        }
    }
}

/// Where the choices come from.
pub(super) enum Dice<'b> {
    /// A sequence that a seed determines (splitmix64).
    Seed(u64),
    /// One byte for each choice, and zeros after the last: a fuzzer changes them one by one.
    Bytes(&'b [u8]),
}

impl Dice<'_> {
    pub(super) fn next(&mut self) -> u64 {
        let seed = match self {
            Self::Seed(seed) => seed,
            Self::Bytes(bytes) => {
                let Some((first, rest)) = bytes.split_first() else {
                    return 0;
                };
                *bytes = rest;
                return u64::from(*first);
            }
        };
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// True in one of `n` cases.
    fn in_one_of(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn many<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Box<[T]> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }

    fn address(&mut self) -> IpAddr {
        if self.in_one_of(20) {
            return IpAddr::from([0; 4]);
        }
        let low = u8::try_from(self.below(32)).unwrap();
        if self.in_one_of(4) {
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(low)])
        } else {
            IpAddr::from([10, 0, 0, low])
        }
    }

    fn net(&mut self) -> ipnet::IpNet {
        let address = match self.address() {
            none if none.is_unspecified() => IpAddr::from([10, 0, 0, 7]),
            address => address,
        };
        let size = if address.is_ipv4() { 32 } else { 128 };
        let host = self.one(&[0, 1, 2, 3, 4, 5, 8, size]);
        ipnet::IpNet::new(address, size - host).unwrap().trunc()
    }

    fn selector(&mut self, namespaces: bool) -> Selector {
        Selector(self.many(2, |dice| {
            let operator = match dice.below(20) {
                0..10 => Operator::In,
                10..14 => Operator::NotIn,
                14..17 => Operator::Exists,
                17..19 => Operator::DoesNotExist,
                _ => Operator::Unknown,
            };
            let named = namespaces && dice.in_one_of(3);
            let pool: &[&str] = if named { &NAMESPACES } else { &VALUES };
            let key = if named {
                "kubernetes.io/metadata.name"
            } else {
                dice.one(&KEYS)
            };
            let values = match operator {
                Operator::Exists | Operator::DoesNotExist => Box::default(),
                _ => {
                    let mut values: BTreeSet<&str> = BTreeSet::new();
                    values.insert(dice.one(pool));
                    if dice.in_one_of(2) {
                        values.insert(dice.one(pool));
                    }
                    values.into_iter().map(Text::from).collect()
                }
            };
            Requirement {
                key: key.into(),
                operator,
                values,
            }
        }))
    }

    fn peers(&mut self) -> Peers {
        match self.below(12) {
            0 => Peers::Nobody("unreadable".into()),
            1..5 => {
                let (cidr, except) = (self.net(), self.many(2, Self::net));
                Peers::Block { cidr, except }
            }
            n => Peers::Pods {
                namespaces: (n > 7).then(|| self.selector(true)),
                pods: (n < 10).then(|| self.selector(false)),
            },
        }
    }

    fn ports(&mut self) -> Ports {
        let protocol = self.one(&[TCP, TCP, TCP, UDP, SCTP]);
        let port = match self.below(9) {
            0 => Port::Any,
            1 => Port::Nothing("unreadable".into()),
            2..5 => Port::Name(self.one(&PORT_NAMES).into()),
            5..7 => {
                let (a, b) = (self.one(&PORTS), self.one(&PORTS));
                Port::Range(a.min(b), a.max(b))
            }
            _ => {
                let port = self.one(&PORTS);
                Port::Range(port, port)
            }
        };
        Ports { protocol, port }
    }

    fn rules(&mut self) -> Box<[Rule]> {
        self.many(3, |dice| Rule {
            peers: dice.many(3, Self::peers),
            ports: dice.many(3, Self::ports),
        })
    }

    fn policy(&mut self) -> NetworkPolicy {
        let (ingress, egress) = (!self.in_one_of(4), self.in_one_of(2));
        NetworkPolicy {
            namespace: self.one(&NAMESPACES).into(),
            name: self.one(&["p", "q", "r"]).into(),
            pods: if self.in_one_of(2) {
                Selector::default()
            } else {
                self.selector(false)
            },
            ingress: ingress.then(|| self.rules()),
            egress: egress.then(|| self.rules()),
        }
    }

    fn labels(&mut self) -> Labels {
        let mut set = BTreeMap::new();
        for _ in 0..self.below(4) {
            set.insert(self.one(&KEYS), self.one(&VALUES));
        }
        let pairs: Vec<(&str, &str)> = set.into_iter().collect();
        labels(&pairs)
    }

    fn pod(&mut self, spaces: &BTreeMap<&str, Option<Labels>>) -> Owned {
        let namespace = self.one(&NAMESPACES);
        let named = |dice: &mut Self| {
            let (name, protocol) = (dice.one(&PORT_NAMES).into(), dice.one(&PROTOCOLS));
            (name, protocol, dice.one(&PORTS))
        };
        Owned {
            namespace: namespace.to_owned(),
            name: self.one(&["x", "y"]).to_owned(),
            labels: self.labels(),
            namespace_labels: spaces[namespace].clone(),
            named_ports: (!self.in_one_of(2)).then(|| self.many(3, named).into()),
            address: self.address(),
        }
    }

    fn end<'a>(&mut self, pods: &'a [Owned]) -> End<'a> {
        let who = match self.below(40) {
            0 => Who::UnknownPod,
            1 => Who::Node { this: true },
            2 => Who::Node { this: false },
            3..6 => Who::External,
            6 => Who::Service,
            _ => return pods[self.below(pods.len())].end(),
        };
        End {
            address: self.address(),
            who,
        }
    }
}

/// Policies that come, change and go, as the index and as the naive implementation remember them.
fn history(dice: &mut Dice<'_>) -> (Policies, Vec<Past>) {
    let (mut policies, mut past) = (Policies::default(), Vec::<Past>::new());
    for now in 1..=u64::try_from(dice.below(40)).unwrap() {
        let policy = dice.policy();
        let same = |one: &&mut Past| {
            (&one.0.namespace, &one.0.name) == (&policy.namespace, &policy.name)
                && one.2 == Moment::MAX
        };
        let current = past.iter_mut().find(same);
        if dice.in_one_of(8) {
            policies.delete(&policy.namespace, &policy.name, now);
            if let Some(current) = current {
                current.2 = now;
            }
            continue;
        }
        if let Some(current) = current {
            if current.0 == policy {
                continue;
            }
            current.2 = now;
        }
        policies.apply(policy.clone(), now);
        past.push((policy, now, Moment::MAX));
    }
    (policies, past)
}

fn agrees(
    judgement: &Judgement<'_>,
    answer: &Answer,
    flow: &Flow<'_>,
    side: Side,
    engine: Engine,
) -> bool {
    let same = |names: &BTreeSet<String>| {
        let all = judgement.policies().iter().map(|one| one.name.to_string());
        all.collect::<Vec<_>>() == names.iter().cloned().collect::<Vec<_>>()
    };
    match (judgement, answer) {
        (Judgement::NotSubject(_), Answer::NotSubject)
        | (Judgement::NotIsolated, Answer::NotIsolated) => true,
        (Judgement::Allowed { policy, rule }, Answer::Allowed) => {
            let rule = &policy.rules(side).unwrap()[*rule];
            naive::rule_allows(policy, rule, flow, side, engine, false)
        }
        (Judgement::Denied(_), Answer::Denied(names))
        | (Judgement::Undetermined { .. }, Answer::Undetermined(names)) => same(names),
        _ => false,
    }
}

/// Each rule's reason is what the naive implementation says of it, and names something for each failure.
fn reasons_agree(explanation: &Explanation<'_>, flow: &Flow<'_>, engine: Engine) {
    for side in explanation.sides() {
        for reason in &side.policies {
            let rules = reason.policy.rules(side.side).unwrap();
            assert_eq!(rules.len(), reason.rules.len());
            for (rule, said) in rules.iter().zip(&reason.rules) {
                let allows =
                    |hope| naive::rule_allows(reason.policy, rule, flow, side.side, engine, hope);
                let agrees = match said {
                    RuleReason::Matches { peer, ports } => {
                        allows(false)
                            && peer.is_some() != rule.peers.is_empty()
                            && ports.is_some() != rule.ports.is_empty()
                    }
                    RuleReason::Maybe(_) => allows(true) && !allows(false),
                    RuleReason::Fails { part, items } => {
                        let all = match part {
                            Part::Peers => rule.peers.len(),
                            Part::Ports => rule.ports.len(),
                        };
                        !allows(true) && items.len() == all && all > 0
                    }
                };
                assert!(agrees, "{said:?}\n{rule:?}\n{flow:?}");
            }
        }
        assert!(!side.to_string().contains('\n'));
    }
}

/// A random cluster, and so many flows in it: the evaluator says of each what the naive implementation says. `seen` is
/// told what each was.
///
/// # Panics
/// When the two differ.
pub(super) fn check(dice: &mut Dice<'_>, flows: usize, mut seen: impl FnMut(&'static str)) {
    let (policies, past) = history(dice);
    let spaces = NAMESPACES.map(|name| (name, (!dice.in_one_of(2)).then(|| dice.labels())));
    let spaces = BTreeMap::from(spaces);
    let pods: Vec<Owned> = (0..6).map(|_| dice.pod(&spaces)).collect();
    for _ in 0..flows {
        let protocol = dice.one(&[TCP, TCP, TCP, UDP, SCTP, ICMP]);
        let flow = Flow {
            src: dice.end(&pods),
            dst: dice.end(&pods),
            protocol,
            port: if protocol == ICMP {
                0
            } else {
                dice.one(&PORTS)
            },
            by_node_port: dice.in_one_of(8),
        };
        let at = dice.next() % 42;
        let when = if dice.in_one_of(3) {
            When::Lately {
                at,
                lag: dice.next() % 20,
            }
        } else {
            When::At(at.max(30))
        };
        let engine = dice.one(&Engine::ALL);
        let verdict = policies.evaluate(&flow, when, engine);
        let explanation = policies.explain(&flow, when, engine);
        reasons_agree(&explanation, &flow, engine);
        for side in [Side::Egress, Side::Ingress] {
            let judgement = verdict.side(side);
            let answer = naive::judge(&past, &flow, side, when, engine);
            assert!(
                agrees(judgement, &answer, &flow, side, engine),
                "{side:?}, {when:?}, {engine:?}: {judgement:?} is not {answer:?}\n{flow:?}\n{past:?}"
            );
            seen(match judgement {
                Judgement::NotSubject(_) => "not subject",
                Judgement::NotIsolated => "not isolated",
                Judgement::Allowed { .. } => "allowed by a rule",
                Judgement::Denied(_) => "denied",
                Judgement::Undetermined { policies, .. } if policies.is_empty() => "unknown pod",
                Judgement::Undetermined { .. } => "undetermined",
            });
        }
        seen(match verdict.outcome() {
            Outcome::Allowed => "flow allowed",
            Outcome::Denied => "flow denied",
            Outcome::Undetermined => "flow undetermined",
        });
    }
}

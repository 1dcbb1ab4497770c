//! The rules once more, for tests only: written from the API's text as plainly as goes, without an index, and without
//! any of the code that it is compared with.
//!
//! What is not known is answered twice: once as the worst guess, once as the best. Nothing in the rules is negated but
//! what is answered as a whole, so what the worst guess allows is certain, and what the best does not allow is, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    engine::Engine,
    flow::{End, Flow, Pod, Who},
    index::When,
    model::{NetworkPolicy, Operator, Peers, Port, Ports, Rule, Selector, Side},
};
use crate::identify::object::Moment;

/// A policy's version: content, since, until.
pub(super) type Past = (NetworkPolicy, Moment, Moment);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    NotSubject,
    NotIsolated,
    Allowed,
    Denied(BTreeSet<String>),
    Undetermined(BTreeSet<String>),
}

/// Which versions count.
fn in_force(past: &[Past], when: When) -> Vec<&NetworkPolicy> {
    match when {
        When::At(at) => {
            let there = |(_, since, until): &&Past| *since <= at && *until > at;
            past.iter().filter(there).map(|(one, ..)| one).collect()
        }
        When::Lately { at, lag } => {
            let mut oldest: BTreeMap<(String, String), (Moment, &NetworkPolicy)> = BTreeMap::new();
            for (policy, since, until) in past {
                if *since > at || *until <= at.saturating_sub(lag) {
                    continue;
                }
                let name = (policy.namespace.to_string(), policy.name.to_string());
                let entry = oldest.entry(name).or_insert((*since, policy));
                if *since < entry.0 {
                    *entry = (*since, policy);
                }
            }
            oldest.into_values().map(|(_, policy)| policy).collect()
        }
    }
}

fn selected(selector: &Selector, labels: &BTreeMap<&str, &str>, known: bool, hope: bool) -> bool {
    for requirement in &*selector.0 {
        let key: &str = &requirement.key;
        let values: BTreeSet<&str> = requirement.values.iter().map(|one| &**one).collect();
        let unknown = !known && key != "kubernetes.io/metadata.name";
        let holds = match requirement.operator {
            Operator::Unknown => false,
            _ if unknown => hope,
            Operator::In => labels.get(key).is_some_and(|value| values.contains(value)),
            Operator::NotIn => labels.get(key).is_none_or(|value| !values.contains(value)),
            Operator::Exists => labels.contains_key(key),
            Operator::DoesNotExist => !labels.contains_key(key),
        };
        if !holds {
            return false;
        }
    }
    true
}

fn labels_of<'a>(pod: &Pod<'a>) -> BTreeMap<&'a str, &'a str> {
    pod.labels.iter().map(|(k, v)| (&**k, &**v)).collect()
}

fn namespace_labels_of<'a>(pod: &Pod<'a>) -> BTreeMap<&'a str, &'a str> {
    let known = pod.namespace_labels.unwrap_or_default();
    let mut labels: BTreeMap<&str, &str> = known.iter().map(|(k, v)| (&**k, &**v)).collect();
    labels.insert("kubernetes.io/metadata.name", pod.namespace);
    labels
}

fn bits(address: IpAddr) -> (u8, u128) {
    match address {
        IpAddr::V4(v4) => (32, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (128, v6.to_bits()),
    }
}

fn within(net: &IpNet, address: IpAddr) -> bool {
    let ((size, network), (other, address)) = (bits(net.network()), bits(address));
    let shift = u32::from(size - net.prefix_len());
    size == other && (shift == 128 || network >> shift == address >> shift)
}

fn peer_matches(
    policy: &NetworkPolicy,
    peers: &Peers,
    end: &End<'_>,
    engine: Engine,
    hope: bool,
) -> bool {
    match peers {
        Peers::Nobody(_) => false,
        Peers::Block { cidr, except } => {
            let of_cluster = matches!(end.who, Who::Pod(_) | Who::UnknownPod | Who::Node { .. });
            if engine == Engine::Cilium && of_cluster {
                return false;
            }
            if bits(end.address).1 == 0 {
                return hope;
            }
            within(cidr, end.address) && except.iter().all(|net| !within(net, end.address))
        }
        Peers::Pods { namespaces, pods } => match &end.who {
            Who::UnknownPod => hope,
            Who::Pod(pod) => {
                let space = if let Some(selector) = namespaces {
                    let known = pod.namespace_labels.is_some();
                    selected(selector, &namespace_labels_of(pod), known, hope)
                } else {
                    *pod.namespace == *policy.namespace
                };
                let itself = match pods {
                    None => true,
                    Some(selector) => selected(selector, &labels_of(pod), true, hope),
                };
                space && itself
            }
            _ => false,
        },
    }
}

fn port_matches(ports: &Ports, flow: &Flow<'_>, hope: bool) -> bool {
    if flow.protocol != ports.protocol {
        return false;
    }
    match &ports.port {
        Port::Any => true,
        Port::Nothing(_) => false,
        Port::Range(first, last) => flow.port >= *first && flow.port <= *last,
        Port::Name(name) => match &flow.dst.who {
            Who::UnknownPod => hope,
            Who::Pod(pod) => match pod.named_ports {
                None => hope,
                Some(named) => named.contains(&(name.clone(), flow.protocol, flow.port)),
            },
            _ => false,
        },
    }
}

/// Whether a rule allows it, with that guess where something is not known.
pub(super) fn rule_allows(
    policy: &NetworkPolicy,
    rule: &Rule,
    flow: &Flow<'_>,
    side: Side,
    engine: Engine,
    hope: bool,
) -> bool {
    let peer = match side {
        Side::Egress => &flow.dst,
        Side::Ingress => &flow.src,
    };
    let from = rule.peers.is_empty()
        || rule
            .peers
            .iter()
            .any(|one| peer_matches(policy, one, peer, engine, hope));
    let ports = rule.ports.is_empty() || rule.ports.iter().any(|one| port_matches(one, flow, hope));
    from && ports
}

pub(super) fn judge(
    past: &[Past],
    flow: &Flow<'_>,
    side: Side,
    when: When,
    engine: Engine,
) -> Answer {
    let (own, peer) = match side {
        Side::Egress => (&flow.src, &flow.dst),
        Side::Ingress => (&flow.dst, &flow.src),
    };
    if matches!(own.who, Who::External | Who::Node { .. } | Who::Service) {
        return Answer::NotSubject;
    }
    if let (Who::Pod(a), Who::Pod(b)) = (&own.who, &peer.who)
        && (a.namespace, a.name) == (b.namespace, b.name)
    {
        return Answer::NotSubject;
    }
    let npm = engine == Engine::AzureNpm;
    let own_node = matches!(peer.who, Who::Node { this: true });
    if own_node && (side == Side::Ingress || npm) {
        return Answer::NotSubject;
    }
    if npm && (matches!(own.address, IpAddr::V6(_)) || (side == Side::Ingress && flow.by_node_port))
    {
        return Answer::NotSubject;
    }
    let Who::Pod(pod) = &own.who else {
        // Which policies isolate it is not known, unless there are none.
        return if past.is_empty() {
            Answer::NotIsolated
        } else {
            Answer::Undetermined(BTreeSet::new())
        };
    };
    let mut isolating = in_force(past, when);
    isolating.retain(|policy| {
        *policy.namespace == *pod.namespace
            && selected(&policy.pods, &labels_of(pod), true, false)
            && match side {
                Side::Egress => policy.egress.is_some(),
                Side::Ingress => policy.ingress.is_some(),
            }
    });
    if isolating.is_empty() {
        return Answer::NotIsolated;
    }
    let allowed = |hope: bool| {
        isolating.iter().any(|policy| {
            let rules = match side {
                Side::Egress => policy.egress.iter(),
                Side::Ingress => policy.ingress.iter(),
            };
            let mut rules = rules.flatten();
            rules.any(|rule| rule_allows(policy, rule, flow, side, engine, hope))
        })
    };
    let names = || {
        isolating
            .iter()
            .map(|policy| policy.name.to_string())
            .collect()
    };
    match (allowed(false), allowed(true)) {
        (true, _) => Answer::Allowed,
        (false, true) => Answer::Undetermined(names()),
        (false, false) => Answer::Denied(names()),
    }
}

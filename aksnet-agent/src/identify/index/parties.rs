//! Who is at an address as policies see it, and since when that is so. Moments are seconds here.

use super::{
    tests::{Case, S, TCP, ip, local, node, pod, sandbox, service, slice},
    *,
};
use crate::policy::{
    flow::{Pod as Party, Who},
    index::When,
    model::{NetworkPolicy, Operator, Requirement, Rule, Selector, Side},
};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs.map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn labelled(pod: Pod, app: &str) -> Pod {
    Pod {
        labels: labels(&[("app", app)]),
        named_ports: vec![("http".into(), TCP, 8080)],
        ..pod
    }
}

fn namespace(name: &str, team: &str) -> Object {
    Object::Namespace(Namespace {
        name: name.into(),
        labels: labels(&[("team", team)]),
    })
}

/// Pods of an app may get nothing, or anything.
fn policy(name: &str, app: &str, anything: bool) -> NetworkPolicy {
    let requirement = Requirement {
        key: "app".into(),
        operator: Operator::In,
        values: Box::new([app.into()]),
    };
    let rules = anything.then(Rule::default);
    NetworkPolicy {
        namespace: "shop".into(),
        name: name.into(),
        pods: Selector(Box::new([requirement])),
        ingress: Some(rules.into_iter().collect()),
        egress: None,
    }
}

impl Case {
    fn apply(&mut self, object: impl Into<Object>, seconds: u64) {
        self.0.apply(object.into(), seconds * S);
    }

    fn party(&self, address: &str, seconds: u64) -> Option<Who<'_>> {
        self.0.party(ip(address), seconds * S)
    }

    /// The pod at an address, if it is known.
    fn known(&self, address: &str, seconds: u64) -> Option<Party<'_>> {
        self.party(address, seconds)?.pod().copied()
    }

    fn app(&self, address: &str, seconds: u64) -> &str {
        match self.party(address, seconds) {
            Some(Who::Pod(pod)) => pod.labels.first().map_or("none", |(_, value)| value),
            Some(Who::UnknownPod) => "unknown",
            _ => "no pod",
        }
    }

    /// In seconds.
    fn settled(&self, src: &str, dst: &str) -> u64 {
        self.0.settled(ip(src), ip(dst), 1_000 * S) / S
    }

    /// Whether that changes what is said of flows.
    fn changes(&mut self, change: impl FnOnce(&mut Self)) -> bool {
        let before = self.0.policy_generation();
        change(self);
        self.0.policy_generation() != before
    }
}

// Who it is.

#[test]
fn a_pod_has_its_labels_ports_and_namespace() {
    let mut case = Case::synced();
    case.apply(namespace("shop", "a"), 10);
    case.pod(labelled(local("web-1", &["10.1.0.5"]), "web"), 10);
    let there = pod(Kind::RemotePod, "db-0", &["10.1.1.5"]);
    case.pod(labelled(there, "db"), 10);
    for (address, name, app) in [("10.1.0.5", "web-1", "web"), ("10.1.1.5", "db-0", "db")] {
        let pod = case.known(address, 20).unwrap();
        assert_eq!((pod.namespace, pod.name), ("shop", name));
        assert_eq!(pod.labels, &*labels(&[("app", app)]));
        assert_eq!(pod.namespace_labels, Some(&*labels(&[("team", "a")])));
        assert_eq!(pod.named_ports, Some(&[("http".into(), TCP, 8080)][..]));
    }
    assert!(case.party("10.1.9.9", 20).is_none());
    case.0.delete(&namespace("shop", "a").key(), 30 * S);
    assert_eq!(case.known("10.1.0.5", 20).unwrap().namespace_labels, None);
}

#[test]
fn ports_that_pods_share_are_kept_once() {
    let mut case = Case::synced();
    for n in 0..100 {
        let address = format!("10.1.1.{n}");
        let there = pod(Kind::RemotePod, &format!("db-{n}"), &[&address]);
        case.pod(labelled(there, "db"), 10);
    }
    let ports = |address| case.known(address, 20).unwrap().named_ports.unwrap();
    assert!(std::ptr::eq(ports("10.1.1.1"), ports("10.1.1.99")));
}

#[test]
fn a_pod_that_only_a_slice_tells_of_is_unknown() {
    let mut case = Case::synced();
    case.slice(slice("cart", &[("10.1.1.5", "cart-1", "")]), 10);
    assert_eq!(case.app("10.1.1.5", 20), "unknown");
    let there = pod(Kind::RemotePod, "cart-1", &["10.1.1.5"]);
    case.pod(labelled(there, "cart"), 15);
    // The slice told of the same pod before.
    assert_eq!(case.app("10.1.1.5", 12), "cart");
}

#[test]
fn nodes_and_services_are_no_pods() {
    let mut case = Case::synced();
    case.node(node("n1", &["10.0.0.4"], ""), 10);
    case.node(node("n2", &["10.0.0.5"], ""), 10);
    case.service(
        Service {
            cluster: vec![ip("10.2.0.1")],
            frontends: vec![ip("20.0.0.1")],
            external: vec![ip("20.0.0.2")],
            ..service("web")
        },
        10,
    );
    let host = Pod {
        host_network: true,
        ..labelled(local("agent-1", &["10.0.0.4"]), "agent")
    };
    case.pod(host, 10);
    let party = |address| case.party(address, 20);
    assert!(matches!(party("10.0.0.4"), Some(Who::Node { this: true })));
    assert!(matches!(party("10.0.0.5"), Some(Who::Node { this: false })));
    for address in ["10.2.0.1", "20.0.0.1", "20.0.0.2"] {
        assert!(matches!(party(address), Some(Who::Service)), "{address}");
    }
}

#[test]
fn the_pod_is_the_one_that_held_the_address_then() {
    let mut case = Case::synced();
    case.pod(labelled(local("web-1", &["10.1.0.5"]), "web"), 10);
    case.pod(labelled(local("db-1", &["10.1.0.5"]), "db"), 20);
    // Its object is still there.
    assert_eq!(case.app("10.1.0.5", 15), "web");
    assert_eq!(case.app("10.1.0.5", 25), "db");
    case.delete(local("web-1", &[]), 30);
    assert_eq!(case.app("10.1.0.5", 15), "unknown");
    assert_eq!(case.app("10.1.0.5", 25), "db");
}

#[test]
fn a_pod_that_has_finished_keeps_its_labels_until_it_is_deleted() {
    let mut case = Case::synced();
    case.pod(labelled(local("job-1", &["10.1.0.5"]), "job"), 10);
    let finished = Pod {
        finished: true,
        ..labelled(local("job-1", &["10.1.0.5"]), "job")
    };
    case.pod(finished, 20);
    assert_eq!(case.app("10.1.0.5", 15), "job");
    assert!(case.party("10.1.0.5", 25).is_none());
}

#[test]
fn the_next_pod_of_the_same_name_and_address_is_another() {
    let mut case = Case::synced();
    let named = |uid: &str, app| Pod {
        uid: uid.into(),
        ..labelled(local("db-0", &["10.1.0.5"]), app)
    };
    case.pod(named("u1", "old"), 10);
    case.pod(named("u2", "new"), 20);
    assert_eq!(case.app("10.1.0.5", 15), "unknown");
    assert_eq!(case.app("10.1.0.5", 25), "new");
    assert_eq!(case.settled("10.1.0.5", "192.0.2.1"), 20);
}

#[test]
fn the_api_servers_account_is_taken_before_the_runtimes() {
    let mut case = Case::synced();
    let told = |pod| Pod {
        labels: labels(&[("app", "old")]),
        ..pod
    };
    case.pod(told(sandbox("web-1", &["10.1.0.5"])), 10);
    let pod = case.known("10.1.0.5", 12).unwrap();
    assert_eq!((&*pod.labels[0].1, pod.named_ports), ("old", None));
    case.pod(labelled(local("web-1", &["10.1.0.5"]), "web"), 15);
    assert_eq!(case.app("10.1.0.5", 12), "web");
    case.delete(local("web-1", &[]), 20);
    assert_eq!(case.app("10.1.0.5", 25), "old");
}

// Since when.

#[test]
fn the_last_change_of_labels_or_policies_counts() {
    let mut case = Case::synced();
    case.apply(namespace("shop", "a"), 5);
    case.pod(labelled(local("web-1", &["10.1.0.5"]), "web"), 10);
    let there = |app| labelled(pod(Kind::RemotePod, "db-0", &["10.1.1.5"]), app);
    case.pod(there("db"), 20);
    let settled = |case: &Case| case.settled("10.1.1.5", "10.1.0.5");
    assert_eq!(settled(&case), 20);
    assert_eq!(case.settled("192.0.2.1", "10.1.0.5"), 10);
    assert_eq!(case.settled("192.0.2.1", "192.0.2.2"), 0);
    // What says the same again changes nothing.
    case.pod(there("db"), 21);
    case.apply(namespace("shop", "a"), 22);
    assert_eq!(settled(&case), 20);
    case.pod(there("cache"), 23);
    assert_eq!(settled(&case), 23);
    case.apply(namespace("shop", "b"), 24);
    assert_eq!(settled(&case), 24);
    // It is the server's policies for ingress that count, and those for its labels.
    case.apply(policy("web", "web", false), 30);
    case.apply(policy("cart", "cart", false), 31);
    case.apply(policy("cache", "cache", false), 32);
    assert_eq!(settled(&case), 30);
    case.apply(policy("web", "web", false), 33);
    assert_eq!(settled(&case), 30);
    case.apply(policy("web", "web", true), 34);
    assert_eq!(settled(&case), 34);
}

#[test]
fn a_policy_that_ended_counts_long_after_it_was_forgotten() {
    let mut case = Case::synced();
    case.pod(labelled(local("web-1", &["10.1.0.5"]), "web"), 10);
    for (name, app) in [("a", "web"), ("b", "web"), ("c", "cart")] {
        case.apply(policy(name, app, true), 20);
    }
    case.delete(policy("a", "web", true), 30);
    case.delete(policy("c", "cart", true), 40);
    case.0.expire(100_000 * S);
    assert_eq!(case.settled("192.0.2.1", "10.1.0.5"), 30);
    // It selects others now.
    case.apply(policy("b", "cart", true), 50);
    assert_eq!(case.settled("192.0.2.1", "10.1.0.5"), 50);
}

#[test]
fn nothing_is_settled_before_all_policies_are_known() {
    let mut case = Case::fresh();
    case.apply(policy("web", "web", false), 10);
    assert_eq!(
        case.0.settled(ip("10.1.0.5"), ip("10.1.0.6"), 0),
        Moment::MAX
    );
    case.0.settle(Kind::Policy, 12 * S);
    assert_eq!(case.settled("10.1.0.5", "10.1.0.6"), 12);
    // It was in force before the agent was there.
    case.pod(labelled(local("web-1", &["10.1.0.5"]), "web"), 13);
    let pod = case.known("10.1.0.5", 20).unwrap();
    let policies = case.0.policies();
    assert_eq!(
        policies.isolating(&pod, Side::Ingress, When::At(1)).count(),
        1
    );
}

// Listing, and what changes what is said.

#[test]
fn policies_that_a_list_does_not_have_are_gone() {
    let mut case = Case::synced();
    for name in ["a", "b"] {
        case.apply(policy(name, "web", false), 10);
    }
    case.0.begin(Kind::Policy);
    case.apply(policy("b", "web", false), 20);
    assert_eq!(case.0.policies().len(), 2);
    assert!(case.changes(|case| case.0.settle(Kind::Policy, 21 * S)));
    assert_eq!(case.0.policies().len(), 1);
    assert_eq!(case.0.policies().get("shop", "b").unwrap().since, 10 * S);
    assert_eq!(case.0.counts()[7], (Kind::Policy, 1));
    for (namespace, name) in [("", "a"), ("shop", "")] {
        let nameless = NetworkPolicy {
            namespace: namespace.into(),
            name: name.into(),
            ..policy("a", "web", false)
        };
        case.apply(nameless, 30);
    }
    assert_eq!(case.0.policies().len(), 1);
    assert_eq!(case.0.problems().refused_objects, 2);
}

#[test]
fn what_changes_verdicts_changes_the_generation() {
    let mut case = Case::synced();
    let web = |app| labelled(local("web-1", &["10.1.0.5"]), app);
    let db = |app| labelled(pod(Kind::RemotePod, "db-0", &["10.1.1.5"]), app);
    assert!(case.changes(|case| case.apply(policy("a", "web", false), 10)));
    assert!(!case.changes(|case| case.apply(policy("a", "web", false), 11)));
    assert!(case.changes(|case| case.apply(policy("a", "web", true), 12)));
    assert!(case.changes(|case| case.delete(policy("a", "web", true), 13)));
    assert!(!case.changes(|case| case.delete(policy("a", "web", true), 14)));
    assert!(case.changes(|case| case.apply(namespace("shop", "a"), 15)));
    assert!(!case.changes(|case| case.apply(namespace("shop", "a"), 16)));
    assert!(case.changes(|case| case.apply(namespace("shop", "b"), 17)));
    assert!(!case.changes(|case| case.pod(web("web"), 18)));
    assert!(!case.changes(|case| case.pod(web("web"), 19)));
    assert!(case.changes(|case| case.pod(web("cart"), 20)));
    assert!(!case.changes(|case| case.delete(web("cart"), 21)));
    assert!(!case.changes(|case| case.pod(db("db"), 22)));
    assert!(!case.changes(|case| case.pod(db("cache"), 23)));
    let gone = namespace("shop", "b").key();
    assert!(case.changes(|case| case.0.delete(&gone, 24 * S)));
}

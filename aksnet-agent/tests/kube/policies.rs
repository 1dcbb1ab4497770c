//! Network policies: listed, watched, odd, and refused.

use aksnet_agent::{
    identify::{kube, object::Kind},
    policy::model::{Peers, Side},
};
use serde_json::{Value, json};
use xtask::testbed::api::{
    ApiServer, Fault, Verb,
    objects::{namespace, policy},
};

use crate::watcher::Watcher;

const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
const KIND: Kind = Kind::Policy;

/// How many ingress rules a policy of namespace `shop` has.
fn rules(watcher: &Watcher, name: &str) -> Option<usize> {
    let index = watcher.shared.read();
    let version = index.policies().get("shop", name)?;
    version.policy.rules(Side::Ingress).map(<[_]>::len)
}

fn allowing(rules: &Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": rules})
}

#[test]
fn policies_are_listed_and_their_changes_watched() {
    let server = ApiServer::start().unwrap();
    server.apply(policy("shop", "web", &allowing(&json!([]))));
    server.apply(policy("shop", "old", &allowing(&json!([{}]))));
    let watcher = Watcher::of(&server);
    watcher.wait_until_connected();
    assert_eq!(watcher.count(KIND), 2);
    assert_eq!(rules(&watcher, "web"), Some(0));
    let before = watcher.shared.read().policy_generation();
    server.wait_for_watches(POLICIES, 1).unwrap();
    server.apply(policy("shop", "web", &allowing(&json!([{}, {}]))));
    server.apply(policy("shop", "new", &json!({})));
    server.delete("NetworkPolicy", "shop", "old");
    watcher.wait("the events", |w| rules(w, "old").is_none());
    assert_eq!(rules(&watcher, "web"), Some(2));
    assert_eq!(rules(&watcher, "new"), Some(0));
    assert_eq!(watcher.status(KIND).odd, 0);
    let index = watcher.shared.read();
    assert_eq!(index.policies().len(), 2);
    assert_eq!(index.policy_generation(), before + 3);
}

#[test]
fn what_is_odd_in_a_policy_is_told_and_allows_nothing() {
    let server = ApiServer::start().unwrap();
    let bad = json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/64"}}]}]);
    server.apply(policy("shop", "bad", &allowing(&bad)));
    server.apply(policy("shop", "none", &json!("deny all")));
    server.apply(policy("shop", "good", &json!({})));
    let watcher = Watcher::of(&server);
    watcher.wait_until_connected();
    server.wait_for_watches(POLICIES, 1).unwrap();
    server.inject(
        "NetworkPolicy",
        r#"{"type":"ADDED","object":{"spec":{"podSelector":{}}}}"#,
    );
    server.apply(policy("shop", "last", &json!({})));
    watcher.wait("the last", |w| rules(w, "last").is_some());
    assert_eq!(watcher.count(KIND), 4);
    assert_eq!(watcher.status(KIND).odd, 3);
    let index = watcher.shared.read();
    let policy = &index.policies().get("shop", "bad").unwrap().policy;
    let rules = policy.rules(Side::Ingress).unwrap();
    assert!(matches!(&*rules[0].peers, [Peers::Nobody(why)] if why.contains("10.0.0.0/64")));
    let policy = &index.policies().get("shop", "none").unwrap().policy;
    assert!(policy.ingress.is_none() && policy.egress.is_none());
}

#[test]
fn policies_that_went_while_nobody_watched_are_gone_after_the_next_list() {
    let server = ApiServer::start().unwrap();
    server.apply(policy("shop", "web", &json!({})));
    server.apply(policy("shop", "old", &json!({})));
    let watcher = Watcher::of(&server);
    watcher.wait_until_connected();
    // Refused until long after the deletion, of which no watch can tell then.
    server.fail(Verb::Watch, POLICIES, 20, Fault::Status(500));
    server.break_connections();
    watcher.wait("a refusal", |w| w.status(KIND).retries > 1);
    assert_eq!(watcher.status(KIND).lists, 1);
    server.delete("NetworkPolicy", "shop", "old");
    server.compact();
    watcher.wait("it is gone", |w| {
        w.status(KIND).lists > 1 && rules(w, "old").is_none()
    });
    assert_eq!(rules(&watcher, "web"), Some(0));
}

#[test]
fn policies_that_are_refused_stop_no_other_watch_and_are_there_once_allowed() {
    let server = ApiServer::start().unwrap();
    server.apply(namespace("first"));
    server.apply(policy("shop", "web", &json!({})));
    server.fail(Verb::List, POLICIES, 30, Fault::Status(403));
    let watcher = Watcher::of(&server);
    let others = || kube::kinds(false).filter(|kind| *kind != KIND);
    watcher.wait("the others", |w| {
        others().all(|kind| w.status(kind).connected)
    });
    watcher.wait("the refusal", |w| w.status(KIND).retries > 0);
    let status = watcher.status(KIND);
    assert!(!status.synced && !status.connected);
    let error = status.last_error.unwrap();
    assert!(error.contains("deploy/base/rbac.yaml"), "{error}");
    assert!(watcher.knows("first") && !watcher.shared.read().synced(KIND));
    server.apply(namespace("second"));
    watcher.wait("an event", |w| w.knows("second"));
    assert!(others().all(|kind| watcher.status(kind).retries == 0));
    // The role gets the rule.
    watcher.wait("the policies", |w| w.status(KIND).connected);
    assert_eq!(rules(&watcher, "web"), Some(0));
}

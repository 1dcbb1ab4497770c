//! What the index remembers, and for how long.

use super::*;
use crate::policy::index::KEEP;

const S: u64 = 1_000_000_000;

fn deny(name: &str) -> NetworkPolicy {
    policy(name, &json!({}))
}

fn allow(name: &str) -> NetworkPolicy {
    policy(name, &json!({"ingress": [{}]}))
}

fn ask(policies: &Policies, when: When) -> Outcome {
    let (web, db) = (Owned::new("shop/web", 1), Owned::new("shop/db", 2));
    let flow = flow(web.end(), db.end(), TCP, 80);
    let verdict = policies.evaluate(&flow, when, Engine::Kubernetes);
    verdict.outcome()
}

fn lately(at: u64, lag: u64) -> When {
    When::Lately { at, lag }
}

#[test]
fn equal_content_is_no_news_and_keeps_its_age() {
    let mut policies = Policies::default();
    assert!(policies.apply(deny("shop/p"), 5 * S));
    assert!(!policies.apply(deny("shop/p"), 9 * S));
    assert_eq!(policies.get("shop", "p").unwrap().since, 5 * S);
    assert!(policies.apply(allow("shop/p"), 12 * S));
    assert_eq!(policies.get("shop", "p").unwrap().since, 12 * S);
    assert_eq!(policies.len(), 1);
    assert_eq!(policies.iter().count(), 1);
}

#[test]
fn a_version_counts_while_it_was_in_force() {
    let mut policies = Policies::default();
    policies.apply(deny("shop/p"), 5 * S);
    policies.apply(allow("shop/p"), 10 * S);
    policies.delete("shop", "p", 15 * S);
    let at = |s| ask(&policies, When::At(s * S));
    assert_eq!(at(4), Outcome::Allowed);
    assert_eq!([at(5), at(9)], [Outcome::Denied; 2]);
    assert_eq!(at(10), Outcome::Allowed);
    assert!(policies.is_empty() && policies.get("shop", "p").is_none());
    assert!(!policies.delete("shop", "p", 16 * S), "it is gone already");
}

#[test]
fn a_policy_just_deleted_still_names_what_an_engine_that_lags_drops() {
    let mut policies = Policies::default();
    policies.apply(deny("shop/p"), 5 * S);
    policies.delete("shop", "p", 10 * S);
    assert_eq!(ask(&policies, When::At(11 * S)), Outcome::Allowed);
    assert_eq!(ask(&policies, lately(11 * S, 2 * S)), Outcome::Denied);
    assert_eq!(ask(&policies, lately(12 * S, 2 * S)), Outcome::Allowed);
    policies.expire(10 * S + KEEP);
    assert_eq!(ask(&policies, lately(11 * S, 2 * S)), Outcome::Denied);
    policies.expire(10 * S + KEEP + 1);
    assert_eq!(ask(&policies, lately(11 * S, 2 * S)), Outcome::Allowed);
}

#[test]
fn an_engine_that_lags_has_the_old_content_and_not_the_new_one() {
    let mut policies = Policies::default();
    policies.apply(deny("shop/p"), 5 * S);
    policies.apply(allow("shop/p"), 10 * S);
    assert_eq!(ask(&policies, lately(11 * S, 2 * S)), Outcome::Denied);
    assert_eq!(ask(&policies, lately(13 * S, 2 * S)), Outcome::Allowed);
    // Deleted and made again within the lag.
    policies.delete("shop", "p", 20 * S);
    policies.apply(deny("shop/p"), 21 * S);
    assert_eq!(ask(&policies, lately(22 * S, 5 * S)), Outcome::Allowed);
    assert_eq!(ask(&policies, When::At(22 * S)), Outcome::Denied);
}

#[test]
fn policies_that_come_and_go_do_not_make_the_index_grow() {
    let mut policies = Policies::default();
    for n in 0..20_000 {
        let name = format!("ns-{}/p-{n}", n % 7);
        let selector = json!({"podSelector": {"matchLabels": {"app": n.to_string()}}});
        policies.apply(policy(&name, &selector), n);
        let (namespace, name) = name.split_once('/').unwrap();
        policies.delete(namespace, name, n);
    }
    assert!(policies.is_empty());
    let size = |policies: &Policies| policies.remembered();
    assert_eq!(size(&policies), (4_096, 7));
    policies.expire(20_000 + KEEP + 1);
    assert_eq!(size(&policies), (0, 0));
}

#[test]
fn a_version_forgotten_early_leaves_its_successor_in_force() {
    let mut policies = Policies::default();
    policies.apply(allow("shop/p"), S);
    policies.apply(deny("shop/p"), 2 * S);
    for n in 0..5_000 {
        let other = format!("ops/p-{n}");
        policies.apply(deny(&other), 2 * S);
        policies.delete("ops", &other[4..], 2 * S);
    }
    // While the version before was known, an engine that lags would have that one.
    assert_eq!(ask(&policies, lately(3 * S, 10 * S)), Outcome::Denied);
    assert!(policies.get("shop", "p").is_some());
}

#[test]
fn a_pods_new_labels_count_at_once() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}}});
    let policies = policies([policy("shop/p", &spec)]);
    let (web, mut db) = (Owned::new("shop/web", 1), Owned::new("shop/db", 2));
    for round in 0..100 {
        let app = if round % 2 == 0 { "db" } else { "cache" };
        db.labels = labels(&[("app", app), ("round", &round.to_string())]);
        let reach = flow(web.end(), db.end(), TCP, 80);
        assert_eq!(allowed(&policies, &reach), app == "cache");
    }
}

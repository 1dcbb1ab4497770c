//! Policies that refer to what is not there, cannot be read, or are very large.

use super::*;

fn to_db(policies: &Policies, src: End<'_>) -> Outcome {
    let db = Owned::new("shop/db", 2);
    outcome(policies, &flow(src, db.end(), TCP, 80))
}

#[test]
fn a_namespace_that_does_not_exist_matches_nobody() {
    let (web, ops) = (Owned::new("shop/web", 1), Owned::new("ops/web", 3));
    let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": "gone"}});
    let spec = json!({"ingress": [{"from": [{"namespaceSelector": selector}]}]});
    let mut policies = policies([policy("shop/p", &spec)]);
    assert_eq!(to_db(&policies, web.end()), Outcome::Denied);
    assert_eq!(to_db(&policies, ops.end()), Outcome::Denied);
    // A policy of a namespace without pods isolates nobody else's.
    policies.apply(policy("gone/p", &json!({})), 0);
    assert!(allowed(&policies, &flow(web.end(), ops.end(), TCP, 80)));
}

#[test]
fn what_cannot_be_read_allows_nothing_and_leaves_the_rest() {
    let web = Owned::new("shop/web", 1);
    let bad = |rule: &Value| policies([policy("shop/p", &json!({"ingress": [rule]}))]);
    for rule in [
        json!({"from": [{"ipBlock": {"cidr": "10.244.0.0/33"}}]}),
        json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}]}),
        json!({"from": [{}]}),
        json!({"ports": [{"port": 70_000}]}),
        json!({"ports": [{"port": 80, "endPort": 79}]}),
        json!({"ports": [{"port": 80, "protocol": "XTP"}]}),
        json!({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Like"}]}}]}),
    ] {
        assert_eq!(to_db(&bad(&rule), web.end()), Outcome::Denied, "{rule}");
    }
    let some =
        json!({"from": [{}, {"podSelector": {}}], "ports": [{"port": 70_000}, {"port": 80}]});
    assert_eq!(to_db(&bad(&some), web.end()), Outcome::Allowed);
}

#[test]
fn the_same_name_in_two_namespaces_is_two_policies() {
    let (web, ops) = (Owned::new("shop/web", 1), Owned::new("ops/web", 3));
    let mut policies = policies([
        policy("shop/p", &json!({})),
        policy("ops/p", &json!({"ingress": [{}]})),
    ]);
    assert_eq!(policies.len(), 2);
    assert_eq!(to_db(&policies, web.end()), Outcome::Denied);
    assert!(allowed(&policies, &flow(web.end(), ops.end(), TCP, 80)));
    policies.delete("shop", "p", 1);
    assert_eq!(to_db(&policies, web.end()), Outcome::Allowed);
    assert_eq!(policies.len(), 1);
}

#[test]
fn ten_thousand_rules_are_walked_to_the_last() {
    let web = Owned::new("shop/web", 1);
    let mut rules: Vec<Value> = (0..10_000)
        .map(|n| {
            let cidr = format!("192.168.{}.{}/32", n / 250, n % 250);
            json!({"from": [{"ipBlock": {"cidr": cidr}}]})
        })
        .collect();
    let denied = policies([policy("shop/p", &json!({"ingress": rules}))]);
    assert_eq!(to_db(&denied, web.end()), Outcome::Denied);
    rules.push(json!({"from": [{"podSelector": {}}]}));
    let policies = policies([policy("shop/p", &json!({"ingress": rules}))]);
    let db = Owned::new("shop/db", 2);
    match say(&policies, &flow(web.end(), db.end(), TCP, 80)).ingress {
        Judgement::Allowed { rule, .. } => assert_eq!(rule, 10_000),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_that_selects_by_several_values_is_found_once_by_each() {
    let expressions = json!([{"key": "app", "operator": "In", "values": ["web", "db", "web"]}]);
    let spec = json!({"podSelector": {"matchExpressions": expressions}});
    let policies = policies([policy("shop/p", &spec)]);
    for name in ["shop/web", "shop/db"] {
        let (src, dst) = (Owned::new("ops/x", 9), Owned::new(name, 1));
        let verdict = say(&policies, &flow(src.end(), dst.end(), TCP, 80));
        assert_eq!(names(&verdict.ingress), ["p"]);
    }
}

#[test]
fn an_ipv4_address_in_ipv6_dress_is_ipv4() {
    let spec = json!({"ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]});
    let policies = policies([policy("shop/p", &spec)]);
    let mapped = external("::ffff:192.0.2.7");
    assert_eq!(to_db(&policies, mapped), Outcome::Allowed);
}

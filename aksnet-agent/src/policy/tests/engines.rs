//! Where engines differ, one test for each difference.

use super::*;
use crate::policy::evaluate::NotSubject;

fn deny_all() -> Policies {
    let spec = json!({"policyTypes": ["Ingress", "Egress"]});
    policies([policy("shop/deny", &spec)])
}

/// The engines under which it is denied.
fn denied_by(policies: &Policies, flow: &Flow<'_>) -> Vec<Engine> {
    let denied = |engine: &Engine| {
        policies.evaluate(flow, When::At(1), *engine).outcome() == Outcome::Denied
    };
    Engine::ALL.into_iter().filter(denied).collect()
}

fn all_but(one: Engine) -> Vec<Engine> {
    let others = Engine::ALL.into_iter().filter(|engine| *engine != one);
    others.collect()
}

#[test]
fn npm_never_keeps_a_pod_from_its_own_node() {
    let web = Owned::new("shop/web", 1);
    let own = flow(
        web.end(),
        end("10.0.0.4", Who::Node { this: true }),
        TCP,
        80,
    );
    assert_eq!(denied_by(&deny_all(), &own), all_but(Engine::AzureNpm));
    let other = flow(
        web.end(),
        end("10.0.0.5", Who::Node { this: false }),
        TCP,
        80,
    );
    assert_eq!(denied_by(&deny_all(), &other), Engine::ALL);
}

#[test]
fn npm_judges_no_ipv6() {
    let (mut web, mut db) = (Owned::new("shop/web", 1), Owned::new("shop/db", 2));
    (web.address, db.address) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
    let flow = flow(web.end(), db.end(), TCP, 80);
    let policies = deny_all();
    assert_eq!(denied_by(&policies, &flow), all_but(Engine::AzureNpm));
    let verdict = policies.evaluate(&flow, When::At(1), Engine::AzureNpm);
    assert_eq!(verdict.egress, Judgement::NotSubject(NotSubject::Ipv6));
    assert_eq!(verdict.ingress, Judgement::NotSubject(NotSubject::Ipv6));
}

#[test]
fn npm_lets_in_what_came_by_a_node_port_with_policy_cluster() {
    let db = Owned::new("shop/db", 2);
    let mut by = flow(external("192.0.2.1"), db.end(), TCP, 80);
    assert_eq!(denied_by(&deny_all(), &by), Engine::ALL);
    by.by_node_port = true;
    assert_eq!(denied_by(&deny_all(), &by), all_but(Engine::AzureNpm));
}

#[test]
fn ciliums_blocks_match_neither_pods_nor_nodes() {
    let (web, db) = (Owned::new("shop/web", 1), Owned::new("shop/db", 2));
    let any = json!({"ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]});
    let policies = policies([policy("shop/any", &any)]);
    let node = end("10.0.0.5", Who::Node { this: false });
    for src in [web.end(), node, end("10.244.0.9", Who::UnknownPod)] {
        let flow = flow(src, db.end(), TCP, 80);
        assert_eq!(denied_by(&policies, &flow), [Engine::Cilium], "{src:?}");
    }
    let outside = flow(external("192.0.2.1"), db.end(), TCP, 80);
    assert_eq!(denied_by(&policies, &outside), []);
}

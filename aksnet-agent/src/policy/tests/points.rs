//! The semantics, one test for each point of what the API's text says.

use super::*;
use crate::policy::evaluate::NotSubject;

const DENY: &str = "shop/deny";

/// Two pods of the shop and one of another namespace.
fn pods() -> [Owned; 3] {
    [
        Owned::new("shop/web", 1),
        Owned::new("shop/db", 2),
        Owned::new("ops/web", 3),
    ]
}

/// One policy that isolates `shop/db` for ingress, with these rules.
fn ingress_of_db(rules: &Value) -> Policies {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "db"}},
        "policyTypes": ["Ingress"],
        "ingress": rules,
    });
    policies([policy("shop/db-policy", &spec)])
}

/// Whether such a rule allows each of the pods to reach `shop/db` on TCP 5432: `shop/web`, `ops/web`.
fn lets_in(rules: &Value) -> [bool; 2] {
    let [web, db, ops] = pods();
    let policies = ingress_of_db(rules);
    [web, ops].map(|src| allowed(&policies, &flow(src.end(), db.end(), TCP, 5432)))
}

/// Whether such a rule allows a protocol and port.
fn lets_by(ports: &Value, protocol: u8, port: u16) -> bool {
    let [web, mut db, _] = pods();
    db.named_ports = Some(vec![("sql".into(), TCP, 5432), ("sql".into(), UDP, 99)]);
    let policies = ingress_of_db(&json!([{"ports": ports}]));
    allowed(&policies, &flow(web.end(), db.end(), protocol, port))
}

// 1. Both sides must allow it.

#[test]
fn a_flow_needs_both_its_clients_and_its_servers_leave() {
    let [web, db, _] = pods();
    let to_db = flow(web.end(), db.end(), TCP, 5432);
    let out = policy(
        "shop/out",
        &json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]}),
    );
    let all = json!([{}]);
    assert!(allowed(&ingress_of_db(&all), &to_db));
    let mut both = ingress_of_db(&all);
    both.apply(out, 0);
    let verdict = say(&both, &to_db);
    assert_eq!(names(&verdict.egress), ["out"]);
    assert_eq!(verdict.ingress.outcome(), Outcome::Allowed);
    assert_eq!(verdict.outcome(), Outcome::Denied);
    // A reply is of the connection, which is judged as a whole: the other way around is another connection.
    assert!(allowed(&both, &flow(db.end(), web.end(), TCP, 80)));
}

// 2. Whom a policy selects, and for which direction.

#[test]
fn a_policy_isolates_pods_of_its_own_namespace_only() {
    let [web, db, ops] = pods();
    for selector in [json!({}), json!(null)] {
        let deny = policies([policy(DENY, &json!({"podSelector": selector}))]);
        for dst in [&web, &db] {
            assert!(!allowed(&deny, &flow(ops.end(), dst.end(), TCP, 80)));
        }
        assert!(allowed(&deny, &flow(web.end(), ops.end(), TCP, 80)));
    }
    let absent = policies([policy(DENY, &json!({}))]);
    assert!(!allowed(&absent, &flow(ops.end(), db.end(), TCP, 80)));
}

#[test]
fn without_policy_types_egress_is_isolated_by_egress_rules_only() {
    use Outcome::{Allowed, Denied};
    let [web, _, ops] = pods();
    let out = flow(web.end(), ops.end(), TCP, 80);
    let of = |spec: &Value| {
        let policies = policies([policy("shop/p", spec)]);
        let within = flow(ops.end(), web.end(), TCP, 80);
        (
            say(&policies, &out).egress.outcome(),
            say(&policies, &within).ingress.outcome(),
        )
    };
    assert_eq!(of(&json!({})), (Allowed, Denied));
    assert_eq!(of(&json!({"egress": []})), (Allowed, Denied));
    let rules = json!([{"ports": [{"port": 1}]}]);
    assert_eq!(of(&json!({"egress": rules})), (Denied, Denied));
    assert_eq!(of(&json!({"policyTypes": ["Egress"]})), (Denied, Allowed));
    assert_eq!(
        of(&json!({"policyTypes": ["Ingress"], "egress": rules})),
        (Allowed, Denied)
    );
    assert_eq!(
        of(&json!({"policyTypes": ["Ingress", "Egress"]})),
        (Denied, Denied)
    );
}

#[test]
fn a_pod_that_no_policy_selects_is_not_isolated() {
    let [web, _, ops] = pods();
    let policies = ingress_of_db(&json!([]));
    let verdict = say(&policies, &flow(ops.end(), web.end(), TCP, 80)).ingress;
    assert_eq!(verdict, Judgement::NotIsolated);
}

// 3. The union of all rules.

#[test]
fn no_rules_allow_nothing_and_the_empty_rule_allows_everything() {
    for none in [json!([]), json!(null)] {
        assert_eq!(lets_in(&none), [false; 2]);
    }
    assert_eq!(lets_in(&json!([{}])), [true; 2]);
}

#[test]
fn a_policy_that_allows_is_not_undone_by_one_that_does_not() {
    let [web, db, _] = pods();
    let to_db = flow(web.end(), db.end(), TCP, 5432);
    let deny = policy(DENY, &json!({}));
    let mut all = policies([deny]);
    assert!(!allowed(&all, &to_db));
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]},
    ]});
    all.apply(policy("shop/allow", &spec), 0);
    match say(&all, &to_db).ingress {
        Judgement::Allowed { policy, rule } => assert_eq!((&*policy.name, rule), ("allow", 1)),
        other => panic!("{other:?}"),
    }
}

// 4. Peers and ports of a rule.

#[test]
fn a_rule_needs_a_peer_and_a_port_that_match() {
    let web = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let port = |port: u16| json!([{"port": port}]);
    assert_eq!(lets_in(&json!([{"from": web}])), [true, false]);
    assert_eq!(lets_in(&json!([{"ports": port(5432)}])), [true, true]);
    assert_eq!(
        lets_in(&json!([{"from": web, "ports": port(5432)}])),
        [true, false]
    );
    assert_eq!(
        lets_in(&json!([{"from": web, "ports": port(80)}])),
        [false; 2]
    );
    assert_eq!(lets_in(&json!([{"from": [], "ports": []}])), [true; 2]);
}

// 5. Ports.

#[test]
fn a_port_without_a_protocol_is_tcp() {
    assert!(lets_by(&json!([{"port": 53}]), TCP, 53));
    assert!(!lets_by(&json!([{"port": 53}]), UDP, 53));
    assert!(lets_by(&json!([{"port": 53, "protocol": "UDP"}]), UDP, 53));
    assert!(lets_by(
        &json!([{"port": 53, "protocol": "SCTP"}]),
        SCTP,
        53
    ));
}

#[test]
fn a_protocol_without_a_port_is_every_port_of_it() {
    let udp = json!([{"protocol": "UDP"}]);
    assert!(lets_by(&udp, UDP, 1) && lets_by(&udp, UDP, 65535) && !lets_by(&udp, TCP, 1));
    assert!(lets_by(&json!([{}]), TCP, 7) && !lets_by(&json!([{}]), UDP, 7));
}

#[test]
fn an_end_port_is_in_the_range() {
    let range = json!([{"port": 100, "endPort": 200}]);
    for (port, inside) in [
        (99, false),
        (100, true),
        (150, true),
        (200, true),
        (201, false),
    ] {
        assert_eq!(lets_by(&range, TCP, port), inside, "{port}");
    }
}

#[test]
fn a_named_port_is_the_servers_pods_of_that_protocol() {
    let sql = json!([{"port": "sql"}]);
    assert!(lets_by(&sql, TCP, 5432));
    assert!(!lets_by(&sql, TCP, 99) && !lets_by(&sql, UDP, 99));
    assert!(lets_by(
        &json!([{"port": "sql", "protocol": "UDP"}]),
        UDP,
        99
    ));
    assert!(!lets_by(&json!([{"port": "http"}]), TCP, 5432));
}

#[test]
fn a_named_port_of_an_egress_rule_is_the_peers_and_nobody_elses() {
    let [mut web, mut db, _] = pods();
    let spec = json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "sql"}]}]});
    let policies = policies([policy("shop/out", &spec)]);
    web.named_ports = Some(vec![("sql".into(), TCP, 80)]);
    db.named_ports = Some(vec![("sql".into(), TCP, 5432)]);
    assert!(allowed(&policies, &flow(web.end(), db.end(), TCP, 5432)));
    assert!(!allowed(&policies, &flow(web.end(), db.end(), TCP, 80)));
    let outside = flow(web.end(), external("8.8.8.8"), TCP, 5432);
    assert!(!allowed(&policies, &outside));
}

#[test]
fn what_has_no_ports_is_allowed_by_rules_without_ports_only() {
    let [web, db, _] = pods();
    let ping = flow(web.end(), db.end(), ICMP, 0);
    assert!(allowed(&ingress_of_db(&json!([{}])), &ping));
    let any = json!([{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]);
    assert!(!allowed(&ingress_of_db(&json!([{"ports": any}])), &ping));
}

// 6. Peers.

#[test]
fn a_pod_selector_alone_is_of_the_policys_namespace() {
    let from = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    assert_eq!(lets_in(&json!([{"from": from}])), [true, false]);
    assert_eq!(
        lets_in(&json!([{"from": [{"podSelector": {}}]}])),
        [true, false]
    );
}

#[test]
fn a_namespace_selector_alone_is_all_pods_of_such_namespaces() {
    let ops = json!([{"namespaceSelector": {"matchLabels": {"name": "ops"}}}]);
    assert_eq!(lets_in(&json!([{"from": ops}])), [false, true]);
    let all = json!([{"namespaceSelector": {}}]);
    assert_eq!(lets_in(&json!([{"from": all}])), [true; 2]);
}

#[test]
fn both_selectors_in_one_item_must_match_and_of_two_items_one() {
    let ops = json!({"matchLabels": {"name": "ops"}});
    let batch = json!({"matchLabels": {"app": "batch"}});
    let both = json!([{"from": [{"namespaceSelector": ops, "podSelector": batch}]}]);
    assert_eq!(lets_in(&both), [false; 2]);
    let either = json!([{"from": [{"namespaceSelector": ops}, {"podSelector": batch}]}]);
    assert_eq!(lets_in(&either), [false, true]);
}

#[test]
fn an_absent_label_is_not_in_and_does_not_exist() {
    let from = |operator: &str, key: &str, values: &[&str]| {
        let mut expression = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            expression["values"] = json!(values);
        }
        let selector = json!({"matchExpressions": [expression]});
        lets_in(&json!([{"from": [{"podSelector": selector}]}]))[0]
    };
    assert!(from("In", "app", &["db", "web"]) && !from("In", "app", &["db"]));
    assert!(!from("NotIn", "app", &["web"]) && from("NotIn", "tier", &["web"]));
    assert!(from("Exists", "app", &[]) && !from("Exists", "tier", &[]));
    assert!(!from("DoesNotExist", "app", &[]) && from("DoesNotExist", "tier", &[]));
}

#[test]
fn every_namespace_has_its_name_as_a_label_even_if_its_manifest_lacks_it() {
    let named = |name: &str| {
        let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
        json!([{"from": [{"namespaceSelector": selector}]}])
    };
    assert_eq!(lets_in(&named("ops")), [false, true]);
    let [_, db, mut ops] = pods();
    ops.namespace_labels = None;
    let reach = flow(ops.end(), db.end(), TCP, 5432);
    assert!(allowed(&ingress_of_db(&named("ops")), &reach));
    assert!(!allowed(&ingress_of_db(&named("shop")), &reach));
}

// 7. Blocks of addresses.

#[test]
fn a_block_without_its_exceptions_and_what_it_excepts_another_rule_may_allow() {
    let [_, db, _] = pods();
    let block = json!({"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.64/26"]}});
    let rules = json!([{"from": [block]}, {"from": [{"ipBlock": {"cidr": "192.0.2.100/32"}}]}]);
    let policies = ingress_of_db(&rules);
    for (address, inside) in [
        ("192.0.2.1", true),
        ("192.0.2.64", false),
        ("192.0.2.100", true),
        ("192.0.3.1", false),
        ("2001:db8::1", false),
    ] {
        let from = flow(external(address), db.end(), TCP, 5432);
        assert_eq!(allowed(&policies, &from), inside, "{address}");
    }
}

#[test]
fn a_block_of_ipv6_addresses_matches_them() {
    let [_, mut db, _] = pods();
    db.address = "fd00::2".parse().unwrap();
    let block = json!({"ipBlock": {"cidr": "2001:db8::/64", "except": ["2001:db8::8:0/112"]}});
    let policies = ingress_of_db(&json!([{"from": [block]}]));
    for (address, inside) in [("2001:db8::1", true), ("2001:db8::8:1", false)] {
        let from = flow(external(address), db.end(), TCP, 5432);
        assert_eq!(allowed(&policies, &from), inside, "{address}");
    }
}

#[test]
fn selectors_match_nobody_outside() {
    let [_, db, _] = pods();
    let all = json!([{"from": [{"namespaceSelector": {}}]}]);
    let from = flow(external("192.0.2.1"), db.end(), TCP, 5432);
    assert!(!allowed(&ingress_of_db(&all), &from));
}

// 8. Nodes, and a pod itself.

#[test]
fn a_pod_in_its_nodes_network_is_neither_isolated_nor_selected() {
    let [web, db, _] = pods();
    let node = end("10.0.0.4", Who::Node { this: false });
    let deny = policies([policy(DENY, &json!({"policyTypes": ["Ingress", "Egress"]}))]);
    let verdict = say(&deny, &flow(node, external("192.0.2.1"), TCP, 80));
    assert_eq!(
        verdict.egress,
        Judgement::NotSubject(NotSubject::HostNetwork)
    );
    assert!(!allowed(&deny, &flow(web.end(), node, TCP, 80)));
    let all = ingress_of_db(&json!([{"from": [{"namespaceSelector": {}}]}]));
    assert!(!allowed(&all, &flow(node, db.end(), TCP, 5432)));
    let block = ingress_of_db(&json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/16"}}]}]));
    assert!(allowed(&block, &flow(node, db.end(), TCP, 5432)));
}

#[test]
fn its_own_node_always_reaches_a_pod() {
    let [_, db, _] = pods();
    let node = end("10.0.0.4", Who::Node { this: true });
    let policies = ingress_of_db(&json!([]));
    let verdict = say(&policies, &flow(node, db.end(), TCP, 5432));
    assert_eq!(verdict.ingress, Judgement::NotSubject(NotSubject::OwnNode));
    assert_eq!(verdict.outcome(), Outcome::Allowed);
}

#[test]
fn a_pod_reaches_itself_and_not_its_namesake() {
    let [web, db, ops] = pods();
    let deny = policies([policy(DENY, &json!({"policyTypes": ["Ingress", "Egress"]}))]);
    let verdict = say(&deny, &flow(web.end(), web.end(), TCP, 80));
    assert_eq!(verdict.egress, Judgement::NotSubject(NotSubject::Itself));
    assert_eq!(verdict.ingress, Judgement::NotSubject(NotSubject::Itself));
    assert!(!allowed(&deny, &flow(ops.end(), web.end(), TCP, 80)));
    assert!(!allowed(&deny, &flow(db.end(), web.end(), TCP, 80)));
}

// 9. Who comes from outside.

#[test]
fn a_client_outside_is_judged_by_the_address_that_the_pod_sees() {
    let [_, db, _] = pods();
    let block = json!([{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]);
    let policies = ingress_of_db(&block);
    assert!(allowed(
        &policies,
        &flow(external("192.0.2.9"), db.end(), TCP, 5432)
    ));
    // Masked by another node on the way.
    let node = end("10.0.0.5", Who::Node { this: false });
    assert!(!allowed(&policies, &flow(node, db.end(), TCP, 5432)));
}

// What is not known.

#[test]
fn what_depends_on_an_unknown_label_is_undetermined_unless_another_rule_decides() {
    let [_, db, mut ops] = pods();
    ops.namespace_labels = None;
    let team = json!({"namespaceSelector": {"matchLabels": {"team": "a"}}});
    let reach = flow(ops.end(), db.end(), TCP, 5432);
    let of = |rules: &Value| outcome(&ingress_of_db(rules), &reach);
    assert_eq!(of(&json!([{"from": [team]}])), Outcome::Undetermined);
    assert_eq!(of(&json!([{"from": [team]}, {}])), Outcome::Allowed);
    // The port decides, whatever the label is.
    let rules = json!([{"from": [team], "ports": [{"port": 80}]}]);
    assert_eq!(of(&rules), Outcome::Denied);
    let mut both = team.clone();
    both["podSelector"] = json!({"matchLabels": {"app": "batch"}});
    assert_eq!(of(&json!([{"from": [both]}])), Outcome::Denied);
    assert_eq!(
        of(&json!([{"from": [{"namespaceSelector": {}}]}])),
        Outcome::Allowed
    );
}

#[test]
fn a_pod_that_is_not_known_is_undetermined_where_it_matters() {
    let [_, db, _] = pods();
    let stranger = end("10.244.0.9", Who::UnknownPod);
    let policies = ingress_of_db(&json!([{"from": [{"podSelector": {}}]}]));
    let to_db = flow(stranger, db.end(), TCP, 5432);
    assert_eq!(outcome(&policies, &to_db), Outcome::Undetermined);
    assert_eq!(
        outcome(&ingress_of_db(&json!([])), &to_db),
        Outcome::Denied,
        "nobody may"
    );
    assert_eq!(outcome(&super::policies([]), &to_db), Outcome::Allowed);
}

#[test]
fn named_ports_that_are_not_known_are_undetermined() {
    let [web, mut db, _] = pods();
    db.named_ports = None;
    let policies = ingress_of_db(&json!([{"ports": [{"port": "sql"}, {"port": 80}]}]));
    let of = |protocol, port| outcome(&policies, &flow(web.end(), db.end(), protocol, port));
    assert_eq!(of(TCP, 5432), Outcome::Undetermined);
    assert_eq!(of(TCP, 80), Outcome::Allowed);
    assert_eq!(of(UDP, 5432), Outcome::Denied);
}

#[test]
fn a_block_is_undetermined_where_the_address_is_not_known() {
    let [mut web, db, _] = pods();
    web.address = IpAddr::from([0; 4]);
    let to_db = flow(web.end(), db.end(), TCP, 5432);
    let block = json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]});
    let of = |rules: &Value| outcome(&ingress_of_db(rules), &to_db);
    assert_eq!(of(&json!([block])), Outcome::Undetermined);
    assert_eq!(
        of(&json!([block, {"from": [{"podSelector": {}}]}])),
        Outcome::Allowed
    );
}

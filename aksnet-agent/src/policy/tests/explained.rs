//! The reasons, as values and in words.

use super::*;
use crate::policy::explain::{Failure, Part, RuleReason, of_policy};

fn frontend() -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": "frontend"}}}],
            "ports": [{"port": 8080}],
        }],
    })
}

/// The server's side in words.
fn ingress(spec: &Value, src: End<'_>, protocol: u8, port: u16) -> String {
    ingress_by(Engine::Kubernetes, spec, src, protocol, port)
}

fn ingress_by(engine: Engine, spec: &Value, src: End<'_>, protocol: u8, port: u16) -> String {
    let mut web = Owned::new("shop/web", 1);
    web.named_ports = Some(vec![("http".into(), TCP, 8080)]);
    let policies = policies([policy("shop/web-policy", spec)]);
    let flow = flow(src, web.end(), protocol, port);
    policies
        .explain(&flow, When::At(1), engine)
        .ingress
        .to_string()
}

#[test]
fn a_denial_names_the_policy_and_what_failed() {
    let batch = Owned::new("shop/batch", 2);
    assert_eq!(
        ingress(&frontend(), batch.end(), TCP, 8080),
        "policy shop/web-policy isolates shop/web ingress; from: app=frontend did not match app=batch"
    );
}

#[test]
fn what_allows_is_named_with_the_rule_and_what_matched() {
    let frontend_pod = Owned::new("shop/frontend", 2);
    assert_eq!(
        ingress(&frontend(), frontend_pod.end(), TCP, 8080),
        "policy shop/web-policy, ingress rule 1, allows it: from: app=frontend; port 8080/TCP"
    );
    assert_eq!(
        ingress(&json!({"ingress": [{}]}), frontend_pod.end(), UDP, 1),
        "policy shop/web-policy, ingress rule 1, allows it: from: anybody; any port"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_kind_of_failure_has_words() {
    let (batch, ops) = (Owned::new("shop/batch", 2), Owned::new("ops/batch", 3));
    let outside = external("192.0.2.65");
    let node = end("10.0.0.5", Who::Node { this: false });
    let from = |peer: Value| json!({"ingress": [{"from": [peer]}]});
    let ports = |ports: Value| json!({"ingress": [{"ports": [ports]}]});
    let expression = |operator: &str, key: &str, values: &[&str]| {
        let mut one = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            one["values"] = json!(values);
        }
        from(json!({"podSelector": {"matchExpressions": [one]}}))
    };
    let block = json!({"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.64/26"]}});
    let team = json!({"namespaceSelector": {"matchLabels": {"team": "a"}}});
    let any = json!({"podSelector": {}});
    let cases: &[(Value, End<'_>, u8, u16, &str)] = &[
        (
            from(any.clone()),
            ops.end(),
            TCP,
            80,
            "from: a pod of namespace shop did not match namespace ops",
        ),
        (
            from(team.clone()),
            ops.end(),
            TCP,
            80,
            "from: a namespace with team=a did not match: no label team of namespace ops",
        ),
        (
            from(json!({"podSelector": {"matchLabels": {"tier": "x"}}})),
            batch.end(),
            TCP,
            80,
            "from: tier=x did not match: no label tier",
        ),
        (
            expression("In", "app", &["a", "b"]),
            batch.end(),
            TCP,
            80,
            "from: app in (a, b) did not match app=batch",
        ),
        (
            expression("In", "app", &["a", "b", "c", "d", "e"]),
            batch.end(),
            TCP,
            80,
            "from: app in (a, b, c, and 2 more values) did not match app=batch",
        ),
        (
            expression("NotIn", "app", &["batch"]),
            batch.end(),
            TCP,
            80,
            "from: app!=batch did not match app=batch",
        ),
        (
            expression("Exists", "tier", &[]),
            batch.end(),
            TCP,
            80,
            "from: tier (any value) did not match: no label tier",
        ),
        (
            expression("DoesNotExist", "app", &[]),
            batch.end(),
            TCP,
            80,
            "from: no label app did not match app=batch",
        ),
        (
            expression("Like", "app", &[]),
            batch.end(),
            TCP,
            80,
            "from: a requirement that cannot be read matches nobody",
        ),
        (
            from(any.clone()),
            outside,
            TCP,
            80,
            "from: a pod did not match 192.0.2.65 outside of the cluster",
        ),
        (
            from(any),
            node,
            TCP,
            80,
            "from: a pod did not match a node (10.0.0.5)",
        ),
        (
            from(block.clone()),
            batch.end(),
            TCP,
            80,
            "from: 192.0.2.0/24 did not match 10.244.0.2",
        ),
        (
            from(block),
            outside,
            TCP,
            80,
            "from: 192.0.2.0/24 except 192.0.2.64/26 did not match 192.0.2.65",
        ),
        (
            from(json!({})),
            batch.end(),
            TCP,
            80,
            "from: it matches nobody: it says nothing: no selector and no ipBlock",
        ),
        (
            ports(json!({"port": 53, "protocol": "UDP"})),
            batch.end(),
            TCP,
            53,
            "ports: port 53/UDP did not match TCP",
        ),
        (
            ports(json!({"port": 53})),
            batch.end(),
            ICMP,
            0,
            "ports: port 53/TCP did not match ICMP",
        ),
        (
            ports(json!({"port": 80, "endPort": 90})),
            batch.end(),
            TCP,
            91,
            "ports: ports 80-90/TCP did not match port 91",
        ),
        (
            ports(json!({"port": "http"})),
            batch.end(),
            TCP,
            80,
            "ports: port http/TCP, which is 8080, did not match port 80",
        ),
        (
            ports(json!({"port": "sql"})),
            batch.end(),
            TCP,
            80,
            "ports: port sql/TCP did not match port 80: the server has no port of that name",
        ),
        (
            ports(json!({"port": 0})),
            batch.end(),
            TCP,
            80,
            "ports: it matches no port: its port 0 is not between 1 and 65535",
        ),
        (
            json!({}),
            batch.end(),
            TCP,
            80,
            "it has no ingress rule and allows nothing",
        ),
    ];
    for (spec, src, protocol, port, words) in cases {
        let said = ingress(spec, *src, *protocol, *port);
        let expected = format!("policy shop/web-policy isolates shop/web ingress; {words}");
        assert_eq!(said, expected, "{spec}");
    }
}

#[test]
fn ciliums_blocks_are_named_as_the_reason() {
    let batch = Owned::new("shop/batch", 2);
    let spec = json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]});
    let said = ingress_by(Engine::Cilium, &spec, batch.end(), TCP, 80);
    let why = "from: 10.0.0.0/8 did not match shop/batch: this engine's blocks match neither pods nor nodes";
    assert!(said.ends_with(why), "{said}");
}

#[test]
fn a_long_policy_is_one_short_line() {
    let batch = Owned::new("shop/batch", 2);
    let rules: Vec<Value> = (0..10_000)
        .map(|n| json!({"from": [{"podSelector": {"matchLabels": {"app": format!("a\n{n}")}}}]}))
        .collect();
    let said = ingress(&json!({"ingress": rules}), batch.end(), TCP, 80);
    assert!(said.ends_with("; and 9997 more rules"), "{said}");
    assert!(said.len() < 300 && said.lines().count() == 1, "{said}");
    assert!(
        said.contains("rule 2: from: app=a\\n1 did not match app=batch"),
        "{said}"
    );
}

#[test]
fn the_other_verdicts_have_words() {
    let mut ops = Owned::new("ops/batch", 3);
    ops.namespace_labels = None;
    let team = json!({"namespaceSelector": {"matchLabels": {"team": "a"}}});
    let spec = json!({"ingress": [{"from": [team]}]});
    assert_eq!(
        ingress(&spec, ops.end(), TCP, 80),
        "not determined: the labels of the other end's namespace are not known; shop/web is isolated by shop/web-policy"
    );
    let other = json!({"podSelector": {"matchLabels": {"app": "db"}}});
    assert_eq!(
        ingress(&other, ops.end(), TCP, 80),
        "no policy isolates shop/web ingress"
    );
    let own = end("10.0.0.4", Who::Node { this: true });
    assert_eq!(
        ingress(&json!({}), own, TCP, 80),
        "a pod's own node always reaches it"
    );
    let policies = policies([]);
    let flow = flow(ops.end(), external("192.0.2.1"), TCP, 443);
    let explanation = policies.explain(&flow, When::At(1), Engine::Kubernetes);
    assert_eq!(
        explanation.ingress.to_string(),
        "no policy isolates what is outside of the cluster"
    );
    let v6 = Owned {
        address: "fd00::3".parse().unwrap(),
        ..ops.clone()
    };
    let flow = super::flow(v6.end(), external("2001:db8::1"), TCP, 443);
    let explanation = policies.explain(&flow, When::At(1), Engine::AzureNpm);
    assert_eq!(
        explanation.egress.to_string(),
        "IPv6 is not judged with Azure NPM"
    );
}

#[test]
fn failures_are_values() {
    let (batch, web) = (Owned::new("shop/batch", 2), Owned::new("shop/web", 1));
    let policy = policy("shop/web-policy", &frontend());
    let flow = flow(batch.end(), web.end(), TCP, 8080);
    let reason = of_policy(&policy, &flow, Side::Ingress, Engine::Kubernetes);
    let [RuleReason::Fails { part, items }] = &*reason.rules else {
        panic!("{reason:?}");
    };
    assert_eq!(*part, Part::Peers);
    let [Failure::PeerLabel { wanted, is }] = &**items else {
        panic!("{items:?}");
    };
    assert_eq!((&*wanted.key, *is), ("app", Some("batch")));
}

//! Defaults, what each part becomes, and that what cannot be read never allows more.

use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    identify::{
        object::{Kind, Labels, Object},
        reduce::Reducer,
    },
    policy::model::{NetworkPolicy, Operator, Peers, Port, Rule, Selector, Side},
};

fn reduce(spec: &Value) -> (NetworkPolicy, Vec<&'static str>) {
    let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
    let reduced = Reducer::default().object(Kind::Policy, object.to_string().as_bytes());
    let reduced = reduced.unwrap();
    match reduced.object {
        Some(Object::Policy(policy)) => (policy, reduced.odd),
        other => panic!("{other:?}"),
    }
}

fn good(spec: &Value) -> NetworkPolicy {
    let (policy, odd) = reduce(spec);
    assert!(odd.is_empty(), "{spec}: {odd:?}");
    policy
}

/// The one ingress rule.
fn rule(rule: &Value) -> (Rule, Vec<&'static str>) {
    let (policy, odd) = reduce(&json!({"ingress": [rule]}));
    let [rule] = policy.rules(Side::Ingress).unwrap() else {
        panic!("{policy:?}");
    };
    (rule.clone(), odd)
}

fn peer(peer: &Value) -> Peers {
    let (rule, _) = rule(&json!({"from": [peer]}));
    rule.peers[0].clone()
}

fn port(port: &Value) -> (u8, Port) {
    let (rule, _) = rule(&json!({"ports": [port]}));
    assert!(rule.peers.is_empty());
    (rule.ports[0].protocol, rule.ports[0].port.clone())
}

fn selector(selector: &Value) -> Selector {
    reduce(&json!({"podSelector": selector})).0.pods
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let mut pairs: Vec<_> = pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect();
    pairs.sort();
    pairs.into()
}

#[test]
fn directions_are_those_of_the_types_or_of_what_is_there() {
    // How many rules there are; none at all where the policy says nothing of that direction.
    let some = json!([{}]);
    for (spec, ingress, egress) in [
        (json!(null), Some(0), None),
        (json!({}), Some(0), None),
        (json!({"ingress": null}), Some(0), None),
        (json!({"ingress": []}), Some(0), None),
        (json!({"ingress": some}), Some(1), None),
        (json!({"egress": null}), Some(0), None),
        (json!({"egress": []}), Some(0), None),
        (json!({"egress": some}), Some(0), Some(1)),
        (
            json!({"policyTypes": null, "egress": some}),
            Some(0),
            Some(1),
        ),
        (json!({"policyTypes": [], "egress": some}), Some(0), Some(1)),
        (
            json!({"policyTypes": ["Ingress"], "egress": some}),
            Some(0),
            None,
        ),
        (
            json!({"policyTypes": ["Egress"], "ingress": some}),
            None,
            Some(0),
        ),
        (
            json!({"policyTypes": ["Egress", "Ingress"]}),
            Some(0),
            Some(0),
        ),
    ] {
        let policy = good(&spec);
        let count = |side| policy.rules(side).map(<[Rule]>::len);
        assert_eq!(count(Side::Ingress), ingress, "{spec}");
        assert_eq!(count(Side::Egress), egress, "{spec}");
        assert!(policy.pods.is_empty(), "{spec}");
    }
}

#[test]
fn what_is_not_known_to_be_meant_is_not_isolated() {
    for (spec, name) in [
        (json!({"policyTypes": "Ingress"}), "spec.policyTypes"),
        (json!({"policyTypes": ["ingress"]}), "spec.policyTypes"),
        (json!({"policyTypes": [null, 3]}), "spec.policyTypes"),
        (json!(["Ingress"]), "spec"),
        (json!("Ingress"), "spec"),
    ] {
        let (policy, odd) = reduce(&spec);
        assert_eq!((policy.ingress, policy.egress), (None, None), "{spec}");
        assert_eq!(odd, [name], "{spec}");
    }
    let (policy, odd) = reduce(&json!({"policyTypes": ["Egress", 7]}));
    assert!(policy.ingress.is_none() && policy.egress.is_some());
    assert_eq!(odd, ["spec.policyTypes"]);
    for pods in [json!("app=web"), json!([]), json!({"matchLabels": 5})] {
        let (policy, odd) = reduce(&json!({"podSelector": pods}));
        assert!(!policy.pods.matches(&labels(&[("app", "web")])), "{pods}");
        assert_eq!(odd, ["spec.podSelector"]);
    }
}

#[test]
fn an_empty_rule_is_for_anybody_and_an_unreadable_one_for_nobody() {
    for anybody in [
        json!({}),
        json!({"from": []}),
        json!({"from": null, "ports": null}),
        json!({"ports": []}),
    ] {
        let (rule, odd) = rule(&anybody);
        assert_eq!(rule, Rule::default(), "{anybody}");
        assert!(odd.is_empty());
    }
    for (nobody, name) in [
        (json!(null), "spec.ingress"),
        (json!(7), "spec.ingress"),
        (json!([]), "spec.ingress"),
        (json!({"from": "all"}), "spec.ingress.from"),
        (json!({"from": {}}), "spec.ingress.from"),
        (json!({"from": [7]}), "spec.ingress.from"),
        (json!({"from": [null]}), "spec.ingress.from"),
        (json!({"from": [{}]}), "spec.ingress.from"),
        (json!({"to": [{"podSelector": {}}]}), "spec.ingress.to"),
        (json!({"from": null, "to": []}), "spec.ingress.to"),
    ] {
        let (rule, odd) = rule(&nobody);
        assert!(matches!(&*rule.peers, [Peers::Nobody(_)]), "{rule:?}");
        assert_eq!(odd, [name], "{nobody}");
    }
    for nothing in [
        json!({"ports": 80}),
        json!({"ports": [80]}),
        json!({"ports": [null]}),
    ] {
        let (rule, odd) = rule(&nothing);
        assert!(matches!(rule.ports[0].port, Port::Nothing(_)), "{rule:?}");
        assert_eq!(odd, ["spec.ingress.ports"]);
    }
    let (policy, odd) = reduce(&json!({"ingress": "all", "egress": {"to": []}}));
    for side in [Side::Ingress, Side::Egress] {
        let rules = policy.rules(side).unwrap();
        assert!(matches!(&*rules[0].peers, [Peers::Nobody(_)]), "{side:?}");
    }
    assert_eq!(odd, ["spec.egress", "spec.ingress"]);
}

#[test]
fn the_directions_have_their_own_names_for_peers() {
    let policy = good(&json!({
        "ingress": [{"from": [{"podSelector": {}}]}],
        "egress": [{"to": [{"namespaceSelector": {}}]}],
    }));
    let everything = Some(Selector::default());
    let (namespaces, pods) = (None, everything.clone());
    let from = Peers::Pods { namespaces, pods };
    assert_eq!(&*policy.ingress.unwrap()[0].peers, &[from]);
    let (namespaces, pods) = (everything, None);
    let to = Peers::Pods { namespaces, pods };
    assert_eq!(&*policy.egress.unwrap()[0].peers, &[to]);
    let (policy, odd) = reduce(&json!({"egress": [{"from": [{"podSelector": {}}]}]}));
    let Some([rule]) = policy.egress.as_deref() else {
        panic!("no rule");
    };
    assert!(
        matches!(&*rule.peers, [Peers::Nobody(why)] if &**why == "an egress rule has 'to', not 'from'")
    );
    assert_eq!(odd, ["spec.egress.from"]);
}

#[test]
fn a_peer_is_a_block_or_pods_and_nothing_else() {
    let block = peer(&json!({"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.1.0.9/16"]}}));
    let range = |text: &str| text.parse().unwrap();
    assert_eq!(
        block,
        Peers::Block {
            cidr: range("10.0.0.0/8"),
            except: Box::new([range("10.1.0.0/16")])
        }
    );
    let both = peer(&json!({
        "podSelector": {"matchLabels": {"app": "web"}}, "namespaceSelector": {"matchLabels": {"team": "a"}},
    }));
    let Peers::Pods {
        namespaces: Some(namespaces),
        pods: Some(pods),
    } = both
    else {
        panic!("{both:?}");
    };
    assert!(pods.matches(&labels(&[("app", "web")])) && !pods.matches(&labels(&[("team", "a")])));
    assert!(namespaces.matches(&labels(&[("team", "a")])));
    for (nobody, why) in [
        (json!({"ipBlock": {}}), "its ipBlock has no cidr"),
        (json!({"ipBlock": {"cidr": 10}}), "its ipBlock has no cidr"),
        (json!({"ipBlock": []}), "its ipBlock is no object"),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/33"}}),
            "its cidr '10.0.0.0/33' is no range of addresses",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.1"}}),
            "its cidr '10.0.0.1' is no range of addresses",
        ),
        (
            json!({"ipBlock": {"cidr": "::/0", "except": ["fd00::/8", "fd00::/200"]}}),
            "the entry 'fd00::/200' of its except is no range of addresses",
        ),
        (
            json!({"ipBlock": {"cidr": "::/0", "except": "fd00::/8"}}),
            "its except is no list",
        ),
        (
            json!({"ipBlock": {"cidr": "::/0", "except": [null]}}),
            "an entry of its except is no text",
        ),
        (
            json!({"ipBlock": {"cidr": "::/0"}, "podSelector": {}}),
            "it has an ipBlock and a selector; only one is allowed",
        ),
        (
            json!({"ipBlock": "::/0", "namespaceSelector": "x"}),
            "it has an ipBlock and a selector; only one is allowed",
        ),
        (json!({"podSelector": "a"}), "its podSelector is no object"),
        (
            json!({"podSelector": {}, "namespaceSelector": ["a"]}),
            "its namespaceSelector is no object",
        ),
        (
            json!({"podSelector": null}),
            "it says nothing: no selector and no ipBlock",
        ),
    ] {
        assert_eq!(peer(&nobody), Peers::Nobody(why.into()), "{nobody}");
    }
    let long = json!({"ipBlock": {"cidr": "x".repeat(100_000)}});
    assert!(matches!(peer(&long), Peers::Nobody(why) if why.len() < 200));
}

#[test]
fn a_port_is_any_a_number_a_range_or_a_name() {
    for (given, protocol, kept) in [
        (json!({}), 6, Port::Any),
        (json!({"protocol": null, "port": null}), 6, Port::Any),
        (json!({"protocol": "UDP"}), 17, Port::Any),
        (
            json!({"protocol": "SCTP", "port": 7}),
            132,
            Port::Range(7, 7),
        ),
        (json!({"port": 80, "endPort": 90}), 6, Port::Range(80, 90)),
        (
            json!({"port": 65535, "endPort": 65535}),
            6,
            Port::Range(65535, 65535),
        ),
        (json!({"port": "http"}), 6, Port::Name("http".into())),
        (json!({"port": "80"}), 6, Port::Name("80".into())),
    ] {
        assert_eq!(port(&given), (protocol, kept), "{given}");
    }
    for (given, why) in [
        (json!({"protocol": "tcp"}), "its protocol 'tcp' is unknown"),
        (json!({"protocol": ""}), "its protocol '' is unknown"),
        (json!({"protocol": 6}), "its protocol is no text"),
        (json!({"port": 0}), "its port 0 is not between 1 and 65535"),
        (
            json!({"port": 65536}),
            "its port 65536 is not between 1 and 65535",
        ),
        (
            json!({"port": -1}),
            "its port is no port number and no name",
        ),
        (
            json!({"port": 80.0}),
            "its port is no port number and no name",
        ),
        (
            json!({"port": [80]}),
            "its port is no port number and no name",
        ),
        (json!({"port": ""}), "its port is an empty name"),
        (json!({"endPort": 80}), "it has an endPort without a port"),
        (
            json!({"port": "http", "endPort": 80}),
            "it has an endPort with a port that is a name",
        ),
        (
            json!({"port": 80, "endPort": 79}),
            "its endPort 79 is below its port 80",
        ),
        (
            json!({"port": 80, "endPort": 70000}),
            "its endPort 70000 is not between 1 and 65535",
        ),
        (
            json!({"port": 80, "endPort": "90"}),
            "its endPort is no port number",
        ),
    ] {
        assert_eq!(port(&given).1, Port::Nothing(why.into()), "{given}");
    }
}

#[test]
fn labels_and_expressions_must_all_hold() {
    let kept = selector(&json!({
        "matchLabels": {"tier": "back", "app": "web"},
        "matchExpressions": [
            {"key": "env", "operator": "In", "values": ["test", "prod", "test"]},
            {"key": "old", "operator": "DoesNotExist"},
            {"key": "zone", "operator": "NotIn", "values": ["1"]},
            {"key": "app", "operator": "Exists", "values": []},
        ],
    }));
    let keys: Vec<&str> = kept.0.iter().map(|one| &*one.key).collect();
    assert_eq!(keys, ["app", "tier", "env", "old", "zone", "app"]);
    assert_eq!(&*kept.0[2].values, &["prod".into(), "test".into()]);
    let all = [("app", "web"), ("tier", "back"), ("env", "prod")];
    assert!(kept.matches(&labels(&all)));
    for spoiler in [
        ("tier", "front"),
        ("env", "dev"),
        ("old", ""),
        ("zone", "1"),
    ] {
        let mut some: Vec<_> = all.into_iter().filter(|one| one.0 != spoiler.0).collect();
        some.push(spoiler);
        assert!(!kept.matches(&labels(&some)), "{spoiler:?}");
    }
    assert!(selector(&json!({"matchLabels": null, "matchExpressions": null})).is_empty());
    let empty = selector(&json!({"matchLabels": {"app": null}}));
    assert!(empty.matches(&labels(&[("app", "")])) && !empty.matches(&labels(&[])));
}

#[test]
fn a_requirement_that_cannot_be_read_holds_of_nothing() {
    for expression in [
        json!({"key": "app", "operator": "in", "values": ["web"]}),
        json!({"key": "app", "operator": "Gt", "values": ["1"]}),
        json!({"key": "app", "operator": "In"}),
        json!({"key": "app", "operator": "NotIn", "values": []}),
        json!({"key": "app", "operator": "NotIn", "values": ["db", 7]}),
        json!({"key": "app", "operator": "NotIn", "values": "db"}),
        json!({"key": "app", "operator": "Exists", "values": ["web"]}),
        json!({"key": "none", "operator": "DoesNotExist", "values": ["web"]}),
        json!({"key": "", "operator": "DoesNotExist"}),
        json!({"operator": "DoesNotExist"}),
        json!({"key": 5, "operator": "DoesNotExist"}),
        json!({"key": "app"}),
        json!({"key": "app", "operator": 5}),
        json!(null),
        json!("app"),
    ] {
        let (policy, odd) = reduce(&json!({"podSelector": {"matchExpressions": [expression]}}));
        assert_eq!(policy.pods.0[0].operator, Operator::Unknown, "{expression}");
        assert!(!policy.pods.matches(&labels(&[("app", "web")])));
        assert_eq!(odd, ["spec.podSelector"], "{expression}");
    }
    for pods in [
        json!({"matchLabels": {"app": 5}}),
        json!({"matchLabels": ["app"]}),
        json!({"matchLabels": {"app": "web"}, "matchExpressions": {}}),
    ] {
        assert!(
            !selector(&pods).matches(&labels(&[("app", "web")])),
            "{pods}"
        );
    }
}

/// Any JSON, made of the keys and values that policies have.
fn any_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "Ingress",
        "Egress",
        "TCP",
        "In",
        "NotIn",
        "10.0.0.0/8",
        "fd00::/200",
        "web",
        "",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u32..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "podSelector",
        "namespaceSelector",
        "policyTypes",
        "ingress",
        "egress",
        "from",
        "to",
        "ports",
        "port",
        "endPort",
        "protocol",
        "ipBlock",
        "cidr",
        "except",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
    ]);
    leaf.prop_recursive(7, 96, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_a_policy_that_allows_no_more_than_it_says(value in any_json(), place in 0_usize..9) {
        let mut spec = json!({
            "podSelector": {},
            "ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 80}]}],
        });
        let places = ["", "/podSelector", "/ingress", "/ingress/0", "/ingress/0/from", "/ingress/0/from/0",
            "/ingress/0/from/1/ipBlock", "/ingress/0/ports", "/ingress/0/ports/0/port"];
        *spec.pointer_mut(places[place]).unwrap() = value.clone();
        let (policy, odd) = reduce(&spec);
        prop_assert_eq!((&*policy.namespace, &*policy.name), ("shop", "web"));
        // For anybody is only what says so.
        let empty = value.is_null() || value == json!([]);
        if place == 4 {
            prop_assert_eq!(policy.ingress.unwrap()[0].peers.is_empty(), empty);
        } else if place == 7 {
            prop_assert_eq!(policy.ingress.unwrap()[0].ports.is_empty(), empty);
        } else if place == 5 && !value.is_object() {
            let nobody = matches!(policy.ingress.unwrap()[0].peers[0], Peers::Nobody(_));
            prop_assert!(nobody && odd == ["spec.ingress.from"]);
        } else if place == 6 {
            let cidr = value["cidr"].as_str().unwrap_or_default();
            let says = match &policy.ingress.unwrap()[0].peers[1] {
                Peers::Nobody(_) => true,
                Peers::Block { cidr: block, .. } => cidr.parse::<IpNet>().is_ok_and(|range| range.trunc() == *block),
                Peers::Pods { .. } => false,
            };
            // Without a block it is an item without anything, which is for nobody.
            prop_assert!(says);
        }
    }
}

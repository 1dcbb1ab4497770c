//! What is kept of good objects, and of bad ones.

use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::identify::object::{Node, Pod, Service, Slice};

fn reduce(kind: Kind, object: &Value) -> Reduced {
    let json = object.to_string();
    Reducer::default().object(kind, json.as_bytes()).unwrap()
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn pod(object: &Value) -> (Pod, Vec<&'static str>) {
    let reduced = reduce(Kind::LocalPod, object);
    match reduced.object {
        Some(Object::Pod(pod)) => (pod, reduced.odd),
        other => panic!("{other:?}"),
    }
}

fn a_pod() -> Value {
    json!({
        "metadata": {
            "name": "web-7d4b9c6f5d-x2x7q", "namespace": "shop", "uid": "u1", "resourceVersion": "42",
            "labels": {"pod-template-hash": "7d4b9c6f5d", "app": "web"},
            "ownerReferences": [
                {"kind": "Config", "name": "other"},
                {"kind": "ReplicaSet", "name": "web-7d4b9c6f5d", "controller": true},
            ],
        },
        "spec": {
            "nodeName": "aks-a",
            "containers": [{"ports": [
                {"name": "http", "containerPort": 8080},
                {"containerPort": 9090, "hostPort": 9090, "protocol": "UDP"},
            ]}],
            "initContainers": [
                {"ports": [{"name": "once", "containerPort": 1}]},
                {"restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15001}]},
            ],
        },
        "status": {"phase": "Running", "podIP": "10.244.0.7",
            "podIPs": [{"ip": "10.244.0.7"}, {"ip": "fd00::7"}]},
    })
}

#[test]
fn a_pod_is_kept_with_its_addresses_ports_and_workload() {
    let (pod, odd) = pod(&a_pod());
    assert!(odd.is_empty(), "{odd:?}");
    assert_eq!(
        (&*pod.namespace, &*pod.name, &*pod.uid),
        ("shop", "web-7d4b9c6f5d-x2x7q", "u1")
    );
    assert_eq!(&*pod.workload, "web");
    assert_eq!(&*pod.node, "aks-a");
    assert_eq!(pod.addresses, [addr("10.244.0.7"), addr("fd00::7")]);
    let named: Vec<(&str, u8, u16)> = pod
        .named_ports
        .iter()
        .map(|(n, p, q)| (&**n, *p, *q))
        .collect();
    assert_eq!(named, [("http", 6, 8080), ("mesh", 6, 15001)]);
    assert_eq!(pod.host_ports, [(9090, 17)]);
    assert!(!pod.finished && !pod.host_network);
    let keys: Vec<&str> = pod.labels.iter().map(|(key, _)| &**key).collect();
    assert_eq!(keys, ["app", "pod-template-hash"]);
    assert_eq!(reduce(Kind::LocalPod, &a_pod()).version, "42");
    assert_eq!(
        reduce(Kind::LocalPod, &a_pod()).label,
        "shop/web-7d4b9c6f5d-x2x7q"
    );
}

#[test]
fn a_pod_that_has_ended_or_not_begun_is_told() {
    let mut object = a_pod();
    for (phase, finished) in [
        ("Pending", false),
        ("Succeeded", true),
        ("Failed", true),
        ("Unknown", false),
    ] {
        object["status"] = json!({"phase": phase});
        let (pod, odd) = pod(&object);
        assert_eq!(pod.finished, finished, "{phase}");
        assert_eq!(pod.addresses, []);
        assert!(odd.is_empty());
    }
    object["status"] = json!({"podIP": "10.0.0.1", "podIPs": null});
    object["spec"]["hostNetwork"] = json!(true);
    let (pod, odd) = pod(&object);
    assert_eq!(pod.addresses, [addr("10.0.0.1")]);
    assert!(pod.host_network && odd.is_empty());
}

#[test]
fn what_is_odd_in_a_pod_is_left_out_alone() {
    let mut object = a_pod();
    object["status"]["podIPs"] =
        json!([{"ip": "10.244.0.300"}, {"ip": 7}, "x", {"ip": "10.244.0.8"}]);
    object["spec"]["containers"] = json!([null, 5, {"ports": [
        {"name": "a", "containerPort": 70000}, {"name": "b", "containerPort": -1},
        {"name": "c", "containerPort": 1, "protocol": "QUIC"}, {"name": "d", "containerPort": 2},
    ]}]);
    object["spec"]["nodeName"] = json!(["aks-a"]);
    object["metadata"]["labels"] = json!({"a": 1, "b": "2"});
    object["metadata"]["ownerReferences"] = json!({});
    let (pod, odd) = pod(&object);
    assert_eq!(pod.addresses, [addr("10.244.0.8")]);
    // One of the container, and the sidecar's.
    assert_eq!(pod.named_ports.len(), 2);
    assert_eq!(pod.labels.len(), 1);
    assert_eq!(&*pod.node, "");
    assert_eq!(
        odd,
        [
            "metadata.labels",
            "metadata.ownerReferences",
            "spec.containers",
            "spec.containers.ports.containerPort",
            "spec.containers.ports.protocol",
            "spec.nodeName",
            "status.podIPs",
        ]
    );
}

#[test]
fn an_object_without_a_name_is_none() {
    for metadata in [
        json!(null),
        json!({}),
        json!({"name": ""}),
        json!({"name": 3}),
        json!([]),
    ] {
        let reduced = reduce(Kind::Namespace, &json!({"metadata": metadata}));
        assert_eq!(reduced.object, None);
        assert!(reduced.odd.contains(&"metadata.name"), "{:?}", reduced.odd);
    }
}

fn service(object: &Value) -> (Service, Vec<&'static str>) {
    let reduced = reduce(Kind::Service, object);
    match reduced.object {
        Some(Object::Service(service)) => (service, reduced.odd),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_load_balancer_is_kept_with_all_its_addresses() {
    let (service, odd) = service(&json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.0.0.10", "clusterIPs": ["10.0.0.10", "fd00::10"],
            "externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999,
            "loadBalancerSourceRanges": [" 192.0.2.7/24 ", "2001:db8::/32"], "selector": {"tier": "front", "app": "web"},
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.20"}, {"hostname": "lb.example"}]}},
    }));
    assert!(odd.is_empty(), "{odd:?}");
    assert_eq!(service.cluster, [addr("10.0.0.10"), addr("fd00::10")]);
    assert_eq!(service.frontends, [addr("198.51.100.20")]);
    assert_eq!(service.external, [addr("192.0.2.1")]);
    assert!(service.local && service.load_balancer);
    assert_eq!(service.health_check_port, 30999);
    assert_eq!(
        service.source_ranges,
        ["192.0.2.0/24", "2001:db8::/32"].map(|range| range.parse().unwrap())
    );
    let selector: Vec<(&str, &str)> = service.selector.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(selector, [("app", "web"), ("tier", "front")]);
    let ports: Vec<(u8, u16, u16)> = service
        .ports
        .iter()
        .map(|p| (p.protocol, p.port, p.node_port))
        .collect();
    assert_eq!(ports, [(6, 80, 30080), (17, 53, 0)]);
}

#[test]
fn a_source_range_that_is_none_is_left_out() {
    let (service, odd) = service(&json!({
        "metadata": {"name": "web"},
        "spec": {"loadBalancerSourceRanges": ["10.0.0.0/40", 7, "10.0.0.0/8"], "selector": {"app": 1, "b": "2"}},
    }));
    assert_eq!(service.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(service.selector.len(), 1);
    assert_eq!(odd, ["spec.loadBalancerSourceRanges", "spec.selector"]);
}

#[test]
fn services_without_addresses_are_not_odd() {
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"type": "ExternalName", "externalName": "db.example"}),
        json!({"clusterIP": "", "ports": null}),
    ] {
        let (service, odd) = service(&json!({"metadata": {"name": "db"}, "spec": spec}));
        assert_eq!(service.cluster, []);
        assert!(odd.is_empty(), "{odd:?}");
    }
}

fn slice(object: &Value) -> (Slice, Vec<&'static str>) {
    let reduced = reduce(Kind::Slice, object);
    match reduced.object {
        Some(Object::Slice(slice)) => (slice, reduced.odd),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slice_is_kept_with_its_service_and_the_pods_behind() {
    let mut object = json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.244.0.7", "10.244.0.8"], "nodeName": "aks-a", "zone": "1",
                "targetRef": {"kind": "Pod", "name": "web-0"}},
            {"addresses": ["10.9.9.9"], "targetRef": {"kind": "Machine", "name": "vm"}},
            {"addresses": []}, {"addresses": ["nonsense"]}, null,
        ],
        "ports": [{"port": 8080, "protocol": "TCP"}, {"name": "any"}],
    });
    let (kept, odd) = slice(&object);
    assert_eq!(odd, ["endpoints.addresses"]);
    assert_eq!(&*kept.service, "web");
    assert_eq!(kept.ports, [(6, 8080)]);
    let endpoints: Vec<(Addr, &str)> = kept
        .endpoints
        .iter()
        .map(|e| (e.address, &*e.pod))
        .collect();
    assert_eq!(
        endpoints,
        [(addr("10.244.0.7"), "web-0"), (addr("10.9.9.9"), "")]
    );
    object["addressType"] = json!("FQDN");
    object["endpoints"] = json!([{"addresses": ["db.example"]}]);
    let (kept, odd) = slice(&object);
    assert!(kept.endpoints.is_empty() && odd.is_empty());
}

fn node(object: &Value) -> (Node, Vec<&'static str>) {
    let reduced = reduce(Kind::Node, object);
    match reduced.object {
        Some(Object::Node(node)) => (node, reduced.odd),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_is_kept_with_its_zone_if_it_is_one() {
    let object = |zone: &str| {
        json!({
            "metadata": {"name": "aks-a", "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "10.244.0.0/33"]},
            "status": {"capacity": {"pods": "250"}, "addresses": [
                {"type": "InternalIP", "address": "10.224.0.4"}, {"type": "Hostname", "address": "aks-a"},
                {"type": "ExternalIP", "address": "203.0.113.4"},
            ]},
        })
    };
    let (kept, odd) = node(&object("westeurope-1"));
    assert_eq!(odd, ["spec.podCIDRs"]);
    assert_eq!(&*kept.zone, "westeurope-1");
    assert_eq!(kept.addresses, [addr("10.224.0.4"), addr("203.0.113.4")]);
    assert_eq!(kept.pod_cidrs, ["10.244.0.0/24".parse().unwrap()]);
    assert_eq!(kept.pod_capacity, 250);
    assert_eq!(&*node(&object("0")).0.zone, "");
    let (kept, odd) =
        node(&json!({"metadata": {"name": "x"}, "status": {"capacity": {"pods": "1k"}}}));
    assert_eq!((kept.pod_capacity, odd), (0, vec!["status.capacity.pods"]));
}

#[test]
fn events_say_what_happened() {
    let mut reducer = Reducer::default();
    let mut event = |json: &str| reducer.event(Kind::Namespace, json.as_bytes()).unwrap();
    let Event::Deleted(gone) = event(r#"{"object":{"metadata":{"name":"a"}},"type":"DELETED"}"#)
    else {
        panic!("not deleted");
    };
    assert_eq!(gone.label, "a");
    let bookmark = event(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#);
    assert!(matches!(bookmark, Event::Bookmark(version) if version == "7"));
    let error = event(
        r#"{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"old","details":{"retryAfterSeconds":3}}}"#,
    );
    let Event::Error(problem) = error else {
        panic!("no error");
    };
    assert_eq!(
        (problem.code, problem.retry_after, &*problem.reason),
        (410, 3, "Expired")
    );
    assert!(matches!(event(r#"{"type":"ERROR"}"#), Event::Error(problem) if problem.code == 0));
    assert!(matches!(event("[1]"), Event::Unknown(_)));
}

#[test]
fn a_page_says_where_the_next_begins() {
    let end =
        page_end(br#"{"metadata":{"resourceVersion":"7","continue":"abc"},"items":[]}"#).unwrap();
    assert_eq!((&*end.version, &*end.next), ("7", "abc"));
    assert_eq!(page_end(b"[]").unwrap(), PageEnd::default());
    assert!(page_end(b"<html>").is_err());
}

/// Any JSON, made of the keys that objects have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9.:/]{0,12}".prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "metadata",
        "name",
        "namespace",
        "labels",
        "ownerReferences",
        "spec",
        "status",
        "nodeName",
        "containers",
        "ports",
        "podIPs",
        "ip",
        "clusterIPs",
        "loadBalancer",
        "ingress",
        "endpoints",
        "addresses",
        "targetRef",
        "podCIDRs",
        "capacity",
        "pods",
        "port",
        "protocol",
        "type",
        "object",
        "kind",
        "controller",
    ]);
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_reduced_or_skipped(value in any_json(), kind in prop::sample::select(&Kind::ALL[..])) {
        let reduced = reduce(kind, &value);
        // Nothing is left out without a word.
        prop_assert!(reduced.object.is_some() || !reduced.odd.is_empty());
        let event = json!({"type": "ADDED", "object": value}).to_string();
        prop_assert!(Reducer::default().event(kind, event.as_bytes()).is_ok());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in prop::sample::select(&Kind::ALL[..])) {
        let mut reducer = Reducer::default();
        let _ = reducer.object(kind, &bytes);
        let _ = reducer.event(kind, &bytes);
        let _ = problem(&bytes);
        let _ = page_end(&bytes);
    }

    #[test]
    fn one_field_of_any_kind_spoils_no_other(value in any_json(), field in 0_usize..4) {
        let mut object = a_pod();
        let place = ["/spec/containers", "/metadata/labels", "/metadata/ownerReferences", "/spec/initContainers"][field];
        *object.pointer_mut(place).unwrap() = value;
        let (pod, _) = pod(&object);
        prop_assert_eq!(pod.addresses, [addr("10.244.0.7"), addr("fd00::7")]);
        prop_assert_eq!(&*pod.node, "aks-a");
    }
}

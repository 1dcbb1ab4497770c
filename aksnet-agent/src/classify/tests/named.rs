//! Classes and names where Kubernetes' objects say what no range does.

use std::sync::Arc;

use aksnet_common::packet::TCP;

use super::*;
use crate::identify::{
    index::Index,
    object::{Endpoint, Kind, Labels, Node, Object, Pod, Service, ServicePort, Slice, Text},
};
use crate::policy::flow::Who;

const SECOND: Moment = 1_000_000_000;
/// When everything below was told; and when the tests' connections begin.
const TOLD: Moment = 1_000 * SECOND;
const BEGAN: Moment = 1_100 * SECOND;

fn addr(s: &str) -> Addr {
    s.parse::<IpAddr>().expect("an address").into()
}

fn ip(s: &str) -> IpAddr {
    s.parse().expect("an address")
}

fn net(s: &str) -> ipnet::IpNet {
    s.parse().expect("a range")
}

fn no_labels() -> Labels {
    Arc::from([])
}

fn pod(namespace: &str, name: &str, workload: &str, node: &str, address: &str) -> Object {
    Object::Pod(Pod {
        kind: if node == "aks-1" {
            Kind::LocalPod
        } else {
            Kind::RemotePod
        },
        key_name: name.into(),
        namespace: namespace.into(),
        name: name.into(),
        uid: name.into(),
        addresses: vec![addr(address)],
        workload: workload.into(),
        node: node.into(),
        host_network: false,
        finished: false,
        labels: no_labels(),
        named_ports: vec![],
        host_ports: vec![],
    })
}

fn service(namespace: &str, name: &str, cluster: &str, frontend: &str) -> Object {
    let addresses = |s: &str| s.split_whitespace().map(addr).collect();
    Object::Service(Service {
        namespace: namespace.into(),
        name: name.into(),
        cluster: addresses(cluster),
        frontends: addresses(frontend),
        external: vec![],
        ports: vec![ServicePort {
            name: Text::default(),
            protocol: TCP,
            port: 443,
            node_port: 31_443,
        }],
        local: false,
        load_balancer: !frontend.is_empty(),
        has_ingress: false,
        health_check_port: 0,
        source_ranges: Vec::new(),
        selector: [].into(),
    })
}

fn node(name: &str, address: &str, zone: &str) -> Object {
    Object::Node(Node {
        name: name.into(),
        addresses: vec![addr(address)],
        zone: zone.into(),
        pod_cidrs: vec![],
        labels: no_labels(),
        pod_capacity: 0,
    })
}

fn index(objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::new("aks-1");
    for object in objects {
        index.apply(object, TOLD);
    }
    index
}

/// A cluster in three zones, none of whose ranges any route shows.
fn cluster() -> Index {
    index([
        node("aks-1", "10.224.0.4", "eastus2-1"),
        node("aks-2", "10.224.0.5", "eastus2-1"),
        node("aks-3", "10.224.0.6", "eastus2-2"),
        node("aks-4", "10.224.0.7", ""),
        pod("shop", "web-1", "web", "aks-1", "10.244.1.5"),
        pod("shop", "db-0", "db", "aks-2", "10.244.2.6"),
        pod("shop", "search-0", "search", "aks-3", "10.244.3.6"),
        pod("shop", "cache-0", "cache", "aks-4", "10.244.4.6"),
        service("shop", "db", "172.20.0.10", ""),
        service("shop", "front", "172.20.0.11", "10.224.9.9"),
        service("default", "kubernetes", "172.20.0.1", ""),
        Object::Slice(Slice {
            namespace: "default".into(),
            name: "kubernetes".into(),
            service: "kubernetes".into(),
            endpoints: vec![Endpoint {
                address: addr("10.224.0.5"),
                pod: Text::default(),
                node: Text::default(),
                zone: Text::default(),
            }],
            ports: vec![(TCP, 6443)],
        }),
    ])
}

/// A plan that knows the node's own addresses and interfaces and nothing else.
fn bare() -> Plan {
    Plan::builder()
        .node_name("aks-1")
        .node_address(ip("10.224.0.4"))
        .node_address(ip("10.244.1.1"))
        .vnet_cidr(net("10.224.0.0/12"))
        .interface(POD_VETH, Role::Pod, "veth1")
        .interface(OTHER_VETH, Role::Pod, "veth2")
        .interface(UPLINK, Role::Uplink, "eth0")
        .build()
}

/// A verdict and how labels name both ends.
fn judged(index: &Index, plan: &Plan, facts: FlowFacts) -> (Verdict, [String; 2]) {
    let whois = Whois {
        plan,
        index,
        translations: None,
    };
    let verdict = classify(&facts, &whois);
    let name = |peer: &Peer| format!("{}/{}", whois.namespace(peer), whois.workload(peer));
    let names = [name(&verdict.client), name(&verdict.server)];
    (verdict, names)
}

fn at(facts: FlowFacts) -> FlowFacts {
    FlowFacts {
        began: BEGAN,
        ..facts
    }
}

#[test]
fn kubernetes_names_what_no_route_shows() {
    let (index, plan) = (cluster(), bare());
    let before = tuple("10.244.1.5", 40000, "172.20.0.10", 443);
    let after = tuple("10.244.1.5", 40000, "10.244.2.6", 8443);
    let (verdict, names) = judged(&index, &plan, at(seen(before, after, POD_VETH, UPLINK)));
    assert_eq!(
        (verdict.class, verdict.nat, verdict.scope),
        (Class::PodToService, NatKind::Dnat, Scope::SameZone)
    );
    assert_eq!(names, ["shop/web", "shop/db"]);
    // Not seen to leave: the service itself is the best name there is.
    let unanswered = FlowFacts {
        after: None,
        ..at(seen(before, before, POD_VETH, 0))
    };
    let (verdict, names) = judged(&index, &plan, unanswered);
    assert_eq!(verdict.class, Class::PodToService);
    assert_eq!(names[1], "shop/service/db");
}

#[test]
fn zones_tell_how_far_it_is() {
    let (index, plan) = (cluster(), bare());
    for (to, scope) in [
        ("10.244.2.6", Scope::SameZone),
        ("10.244.3.6", Scope::CrossZone),
        // That node is in no zone.
        ("10.244.4.6", Scope::CrossNode),
    ] {
        let t = tuple("10.244.1.5", 40000, to, 80);
        let (verdict, _) = judged(&index, &plan, at(seen(t, t, POD_VETH, UPLINK)));
        assert_eq!(
            (verdict.class, verdict.scope),
            (Class::PodToPod, scope),
            "{to}"
        );
    }
}

#[test]
fn this_nodes_zone_comes_from_the_plan_where_no_node_object_tells() {
    let index = index([
        node("aks-3", "10.224.0.6", "eastus2-2"),
        pod("shop", "search-0", "search", "aks-3", "10.244.3.6"),
    ]);
    let plan = Plan::builder()
        .zone("eastus2-2")
        .local_pod_cidr(net("10.244.1.0/24"))
        .build();
    let t = tuple("10.244.1.5", 40000, "10.244.3.6", 80);
    let (verdict, _) = judged(&index, &plan, at(seen(t, t, POD_VETH, UPLINK)));
    assert_eq!(verdict.scope, Scope::SameZone);
}

#[test]
fn the_port_tells_the_api_server_from_the_node_it_runs_on() {
    let (index, plan) = (cluster(), bare());
    for (port, class) in [(6443, Class::ApiServer), (10250, Class::PodToNode)] {
        let t = tuple("10.244.1.5", 40000, "10.224.0.5", port);
        let (verdict, _) = judged(&index, &plan, at(seen(t, t, POD_VETH, UPLINK)));
        assert_eq!(verdict.class, class, "port {port}");
    }
    // By its service: before the translation was seen, and after.
    let before = tuple("10.244.1.5", 40000, "172.20.0.1", 443);
    let after = tuple("10.224.0.4", 1234, "10.224.0.5", 6443);
    let (verdict, names) = judged(&index, &plan, at(seen(before, after, POD_VETH, UPLINK)));
    assert_eq!(
        (verdict.class, verdict.nat),
        (Class::ApiServer, NatKind::Both)
    );
    assert_eq!(names[1], "/api_server");
    let unanswered = FlowFacts {
        after: None,
        ..at(seen(before, before, POD_VETH, 0))
    };
    assert_eq!(judged(&index, &plan, unanswered).0.class, Class::ApiServer);
}

#[test]
fn an_internal_frontend_is_a_load_balancer_though_it_lies_in_the_virtual_network() {
    let (index, plan) = (cluster(), bare());
    let before = tuple("10.224.7.7", 40000, "10.224.9.9", 443);
    // Refused, or not seen to leave yet: nothing but the service tells.
    let refused = FlowFacts {
        after: None,
        ..at(seen(before, before, UPLINK, 0))
    };
    let (verdict, names) = judged(&index, &plan, refused);
    assert_eq!(verdict.class, Class::LoadBalancer);
    assert_eq!(names, ["/vnet", "shop/service/front"]);
}

#[test]
fn nodes_have_their_names() {
    let (index, plan) = (cluster(), bare());
    let t = tuple("10.224.0.6", 5123, "10.244.1.5", 8080);
    let (verdict, names) = judged(&index, &plan, at(seen(t, t, UPLINK, POD_VETH)));
    assert_eq!(
        (verdict.class, verdict.scope),
        (Class::NodeToPod, Scope::CrossZone)
    );
    assert_eq!(names, ["/node/aks-3", "shop/web"]);
    // The bridge's address is this node's, whatever else is said of its range.
    let t = tuple("10.244.1.1", 5123, "10.244.1.5", 8080);
    let (verdict, names) = judged(&index, &plan, at(seen(t, t, 0, POD_VETH)));
    assert_eq!(
        (verdict.class, verdict.scope),
        (Class::NodeToPod, Scope::SameNode)
    );
    assert_eq!(names, ["/node/aks-1", "shop/web"]);
}

#[test]
fn a_pod_that_claims_the_nodes_address_does_not_get_it() {
    let mut index = cluster();
    index.apply(pod("evil", "liar", "liar", "aks-1", "10.224.0.4"), TOLD);
    let t = tuple("10.224.0.4", 5123, "10.244.1.5", 8080);
    let (verdict, names) = judged(&index, &bare(), at(seen(t, t, 0, POD_VETH)));
    assert_eq!(verdict.class, Class::NodeToPod);
    assert_eq!(names[0], "/node/aks-1");
}

#[test]
fn a_flow_has_the_name_of_who_held_the_address_when_it_began() {
    let mut index = cluster();
    let key = pod("shop", "web-1", "web", "aks-1", "10.244.1.5").key();
    index.delete(&key, 1_200 * SECOND);
    index.apply(
        pod("shop", "batch-7", "batch", "aks-1", "10.244.1.5"),
        1_210 * SECOND,
    );
    let t = tuple("10.244.1.5", 40000, "10.244.2.6", 80);
    let began = |second| FlowFacts {
        began: second * SECOND,
        ..seen(t, t, POD_VETH, UPLINK)
    };
    let plan = bare();
    assert_eq!(judged(&index, &plan, began(1_100)).1[0], "shop/web");
    assert_eq!(judged(&index, &plan, began(1_220)).1[0], "shop/batch");
}

#[test]
fn a_veth_tells_a_pod_that_kubernetes_has_not_told_of_yet() {
    let (index, plan) = (cluster(), bare());
    let t = tuple("10.244.1.77", 40000, "10.244.2.6", 80);
    let (verdict, names) = judged(&index, &plan, at(seen(t, t, POD_VETH, UPLINK)));
    assert_eq!(verdict.class, Class::PodToPod);
    assert!(verdict.client.awaits_name());
    assert_eq!(names, ["/", "shop/db"]);
}

#[test]
fn what_the_node_dialled_is_a_service_though_it_left_translated() {
    let (index, plan) = (cluster(), bare());
    let facts = at(seen(
        tuple("10.224.0.4", 40000, "172.20.0.10", 443),
        tuple("10.224.0.4", 40000, "10.244.2.6", 8443),
        0,
        UPLINK,
    ));
    let (verdict, names) = judged(&index, &plan, facts);
    assert_eq!(
        (verdict.class, verdict.nat, verdict.scope),
        (Class::NodeToService, NatKind::Dnat, Scope::SameZone)
    );
    assert_eq!(names, ["/node/aks-1", "shop/db"]);
}

mod anomalies {
    use super::*;
    use crate::plan::SourceNat;

    fn anomaly(facts: FlowFacts, expected: SourceNat) -> Option<Anomaly> {
        let plan = Plan::builder()
            .node_address(ip("10.224.0.4"))
            .vnet_cidr(net("10.224.0.0/12"))
            .source_nat(expected)
            .interface(POD_VETH, Role::Pod, "veth1")
            .interface(UPLINK, Role::Uplink, "eth0")
            .build();
        judged(&cluster(), &plan, at(facts)).0.anomaly
    }

    #[test]
    fn pod_to_pod_snat_is_one_whatever_is_expected() {
        let before = tuple("10.244.1.5", 40000, "10.244.2.6", 80);
        let after = tuple("10.224.0.4", 40000, "10.244.2.6", 80);
        let masqueraded = seen(before, after, POD_VETH, UPLINK);
        for expected in [
            SourceNat::NotExpected,
            SourceNat::Internet,
            SourceNat::Everything,
        ] {
            assert_eq!(anomaly(masqueraded, expected), Some(Anomaly::PodToPodSnat));
            assert_eq!(
                anomaly(seen(before, before, POD_VETH, UPLINK), expected),
                None
            );
        }
    }

    #[test]
    fn egress_with_the_pods_own_address_is_one_where_it_has_no_way_back() {
        for (to, kubenet, node_subnet) in [
            ("93.184.216.34", true, true),
            // The virtual network knows pods of Azure CNI node subnet, and none of kubenet's.
            ("10.225.1.1", true, false),
            ("10.244.2.6", false, false),
        ] {
            let t = tuple("10.244.1.5", 40000, to, 443);
            let bare = seen(t, t, POD_VETH, UPLINK);
            let some = |yes: bool| yes.then_some(Anomaly::EgressWithoutSnat);
            assert_eq!(anomaly(bare, SourceNat::Everything), some(kubenet), "{to}");
            assert_eq!(
                anomaly(bare, SourceNat::Internet),
                some(node_subnet),
                "{to}"
            );
            assert_eq!(anomaly(bare, SourceNat::NotExpected), None, "{to}");
            let after = tuple("10.224.0.4", 40000, to, 443);
            let masqueraded = seen(t, after, POD_VETH, UPLINK);
            if to != "10.244.2.6" {
                assert_eq!(anomaly(masqueraded, SourceNat::Everything), None, "{to}");
            }
        }
    }

    #[test]
    fn nothing_is_wrong_with_a_packet_that_was_not_seen_to_leave() {
        let t = tuple("10.244.1.5", 40000, "93.184.216.34", 443);
        let dropped = FlowFacts {
            after: None,
            ..seen(t, t, POD_VETH, UPLINK)
        };
        assert_eq!(anomaly(dropped, SourceNat::Everything), None);
    }

    #[test]
    fn a_frontend_whose_backend_is_elsewhere_takes_an_extra_hop() {
        for dialled in [("10.224.9.9", 443), ("10.224.0.4", 31_443)] {
            let before = tuple("93.184.216.34", 40000, dialled.0, dialled.1);
            let on = tuple("10.224.0.4", 5123, "10.244.2.6", 8443);
            assert_eq!(
                anomaly(seen(before, on, UPLINK, UPLINK), SourceNat::NotExpected),
                Some(Anomaly::ExtraHop)
            );
            let here = tuple("10.244.1.1", 5123, "10.244.1.5", 8443);
            assert_eq!(
                anomaly(seen(before, here, UPLINK, POD_VETH), SourceNat::NotExpected),
                None
            );
            // A pod's way to a frontend is the same with and without that policy.
            let before = tuple("10.244.1.5", 40000, dialled.0, dialled.1);
            assert_eq!(
                anomaly(seen(before, on, POD_VETH, UPLINK), SourceNat::NotExpected),
                None
            );
        }
    }
}

/// What policies see at an address.
fn party(index: &Index, plan: &Plan, address: &str) -> String {
    let whois = Whois {
        plan,
        index,
        translations: None,
    };
    match whois.party(addr(address), BEGAN) {
        Who::Pod(pod) => format!("{}/{}", pod.namespace, pod.name),
        Who::UnknownPod => "a pod".to_owned(),
        Who::Node { this: true } => "this node".to_owned(),
        Who::Node { this: false } => "a node".to_owned(),
        Who::External => "outside".to_owned(),
        Who::Service => "a service".to_owned(),
    }
}

#[test]
fn policies_see_pods_nodes_and_services_by_objects_and_then_by_ranges() {
    let index = cluster();
    let plan = Plan::builder()
        .node_name("aks-1")
        .node_address(ip("10.224.0.4"))
        .node_address(ip("10.244.1.1"))
        .node_address(ip("10.224.9.9"))
        .pod_cidr(net("10.244.0.0/16"))
        .service_cidr(net("10.0.0.0/16"))
        .vnet_cidr(net("10.224.0.0/12"))
        .build();
    for (address, who) in [
        ("10.244.1.5", "shop/web-1"),
        ("10.244.2.6", "shop/db-0"),
        ("10.244.2.99", "a pod"),
        ("10.224.0.4", "this node"),
        ("10.244.1.1", "this node"),
        ("10.224.0.5", "a node"),
        ("172.20.0.10", "a service"),
        ("10.0.7.7", "a service"),
        // A frontend that one of the node's devices has.
        ("10.224.9.9", "a service"),
        ("10.224.77.7", "outside"),
        ("168.63.129.16", "outside"),
        ("169.254.169.254", "outside"),
        ("169.254.20.10", "this node"),
        ("203.0.113.9", "outside"),
    ] {
        assert_eq!(party(&index, &plan, address), who, "{address}");
    }
}

//! One test per row of the truth table (DOMAIN: flow classes), on IPv4 and on IPv6.

use std::net::IpAddr;

use super::*;

mod named;

const POD_VETH: u32 = 11;
const OTHER_VETH: u32 = 12;
const UPLINK: u32 = 2;

/// One node's addresses in one family.
struct Net {
    pod: &'static str,
    other_pod: &'static str,
    remote_pod: &'static str,
    bridge: &'static str,
    node: &'static str,
    other_node: &'static str,
    service: &'static str,
    frontend: &'static str,
    outside: &'static str,
    vnet: &'static str,
    endpoint: &'static str,
    api: &'static str,
    on_premises: &'static str,
}

const NETS: [Net; 2] = [
    Net {
        pod: "10.244.1.5",
        other_pod: "10.244.1.6",
        remote_pod: "10.244.2.5",
        bridge: "10.244.1.1",
        node: "10.224.0.4",
        other_node: "10.224.0.5",
        service: "10.0.0.10",
        frontend: "20.50.1.1",
        outside: "93.184.216.34",
        vnet: "10.225.0.9",
        endpoint: "10.224.8.4",
        api: "40.1.2.3",
        on_premises: "192.168.7.7",
    },
    Net {
        pod: "fd00:244:1::5",
        other_pod: "fd00:244:1::6",
        remote_pod: "fd00:244:2::5",
        bridge: "fd00:244:1::1",
        node: "fd00:224::4",
        other_node: "fd00:224::5",
        service: "fd00:10::10",
        frontend: "2603:1030::1",
        outside: "2606:2800:220::1",
        vnet: "fd00:225::9",
        endpoint: "fd00:224:8::4",
        api: "2603:1030::99",
        on_premises: "fd99::7",
    },
];

fn plan() -> Plan {
    let net = |s: &str| s.parse().expect("a range");
    let ip = |s: &str| s.parse::<IpAddr>().expect("an address");
    let mut builder = Plan::builder()
        .pod_cidr(net("10.244.0.0/16"))
        .pod_cidr(net("fd00:244::/32"))
        .local_pod_cidr(net("10.244.1.0/24"))
        .local_pod_cidr(net("fd00:244:1::/64"))
        .service_cidr(net("10.0.0.0/16"))
        .service_cidr(net("fd00:10::/112"))
        .vnet_cidr(net("10.224.0.0/12"))
        .vnet_cidr(net("fd00:224::/31"))
        .vnet_cidr(net("fd00:225::/32"))
        .private_endpoint_cidr(net("10.224.8.0/24"))
        .private_endpoint_cidr(net("fd00:224:8::/64"))
        .named_cidr("on_premises", net("192.168.0.0/16"))
        .named_cidr("on_premises", net("fd99::/16"))
        .node_name("aks-1")
        .interface(POD_VETH, Role::Pod, "veth1")
        .interface(OTHER_VETH, Role::Pod, "veth2")
        .interface(UPLINK, Role::Uplink, "eth0");
    for n in &NETS {
        builder = builder
            .node_address(ip(n.node))
            .node_address(ip(n.bridge))
            .other_node("aks-2", ip(n.other_node))
            .load_balancer(ip(n.frontend))
            .api_server(ip(n.api), 443);
    }
    builder.build()
}

fn tuple(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
    let ip = |s: &str| s.parse::<IpAddr>().expect("an address").into();
    Tuple {
        src: ip(src),
        dst: ip(dst),
        src_port,
        dst_port,
    }
}

/// A connection from a client's port 40000, entering and leaving through the interfaces.
fn seen(before: Tuple, after: Tuple, client_ifindex: u32, server_ifindex: u32) -> FlowFacts {
    FlowFacts {
        before,
        after: Some(after),
        from_node: client_ifindex == 0,
        to_node: false,
        client_ifindex,
        server_ifindex,
        began: 0,
    }
}

fn is(facts: FlowFacts) -> (Class, NatKind, Scope) {
    let verdict = classify(&facts, &Whois::without_names(&plan()));
    (verdict.class, verdict.nat, verdict.scope)
}

#[test]
fn pod_to_pod_on_the_node_is_same_node() {
    for n in &NETS {
        let t = tuple(n.pod, 40000, n.other_pod, 80);
        assert_eq!(
            is(seen(t, t, POD_VETH, OTHER_VETH)),
            (Class::PodToPod, NatKind::None, Scope::SameNode)
        );
    }
}

#[test]
fn pod_to_pod_across_nodes_is_cross_node_either_way() {
    for n in &NETS {
        let out = tuple(n.pod, 40000, n.remote_pod, 80);
        let into = tuple(n.remote_pod, 40000, n.pod, 80);
        let expected = (Class::PodToPod, NatKind::None, Scope::CrossNode);
        assert_eq!(is(seen(out, out, POD_VETH, UPLINK)), expected);
        assert_eq!(is(seen(into, into, UPLINK, POD_VETH)), expected);
    }
}

#[test]
fn pod_to_cluster_ip_is_a_service_with_dnat() {
    for n in &NETS {
        let before = tuple(n.pod, 40000, n.service, 80);
        assert_eq!(
            is(seen(
                before,
                tuple(n.pod, 40000, n.other_pod, 8080),
                POD_VETH,
                OTHER_VETH
            )),
            (Class::PodToService, NatKind::Dnat, Scope::SameNode)
        );
        assert_eq!(
            is(seen(
                before,
                tuple(n.pod, 40000, n.remote_pod, 8080),
                POD_VETH,
                UPLINK
            )),
            (Class::PodToService, NatKind::Dnat, Scope::CrossNode)
        );
    }
}

#[test]
fn hairpin_through_a_service_is_both_and_same_node() {
    for n in &NETS {
        assert_eq!(
            is(seen(
                tuple(n.pod, 40000, n.service, 80),
                tuple(n.bridge, 5123, n.pod, 8080),
                POD_VETH,
                POD_VETH
            )),
            (Class::PodToService, NatKind::Both, Scope::SameNode)
        );
    }
}

#[test]
fn cluster_ip_with_an_external_endpoint_reaches_outside() {
    for n in &NETS {
        assert_eq!(
            is(seen(
                tuple(n.pod, 40000, n.service, 443),
                tuple(n.node, 5123, n.outside, 443),
                POD_VETH,
                UPLINK
            )),
            (Class::PodToService, NatKind::Both, Scope::External)
        );
    }
}

#[test]
fn the_kubernetes_service_is_the_api_server() {
    for n in &NETS {
        assert_eq!(
            is(seen(
                tuple(n.pod, 40000, n.service, 443),
                tuple(n.node, 5123, n.api, 443),
                POD_VETH,
                UPLINK
            ))
            .0,
            Class::ApiServer
        );
        let t = tuple(n.node, 40000, n.api, 443);
        assert_eq!(is(seen(t, t, 0, UPLINK)).0, Class::ApiServer);
    }
}

#[test]
fn host_to_service_is_node_to_service() {
    for n in &NETS {
        let before = tuple(n.node, 40000, n.service, 80);
        let after = tuple(n.bridge, 5123, n.pod, 8080);
        assert_eq!(
            is(seen(before, after, 0, POD_VETH)),
            (Class::NodeToService, NatKind::Both, Scope::SameNode)
        );
    }
}

#[test]
fn egress_is_pod_to_external_and_the_nat_label_tells_a_missing_snat() {
    for n in &NETS {
        for (to, scope) in [
            (n.outside, Scope::External),
            (n.on_premises, Scope::External),
            (n.vnet, Scope::Vnet),
        ] {
            let before = tuple(n.pod, 40000, to, 443);
            assert_eq!(
                is(seen(
                    before,
                    tuple(n.node, 40000, to, 443),
                    POD_VETH,
                    UPLINK
                )),
                (Class::PodToExternal, NatKind::Snat, scope)
            );
            assert_eq!(
                is(seen(before, before, POD_VETH, UPLINK)),
                (Class::PodToExternal, NatKind::None, scope)
            );
        }
    }
}

#[test]
fn pod_to_pod_with_snat_stays_pod_to_pod() {
    for n in &NETS {
        assert_eq!(
            is(seen(
                tuple(n.pod, 40000, n.remote_pod, 80),
                tuple(n.node, 40000, n.remote_pod, 80),
                POD_VETH,
                UPLINK
            )),
            (Class::PodToPod, NatKind::Snat, Scope::CrossNode)
        );
    }
}

#[test]
fn load_balancer_is_recognised_with_either_traffic_policy() {
    for n in &NETS {
        let before = tuple(n.outside, 40000, n.frontend, 80);
        for (after, server, nat) in [
            (tuple(n.bridge, 5123, n.pod, 8080), POD_VETH, NatKind::Both),
            (
                tuple(n.node, 5123, n.remote_pod, 8080),
                UPLINK,
                NatKind::Both,
            ),
            (
                tuple(n.outside, 40000, n.pod, 8080),
                POD_VETH,
                NatKind::Dnat,
            ),
        ] {
            assert_eq!(
                is(seen(before, after, UPLINK, server)),
                (Class::LoadBalancer, nat, Scope::External)
            );
        }
    }
}

#[test]
fn a_frontend_nobody_named_is_known_by_its_redirection() {
    let before = tuple("93.184.216.34", 40000, "20.99.1.1", 80);
    let after = tuple("93.184.216.34", 40000, "10.244.1.5", 8080);
    assert_eq!(
        is(seen(before, after, UPLINK, POD_VETH)),
        (Class::LoadBalancer, NatKind::Dnat, Scope::External)
    );
    let before = tuple("2606:2800:220::1", 40000, "2603:1030::77", 80);
    let after = tuple("2606:2800:220::1", 40000, "fd00:244:1::5", 8080);
    assert_eq!(
        is(seen(before, after, UPLINK, POD_VETH)),
        (Class::LoadBalancer, NatKind::Dnat, Scope::External)
    );
}

#[test]
fn a_service_range_nobody_configured_is_known_by_its_redirection() {
    // 172.20.0.0/16 and fd77::/16 are in no entry of the plan.
    for (client, dialled, server) in [
        ("10.244.1.5", "172.20.0.10", "10.244.1.6"),
        ("10.244.1.5", "172.20.0.10", "10.244.2.6"),
        ("fd00:244:1::5", "fd77::a", "fd00:244:1::6"),
    ] {
        let before = tuple(client, 40000, dialled, 80);
        let after = tuple(client, 40000, server, 8080);
        let (class, nat, _) = is(seen(before, after, POD_VETH, 0));
        assert_eq!((class, nat), (Class::PodToService, NatKind::Dnat));
        // Not redirected, it is a host somewhere in private address space.
        let (class, ..) = is(seen(before, before, POD_VETH, UPLINK));
        assert_eq!(class, Class::PodToExternal);
    }
}

#[test]
fn a_redirected_address_outside_private_space_is_a_load_balancers() {
    for (client, dialled, server) in [
        ("10.244.1.5", "20.99.1.1", "10.244.1.6"),
        // An internal load balancer has an address of the virtual network.
        ("10.244.1.5", "10.224.3.9", "10.244.1.6"),
        // From outside, a private address that is redirected is a frontend all the same.
        ("10.224.7.7", "172.20.0.10", "10.244.1.6"),
    ] {
        let before = tuple(client, 40000, dialled, 80);
        let after = tuple(client, 40000, server, 8080);
        let interface = if client == "10.244.1.5" {
            POD_VETH
        } else {
            UPLINK
        };
        let (class, nat, _) = is(seen(before, after, interface, OTHER_VETH));
        assert_eq!((class, nat), (Class::LoadBalancer, NatKind::Dnat));
    }
}

#[test]
fn the_second_leg_of_a_load_balanced_connection_is_node_to_pod() {
    for n in &NETS {
        let t = tuple(n.other_node, 5123, n.pod, 8080);
        assert_eq!(
            is(seen(t, t, UPLINK, POD_VETH)),
            (Class::NodeToPod, NatKind::None, Scope::CrossNode)
        );
    }
}

#[test]
fn pod_to_its_own_load_balancer_never_leaves_the_cluster() {
    for n in &NETS {
        let before = tuple(n.pod, 40000, n.frontend, 80);
        assert_eq!(
            is(seen(
                before,
                tuple(n.bridge, 5123, n.other_pod, 8080),
                POD_VETH,
                OTHER_VETH
            )),
            (Class::LoadBalancer, NatKind::Both, Scope::SameNode)
        );
        assert_eq!(
            is(seen(
                before,
                tuple(n.pod, 40000, n.other_pod, 8080),
                POD_VETH,
                OTHER_VETH
            )),
            (Class::LoadBalancer, NatKind::Dnat, Scope::SameNode)
        );
    }
}

#[test]
fn node_port_is_recognised_with_either_traffic_policy() {
    for n in &NETS {
        let before = tuple(n.outside, 40000, n.node, 31080);
        assert_eq!(
            is(seen(
                before,
                tuple(n.bridge, 5123, n.pod, 8080),
                UPLINK,
                POD_VETH
            )),
            (Class::NodePort, NatKind::Both, Scope::External)
        );
        assert_eq!(
            is(seen(
                before,
                tuple(n.outside, 40000, n.pod, 8080),
                UPLINK,
                POD_VETH
            )),
            (Class::NodePort, NatKind::Dnat, Scope::External)
        );
        // Refused or not yet seen to leave: the port alone tells.
        let facts = FlowFacts {
            after: None,
            ..seen(before, before, UPLINK, 0)
        };
        assert_eq!(is(facts).0, Class::NodePort);
    }
}

#[test]
fn a_gateway_in_the_virtual_network_is_external_to_pod() {
    for n in &NETS {
        let t = tuple(n.vnet, 40000, n.pod, 8080);
        assert_eq!(
            is(seen(t, t, UPLINK, POD_VETH)),
            (Class::ExternalToPod, NatKind::None, Scope::Vnet)
        );
    }
}

#[test]
fn probes_of_the_azure_load_balancer_are_a_class_of_their_own() {
    let before = tuple("168.63.129.16", 40000, "10.224.0.4", 31080);
    assert_eq!(
        is(seen(
            before,
            tuple("168.63.129.16", 40000, "10.244.1.5", 8080),
            UPLINK,
            POD_VETH
        ))
        .0,
        Class::LbHealthProbe
    );
    assert_eq!(is(seen(before, before, UPLINK, 0)).0, Class::LbHealthProbe);
}

#[test]
fn kubelet_to_pod_is_node_to_pod() {
    for n in &NETS {
        let t = tuple(n.bridge, 40000, n.pod, 8080);
        assert_eq!(
            is(seen(t, t, 0, POD_VETH)),
            (Class::NodeToPod, NatKind::None, Scope::SameNode)
        );
    }
}

#[test]
fn pod_to_node_is_same_node_or_cross_node() {
    for n in &NETS {
        let own = tuple(n.pod, 40000, n.node, 10250);
        let facts = FlowFacts {
            after: None,
            to_node: true,
            ..seen(own, own, POD_VETH, 0)
        };
        assert_eq!(
            is(facts),
            (Class::PodToNode, NatKind::None, Scope::SameNode)
        );
        let other = tuple(n.pod, 40000, n.other_node, 10250);
        assert_eq!(
            is(seen(
                other,
                tuple(n.node, 40000, n.other_node, 10250),
                POD_VETH,
                UPLINK
            )),
            (Class::PodToNode, NatKind::Snat, Scope::CrossNode)
        );
    }
}

#[test]
fn azure_platform_is_recognised_by_address() {
    for (to, port) in [("168.63.129.16", 53), ("169.254.169.254", 80)] {
        assert_eq!(
            is(seen(
                tuple("10.244.1.5", 40000, to, port),
                tuple("10.224.0.4", 40000, to, port),
                POD_VETH,
                UPLINK
            )),
            (Class::AzurePlatform, NatKind::Snat, Scope::Vnet)
        );
    }
}

#[test]
fn local_dns_is_recognised_by_address() {
    for to in ["169.254.10.10", "169.254.10.11", "169.254.20.10"] {
        let t = tuple("10.244.1.5", 40000, to, 53);
        let facts = FlowFacts {
            after: None,
            to_node: true,
            ..seen(t, t, POD_VETH, 0)
        };
        assert_eq!(is(facts), (Class::LocalDns, NatKind::None, Scope::SameNode));
    }
}

#[test]
fn private_endpoint_is_recognised_by_range() {
    for n in &NETS {
        assert_eq!(
            is(seen(
                tuple(n.pod, 40000, n.endpoint, 443),
                tuple(n.node, 40000, n.endpoint, 443),
                POD_VETH,
                UPLINK
            )),
            (Class::PrivateEndpoint, NatKind::Snat, Scope::Vnet)
        );
    }
}

#[test]
fn the_nodes_own_traffic_has_classes_of_its_own() {
    for n in &NETS {
        let out = tuple(n.node, 40000, n.outside, 443);
        assert_eq!(
            is(seen(out, out, 0, UPLINK)),
            (Class::NodeToExternal, NatKind::None, Scope::External)
        );
        let into = tuple(n.outside, 40000, n.node, 22);
        assert_eq!(
            is(seen(into, into, UPLINK, 0)),
            (Class::ExternalToNode, NatKind::None, Scope::External)
        );
        let peer = tuple(n.node, 40000, n.other_node, 10250);
        assert_eq!(
            is(seen(peer, peer, 0, UPLINK)),
            (Class::NodeToNode, NatKind::None, Scope::CrossNode)
        );
    }
}

#[test]
fn a_pod_with_a_virtual_network_address_is_known_by_its_veth() {
    for n in &NETS {
        let t = tuple(n.vnet, 40000, n.outside, 443);
        let verdict = classify(
            &seen(t, t, POD_VETH, UPLINK),
            &Whois::without_names(&plan()),
        );
        assert_eq!(verdict.class, Class::PodToExternal);
        assert_eq!(verdict.client.place(), Place::LocalPod);
    }
}

#[test]
fn transit_and_link_local_traffic_is_unknown() {
    for n in &NETS {
        let t = tuple(n.outside, 40000, n.on_premises, 443);
        assert_eq!(is(seen(t, t, UPLINK, UPLINK)).0, Class::Unknown);
        let t = tuple(n.outside, 40000, n.service, 443);
        assert_eq!(is(seen(t, t, UPLINK, UPLINK)).0, Class::Unknown);
    }
    let t = tuple("fe80::5", 0, "ff02::2", 0x8500);
    assert_eq!(is(seen(t, t, POD_VETH, 0)).0, Class::Unknown);
}

#[test]
fn every_class_is_at_its_number() {
    for (number, class) in Class::ALL.iter().enumerate() {
        assert_eq!(*class as usize, number);
        assert_eq!(Class::from_number(*class as u8), *class);
    }
}

#[test]
fn the_page_has_every_class_scope_and_anomaly_as_they_are() {
    let row = |name: &str, meaning: &str| {
        let name = if name.is_empty() { "(empty)" } else { name };
        format!("| `{name}` | {meaning} |\n")
    };
    let classes: String = Class::ALL
        .iter()
        .map(|c| row(c.name(), c.meaning()))
        .collect();
    let scopes: String = Scope::ALL
        .iter()
        .map(|s| row(s.name(), s.meaning()))
        .collect();
    let anomalies: String = Anomaly::ALL
        .iter()
        .map(|a| row(a.name(), a.meaning()))
        .collect();
    let page = include_str!("../../../../docs/classes.md");
    for rows in [classes, scopes, anomalies] {
        assert!(
            page.contains(&rows),
            "put these rows into docs/classes.md:\n{rows}"
        );
    }
}

//! What nodes of each kind tell about themselves.

use super::*;
use crate::{
    node::{
        roles,
        tests::{address, azure_transparent, kind, kubenet, link, route},
    },
    plan::Place,
};

fn facts(snapshot: &Snapshot, config: &Config) -> Vec<Fact> {
    gather(
        snapshot,
        &roles::assign(snapshot, config).watched,
        config,
        &Context::default(),
    )
}

fn nets(facts: &[Fact], what: &What) -> Vec<String> {
    facts
        .iter()
        .filter(|f| f.what == *what)
        .map(|f| f.net.to_string())
        .collect()
}

fn place(snapshot: &Snapshot, config: &Config, ip: &str) -> Place {
    let watched = roles::assign(snapshot, config).watched;
    let facts = gather(snapshot, &watched, config, &Context::default());
    super::plan(&facts, &watched, &[], "node", None).place(ip.parse::<IpAddr>().unwrap().into())
}

#[test]
fn kubenet_tells_its_pods_from_the_bridge_and_its_network_from_eth0() {
    let facts = facts(&kubenet(), &Config::default());
    assert_eq!(nets(&facts, &What::LocalPods), ["10.244.0.0/24"]);
    assert_eq!(nets(&facts, &What::Vnet), ["10.224.0.0/16"]);
    // Routes by way of the default gateway are no pods'.
    assert!(nets(&facts, &What::Pods).is_empty());
    assert!(nets(&facts, &What::NodeAddress).contains(&"10.244.0.1/32".to_owned()));
    let source = &facts
        .iter()
        .find(|f| f.what == What::LocalPods)
        .unwrap()
        .source;
    assert_eq!(source, "subnet of bridge cbr0");
}

#[test]
fn every_address_of_the_node_is_the_nodes_the_bridges_too() {
    let config = Config::default();
    assert_eq!(place(&kubenet(), &config, "10.244.0.1"), Place::ThisNode);
    assert_eq!(place(&kubenet(), &config, "10.224.0.4"), Place::ThisNode);
    assert_eq!(place(&kubenet(), &config, "10.244.0.7"), Place::LocalPod);
    assert_eq!(place(&kubenet(), &config, "10.224.0.5"), Place::Vnet);
}

#[test]
fn kind_tells_other_nodes_and_their_pods_from_routes() {
    let facts = facts(&kind(), &Config::default());
    assert_eq!(
        nets(&facts, &What::Pods),
        ["10.244.1.0/24", "10.244.2.0/24", "fd00:10:244:1::/64"]
    );
    assert_eq!(
        nets(&facts, &What::Nodes),
        [
            "172.18.0.3/32",
            "172.18.0.4/32",
            "fc00:f853:ccd:e793::3/128"
        ]
    );
    assert_eq!(nets(&facts, &What::LocalPods), ["10.244.0.0/24"]);
    assert_eq!(nets(&facts, &What::LocalPod(3)), ["10.244.0.2/32"]);
    assert_eq!(
        nets(&facts, &What::Vnet),
        ["172.18.0.0/16", "fc00:f853:ccd:e793::/64"]
    );
    let config = Config::default();
    assert_eq!(place(&kind(), &config, "10.244.0.1"), Place::ThisNode);
    assert_eq!(place(&kind(), &config, "10.244.0.9"), Place::LocalPod);
    assert_eq!(place(&kind(), &config, "10.244.1.9"), Place::RemotePod);
    assert_eq!(place(&kind(), &config, "172.18.0.3"), Place::OtherNode);
}

#[test]
fn pods_with_addresses_of_the_network_are_known_one_by_one() {
    let node = azure_transparent();
    let config = Config::default();
    assert_eq!(place(&node, &config, "10.224.0.10"), Place::LocalPod);
    assert_eq!(place(&node, &config, "10.224.0.11"), Place::Vnet);
}

#[test]
fn what_is_configured_is_not_guessed() {
    let config = Config {
        pod_cidr: vec!["10.244.0.0/16".parse().unwrap()],
        vnet_cidr: vec!["10.224.0.0/12".parse().unwrap()],
        node_cidr: vec!["172.18.0.0/16".parse().unwrap()],
        service_cidr: vec!["10.96.0.0/16".parse().unwrap()],
        ..Config::default()
    };
    let facts = facts(&kind(), &config);
    assert_eq!(nets(&facts, &What::Pods), ["10.244.0.0/16"]);
    assert_eq!(nets(&facts, &What::Vnet), ["10.224.0.0/12"]);
    assert_eq!(nets(&facts, &What::Nodes), ["172.18.0.0/16"]);
    assert_eq!(place(&kind(), &config, "10.96.0.10"), Place::Service);
    // Which pods are here is still seen.
    assert_eq!(place(&kind(), &config, "10.244.0.2"), Place::LocalPod);
}

#[test]
fn tunnels_lead_to_pods_and_their_daemons_mark_the_own_range() {
    let mut node = kubenet();
    node.links.push(link(9, "tunl0", "ipip"));
    node.routes.push(route("10.244.7.0/26", "10.224.0.9", 9));
    node.routes.push(Route {
        kind: RouteKind::Blackhole,
        bird: true,
        hops: vec![],
        ..route("10.244.9.0/26", "", 0)
    });
    let facts = facts(&node, &Config::default());
    assert_eq!(nets(&facts, &What::Pods), ["10.244.7.0/26"]);
    assert_eq!(
        nets(&facts, &What::LocalPods),
        ["10.244.0.0/24", "10.244.9.0/26"]
    );
}

#[test]
fn ipvs_addresses_are_services_and_not_the_nodes() {
    let mut node = kubenet();
    node.links.push(link(8, "kube-ipvs0", "dummy"));
    node.addresses.push(address(8, "10.0.0.10/32"));
    node.addresses.push(address(8, "20.1.2.3/32"));
    node.addresses.push(address(8, "10.224.0.200/32"));
    let config = Config::default();
    assert_eq!(place(&node, &config, "10.0.0.10"), Place::Service);
    assert_eq!(place(&node, &config, "20.1.2.3"), Place::Internet);
    assert_eq!(place(&node, &config, "10.224.0.200"), Place::Vnet);
}

#[test]
fn the_dns_cache_is_not_just_any_address_of_the_node() {
    let mut node = kubenet();
    node.links.push(link(8, "nodelocaldns", "dummy"));
    node.addresses.push(address(8, "169.254.20.10/32"));
    node.addresses.push(address(8, "10.0.0.10/32"));
    let config = Config::default();
    assert_eq!(place(&node, &config, "169.254.20.10"), Place::LocalDns);
    assert_eq!(place(&node, &config, "10.0.0.10"), Place::LocalDns);
}

#[test]
fn an_empty_pod_bridge_keeps_its_meaning_and_dockers_does_not_get_one() {
    let mut node = kubenet();
    node.links.retain(|l| l.master != Some(4));
    node.links.push(link(9, "docker0", "bridge"));
    node.addresses.push(address(9, "172.17.0.1/16"));
    assert_eq!(
        nets(&facts(&node, &Config::default()), &What::LocalPods),
        ["10.244.0.0/24"]
    );
}

mod context {
    //! What surveys and Kubernetes add.
    use super::*;
    use crate::{
        node::{
            Context,
            found::{Finding, Found, Masquerade},
        },
        plan::SourceNat,
    };

    fn found(cni: &'static str, spared: &[&str], zone: &str) -> Found {
        fn finding<T>(value: T) -> Finding<T> {
            Finding {
                value: Some(value),
                evidence: vec![],
            }
        }
        Found {
            cni: finding(cni),
            proxy_mode: finding("iptables"),
            policy_engine: finding("none"),
            masquerade: finding(Some(Masquerade {
                agent: "ip-masq-agent",
                chain: "IP-MASQ-AGENT",
                spared: spared.iter().map(|net| net.parse().unwrap()).collect(),
                link_local: Some(true),
                random_fully: false,
            })),
            local_dns: finding(vec!["169.254.30.30".parse().unwrap()]),
            addresses: finding(vec![]),
            zone: finding(zone.to_owned()),
            kernel: String::new(),
        }
    }

    fn planned(context: &Context) -> (Vec<Fact>, Plan) {
        let (snapshot, config) = (kubenet(), Config::default());
        let watched = roles::assign(&snapshot, &config).watched;
        let facts = gather(&snapshot, &watched, &config, context);
        let plan = super::super::plan(
            &facts,
            &watched,
            &snapshot.links,
            "aks-1",
            context.found.as_ref(),
        );
        (facts, plan)
    }

    fn place(plan: &Plan, ip: &str) -> Place {
        plan.place(ip.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn a_spared_range_that_holds_this_nodes_pods_is_where_the_clusters_pods_live() {
        let context = Context {
            found: Some(found("kubenet", &["10.244.0.0/16", "192.168.0.0/16"], "")),
            ..Context::default()
        };
        let (_, plan) = planned(&context);
        assert_eq!(place(&plan, "10.244.7.7"), Place::RemotePod);
        assert_eq!(place(&plan, "192.168.1.1"), Place::Private);
        assert_eq!(plan.source_nat(), SourceNat::Everything);
    }

    #[test]
    fn a_spared_range_that_holds_the_nodes_own_network_is_no_range_of_pods() {
        let context = Context {
            found: Some(found("kubenet", &["10.0.0.0/8"], "")),
            ..Context::default()
        };
        let (_, plan) = planned(&context);
        assert_eq!(place(&plan, "10.244.7.7"), Place::Private);
        assert_eq!(place(&plan, "10.224.1.1"), Place::Vnet);
    }

    #[test]
    fn pod_ranges_of_the_nodes_are_taken_and_a_configured_one_replaces_them() {
        let context = Context {
            pod_cidrs: vec!["10.50.0.0/16".parse().unwrap()],
            own_pod_cidrs: vec!["10.50.3.0/24".parse().unwrap()],
            ..Context::default()
        };
        let (_, plan) = planned(&context);
        assert_eq!(place(&plan, "10.50.9.9"), Place::RemotePod);
        assert_eq!(place(&plan, "10.50.3.9"), Place::LocalPod);
        let config = Config {
            pod_cidr: vec!["10.60.0.0/16".parse().unwrap()],
            ..Config::default()
        };
        let snapshot = kubenet();
        let watched = roles::assign(&snapshot, &config).watched;
        let facts = gather(&snapshot, &watched, &config, &context);
        assert!(facts.iter().all(|f| f.net.to_string() != "10.50.0.0/16"));
    }

    #[test]
    fn zone_and_dns_caches_come_from_what_was_found() {
        let context = Context {
            found: Some(found("azure_node_subnet", &[], "eastus2-3")),
            ..Context::default()
        };
        let (_, plan) = planned(&context);
        assert_eq!(plan.zone(), "eastus2-3");
        assert_eq!(plan.source_nat(), SourceNat::Internet);
        assert_eq!(place(&plan, "169.254.30.30"), Place::LocalDns);
        let (_, bare) = planned(&Context::default());
        assert_eq!(
            (bare.zone(), bare.source_nat()),
            ("", SourceNat::NotExpected)
        );
    }
}

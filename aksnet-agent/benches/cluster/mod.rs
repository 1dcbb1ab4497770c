//! The largest cluster: 150,000 pods, 5,000 nodes, 10,000 services, 5,000 policies, as the index is told of them; and
//! of a node with 250 of the pods.

use std::fs;

use aksnet_agent::{
    identify::{
        index::Index,
        object::{Endpoint, Kind, Node, Object, Pod, Service, ServicePort, Slice, Text},
    },
    policy::model::{NetworkPolicy, Operator, Peers, Port, Ports, Requirement, Rule, Selector},
};
use aksnet_common::flow::Addr;

pub const PODS: u32 = 150_000;
pub const NODES: u32 = 5_000;
pub const SERVICES: u32 = 10_000;
const PER_SERVICE: u32 = PODS / SERVICES;
/// Pods of this node: as many as a node of AKS may have.
pub const LOCAL: u32 = 250;
pub const S: u64 = 1_000_000_000;

pub fn address(net: u8, n: u32) -> Addr {
    let [_, b, c, d] = n.to_be_bytes();
    Addr::v4([net, b, c, d])
}

pub fn node_name(n: u32) -> Text {
    format!("aks-nodepool1-{:08}-vmss{n:06x}", 31_415_926).into()
}

fn pod_name(n: u32) -> Text {
    format!("service-{:05}-7d9c8b5f6-{n:05x}", n / PER_SERVICE).into()
}

/// Where a pod is: the first node is this one, with every so many-th.
fn node_of(pod: u32) -> u32 {
    if pod.is_multiple_of(PODS / LOCAL) {
        0
    } else {
        1 + pod % (NODES - 1)
    }
}

/// One of this node's pods.
pub fn local(n: u32) -> u32 {
    n % LOCAL * (PODS / LOCAL)
}

fn namespace(service: u32) -> Text {
    format!("team-{:03}", service % 300).into()
}

/// A pod as it comes from the API server: every string is a new one.
pub fn pod(n: u32, net: u8) -> Pod {
    let service = n / PER_SERVICE;
    let name = pod_name(n);
    let labels = [
        (
            "app.kubernetes.io/instance",
            format!("service-{service:05}"),
        ),
        ("app.kubernetes.io/name", "service".to_owned()),
        ("pod-template-hash", "7d9c8b5f6".to_owned()),
        ("version", format!("v{}", service % 20)),
    ];
    Pod {
        kind: if node_of(n) == 0 {
            Kind::LocalPod
        } else {
            Kind::RemotePod
        },
        key_name: name.clone(),
        namespace: namespace(service),
        name,
        uid: format!("{n:08x}-1f2e-4d3c-8b4a-{n:012x}").into(),
        addresses: vec![address(net, n)],
        workload: format!("service-{service:05}").into(),
        node: node_name(node_of(n)),
        host_network: false,
        finished: false,
        labels: labels
            .map(|(key, value)| (Text::from(key), Text::from(value)))
            .into(),
        named_ports: vec![("http".into(), 6, 8080)],
        host_ports: Vec::new(),
    }
}

fn node(n: u32) -> Node {
    let labels = (0..40).map(|k| {
        (
            format!("example.com/label-{k}").into(),
            n.to_string().into(),
        )
    });
    Node {
        name: node_name(n),
        addresses: vec![address(11, n)],
        zone: format!("westeurope-{}", n % 3 + 1).into(),
        pod_cidrs: Vec::new(),
        labels: labels.collect::<Vec<_>>().into(),
        pod_capacity: 250,
    }
}

fn service(n: u32) -> Service {
    let port = |port| ServicePort {
        name: "http".into(),
        protocol: 6,
        port,
        node_port: 0,
    };
    Service {
        namespace: namespace(n),
        name: format!("service-{n:05}").into(),
        cluster: vec![address(12, n)],
        frontends: Vec::new(),
        external: Vec::new(),
        ports: vec![port(80), port(443)],
        local: false,
        load_balancer: false,
        has_ingress: false,
        health_check_port: 0,
        source_ranges: Vec::new(),
        selector: [("app".into(), format!("app-{n:05}").into())].into(),
    }
}

fn slice(n: u32) -> Slice {
    let pods = n * PER_SERVICE..(n + 1) * PER_SERVICE;
    Slice {
        namespace: namespace(n),
        name: format!("service-{n:05}-x2x4z").into(),
        service: format!("service-{n:05}").into(),
        endpoints: pods
            .map(|pod| Endpoint {
                address: address(10, pod),
                pod: pod_name(pod),
                node: node_name(node_of(pod)),
                zone: format!("westeurope-{}", node_of(pod) % 3 + 1).into(),
            })
            .collect(),
        ports: vec![(6, 8080)],
    }
}

/// Pods with these labels.
pub fn needs(pairs: &[(&str, String)]) -> Selector {
    let requirement = |(key, value): &(&str, String)| Requirement {
        key: Text::from(*key),
        operator: Operator::In,
        values: Box::new([Text::from(value.as_str())]),
    };
    Selector(pairs.iter().map(requirement).collect())
}

/// The policy of a service: from its neighbours in the namespace, from the ingress controller's namespace, and from a
/// range of addresses but a part of it.
pub fn policy(service: u32, one_namespace: bool) -> NetworkPolicy {
    let instance = |n: u32| {
        needs(&[
            ("app.kubernetes.io/name", "service".to_owned()),
            ("app.kubernetes.io/instance", format!("service-{n:05}")),
        ])
    };
    let neighbours = (0..5).map(|n| Peers::Pods {
        namespaces: None,
        pods: Some(instance((service + 300 * n) % SERVICES)),
    });
    let ingress_controller = Peers::Pods {
        namespaces: Some(needs(&[(
            "kubernetes.io/metadata.name",
            "ingress".to_owned(),
        )])),
        pods: None,
    };
    let block = Peers::Block {
        cidr: "172.16.0.0/12".parse().expect("it is one"),
        except: Box::new(["172.16.99.0/24".parse().expect("it is one")]),
    };
    let tcp = |port| Ports {
        protocol: 6,
        port: Port::Range(port, port),
    };
    let namespace = if one_namespace { 0 } else { service % 300 };
    NetworkPolicy {
        namespace: format!("team-{namespace:03}").into(),
        name: format!("service-{service:05}").into(),
        pods: instance(service),
        ingress: Some(Box::new([
            Rule {
                peers: neighbours.collect(),
                ports: Box::new([tcp(8080), tcp(8443)]),
            },
            Rule {
                peers: Box::new([ingress_controller, block]),
                ports: Box::new([Ports {
                    protocol: 6,
                    port: Port::Name("http".into()),
                }]),
            },
        ])),
        egress: None,
    }
}

/// Gives every other service's pods a policy, which all other services' pods pass after its other peers were asked; but
/// one in 64 of the policies lets them not.
pub fn add_policies(index: &mut Index) {
    for service in (0..SERVICES).step_by(2) {
        let mut policy = policy(service, false);
        if !service.is_multiple_of(128) {
            let all = needs(&[("app.kubernetes.io/name", "service".to_owned())]);
            let peers = Peers::Pods {
                namespaces: Some(Selector::default()),
                pods: Some(all),
            };
            let last = Rule {
                peers: Box::new([peers]),
                ports: Box::default(),
            };
            let rules = policy.ingress.take().unwrap_or_default();
            policy.ingress = Some(rules.into_iter().chain([last]).collect());
        }
        index.apply(Object::Policy(policy), S);
    }
}

pub fn cluster() -> Index {
    let mut index = Index::new(&node_name(0));
    for kind in Kind::ALL {
        index.begin(kind);
    }
    for n in 0..NODES {
        index.apply(Object::Node(node(n)), S);
    }
    for n in 0..SERVICES {
        index.apply(Object::Service(service(n)), S);
        index.apply(Object::Slice(slice(n)), S);
    }
    for n in 0..PODS {
        index.apply(Object::Pod(pod(n, 10)), S);
    }
    for kind in Kind::ALL {
        index.settle(kind, S);
    }
    index
}

/// Resident memory of this process, in MiB (proc(5), the second number of `statm`, in pages of 4 KiB).
pub fn resident() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    pages.unwrap_or(0.0) * 4096.0 / 1_048_576.0
}

/// A sequence without a pattern (Knuth's multiplicative congruence).
pub fn random(state: &mut u64) -> u32 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    (*state >> 33) as u32
}

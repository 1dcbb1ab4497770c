//! What the index answers, rule by rule. Moments are seconds here.

use super::*;
use crate::{
    identify::object::{Endpoint, ServicePort, Slice},
    policy::model::NetworkPolicy as Policy,
};

pub(super) const S: Moment = 1_000_000_000;
pub(super) const TCP: u8 = 6;

pub(super) fn ip(text: &str) -> Addr {
    let address: std::net::IpAddr = text.parse().unwrap();
    address.into()
}

fn ips(texts: &[&str]) -> Vec<Addr> {
    texts.iter().map(|text| ip(text)).collect()
}

/// A pod of a Deployment; its workload is its name up to the first hyphen.
pub(super) fn pod(kind: Kind, name: &str, addresses: &[&str]) -> Pod {
    Pod {
        kind,
        key_name: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        uid: "".into(),
        addresses: ips(addresses),
        workload: name.split('-').next().unwrap().into(),
        node: if kind == Kind::RemotePod { "n2" } else { "n1" }.into(),
        host_network: false,
        finished: false,
        labels: Arc::default(),
        named_ports: Vec::new(),
        host_ports: Vec::new(),
    }
}

pub(super) fn local(name: &str, addresses: &[&str]) -> Pod {
    pod(Kind::LocalPod, name, addresses)
}

pub(super) fn sandbox(name: &str, addresses: &[&str]) -> Pod {
    Pod {
        key_name: format!("id-of-{name}").into(),
        workload: "by-labels".into(),
        ..pod(Kind::Sandbox, name, addresses)
    }
}

pub(super) fn service(name: &str) -> Service {
    Service {
        namespace: "shop".into(),
        name: name.into(),
        cluster: Vec::new(),
        frontends: Vec::new(),
        external: Vec::new(),
        ports: Vec::new(),
        local: false,
        load_balancer: false,
        has_ingress: false,
        health_check_port: 0,
        source_ranges: Vec::new(),
        selector: [].into(),
    }
}

fn port(port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: "".into(),
        protocol: TCP,
        port,
        node_port,
    }
}

/// A slice of a service: endpoints as address, pod, zone.
pub(super) fn slice(service: &str, endpoints: &[(&str, &str, &str)]) -> Slice {
    Slice {
        namespace: "shop".into(),
        name: format!("{service}-abc").into(),
        service: service.into(),
        endpoints: endpoints
            .iter()
            .map(|(address, pod, zone)| Endpoint {
                address: ip(address),
                pod: (*pod).into(),
                node: "n2".into(),
                zone: (*zone).into(),
            })
            .collect(),
        ports: vec![(TCP, 8080)],
    }
}

fn api_slice(addresses: &[&str]) -> Slice {
    let endpoints: Vec<_> = addresses.iter().map(|a| (*a, "", "")).collect();
    Slice {
        namespace: "default".into(),
        ports: vec![(TCP, 6443)],
        ..slice("kubernetes", &endpoints)
    }
}

pub(super) fn node(name: &str, addresses: &[&str], zone: &str) -> Node {
    Node {
        name: name.into(),
        addresses: ips(addresses),
        zone: zone.into(),
        pod_cidrs: Vec::new(),
        labels: [("os".into(), "linux".into())].into(),
        pod_capacity: 110,
    }
}

/// An index, and what is asked of it, with times in seconds.
pub(super) struct Case(pub(super) Index);

impl Case {
    /// All sources have listed, and found nothing.
    pub(super) fn synced() -> Self {
        let mut case = Self(Index::new("n1"));
        for kind in Kind::ALL {
            case.0.begin(kind);
            case.0.settle(kind, 0);
        }
        case
    }

    /// No source has listed yet.
    pub(super) fn fresh() -> Self {
        Self(Index::new("n1"))
    }

    pub(super) fn pod(&mut self, pod: Pod, seconds: u64) {
        self.0.apply(Object::Pod(pod), seconds * S);
    }

    pub(super) fn service(&mut self, service: Service, seconds: u64) {
        self.0.apply(Object::Service(service), seconds * S);
    }

    pub(super) fn slice(&mut self, slice: Slice, seconds: u64) {
        self.0.apply(Object::Slice(slice), seconds * S);
    }

    pub(super) fn node(&mut self, node: Node, seconds: u64) {
        self.0.apply(Object::Node(node), seconds * S);
    }

    pub(super) fn delete(&mut self, object: impl Into<Object>, seconds: u64) {
        self.0.delete(&object.into().key(), seconds * S);
    }

    fn at(&self, address: &str, seconds: u64) -> Option<Holder> {
        self.0.lookup(ip(address), seconds * S)
    }

    /// `namespace/workload pod`, with `?` where it is a guess; `-` is nobody.
    fn who(&self, address: &str, seconds: u64) -> String {
        let Some(holder) = self.at(address, seconds) else {
            return "-".to_owned();
        };
        let [namespace, workload, pod] = self.texts(&holder);
        let guess = if holder.certain { "" } else { "?" };
        format!("{namespace}/{workload} {pod}{guess}")
    }

    fn texts(&self, holder: &Holder) -> [&str; 3] {
        [holder.namespace, holder.workload, holder.pod].map(|name| self.0.text(name))
    }

    fn zone(&self, address: &str) -> &str {
        self.0.text(self.at(address, 1000).unwrap().zone)
    }
}

macro_rules! into_object {
    ($($kind:ident),*) => { $(impl From<$kind> for Object {
        fn from(object: $kind) -> Self { Self::$kind(object) }
    })* };
}
into_object!(Pod, Service, Slice, Node, Namespace, Policy);

// Names.

#[test]
fn a_pod_is_named_by_its_workload() {
    let mut case = Case::synced();
    case.pod(local("web-1", &["10.1.0.5"]), 10);
    case.pod(pod(Kind::RemotePod, "db-0", &["10.1.1.5"]), 10);
    assert_eq!(case.who("10.1.0.5", 20), "shop/web web-1");
    let (here, there) = (
        case.at("10.1.0.5", 20).unwrap(),
        case.at("10.1.1.5", 20).unwrap(),
    );
    assert_eq!((here.what, here.local), (What::Pod, true));
    assert_eq!((there.what, there.local), (What::Pod, false));
    assert_eq!(case.0.text(there.node), "n2");
    assert_eq!(case.who("10.1.9.9", 20), "-");
}

#[test]
fn a_pod_that_only_a_slice_tells_of_is_named_by_the_service() {
    let mut case = Case::synced();
    case.slice(
        slice(
            "cart",
            &[("10.1.1.5", "cart-1", "westeurope-2"), ("20.1.2.3", "", "")],
        ),
        10,
    );
    assert_eq!(case.who("10.1.1.5", 20), "shop/service/cart cart-1");
    assert_eq!(case.zone("10.1.1.5"), "westeurope-2");
    assert_eq!(
        case.who("20.1.2.3", 20),
        "-",
        "an endpoint that is no pod is not the cluster's"
    );
}

#[test]
fn a_pod_behind_two_services_keeps_the_first_ones_name() {
    let mut case = Case::synced();
    case.slice(slice("cart", &[("10.1.1.5", "cart-1", "")]), 10);
    case.slice(slice("alias", &[("10.1.1.5", "cart-1", "")]), 11);
    assert_eq!(case.who("10.1.1.5", 20), "shop/service/cart cart-1");
    case.delete(slice("cart", &[]), 30);
    assert_eq!(case.who("10.1.1.5", 29), "shop/service/cart cart-1");
    assert_eq!(case.who("10.1.1.5", 31), "shop/service/alias cart-1");
    assert_eq!(case.0.problems(), Problems::default());
}

#[test]
fn a_node_is_named_as_a_node() {
    let mut case = Case::synced();
    case.node(node("n1", &["10.0.0.4"], "westeurope-1"), 10);
    case.node(node("n2", &["10.0.0.5"], ""), 10);
    assert_eq!(case.who("10.0.0.4", 20), "/node/n1 ");
    let (this, other) = (
        case.at("10.0.0.4", 20).unwrap(),
        case.at("10.0.0.5", 20).unwrap(),
    );
    assert_eq!(
        (this.what, this.local, other.local),
        (What::Node, true, false)
    );
    assert_eq!(case.zone("10.0.0.4"), "westeurope-1");
    assert_eq!(case.zone("10.0.0.5"), "");
    assert_eq!(case.0.this_node().unwrap().labels.len(), 1);
    assert_eq!(case.0.nodes().map(|n| n.labels.len()).sum::<usize>(), 1);
}

#[test]
fn service_addresses_are_named_by_what_they_are() {
    let mut case = Case::synced();
    let web = Service {
        cluster: ips(&["10.96.0.9"]),
        frontends: ips(&["20.50.0.1"]),
        external: ips(&["10.0.0.99"]),
        ..service("web")
    };
    case.service(web, 10);
    for (address, what) in [
        ("10.96.0.9", What::Service),
        ("20.50.0.1", What::LoadBalancer),
        ("10.0.0.99", What::ExternalIp),
    ] {
        assert_eq!(case.who(address, 20), "shop/service/web ");
        assert_eq!(case.at(address, 20).unwrap().what, what);
    }
}

#[test]
fn a_shared_frontend_is_told_apart_by_its_port_only() {
    let mut case = Case::synced();
    for (name, number) in [("web", 443), ("mail", 25)] {
        let shared = Service {
            frontends: ips(&["20.50.0.1"]),
            ports: vec![port(number, 0)],
            ..service(name)
        };
        case.service(shared, 10);
    }
    let frontend = case.at("20.50.0.1", 20).unwrap();
    assert_eq!(
        (frontend.what, case.texts(&frontend)),
        (What::LoadBalancer, ["", "", ""])
    );
    let mail = case.0.service(ip("20.50.0.1"), TCP, 25).unwrap();
    assert_eq!(
        (mail.what, case.texts(&mail)),
        (What::LoadBalancer, ["shop", "service/mail", ""])
    );
    assert_eq!(case.0.service(ip("20.50.0.1"), 17, 25), None);
    case.delete(service("web"), 30);
    assert_eq!(case.who("20.50.0.1", 31), "shop/service/mail ");
    assert_eq!(case.0.service(ip("20.50.0.1"), TCP, 443), None);
}

#[test]
fn node_ports_lead_to_their_service_as_long_as_it_has_them() {
    let mut case = Case::synced();
    let web = Service {
        ports: vec![port(80, 30080)],
        health_check_port: 31000,
        ..service("web")
    };
    case.service(web.clone(), 10);
    for number in [30080, 31000] {
        let holder = case.0.node_port(TCP, number).unwrap();
        assert_eq!(case.texts(&holder), ["shop", "service/web", ""]);
    }
    assert_eq!(case.0.node_port(TCP, 0), None);
    case.service(
        Service {
            ports: vec![port(80, 30081)],
            ..web
        },
        20,
    );
    assert_eq!(case.0.node_port(TCP, 30080), None);
    assert!(case.0.node_port(TCP, 30081).is_some());
    case.delete(service("web"), 30);
    assert_eq!(case.0.node_port(TCP, 30081), None);
}

#[test]
fn a_host_port_leads_to_its_pod_unless_the_pod_is_the_hosts_own() {
    let mut case = Case::synced();
    let web = Pod {
        host_ports: vec![(8080, TCP)],
        ..local("web-1", &["10.1.0.5"])
    };
    case.pod(
        Pod {
            host_network: true,
            ..web.clone()
        },
        10,
    );
    assert_eq!(case.0.host_port(TCP, 8080), None);
    case.pod(
        Pod {
            workload: "by-labels".into(),
            ..Pod {
                host_ports: vec![(8080, TCP)],
                ..sandbox("web-1", &[])
            }
        },
        11,
    );
    case.pod(web.clone(), 12);
    let holder = case.0.host_port(TCP, 8080).unwrap();
    assert_eq!(case.texts(&holder), ["shop", "web", "web-1"]);
    case.delete(sandbox("web-1", &[]), 13);
    case.pod(
        Pod {
            finished: true,
            ..web
        },
        14,
    );
    assert_eq!(case.0.host_port(TCP, 8080), None);
}

#[test]
fn the_api_server_is_known_by_address_and_port() {
    let mut case = Case::synced();
    case.slice(api_slice(&["10.0.0.4", "10.0.0.5"]), 10);
    assert!(case.0.api_server(ip("10.0.0.4"), 6443));
    assert!(!case.0.api_server(ip("10.0.0.4"), 443));
    let impostor = Slice {
        namespace: "shop".into(),
        ..api_slice(&["10.0.0.9"])
    };
    case.slice(impostor, 10);
    assert!(!case.0.api_server(ip("10.0.0.9"), 6443));
    case.slice(api_slice(&["10.0.0.5"]), 20);
    assert!(!case.0.api_server(ip("10.0.0.4"), 6443));
    case.delete(api_slice(&[]), 30);
    assert!(!case.0.api_server(ip("10.0.0.5"), 6443));
}

// Precedence.

#[test]
fn a_better_source_gives_the_whole_tenure_the_better_name() {
    let mut case = Case::synced();
    case.slice(slice("cart", &[("10.1.0.5", "cart-1", "z1")]), 10);
    case.pod(sandbox("cart-1", &["10.1.0.5"]), 11);
    assert_eq!(case.who("10.1.0.5", 12), "shop/by-labels cart-1");
    case.pod(local("cart-1", &["10.1.0.5"]), 20);
    for seconds in [10, 15, 25] {
        assert_eq!(case.who("10.1.0.5", seconds), "shop/cart cart-1");
    }
    assert_eq!(case.who("10.1.0.5", 9), "shop/cart cart-1?");
    assert_eq!(case.zone("10.1.0.5"), "z1");
}

#[test]
fn the_better_source_wins_where_two_differ() {
    let mut case = Case::synced();
    case.slice(slice("old", &[("10.1.0.5", "old-1", "")]), 10);
    case.pod(sandbox("stale-1", &["10.1.0.5"]), 11);
    case.pod(pod(Kind::RemotePod, "new-1", &["10.1.0.5"]), 20);
    assert_eq!(case.who("10.1.0.5", 15), "shop/by-labels stale-1");
    assert_eq!(case.who("10.1.0.5", 25), "shop/new new-1");
}

#[test]
fn a_nodes_own_address_is_nobody_elses() {
    let mut case = Case::synced();
    case.slice(slice("dns", &[("10.0.0.4", "dns-1", "")]), 10);
    case.pod(local("wrong-1", &["10.0.0.4"]), 10);
    case.node(node("n1", &["10.0.0.4"], ""), 11);
    assert_eq!(case.who("10.0.0.4", 20), "/node/n1 ");
}

#[test]
fn pods_of_the_host_network_hold_no_address() {
    let mut case = Case::synced();
    case.pod(
        Pod {
            host_network: true,
            ..local("proxy-1", &["10.0.0.4"])
        },
        10,
    );
    assert_eq!(case.who("10.0.0.4", 20), "-");
    assert_eq!(case.0.pods_on_node().count(), 1);
}

#[test]
fn the_zone_of_a_node_object_counts_more_than_a_slices() {
    let mut case = Case::synced();
    case.slice(slice("cart", &[("10.1.1.5", "cart-1", "old-zone")]), 10);
    case.node(node("n2", &["10.0.0.5"], "westeurope-3"), 20);
    assert_eq!(case.zone("10.1.1.5"), "westeurope-3");
    case.delete(node("n2", &[], ""), 30);
    assert_eq!(
        case.zone("10.1.1.5"),
        "westeurope-3",
        "its flows outlive the node"
    );
}

// Reuse.

#[test]
fn a_reused_address_belongs_to_who_held_it_then() {
    let mut case = Case::synced();
    case.pod(local("old-1", &["10.1.0.5"]), 10);
    case.delete(local("old-1", &[]), 100);
    case.pod(local("new-1", &["10.1.0.5"]), 110);
    assert_eq!(case.who("10.1.0.5", 10), "shop/old old-1");
    assert_eq!(case.who("10.1.0.5", 99), "shop/old old-1");
    assert_eq!(case.who("10.1.0.5", 100), "shop/new new-1?");
    assert_eq!(case.who("10.1.0.5", 110), "shop/new new-1");
}

#[test]
fn an_object_seen_late_is_guessed_within_the_grace_only() {
    let mut case = Case::synced();
    case.pod(local("web-1", &["10.1.0.5"]), 100);
    assert_eq!(case.who("10.1.0.5", 99), "shop/web web-1?");
    assert_eq!(case.who("10.1.0.5", 70), "shop/web web-1?");
    assert_eq!(case.who("10.1.0.5", 69), "-");
}

#[test]
fn the_first_list_tells_who_held_an_address_before() {
    let mut case = Case::fresh();
    case.0.begin(Kind::LocalPod);
    case.pod(local("web-1", &["10.1.0.5"]), 1000);
    case.0.settle(Kind::LocalPod, 1001 * S);
    assert_eq!(case.who("10.1.0.5", 0), "shop/web web-1");
    case.pod(local("late-1", &["10.1.0.6"]), 1002);
    assert_eq!(case.who("10.1.0.6", 0), "-");
}

#[test]
fn a_pod_that_ended_before_the_first_list_did_keeps_its_time() {
    let mut case = Case::fresh();
    case.pod(local("old-1", &["10.1.0.5"]), 10);
    case.delete(local("old-1", &[]), 20);
    case.pod(local("new-1", &["10.1.0.5"]), 30);
    assert_eq!(case.who("10.1.0.5", 5), "shop/old old-1");
    assert_eq!(case.who("10.1.0.5", 25), "shop/new new-1");
}

#[test]
fn a_new_holder_ends_the_old_tenure_before_its_deletion_is_seen() {
    let mut case = Case::synced();
    case.pod(local("old-1", &["10.1.0.5"]), 10);
    case.pod(pod(Kind::RemotePod, "new-1", &["10.1.0.5"]), 50);
    case.delete(local("old-1", &[]), 60);
    assert_eq!(case.who("10.1.0.5", 49), "shop/old old-1");
    assert_eq!(case.who("10.1.0.5", 55), "shop/new new-1");
    assert_eq!(case.who("10.1.0.5", 61), "shop/new new-1");
    assert_eq!(case.0.problems().duplicates, 0);
}

#[test]
fn a_duplicate_address_is_counted_and_stays_with_the_newer_pod() {
    let mut case = Case::synced();
    case.pod(local("old-1", &["10.1.0.5"]), 10);
    case.pod(local("new-1", &["10.1.0.5"]), 50);
    case.pod(local("old-1", &["10.1.0.5"]), 60);
    case.pod(local("old-1", &["10.1.0.5"]), 61);
    assert_eq!(case.0.problems().duplicates, 1);
    assert_eq!(case.who("10.1.0.5", 62), "shop/new new-1");
    case.delete(local("new-1", &[]), 70);
    assert_eq!(case.who("10.1.0.5", 65), "shop/new new-1");
    assert_eq!(
        case.who("10.1.0.5", 71),
        "shop/old old-1",
        "it said that it has it"
    );
    // Neither does forgetting make the older pod look like a new one.
    case.pod(local("third-1", &["10.1.0.5"]), 80);
    case.0.expire(10_000 * S);
    case.pod(local("old-1", &["10.1.0.5"]), 10_001);
    assert_eq!(case.who("10.1.0.5", 10_002), "shop/third third-1");
}

#[test]
fn a_finished_pod_frees_its_address_at_once() {
    let mut case = Case::synced();
    case.pod(local("job-1", &["10.1.0.5"]), 10);
    case.pod(
        Pod {
            finished: true,
            ..local("job-1", &["10.1.0.5"])
        },
        20,
    );
    assert_eq!(case.who("10.1.0.5", 19), "shop/job job-1");
    assert_eq!(case.who("10.1.0.5", 20), "-");
    case.pod(local("web-1", &["10.1.0.5"]), 30);
    case.pod(
        Pod {
            finished: true,
            ..local("job-1", &["10.1.0.5"])
        },
        40,
    );
    assert_eq!(case.who("10.1.0.5", 41), "shop/web web-1");
    assert_eq!(case.0.problems().duplicates, 0);
}

#[test]
fn a_deleted_pods_flows_keep_its_name_until_it_is_forgotten() {
    let mut case = Case::synced();
    case.pod(local("web-1", &["10.1.0.5"]), 10);
    case.delete(local("web-1", &[]), 20);
    case.0.expire(320 * S);
    assert_eq!(case.who("10.1.0.5", 15), "shop/web web-1");
    let name = case.at("10.1.0.5", 15).unwrap().pod;
    case.0.expire(321 * S);
    assert_eq!(case.who("10.1.0.5", 15), "-");
    assert_eq!(case.0.text(name), "");
}

#[test]
fn the_same_name_with_another_uid_is_another_pod() {
    let mut case = Case::synced();
    let uid = |uid: &str, address: &str| Pod {
        uid: uid.into(),
        ..local("db-0", &[address])
    };
    case.pod(uid("a", "10.1.0.5"), 10);
    case.pod(uid("b", "10.1.0.6"), 20);
    assert_eq!(case.who("10.1.0.5", 19), "shop/db db-0");
    assert_eq!(case.who("10.1.0.5", 21), "-");
    assert_eq!(case.who("10.1.0.6", 21), "shop/db db-0");
    let without = Pod {
        uid: "c".into(),
        ..local("db-0", &[])
    };
    case.pod(without, 30);
    assert_eq!(case.who("10.1.0.6", 31), "-");
}

#[test]
fn a_pod_may_get_change_and_lose_its_addresses() {
    let mut case = Case::synced();
    case.pod(local("web-1", &[]), 10);
    assert_eq!(case.0.counts()[0], (Kind::LocalPod, 1));
    case.pod(local("web-1", &["10.1.0.5", "fd00::5"]), 20);
    assert_eq!(case.who("fd00::5", 21), "shop/web web-1");
    case.pod(local("web-1", &["10.1.0.6", "fd00::5"]), 30);
    assert_eq!(case.who("10.1.0.5", 29), "shop/web web-1");
    assert_eq!(case.who("10.1.0.5", 31), "-");
    assert_eq!(case.who("10.1.0.6", 31), "shop/web web-1");
    assert_eq!(case.who("fd00::5", 31), "shop/web web-1");
}

#[test]
fn what_nobody_can_hold_is_refused_and_counted() {
    let mut case = Case::synced();
    case.pod(
        local(
            "web-1",
            &[
                "127.0.0.1",
                "0.0.0.0",
                "ff02::1",
                "fe80::1",
                "169.254.1.1",
                "10.1.0.5",
                "10.1.0.5",
            ],
        ),
        10,
    );
    assert_eq!(case.0.problems().refused_addresses, 5);
    assert_eq!(case.who("127.0.0.1", 11), "-");
    assert_eq!(case.who("10.1.0.5", 11), "shop/web web-1");
    case.pod(
        Pod {
            name: "".into(),
            ..local("x", &["10.1.0.6"])
        },
        10,
    );
    case.pod(pod(Kind::Service, "x", &["10.1.0.6"]), 10);
    case.service(service(""), 10);
    assert_eq!(case.0.problems().refused_objects, 3);
    assert_eq!(case.who("10.1.0.6", 11), "-");
    let many = (0..100).map(|n| Addr::v4([10, 9, 0, n])).collect();
    case.pod(
        Pod {
            addresses: many,
            ..local("many-1", &[])
        },
        10,
    );
    assert_eq!(case.0.problems().refused_addresses, 5 + 36);
}

// Listing.

#[test]
fn a_relist_forgets_nothing_before_it_has_settled() {
    let mut case = Case::synced();
    case.pod(local("web-1", &["10.1.0.5"]), 10);
    case.pod(local("web-2", &["10.1.0.6"]), 10);
    case.0.begin(Kind::LocalPod);
    case.pod(local("web-2", &["10.1.0.6"]), 20);
    assert_eq!(case.who("10.1.0.5", 21), "shop/web web-1");
    case.0.settle(Kind::LocalPod, 30 * S);
    assert_eq!(case.who("10.1.0.5", 29), "shop/web web-1");
    assert_eq!(case.who("10.1.0.5", 31), "-");
    assert_eq!(case.who("10.1.0.6", 31), "shop/web web-2");
    case.0.settle(Kind::LocalPod, 40 * S);
    assert_eq!(case.0.counts()[0], (Kind::LocalPod, 1));
}

#[test]
fn what_a_relist_found_may_have_come_at_any_time_in_the_gap() {
    let mut case = Case::synced();
    case.0.begin(Kind::LocalPod);
    case.pod(local("web-1", &["10.1.0.5"]), 1000);
    case.0.settle(Kind::LocalPod, 1001 * S);
    assert_eq!(case.who("10.1.0.5", 500), "shop/web web-1?");
}

#[test]
fn one_kinds_relist_leaves_the_others() {
    let mut case = Case::synced();
    case.pod(local("web-1", &["10.1.0.5"]), 10);
    case.node(node("n2", &["10.0.0.5"], ""), 10);
    case.service(service("web"), 10);
    case.slice(slice("web", &[("10.1.1.5", "web-2", "")]), 10);
    for kind in [Kind::RemotePod, Kind::Sandbox, Kind::Namespace] {
        case.0.begin(kind);
        case.0.settle(kind, 20 * S);
    }
    let counts = case.0.counts().map(|(_, count)| count);
    assert_eq!(counts, [1, 0, 0, 1, 1, 1, 0, 0]);
    for kind in [Kind::Service, Kind::Slice, Kind::Node] {
        case.0.begin(kind);
        case.0.settle(kind, 20 * S);
    }
    let counts = case.0.counts().map(|(_, count)| count);
    assert_eq!(counts, [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn this_nodes_pods_are_the_runtimes_until_the_api_server_has_listed() {
    let mut case = Case::fresh();
    case.pod(sandbox("web-1", &["10.1.0.5"]), 10);
    assert_eq!(case.0.pods_on_node().count(), 1);
    assert!(case.0.pod_on_node("shop", "web-1").is_some());
    case.0.begin(Kind::LocalPod);
    case.0.settle(Kind::LocalPod, 20 * S);
    assert_eq!(case.0.pods_on_node().count(), 0);
    assert!(case.0.synced(Kind::LocalPod) && !case.0.synced(Kind::Sandbox));
}

#[test]
fn the_generation_tells_of_what_may_rename_flows_and_not_of_pods() {
    let mut case = Case::synced();
    let mut last = case.0.generation();
    let mut changed =
        |case: &Case| std::mem::replace(&mut last, case.0.generation()) != case.0.generation();
    case.pod(local("web-1", &["10.1.0.5"]), 10);
    case.delete(local("web-1", &[]), 11);
    case.slice(slice("web", &[("10.1.1.5", "web-2", "")]), 12);
    assert!(!changed(&case), "pods");
    let web = Service {
        cluster: ips(&["10.96.0.9"]),
        ..service("web")
    };
    case.service(web.clone(), 13);
    assert!(changed(&case), "a service came");
    case.service(web, 14);
    assert!(!changed(&case), "nothing new");
    case.delete(service("web"), 15);
    assert!(changed(&case), "a service went");
    case.node(node("n2", &["10.0.0.5"], ""), 16);
    assert!(changed(&case), "a node came");
    case.node(
        Node {
            pod_capacity: 30,
            ..node("n2", &["10.0.0.5"], "")
        },
        17,
    );
    assert!(!changed(&case), "what names nothing");
    case.node(node("n2", &["10.0.0.5"], "z1"), 18);
    assert!(changed(&case), "a zone");
    case.slice(api_slice(&["10.0.0.4"]), 19);
    assert!(changed(&case), "the API server");
    case.slice(api_slice(&["10.0.0.4"]), 20);
    assert!(!changed(&case), "the same API server");
    let mut fresh = Case::fresh();
    fresh.0.settle(Kind::Slice, 0);
    assert_eq!(fresh.0.generation(), 1, "a source has listed");
}

#[test]
fn labels_are_shared_by_pods_and_found_by_name() {
    let mut case = Case::synced();
    for name in ["web-1", "web-2"] {
        let labels = [("app".into(), "web".into())].into();
        case.pod(
            Pod {
                labels,
                ..pod(Kind::RemotePod, name, &[])
            },
            10,
        );
    }
    let labels: Vec<_> = case.0.pods().map(|pod| pod.labels.clone()).collect();
    assert!(Arc::ptr_eq(&labels[0], &labels[1]));
    let view = case.0.pods().next().unwrap();
    let found = case.0.pod(view.namespace, view.pod).unwrap();
    assert_eq!(&*found.labels[0].1, "web");
}

#[test]
fn a_churn_of_pods_leaves_no_more_than_was_promised() {
    let mut case = Case::synced();
    for n in 0..70_000u32 {
        let [_, b, c, d] = (n % 5_000).to_be_bytes();
        let mut pod = local(&format!("web-{n}"), &[]);
        pod.addresses = vec![Addr::v4([10, b, c, d])];
        let key = Object::Pod(pod.clone()).key();
        case.0.apply(Object::Pod(pod), S);
        case.0.delete(&key, S);
    }
    assert_eq!(case.0.problems().crowded, 70_000 - 65_536);
    case.0.expire(1000 * S);
    // This node's name is all that is left.
    assert_eq!(case.0.names.len(), 1);
}

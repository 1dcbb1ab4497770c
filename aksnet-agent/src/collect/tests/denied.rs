//! Drops and forwarded flows that policies deny: how they are counted, named and written down.

use std::sync::Arc;

use aksnet_common::tracked::DropState;

use super::*;
use crate::{
    collect::{Circumstances, DropNames},
    droplog::DropRecord,
    identify::{
        index::Index,
        object::{Kind, Labels, Namespace, Object, Pod, Text},
    },
    policy::{
        engine::Engine,
        model::{NetworkPolicy, Operator, Peers, Requirement, Rule, Selector},
    },
};

const FRONTEND: &str = "10.244.1.5";
const WEB: &str = "10.244.1.6";
const BATCH: &str = "10.244.1.7";
const WEB_IF: u32 = POD_IF + 1;
const NETFILTER_DROP: u32 = 12;
const NFT_DO_CHAIN: u64 = 0x1000;
const SECOND: u64 = 1_000 * MS;

fn labels(app: &str) -> Labels {
    Arc::from([(Text::from("app"), Text::from(app))])
}

fn app(app: &str) -> Selector {
    Selector(Box::new([Requirement {
        key: "app".into(),
        operator: Operator::In,
        values: Box::new([app.into()]),
    }]))
}

fn pod(name: &str, address: &str) -> Object {
    Object::Pod(Pod {
        kind: Kind::LocalPod,
        key_name: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        uid: name.into(),
        addresses: vec![addr(address)],
        workload: name.into(),
        node: "aks-1".into(),
        host_network: false,
        finished: false,
        labels: labels(name),
        named_ports: vec![],
        host_ports: vec![],
    })
}

/// `web` takes what comes from `frontend`.
fn web_policy(name: &str) -> Object {
    Object::Policy(NetworkPolicy {
        namespace: "shop".into(),
        name: name.into(),
        pods: app("web"),
        ingress: Some(Box::new([Rule {
            peers: Box::new([Peers::Pods {
                namespaces: None,
                pods: Some(app("frontend")),
            }]),
            ports: Box::new([]),
        }])),
        egress: None,
    })
}

/// A node with three pods and a policy that was there long before.
struct Shop {
    node: Node,
    index: Index,
    circumstances: Circumstances,
}

impl Shop {
    fn new(engine: Engine) -> Self {
        let mut shop = Self::without_policies(engine);
        shop.apply(web_policy("web-policy"), START - 60 * SECOND);
        shop
    }

    fn without_policies(engine: Engine) -> Self {
        let mut index = Index::new("aks-1");
        let told = START - 60 * SECOND;
        let namespace = Object::Namespace(Namespace {
            name: "shop".into(),
            labels: labels("shop"),
        });
        let pods = [
            pod("frontend", FRONTEND),
            pod("web", WEB),
            pod("batch", BATCH),
        ];
        for kind in [Kind::LocalPod, Kind::Namespace, Kind::Policy] {
            index.begin(kind);
        }
        for object in pods.into_iter().chain([namespace]) {
            index.apply(object, told);
        }
        for kind in [Kind::LocalPod, Kind::Namespace, Kind::Policy] {
            index.settle(kind, told);
        }
        let mut node = Node::new();
        node.plan = Plan::builder()
            .local_pod_cidr("10.244.1.0/24".parse().expect("a range"))
            .pod_cidr("10.244.0.0/16".parse().expect("a range"))
            .service_cidr("10.0.0.0/16".parse().expect("a range"))
            .node_address(NODE.parse().expect("an address"))
            .interface(POD_IF, Role::Pod, "veth1")
            .interface(WEB_IF, Role::Pod, "veth2")
            .interface(UPLINK, Role::Uplink, "eth0")
            .build();
        Self {
            node,
            index,
            circumstances: Circumstances {
                engine,
                tracking: true,
            },
        }
    }

    fn apply(&mut self, object: Object, at: u64) {
        self.index.apply(object, at);
    }

    fn sweep(&mut self) -> SweepReport {
        let now = Now {
            monotonic_ns: self.node.ns,
            unix_ms: self.node.ns / MS,
        };
        let whois = Whois {
            plan: &self.node.plan,
            index: &self.index,
            translations: None,
        };
        let names = DropNames::new(
            [(NETFILTER_DROP, "SKB_DROP_REASON_NETFILTER_DROP".to_owned())],
            [
                (NFT_DO_CHAIN, "nft_do_chain".to_owned()),
                (NFT_DO_CHAIN + 0x100, "nft_end".to_owned()),
            ],
        );
        self.node.collector.set_circumstances(self.circumstances);
        let source = &mut self.node.source;
        self.node.collector.sweep(source, now, whois, &names)
    }

    /// A SYN from one pod to another is dropped by a rule in FORWARD.
    fn deny(&mut self, from: &str, port: u16, mark: u32, seq: u32) {
        let entry = DropState::CT_READ | DropState::ENTRY | DropState::ENTRY_READ;
        let routed = DropState::ROUTE_READ | DropState::ROUTED;
        let seen = tuple(from, port, WEB, 8080);
        let key = DropKey {
            key: key(TCP, POD_IF, seen),
            location: NFT_DO_CHAIN + 0x10,
            reason: NETFILTER_DROP,
            mark,
            iif: POD_IF,
            state: DropState(entry | routed | 2 << DropState::INFO_SHIFT),
        };
        let stats = DropStats {
            skbs: 1,
            bytes: 60,
            syns: 1,
            attempts: 1,
            first_syn_seq: seq,
            last_syn_seq: seq,
            last_ns: self.node.ns,
            dialled: tuple(from, port, SERVICE, 80),
            dialled_protocol: TCP,
            oif: WEB_IF,
            ttl: 63,
            ..DropStats::default()
        };
        self.node.source.drop(key, &stats);
    }

    /// A SYN from one pod to another is forwarded.
    fn forward(&mut self, from: &str, port: u16) -> FlowKey {
        let t = tuple(from, port, WEB, 8080);
        let key = key(TCP, POD_IF, t);
        self.node.packet(key, t, WEB_IF, SYN, STAGE_FIRST);
        key
    }

    fn denied(&self, labels: &[(&str, &str)]) -> (f64, f64) {
        let packets = "aksnet_policy_denied_packets_total";
        let connections = "aksnet_policy_denied_connections_total";
        (
            self.node.value(packets, labels),
            self.node.value(connections, labels),
        )
    }

    fn gap(&self) -> (f64, f64) {
        let packets = "aksnet_policy_gap_packets_total";
        let connections = "aksnet_policy_gap_connections_total";
        (
            self.node.value(packets, &[]),
            self.node.value(connections, &[]),
        )
    }

    fn records(&mut self) -> Vec<DropRecord> {
        let found = self.node.collector.take_records();
        found.into_iter().map(|found| found.record).collect()
    }
}

#[test]
fn a_denied_connection_is_named_by_its_policy_and_counted_once() {
    let mut shop = Shop::new(Engine::AzureNpm);
    shop.deny(BATCH, 40_000, 0x400, 7);
    shop.sweep();
    // Sent again, in a later sweep.
    shop.node.after(1_000);
    shop.deny(BATCH, 40_000, 0x400, 7);
    shop.sweep();
    let labels = [
        ("direction", "ingress"),
        ("policy", "shop/web-policy"),
        ("confidence", "exact"),
        ("engine", "azure_npm"),
        ("src_workload", "batch"),
        ("dst_workload", "web"),
    ];
    assert_eq!(shop.denied(&labels), (2.0, 1.0), "{}", shop.node.text());
    let drops = [("cause", "policy"), ("direction", "ingress")];
    let packets = shop.node.value("aksnet_drop_packets_total", &drops);
    assert!(near(packets, 2.0));

    let records = shop.records();
    assert_eq!(records.len(), 2);
    let record = &records[0];
    assert_eq!((record.connections, records[1].connections), (1, 0));
    assert_eq!(record.policies, ["shop/web-policy"]);
    assert_eq!(
        (record.src.workload.as_str(), record.dst.workload.as_str()),
        ("batch", "web")
    );
    assert_eq!(record.dialled, Some((SERVICE.parse().unwrap(), 80)));
    assert_eq!(record.location, "nft_do_chain");
    assert_eq!(
        (record.in_interface.as_str(), record.out_interface.as_str()),
        ("veth1", "veth2")
    );
    assert!(
        record
            .why
            .contains("from: app=frontend did not match app=batch"),
        "{}",
        record.why
    );
}

#[test]
fn a_drop_whose_flow_was_never_seen_to_leave_is_that_of_the_pod_that_was_meant() {
    let mut shop = Shop::new(Engine::Calico);
    // Counted as it entered; its passage is lost, as after a queue to user space.
    let dialled = tuple(BATCH, 40_000, SERVICE, 80);
    let packet = FakePacket {
        key: key(TCP, POD_IF, dialled),
        bytes: 60,
        ns: shop.node.ns,
        tcp: SYN,
        ..FakePacket::default()
    };
    shop.node.source.play(&packet);
    shop.node.after(20);
    shop.sweep();
    shop.deny(BATCH, 40_000, 0, 7);
    shop.sweep();
    let labels = [("policy", "shop/web-policy"), ("dst_workload", "web")];
    assert_eq!(shop.denied(&labels), (1.0, 1.0), "{}", shop.node.text());
}

#[test]
fn several_isolating_policies_are_candidates_in_the_order_of_their_names() {
    let mut shop = Shop::new(Engine::Calico);
    shop.apply(web_policy("another"), START - 60 * SECOND);
    shop.deny(BATCH, 40_000, 0, 7);
    shop.sweep();
    let labels = [
        ("policy", "shop/another,shop/web-policy"),
        ("confidence", "candidates"),
        ("engine", "calico"),
    ];
    assert_eq!(shop.denied(&labels), (1.0, 1.0), "{}", shop.node.text());
}

#[test]
fn a_drop_that_the_policies_allow_is_not_theirs() {
    let mut shop = Shop::new(Engine::Calico);
    shop.deny(FRONTEND, 40_000, 0, 7);
    shop.sweep();
    assert_eq!(shop.denied(&[]), (0.0, 0.0));
    let firewall = [("cause", "firewall"), ("direction", "egress")];
    assert!(near(
        shop.node.value("aksnet_drop_packets_total", &firewall),
        1.0
    ));
    // The engine's own mark says otherwise: its rules are stale.
    let mut shop = Shop::new(Engine::AzureNpm);
    shop.deny(FRONTEND, 40_000, 0x400, 7);
    shop.sweep();
    let labels = [("policy", ""), ("confidence", "unexplained")];
    assert_eq!(shop.denied(&labels), (1.0, 1.0));
    assert!(shop.records()[0].why.contains("stale rules"));
}

#[test]
fn a_policy_deleted_a_moment_ago_still_names_its_drops() {
    let mut shop = Shop::new(Engine::Calico);
    let Object::Policy(policy) = web_policy("web-policy") else {
        unreachable!("it is one")
    };
    let key = Object::Policy(policy).key();
    let deleted = shop.node.ns;
    shop.index.delete(&key, deleted);
    shop.node.after(500);
    shop.deny(BATCH, 40_000, 0, 7);
    shop.node.after(500);
    shop.sweep();
    let labels = [("policy", "shop/web-policy"), ("confidence", "exact")];
    assert_eq!(shop.denied(&labels), (1.0, 1.0), "{}", shop.node.text());
    assert!(shop.records()[0].why.contains("a moment ago"));
    // An engine that has had half a minute does not enforce it any more.
    shop.node.after(40_000);
    shop.deny(BATCH, 40_001, 0, 8);
    shop.sweep();
    assert_eq!(shop.denied(&[]), (1.0, 1.0));
}

#[test]
fn a_forwarded_connection_that_policies_deny_is_a_gap_with_all_its_packets() {
    let mut shop = Shop::new(Engine::None);
    let key = shop.forward(BATCH, 40_000);
    shop.node.after(20);
    shop.sweep();
    shop.node.packet(key, key.tuple(), WEB_IF, ACK, 1);
    shop.node.after(1_000);
    shop.sweep();
    let labels = [
        ("direction", "ingress"),
        ("policy", "shop/web-policy"),
        ("src_workload", "batch"),
        ("dst_workload", "web"),
    ];
    let gap = "aksnet_policy_gap_packets_total";
    assert!(
        near(shop.node.value(gap, &labels), 2.0),
        "{}",
        shop.node.text()
    );
    assert_eq!(shop.gap(), (2.0, 1.0));
    // What the policy allows is none.
    shop.forward(FRONTEND, 40_000);
    shop.node.after(1_000);
    shop.sweep();
    assert_eq!(shop.gap(), (2.0, 1.0));
}

#[test]
fn a_connection_that_was_there_before_the_policy_settled_is_no_gap() {
    let mut shop = Shop::without_policies(Engine::None);
    shop.forward(BATCH, 40_000);
    shop.node.after(1_000);
    shop.sweep();
    let told = shop.node.ns;
    shop.apply(web_policy("web-policy"), told);
    // Within the grace period.
    shop.node.after(5_000);
    shop.forward(BATCH, 40_001);
    shop.node.after(20);
    shop.sweep();
    assert_eq!(shop.gap(), (0.0, 0.0));
    shop.node.after(10_000);
    shop.forward(BATCH, 40_002);
    shop.node.after(20);
    shop.sweep();
    assert_eq!(shop.gap(), (1.0, 1.0), "{}", shop.node.text());
}

#[test]
fn what_may_be_older_than_the_agent_is_no_gap() {
    let mut shop = Shop::new(Engine::None);
    // Seen midway: it may have begun before there was a policy.
    let t = tuple(BATCH, 40_000, WEB, 8080);
    let flow = key(TCP, POD_IF, t);
    shop.node.packet(flow, t, WEB_IF, ACK, STAGE_FIRST);
    let datagrams = |port| key(UDP, POD_IF, tuple(BATCH, port, WEB, 53));
    let send = |shop: &mut Shop, port| {
        let flow = datagrams(port);
        shop.node.packet(flow, flow.tuple(), WEB_IF, 0, STAGE_FIRST);
        shop.node.after(20);
        shop.sweep();
    };
    send(&mut shop, 1);
    assert_eq!(shop.gap(), (0.0, 0.0));
    shop.node.after(121_000);
    send(&mut shop, 2);
    assert_eq!(shop.gap(), (1.0, 1.0), "{}", shop.node.text());
}

#[test]
fn a_connection_that_is_dropped_is_no_gap() {
    let mut shop = Shop::new(Engine::Calico);
    let t = tuple(BATCH, 40_000, WEB, 8080);
    let flow = key(TCP, POD_IF, t);
    shop.node.packet(flow, t, 0, SYN, STAGE_FIRST);
    shop.deny(BATCH, 40_000, 0, 7);
    shop.node.after(20);
    shop.sweep();
    shop.node.after(1_000);
    shop.sweep();
    assert_eq!(shop.gap(), (0.0, 0.0));
    assert_eq!(shop.denied(&[]), (1.0, 1.0));
}

#[test]
fn a_policy_that_goes_takes_its_gaps_with_it() {
    let mut shop = Shop::new(Engine::None);
    let flow = shop.forward(BATCH, 40_000);
    shop.node.after(20);
    shop.sweep();
    let gone = web_policy("web-policy").key();
    let now = shop.node.ns;
    shop.index.delete(&gone, now);
    shop.node.packet(flow, flow.tuple(), WEB_IF, ACK, 1);
    shop.node.after(1_000);
    shop.sweep();
    // The packet came in the same sweep in which the deletion was seen: it is counted or not, later ones are not.
    let counted = shop.gap();
    shop.node.packet(flow, flow.tuple(), WEB_IF, ACK, 1);
    shop.node.after(1_000);
    shop.sweep();
    assert_eq!(shop.gap(), counted);
}

#[test]
fn a_flood_of_denied_tuples_is_counted_whole_and_logged_in_part() {
    let mut shop = Shop::new(Engine::AzureNpm);
    for port in 1..=1_000 {
        shop.deny(BATCH, port, 0x400, u32::from(port));
    }
    shop.sweep();
    assert_eq!(shop.denied(&[]), (1_000.0, 1_000.0));
    assert_eq!(shop.records().len(), crate::collect::report::RECORDS);
}

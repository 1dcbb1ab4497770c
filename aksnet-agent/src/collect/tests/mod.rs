//! Whole sweeps over a fake source: what is accounted, and as what.

use std::net::IpAddr;

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{Addr, FlowKey, ORIGIN_NODE, STAGE_ESTABLISHED, STAGE_FIRST},
    packet::{ACK, FIN, ICMP, RST, SYN, TCP, UDP},
    passage::{NatKind, Tuple},
    stats::Role,
};

use super::{
    fake::{FakeExit, FakePacket, FakeSource},
    *,
};
use crate::{
    classify::{Class, Whois},
    metrics::{Metrics, MetricsConfig},
    plan::Plan,
};

mod exact;

mod flows;

mod named;

mod denied;

mod probes;

const MS: u64 = 1_000_000;
const START: u64 = 1_000_000 * MS;
const POD_IF: u32 = 11;
const UPLINK: u32 = 2;

const POD: &str = "10.244.1.5";
const POD2: &str = "10.244.1.6";
const NODE: &str = "10.224.0.4";
const SERVICE: &str = "10.0.0.10";
const OUTSIDE: &str = "93.184.216.34";

fn plan() -> Plan {
    Plan::builder()
        .pod_cidr("10.244.0.0/16".parse().expect("a range"))
        .local_pod_cidr("10.244.1.0/24".parse().expect("a range"))
        .service_cidr("10.0.0.0/16".parse().expect("a range"))
        .node_address(NODE.parse().expect("an address"))
        .node_name("aks-1")
        .interface(POD_IF, Role::Pod, "veth1")
        .interface(POD_IF + 1, Role::Pod, "veth2")
        .interface(UPLINK, Role::Uplink, "eth0")
        .build()
}

fn addr(s: &str) -> Addr {
    s.parse::<IpAddr>().expect("an address").into()
}

fn tuple(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
    Tuple {
        src: addr(src),
        dst: addr(dst),
        src_port,
        dst_port,
    }
}

fn key(protocol: u8, ifindex: u32, t: Tuple) -> FlowKey {
    FlowKey {
        src: t.src,
        dst: t.dst,
        src_port: t.src_port,
        dst_port: t.dst_port,
        ifindex,
        protocol,
        family: 4,
        ..FlowKey::default()
    }
}

/// A node: a source, a collector, and a clock that runs by hand.
struct Node {
    source: FakeSource,
    collector: Collector,
    ns: u64,
    plan: Plan,
}

impl Node {
    fn new() -> Self {
        Self::with(FakeSource::new(64, 16))
    }

    fn with(source: FakeSource) -> Self {
        let mut node = Self {
            source,
            collector: Collector::new(
                CollectConfig::default(),
                Metrics::new(MetricsConfig::default()),
                7,
            ),
            ns: START,
            plan: plan(),
        };
        node.sweep();
        // Beyond the time in which flows may have begun before the agent.
        node.after(5_000);
        node
    }

    fn after(&mut self, ms: u64) -> &mut Self {
        self.ns += ms * MS;
        self
    }

    fn sweep(&mut self) -> SweepReport {
        let now = Now {
            monotonic_ns: self.ns,
            unix_ms: self.ns / MS,
        };
        self.collector.sweep(
            &mut self.source,
            now,
            Whois::without_names(&self.plan),
            &DropNames::default(),
        )
    }

    /// Plays a timed packet that leaves as `after` through `exit`.
    fn packet(&mut self, key: FlowKey, after: Tuple, exit: u32, tcp: u8, stage: usize) {
        self.source.play(&FakePacket {
            key,
            ns: self.ns,
            bytes: 100,
            tcp,
            exit: Some(FakeExit {
                after,
                ifindex: exit,
                ns: 5_000,
                stage,
            }),
            ..FakePacket::default()
        });
    }

    fn text(&self) -> String {
        self.collector.metrics().encode().expect("encodes")
    }

    /// The value of the one series of a family that has all these labels.
    fn value(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.text();
        let found: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with(&format!("{family}{{")))
            .filter(|line| {
                labels
                    .iter()
                    .all(|(name, value)| line.contains(&format!("{name}=\"{value}\"")))
            })
            .collect();
        assert!(
            found.len() <= 1,
            "{family} {labels:?} is not one series: {found:#?}"
        );
        found.first().map_or(0.0, |line| {
            let value = line.rsplit(' ').next().expect("a value");
            value.parse().expect("a number")
        })
    }

    fn tcp(&self) -> (u64, u64, u64, u64) {
        self.collector.metrics().lock().tcp.totals()
    }

    fn finish(&mut self) -> SweepReport {
        let now = Now {
            monotonic_ns: self.ns,
            unix_ms: self.ns / MS,
        };
        self.collector.finish(
            &mut self.source,
            now,
            Whois::without_names(&self.plan),
            &DropNames::default(),
        )
    }
}

/// Pod to outside through MASQUERADE: both directions, as the node sees them.
fn egress(port: u16) -> (FlowKey, Tuple, FlowKey, Tuple) {
    (
        key(TCP, POD_IF, tuple(POD, port, OUTSIDE, 443)),
        tuple(NODE, port, OUTSIDE, 443),
        key(TCP, UPLINK, tuple(OUTSIDE, 443, NODE, port)),
        tuple(OUTSIDE, 443, POD, port),
    )
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn both_directions_of_an_egress_are_pod_to_external_with_snat() {
    let mut node = Node::new();
    let (out, out_after, back, back_after) = egress(40_000);
    node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
    node.after(3);
    node.packet(back, back_after, POD_IF, SYN | ACK, STAGE_FIRST);
    node.after(20).sweep();
    let common = [
        ("class", "pod_to_external"),
        ("nat", "snat"),
        ("scope", "external"),
    ];
    let sent = [&common[..], &[("dst_workload", "internet")]].concat();
    let got = [&common[..], &[("src_workload", "internet")]].concat();
    assert!(near(node.value("aksnet_flow_packets_total", &sent), 1.0));
    assert!(near(node.value("aksnet_flow_packets_total", &got), 1.0));
    assert!(near(node.value("aksnet_flow_bytes_total", &got), 100.0));
    assert!(near(
        node.value("aksnet_flow_connections_total", &sent),
        1.0
    ));
    assert!(near(node.value("aksnet_flow_connections_total", &got), 0.0));
    let families = node.collector.metrics().lock();
    let times = |stage| {
        families
            .nat
            .times(Class::PodToExternal, NatKind::Snat, stage)
            .count()
    };
    // The reply's first packet is no first packet of a connection.
    assert_eq!((times(STAGE_FIRST), times(STAGE_ESTABLISHED)), (1, 1));
}

#[test]
fn a_handshake_is_measured_once_whichever_flow_is_read_first() {
    for port in 40_000..40_032 {
        let mut node = Node::new();
        let (out, out_after, back, back_after) = egress(port);
        node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
        if port % 2 == 0 {
            node.after(15).sweep();
        }
        node.after(5);
        node.packet(back, back_after, POD_IF, SYN | ACK, STAGE_ESTABLISHED);
        for _ in 0..3 {
            node.after(20).sweep();
        }
        assert_eq!(node.tcp(), (1, 0, 0, 0));
    }
}

#[test]
fn a_reset_instead_of_a_syn_ack_is_refused() {
    let mut node = Node::new();
    let (out, out_after, back, back_after) = egress(40_000);
    node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
    node.after(1);
    node.packet(back, back_after, POD_IF, RST | ACK, STAGE_ESTABLISHED);
    node.after(20).sweep();
    node.after(20_000).sweep();
    assert_eq!(node.tcp(), (0, 1, 0, 0));
}

#[test]
fn a_syn_that_left_and_heard_nothing_is_unanswered() {
    let mut node = Node::new();
    let (out, out_after, ..) = egress(40_000);
    node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
    node.after(9_000).sweep();
    assert_eq!(node.tcp(), (0, 0, 0, 0));
    node.after(2_000).sweep();
    node.after(2_000).sweep();
    assert_eq!(node.tcp(), (0, 0, 1, 0));
}

#[test]
fn answers_that_spilled_are_neither_unanswered_nor_measured() {
    for answer in [SYN | ACK, RST | ACK] {
        // One bucket, full: what comes then has no cell.
        let mut node = Node::with(FakeSource::new(1, 16));
        let (out, out_after, back, back_after) = egress(40_000);
        node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
        for port in 1..8 {
            let t = tuple(POD, port, OUTSIDE, 53);
            node.packet(key(UDP, POD_IF, t), t, UPLINK, 0, STAGE_FIRST);
        }
        node.after(20).sweep();
        node.packet(back, back_after, POD_IF, answer, STAGE_ESTABLISHED);
        assert!(node.source.find(&back).is_none(), "it spilled");
        node.after(20).sweep();
        node.after(20_000).sweep();
        assert_eq!(node.tcp(), (0, 0, 0, 0));
    }
}

#[test]
fn who_acknowledges_was_answered_even_if_nothing_was_seen_of_it() {
    let mut node = Node::new();
    let (out, out_after, ..) = egress(40_000);
    for flags in [SYN, ACK] {
        node.packet(out, out_after, UPLINK, flags, STAGE_FIRST);
    }
    node.after(20).sweep();
    node.after(20_000).sweep();
    assert_eq!(node.tcp(), (0, 0, 0, 0));
}

#[test]
fn a_syn_that_was_dropped_here_is_a_drop_and_not_unanswered() {
    let mut node = Node::new();
    let (out, ..) = egress(40_000);
    node.packet(out, out.tuple(), 0, SYN, STAGE_FIRST);
    let drop = DropKey {
        key: out,
        iif: POD_IF,
        reason: 12,
        ..DropKey::default()
    };
    let stats = DropStats {
        skbs: 1,
        bytes: 60,
        last_ns: node.ns,
        cell: u64::from(node.source.find(&out).expect("live")) + 1,
        ..DropStats::default()
    };
    node.source.drop(drop, &stats);
    node.after(20).sweep();
    node.after(11_000).sweep();
    assert_eq!(node.tcp(), (0, 0, 0, 0));
    let labels = [
        ("reason", "12"),
        ("direction", "egress"),
        ("dst_workload", "internet"),
    ];
    assert!(near(node.value("aksnet_drop_packets_total", &labels), 1.0));
    assert!(near(node.value("aksnet_drop_bytes_total", &labels), 60.0));
}

#[test]
fn a_drop_waits_until_its_flow_is_judged() {
    let mut node = Node::new();
    let dialled = key(TCP, POD_IF, tuple(POD, 40_000, SERVICE, 80));
    let translated = tuple(POD, 40_000, POD2, 8080);
    node.packet(dialled, translated, 0, SYN, STAGE_FIRST);
    let cell = node.source.find(&dialled).expect("live");
    // The headers at the drop are those after DNAT.
    let drop = DropKey {
        key: key(TCP, POD_IF, translated),
        iif: POD_IF,
        ..DropKey::default()
    };
    let stats = DropStats {
        skbs: 1,
        bytes: 60,
        last_ns: node.ns,
        cell: u64::from(cell) + 1,
        ..DropStats::default()
    };
    node.source.drop(drop, &stats);
    let dropped = |node: &Node| node.value("aksnet_drop_packets_total", &[("direction", "egress")]);
    node.after(5).sweep();
    assert!(near(dropped(&node), 0.0));
    node.after(1_000).sweep();
    assert!(near(dropped(&node), 1.0));
    assert_eq!(node.collector.drops(cell).0, 1, "it is the flow's own");
    assert_eq!(node.collector.orphan_drops().count(), 0);
}

#[test]
fn a_udp_reply_opens_no_connection_even_when_its_cell_comes_first() {
    // Many ports, so that either flow's cell comes first in the table.
    for port in 50_000..50_032 {
        let mut node = Node::new();
        let ask = tuple(POD, port, SERVICE, 53);
        let asked = tuple(POD, port, POD2, 5353);
        let answer = tuple(POD2, 5353, POD, port);
        let answered = tuple(SERVICE, 53, POD, port);
        node.packet(key(UDP, POD_IF, ask), asked, POD_IF + 1, 0, STAGE_FIRST);
        node.after(1);
        node.packet(
            key(UDP, POD_IF + 1, answer),
            answered,
            POD_IF,
            0,
            STAGE_FIRST,
        );
        node.after(20).sweep();
        assert_eq!(node.collector.accounted().connections, 1);
        assert_eq!(node.collector.accounted().packets, 2);
        let labels = [
            ("class", "pod_to_service"),
            ("nat", "dnat"),
            ("scope", "same_node"),
        ];
        assert!(near(node.value("aksnet_flow_packets_total", &labels), 2.0));
        let families = node.collector.metrics().lock();
        let times = |stage| {
            families
                .nat
                .times(Class::PodToService, NatKind::Dnat, stage)
                .count()
        };
        assert_eq!((times(STAGE_FIRST), times(STAGE_ESTABLISHED)), (1, 1));
    }
}

#[test]
fn an_echo_and_its_reply_are_one_connection_through_nat() {
    let mut node = Node::new();
    let request = tuple(POD, 77, OUTSIDE, 8 << 8);
    let sent = tuple(NODE, 991, OUTSIDE, 8 << 8);
    let reply = tuple(OUTSIDE, 991, NODE, 0);
    let received = tuple(OUTSIDE, 77, POD, 0);
    node.packet(key(ICMP, POD_IF, request), sent, UPLINK, 0, STAGE_FIRST);
    node.packet(key(ICMP, UPLINK, reply), received, POD_IF, 0, STAGE_FIRST);
    node.after(20).sweep();
    assert_eq!(node.collector.accounted().connections, 1);
    for side in [("dst_workload", "internet"), ("src_workload", "internet")] {
        let labels = [("class", "pod_to_external"), ("nat", "snat"), side];
        assert!(near(node.value("aksnet_flow_packets_total", &labels), 1.0));
    }
}

#[test]
fn an_icmp_error_belongs_to_the_traffic_it_answers() {
    let mut node = Node::new();
    let error = tuple(OUTSIDE, 0, NODE, 3 << 8 | 1);
    let received = tuple(OUTSIDE, 0, POD, 3 << 8 | 1);
    node.packet(key(ICMP, UPLINK, error), received, POD_IF, 0, STAGE_FIRST);
    node.after(20).sweep();
    let labels = [
        ("class", "pod_to_external"),
        ("nat", "snat"),
        ("src_workload", "internet"),
    ];
    assert!(near(node.value("aksnet_flow_packets_total", &labels), 1.0));
    assert_eq!(node.collector.accounted().connections, 0);
}

#[test]
fn a_reply_seen_midway_is_not_taken_for_a_node_port() {
    let mut node = Node::new();
    let (_, _, back, back_after) = egress(40_000);
    node.packet(back, back_after, POD_IF, ACK, STAGE_ESTABLISHED);
    node.after(20).sweep();
    let labels = [("class", "pod_to_external"), ("nat", "snat")];
    assert!(near(node.value("aksnet_flow_packets_total", &labels), 1.0));
}

#[test]
fn the_nodes_answer_to_a_pod_is_pod_to_node() {
    let mut node = Node::new();
    let ask = key(UDP, POD_IF, tuple(POD, 50_000, NODE, 10_250));
    node.source.play(&FakePacket {
        key: ask,
        ns: node.ns,
        bytes: 80,
        ..FakePacket::default()
    });
    let answer = FlowKey {
        origin: ORIGIN_NODE,
        ..key(UDP, POD_IF, tuple(NODE, 10_250, POD, 50_000))
    };
    node.after(1);
    node.source.play(&FakePacket {
        key: answer,
        ns: node.ns,
        bytes: 80,
        ..FakePacket::default()
    });
    node.after(20).sweep();
    for side in [
        ("dst_workload", "node/aks-1"),
        ("src_workload", "node/aks-1"),
    ] {
        let labels = [("class", "pod_to_node"), ("scope", "same_node"), side];
        assert!(near(node.value("aksnet_flow_packets_total", &labels), 1.0));
    }
}

#[test]
fn a_flow_is_judged_when_its_translation_is_known() {
    let mut node = Node::new();
    let (out, out_after, ..) = egress(40_000);
    node.source.play(&FakePacket {
        key: out,
        ns: node.ns,
        bytes: 60,
        tcp: SYN,
        ..FakePacket::default()
    });
    node.after(20).sweep();
    let plain = [("class", "pod_to_external"), ("nat", "none")];
    assert!(near(node.value("aksnet_flow_packets_total", &plain), 1.0));
    node.packet(out, out_after, UPLINK, ACK, STAGE_ESTABLISHED);
    node.after(20).sweep();
    let snat = [("class", "pod_to_external"), ("nat", "snat")];
    assert!(near(node.value("aksnet_flow_packets_total", &plain), 1.0));
    assert!(near(node.value("aksnet_flow_packets_total", &snat), 1.0));
    assert!(near(
        node.value("aksnet_nat_bytes_total", &[("nat", "snat")]),
        100.0
    ));
}

#[test]
fn a_young_flow_waits_for_the_next_sweep_unless_it_is_the_last() {
    let mut node = Node::new();
    let (out, out_after, ..) = egress(40_000);
    node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
    let report = node.after(1).sweep();
    assert_eq!((report.unsettled, report.new), (1, 0));
    node.finish();
    assert_eq!(node.collector.accounted().packets, 1);
}

#[test]
fn an_idle_connection_is_retired_whole_and_its_last_counts_are_folded_once() {
    let mut node = Node::new();
    let (out, out_after, back, back_after) = egress(40_000);
    node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
    node.packet(back, back_after, POD_IF, SYN | ACK, STAGE_ESTABLISHED);
    for _ in 0..70 {
        // Only one side talks.
        node.after(1_000);
        node.packet(back, back_after, POD_IF, ACK, STAGE_ESTABLISHED);
        assert_eq!(node.sweep().closed, 0);
    }
    node.after(10).sweep();
    node.after(59_000);
    assert_eq!(node.sweep().closed, 0);
    node.after(2_000);
    // A packet that found its cell just before it was closed, and counts only afterwards.
    let late = FakePacket {
        key: out,
        ns: node.ns,
        bytes: 7,
        tcp: ACK,
        ..FakePacket::default()
    };
    let ticket = node.source.begin(&late);
    assert_eq!(node.sweep().closed, 2);
    node.source.complete(&late, ticket);
    assert_eq!(node.after(20).sweep().freed, 0);
    let report = node.after(60).sweep();
    assert_eq!((report.freed, report.live), (2, 0));
    assert_eq!(node.collector.accounted().packets, 73);
    assert_eq!(node.collector.accounted().bytes, 72 * 100 + 7);
    // The tuple's next packet is a flow of its own.
    node.packet(out, out_after, UPLINK, ACK, STAGE_ESTABLISHED);
    node.after(20).sweep();
    assert_eq!(node.collector.accounted().packets, 74);
}

#[test]
fn a_finished_connection_is_retired_soon() {
    let mut node = Node::new();
    let (out, out_after, back, back_after) = egress(40_000);
    node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
    node.packet(back, back_after, POD_IF, SYN | ACK, STAGE_ESTABLISHED);
    node.packet(out, out_after, UPLINK, FIN | ACK, STAGE_ESTABLISHED);
    node.after(20).sweep();
    node.after(20).sweep();
    // Half closed: the other side may talk for hours.
    assert_eq!(node.after(6_000).sweep().closed, 0);
    node.packet(back, back_after, POD_IF, FIN | ACK, STAGE_ESTABLISHED);
    node.after(20).sweep();
    node.after(20).sweep();
    assert_eq!(node.after(6_000).sweep().closed, 2);
}

#[test]
fn a_changed_plan_moves_flows_to_their_new_class_and_loses_nothing() {
    let mut node = Node::new();
    let t = tuple(POD, 40_000, "10.9.9.9", 443);
    node.packet(key(TCP, POD_IF, t), t, UPLINK, SYN, STAGE_FIRST);
    node.after(20).sweep();
    node.after(20).sweep();
    assert!(near(
        node.value("aksnet_flow_packets_total", &[("dst_workload", "private")]),
        1.0
    ));
    node.plan = Plan::builder()
        .pod_cidr("10.244.0.0/16".parse().expect("a range"))
        .named_cidr("mainframe", "10.9.0.0/16".parse().expect("a range"))
        .build();
    node.sweep();
    node.packet(key(TCP, POD_IF, t), t, UPLINK, ACK, STAGE_ESTABLISHED);
    node.after(20).sweep();
    for workload in ["private", "mainframe"] {
        let labels = [("dst_workload", workload)];
        assert!(near(node.value("aksnet_flow_packets_total", &labels), 1.0));
    }
}

#[test]
fn spilled_flows_are_folded_and_open_one_connection() {
    let mut node = Node::with(FakeSource::new(1, 16));
    for port in 1_000..1_006 {
        for _ in 0..3 {
            let t = tuple(POD, port, OUTSIDE, 53);
            node.packet(key(UDP, POD_IF, t), t, UPLINK, 0, STAGE_FIRST);
        }
    }
    let report = node.after(20).sweep();
    assert_eq!((report.live, report.spilled), (4, 2));
    let spilled = tuple(POD, 1_005, OUTSIDE, 53);
    node.packet(key(UDP, POD_IF, spilled), spilled, UPLINK, 0, STAGE_FIRST);
    node.after(20).sweep();
    assert_eq!(node.collector.accounted().packets, 19);
    assert_eq!(node.collector.accounted().connections, 6);
}

#[test]
fn retransmits_are_counted_by_class() {
    let mut node = Node::new();
    let (out, out_after, ..) = egress(40_000);
    node.packet(out, out_after, UPLINK, SYN, STAGE_FIRST);
    node.after(20).sweep();
    for _ in 0..3 {
        node.source.play(&FakePacket {
            key: out,
            ns: node.ns,
            bytes: 60,
            tcp: SYN,
            again: true,
            ..FakePacket::default()
        });
    }
    node.after(20).sweep();
    assert_eq!(node.tcp().3, 3);
    assert_eq!(node.collector.accounted().connections, 1);
}

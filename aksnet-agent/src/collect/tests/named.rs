//! Sweeps with an index of names: what waits for a name, what keeps it, and what is counted as an anomaly.

use std::sync::Arc;

use super::*;
use crate::{
    identify::{
        index::Index,
        object::{Kind, Object, Pod},
    },
    plan::SourceNat,
};

const POD_IN_PLAN: &str = "10.244.1.5";

fn pod(name: &str, address: &str) -> Object {
    Object::Pod(Pod {
        kind: Kind::LocalPod,
        key_name: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        uid: name.into(),
        addresses: vec![address.parse::<IpAddr>().expect("an address").into()],
        workload: name.into(),
        node: "aks-1".into(),
        host_network: false,
        finished: false,
        labels: Arc::from([]),
        named_ports: vec![],
        host_ports: vec![],
    })
}

/// A node whose pods are watched, and none is known yet.
struct Named {
    node: Node,
    index: Index,
}

impl Named {
    fn new() -> Self {
        let mut index = Index::new("aks-1");
        index.begin(Kind::LocalPod);
        index.settle(Kind::LocalPod, START);
        let mut node = Node::new();
        node.plan = Plan::builder()
            .local_pod_cidr("10.244.1.0/24".parse().expect("a range"))
            .pod_cidr("10.244.0.0/16".parse().expect("a range"))
            .node_address(NODE.parse().expect("an address"))
            .source_nat(SourceNat::Everything)
            .interface(POD_IF, Role::Pod, "veth1")
            .interface(UPLINK, Role::Uplink, "eth0")
            .build();
        Self { node, index }
    }

    fn sweep(&mut self, unix_ms: u64) -> SweepReport {
        let now = Now {
            monotonic_ns: self.node.ns,
            unix_ms,
        };
        let whois = Whois {
            plan: &self.node.plan,
            index: &self.index,
            translations: None,
        };
        let (source, names) = (&mut self.node.source, DropNames::default());
        self.node.collector.sweep(source, now, whois, &names)
    }

    fn egress(&mut self, port: u16, tcp: u8) {
        let (there, after, ..) = egress(port);
        self.node.packet(there, after, UPLINK, tcp, STAGE_FIRST);
    }

    fn packets_of(&self, workload: &str) -> f64 {
        let labels = [("src_workload", workload), ("dst_workload", "internet")];
        self.node.value("aksnet_flow_packets_total", &labels)
    }
}

#[test]
fn a_young_flow_waits_for_its_pods_name_and_loses_nothing() {
    let mut named = Named::new();
    named.egress(40_000, SYN);
    named.node.after(1_000);
    let report = named.sweep(0);
    assert_eq!((report.new, report.unsettled), (0, 1));
    named.egress(40_000, ACK);
    let told = named.node.ns;
    named.index.apply(pod("web", POD_IN_PLAN), told);
    named.node.after(1_000);
    assert_eq!(named.sweep(0).new, 1);
    assert!(near(named.packets_of("web"), 2.0), "{}", named.node.text());
}

#[test]
fn a_reply_waits_for_the_name_of_whom_it_goes_to() {
    let mut named = Named::new();
    let told = named.node.ns;
    named.index.apply(pod("web", POD2), told);
    let there = tuple(POD_IN_PLAN, 40_000, POD2, 80);
    let back = tuple(POD2, 80, POD_IN_PLAN, 40_000);
    for (t, tcp) in [(there, SYN), (back, SYN | ACK)] {
        named
            .node
            .packet(key(TCP, POD_IF, t), t, POD_IF, tcp, STAGE_FIRST);
    }
    named.node.after(1_000);
    let report = named.sweep(0);
    assert_eq!((report.new, report.unsettled), (0, 2));
    let told = named.node.ns;
    named.index.apply(pod("young", POD_IN_PLAN), told);
    named.node.after(1_000);
    assert_eq!(named.sweep(0).new, 2);
    for labels in [
        [("src_workload", "young"), ("dst_workload", "web")],
        [("src_workload", "web"), ("dst_workload", "young")],
    ] {
        let packets = named.node.value("aksnet_flow_packets_total", &labels);
        assert!(near(packets, 1.0), "{}", named.node.text());
    }
}

#[test]
fn a_flow_whose_pods_name_does_not_come_is_counted_without_and_named_later() {
    let mut named = Named::new();
    named.egress(40_000, SYN);
    named.node.after(3_500);
    assert_eq!(named.sweep(0).new, 1);
    assert!(near(named.packets_of(""), 1.0), "{}", named.node.text());
    let told = named.node.ns;
    named.index.apply(pod("web", POD_IN_PLAN), told);
    named.node.after(1_000);
    named.sweep(0);
    named.egress(40_000, ACK);
    named.node.after(1_000);
    named.sweep(0);
    assert!(near(named.packets_of(""), 1.0), "what was counted stays");
    assert!(near(named.packets_of("web"), 1.0), "{}", named.node.text());
}

#[test]
fn without_a_source_of_names_nothing_waits() {
    let mut named = Named::new();
    named.index = Index::new("aks-1");
    named.egress(40_000, SYN);
    named.node.after(20);
    assert_eq!(named.sweep(0).new, 1);
}

#[test]
fn a_live_flow_keeps_the_name_of_who_held_the_address_when_it_began() {
    let mut named = Named::new();
    let mut told = named.node.ns;
    named.index.apply(pod("web", POD_IN_PLAN), told);
    named.node.after(1_000);
    named.egress(40_000, SYN);
    named.node.after(1_000);
    named.sweep(0);
    told = named.node.ns;
    named.index.delete(&pod("web", POD_IN_PLAN).key(), told);
    named.index.apply(pod("batch", POD_IN_PLAN), told + MS);
    named.node.after(1_000);
    named.egress(40_000, ACK);
    named.egress(40_001, SYN);
    // Another plan: everything is judged again.
    named.node.plan = Plan::builder()
        .local_pod_cidr("10.244.1.0/24".parse().expect("a range"))
        .node_address(NODE.parse().expect("an address"))
        .interface(POD_IF, Role::Pod, "veth1")
        .interface(UPLINK, Role::Uplink, "eth0")
        .build();
    named.node.after(1_000);
    named.sweep(0);
    assert!(near(named.packets_of("web"), 2.0), "{}", named.node.text());
    assert!(near(named.packets_of("batch"), 1.0));
}

#[test]
fn an_anomaly_is_counted_for_each_connection_and_no_more() {
    let mut named = Named::new();
    let told = named.node.ns;
    named.index.apply(pod("web", POD_IN_PLAN), told);
    let (there, masqueraded, ..) = egress(40_000);
    let bare = there.tuple();
    for (port, after) in [(40_000, masqueraded), (40_001, bare), (40_002, bare)] {
        let key = FlowKey {
            src_port: port,
            ..there
        };
        let after = Tuple {
            src_port: port,
            ..after
        };
        for tcp in [SYN, ACK, ACK] {
            named.node.packet(key, after, UPLINK, tcp, STAGE_FIRST);
        }
    }
    named.node.after(1_000);
    named.sweep(0);
    named.node.after(1_000);
    named.sweep(0);
    let labels = [("anomaly", "egress_without_snat"), ("src_workload", "web")];
    let counted = |named: &Named, labels: &[(&str, &str)]| {
        named
            .node
            .value("aksnet_anomalous_connections_total", labels)
    };
    assert!(near(counted(&named, &labels), 2.0), "{}", named.node.text());
    assert!(!named.node.text().contains("pod_to_pod_snat"));
}

#[test]
fn a_wall_clock_that_steps_back_changes_nothing_that_is_counted() {
    let mut named = Named::new();
    let told = named.node.ns;
    named.index.apply(pod("web", POD_IN_PLAN), told);
    let mut last = 0;
    // Years ahead, and back to 1970.
    for (n, unix_ms) in [4_000_000_000_000, 0, 1_700_000_000_000, 1]
        .into_iter()
        .enumerate()
    {
        named.egress(40_000, if n == 0 { SYN } else { ACK });
        named.node.after(1_000);
        named.sweep(unix_ms);
        last = unix_ms;
    }
    assert!(near(named.packets_of("web"), 4.0), "{}", named.node.text());
    let shown = named.node.collector.unix_ms(named.node.ns - 10_000 * MS);
    assert_eq!(shown, 0, "ten seconds before {last} ms is no negative time");
}

//! Flow records of whole sweeps: one for each connection, every packet once.

use proptest::prelude::*;

use super::*;
use crate::flowlog::{End, FlowRecord};

impl Node {
    fn records(&mut self) -> Vec<FlowRecord> {
        let (records, missed) = self.collector.take_flows();
        assert_eq!(missed, 0);
        records
    }

    fn record_all(&mut self) {
        self.collector.record(Recording::All, "aks-1");
    }

    /// Sweeps each second for so long, and returns the records.
    fn seconds(&mut self, seconds: u32) -> Vec<FlowRecord> {
        let mut all = Vec::new();
        for _ in 0..seconds {
            self.after(1_000).sweep();
            all.extend(self.records());
        }
        all
    }
}

fn talk(node: &mut Node, port: u16, flags: u8) {
    let (out, snat, back, dnat) = egress(port);
    node.packet(out, snat, UPLINK, flags, STAGE_FIRST);
    node.packet(back, dnat, POD_IF, flags | ACK, STAGE_ESTABLISHED);
}

#[test]
fn a_connection_that_ends_is_one_record_of_both_directions() {
    let mut node = Node::new();
    node.record_all();
    talk(&mut node, 4_000, SYN);
    node.after(2_000).sweep();
    talk(&mut node, 4_000, FIN | ACK);
    let records = node.seconds(20);
    assert_eq!(records.len(), 1, "{records:#?}");
    let record = &records[0];
    assert_eq!(
        (record.end, record.outcome.as_str()),
        (End::Closed, "finished")
    );
    assert_eq!(
        (record.class.as_str(), record.nat.as_str()),
        ("pod_to_external", "snat")
    );
    assert_eq!((record.node.as_str(), record.connections), ("aks-1", 1));
    assert_eq!(
        (record.in_interface.as_str(), record.out_interface.as_str()),
        ("veth1", "eth0")
    );
    assert_eq!(
        record.after.expect("translated").src,
        NODE.parse::<IpAddr>().expect("an address")
    );
    let reply = record.reply.as_ref().expect("answered");
    assert_eq!(
        (record.forward.packets, reply.packets, record.forward.bytes),
        (2, 2, 200)
    );
    assert_eq!(
        record.end_ms - record.start_ms,
        3_000,
        "of the sweep that saw the latest packet"
    );
    let (first, later) = (
        record.first.expect("timed"),
        record.established.expect("timed"),
    );
    assert_eq!((first.samples, later.samples), (2, 2));
}

#[test]
fn an_idle_connection_and_a_long_one_say_so() {
    let mut node = Node::new();
    node.record_all();
    talk(&mut node, 4_000, SYN);
    let mut records = Vec::new();
    for _ in 0..130 {
        talk(&mut node, 4_001, ACK);
        records.extend(node.seconds(1));
    }
    records.extend(node.seconds(70));
    let of = |port: u16| records.iter().filter(move |r| r.before.src_port == port);
    assert_eq!(of(4_000).map(|r| r.end).collect::<Vec<_>>(), [End::Idle]);
    let ends: Vec<End> = of(4_001).map(|r| r.end).collect();
    // The third for what came after the second.
    assert_eq!(ends, [End::Active, End::Active, End::Active, End::Idle]);
    assert_eq!(of(4_001).map(|r| r.forward.packets).sum::<u64>(), 130);
    assert_eq!(
        of(4_001).next_back().expect("one").forward.total_packets,
        130
    );
}

#[test]
fn while_nobody_follows_a_few_that_ended_are_told_and_no_more() {
    let mut node = Node::with(FakeSource::new(1_024, 16));
    for port in 1..200 {
        talk(&mut node, port, SYN);
        talk(&mut node, port, FIN);
    }
    let records = node.seconds(100);
    assert_eq!(records.len(), 64);
    talk(&mut node, 300, SYN);
    node.after(1_000).finish();
    assert_eq!(node.records(), []);
}

#[test]
fn a_flow_without_a_cell_is_told_by_sweep() {
    let mut node = Node::with(FakeSource::new(1, 16));
    node.record_all();
    for port in 4_001..=4_005 {
        let (out, snat, ..) = egress(port);
        node.packet(out, snat, UPLINK, ACK, STAGE_ESTABLISHED);
    }
    let records = node.seconds(1);
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(
        (records[0].end, records[0].forward.packets),
        (End::Spilled, 1)
    );
    node.after(1_000).finish();
    let rest = node.records();
    assert_eq!(
        rest.iter()
            .map(|r| (r.end, r.forward.packets))
            .collect::<Vec<_>>(),
        [(End::AgentEnd, 1); 4]
    );
}

#[test]
fn live_connections_are_told_with_all_that_they_did() {
    let mut node = Node::new();
    talk(&mut node, 4_000, SYN);
    for _ in 0..3 {
        talk(&mut node, 4_001, ACK);
    }
    node.after(1_000).sweep();
    let plan = plan();
    let whois = Whois::without_names(&plan);
    let live = |most| {
        node.collector
            .live_connections(&node.source, &whois, &DropNames::default(), most)
    };
    let ports: Vec<_> = live(0)
        .iter()
        .map(|r| (r.before.src_port, r.packets(), r.end))
        .collect();
    assert_eq!(ports, [(4_001, 6, End::Live), (4_000, 2, End::Live)]);
    assert_eq!(live(1).len(), 1);
}

proptest! {
    #[test]
    fn every_packet_is_in_one_record(
        steps in prop::collection::vec((0u16..6, 0u8..4, 0u64..40_000), 1..80),
        buckets in prop::sample::select(vec![1usize, 64]),
    ) {
        let mut node = Node::with(FakeSource::new(buckets, 4));
        node.record_all();
        let mut records = Vec::new();
        for (port, flags, ms) in steps {
            talk(&mut node, 5_000 + port, [SYN, ACK, FIN | ACK, RST][usize::from(flags)]);
            node.after(ms).sweep();
            records.extend(node.records());
        }
        node.after(1_000).finish();
        records.extend(node.records());
        let told: u64 = records.iter().map(FlowRecord::packets).sum();
        prop_assert_eq!(told, node.collector.accounted().packets);
        let bytes: u64 = records.iter().map(FlowRecord::bytes).sum();
        prop_assert_eq!(bytes, node.collector.accounted().bytes);
    }
}

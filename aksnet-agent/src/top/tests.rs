//! Rows of a small node, and how they read.

use std::net::IpAddr;

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{FlowKey, STAGE_ESTABLISHED, STAGE_FIRST},
    packet::{TCP, UDP},
    passage::Tuple,
    stats::Role,
};

use super::*;
use crate::{
    classify::Whois,
    collect::{
        CollectConfig, Collector, DropNames, Now,
        fake::{FakeExit, FakePacket, FakeSource},
    },
    metrics::{Metrics, MetricsConfig},
    plan::Plan,
};

const MS: u64 = 1_000_000;

fn tuple(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
    let ip = |s: &str| s.parse::<IpAddr>().expect("an address").into();
    Tuple {
        src: ip(src),
        dst: ip(dst),
        src_port,
        dst_port,
    }
}

fn key(protocol: u8, t: Tuple) -> FlowKey {
    FlowKey {
        src: t.src,
        dst: t.dst,
        src_port: t.src_port,
        dst_port: t.dst_port,
        ifindex: 11,
        protocol,
        family: 4,
        ..FlowKey::default()
    }
}

/// An egress of three packets, a DNS query of one, and a denied connection that no cell knows; what somebody sees who
/// looks at them.
pub(crate) fn small_node<T>(
    look: impl FnOnce(&Collector, &FakeSource, &Whois, &DropNames) -> T,
) -> T {
    let plan = Plan::builder()
        .pod_cidr("10.244.0.0/16".parse().expect("a range"))
        .service_cidr("10.0.0.0/16".parse().expect("a range"))
        .node_address("10.224.0.4".parse().expect("an address"))
        .interface(11, Role::Pod, "veth1")
        .interface(2, Role::Uplink, "eth0")
        .build();
    let names = DropNames::new(
        [(12, "SKB_DROP_REASON_NETFILTER_DROP".to_owned())],
        [(0x1000, "nf_hook_slow".to_owned())],
    );
    let mut source = FakeSource::new(16, 4);
    let metrics = Metrics::new(MetricsConfig::default());
    let mut collector = Collector::new(CollectConfig::default(), metrics, 7);
    let at = |ms: u64| Now {
        monotonic_ns: (10_000 + ms) * MS,
        unix_ms: 1_000_000 + ms,
    };
    collector.sweep(&mut source, at(0), Whois::without_names(&plan), &names);

    let egress = tuple("10.244.1.5", 40_000, "93.184.216.34", 443);
    let masqueraded = tuple("10.224.0.4", 40_000, "93.184.216.34", 443);
    for n in 0..3 {
        source.play(&FakePacket {
            key: key(TCP, egress),
            ns: 13_000 * MS,
            bytes: 1000,
            tcp: if n == 0 { 0x02 } else { 0x10 },
            exit: Some(FakeExit {
                after: masqueraded,
                ifindex: 2,
                ns: if n == 0 { 98_000 } else { 4_200 },
                stage: if n == 0 {
                    STAGE_FIRST
                } else {
                    STAGE_ESTABLISHED
                },
            }),
            ..FakePacket::default()
        });
    }
    let query = tuple("10.244.1.5", 5_000, "10.0.0.10", 53);
    source.play(&FakePacket {
        key: key(UDP, query),
        ns: 13_000 * MS,
        bytes: 60,
        exit: Some(FakeExit {
            after: tuple("10.244.1.5", 5_000, "10.244.1.7", 5353),
            ifindex: 12,
            ns: 60_000,
            stage: STAGE_FIRST,
        }),
        ..FakePacket::default()
    });
    source.drop(
        DropKey {
            key: key(UDP, query),
            location: 0x1010,
            reason: 12,
            iif: 11,
            ..DropKey::default()
        },
        &DropStats {
            skbs: 1,
            bytes: 60,
            last_ns: 13_000 * MS,
            ..DropStats::default()
        },
    );
    source.drop(
        DropKey {
            key: key(TCP, tuple("10.244.1.9", 41_000, "10.244.2.2", 80)),
            location: 0x1010,
            reason: 12,
            iif: 11,
            ..DropKey::default()
        },
        &DropStats {
            skbs: 2,
            bytes: 120,
            last_ns: 13_000 * MS,
            ..DropStats::default()
        },
    );
    collector.sweep(&mut source, at(4_000), Whois::without_names(&plan), &names);
    look(&collector, &source, &Whois::without_names(&plan), &names)
}

fn rows_of_a_node(sort: Sort, limit: usize) -> Vec<Row> {
    small_node(|collector, source, whois, names| {
        rows(collector, source, whois, names, Query { sort, limit })
    })
}

#[test]
fn rows_come_in_the_order_of_the_chosen_measure() {
    let classes = |sort| -> Vec<String> {
        let rows = rows_of_a_node(sort, 10);
        rows.into_iter().map(|row| row.class).collect()
    };
    let busiest = ["pod_to_external", "pod_to_service", "pod_to_pod"];
    assert_eq!(classes(Sort::Bytes), busiest);
    assert_eq!(classes(Sort::Packets), busiest);
    assert_eq!(classes(Sort::NatTime), busiest);
    assert_eq!(classes(Sort::Drops)[0], "pod_to_pod");
    assert_eq!(rows_of_a_node(Sort::Drops, 1).len(), 1);
}

#[test]
fn a_row_tells_translation_rates_and_times() {
    let rows = rows_of_a_node(Sort::Bytes, 10);
    let row = &rows[0];
    assert_eq!((row.packets, row.bytes), (3, 3000));
    assert!((row.bytes_per_second - 750.0).abs() < 1e-6);
    assert_eq!(row.nat, "snat");
    assert_eq!(row.in_interface, "veth1");
    assert_eq!(row.out_interface, "eth0");
    assert_eq!(row.time_ms, 1_004_000);
    let first = row.first.expect("timed");
    assert_eq!(first.samples, 1);
    assert!((65_536.0..=131_072.0).contains(&first.p50_ns));
    assert_eq!(row.established.expect("timed").samples, 2);
}

#[test]
fn a_drop_without_a_flow_is_a_row_with_its_reason() {
    let rows = rows_of_a_node(Sort::Drops, 10);
    assert_eq!((rows[0].drops, rows[0].packets), (2, 0));
    assert_eq!(rows[0].drop_reason.as_deref(), Some("netfilter_drop"));
    assert_eq!(rows[0].drop_cause.as_deref(), Some("firewall"));
    assert_eq!(rows[0].time_ms, 1_003_000);
}

#[test]
fn lines_are_aligned_and_fit_into_160_columns() {
    let text = raw::lines(&rows_of_a_node(Sort::Bytes, 10));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    for line in &lines {
        assert!(line.chars().count() <= 160, "{line}");
    }
    let column = |line: &str, word: &str| {
        let at = line.find(word).expect("the word");
        line[..at].chars().count()
    };
    let flow = column(lines[0], "BEFORE");
    assert_eq!(
        column(
            lines[1],
            "10.244.1.5:40000>93.184.216.34:443 → 10.224.0.4:40000>="
        ),
        flow
    );
    assert_eq!(column(lines[3], "10.244.1.9:41000>10.244.2.2:80"), flow);
    assert!(lines[3].ends_with("2 netfilter_drop"), "{text}");
}

#[test]
fn rows_travel_as_json_lines() {
    let rows = rows_of_a_node(Sort::Bytes, 10);
    let text = raw::json_lines(&rows).expect("encodes");
    let back: Vec<Row> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("decodes"))
        .collect();
    assert_eq!(back, rows);
}

//! The rows of `top`: the live flows that matter most by the chosen measure, made when somebody asks.
//!
//! Nothing is kept per flow for `top` but what it did in the last interval: counts and times are read from
//! the flow's cell. Drops that belong to no live flow are rows of their own.

use std::{cmp::Ordering, net::IpAddr};

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::ColdCell,
    passage::Tuple,
};
use serde::{Deserialize, Serialize};

use crate::{
    classify::{FlowFacts, Peer, Verdict, Whois, classify},
    collect::{Collector, DropNames, LiveFlow, cause::Cause, join::Side, source::Source},
    metrics::{
        histogram::PathTimes,
        labels::{nat_name, protocol_name},
    },
};

/// What makes a row come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// Bytes per second in the last interval.
    #[default]
    Bytes,
    /// Packets so far.
    Packets,
    /// The median time on the NAT path.
    NatTime,
    /// Dropped packets.
    Drops,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// What comes first.
    pub sort: Sort,
    /// At most so many rows.
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            sort: Sort::default(),
            limit: 20,
        }
    }
}

/// Addresses and ports of a packet. For ICMP echo, `src_port` is the identifier and `dst_port` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ends {
    /// Source address.
    pub src: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port; for ICMP, type times 256 plus code.
    pub dst_port: u16,
}

impl From<Tuple> for Ends {
    fn from(tuple: Tuple) -> Self {
        Self {
            src: tuple.src.into(),
            src_port: tuple.src_port,
            dst: tuple.dst.into(),
            dst_port: tuple.dst_port,
        }
    }
}

/// Times on the NAT path, of the packets that were timed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// How many packets were timed.
    pub samples: u64,
    /// Half of them took no longer, in nanoseconds.
    pub p50_ns: f64,
    /// 99 in 100 took no longer.
    pub p99_ns: f64,
}

/// Whose an end is; all empty where nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Its Kubernetes namespace; empty for what is in none.
    pub namespace: String,
    /// The controller's name, `node/<name>`, `service/<name>`, or the address plan's word.
    pub workload: String,
    /// The pod's name; empty for whatever is no pod, or a pod of which only the address is known.
    pub pod: String,
}

impl Who {
    /// As the index and the address plan have it.
    pub(crate) fn of(peer: &Peer, whois: &Whois) -> Self {
        Self {
            namespace: whois.namespace(peer).to_owned(),
            workload: whois.workload(peer).to_owned(),
            pod: whois.pod(peer).to_owned(),
        }
    }
}

/// One line of `top`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// When the flow was last seen to change; milliseconds since 1970.
    pub time_ms: u64,
    /// Kind of traffic; see [`crate::classify::Class`].
    pub class: String,
    /// What the node's NAT did to the connection.
    pub nat: String,
    /// How far it reaches.
    pub scope: String,
    /// IP protocol.
    pub protocol: String,
    /// Whether these packets are a connection's replies.
    pub reply: bool,
    /// Where these packets enter, by the plan's name of the interface; empty: the node itself sends them.
    pub in_interface: String,
    /// Where they leave; empty if not seen to leave.
    pub out_interface: String,
    /// Who sends these packets.
    #[serde(default)]
    pub from: Who,
    /// To whom.
    #[serde(default)]
    pub to: Who,
    /// As they enter.
    pub before: Ends,
    /// As they leave, or as they were dropped; `None` if neither was seen.
    pub after: Option<Ends>,
    /// Packets on the wire so far.
    pub packets: u64,
    /// Bytes (IP length) on the wire so far.
    pub bytes: u64,
    /// Packets per second in the last interval.
    pub packets_per_second: f64,
    /// Bytes per second in the last interval.
    pub bytes_per_second: f64,
    /// NAT-path time of packets that open connections.
    pub first: Option<Timing>,
    /// NAT-path time of all others.
    pub established: Option<Timing>,
    /// Dropped packets.
    pub drops: u64,
    /// The kernel's reason for the latest drop, lower case.
    pub drop_reason: Option<String>,
    /// What that means; see [`crate::collect::cause::Cause`].
    pub drop_cause: Option<String>,
}

/// The rows that come first, first of all the first.
#[must_use]
pub fn rows<S: Source>(
    collector: &Collector,
    source: &S,
    whois: &Whois,
    names: &DropNames,
    query: Query,
) -> Vec<Row> {
    let mut ranked: Vec<(f64, u32)> = collector
        .live()
        .map(|cell| (score(collector, source, cell, query.sort), cell))
        .collect();
    let order = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if query.limit > 0 && ranked.len() > query.limit {
        ranked.select_nth_unstable_by(query.limit - 1, order);
        ranked.truncate(query.limit);
    }
    let mut rows: Vec<Row> = ranked
        .iter()
        .filter_map(|(_, cell)| collector.flow(source, whois, *cell))
        .map(|flow| flow_row(&flow, whois, names))
        .collect();
    let orphans = collector.orphan_drops();
    rows.extend(
        orphans.map(|(key, stats, cause)| drop_row(collector, (key, stats, cause), whois, names).0),
    );
    rows.sort_by(|a, b| compare(a, b, query.sort));
    rows.truncate(query.limit);
    rows
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rank: equal beyond 2^52 is equal enough"
)]
fn score<S: Source>(collector: &Collector, source: &S, cell: u32, sort: Sort) -> f64 {
    match sort {
        Sort::Bytes => collector.rates(cell).1,
        Sort::Packets => source.counts(cell).0 as f64,
        Sort::NatTime => both_stages(&source.cold(cell)).quantile(0.5).unwrap_or(0.0),
        Sort::Drops => collector.drops(cell).0 as f64,
    }
}

/// The order of rows that are made: the measure first, then what tells equals apart, so that the order of
/// two calls is the same.
fn compare(a: &Row, b: &Row, sort: Sort) -> Ordering {
    let time = |row: &Row| row.first.or(row.established).map_or(0.0, |t| t.p50_ns);
    let measure = match sort {
        Sort::Bytes => b.bytes_per_second.total_cmp(&a.bytes_per_second),
        Sort::Packets => b.packets.cmp(&a.packets),
        Sort::NatTime => time(b).total_cmp(&time(a)),
        Sort::Drops => b.drops.cmp(&a.drops),
    };
    let ends = |row: &Row| {
        (
            row.before.src,
            row.before.src_port,
            row.before.dst,
            row.before.dst_port,
        )
    };
    measure
        .then(b.bytes.cmp(&a.bytes))
        .then(b.drops.cmp(&a.drops))
        .then_with(|| ends(a).cmp(&ends(b)))
}

pub(crate) fn stage(cold: &ColdCell, stage: usize) -> PathTimes {
    PathTimes {
        buckets: cold.times[stage].map(u64::from),
        sum_ns: cold.sum_ns[stage],
    }
}

pub(crate) fn both_stages(cold: &ColdCell) -> PathTimes {
    let mut sum = stage(cold, 0);
    sum.add(&stage(cold, 1));
    sum
}

/// What is shown of times; `None` without any.
pub(crate) fn timing(times: &PathTimes) -> Option<Timing> {
    Some(Timing {
        samples: times.count(),
        p50_ns: times.quantile(0.5)?,
        p99_ns: times.quantile(0.99)?,
    })
}

/// A flow's row.
pub(crate) fn flow_row(flow: &LiveFlow, whois: &Whois, names: &DropNames) -> Row {
    let plan = whois.plan;
    let (hot, cold) = (&flow.hot, &flow.cold);
    let reply = flow.side == Side::Reply;
    let (first, established) = if reply {
        // A reply flow's first packet opens nothing.
        (None, timing(&both_stages(cold)))
    } else {
        (timing(&stage(cold, 0)), timing(&stage(cold, 1)))
    };
    let seen = cold.sequence != 0 && cold.sequence.is_multiple_of(2);
    let out = if flow.node_sends() {
        hot.key.ifindex
    } else {
        cold.exit_ifindex
    };
    let reason = (flow.drops > 0).then(|| names.reason(flow.drop_reason));
    let cause = reason.as_ref().map(|_| flow.drop_cause.name().to_owned());
    let (from, to) = if reply {
        (&flow.verdict.server, &flow.verdict.client)
    } else {
        (&flow.verdict.client, &flow.verdict.server)
    };
    Row {
        time_ms: flow.changed_unix_ms,
        class: flow.verdict.class.name().to_owned(),
        nat: nat_name(flow.verdict.nat).to_owned(),
        scope: flow.verdict.scope.name().to_owned(),
        protocol: protocol_name(hot.key.protocol).into_owned(),
        reply,
        in_interface: if flow.node_sends() {
            String::new()
        } else {
            plan.interface_name(hot.key.ifindex)
        },
        out_interface: plan.interface_name(out),
        from: Who::of(from, whois),
        to: Who::of(to, whois),
        before: hot.key.tuple().into(),
        after: seen.then(|| cold.after.into()),
        packets: hot.skbs + hot.gso_packets,
        bytes: hot.bytes + hot.gso_bytes,
        packets_per_second: flow.rates.0,
        bytes_per_second: flow.rates.1,
        first,
        established,
        drops: flow.drops,
        drop_reason: reason,
        drop_cause: cause,
    }
}

/// A drop whose tuple is no live flow's. It was dropped before anybody counted it, or its flow is gone.
pub(crate) fn drop_row(
    collector: &Collector,
    (key, stats, cause): (&DropKey, &DropStats, Cause),
    whois: &Whois,
    names: &DropNames,
) -> (Row, Verdict) {
    let plan = whois.plan;
    let before = key.key.tuple();
    let verdict = classify(
        &FlowFacts {
            before,
            after: None,
            from_node: key.iif == 0,
            to_node: false,
            client_ifindex: key.iif,
            server_ifindex: if key.key.ifindex == key.iif {
                0
            } else {
                key.key.ifindex
            },
            began: stats.last_ns,
        },
        whois,
    );
    let reason = names.reason(key.reason);
    let row = Row {
        time_ms: collector.unix_ms(stats.last_ns),
        class: verdict.class.name().to_owned(),
        nat: nat_name(verdict.nat).to_owned(),
        scope: verdict.scope.name().to_owned(),
        protocol: protocol_name(key.key.protocol).into_owned(),
        reply: false,
        in_interface: plan.interface_name(key.iif),
        out_interface: String::new(),
        from: Who::of(&verdict.client, whois),
        to: Who::of(&verdict.server, whois),
        before: before.into(),
        after: None,
        packets: 0,
        bytes: 0,
        packets_per_second: 0.0,
        bytes_per_second: 0.0,
        first: None,
        established: None,
        drops: stats.skbs + stats.gso_packets,
        drop_reason: Some(reason),
        drop_cause: Some(cause.name().to_owned()),
    };
    (row, verdict)
}

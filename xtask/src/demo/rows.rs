//! The agent's live *rows*, brought together by kind of traffic: of flows that are alike one stands for all.
//!
//! The agent gives one row per flow (`aksnet-agent top --raw --json`). A shop opens dozens of connections a
//! second, so a table of the busiest would show near-identical lines. Here each kind (class, NAT, protocol, reach,
//! direction) has one line, with the newest flow's addresses and all flows' counts.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Addresses and ports of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Ends {
    src: IpAddr,
    src_port: u16,
    pub(super) dst: IpAddr,
    pub(super) dst_port: u16,
}

/// Times on the NAT path of one flow's packets.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Timing {
    p50_ns: f64,
}

/// What the agent says of one flow; see `aksnet_agent::top::Row`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Row {
    time_ms: u64,
    class: String,
    nat: String,
    scope: String,
    protocol: String,
    reply: bool,
    pub(super) before: Ends,
    pub(super) after: Option<Ends>,
    packets: u64,
    first: Option<Timing>,
    established: Option<Timing>,
    pub(super) drops: u64,
    pub(super) drop_reason: Option<String>,
}

/// The rows of one look.
pub(super) fn parse(json_lines: &str) -> Result<Vec<Row>> {
    json_lines
        .lines()
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("not a row of the agent: {line}"))
        })
        .collect()
}

/// The order in which a reader meets the classes; others come behind.
const CLASSES: [&str; 8] = [
    "pod_to_pod",
    "pod_to_service",
    "pod_to_external",
    "load_balancer",
    "node_port",
    "external_to_pod",
    "pod_to_node",
    "node_to_pod",
];
const NATS: [&str; 4] = ["none", "dnat", "both", "snat"];
const SCOPES: [&str; 6] = [
    "same_node",
    "same_zone",
    "cross_zone",
    "cross_node",
    "vnet",
    "external",
];

fn rank(names: &[&str], name: &str) -> usize {
    names
        .iter()
        .position(|known| *known == name)
        .unwrap_or(names.len())
}

/// Flows that are alike.
struct Kind<'a> {
    newest: &'a Row,
    flows: usize,
    packets: u64,
    first: Vec<f64>,
    later: Vec<f64>,
    drops: u64,
}

fn alike(a: &Row, b: &Row) -> bool {
    (
        &a.class,
        &a.nat,
        &a.scope,
        &a.protocol,
        a.reply,
        &a.drop_reason,
    ) == (
        &b.class,
        &b.nat,
        &b.scope,
        &b.protocol,
        b.reply,
        &b.drop_reason,
    )
}

fn kinds(rows: &[Row]) -> Vec<Kind<'_>> {
    let mut kinds: Vec<Kind<'_>> = Vec::new();
    for row in rows {
        let at = kinds
            .iter()
            .position(|kind| alike(kind.newest, row))
            .unwrap_or_else(|| {
                kinds.push(Kind {
                    newest: row,
                    flows: 0,
                    packets: 0,
                    first: Vec::new(),
                    later: Vec::new(),
                    drops: 0,
                });
                kinds.len() - 1
            });
        let kind = &mut kinds[at];
        if (row.time_ms, row.before.src_port) > (kind.newest.time_ms, kind.newest.before.src_port) {
            kind.newest = row;
        }
        kind.flows += 1;
        kind.packets += row.packets;
        kind.drops += row.drops;
        kind.first.extend(row.first.map(|timing| timing.p50_ns));
        kind.later
            .extend(row.established.map(|timing| timing.p50_ns));
    }
    kinds.sort_by_cached_key(|kind| {
        let row = kind.newest;
        (
            rank(&CLASSES, &row.class),
            rank(&NATS, &row.nat),
            rank(&SCOPES, &row.scope),
            row.protocol.clone(),
            row.drop_reason.clone(),
            row.reply,
        )
    });
    kinds
}

/// A column: its title, and whether it is right-aligned.
const COLUMNS: [(&str, bool); 8] = [
    ("CLASS", false),
    ("NAT", false),
    ("L4", false),
    ("NEWEST FLOW: BEFORE → AFTER", false),
    ("FLOWS", true),
    ("PKTS", true),
    ("FIRST", true),
    ("LATER", true),
];

/// The table: a header, and one line for each kind of traffic. Columns never get narrower than `widths`, so that a
/// table that is drawn again does not jump.
pub(super) fn table(rows: &[Row], widths: &mut [usize; COLUMNS.len()]) -> Vec<String> {
    let header = COLUMNS.map(|(title, _)| title.to_owned());
    let cells: Vec<[String; COLUMNS.len()]> = std::iter::once(header)
        .chain(kinds(rows).iter().map(cells))
        .collect();
    for (at, width) in widths.iter_mut().enumerate() {
        let widest = cells.iter().map(|row| row[at].chars().count()).max();
        *width = widest.unwrap_or(0).max(*width);
    }
    cells
        .iter()
        .map(|row| {
            let padded = row.iter().zip(&*widths).zip(COLUMNS);
            let line: Vec<String> = padded
                .map(|((cell, &width), (_, right))| {
                    if right {
                        format!("{cell:>width$}")
                    } else {
                        format!("{cell:<width$}")
                    }
                })
                .collect();
            line.join(" ").trim_end().to_owned()
        })
        .collect()
}

/// Widths to start a table with.
pub(super) const NO_WIDTHS: [usize; COLUMNS.len()] = [0; COLUMNS.len()];

fn cells(kind: &Kind<'_>) -> [String; COLUMNS.len()] {
    let row = kind.newest;
    let direction = if row.reply { "↩" } else { "" };
    let mut way = translation(row);
    if let Some(reason) = &row.drop_reason {
        let _ = write!(way, " ✗{} {reason}", kind.drops);
    }
    [
        row.class.clone(),
        format!("{}{direction}", row.nat),
        row.protocol.clone(),
        way,
        kind.flows.to_string(),
        kind.packets.to_string(),
        time(&kind.first),
        time(&kind.later),
    ]
}

fn time(times: &[f64]) -> String {
    median(times).map_or_else(|| "-".to_owned(), nanoseconds)
}

fn median(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// A time with two or three digits: `850ns`, `4.2µs`, `98µs`, `1.1ms`.
pub(super) fn nanoseconds(ns: f64) -> String {
    let (value, unit) = if ns < 999.5 {
        return format!("{ns:.0}ns");
    } else if ns < 999_500.0 {
        (ns / 1e3, "µs")
    } else {
        (ns / 1e6, "ms")
    };
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$}{unit}")
}

/// The tuple before, and what of it differs after; `=` stands for an end that is the same.
pub(super) fn translation(row: &Row) -> String {
    let icmp = row.protocol.starts_with("icmp");
    let end = |ip: IpAddr, port: u16| match ip {
        _ if port == 0 => ip.to_string(),
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    };
    let source = |ends: &Ends| end(ends.src, ends.src_port);
    // ICMP has no ports: what stands in place of the destination's is the message's type.
    let destination = |ends: &Ends| end(ends.dst, if icmp { 0 } else { ends.dst_port });
    let before = format!("{}>{}", source(&row.before), destination(&row.before));
    let Some(after) = row.after.filter(|after| *after != row.before) else {
        return before;
    };
    let or_same = |before: String, after: String| {
        if before == after {
            "=".to_owned()
        } else {
            after
        }
    };
    format!(
        "{before} → {}>{}",
        or_same(source(&row.before), source(&after)),
        or_same(destination(&row.before), destination(&after)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(class: &str, nat: &str, port: u16, reply: bool) -> String {
        format!(
            r#"{{"time_ms":{port},"class":"{class}","nat":"{nat}","scope":"same_node","protocol":"tcp","reply":{reply},
            "in_interface":"veth0","out_interface":"veth1",
            "before":{{"src":"10.244.0.2","src_port":{port},"dst":"10.0.0.10","dst_port":80}},
            "after":{{"src":"10.244.0.2","src_port":{port},"dst":"10.244.0.3","dst_port":8080}},
            "packets":10,"bytes":600,"packets_per_second":1.0,"bytes_per_second":60.0,
            "first":{{"samples":1,"p50_ns":98000.0,"p99_ns":98000.0}},"established":null,
            "drops":0,"drop_reason":null,"drop_cause":null}}"#
        )
        .replace('\n', "")
    }

    #[test]
    fn flows_of_a_kind_share_a_line_with_the_newest_as_example() {
        let text = [
            row("pod_to_service", "dnat", 40_001, false),
            row("pod_to_service", "dnat", 40_002, false),
            row("pod_to_pod", "none", 40_003, false),
            row("pod_to_service", "dnat", 80, true),
        ]
        .join("\n");
        let mut widths = NO_WIDTHS;
        let lines = table(&parse(&text).unwrap(), &mut widths);
        let columns = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("pod_to_pod "));
        assert_eq!(
            columns(&lines[2]),
            "pod_to_service dnat tcp 10.244.0.2:40002>10.0.0.10:80 → =>10.244.0.3:8080 2 20 98µs -"
        );
        assert!(lines[3].starts_with("pod_to_service dnat↩"));
    }

    #[test]
    fn times_have_two_or_three_digits() {
        for (ns, text) in [
            (850.0, "850ns"),
            (999.7, "1.0µs"),
            (4_200.0, "4.2µs"),
            (98_000.0, "98µs"),
            (1_100_000.0, "1.1ms"),
        ] {
            assert_eq!(nanoseconds(ns), text);
        }
    }
}

//! How long a sweep takes: 65,536 cells, all live, in every state that costs something.
//!
//! `cargo bench -p aksnet-agent --bench sweep` prints the median and the worst of some dozens of sweeps, and
//! what the process holds in memory besides the fake tables themselves.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "numbers of a benchmark are small and printed with three digits"
)]

use std::{
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use aksnet_agent::{
    classify::Whois,
    collect::{
        CollectConfig, Collector, DropNames, Now,
        fake::{FakeExit, FakePacket, FakeSource},
        source::Source,
    },
    live::{Filter, LiveQuery, Outside, Sort, View},
    metrics::{Metrics, MetricsConfig},
    plan::Plan,
};
use aksnet_common::{
    flow::{Addr, FlowKey, WAYS},
    passage::Tuple,
    stats::Role,
};
use xtask::bench::{
    figure::{Figure, Table},
    row,
};

const CELLS: usize = 65_536;
const SWEEPS: usize = 60;
const MS: u64 = 1_000_000;

/// A flow of its own for each number: half of them egress through SNAT, half the replies.
fn flow(n: u32) -> (FlowKey, Tuple) {
    let connection = n / 2;
    let pod = Addr::v4([10, 244, 1, (connection % 200) as u8 + 2]);
    let node = Addr::v4([10, 224, 0, 4]);
    let outside = Addr::v4(Ipv4Addr::from(0x0800_0000 + connection / 200).octets());
    let port = 30_000 + (connection % 30_000) as u16;
    let (before, after) = if n.is_multiple_of(2) {
        ((pod, outside, port, 443), (node, outside, port, 443))
    } else {
        ((outside, node, 443, port), (outside, pod, 443, port))
    };
    let tuple = |(src, dst, src_port, dst_port)| Tuple {
        src,
        dst,
        src_port,
        dst_port,
    };
    let key = FlowKey {
        src: before.0,
        dst: before.1,
        src_port: before.2,
        dst_port: before.3,
        ifindex: if n.is_multiple_of(2) { 11 } else { 2 },
        protocol: 6,
        family: 4,
        ..FlowKey::default()
    };
    (key, tuple(after))
}

/// A table all of whose cells are live.
fn full() -> (FakeSource, u32) {
    let mut source = FakeSource::new(CELLS / WAYS, 0);
    let mut played = 0;
    // Buckets fill unevenly: most of what does not fit goes to the overflow counters.
    while live(&source) < CELLS as u32 - CELLS as u32 / 100 {
        for _ in 0..CELLS {
            packet(&mut source, played, 64, true);
            played += 1;
        }
    }
    let cells = live(&source);
    (source, cells)
}

fn live(source: &FakeSource) -> u32 {
    (0..source.cells())
        .map(|cell| u32::from(source.state(cell) != 0))
        .sum()
}

fn packet(source: &mut FakeSource, n: u32, bytes: u64, timed: bool) {
    let (key, after) = flow(n);
    let exit = FakeExit {
        after,
        ifindex: 2,
        ns: 3_000 + u64::from(n % 4096),
        stage: 1,
    };
    source.play(&FakePacket {
        key,
        bytes,
        tcp: 0x10,
        exit: timed.then_some(exit),
        ..FakePacket::default()
    });
}

fn rss_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

struct Bench {
    source: FakeSource,
    collector: Collector,
    plan: Plan,
    names: DropNames,
    ms: u64,
}

impl Bench {
    fn sweep(&mut self) -> Duration {
        self.ms += 1_000;
        let now = Now {
            monotonic_ns: self.ms * MS,
            unix_ms: self.ms,
        };
        let start = Instant::now();
        self.collector.sweep(
            &mut self.source,
            now,
            Whois::without_names(&self.plan),
            &self.names,
        );
        start.elapsed()
    }

    fn report(&mut self, what: &str, prepare: impl Fn(&mut FakeSource)) {
        let mut took: Vec<Duration> = (0..SWEEPS)
            .map(|_| {
                prepare(&mut self.source);
                self.sweep()
            })
            .collect();
        took.sort_unstable();
        println!(
            "{what:<44} median {:7.3} ms   worst {:7.3} ms",
            took[SWEEPS / 2].as_secs_f64() * 1e3,
            took[SWEEPS - 1].as_secs_f64() * 1e3,
        );
        if what == EVERY_CELL {
            let ms = took.iter().map(|t| t.as_secs_f64() * 1e3).collect();
            Figure::range(Table::Agent, row::SWEEP, "-", ms).print();
        }
    }
}

impl Bench {
    /// Somebody looks at all flows, as `top` does.
    fn look(&self, what: &str, query: &LiveQuery) {
        let whois = Whois::without_names(&self.plan);
        let view = View {
            collector: &self.collector,
            source: &self.source,
            whois: &whois,
            names: &self.names,
            now: self.ms * MS,
        };
        let mut took: Vec<Duration> = (0..SWEEPS)
            .map(|_| {
                let start = Instant::now();
                let snapshot = view.look(query, &Outside::default());
                assert!(snapshot.is_ok_and(|s| s.totals.flows > 60_000));
                start.elapsed()
            })
            .collect();
        took.sort_unstable();
        println!(
            "{what:<44} median {:7.3} ms   worst {:7.3} ms",
            took[SWEEPS / 2].as_secs_f64() * 1e3,
            took[SWEEPS - 1].as_secs_f64() * 1e3,
        );
    }
}

/// What the target speaks of.
const EVERY_CELL: &str = "every cell changed";

fn plan(n: u8) -> Plan {
    let range = |s: &str| s.parse().expect("a range");
    Plan::builder()
        .pod_cidr(range("10.244.0.0/16"))
        .local_pod_cidr(range("10.244.1.0/24"))
        .service_cidr(range("10.0.0.0/16"))
        .vnet_cidr(range("10.224.0.0/12"))
        .node_address(Ipv4Addr::new(10, 224, 0, 4).into())
        .local_pod(Ipv4Addr::new(10, 244, 1, n).into(), 0)
        .interface(11, Role::Pod, "veth1")
        .interface(2, Role::Uplink, "eth0")
        .build()
}

fn main() {
    let (source, cells) = full();
    let before = rss_kib();
    let config = CollectConfig {
        idle_ms: u32::MAX,
        closed_idle_ms: u32::MAX,
        ..CollectConfig::default()
    };
    let mut bench = Bench {
        source,
        collector: Collector::new(config, Metrics::new(MetricsConfig::default()), 7),
        plan: plan(2),
        names: DropNames::default(),
        ms: 1_000,
    };
    println!("{cells} live cells of {CELLS}");
    println!(
        "{:<44}        {:7.3} ms",
        "all cells new (once)",
        bench.sweep().as_secs_f64() * 1e3
    );
    bench.sweep();
    bench.report("nothing changed", |_| {});
    bench.report(EVERY_CELL, |source| source.touch_all(100));
    bench.report("every cell changed, with a timed packet", |source| {
        source.touch_all_timed(100);
    });
    let query = |limit, text: &str, sort| LiveQuery {
        limit,
        sort,
        filter: Filter {
            text: text.to_owned(),
            ..Filter::default()
        },
        ..LiveQuery::default()
    };
    bench.look("a look: 200 rows", &query(200, "", Sort::ByteRate));
    bench.look("a look: 5,000 rows", &query(5_000, "", Sort::ByteRate));
    bench.look("a look: 200 rows, by time", &query(200, "", Sort::First));
    bench.look(
        "a look: 200 rows, one word",
        &query(200, "10.244.1.7", Sort::ByteRate),
    );
    bench.plan = plan(3);
    println!(
        "{:<44}        {:7.3} ms",
        "address plan changed (first of 16 sweeps)",
        bench.sweep().as_secs_f64() * 1e3
    );
    println!(
        "agent's own memory for them: {:.1} MiB",
        (rss_kib().saturating_sub(before)) as f64 / 1024.0
    );
}

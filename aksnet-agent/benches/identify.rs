//! What names cost at the size of the largest clusters: the index, a sweep that names every flow, a scrape.
//!
//! `cargo bench -p aksnet-agent --bench identify` prints what the index holds in memory, the time of a lookup at random
//! addresses and of a pod event, as objects and as the API server's JSON; how long a sweep takes in which 65,536 flows
//! are new and get their names, with 5,000 policies that judge them, and without; and how long a scrape of 20,000 series takes.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers of a benchmark are small and printed with three digits"
)]

#[expect(unreachable_pub, reason = "one benchmark: `pub` says what it uses")]
mod cluster;

use std::{
    hint::black_box,
    net::IpAddr,
    time::{Duration, Instant},
};

use aksnet_agent::{
    classify::Whois,
    collect::{
        CollectConfig, Collector, DropNames, Now,
        fake::{FakeExit, FakePacket, FakeSource},
    },
    identify::{
        index::Index,
        object::Object,
        shared::Shared,
        sink::{Change, Sink as _},
    },
    metrics::{Metrics, MetricsConfig},
    plan::Plan,
};
use aksnet_common::{
    flow::{FlowKey, WAYS},
    passage::Tuple,
    stats::Role,
};
use cluster::{
    LOCAL, NODES, PODS, S, SERVICES, add_policies, address, cluster, local, pod, random, resident,
};
use criterion::Criterion;
use xtask::bench::{
    figure::{self, Figure, Table},
    row,
};

const CELLS: u32 = 65_536;
const ROUNDS: usize = 9;
/// The interface of this node's first pod.
const FIRST: u32 = 11;

fn figure(row: &str, rounds: Vec<f64>) {
    Figure::range(Table::Agent, row, "-", rounds).print();
}

/// When the flows of a sweep began.
const THEN: u64 = 600 * S;

/// A connection of one of this node's pods to a service, whose endpoint is another pod: each number is one of its own.
fn packet(n: u32) -> FakePacket {
    let port = 30_000 + (n / LOCAL) as u16;
    let (client, server) = (address(10, local(n)), address(10, n * 7 % PODS));
    let service = address(12, n % SERVICES);
    let key = FlowKey {
        src: client,
        dst: service,
        src_port: port,
        dst_port: 80,
        ifindex: FIRST + n % LOCAL,
        protocol: 6,
        family: 4,
        ..FlowKey::default()
    };
    let after = Tuple {
        src: client,
        dst: server,
        src_port: port,
        dst_port: 8080,
    };
    FakePacket {
        key,
        ns: THEN,
        bytes: 60,
        tcp: 2,
        exit: Some(FakeExit {
            after,
            ifindex: 2,
            ns: 3_000,
            stage: 0,
        }),
        ..FakePacket::default()
    }
}

/// A sweep that meets all flows for the first time, and the metrics that it makes.
fn sweep_of_new(index: &Index, series_limit: usize) -> (Duration, u32, Metrics) {
    // Twice the cells, so that no bucket is full.
    let mut source = FakeSource::new(2 * CELLS as usize / WAYS, 0);
    for n in 0..CELLS {
        source.play(&packet(n));
    }
    let metrics = Metrics::new(MetricsConfig {
        series_limit,
        ..MetricsConfig::default()
    });
    let mut plan = Plan::builder().interface(2, Role::Uplink, "eth0");
    for n in 0..LOCAL {
        plan = plan
            .interface(FIRST + n, Role::Pod, &format!("veth{n}"))
            .local_pod(IpAddr::from(address(10, local(n))), FIRST + n);
    }
    let plan = plan.build();
    let whois = Whois {
        plan: &plan,
        index,
        translations: None,
    };
    let mut collector = Collector::new(CollectConfig::default(), metrics.clone(), 7);
    let now = Now {
        monotonic_ns: THEN + 5 * S,
        unix_ms: (THEN + 5 * S) / 1_000_000,
    };
    let start = Instant::now();
    let report = collector.sweep(&mut source, now, whois, &DropNames::default());
    (start.elapsed(), report.new, metrics)
}

fn sweeps(index: &Index, row: &str) {
    let mut met = 0;
    let rounds = (0..ROUNDS).map(|_| {
        let (took, new, _) = sweep_of_new(index, MetricsConfig::default().series_limit);
        met = new;
        took.as_secs_f64() * 1e3
    });
    let rounds = rounds.collect();
    println!("{met} new flows with names in a sweep");
    figure(row, rounds);
}

fn scrapes(index: &Index) {
    // Three families have one series each for a label set.
    let (_, _, metrics) = sweep_of_new(index, 6_700);
    let text = metrics.encode().expect("the format's rules are kept");
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(
        text.contains("aksnet_policy_gap_connections_total{"),
        "the policies were asked"
    );
    println!("{samples} series, {} KiB", text.len() / 1024);
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        black_box(metrics.encode().expect("as before"));
        start.elapsed().as_secs_f64() * 1e3
    });
    figure(row::SCRAPE, rounds.collect());
}

/// Changes of pods, as the watches hand them over: many at once, under one lock.
fn changes(shared: &Shared) {
    const BATCH: u32 = 20_000;
    let rounds = (0..ROUNDS as u32).map(|round| {
        // From one address to another and back.
        let net = if round.is_multiple_of(2) { 14 } else { 10 };
        let mut changes: Vec<Change> = (0..BATCH)
            .map(|n| Change::Apply(Object::Pod(pod(n * 7 % PODS, net))))
            .collect();
        let start = Instant::now();
        for _ in 0..BATCH.div_ceil(100) {
            let mut some: Vec<Change> = changes.drain(..changes.len().min(100)).collect();
            shared.fold(&mut some);
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH)
    });
    figure(row::POD_EVENT, rounds.collect());
}

fn lookups(index: &Index) {
    const LOOKUPS: u32 = 1_000_000;
    let mut state = 1;
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        for _ in 0..LOOKUPS {
            let asked = black_box(address(10, random(&mut state) % PODS));
            black_box(index.lookup(asked, 2 * S));
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(LOOKUPS)
    });
    figure(row::LOOKUP, rounds.collect());
}

fn main() {
    let before = resident();
    let start = Instant::now();
    let mut index = cluster();
    add_policies(&mut index);
    println!(
        "{PODS} pods, {NODES} nodes, {SERVICES} services with slices, {} policies: built in {:.2} s, {:.1} MiB more, {:.1} MiB in all",
        index.policies().len(),
        start.elapsed().as_secs_f64(),
        resident() - before,
        resident(),
    );
    figure(row::INDEX_MEMORY, vec![resident()]);
    lookups(&index);
    sweeps(&index, row::SWEEP_JUDGED);
    scrapes(&index);
    sweeps(&cluster(), row::SWEEP_NAMED);
    // `cargo xtask bench` wants figures only; what follows is for people.
    if std::env::args().any(|argument| argument == figure::JSON) {
        changes(&Shared::new(index));
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut state = 1;
    criterion.bench_function("lookup of a random pod", |bench| {
        bench.iter(|| index.lookup(black_box(address(10, random(&mut state) % PODS)), 2 * S));
    });
    criterion.bench_function("party at the address of a random pod", |bench| {
        bench.iter(|| {
            let who = index.party(black_box(address(10, random(&mut state) % PODS)), 2 * S);
            black_box(who.and_then(|who| who.pod().map(|pod| pod.labels.len())))
        });
    });
    criterion.bench_function("since when that is settled for two random pods", |bench| {
        bench.iter(|| {
            let src = black_box(address(10, random(&mut state) % PODS));
            let dst = black_box(address(10, random(&mut state) % PODS));
            index.settled(src, dst, 2 * S)
        });
    });
    criterion.bench_function("lookup of an address that nobody holds", |bench| {
        bench.iter(|| index.lookup(black_box(address(13, random(&mut state) % PODS)), 2 * S));
    });
    // Made beforehand: what an event costs the reader of JSON is not the index's.
    let events: Vec<(Object, Object)> = (0..PODS)
        .step_by(7)
        .map(|n| (Object::Pod(pod(n, 10)), Object::Pod(pod(n, 14))))
        .collect();
    let mut now = 2 * S;
    let mut turn = 0;
    criterion.bench_function("pod event: another address", |bench| {
        bench.iter_batched(
            || {
                turn += 1;
                let (old, new) = &events[turn % events.len()];
                if (turn / events.len()).is_multiple_of(2) {
                    new.clone()
                } else {
                    old.clone()
                }
            },
            |object| {
                now += S / 20_000;
                index.apply(object, now);
            },
            criterion::BatchSize::LargeInput,
        );
    });
    let mut turn = 0;
    criterion.bench_function("pod events: deleted and made again", |bench| {
        bench.iter_batched(
            || {
                turn += 1;
                events[turn % events.len()].0.clone()
            },
            |object| {
                now += S / 20_000;
                index.delete(&object.key(), now);
                index.apply(object, now);
            },
            criterion::BatchSize::LargeInput,
        );
    });
    println!(
        "after the churn: {:.1} MiB in all, {:?}",
        resident(),
        index.problems()
    );
    criterion.final_summary();
    changes(&Shared::new(index));
}

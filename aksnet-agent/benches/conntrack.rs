//! What following the conntrack table costs: the agent, and the packets that open connections.
//!
//! `cargo bench -p aksnet-agent --bench conntrack`. With root it also measures, in a namespace of its own, what a
//! listener costs the kernel for each entry, how long a real dump takes, and what the follower's thread uses.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "numbers of a benchmark are small and printed with few digits"
)]

use std::{fs, hint::black_box, time::Duration};

use aksnet_agent::{
    config::ConntrackMode,
    conntrack::{
        FollowConfig, Follower, Limits, Table,
        message::{Body, Entry, Messages},
    },
};
use aksnet_common::{flow::Addr, packet::TCP, passage::Tuple};
use anyhow::{Context as _, Result};
use criterion::{BatchSize, Criterion, Throughput};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use xtask::testbed::{Netns, Testbed, bed::is_root, counters, fill::fill};

/// One message of a dump, as Linux 6.18 sent it.
const DUMPED: &[u8] = include_bytes!("../src/conntrack/message/dumped.bin");
/// As many as the kernel puts into one datagram of a dump.
const IN_DATAGRAM: usize = 100;

/// A masqueraded connection of its own for each number; every second one was redirected as well.
fn entry(n: u32) -> Entry {
    let pod = Addr::v4([10, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
    let outside = Addr::v4([203, 0, 113, (n % 50) as u8]);
    let port = 1024 + (n / 50) as u16;
    let dialled = if n.is_multiple_of(2) {
        outside
    } else {
        Addr::v4([10, 0, 0, 10])
    };
    let tuple = |src, dst, src_port| Tuple {
        src,
        dst,
        src_port,
        dst_port: 443,
    };
    Entry {
        original: tuple(pod, dialled, port),
        after: tuple(Addr::v4([10, 224, 0, 4]), outside, port),
        id: n,
        zone: 0,
        protocol: TCP,
    }
}

fn table(entries: u32) -> Table {
    let mut table = Table::new(1 << 20);
    for n in 0..entries {
        table.add(&entry(n));
    }
    assert_eq!(table.len(), entries as usize, "all differ");
    table
}

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|w| w.parse().ok());
    pages.unwrap_or(0) * 4096
}

fn memory() {
    for entries in [65_536, 131_072] {
        let before = resident();
        let table = table(entries);
        let bytes = resident().saturating_sub(before) as f64;
        println!(
            "memory of {entries} entries: {:.1} MiB, {:.0} bytes each",
            bytes / f64::from(1 << 20),
            bytes / f64::from(entries)
        );
        drop(black_box(table));
    }
}

fn pure(criterion: &mut Criterion) {
    let datagram = DUMPED.repeat(IN_DATAGRAM);
    let mut group = criterion.benchmark_group("conntrack");
    group.throughput(Throughput::Elements(IN_DATAGRAM as u64));
    group.bench_function("parse", |b| {
        b.iter(|| {
            let entries = Messages::new(black_box(&datagram));
            entries
                .filter(|m| matches!(m.body, Body::New(e) if e.id != 0))
                .count()
        });
    });
    group.throughput(Throughput::Elements(2));
    let mut full = table(65_536);
    let mut n = 1 << 20;
    group.bench_function("new and destroy", |b| {
        b.iter(|| {
            n += 1;
            let entry = entry(n & 0x1f_ffff);
            full.add(&entry);
            full.destroy(&entry);
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("dialled", |b| {
        b.iter(|| {
            n += 1;
            full.dialled(TCP, &entry(n & 0xffff).after)
        });
    });
    group.bench_function("port use", |b| b.iter(|| full.port_use(Limits::default())));
    let datagrams = DUMPED.repeat(100_000);
    group.sample_size(10);
    group.throughput(Throughput::Elements(100_000));
    let all: Vec<Entry> = (0..100_000).map(entry).collect();
    group.bench_function("dump of 100,000: parsed and confirmed", |b| {
        b.iter_batched_ref(
            || table(100_000),
            |table| {
                black_box(Messages::new(&datagrams).count());
                table.begin_dump();
                for entry in &all {
                    table.add(entry);
                }
                table.end_dump();
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Nanoseconds that the follower's thread has run.
fn follower_ns() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let ours = tasks.flatten().find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "conntrack")
    });
    ours.and_then(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// Nanoseconds of CPU time of this process and the children that it waited for, without the follower's thread.
fn cpu_ns() -> Result<u64> {
    let mut ns = 0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            ns += u64::try_from(time.num_nanoseconds())?;
        }
    }
    Ok(ns.saturating_sub(follower_ns()))
}

/// Makes and ends entries, and gives nanoseconds of CPU time for each: of making, of ending, of the follower's thread.
/// The kernel builds an event's message in the context of whoever makes or ends the entry, as it does for a packet.
fn round(netns: &Netns, entries: u32) -> Result<[f64; 3]> {
    let ran = follower_ns();
    let began = cpu_ns()?;
    fill(netns, entries, true)?;
    let made = cpu_ns()?;
    counters::flush_conntrack(netns)?;
    let ended = cpu_ns()?;
    // The follower reads what is left.
    std::thread::sleep(3 * FollowConfig::TICK);
    let ran = follower_ns() - ran;
    Ok([made - began, ended - made, ran].map(|ns| ns as f64 / f64::from(entries)))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn listener() -> Result<()> {
    /// Few enough that their events fit into the receive buffer.
    const ENTRIES: u32 = 5_000;
    const ROUNDS: usize = 21;
    let bed = Testbed::kubenet().pods(1).build()?;
    let netns = bed.node().netns();
    let config = |mode| FollowConfig {
        mode,
        interval: Duration::from_hours(1),
        reconcile: Duration::from_hours(1),
        ..FollowConfig::default()
    };
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        rounds[0].push(round(netns, ENTRIES)?);
        let follower = netns.run(|| Ok(Follower::start(config(ConntrackMode::Events))?))?;
        while follower.status().dumps == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        rounds[1].push(round(netns, ENTRIES)?);
        let status = follower.status();
        anyhow::ensure!(status.events == 2 * u64::from(ENTRIES), "{status:?}");
    }
    let of =
        |listening: usize, what: usize| median(rounds[listening].iter().map(|r| r[what]).collect());
    println!(
        "an entry made: {:.0} ns, with a listener {:.0} ns; ended: {:.0} ns, with a listener {:.0} ns; the follower's thread: {:.0} ns for both events",
        of(0, 0),
        of(1, 0),
        of(0, 1),
        of(1, 1),
        of(1, 2)
    );

    for entries in [10_000, 100_000] {
        fill(netns, entries, true)?;
        let follower = netns.run(|| Ok(Follower::start(config(ConntrackMode::Dump))?))?;
        while follower.status().dumps == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        println!(
            "a real dump of {entries} entries without NAT: {} ms, the thread ran {:.1} ms",
            follower.status().last_dump_ms.context("dumped")?,
            follower_ns() as f64 / 1e6
        );
        drop(follower);
        counters::flush_conntrack(netns)?;
    }
    Ok(())
}

fn main() {
    memory();
    if is_root() {
        if let Err(error) = listener() {
            println!("not measured: {error:#}");
        }
    } else {
        println!("skipped: a listener's cost needs root");
    }
    let mut criterion = Criterion::default().configure_from_args();
    pure(&mut criterion);
    criterion.final_summary();
}

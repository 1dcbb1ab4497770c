//! What grows with the number of live flows: real tables that the programs fill, and the agent's own sweep over them.
//!
//! Each number has a table of its own, twice as large or more. Every flow has a packet between two sweeps, so that a sweep
//! has something to add to each; and each is old enough to be judged for good.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use aksnet_agent::{
    bpf::LoadOptions,
    classify::Whois,
    collect::{CollectConfig, Collector, DropNames, Now, source::Source as _},
    identify::shared,
    metrics::{Metrics, MetricsConfig},
    plan::Plan,
};
use aksnet_common::{cell, packet::ACK, stats::Event};
use anyhow::{Context as _, Result, ensure};
use xtask::bench::{
    figure::{Figure, Table, is_quick},
    row,
};

#[expect(dead_code, reason = "another benchmark takes all of it")]
mod runs;

use runs::{Bench, ENTER, Test, VARIED};

/// Numbers of flows, and the cells of their tables.
const SIZES: [(u32, u32); 5] = [
    (1_000, 65_536),
    (10_000, 65_536),
    (65_536, 131_072),
    (250_000, 524_288),
    (1_000_000, 2_097_152),
];

/// The agent's clock is so far ahead, in nanoseconds: the ends of younger flows are asked for again, as names may come.
const AHEAD: u64 = 120_000_000_000;

/// Packets in one measured run, at least.
const REPEAT: u32 = 200_000;

fn main() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: loading BPF programs needs root");
        return Ok(());
    }
    // By its argument one number alone: each has a process of its own, as memory is not given back by the allocator.
    let wanted: Option<u32> = std::env::args().skip(1).find_map(|word| word.parse().ok());
    if let Some(flows) = wanted {
        let size = SIZES.into_iter().find(|(n, _)| *n == flows);
        let (flows, cells) = size.with_context(|| format!("{flows} is not among {SIZES:?}"))?;
        return measure(flows, cells);
    }
    for (flows, _) in SIZES {
        let status = std::process::Command::new(std::env::current_exe()?)
            .args(std::env::args().skip(1))
            .arg(flows.to_string())
            .status()?;
        ensure!(status.success(), "{flows} flows: {status}");
    }
    Ok(())
}

/// The agent's part that keeps the account, with a plan in which nothing is known.
struct Account {
    collector: Collector,
    plan: Plan,
}

impl Account {
    fn new() -> Self {
        let config = CollectConfig {
            idle_ms: u32::MAX,
            closed_idle_ms: u32::MAX,
            ..CollectConfig::default()
        };
        Self {
            collector: Collector::new(config, Metrics::new(MetricsConfig::default()), 7),
            plan: Plan::builder().build(),
        }
    }

    fn sweep(&mut self, bench: &mut Bench) -> Duration {
        let monotonic_ns = shared::now() + AHEAD;
        let now = Now {
            monotonic_ns,
            unix_ms: monotonic_ns / 1_000_000,
        };
        let started = Instant::now();
        self.collector.sweep(
            &mut bench.datapath.source,
            now,
            Whois::without_names(&self.plan),
            &DropNames::default(),
        );
        started.elapsed()
    }
}

fn measure(flows: u32, cells: u32) -> Result<()> {
    let rounds = if is_quick() { 3 } else { 9 };
    let packets = Test::tcp(ACK).flows(flows);
    let others: BTreeSet<u32> = maps()?.into_keys().collect();
    let mut bench = Bench::start(&LoadOptions {
        flow_cells: cells,
        // What finds no cell near its place.
        spill_entries: (cells / 16).max(LoadOptions::default().spill_entries),
        ..LoadOptions::default()
    })?;
    let before = resident_mib("RssAnon:")?;
    let mut account = Account::new();
    // The first four packets of a flow are timed.
    bench.run_flows(ENTER, &packets, flows.saturating_mul(5))?;
    account.sweep(&mut bench);
    account.sweep(&mut bench);
    let repeat = REPEAT.max(flows).next_multiple_of(flows);
    let (mut over, mut sweeps, mut scrapes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let empty = bench.run_flows(VARIED, &packets, repeat)?;
        over.push(bench.run_flows(ENTER, &packets, repeat)? - empty);
        sweeps.push(account.sweep(&mut bench).as_secs_f64() * 1e3);
        let started = Instant::now();
        let text = account.collector.metrics().encode()?;
        scrapes.push(started.elapsed().as_secs_f64() * 1e3);
        ensure!(!text.is_empty(), "a scrape has something to say");
    }
    let anonymous = resident_mib("RssAnon:")? - before;
    let source = &bench.datapath.source;
    let live = (0..source.cells()).filter(|cell| source.state(*cell) & cell::PHASE == cell::LIVE);
    let live = u32::try_from(live.count())?;
    let lost = bench.events(Event::Overflowed)?;
    ensure!(lost == 0, "{lost} packets without a flow in {cells} cells");
    // What is not in a cell is in the spill map, with as much detail.
    let spilled = f64::from(flows - live) * 100.0 / f64::from(flows);
    let mut tables = maps()?;
    tables.retain(|id, _| !others.contains(id));
    ensure!(!tables.is_empty(), "the programs have maps");
    let tables = tables.values().sum::<f64>() / (1024.0 * 1024.0);
    let figures = [
        (row::GROWTH_ENTER, over),
        (row::GROWTH_SWEEP, sweeps),
        (row::GROWTH_SCRAPE, scrapes),
        (row::GROWTH_CELLS, vec![f64::from(cells)]),
        (row::GROWTH_SPILLED, vec![spilled]),
        (row::GROWTH_TABLES, vec![tables]),
        (row::GROWTH_MEMORY, vec![anonymous]),
    ];
    for (row, rounds) in figures {
        Figure::range(Table::Growth, row, row::flows(flows), rounds).print();
    }
    Ok(())
}

/// What the process holds by itself, in MiB (`proc_pid_status(5)`).
fn resident_mib(what: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(what));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {what} in /proc/self/status"))? / 1024.0)
}

/// Every map there is, with the bytes that the kernel holds for it (`memlock` of its descriptor: kernel/bpf/syscall.c,
/// `bpf_map_show_fdinfo`).
fn maps() -> Result<BTreeMap<u32, f64>> {
    let mut maps = BTreeMap::new();
    for map in aya::maps::loaded_maps() {
        let Ok(map) = map else { continue };
        let descriptor = map.fd()?;
        let path = format!("/proc/self/fdinfo/{}", descriptor.as_fd().as_raw_fd());
        let text = fs::read_to_string(path)?;
        let line = text.lines().find(|line| line.starts_with("memlock:"));
        let bytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        maps.insert(map.id(), bytes.context("no memlock of a map")?);
    }
    Ok(maps)
}

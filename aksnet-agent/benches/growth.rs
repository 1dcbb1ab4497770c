//! What grows with the number of live flows: real tables that the programs fill, and the agent's own sweep over them.
//!
//! Each number has a table of its own, twice as large at the least. Every flow has a packet between two sweeps, so that
//! a sweep has something to add to each.

use std::{
    fs,
    time::{Duration, Instant},
};

use aksnet_agent::{
    bpf::LoadOptions,
    classify::Whois,
    collect::{CollectConfig, Collector, DropNames, Now, source::Source as _},
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
    (65_536, 262_144),
    (250_000, 1 << 20),
    (1_000_000, 1 << 22),
];

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
    ms: u64,
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
            ms: 1_000,
        }
    }

    fn sweep(&mut self, bench: &mut Bench) -> Duration {
        self.ms += 1_000;
        let now = Now {
            monotonic_ns: self.ms * 1_000_000,
            unix_ms: self.ms,
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
    let mut bench = Bench::start(&LoadOptions {
        flow_cells: cells,
        ..LoadOptions::default()
    })?;
    let before = resident_mib("RssAnon:")?;
    let mut account = Account::new();
    // The first four packets of a flow are timed.
    bench.run_flows(ENTER, &packets, flows.saturating_mul(5))?;
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
    let tables = tables_mib()?;
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

/// What the kernel holds for this process's maps, in MiB (`memlock` of their descriptors: kernel/bpf/syscall.c,
/// `bpf_map_show_fdinfo`).
fn tables_mib() -> Result<f64> {
    let mut maps = std::collections::BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u32>().ok()
        };
        if let (Some(id), Some(_)) = (value("map_id:"), value("map_type:")) {
            let line = text.lines().find(|line| line.starts_with("memlock:"));
            let bytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            maps.insert(id, bytes.unwrap_or(0.0));
        }
    }
    ensure!(!maps.is_empty(), "no map among the descriptors");
    Ok(maps.values().sum::<f64>() / (1024.0 * 1024.0))
}

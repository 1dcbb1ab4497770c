//! What a program costs by itself: ns per run over an empty program, by `BPF_PROG_TEST_RUN`.
//!
//! Every round runs each program once, the empty one of the same kind among them, so that a machine's mood
//! strikes all alike; differences are taken within the round. The kernel gives whole nanoseconds.

use aksnet_agent::{bpf::LoadOptions, collect::source::Source as _};
use aksnet_common::{
    packet::{ACK, SYN},
    stats::{Event, Role},
};
use anyhow::{Result, ensure};
use xtask::bench::{
    figure::{Figure, Table, is_quick},
    row,
};

mod runs;

use runs::{Bench, EMPTY, ENTER, PASSAGE, TOUCH, Test, VARIED};

/// Numbers of flows that packets come from in turn.
const FLOWS: [u32; 4] = [1, 1_000, 10_000, 100_000];

/// Repetitions in one test run of known flows, at least.
const REPEAT: u32 = 200_000;

/// New flows in one test run: an eighth of the default table.
const NEW: u32 = 8_192;

/// Cells for 100,000 flows.
const LARGE: u32 = 262_144;

/// The agent's own.
const EXIT: &str = "aksnet_exit_pod";

fn main() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: loading BPF programs needs root");
        return Ok(());
    }
    for (name, program, test) in [
        (row::TOUCH, TOUCH, Test::tcp(ACK)),
        (row::ENTER_TCP, ENTER, Test::tcp(ACK)),
        (row::ENTER_UDP, ENTER, Test::udp6()),
    ] {
        for flows in FLOWS {
            let cells = if flows > 10_000 { LARGE } else { 65_536 };
            if is_wanted(name) {
                known(name, program, &test.clone().flows(flows), cells)?;
            }
        }
    }
    if is_wanted(row::ENTER_SMALL_TABLE) {
        known(
            row::ENTER_SMALL_TABLE,
            ENTER,
            &Test::tcp(ACK).flows(100_000),
            65_536,
        )?;
    }
    if is_wanted(row::EXIT_IDLE) {
        exit_idle()?;
    }
    for (names, test) in [
        (row::TIMED_TCP, Test::tcp(ACK)),
        (row::TIMED_UDP, Test::udp6()),
    ] {
        if is_wanted(names[0]) {
            timed(names, &test.flows(1_000))?;
        }
    }
    for (name, test) in [
        (row::NEW_UDP, Test::udp6()),
        (row::NEW_SYN, Test::tcp(SYN)),
        (row::NEW_TCP, Test::tcp(ACK)),
    ] {
        if is_wanted(name) {
            new(name, test)?;
        }
    }
    Ok(())
}

/// Whether a row was asked for: `-- new` asks for those with 'new' in their name, nothing for all.
fn is_wanted(row: &str) -> bool {
    let mut words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .peekable();
    words.peek().is_none() || words.any(|word| row.contains(&word))
}

fn rounds() -> usize {
    if is_quick() { 5 } else { 15 }
}

/// ENTER, or another program, on packets of known flows.
fn known(name: &'static str, program: &str, test: &Test, cells: u32) -> Result<()> {
    let mut bench = Bench::start(&LoadOptions {
        flow_cells: cells,
        ..LoadOptions::default()
    })?;
    let repeat = REPEAT.max(2 * test.flows);
    // The first four packets of a flow are timed.
    bench.run_flows(program, test, test.flows.saturating_mul(5))?;
    let mut over = Vec::new();
    for round in 0..rounds() {
        let (empty, enter) = if round % 2 == 0 {
            let empty = bench.run_flows(VARIED, test, repeat)?;
            (empty, bench.run_flows(program, test, repeat)?)
        } else {
            let enter = bench.run_flows(program, test, repeat)?;
            (bench.run_flows(VARIED, test, repeat)?, enter)
        };
        over.push(enter - empty);
    }
    Figure::range(Table::TestRun, name, column(test.flows), over).print();
    let (spilled, overflowed) = (
        bench.events(Event::Spilled)?,
        bench.events(Event::Overflowed)?,
    );
    if cells >= 2 * test.flows {
        // Cells in buckets of four: a few flows find theirs full even in a table that is large enough.
        ensure!(
            overflowed == 0,
            "{name}: {overflowed} packets without a flow"
        );
    } else {
        let totals = bench.datapath.source.totals()?;
        ensure!(
            totals.overflow[Role::Pod as usize].skbs == overflowed,
            "what overflows is counted"
        );
    }
    if spilled + overflowed > 0 {
        let runs = u64::try_from(rounds())? * u64::from(repeat) + 5 * u64::from(test.flows);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = |part: u64| 100.0 * part as f64 / runs as f64;
        println!(
            "    {name}, {} flows in {cells} cells: {:.2} % of the packets in the spill map, {:.2} % in the \
             overflow counters",
            test.flows,
            share(spilled),
            share(overflowed)
        );
    }
    Ok(())
}

/// EXIT while nothing is on its way.
fn exit_idle() -> Result<()> {
    let mut bench = Bench::start(&LoadOptions::default())?;
    let frame = Test::tcp(ACK).frame;
    let mut over = Vec::new();
    for round in 0..rounds() {
        let order = if round % 2 == 0 {
            [EMPTY, EXIT]
        } else {
            [EXIT, EMPTY]
        };
        let mut ns = [0.0; 2];
        for name in order {
            ns[usize::from(name == EXIT)] = bench.run(name, &frame, 5 * REPEAT)?;
        }
        over.push(ns[1] - ns[0]);
    }
    Figure::range(Table::TestRun, row::EXIT_IDLE, "-", over).print();
    Ok(())
}

/// ENTER and EXIT of packets that are all timed.
fn timed(names: [&'static str; 2], test: &Test) -> Result<()> {
    let mut bench = Bench::start(&LoadOptions {
        sample: 1,
        ..LoadOptions::default()
    })?;
    bench.run_flows(PASSAGE, test, 5 * test.flows)?;
    let (mut enters, mut exits) = (Vec::new(), Vec::new());
    for _ in 0..rounds() {
        let empty = bench.run_flows(VARIED, test, REPEAT)?;
        let enter = bench.run_flows(ENTER, test, REPEAT)?;
        let both = bench.run_flows(PASSAGE, test, REPEAT)?;
        enters.push(enter - empty);
        exits.push(both - enter);
    }
    ensure!(
        bench.events(Event::ExitMatched)? > 0,
        "no EXIT found its passage"
    );
    ensure!(
        bench.events(Event::ExitUnmatched)? == 0,
        "an EXIT without a passage"
    );
    Figure::range(Table::TestRun, names[0], column(test.flows), enters).print();
    Figure::range(Table::TestRun, names[1], column(test.flows), exits).print();
    Ok(())
}

/// ENTER of packets whose flow was never seen.
fn new(name: &'static str, test: Test) -> Result<()> {
    let mut bench = Bench::start(&LoadOptions::default())?;
    let test = test.flows(u32::MAX);
    let mut over = Vec::new();
    for round in 0..4 * u32::try_from(rounds())? {
        let frame = test.from(round * NEW, round * NEW);
        let empty = bench.run(VARIED, &frame, NEW)?;
        let enter = bench.run(ENTER, &frame, NEW)?;
        bench.retire();
        // The first round touches pages for the first time.
        if round > 0 {
            over.push(enter - empty);
        }
    }
    let claimed = bench.events(Event::CellClaimed)?;
    let spilled = bench.events(Event::Spilled)?;
    ensure!(
        claimed + spilled == u64::from(4 * u32::try_from(rounds())? * NEW),
        "{claimed} of the flows were new"
    );
    Figure::quartiles(Table::TestRun, name, "-", over).print();
    Ok(())
}

/// A number of flows as a column's title.
fn column(flows: u32) -> String {
    xtask::bench::row::flows(flows)
}

//! What a program costs by itself: ns per run over an empty program, by `BPF_PROG_TEST_RUN`.
//!
//! Every round runs each program once, the empty one of the same kind among them, so that a machine's mood
//! strikes all alike; differences are taken within the round. The kernel gives whole nanoseconds.

use std::net::{IpAddr, SocketAddr};

use aksnet_agent::{
    bpf::{LoadOptions, Loaded, load},
    collect::source::Source as _,
};
use aksnet_common::{
    cell,
    packet::{ACK, SYN, TCP},
    stats::{Event, Role},
};
use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use xtask::{
    bench::{
        figure::{Figure, Table, is_quick},
        row,
    },
    testbed::frame::{Frame, Packet},
};

/// Numbers of flows that packets come from in turn.
const FLOWS: [u32; 4] = [1, 1_000, 10_000, 100_000];

/// Repetitions in one test run of known flows, at least.
const REPEAT: u32 = 200_000;

/// New flows in one test run: an eighth of the default table.
const NEW: u32 = 8_192;

/// Cells for 100,000 flows.
const LARGE: u32 = 262_144;

/// Programs that only the benchmarks load.
const EMPTY: &str = "aksnet_empty";
const VARIED: &str = "aksnet_bench_empty";
const TOUCH: &str = "aksnet_bench_touch";
const ENTER: &str = "aksnet_bench_enter";
const PASSAGE: &str = "aksnet_bench_passage";
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

/// A frame that stands for many flows; see aksnet-ebpf's `bench`.
#[derive(Clone)]
struct Test {
    frame: Vec<u8>,
    flows: u32,
}

impl Test {
    fn tcp(flags: u8) -> Self {
        let mut segment = vec![0; 84];
        segment[..4].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
        segment[12] = 0x50;
        segment[13] = flags;
        let addresses: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 1, 1].into()];
        Self::of(Packet::new(addresses[0], addresses[1], TCP, segment))
    }

    fn udp6() -> Self {
        let addresses: [SocketAddr; 2] = [
            ([0xfd00, 0, 0, 0, 0, 0, 0, 1], 40_000).into(),
            ([0xfd00, 0, 0, 1, 0, 0, 0, 1], 8_080).into(),
        ];
        Self::of(Packet::udp(addresses[0], addresses[1], &[0; 64]))
    }

    fn of(packet: Packet) -> Self {
        let mut frame = Frame::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], packet).build();
        // Each packet is as far ahead in its stream as it is long.
        frame[92..96].copy_from_slice(&64_u32.to_le_bytes());
        Self { frame, flows: 1 }
    }

    fn flows(mut self, flows: u32) -> Self {
        self.frame[80..84].copy_from_slice(&flows.to_le_bytes());
        self.flows = flows;
        self
    }

    /// The frame as it shall be for repetitions from this flow and packet on.
    fn from(&self, flow: u32, packet: u32) -> Vec<u8> {
        let mut frame = self.frame.clone();
        frame[84..88].copy_from_slice(&flow.to_le_bytes());
        frame[88..92].copy_from_slice(&packet.to_le_bytes());
        frame
    }
}

/// Programs loaded afresh, with a table of their own.
struct Bench {
    datapath: Loaded,
    packets: u32,
}

impl Bench {
    fn start(options: &LoadOptions) -> Result<Self> {
        Ok(Self {
            datapath: load(&LoadOptions {
                further: &[EMPTY, VARIED, TOUCH, ENTER, PASSAGE],
                ..options.clone()
            })?,
            packets: 0,
        })
    }

    /// ns per run of a program on a frame that came in through an interface.
    fn run(&mut self, name: &str, frame: &[u8], repeat: u32) -> Result<f64> {
        // The head of `struct __sk_buff` up to `ingress_ifindex`; the kernel takes the rest as zeros.
        let mut context = [0; 40];
        context[36] = 2;
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        options.repeat = repeat;
        let result = program(&mut self.datapath, name)?.test_run(options)?;
        ensure!(
            result.return_value == u32::MAX,
            "{name} says {}",
            result.return_value
        );
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one run")]
        Ok(result.duration.as_nanos() as f64)
    }

    /// As [`Bench::run`], for packets of a number of flows in turn, each next in its stream.
    fn run_flows(&mut self, name: &str, test: &Test, repeat: u32) -> Result<f64> {
        let frame = test.from(0, self.packets);
        self.packets = self.packets.wrapping_add(repeat);
        self.run(name, &frame, repeat)
    }

    fn events(&self, event: Event) -> Result<u64> {
        Ok(self.datapath.source.totals()?.events[event as usize])
    }

    /// Gives back every cell. Nothing runs meanwhile, so closing and freeing need no time in between.
    fn retire(&self) {
        let source = &self.datapath.source;
        for index in 0..source.cells() {
            if source.state(index) & cell::PHASE == cell::LIVE {
                source.close(index);
                source.free(index);
            }
        }
    }
}

fn program<'a>(datapath: &'a mut Loaded, name: &str) -> Result<&'a mut SchedClassifier> {
    datapath
        .attacher
        .ebpf()
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?
        .try_into()
        .context("a classifier")
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

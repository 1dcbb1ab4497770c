//! What the agent's programs cost real packets on their way through a node: by the kernel's own statistics of their
//! runs, by the clock of who sends them, and by what sockets notice.
//!
//! Two things are measured in turn, in changing order, and compared within the pair: a route with the programs and one
//! without, or the same route with and without. A machine's mood strikes both alike, and a null check with nothing
//! attached says what the comparison is worth.

#![expect(
    unreachable_pub,
    reason = "one binary: `pub` says what another module uses"
)]

mod cpu;

mod bed;

mod probe;

mod sockets;

use aksnet_agent::bpf::LoadOptions;
use anyhow::{Result, ensure};
use aya::sys::{Stats, enable_stats};
use xtask::{
    bench::{
        figure::{Figure, Table, is_quick},
        row,
    },
    testbed::traffic::Flood,
};

use bed::{Bed, Route};
use probe::{DROP, EMPTY, ENTER, EXIT, Probe, Tools};

/// Packets in one slice of a flood, at least.
const PACKETS: u32 = 20_000;

fn main() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces and BPF programs need root");
        return Ok(());
    }
    let bed = Bed::build()?;
    let wanted = |part: &str| {
        let mut words = std::env::args()
            .skip(1)
            .filter(|word| !word.starts_with("--"))
            .peekable();
        words.peek().is_none() || words.any(|word| word == part)
    };
    if wanted("packets") {
        packets(&bed)?;
    }
    if wanted("runs") {
        runs(&bed)?;
    }
    if wanted("sockets") {
        notice(&bed)?;
    }
    if wanted("drops") {
        drops(&bed)?;
    }
    Ok(())
}

/// A table for this many flows.
fn options(flows: u32) -> LoadOptions {
    LoadOptions {
        flow_cells: if flows > 10_000 { 262_144 } else { 65_536 },
        ..LoadOptions::default()
    }
}

fn pairs(full: usize) -> usize {
    if is_quick() { full.div_ceil(5) } else { full }
}

/// Two measurements in turn, in changing order: the differences or ratios of `compare`.
fn compare<T>(
    state: &mut T,
    pairs: usize,
    mut one: impl FnMut(&mut T) -> Result<f64>,
    mut other: impl FnMut(&mut T) -> Result<f64>,
) -> Result<Vec<(f64, f64)>> {
    (0..pairs)
        .map(|round| {
            xtask::say::check()?;
            if round % 2 == 0 {
                let first = one(state)?;
                Ok((first, other(state)?))
            } else {
                let first = other(state)?;
                Ok((one(state)?, first))
            }
        })
        .collect()
}

/// ns per packet of one slice; every packet must arrive.
fn slice(flood: &mut Flood, route: &Route, flows: u32) -> Result<f64> {
    let packets = PACKETS.max(flows);
    let before = route.arrived()?;
    let each = flood.send(packets)?;
    let arrived = route.arrived()? - before;
    ensure!(
        arrived >= u64::from(packets) * 999 / 1000,
        "{arrived} of {packets} packets arrived"
    );
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one packet")]
    Ok(each.as_nanos() as f64)
}

/// Wall time per routed packet.
fn packets(bed: &Bed) -> Result<()> {
    cpu::pin(cpu::TRAFFIC)?;
    let mut tools = Tools::load()?;
    let _sinks = tools.sinks([&bed.hooked, &bed.control])?;
    let mut floods = [bed.hooked.flood()?, bed.control.flood()?];
    for flows in [1, 1_000, 100_000] {
        for flood in &mut floods {
            flood.set_flows(flows);
        }
        let mut probes = vec![
            (Probe::Nothing, row::NOTHING),
            (Probe::empty()?, row::EMPTY),
            (Probe::agent(&options(flows))?, row::AGENT),
        ];
        if flows > 65_536 {
            probes.push((
                Probe::agent(&LoadOptions::default())?,
                row::AGENT_SMALL_TABLE,
            ));
        }
        let mut base = Vec::new();
        for (mut probe, name) in probes {
            probe.attach(bed)?;
            // The flows are known, and their first packets timed, before it counts.
            for _ in 0..6 {
                slice(&mut floods[0], &bed.hooked, flows)?;
            }
            let times = compare(
                &mut floods,
                pairs(if flows > PACKETS { 30 } else { 100 }),
                |floods| slice(&mut floods[0], &bed.hooked, flows),
                |floods| slice(&mut floods[1], &bed.control, flows),
            )?;
            probe.detach()?;
            base.extend(times.iter().map(|(_, control)| *control));
            let over = times
                .iter()
                .map(|(hooked, control)| hooked - control)
                .collect();
            Figure::quartiles(Table::Wall, name, row::flows(flows), over).print();
        }
        Figure::quartiles(Table::Wall, row::BASE, row::flows(flows), base).print();
    }
    Ok(())
}

/// Time per run by the kernel's own statistics, over the empty program under the same load.
fn runs(bed: &Bed) -> Result<()> {
    cpu::pin(cpu::TRAFFIC)?;
    let mut tools = Tools::load()?;
    let _sinks = tools.sinks([&bed.hooked, &bed.control])?;
    let mut flood = bed.hooked.flood()?;
    let _statistics = enable_stats(Stats::RunTime)?;
    for flows in [1, 1_000, 10_000, 100_000] {
        flood.set_flows(flows);
        let mut empty = Probe::empty()?;
        let mut agent = Probe::agent(&options(flows))?;
        let (mut enters, mut exits) = (Vec::new(), Vec::new());
        for round in 0..=pairs(10) {
            let [idle] = run_times(&mut empty, [EMPTY], bed, &mut flood, flows)?;
            let [enter, exit] = run_times(&mut agent, [ENTER, EXIT], bed, &mut flood, flows)?;
            // The first round's flows are new.
            if round > 0 {
                enters.push(enter - idle);
                exits.push(exit - idle);
            }
        }
        Figure::range(Table::RunTime, row::RUN_ENTER, row::flows(flows), enters).print();
        Figure::range(Table::RunTime, row::RUN_EXIT, row::flows(flows), exits).print();
    }
    Ok(())
}

/// ns per run of each of these programs during a few slices.
fn run_times<const N: usize>(
    probe: &mut Probe,
    programs: [&str; N],
    bed: &Bed,
    flood: &mut Flood,
    flows: u32,
) -> Result<[f64; N]> {
    probe.attach(bed)?;
    let mut before = [(0.0, 0.0); N];
    for (before, program) in before.iter_mut().zip(programs) {
        *before = probe.runs(program)?;
    }
    for _ in 0..5 {
        flood.send(PACKETS.max(flows))?;
    }
    let mut each = [0.0; N];
    for ((each, before), program) in each.iter_mut().zip(before).zip(programs) {
        let after = probe.runs(program)?;
        ensure!(after.1 > before.1, "{program} did not run");
        *each = (after.0 - before.0) / (after.1 - before.1);
    }
    probe.detach()?;
    Ok(each)
}

/// DROP, where a netfilter rule of the node drops every packet.
fn drops(bed: &Bed) -> Result<()> {
    cpu::pin(cpu::TRAFFIC)?;
    let mut flood = bed.hooked.flood()?;
    let source = bed.hooked.from.address.to_string();
    let rule = ["FORWARD", "-s", source.as_str(), "-j", "DROP"];
    let iptables = |how| {
        bed.node
            .output("iptables", ["-w", how].into_iter().chain(rule))
            .map(drop)
    };
    iptables("-A")?;
    let _statistics = enable_stats(Stats::RunTime)?;
    for flows in [1, 1_000] {
        flood.set_flows(flows);
        let netns = u32::try_from(bed.node.inode()?)?;
        let mut empty = Probe::empty()?;
        let mut agent = Probe::agent(&LoadOptions {
            netns: Some(netns),
            ..LoadOptions::default()
        })?;
        let mut rounds = Vec::new();
        for round in 0..=pairs(10) {
            let [idle] = run_times(&mut empty, [EMPTY], bed, &mut flood, flows)?;
            let [dropped] = run_times(&mut agent, [DROP], bed, &mut flood, flows)?;
            if round > 0 {
                rounds.push(dropped - idle);
            }
        }
        Figure::range(Table::RunTime, row::RUN_DROP, row::flows(flows), rounds).print();
    }
    iptables("-D")
}

/// A measure over sockets.
struct Measure {
    name: &'static str,
    run: fn(&Route) -> Result<f64>,
    /// Whether more of it is better.
    is_rate: bool,
}

const MEASURES: [Measure; 5] = [
    Measure {
        name: row::THROUGHPUT,
        run: sockets::throughput,
        is_rate: true,
    },
    Measure {
        name: row::CONNECTIONS,
        run: sockets::connections,
        is_rate: true,
    },
    Measure {
        name: row::SMALL_PACKETS,
        run: sockets::small_packets,
        is_rate: true,
    },
    Measure {
        name: row::REQUEST,
        run: sockets::request,
        is_rate: false,
    },
    Measure {
        name: row::CONNECT_REQUEST,
        run: sockets::connect_request,
        is_rate: false,
    },
];

/// What sockets notice: the same route with and without, in per cent.
fn notice(bed: &Bed) -> Result<()> {
    for measure in &MEASURES {
        let mut base = Vec::new();
        for mut probe in [
            Probe::Nothing,
            Probe::empty()?,
            Probe::agent(&LoadOptions::default())?,
        ] {
            (measure.run)(&bed.hooked)?;
            let values = compare(
                &mut probe,
                pairs(24),
                |probe| {
                    probe.attach(bed)?;
                    let value = (measure.run)(&bed.hooked);
                    probe.detach()?;
                    value
                },
                |_| (measure.run)(&bed.hooked),
            )?;
            base.extend(values.iter().map(|(_, without)| *without));
            let worse = values
                .iter()
                .map(|(with, without)| {
                    let ratio = with / without;
                    100.0
                        * if measure.is_rate {
                            1.0 - ratio
                        } else {
                            ratio - 1.0
                        }
                })
                .collect();
            Figure::quartiles(Table::Sockets, measure.name, probe.name(), worse).print();
            if matches!(probe, Probe::Agent(_)) && measure.name != row::THROUGHPUT {
                let each = |value: f64| {
                    if measure.is_rate {
                        1e9 / value
                    } else {
                        1e3 * value
                    }
                };
                let more = values
                    .iter()
                    .map(|(with, without)| each(*with) - each(*without))
                    .collect();
                Figure::quartiles(Table::Sockets, measure.name, row::AGENT_TIME, more).print();
            }
            let [spilled, overflowed] = probe.without_cell();
            if spilled + overflowed > 0 {
                println!(
                    "    {}: {spilled} packets in the spill map, {overflowed} in the overflow counters",
                    measure.name
                );
            }
        }
        Figure::quartiles(Table::Sockets, measure.name, row::WITHOUT, base).print();
    }
    Ok(())
}

//! `cargo xtask bench`: what the agent costs a node's traffic, as tables in docs/overhead.md.
//!
//! The benchmarks themselves are aksnet-agent's (`cargo bench -p aksnet-agent`), as they load its programs. Each prints
//! [`figure`]s; this runs them in turn, holds the figures against the [`target`]s and writes the [`report`].

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::testbed::bed::is_root;
use crate::testbed::traffic::FrameSocket;
use crate::{cargo, say, setup};

// What is measured, and under which name.
pub mod figure;

pub mod row;

// What was promised.
pub mod target;

// What is written down.
pub mod machine;

pub mod process;

pub mod services;

pub mod pods;

pub mod report;

pub mod plot;

use figure::{Figure, Table};

/// aksnet-agent's benchmarks in the order in which they run. One that does not exist is left out.
pub const BENCHMARKS: [&str; 6] = ["datapath", "growth", "wall", "sweep", "identify", "policy"];

/// What is measured of the whole agent, after those.
pub const OF_THE_AGENT: [&str; 3] = ["memory", "pods", "services"];

/// How it is run.
#[derive(Debug, Default)]
pub struct Options {
    /// Fewer rounds, and docs/overhead.md stays as it is.
    pub quick: bool,
    /// Only these of [`BENCHMARKS`] and [`OF_THE_AGENT`]; all if empty. docs/overhead.md stays as it is.
    pub only: Vec<String>,
    /// An agent that is built already.
    pub agent: Option<PathBuf>,
}

/// Measures, prints the tables, and writes docs/overhead.md.
///
/// # Errors
/// When something is missing, or a benchmark fails.
pub fn run(options: &Options) -> Result<()> {
    ensure!(
        is_root(),
        "the benchmarks load BPF programs and make network namespaces: run it as root"
    );
    setup::ensure(false)?;
    say::clean_up()?;
    say::catch_interrupts()?;
    let mut results = Results::default();
    let there = benchmarks()?;
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|o| o == name);
    let there = |name: &str| there.iter().any(|t| t == name);
    for name in BENCHMARKS.into_iter().filter(|n| wanted(n) && there(n)) {
        say::heading(&format!("Benchmark: {name}"));
        results.take(name, options.quick)?;
    }
    if OF_THE_AGENT.into_iter().any(wanted) {
        let agent = match &options.agent {
            Some(agent) => agent.clone(),
            None => cargo::release_agent(None)?,
        };
        for name in OF_THE_AGENT.into_iter().filter(|name| wanted(name)) {
            say::heading(&format!("Benchmark: {name}"));
            for figure in of_the_agent(name, &agent)? {
                println!("{}", figure.line());
                results.figures.push(figure);
            }
        }
    }
    results.add_shares();
    let about = format!(
        "Measured {} by `cargo xtask bench{}`: {}.",
        machine::today(),
        if options.quick { " --quick" } else { "" },
        machine::line()
    );
    let plots = if options.quick {
        Vec::new()
    } else {
        plot::write(&results.figures, &cargo::workspace().join("docs/images"))?
    };
    let report = report::render(&results.figures, &results.notes, &plots, &about);
    println!("\n{report}");
    if options.quick || !options.only.is_empty() {
        say::step("docs/overhead.md stays as it is: this was not all of it");
        return Ok(());
    }
    report::write(&cargo::workspace().join("docs/overhead.md"), &report)?;
    say::step("docs/overhead.md is written");
    Ok(())
}

/// One of [`OF_THE_AGENT`].
fn of_the_agent(name: &str, agent: &Path) -> Result<Vec<Figure>> {
    match name {
        "memory" => Ok(match resident_memory(agent) {
            Ok(figure) => vec![figure],
            Err(error) => {
                say::step(&format!("the agent's memory was not measured: {error:#}"));
                Vec::new()
            }
        }),
        "pods" => pods::figures(agent),
        _ => services::figures(agent),
    }
}

/// What the benchmarks said.
#[derive(Default)]
struct Results {
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Results {
    /// What the agent's programs take of a core, from what a packet takes longer.
    fn add_shares(&mut self) {
        let wall = |figure: &&Figure| figure.table == Table::Wall && figure.row == row::AGENT;
        // A nanosecond for each of a million packets is a millisecond of each second.
        let share = |figure: &Figure| Figure {
            row: row::AGENT_SHARE.to_owned(),
            median: figure.median / 10.0,
            low: figure.low / 10.0,
            high: figure.high / 10.0,
            ..figure.clone()
        };
        let shares: Vec<Figure> = self.figures.iter().filter(wall).map(share).collect();
        self.figures.extend(shares);
    }

    /// Runs one to its end.
    fn take(&mut self, name: &str, quick: bool) -> Result<()> {
        let mut command = cargo::command();
        command
            .args(["bench", "-p", "aksnet-agent", "--bench", name, "--"])
            .arg(figure::JSON);
        if quick {
            command.arg(figure::QUICK);
        }
        println!("{}", say::dim(&format!("$ {}", say::line(&command))));
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("it was asked for")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some(figure) = Figure::of_line(&line) {
                println!("{}", figure.line());
                self.figures.push(figure);
            } else {
                println!("{line}");
                if let Some(note) = line.strip_prefix("    ") {
                    self.notes.push(note.trim().to_owned());
                }
            }
        }
        let status = child.wait()?;
        say::check()?;
        ensure!(status.success(), "benchmark {name} failed ({status})");
        Ok(())
    }
}

/// The agent's memory when its flow table is as full as 65,536 flows make it: a datagram of each arrives on its
/// uplink, in a namespace of its own.
fn resident_memory(agent: &Path) -> Result<Figure> {
    let record = std::sync::Arc::new(crate::testbed::record::Record::create()?);
    let netns = crate::testbed::Netns::create(&record, "resident")?;
    let socket = record.make_directory("resident")?.join("agent.sock");
    netns.ip([
        "link add eth0 type veth peer name wire",
        "link set eth0 up",
        "link set wire up",
        "addr add 10.240.0.4/16 dev eth0",
        "route add default via 10.240.0.1",
    ])?;
    let mut command = netns.command_with_sysfs(agent);
    command
        .args(["run", "--listen", "127.0.0.1:9435", "--socket"])
        .arg(socket);
    let wire = FrameSocket::open(&netns, "wire")?;
    let mib = process::resident_after(&mut command, Duration::from_secs(3), || {
        (0..=u16::MAX).try_for_each(|port| wire.send(&datagram(port)))
    })?;
    Ok(Figure::range(Table::Agent, row::RESIDENT, "-", vec![mib]))
}

/// An empty UDP datagram from 10.240.0.1 and this port to the node, as an Ethernet broadcast.
fn datagram(port: u16) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6] = 2;
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    // Version 4, 28 bytes in all, TTL 64, UDP. The node's stack drops it for its checksum; it was counted by then.
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17]);
    frame[26..34].copy_from_slice(&[10, 240, 0, 1, 10, 240, 0, 4]);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..40].copy_from_slice(&[0, 9, 0, 8]);
    frame
}

/// Names of aksnet-agent's benchmarks.
fn benchmarks() -> Result<Vec<String>> {
    let metadata = cargo::metadata(&["--no-deps"])?;
    let packages = metadata["packages"].as_array().context("cargo metadata")?;
    let targets = packages
        .iter()
        .filter(|package| package["name"] == "aksnet-agent")
        .filter_map(|package| package["targets"].as_array())
        .flatten();
    Ok(targets
        .filter(|target| {
            target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind == "bench"))
        })
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

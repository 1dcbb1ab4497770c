//! `cargo xtask bench`: what the agent costs the traffic of a node, as ratios of pairs in the same run.
//!
//! Each round measures without and with the agent, so that a machine's mood strikes both alike; what is told is
//! the median of the rounds.

pub mod figure;

pub mod row;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::testbed::bed::is_root;
use crate::testbed::traffic::{ShortConnections, Tcp, TcpServer, Udp, UdpServer};
use crate::testbed::{Hairpin, Testbed};
use crate::{say, setup};

/// Pairs per measure.
const ROUNDS: usize = 9;

/// What is measured; more is better.
struct Measure<'a> {
    name: &'static str,
    unit: &'static str,
    run: Box<dyn Fn() -> Result<f64> + 'a>,
}

/// Measures and prints a table.
///
/// # Errors
/// When a measurement fails.
pub fn run(agent: Option<PathBuf>) -> Result<()> {
    ensure!(
        is_root(),
        "the benchmark makes network namespaces: run it as root"
    );
    setup::ensure(false)?;
    say::clean_up()?;
    say::catch_interrupts()?;
    let agent = match agent {
        Some(agent) => agent,
        None => crate::demo::build()?,
    };
    let bed = Testbed::kubenet().hairpin(Hairpin::Veth).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let sink = TcpServer::sink(bed.outside(), (bed.outside_ip(), 5201))?;
    let servers: Vec<TcpServer> = (8000..8008)
        .map(|port| TcpServer::echo(web.netns(), (web.ip(), port)))
        .collect::<Result<_>>()?;
    let udp = UdpServer::echo(web.netns(), (web.ip(), 53))?;
    let addresses: Vec<SocketAddr> = servers.iter().map(TcpServer::address).collect();
    let measures = [
        Measure {
            name: "bulk TCP out of the node, SNAT",
            unit: "Gbit/s",
            run: Box::new(|| {
                let report = Tcp::to(sink.address())
                    .one_way()
                    .bytes(2_000_000_000)
                    .run(client.netns())?;
                Ok(8e-9 * 2e9 / report.elapsed.as_secs_f64())
            }),
        },
        Measure {
            name: "short connections pod to pod",
            unit: "conn/s",
            run: Box::new(|| {
                let report = ShortConnections::to(addresses.clone(), 10_000).run(client.netns())?;
                Ok(10_000.0 / report.elapsed.as_secs_f64())
            }),
        },
        Measure {
            name: "UDP exchanges pod to pod",
            unit: "exch/s",
            run: Box::new(|| {
                let report = Udp::to(udp.address())
                    .datagrams(50_000)
                    .size(64)
                    .flight(16)
                    .run(client.netns())?;
                Ok(50_000.0 / report.elapsed.as_secs_f64())
            }),
        },
    ];
    say::heading(&format!("Medians of {ROUNDS} pairs"));
    for measure in &measures {
        compare(measure, &bed, &agent)?;
    }
    Ok(())
}

/// Measures pairs without and with the agent, and prints a row.
fn compare(measure: &Measure<'_>, bed: &Testbed, agent: &Path) -> Result<()> {
    (measure.run)()?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        say::check()?;
        without.push((measure.run)()?);
        let mut child = bed.node().netns().spawn(
            bed.node()
                .netns()
                .command_with_sysfs(agent)
                .args([
                    "run",
                    "--listen",
                    "127.0.0.1:9435",
                    "--uplink",
                    "eth0",
                    "--socket",
                ])
                .arg(bed.node().root().join("bench.sock"))
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(
            child.try_wait()?.is_none(),
            "the agent does not run: try `cargo xtask demo`, which shows why"
        );
        let rate = (measure.run)();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        child.wait()?;
        with.push(rate?);
    }
    // The ratio is taken within each pair, so that a machine that slows down in between does not tell.
    let ratio = median(
        without
            .iter()
            .zip(&with)
            .map(|(without, with)| with / without)
            .collect(),
    );
    let (without, with) = (median(without), median(with));
    let Measure { name, unit, .. } = measure;
    println!("  {name:<32} {without:>12.1} {unit} without, {with:>12.1} with: {ratio:.3}");
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

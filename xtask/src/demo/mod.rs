//! `cargo xtask demo`: an emulated AKS node, the agent on it, and what the agent says about the shop's traffic.

mod agent;
mod draw;
mod shop;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::testbed::bed::is_root;
use crate::testbed::{Hairpin, PolicyRule, Testbed};
use crate::{say, setup};
use agent::Agent;
use shop::Shop;

/// Where the demo's agent answers, inside the node.
const LISTEN: &str = "127.0.0.1:9435";

/// What the demo can be asked.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// An agent that is built already.
    pub agent: Option<PathBuf>,
    /// Go on until Ctrl-C.
    pub keep: bool,
    /// This machine's own interfaces in place of an emulated node.
    pub live: bool,
}

/// Runs the demo.
///
/// # Errors
/// When a step fails. Everything that was made is removed all the same.
pub fn run(options: Options) -> Result<()> {
    ensure!(
        is_root(),
        "the demo loads BPF programs and makes network namespaces: run it as root (`sudo -E cargo xtask demo`)"
    );
    setup::ensure(false)?;
    say::clean_up()?;
    let binary = match options.agent {
        Some(agent) => agent,
        None => build()?,
    };
    say::catch_interrupts()?;
    let result = if options.live {
        live(&binary)
    } else {
        emulated(&binary, options.keep)
    };
    match result {
        // Ctrl-C is how a person ends it.
        Err(_) if say::is_interrupted() => {
            say::step("interrupted; everything is removed");
            Ok(())
        }
        result => result,
    }
}

/// Builds the agent and says where it is.
pub(crate) fn build() -> Result<PathBuf> {
    say::step("building the agent");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    say::run(Command::new(&cargo).args(["build", "--release", "-p", "aksnet-agent"]))?;
    let output = Command::new(&cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata prints JSON")?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names the target directory")?;
    let binary = PathBuf::from(target).join("release/aksnet-agent");
    ensure!(binary.exists(), "no agent at {}", binary.display());
    Ok(binary)
}

/// The agent on this machine's own interfaces, its rows until Ctrl-C.
fn live(binary: &std::path::Path) -> Result<()> {
    say::heading("The agent on this machine's own interfaces (Ctrl-C ends it)");
    let directory = std::env::temp_dir().join(format!("aksnet-demo-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = (|| {
        let agent = Agent::start(None, binary, &directory, LISTEN, &[])?;
        say::step(&format!("metrics: curl -s http://{LISTEN}/metrics"));
        while !say::is_interrupted() {
            agent.top(None)?;
        }
        Ok(())
    })();
    let _ = std::fs::remove_dir_all(&directory);
    result
}

fn emulated(binary: &std::path::Path, keep: bool) -> Result<()> {
    let start = Instant::now();
    // Ports that send back make hairpins work on every kernel; AKS's promiscuous bridge no longer does everywhere.
    let bed = Testbed::kubenet()
        .pods(4)
        .remote_pods(0)
        .hairpin(Hairpin::Veth)
        .build()?;
    say::step(&format!(
        "an AKS node with kubenet, emulated in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    show(&bed, binary, keep)?;
    drop(bed);
    say::step(&format!(
        "everything is removed; it took {} s",
        start.elapsed().as_secs()
    ));
    Ok(())
}

/// Everything the demo shows on a testbed.
fn show(bed: &Testbed, binary: &std::path::Path, keep: bool) -> Result<()> {
    let shop = Shop::open(bed)?;
    println!("\n{}", draw::cluster(bed));

    let node = bed.node();
    let agent = Agent::start(
        Some(node.netns()),
        binary,
        node.root(),
        LISTEN,
        &["--uplink", node.uplink()],
    )?;
    say::step("the agent runs on the node");

    say::heading("What the node does to the shop's traffic");
    println!("{}", shop.legend());
    while_traffic_flows(|| shop.round(), || agent.top(Some(4)))?;

    say::heading("A policy: batch may not reach db");
    let policy = PolicyRule::drop("shop/deny-batch-to-db")
        .from(shop.batch.ip())
        .to(shop.db.ip());
    bed.add_policy(policy)?;
    shop.denied(10)?;
    let dropped = node.rule_packets("shop/deny-batch-to-db")?;
    say::step(&format!(
        "iptables has dropped {dropped} packets; the agent says:"
    ));
    while_traffic_flows(
        || shop.round().and_then(|()| shop.denied(2)),
        || agent.top(Some(2)),
    )?;

    say::heading("The same for Prometheus");
    let metrics = agent.get("/metrics")?;
    for line in draw::highlights(&metrics) {
        println!("  {line}");
    }
    let samples = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count();
    println!("  {}", say::dim(&format!("… {samples} samples in all")));

    say::heading("Where to scrape");
    println!(
        "  ip netns exec {} curl -s http://{LISTEN}/metrics",
        node.netns().name()
    );
    println!(
        "  {} top --socket {}",
        binary.display(),
        agent.socket().display()
    );
    if keep {
        say::step("it goes on, with traffic, until Ctrl-C");
        while !say::is_interrupted() {
            shop.round()?;
            pause(Duration::from_millis(200));
        }
    } else {
        println!(
            "  {}",
            say::dim("(cargo xtask demo --keep leaves it running for that)")
        );
    }
    agent.stop()
}

/// Makes rounds of traffic for as long as `watch` takes.
fn while_traffic_flows(
    round: impl Fn() -> Result<()> + Sync,
    watch: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                round()?;
                pause(Duration::from_millis(100));
            }
            Ok(())
        });
        let watched = watch();
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        let made = traffic
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        say::check()?;
        watched.and(made)
    })
}

fn pause(time: Duration) {
    if !say::is_interrupted() {
        std::thread::sleep(time);
    }
}

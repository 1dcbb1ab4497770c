//! `cargo xtask demo`: an emulated AKS node, the agent on it, and what the agent says about the shop's traffic.

pub(crate) mod agent;
mod bill;
mod classes;
mod cluster;
mod draw;
mod rows;
mod scenario;
pub(crate) mod scrape;
mod screen;
mod shop;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::testbed::bed::is_root;
use crate::testbed::{Flavour, Hairpin, PolicyRule, Stage, Testbed};
use crate::{cargo, say, setup};
use agent::Agent;
use cluster::Cluster;
pub use scenario::Scenario;
use scrape::Scrape;
use screen::Screen;
use shop::Shop;

/// Where the demo's agent answers, inside the node.
const LISTEN: &str = "127.0.0.1:9435";

/// How often the live rows are drawn, a second apart.
const LOOKS: u32 = 12;

/// How to read them.
const NOTE: &str = "\
↩ the connection's replies   = unchanged end   ✗ dropped, and why   FLOWS, PKTS of all alike that are alive
FIRST, LATER median time on the NAT path of the packets that open a connection, and of all others";

/// How to read the class table.
const CLASSES_NOTE: &str = "\
CONN, PKTS as counted by the agent, both ways   FIRST, LATER median time on the
NAT path of the packets that open a connection, and of all others; - where they
end at the node, or its own processes send them";

/// The policy's rule, by its comment.
const RULE: &str = "shop/deny-batch-to-db";

/// Connections that it denies.
const ATTEMPTS: u32 = 25;

/// How long the agent may take to have counted them: a sweep a second.
const SETTLE: Duration = Duration::from_secs(4);

const DROPS: &str = "aksnet_drop_packets_total";

/// The metrics worth a look, and how many samples of each, greatest first.
const HIGHLIGHTS: [(&str, usize); 5] = [
    ("aksnet_flow_packets_total", 3),
    ("aksnet_flow_connections_total", 2),
    ("aksnet_nat_path_seconds_count", 2),
    (DROPS, 1),
    ("aksnet_program_up", 3),
];

/// What the demo can be asked.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// An agent that is built already.
    pub agent: Option<PathBuf>,
    /// Go on until Ctrl-C.
    pub keep: bool,
    /// This machine's own interfaces in place of an emulated node.
    pub live: bool,
    /// What the emulated node is like, if it matters.
    pub node: Option<NodeKind>,
    /// What is shown, if not everything.
    pub scenario: Option<Scenario>,
}

/// What the emulated node is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum NodeKind {
    /// AKS with kubenet
    #[default]
    Kubenet,
    /// AKS with Azure CNI, pods in the nodes' subnet
    AzureCni,
    /// AKS with Azure CNI Overlay
    Overlay,
    /// kind
    Kind,
}

impl NodeKind {
    fn flavour(self) -> Flavour {
        match self {
            Self::Kubenet => Flavour::Kubenet,
            Self::AzureCni => Flavour::AzureNodeSubnet,
            Self::Overlay => Flavour::AzureOverlay,
            Self::Kind => Flavour::Kind,
        }
    }

    /// In words.
    fn title(self) -> &'static str {
        match self {
            Self::Kubenet => "an AKS node with kubenet",
            Self::AzureCni => "an AKS node with Azure CNI in the nodes' subnet",
            Self::Overlay => "an AKS node with Azure CNI Overlay",
            Self::Kind => "a kind node",
        }
    }
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
        None => cargo::release_agent(None)?,
    };
    say::catch_interrupts()?;
    let (node, keep) = (options.node, options.keep);
    let result = match options.scenario {
        _ if options.live => live(&binary),
        Some(scenario) => {
            scenario::show(&binary, node.unwrap_or(NodeKind::Overlay), scenario, keep)
        }
        None => emulated(&binary, node.unwrap_or_default(), keep),
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

/// The agent on this machine's own interfaces, its rows until Ctrl-C.
fn live(binary: &Path) -> Result<()> {
    say::heading("The agent on this machine's own interfaces (Ctrl-C ends it)");
    let directory = std::env::temp_dir().join(format!("aksnet-demo-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = (|| {
        let agent = Agent::start(None, binary, &directory, LISTEN, &[])?;
        say::step(&agent.watches()?);
        say::step(&format!("metrics: curl -s http://{LISTEN}/metrics"));
        println!();
        let watched = watch(&agent, None);
        // Interrupted or not: it ends well, or says why not.
        agent.stop()?;
        watched
    })();
    let _ = std::fs::remove_dir_all(&directory);
    result
}

fn emulated(binary: &Path, node: NodeKind, keep: bool) -> Result<()> {
    let start = Instant::now();
    // Ports that send back make hairpins work on every kernel; AKS's promiscuous bridge no longer does everywhere.
    let bed = Testbed::of(node.flavour())
        .pods(4)
        .remote_pods(0)
        .hairpin(Hairpin::Veth)
        .build()?;
    say::step(&format!(
        "{}, emulated in {:.1} s",
        node.title(),
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
fn show(bed: &Testbed, binary: &Path, keep: bool) -> Result<()> {
    classes(bed, binary)?;
    let shop = Shop::open(bed)?;
    println!("\n{}", draw::cluster(bed));
    let node = bed.node();
    let cluster = Cluster::tell(bed, &shop)?;
    let flags = cluster.flags(bed);
    let agent = Agent::start(Some(node.netns()), binary, node.root(), LISTEN, &flags)?;
    say::step(&agent.watches()?);

    say::heading("What flows");
    println!("{}", shop.legend());

    say::heading("What the node does to it: one line for each kind of traffic, live");
    while_traffic_flows(|| shop.round(), || watch(&agent, Some(LOOKS)))?;
    println!("{}", say::dim(NOTE));

    say::heading("What NAT costs here: time from entering the node to leaving it");
    let scrape = agent.scrape()?;
    for line in scrape::cost(&scrape) {
        println!("{line}");
    }
    if let Some(moral) = scrape::moral(&scrape) {
        println!("\n  {moral}");
    }

    say::heading("Whose it is: names by the Kubernetes API (here one of the demo's own)");
    for line in bill::workloads(&scrape) {
        println!("{line}");
    }
    say::heading("What this node is, and what is used up on it");
    for line in bill::node(&agent.scrape()?) {
        println!("{line}");
    }

    policy(bed, &shop, &agent)?;

    say::heading("The same for Prometheus");
    let scrape = agent.scrape()?;
    for (name, count) in HIGHLIGHTS {
        for line in scrape.greatest(name, count) {
            println!("  {line}");
        }
    }
    let rest = format!("… {} samples in all", scrape.len());
    println!("  {}", say::dim(&rest));

    where_to_look(bed, &agent, binary, keep);
    println!();
    while_traffic_flows(
        || shop.round(),
        || {
            if keep {
                watch(&agent, None)
            } else {
                top(&agent)
            }
        },
    )?;
    agent.stop()
}

/// The demo ends in `top`: on a terminal until the person leaves it, elsewhere as its rows.
fn top(agent: &Agent) -> Result<()> {
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        say::step("`aksnet-agent top` follows, with traffic going on: q ends it, ? explains it");
        pause(Duration::from_secs(2));
        return agent.top();
    }
    say::heading("`aksnet-agent top`, here as rows (`--raw`), as this is no terminal");
    let rows = agent.output(&["top", "--raw", "--count", "2", "--limit", "12"], &[0])?;
    for line in rows.lines() {
        println!("  {line}");
    }
    Ok(())
}

/// Every kind of traffic, by an agent of its own, so that the shop's counts begin at nothing.
fn classes(bed: &Testbed, binary: &Path) -> Result<()> {
    shop::far_web(bed)?;
    Stage::prepare(bed)?;
    let mut flags = flags(bed);
    flags.extend(classes::flags(bed, binary)?);
    // The times of every packet, soon.
    flags.extend(["--sample=1", "--interval=100ms"].map(str::to_owned));
    let node = bed.node();
    let agent = Agent::start(Some(node.netns()), binary, node.root(), LISTEN, &flags)?;
    say::heading("Every kind of traffic on such a node, and what the agent counts it as");
    classes::table(bed, &agent)?;
    println!("{}", say::dim(CLASSES_NOTE));
    agent.stop()
}

/// What an operator tells the agent about the cluster: what no route or address of the node shows.
fn flags(bed: &Testbed) -> Vec<String> {
    let plan = bed.plan();
    let nodes = plan.nodes.map(|node| format!("{}/32", node.address.v4));
    let pods = if plan.flavour == Flavour::AzureNodeSubnet {
        // In the VNet only Kubernetes tells which addresses are pods': here, what the nodes have reserved for them.
        plan.nodes.map(|node| node.pods.v4.to_string()).join(",")
    } else {
        plan.pods.v4.to_string()
    };
    [
        ("--uplink", bed.node().uplink().to_owned()),
        ("--pod-cidr", pods),
        ("--service-cidr", plan.services.v4.to_string()),
        ("--node-cidr", nodes.join(",")),
        ("--vnet-cidr", plan.vnet.v4.to_string()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

/// Shows the agent's rows, a look a second: so many, or until Ctrl-C.
fn watch(agent: &Agent, looks: Option<u32>) -> Result<()> {
    let mut screen = Screen::new();
    let mut widths = rows::NO_WIDTHS;
    let mut look = 0;
    while looks.is_none_or(|looks| look < looks) && !say::is_interrupted() {
        let mut lines = rows::table(&agent.rows()?, &mut widths);
        if lines.len() == 1 {
            lines.push(say::dim("(no packet yet)"));
        }
        screen.show(lines)?;
        look += 1;
    }
    screen.finish();
    Ok(())
}

/// A rule as a policy engine writes it drops what one pod sends to another: what iptables counts, and what the
/// agent says.
fn policy(bed: &Testbed, shop: &Shop, agent: &Agent) -> Result<()> {
    say::heading("A policy: batch may not reach db");
    if is(
        agent
            .scrape()?
            .sum("aksnet_program_up", &[("program", "drop")]),
        0,
    ) {
        say::step(
            "the kernel has refused the drop program (see above), so there is nothing to show",
        );
        return Ok(());
    }
    let dropped = |scrape: &Scrape| scrape.sum(DROPS, &[("reason", "netfilter_drop")]);
    let rule = PolicyRule::drop(RULE)
        .from(shop.batch.ip())
        .to(shop.db.ip());
    let before = dropped(&agent.scrape()?);
    bed.add_policy(rule)?;
    shop.denied(ATTEMPTS)?;
    let deadline = Instant::now() + SETTLE;
    let (counted, seen) = loop {
        let counted = bed.node().rule_packets(RULE)?;
        let seen = dropped(&agent.scrape()?) - before;
        if is(seen, counted) || Instant::now() > deadline {
            break (counted, seen);
        }
        say::check()?;
        std::thread::sleep(Duration::from_millis(200));
    };
    let mut rows = agent.rows()?;
    rows.retain(|row| row.drops > 0);
    let mut widths = rows::NO_WIDTHS;
    for line in rows::table(&rows, &mut widths) {
        println!("{line}");
    }
    println!(
        "\n  {:<58} {counted:>4} packets",
        format!("iptables' own counter of the rule {RULE}")
    );
    println!(
        "  {:<58} {seen:>4} packets",
        format!("{DROPS}{{reason=\"netfilter_drop\"}}")
    );
    ensure!(
        is(seen, counted),
        "the agent's count of dropped packets is not iptables'"
    );
    println!(
        "  Equal. The rule names the pod {}, as iptables sees it; the agent also tells that {} was dialled.",
        shop.db.ip(),
        shop.db_service.address()
    );
    Ok(())
}

/// Whether a sample has this count.
fn is(sample: f64, count: u64) -> bool {
    u32::try_from(count).is_ok_and(|count| (sample - f64::from(count)).abs() < 0.5)
}

/// The addresses at which the agent answers.
fn where_to_look(bed: &Testbed, agent: &Agent, binary: &Path, keep: bool) {
    say::heading("Where to scrape");
    println!(
        "  ip netns exec {} curl -s http://{LISTEN}/metrics",
        bed.node().netns().name()
    );
    println!(
        "  {} top --socket {}    (drops, flows and doctor likewise)",
        binary.display(),
        agent.socket().display()
    );
    if keep {
        say::step("traffic goes on, and the agent answers there, until Ctrl-C");
    } else {
        println!(
            "  {}",
            say::dim("(`cargo xtask demo --keep` leaves it running for that)")
        );
    }
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

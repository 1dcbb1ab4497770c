//! A node as full as AKS lets it be: what the agent needs for its *pods*, and while all of them talk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::figure::{Figure, Table};
use super::{process, row};
use crate::demo::agent::Agent;
use crate::say;
use crate::testbed::traffic::{Tcp, TcpServer};
use crate::testbed::{Service, Testbed};

/// As many as a node of AKS may have (`--max-pods`).
const PODS: usize = 250;

/// What each pod opens in a round.
const CONNECTIONS: u32 = 4;

/// How long its processor time is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Long enough for a sweep, and for the connections' last packets.
const SETTLE: Duration = Duration::from_secs(3);

const LISTEN: &str = "127.0.0.1:9435";

/// Time, memory and processor time of a real agent on such a node.
///
/// # Errors
/// When the emulated node or the agent fails, or the agent counts another number of connections than were made.
pub fn figures(agent: &Path) -> Result<Vec<Figure>> {
    say::step(&format!("a node with {PODS} pods is made"));
    let bed = Testbed::azure_overlay().pods(PODS).build()?;
    let server = TcpServer::echo(bed.remote_pod(0).netns(), (bed.remote_pod(0).ip(), 8080))?;
    let service = Service::cluster_ip("shop", "web", 80).endpoints([server.address()]);
    let service = bed.add_service(service)?;
    let node = bed.node();
    let flags = [
        "--service-cidr".to_owned(),
        bed.plan().services.v4.to_string(),
    ];
    let started = Instant::now();
    let agent = Agent::start(Some(node.netns()), agent, node.root(), LISTEN, &flags)?;
    while agent.pods_watched()? < PODS {
        say::check()?;
        ensure!(
            started.elapsed() < Duration::from_mins(1),
            "{} of {PODS} pods are watched after a minute",
            agent.pods_watched()?
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut figures = vec![figure(row::PODS_WATCHED, started.elapsed().as_secs_f64())];
    std::thread::sleep(SETTLE);

    let busy = Busy::begin(&agent)?;
    std::thread::sleep(LOOK);
    figures.push(figure(row::PODS_IDLE, busy.percent()?));

    let (busy, until) = (Busy::begin(&agent)?, Instant::now() + LOOK);
    let mut made = 0;
    while Instant::now() < until {
        for pod in node.pods() {
            let tcp = Tcp::to(service.address()).connections(CONNECTIONS);
            made += tcp.run(pod.netns())?.connections;
        }
        say::check()?;
    }
    let took = busy.since.elapsed().as_secs_f64();
    figures.push(figure(row::PODS_BUSY, busy.percent()?));
    server.settle()?;
    std::thread::sleep(SETTLE);
    let mut scrapes = Vec::new();
    for _ in 0..9 {
        let asked = Instant::now();
        agent.scrape()?;
        scrapes.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    let scrape = agent.scrape()?;
    let labels = [("class", "pod_to_service")];
    let counted = scrape.sum("aksnet_flow_connections_total", &labels);
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let expected = made as f64;
    ensure!(
        counted.to_bits() == expected.to_bits(),
        "{made} connections were made, and {counted} were counted"
    );
    figures.push(figure(row::PODS_CONNECTIONS, expected / took));
    figures.push(Figure::range(
        Table::Pods,
        row::PODS_SCRAPE,
        COLUMN,
        scrapes,
    ));
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    figures.push(figure(row::PODS_SERIES, scrape.len() as f64));
    let mib = process::resident(agent.pid())?;
    figures.push(figure(row::PODS_RESIDENT, mib));
    let stopped = Instant::now();
    agent.stop()?;
    figures.push(figure(row::PODS_ENDED, stopped.elapsed().as_secs_f64()));
    Ok(figures)
}

const COLUMN: &str = "250 pods";

fn figure(row: &str, value: f64) -> Figure {
    Figure::range(Table::Pods, row, COLUMN, vec![value])
}

/// The processor time of the agent since a moment.
struct Busy {
    pid: u32,
    since: Instant,
    before: Duration,
}

impl Busy {
    fn begin(agent: &Agent) -> Result<Self> {
        let pid = agent.pid();
        Ok(Self {
            pid,
            since: Instant::now(),
            before: process::processor_time(pid)?,
        })
    }

    /// Of one core.
    fn percent(&self) -> Result<f64> {
        let spent = process::processor_time(self.pid)?.saturating_sub(self.before);
        Ok(spent.as_secs_f64() * 100.0 / self.since.elapsed().as_secs_f64())
    }
}

//! Whether the agent shows what a cluster's number of services costs: in iptables mode each new connection walks a
//! list of them, in nftables mode it looks one up. The service that is dialled stands last in the list.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use xtask::testbed::{
    Proxy, Service, Testbed,
    traffic::{Tcp, TcpServer},
};

use crate::{
    life::{Agent, Home, plan_flags, turn},
    scrape::Scrape,
};

/// Services besides the one that is dialled.
const SERVICES: [u16; 3] = [10, 1_000, 10_000];

/// Connections for each of these.
const CONNECTIONS: u32 = 400;

const PATH: &str = "aksnet_nat_path_seconds";
const LABELS: [(&str, &str); 3] = [
    ("class", "pod_to_service"),
    ("nat", "dnat"),
    ("stage", "first"),
];

/// The median time of the first packets that came between two scrapes, interpolated within its bucket.
fn median(before: &Scrape, after: &Scrape) -> Result<f64> {
    let name = format!("{PATH}_bucket");
    let mut bounds: Vec<(f64, String)> = after
        .samples_of(&name)
        .iter()
        .filter_map(|s| s.labels.get("le"))
        .filter_map(|le| Some((le.parse().ok()?, le.clone())))
        .collect();
    bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    bounds.dedup();
    let up_to = |le: &str| {
        let labels: Vec<_> = LABELS.into_iter().chain([("le", le)]).collect();
        after.sum(&name, &labels) - before.sum(&name, &labels)
    };
    let counts: Vec<(f64, f64)> = bounds.iter().map(|(b, le)| (*b, up_to(le))).collect();
    let half = up_to("+Inf") / 2.0;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= half && bound.is_finite() {
            return Ok(low + (bound - low) * (half - below) / (count - below));
        }
        (low, below) = (bound, count);
    }
    anyhow::bail!("half of the times are beyond the last bucket")
}

/// The median time of a first packet with each number of services, in seconds.
fn first_packets(proxy: Proxy) -> Result<[f64; 3]> {
    let bed = Testbed::azure_overlay().proxy(proxy).build()?;
    let server = TcpServer::echo(bed.pod(1).netns(), (bed.pod(1).ip(), 8080))?;
    let service =
        bed.add_service(Service::cluster_ip("shop", "last", 80).endpoints([server.address()]))?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let mut medians = [0.0; 3];
    for (services, median_of) in SERVICES.into_iter().zip(&mut medians) {
        bed.filler_services(services)?;
        let dial = |connections| {
            let tcp = Tcp::to(service.address()).connections(connections);
            tcp.run(bed.pod(0).netns())
        };
        dial(20)?;
        let before = agent.settled()?;
        dial(CONNECTIONS)?;
        let after = agent.settled()?;
        let count = format!("{PATH}_count");
        let timed = after.sum(&count, &LABELS) - before.sum(&count, &LABELS);
        ensure!(
            timed >= f64::from(CONNECTIONS / 2),
            "{timed} first packets were timed"
        );
        *median_of = median(&before, &after)?;
        let sum = format!("{PATH}_sum");
        let mean = (after.sum(&sum, &LABELS) - before.sum(&sum, &LABELS)) / timed;
        println!(
            "{proxy:?}, {services} services: first packet median {:.1} µs, mean {:.1} µs of {timed}",
            *median_of * 1e6,
            mean * 1e6
        );
    }
    agent.stop(Signal::SIGTERM)?;
    Ok(medians)
}

#[test]
fn first_packets_cost_more_with_more_services_in_iptables_mode() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let [few, _, many] = first_packets(Proxy::Iptables)?;
    ensure!(
        many >= 3.0 * few,
        "with 10,000 services {many} s, with 10 {few} s"
    );
    Ok(())
}

#[test]
fn first_packets_cost_the_same_with_more_services_in_nftables_mode() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let [few, _, many] = first_packets(Proxy::Nftables)?;
    ensure!(
        many < 2.0 * few,
        "with 10,000 services {many} s, with 10 {few} s"
    );
    Ok(())
}

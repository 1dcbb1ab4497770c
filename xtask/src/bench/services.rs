//! What a cluster's number of *services* costs the packet that opens a connection, in kube-proxy's two modes, as the
//! real agent shows it in its own histogram. The service that is dialled stands last in iptables mode's list.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::figure::{Figure, Table};
use super::row;
use crate::demo::agent::Agent;
use crate::demo::scrape::{PATH, Scrape};
use crate::testbed::traffic::{Tcp, TcpServer};
use crate::testbed::{Proxy, Service, Testbed};

/// Services besides the one that is dialled.
const SERVICES: [u16; 3] = [10, 1_000, 10_000];

/// Connections with each number of services.
const CONNECTIONS: u32 = 1_000;

/// Long enough for a sweep and a scrape, and for the connections' last packets.
const SETTLE: Duration = Duration::from_secs(2);

const LISTEN: &str = "127.0.0.1:9435";

/// Median and quartiles of the first packets' times, in microseconds.
///
/// # Errors
/// When the emulated node or the agent fails.
pub fn figures(agent: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (proxy, row) in [
        (Proxy::Iptables, row::FIRST_IPTABLES),
        (Proxy::Nftables, row::FIRST_NFTABLES),
    ] {
        let bed = Testbed::azure_overlay().proxy(proxy).build()?;
        let server = TcpServer::echo(bed.pod(1).netns(), (bed.pod(1).ip(), 8080))?;
        let service = Service::cluster_ip("shop", "last", 80).endpoints([server.address()]);
        let service = bed.add_service(service)?;
        let flags = [
            "--service-cidr".to_owned(),
            bed.plan().services.v4.to_string(),
        ];
        let node = bed.node();
        let agent = Agent::start(Some(node.netns()), agent, node.root(), LISTEN, &flags)?;
        for services in SERVICES {
            bed.filler_services(services)?;
            let dial = |connections| {
                let tcp = Tcp::to(service.address()).connections(connections);
                tcp.run(bed.pod(0).netns())
            };
            let looked = |connections| -> Result<Scrape> {
                dial(connections)?;
                std::thread::sleep(SETTLE);
                agent.scrape()
            };
            let (before, after) = (looked(CONNECTIONS / 10)?, looked(CONNECTIONS)?);
            let labels = [
                ("class", "pod_to_service"),
                ("nat", "dnat"),
                ("stage", "first"),
            ];
            let of = |scrape: &Scrape| scrape.histogram(PATH, &labels);
            let times = of(&after).since(&of(&before));
            let micros = |share| times.quantile(share).map(|seconds| seconds * 1e6);
            let [Some(low), Some(median), Some(high)] = [0.25, 0.5, 0.75].map(micros) else {
                anyhow::bail!("the agent timed no first packet");
            };
            ensure!(
                times.count() >= f64::from(CONNECTIONS / 2),
                "the agent timed {} first packets",
                times.count()
            );
            figures.push(Figure {
                table: Table::Services,
                row: row.to_owned(),
                column: row::services(services),
                median,
                low,
                high,
            });
        }
        agent.stop()?;
    }
    Ok(figures)
}

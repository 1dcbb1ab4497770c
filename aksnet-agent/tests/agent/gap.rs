//! Does anything enforce my policies: connections that they deny and the node forwards, on nodes where nothing, or
//! nothing any more, enforces them.

use std::{thread::sleep, time::Duration};

use anyhow::Result;
use xtask::testbed::{
    Engine, Testbed,
    traffic::{Connect, Tcp, TcpServer, connect},
};

use crate::{
    cluster,
    denied::{enforced, web_policy},
    life::{Agent, Home, turn},
    scrape::Scrape,
};

const SOON: Duration = Duration::from_millis(300);
/// Short enough for a test, long enough for both sides of it to be seen.
const GRACE: Duration = Duration::from_secs(2);

/// Packets and connections that policies deny, and that were forwarded.
fn gap(scrape: &Scrape, labels: &[(&str, &str)]) -> (u64, u64) {
    (
        scrape.count("aksnet_policy_gap_packets_total", labels),
        scrape.count("aksnet_policy_gap_connections_total", labels),
    )
}

const DENIED: [(&str, &str); 6] = [
    ("direction", "ingress"),
    ("policy", "shop/web-policy"),
    ("src_namespace", "shop"),
    ("src_workload", "batch"),
    ("dst_namespace", "shop"),
    ("dst_workload", "web"),
];

fn start<'a>(bed: &'a Testbed, home: &Home) -> Result<Agent<'a>> {
    let mut flags = cluster::flags(bed, home)?;
    flags.push(format!("--policy-grace={}s", GRACE.as_secs()));
    Agent::start(bed, home, flags)
}

#[test]
fn without_an_engine_every_packet_that_a_policy_denies_is_a_gap() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().pods(4).build()?;
    let (frontend, web, batch) = (bed.pod(0), bed.pod(1), bed.pod(3));
    let api = cluster::start(&bed)?;
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let home = Home::new()?;
    let agent = start(&bed, &home)?;
    let dial = |from: &xtask::testbed::Pod, connections| -> Result<()> {
        Tcp::to(server.address())
            .connections(connections)
            .run(from.netns())?;
        Ok(())
    };
    // No policy yet, and then one that has not settled.
    dial(&batch, 2)?;
    api.apply(web_policy());
    sleep(GRACE / 4);
    dial(&batch, 3)?;
    assert_eq!(gap(&agent.settled()?, &[]), (0, 0));
    sleep(GRACE);
    let before = agent.settled()?;
    dial(&batch, 5)?;
    dial(&frontend, 7)?;
    let scrape = agent.settled()?;
    let sent = |scrape: &Scrape| {
        let labels = [("src_workload", "batch"), ("dst_workload", "web")];
        scrape.count("aksnet_flow_packets_total", &labels)
    };
    assert_eq!(gap(&scrape, &DENIED), (sent(&scrape) - sent(&before), 5));
    assert_eq!(gap(&scrape, &[]), gap(&scrape, &DENIED), "and no other");
    assert_eq!(scrape.count("aksnet_policy_denied_packets_total", &[]), 0);
    // The policy goes, and with it the gap.
    let counted = gap(&scrape, &[]);
    api.delete("NetworkPolicy", "shop", "web-policy");
    sleep(GRACE / 2);
    dial(&batch, 2)?;
    assert_eq!(gap(&agent.settled()?, &[]), counted);
    Ok(())
}

#[test]
fn an_engine_that_has_stopped_enforcing_leaves_a_gap() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let (bed, _api) = enforced(Engine::AzureNpm)?;
    let (web, batch) = (bed.pod(1), bed.pod(3));
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let home = Home::new()?;
    let agent = start(&bed, &home)?;
    sleep(GRACE + Duration::from_millis(500));
    assert_eq!(
        connect(batch.netns(), server.address(), SOON)?,
        Connect::TimedOut
    );
    let enforced = agent.settled()?;
    assert_eq!(gap(&enforced, &[]), (0, 0));
    let denied = |scrape: &Scrape| {
        scrape.count(
            "aksnet_policy_denied_connections_total",
            &[("policy", "shop/web-policy")],
        )
    };
    assert_eq!(denied(&enforced), 1);

    bed.stop_enforcing()?;
    assert_eq!(
        connect(batch.netns(), server.address(), SOON)?,
        Connect::Connected
    );
    let scrape = agent.settled()?;
    let (packets, connections) = gap(&scrape, &DENIED);
    assert!(packets > 0);
    assert_eq!(connections, 1);
    assert_eq!(gap(&scrape, &[]), (packets, connections), "and no other");
    assert_eq!(denied(&scrape), 1);
    Ok(())
}

//! Ports that run out: five connections to one destination through two ports.

use std::{net::TcpStream, time::Duration};

use aksnet_agent::{
    config::ConntrackMode,
    conntrack::{FollowConfig, Limits},
};
use aksnet_common::packet::TCP;
use anyhow::{Context as _, Result, ensure};
use xtask::testbed::{Family, Testbed, counters, traffic::TcpServer};

use crate::follow::{config, equal, follow, turn, wait};

#[test]
fn two_ports_for_five_connections_are_saturated_and_the_clashes_counted() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let netns = bed.node().netns();
    bed.node().restore(
        Family::V4,
        "*nat\n-I POSTROUTING -p tcp --dport 7777 -j MASQUERADE --to-ports 40000-40001\nCOMMIT\n",
    )?;
    let server = TcpServer::echo(bed.outside(), (bed.outside_ip(), 7777))?;
    let follower = follow(
        netns,
        FollowConfig {
            limits: Limits {
                ports: Some(2),
                azure: Some(8),
            },
            ..config(ConntrackMode::Events)
        },
    )?;
    wait("the first reading", || {
        Ok(follower.snapshot().counters.insert_failed.is_some())
    })?;
    let before = follower.snapshot().counters;
    ensure!(before.insert_failed == Some(0), "{before:?}");

    let streams: Vec<TcpStream> = bed.pod(0).netns().run(|| {
        let to = server.address();
        Ok((0..5)
            .filter_map(|_| TcpStream::connect_timeout(&to, Duration::from_millis(300)).ok())
            .collect())
    })?;
    ensure!(streams.len() == 2, "{} connected", streams.len());
    let rows = equal(netns, &follower, "with two connections")?;
    ensure!(rows.len() == 2, "{rows:?}");

    let truth = counters::conntrack_statistics(netns)?;
    ensure!(
        truth.insert_failed == 3,
        "one for each that failed: {truth:?}"
    );
    wait("the statistics are read", || {
        let counters = follower.snapshot().counters;
        Ok(
            (counters.insert_failed, counters.drop)
                == (Some(truth.insert_failed), Some(truth.drop)),
        )
    })?;
    let snapshot = follower.snapshot();
    let ports = snapshot.ports.context("the table is known")?;
    let tcp = ports
        .iter()
        .find(|u| (u.protocol, u.family) == (TCP, 4))
        .context("TCP")?;
    ensure!((tcp.in_use, tcp.limit) == (2, 2), "{tcp:?}");
    ensure!((tcp.saturation - 1.0).abs() < f64::EPSILON, "{tcp:?}");
    let azure = snapshot.azure.context("the table is known")?;
    ensure!(azure[0].in_use == 2, "{azure:?}");
    drop(streams);
    Ok(())
}

//! A table that is really full.

use std::{net::UdpSocket, time::Duration};

use aksnet_agent::config::ConntrackMode;
use anyhow::{Context as _, Result, ensure};
use xtask::testbed::{Testbed, counters, fill::fill, traffic::UdpServer};

use crate::follow::{config, follow, turn, wait};

/// More entries than this would take too much memory: about 100 MB.
const MOST: u64 = 300_000;

#[test]
fn a_full_table_drops_and_evicts_and_both_are_counted() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let netns = bed.node().netns();
    let follower = follow(netns, config(ConntrackMode::Off))?;
    wait("the first reading", || {
        Ok(follower.snapshot().size.entries.is_some())
    })?;
    let limit = follower.snapshot().size.limit.context("a limit")?;
    let sysctl = netns.read("/proc/sys/net/netfilter/nf_conntrack_max")?;
    ensure!(sysctl.trim() == limit.to_string(), "{sysctl} and {limit}");
    if limit > MOST {
        println!("skipped: nf_conntrack_max is {limit}, which takes too much memory to fill");
        return Ok(());
    }
    let server = UdpServer::echo(bed.outside(), (bed.outside_ip(), 53))?;
    let answered = || {
        bed.pod(0).netns().run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            socket.send_to(b"x", server.address())?;
            Ok(socket.recv(&mut [0]).is_ok())
        })
    };
    let read = |what: &str| -> Result<_> {
        let truth = counters::conntrack_statistics(netns)?;
        wait(what, || {
            let now = follower.snapshot();
            Ok((now.counters.drop, now.counters.early_drop)
                == (Some(truth.drop), Some(truth.early_drop))
                && now.size.entries == Some(truth.entries))
        })?;
        Ok(truth)
    };

    fill(netns, u32::try_from(limit)?, true)?;
    ensure!(!answered()?, "there is no room for another connection");
    let full = read("the full table is seen")?;
    ensure!(full.entries == limit, "{full:?} of {limit}");
    ensure!(full.drop > 0 && full.early_drop == 0, "{full:?}");

    // Entries that may be evicted make room.
    counters::flush_conntrack(netns)?;
    fill(netns, u32::try_from(limit)?, false)?;
    ensure!(answered()?, "an entry was evicted for it");
    let evicted = read("the eviction is seen")?;
    ensure!(evicted.early_drop > 0, "{evicted:?}");
    counters::flush_conntrack(netns)?;
    Ok(())
}

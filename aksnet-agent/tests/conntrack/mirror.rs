//! The mirror is the kernel's table: by events, by dumps, after losses.

use std::{net::UdpSocket, time::Duration};

use aksnet_agent::{
    config::ConntrackMode,
    conntrack::{FollowConfig, Limits, follow::TableState},
};
use aksnet_common::flow::Addr;
use anyhow::{Context as _, Result, ensure};
use xtask::testbed::{
    Family, Hairpin, Service, Testbed, counters,
    traffic::{Ping, Tcp, TcpServer, Udp, UdpServer},
};

use crate::follow::{config, equal, follow, turn, wait};

/// Traffic of every kind of translation, of one family.
fn traffic(bed: &Testbed, family: Family) -> Result<()> {
    let (client, web) = (bed.pod(0), bed.pod(1));
    let outside = bed.plan().outside.of(family).context("outside")?;
    let of_family = |s: Service| if family == Family::V6 { s.v6() } else { s };
    let tag = format!("{family:?}").to_lowercase();
    let near = TcpServer::echo(web.netns(), (web.ip_of(family), 8080))?;
    let dns = UdpServer::echo(web.netns(), (web.ip_of(family), 53))?;
    let out = TcpServer::echo(bed.outside(), (outside, 443))?;
    let out_udp = UdpServer::echo(bed.outside(), (outside, 53))?;
    let own = TcpServer::echo(client.netns(), (client.ip_of(family), 8080))?;
    let service = |name: &str, port, to| {
        let service = Service::cluster_ip("shop", &format!("{name}-{tag}"), port);
        bed.add_service(of_family(service).endpoints([to]))
    };
    let near_service = service("near", 80, near.address())?;
    let own_service = service("own", 80, own.address())?;
    let beyond = service("beyond", 443, out.address())?;
    let dns_service = bed.add_service(
        of_family(Service::cluster_ip("shop", &format!("dns-{tag}"), 53))
            .udp()
            .endpoints([dns.address()]),
    )?;
    for to in [
        near.address(),
        out.address(),
        near_service.address(),
        own_service.address(),
        beyond.address(),
    ] {
        Tcp::to(to).connections(3).bytes(100).run(client.netns())?;
    }
    for to in [out_udp.address(), dns_service.address()] {
        Udp::to(to).datagrams(2).run(client.netns())?;
    }
    Ping::to(outside).count(1).run(client.netns())?;
    Ok(())
}

#[test]
fn the_mirror_is_the_kernels_table_by_events_and_by_dumps() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet()
        .hairpin(Hairpin::Veth)
        .dual_stack(true)
        .pods(2)
        .build()?;
    let netns = bed.node().netns();
    let by_events = follow(netns, config(ConntrackMode::Events))?;
    let by_dumps = follow(netns, config(ConntrackMode::Dump))?;
    wait("both have read the table", || {
        Ok(by_events.status().dumps > 0 && by_dumps.status().dumps > 0)
    })?;
    for family in bed.families() {
        traffic(&bed, family)?;
    }
    bed.settle()?;
    let rows = equal(netns, &by_events, "by events")?;
    ensure!(by_events.status().dumps == 1, "events sufficed");
    ensure!(by_events.status().events > 0, "there were events");
    equal(netns, &by_dumps, "by dumps")?;
    let late = follow(netns, config(ConntrackMode::Events))?;
    equal(netns, &late, "by one that came later")?;
    let protocols: Vec<&str> = ["tcp", "udp", "icmp", "icmpv6"].into();
    for protocol in &protocols {
        ensure!(
            rows.iter().any(|(p, _)| p == protocol),
            "no {protocol} in {rows:#?}"
        );
    }
    // Three connections to each of service, outside, and both, in two families, and what is not TCP.
    ensure!(rows.len() >= 2 * (4 * 3 + 2), "{} rows", rows.len());

    // The clients of source NAT, held against the kernel's list.
    let client = bed.pod(0).ip();
    let truth = rows
        .iter()
        .filter(|(_, [src, _, after, _])| src != after && src.ip() == client)
        .count() as u64;
    let counted = by_events.with_table(|t| {
        t.snat_connections()
            .find(|(a, _)| *a == Addr::from(client))
            .map(|(_, n)| n)
    });
    // Identifiers of ICMP are not in the rows, but its addresses differ.
    ensure!(counted == Some(truth), "{counted:?} of {truth}");

    counters::flush_conntrack(netns)?;
    for follower in [&by_events, &by_dumps] {
        let rows = equal(netns, follower, "after a flush")?;
        ensure!(rows.is_empty(), "{rows:?}");
    }
    Ok(())
}

#[test]
fn an_end_that_the_kernel_does_not_tell_is_seen_by_the_next_dump() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let netns = bed.node().netns();
    let out = UdpServer::echo(bed.outside(), (bed.outside_ip(), 53))?;
    // Nobody listens yet: with nf_conntrack_events=2 the kernel reports no end of this entry.
    netns.sysctl("net.netfilter.nf_conntrack_events", "0")?;
    Udp::to(out.address())
        .datagrams(1)
        .run(bed.pod(0).netns())?;
    netns.sysctl("net.netfilter.nf_conntrack_events", "2")?;
    let follower = follow(
        netns,
        FollowConfig {
            reconcile: Duration::from_secs(1),
            ..config(ConntrackMode::Events)
        },
    )?;
    ensure!(equal(netns, &follower, "at first")?.len() == 1);
    counters::flush_conntrack(netns)?;
    ensure!(equal(netns, &follower, "without events")?.is_empty());
    ensure!(follower.status().events == 0, "no event told of it");
    ensure!(follower.status().resyncs["periodic"] > 0);
    Ok(())
}

#[test]
fn after_lost_events_the_mirror_is_read_anew() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let netns = bed.node().netns();
    let follower = follow(
        netns,
        FollowConfig {
            receive_buffer: 1,
            ..config(ConntrackMode::Events)
        },
    )?;
    wait("the first dump", || Ok(follower.status().dumps > 0))?;
    let to = (bed.outside_ip(), 9);
    bed.pod(0).netns().run(|| {
        for _ in 0..2000 {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", to)?;
        }
        Ok(())
    })?;
    let rows = equal(netns, &follower, "after a burst")?;
    ensure!(rows.len() > 1000, "{} connections", rows.len());
    let status = follower.status();
    ensure!(status.resyncs["overflow"] >= 1, "{status:?}");
    wait("known again", || {
        Ok(follower.status().table == TableState::Known)
    })?;
    Ok(())
}

#[test]
fn beyond_the_limit_it_says_so() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let netns = bed.node().netns();
    let follower = follow(
        netns,
        FollowConfig {
            limit: 10,
            limits: Limits {
                ports: None,
                azure: Some(100),
            },
            ..config(ConntrackMode::Events)
        },
    )?;
    wait("the first dump", || Ok(follower.status().dumps > 0))?;
    let to = (bed.outside_ip(), 9);
    bed.pod(0).netns().run(|| {
        for _ in 0..25 {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", to)?;
        }
        Ok(())
    })?;
    wait("all are counted", || {
        let status = follower.status();
        Ok((status.mirrored, status.unmirrored) == (10, 15))
    })?;
    let snapshot = follower.snapshot();
    ensure!(snapshot.unmirrored == 15, "{snapshot:?}");
    let azure = snapshot.azure.context("the table is known")?;
    ensure!(
        azure[1].in_use == 10,
        "{azure:?}: UDP to one public address"
    );
    Ok(())
}

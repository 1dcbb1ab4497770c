//! Interfaces, flows and agents come and go during traffic, and the counts stay exact.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use aksnet_agent::{
    bpf::{LoadOptions, datapath::Datapath as _},
    collect::source::Source as _,
    config::Attach,
};
use aksnet_common::{cell, flow::SpillStats};
use anyhow::Result;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use xtask::testbed::{
    Testbed,
    traffic::{ShortConnections, Tcp, TcpServer, Udp, UdpServer},
};

use crate::watch::{ENTERED, Links, Watch, turn};

/// Packets and IP bytes on all watched interfaces, with what spilled and overflowed; retired cells included.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sum {
    skbs: u64,
    bytes: u64,
    syns: u64,
}

impl Sum {
    fn add(&mut self, skbs: u64, bytes: u64, syns: u64) {
        self.skbs += skbs;
        self.bytes += bytes;
        self.syns += syns;
    }
}

/// Closes every live cell, waits, folds and frees it: all flows are idle to this agent.
fn retire_all(watch: &Watch, into: &mut Sum) {
    let closed: Vec<u32> = (0..watch.source.cells())
        .filter(|&c| watch.source.state(c) & cell::PHASE == cell::LIVE && watch.source.close(c))
        .collect();
    std::thread::sleep(Duration::from_millis(cell::QUIET_MS));
    for c in closed {
        let hot = watch.source.hot(c);
        into.add(hot.skbs, hot.bytes, u64::from(hot.connections));
        watch.source.free(c);
    }
}

fn fold_spill(stats: &SpillStats, into: &mut Sum) {
    into.add(stats.skbs, stats.bytes, stats.connections);
}

/// 100,000 short connections with the table of the default size, and flows retired under way as fast as they can be.
#[test]
fn a_hundred_thousand_short_connections_are_counted_to_the_packet() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let servers = (0..4)
        .map(|n| TcpServer::echo(web.netns(), (web.ip(), 8080 + n)))
        .collect::<Result<Vec<_>>>()?;
    Tcp::to(servers[0].address()).run(client.netns())?;
    bed.settle()?;
    bed.pin_neighbours()?;
    let mut watch = Watch::start(
        &bed,
        &LoadOptions {
            flow_cells: 16_384,
            ..LoadOptions::default()
        },
    )?;
    let before = Links::of(&bed)?;
    let done = AtomicBool::new(false);
    let mut sum = Sum::default();
    let report = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let report = ShortConnections::to(servers.iter().map(TcpServer::address), 100_000)
                .run(client.netns());
            done.store(true, Ordering::Relaxed);
            report
        });
        while !done.load(Ordering::Relaxed) {
            retire_all(&watch, &mut sum);
            for (_, stats) in watch.source.take_spill().expect("the map can be read") {
                fold_spill(&stats, &mut sum);
            }
        }
        traffic.join().expect("the traffic does not panic")
    })?;
    for server in &servers {
        server.settle()?;
    }
    bed.settle()?;
    retire_all(&watch, &mut sum);
    for (_, stats) in watch.source.take_spill()? {
        fold_spill(&stats, &mut sum);
    }
    for stats in watch.totals().overflow {
        fold_spill(&stats, &mut sum);
    }
    assert_eq!(report.connections, 100_000);
    let after = Links::of(&bed)?;
    let mut truth = Sum {
        syns: 100_000,
        ..Sum::default()
    };
    for name in [client.veth(), web.veth(), "eth0"] {
        let packets = after.named(name).rx_packets - before.named(name).rx_packets;
        truth.skbs += packets;
        truth.bytes += after.named(name).rx_bytes - before.named(name).rx_bytes - 14 * packets;
    }
    assert_eq!(
        sum,
        truth,
        "{:?}, events {:?}",
        report.elapsed,
        watch.totals().events
    );
    assert!(watch.flows().is_empty());
    Ok(())
}

#[test]
fn pods_come_and_go_during_traffic_without_a_lost_count() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in [
        Testbed::kubenet(),
        Testbed::kind(),
        Testbed::azure_overlay(),
    ] {
        let bed = builder.build()?;
        let (client, web) = (bed.pod(0), bed.pod(1));
        let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        Tcp::to(server.address()).run(client.netns())?;
        bed.settle()?;
        bed.pin_neighbours()?;
        let mut watch = Watch::start(&bed, &LoadOptions::default())?;
        let before = Links::of(&bed)?;
        std::thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                Tcp::to(server.address())
                    .connections(1000)
                    .parallel(2)
                    .run(client.netns())
            });
            for round in 0..5 {
                let pod = bed.add_pod(&format!("cron-{round}"))?;
                let index = bed.node().link(pod.veth())?.index;
                watch.attach_pod(&bed, &pod)?;
                let udp = UdpServer::echo(pod.netns(), (pod.ip(), 53))?;
                let (pod_ip, veth) = (pod.ip(), pod.veth().to_owned());
                let node = bed.node().netns();
                Udp::to(udp.address()).datagrams(5).run(node)?;
                let counted: u64 = watch
                    .flows()
                    .iter()
                    .filter(|(h, _)| h.key.ifindex == index && h.key.src == pod_ip.into())
                    .map(|(h, _)| h.skbs)
                    .sum();
                assert!(counted >= 5, "the new pod's answers are counted: {counted}");
                drop(udp);
                drop(pod);
                bed.delete_pod(&format!("cron-{round}"))?;
                assert!(bed.node().link(&veth).is_err());
                watch.attacher.detach(index);
            }
            let report = traffic.join().expect("the traffic does not panic")?;
            assert_eq!(report.connections, 1000);
            anyhow::Ok(())
        })?;
        server.settle()?;
        bed.settle()?;
        let after = Links::of(&bed)?;
        for name in [client.veth(), web.veth()] {
            let (was, is) = (before.named(name), after.named(name));
            let skipped: u64 = watch.totals().skipped.iter().map(|s| s.skbs).sum();
            let counted = watch.counted(is.index, ENTERED)?.0;
            let truth = is.rx_packets - was.rx_packets;
            assert!(
                counted <= truth && counted + skipped >= truth,
                "{name}: {counted} of {truth}, {skipped} skipped"
            );
        }
    }
    Ok(())
}

/// An agent that is killed leaves its clsact filters behind, as these links do that nobody drops.
#[test]
fn filters_that_a_killed_agent_left_are_replaced_and_never_stacked() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let server = UdpServer::echo(web.netns(), (web.ip(), 53))?;
    let clsact = || LoadOptions {
        attach: Attach::Clsact,
        ..LoadOptions::default()
    };
    for _ in 0..3 {
        let killed = Watch::start(&bed, &clsact())?;
        std::mem::forget(killed.attacher);
    }
    let watch = Watch::start(&bed, &clsact())?;
    assert_eq!(watch.attacher.mode(), Attach::Clsact);
    Udp::to(server.address())
        .datagrams(50)
        .run(client.netns())?;
    bed.settle()?;
    let flows = watch.flows();
    let asked: Vec<u64> = flows
        .iter()
        .filter(|(h, _)| h.key.dst == web.ip().into() && h.key.protocol == 17)
        .map(|(h, _)| h.skbs)
        .collect();
    assert_eq!(asked, [50]);
    for veth in [client.veth(), web.veth()] {
        for side in ["ingress", "egress"] {
            let shown = bed
                .node()
                .netns()
                .output("tc", ["filter", "show", "dev", veth, side])?;
            assert_eq!(shown.matches("direct-action").count(), 1, "{shown}");
        }
    }
    // Filters go by interface index, so they are removed where the interfaces are.
    bed.node().netns().run(move || {
        drop(watch);
        Ok(())
    })?;
    let shown = bed
        .node()
        .netns()
        .output("tc", ["filter", "show", "dev", client.veth(), "ingress"])?;
    assert_eq!(shown.trim(), "", "an agent that ends leaves none");
    Ok(())
}

#[test]
fn tcx_programs_are_first_in_order_and_end_with_their_agent() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let veth = bed.pod(0).veth().to_owned();
    let order = |at| -> Result<Vec<u32>> {
        bed.node().netns().run(|| {
            let (_, programs) = SchedClassifier::query_tcx(&veth, at)?;
            Ok(programs.iter().map(ProgramInfo::id).collect())
        })
    };
    let earlier = Watch::start(&bed, &LoadOptions::default())?;
    if earlier.attacher.mode() != Attach::Tcx {
        println!("skipped: this kernel has no tcx");
        return Ok(());
    }
    for at in [TcAttachType::Ingress, TcAttachType::Egress] {
        let alone = order(at)?;
        assert_eq!(alone.len(), 1);
        let newer = Watch::start(&bed, &LoadOptions::default())?;
        let both = order(at)?;
        assert_eq!(both.len(), 2);
        assert_eq!(both[1..], alone, "the one that comes later goes first");
        drop(newer);
        assert_eq!(order(at)?, alone);
    }
    drop(earlier);
    assert!(order(TcAttachType::Ingress)?.is_empty());
    Ok(())
}

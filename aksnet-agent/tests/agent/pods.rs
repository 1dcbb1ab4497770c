//! Pods come and go while the agent runs and traffic flows: new ones are watched at once, old ones forgotten,
//! and nothing is counted wrong or complained about.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    time::Instant,
};

use anyhow::Result;
use nix::sys::signal::Signal;
use xtask::testbed::{
    Builder, Hairpin, Testbed,
    traffic::{Tcp, TcpServer},
};

use crate::{
    life::{Agent, Home, eventually, plan_flags, turn},
    quiet::Quiet,
};

/// Waits until the pod behind this interface is watched, and says how long that took (docs/overhead.md).
fn watched_soon(agent: &Agent, veth: &str) -> Result<()> {
    let made = Instant::now();
    eventually("a new pod is watched", || {
        Ok(agent.attached()?.iter().any(|name| name == veth))
    })?;
    println!("{veth} is watched after {:?}", made.elapsed());
    Ok(())
}

fn come_and_go(builder: Builder) -> Result<()> {
    let quiet = Quiet::on(builder)?;
    let (bed, server, client) = (&quiet.bed, &quiet.server, quiet.bed.pod(0));
    let home = Home::new()?;
    let agent = Agent::start(bed, &home, plan_flags(bed))?;
    let (done, made) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !done.load(SeqCst) {
                let report = Tcp::to(server.address())
                    .connections(20)
                    .run(client.netns())?;
                made.fetch_add(report.connections, SeqCst);
            }
            anyhow::Ok(())
        });
        let churn = || {
            for round in 0..5 {
                let name = format!("cron-{round}");
                let pod = bed.add_pod(&name)?;
                let veth = pod.veth().to_owned();
                watched_soon(&agent, &veth)?;
                let report = Tcp::to(server.address()).connections(4).run(pod.netns())?;
                made.fetch_add(report.connections, SeqCst);
                drop(pod);
                bed.delete_pod(&name)?;
                eventually("a deleted pod vanishes", || {
                    Ok(!agent.status()?["interfaces"].to_string().contains(&veth))
                })?;
            }
            anyhow::Ok(())
        };
        let churned = churn();
        done.store(true, SeqCst);
        traffic.join().expect("the traffic does not panic")?;
        churned
    })?;
    server.settle()?;
    let scrape = agent.settled()?;
    assert_eq!(
        scrape.count(
            "aksnet_flow_connections_total",
            &[("class", "pod_to_pod"), ("protocol", "tcp")]
        ),
        made.load(SeqCst)
    );
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn new_pods_are_watched_at_once_and_deleted_ones_vanish() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in [
        Testbed::kubenet().hairpin(Hairpin::Veth),
        Testbed::kind(),
        Testbed::azure_overlay(),
    ] {
        come_and_go(builder)?;
    }
    Ok(())
}

#[test]
fn a_node_with_as_many_pods_as_aks_allows_is_watched_counted_and_left() -> Result<()> {
    const PODS: usize = 250;
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().pods(PODS).build()?;
    let server = TcpServer::echo(bed.remote_pod(0).netns(), (bed.remote_pod(0).ip(), 8080))?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let began = Instant::now();
    eventually("all pods are watched", || {
        // And the uplink.
        Ok(agent.attached()?.len() > PODS)
    })?;
    println!("{PODS} pods are watched after {:?}", began.elapsed());
    let mut made = 0;
    for pod in bed.node().pods() {
        made += Tcp::to(server.address())
            .connections(4)
            .run(pod.netns())?
            .connections;
    }
    server.settle()?;
    let scrape = agent.settled()?;
    let labels = [("class", "pod_to_pod"), ("protocol", "tcp")];
    let counted = scrape.count("aksnet_flow_connections_total", &labels);
    assert_eq!(counted, made);
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    // Two programs for each, and the kernel waits for each: it ends by itself all the same, and nothing is left.
    let sent = Instant::now();
    agent.stop(Signal::SIGTERM)?;
    println!("it ended after {:?}", sent.elapsed());
    Ok(())
}

#[test]
fn a_rollout_of_sixty_pods_up_and_down_leaves_every_count_right() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let quiet = Quiet::build()?;
    let (bed, server, client) = (&quiet.bed, &quiet.server, quiet.bed.pod(0));
    let home = Home::new()?;
    let agent = Agent::start(bed, &home, plan_flags(bed))?;
    let before: BTreeSet<String> = agent.attached()?.into_iter().collect();

    let (done, made) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !done.load(SeqCst) {
                let report = Tcp::to(server.address())
                    .connections(10)
                    .run(client.netns())?;
                made.fetch_add(report.connections, SeqCst);
            }
            anyhow::Ok(())
        });
        let names: Vec<String> = (0..60).map(|n| format!("rollout-{n}")).collect();
        let roll = || {
            for name in &names {
                bed.add_pod(name)?;
            }
            // Each is two attachments, and each of these waits for RCU in the kernel: how long sixty take depends on
            // the machine, so that is measured in docs/overhead.md and not limited here.
            eventually("all sixty are watched", || {
                Ok(agent.attached()?.len() == before.len() + names.len())
            })?;
            // Each of them talks, so each of them has to be counted.
            for name in &names {
                let pod = bed.node().pod(name).expect("it was added");
                made.fetch_add(
                    Tcp::to(server.address()).run(pod.netns())?.connections,
                    SeqCst,
                );
            }
            for name in &names {
                bed.delete_pod(name)?;
            }
            eventually("all sixty are forgotten", || {
                Ok(agent.attached()?.into_iter().collect::<BTreeSet<_>>() == before)
            })
        };
        let rolled = roll();
        done.store(true, SeqCst);
        traffic.join().expect("the traffic does not panic")?;
        rolled
    })?;
    server.settle()?;
    let scrape = agent.settled()?;
    assert_eq!(
        scrape.count(
            "aksnet_flow_connections_total",
            &[("class", "pod_to_pod"), ("protocol", "tcp")]
        ),
        made.load(SeqCst)
    );

    // What stayed is still counted to the packet.
    quiet.is_counted(&agent, 50)?;
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

//! Every row of the truth table of a node's packet paths, as real traffic: a known number of connections of each
//! kind, and nothing else, is counted under exactly the class, NAT and scope that the row has.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use xtask::testbed::{
    Builder, Family, Flavour, Hairpin, Proxy, Scene, Seen, Stage, Testbed,
    plan::{Addresses, Ranges},
};

use crate::{
    life::{Agent, Home, eventually, turn},
    scrape::Scrape,
};

/// Connections of each row.
const CONNECTIONS: u32 = 3;

/// How long a row may take to be counted.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is counted, by class, NAT, scope and protocol.
type Counts = BTreeMap<[String; 4], u64>;

/// The agent's flags on a testbed: the address plan that Kubernetes would tell.
fn flags(bed: &Testbed) -> Vec<String> {
    let plan = bed.plan();
    let nets = |all: &[Ranges]| joined(all.iter().flat_map(|r| r.iter()));
    let hosts = |all: &[Addresses]| joined(all.iter().flat_map(|a| a.iter()));
    let pods = if plan.flavour == Flavour::AzureNodeSubnet {
        // The ranges that the nodes have for pods: what Kubernetes would say address by address.
        nets(&[plan.nodes[0].pods, plan.nodes[1].pods])
    } else {
        nets(&[plan.pods])
    };
    let nodes = plan.nodes.iter().flat_map(|n| n.address.iter());
    let nodes = joined(nodes.map(ipnet::IpNet::from));
    let private_endpoints = nets(&[plan.subnet_of(plan.private_endpoint)]);
    let frontends = hosts(&[plan.load_balancer, plan.internal_balancer]);
    let api_servers = plan.api_server.iter();
    let api_servers = joined(api_servers.map(|ip| std::net::SocketAddr::new(ip, 443)));
    vec![
        format!("--pod-cidr={pods}"),
        format!("--service-cidr={}", nets(&[plan.services])),
        format!("--node-cidr={nodes}"),
        format!("--vnet-cidr={}", nets(&[plan.vnet])),
        format!("--private-endpoint-cidr={private_endpoints}"),
        format!("--load-balancer={frontends}"),
        format!("--api-server={api_servers}"),
    ]
}

fn joined<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items.map(|i| i.to_string()).collect::<Vec<_>>().join(",")
}

/// One family of `aksnet_flow_*`, without what nobody asked for: ICMPv6, by which neighbours are found.
fn counts(scrape: &Scrape, name: &str) -> Counts {
    let mut counts = scrape.count_by(name, ["class", "nat", "scope", "protocol"]);
    counts.retain(|key, _| key[3] != "icmpv6");
    counts
}

fn since(now: &Counts, before: &Counts) -> Counts {
    let more = |(key, n): (&[String; 4], &u64)| {
        let more = n - before.get(key).copied().unwrap_or(0);
        (more > 0).then(|| (key.clone(), more))
    };
    now.iter().filter_map(more).collect()
}

/// Packets both ways that the row's connections moved over the node, as conntrack counted them; `None` where it has
/// not seen them.
fn packets(bed: &Testbed, scene: &Scene<'_>) -> Result<Option<u64>> {
    match (scene.seen, scene.protocol) {
        (Seen::Dropped, _) => Ok(Some(u64::from(CONNECTIONS))),
        (Seen::Untracked, "udp") => Ok(Some(2 * u64::from(CONNECTIONS))),
        (Seen::Untracked, _) => Ok(None),
        _ => {
            // The scrapes themselves are on the node's loopback.
            let mut entries = bed.node().conntrack()?;
            entries.retain(|e| !e.original.destination.is_loopback());
            ensure!(
                entries.len() == CONNECTIONS as usize,
                "conntrack has {entries:?}"
            );
            let both = entries.iter().map(|e| e.original.packets + e.reply.packets);
            Ok(Some(both.sum()))
        }
    }
}

/// Plays one row and compares what came to be counted.
fn row(agent: &Agent<'_>, scene: &Scene<'_>) -> Result<()> {
    const CONNECTED: &str = "aksnet_flow_connections_total";
    const PACKETS: &str = "aksnet_flow_packets_total";
    let bed = agent.bed;
    xtask::testbed::counters::flush_conntrack(bed.node().netns())?;
    let before = agent.scrape()?;
    scene.play(CONNECTIONS, 1000)?;
    bed.settle()?;
    let key = [scene.class, scene.nat, scene.scope, scene.protocol].map(str::to_owned);
    let packets = packets(bed, scene)?;
    let expected = |n| Counts::from([(key.clone(), n)]);
    let (connections, packets) = (expected(u64::from(CONNECTIONS)), packets.map(expected));
    let counted = |name| -> Result<Counts> {
        Ok(since(
            &counts(&agent.scrape()?, name),
            &counts(&before, name),
        ))
    };
    // What is counted too much, or elsewhere, may come later than what is counted right: three looks in a row.
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut right = 0;
    loop {
        let (c, p) = (counted(CONNECTED)?, counted(PACKETS)?);
        let packets_right = match &packets {
            Some(packets) => p == *packets,
            None => p.keys().eq(connections.keys()),
        };
        right = if c == connections && packets_right {
            right + 1
        } else {
            0
        };
        if right == 3 {
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "expected {connections:?} and packets {packets:?}, counted {c:?} and {p:?}"
        );
        std::thread::sleep(Duration::from_millis(60));
    }
}

/// Plays all rows of a node in both families; every row that is counted wrong is named.
fn rows_of(builder: Builder) -> Result<()> {
    let bed = builder.dual_stack(true).build()?;
    let on = format!("{} ({:?})", bed.plan().flavour.name(), bed.node().proxy());
    Stage::prepare(&bed)?;
    let flags = flags(&bed);
    let mut wrong = Vec::new();
    let mut judged = 0;
    for family in bed.families() {
        let stage = Stage::set(&bed, family)?;
        let home = Home::new()?;
        let agent = Agent::start(&bed, &home, &flags)?;
        eventually("the pods are attached", || {
            Ok(agent.attached()?.len() == bed.node().pods().len() + 1)
        })?;
        for scene in stage.scenes() {
            judged += 1;
            if let Err(error) = row(&agent, &scene) {
                wrong.push(format!("{}, {family:?}: {error:#}", scene.name));
            }
        }
        agent.stop(Signal::SIGTERM)?;
    }
    ensure!(
        wrong.is_empty(),
        "on {on} {} of {judged} rows are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

#[test]
fn every_row_is_counted_under_its_class_on_kubenet() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    rows_of(Testbed::kubenet().hairpin(Hairpin::Veth))
}

#[test]
fn every_row_is_counted_under_its_class_on_kind() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    rows_of(Testbed::kind())
}

#[test]
fn every_row_is_counted_under_its_class_on_azure_cni_overlay() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    rows_of(Testbed::azure_overlay())
}

#[test]
fn every_row_is_counted_under_its_class_on_azure_cni_node_subnet() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    rows_of(Testbed::azure_node_subnet())
}

#[test]
fn every_row_is_counted_under_its_class_in_nftables_mode() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    rows_of(Testbed::azure_overlay().proxy(Proxy::Nftables))
}

/// The labels under which connections between two places are counted on a node whose masquerade agent spares these
/// ranges.
fn anomaly(builder: Builder, name: &str, labels: [&'static str; 3]) -> Result<()> {
    let bed = builder.build()?;
    Stage::prepare(&bed)?;
    let flags = flags(&bed);
    let stage = Stage::set(&bed, Family::V4)?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, &flags)?;
    eventually("the pods are attached", || {
        Ok(agent.attached()?.len() == bed.node().pods().len() + 1)
    })?;
    let scenes = stage.scenes();
    let mut scene = scenes
        .into_iter()
        .find(|s| s.name == name)
        .context("a scene of this name")?;
    [scene.class, scene.nat, scene.scope] = labels;
    row(&agent, &scene).with_context(|| format!("{name}, as an anomaly"))?;
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn pod_to_pod_that_is_masqueraded_keeps_its_class_and_shows_its_nat() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    anomaly(
        Testbed::kubenet().hairpin(Hairpin::Veth).spared([]),
        "pod to pod, another node",
        ["pod_to_pod", "snat", "cross_node"],
    )
}

#[test]
fn egress_that_is_not_masqueraded_keeps_its_class_and_shows_no_nat() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    anomaly(
        Testbed::kubenet()
            .hairpin(Hairpin::Veth)
            .spared(["10.0.0.0/8".parse()?]),
        "pod to VNet host",
        ["pod_to_external", "none", "vnet"],
    )
}

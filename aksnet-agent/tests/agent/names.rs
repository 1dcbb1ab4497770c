//! Who talks to whom: names from the Kubernetes API on real connections, while objects, the server and pods come and
//! go.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xtask::testbed::{
    Testbed,
    api::{Fault, Verb, objects},
    traffic::{Tcp, TcpServer},
};

use crate::{
    cluster::{self, connections, equal, row},
    life::{Agent, Home, LISTEN, attached, eventually, turn},
    line::Line,
};

/// A service `web` with one endpoint, an agent that asks the API, and the connections between the two.
struct Shop {
    bed: Testbed,
    web: TcpServer,
    home: Home,
}

/// Connections from the frontend straight to the web pod, as they are counted.
const STRAIGHT: &str = "pod_to_pod same_node shop/frontend shop/web";
const NAMELESS: &str = "pod_to_pod same_node / /";

impl Shop {
    fn new() -> Result<Self> {
        let bed = Testbed::azure_overlay().build()?;
        let pod = bed.pod(1);
        let web = TcpServer::echo(pod.netns(), (pod.ip(), 8080))?;
        let home = Home::new()?;
        Ok(Self { bed, web, home })
    }

    fn agent(&self) -> Result<Agent<'_>> {
        Agent::start(
            &self.bed,
            &self.home,
            cluster::flags(&self.bed, &self.home)?,
        )
    }

    /// An agent that need not be ready yet.
    fn starting(&self) -> Result<Agent<'_>> {
        let mut command = self.home.command(&self.bed, "run");
        command
            .args(["--listen", LISTEN, "--interval", "100ms"])
            .args(cluster::flags(&self.bed, &self.home)?);
        Agent::spawn(&self.bed, &self.home, &mut command)
    }

    /// So many connections from a pod to the web pod.
    fn dial(&self, from: &xtask::testbed::Pod, connections: u32) -> Result<()> {
        Tcp::to(self.web.address())
            .connections(connections)
            .run(from.netns())?;
        Ok(())
    }
}

fn synced(agent: &Agent<'_>) -> Result<BTreeMap<[String; 1], u64>> {
    let scrape = agent.scrape()?;
    Ok(scrape.count_by("aksnet_agent_identity_synced", ["source"]))
}

#[test]
fn an_agent_without_its_api_server_works_and_has_names_as_soon_as_it_is_there() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let shop = Shop::new()?;
    let agent = shop.agent()?;
    let status = agent.status()?;
    assert_eq!(status["ready"], true);
    assert_eq!(status["sources"]["kubernetes"]["asked"], true);
    for source in [
        "local_pods",
        "services",
        "endpoint_slices",
        "nodes",
        "namespaces",
        "network_policies",
    ] {
        let source = &status["sources"]["names"][source];
        assert_eq!(
            (&source["synced"], &source["connected"]),
            (&json!(false), &json!(false))
        );
        assert!(source["last_error"].is_string(), "{source}");
    }
    shop.dial(&shop.bed.pod(0), 3)?;
    let scrape = agent.settled()?;
    assert_eq!(scrape.samples_of("aksnet_agent_identity_synced").len(), 6);
    assert_eq!(synced(&agent)?, BTreeMap::new());
    let absent = BTreeMap::from([row(NAMELESS, 3)]);
    equal(&connections(&scrape), &absent);
    let complaints = agent.complaints();
    assert_eq!(
        complaints.len(),
        2,
        "one for the loss, one for going on: {complaints:?}"
    );

    let _api = cluster::start(&shop.bed)?;
    eventually("the watches run", || Ok(synced(&agent)?.len() == 6))?;
    shop.dial(&shop.bed.pod(0), 5)?;
    let counted = connections(&agent.settled()?);
    // Of flows that began within 30 s before, names may still come.
    assert_eq!(counted.values().sum::<u64>(), 8, "{counted:#?}");
    assert!(counted[&row(STRAIGHT, 0).0] >= 5, "{counted:#?}");
    assert!(agent.said().contains("all watches run again"));
    assert_eq!(agent.complaints(), complaints, "nothing new");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_break_and_a_relist_lose_no_name() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let shop = Shop::new()?;
    let api = cluster::start(&shop.bed)?;
    let agent = shop.agent()?;
    let lists = || -> Result<u64> {
        let status = agent.status()?;
        Ok(status["sources"]["names"]["local_pods"]["lists"]
            .as_u64()
            .unwrap_or(0))
    };
    let runs = |all: bool| {
        eventually("the watches run, or do not", || {
            let status = agent.status()?;
            let sources = status["sources"]["names"].as_object();
            let sources = sources.context("a list")?.values();
            let mut connected = sources.map(|source| source["connected"] == true);
            Ok(connected.all(|connected| connected == all))
        })
    };
    assert_eq!(lists()?, 1);
    shop.dial(&shop.bed.pod(0), 2)?;
    // While nothing answers, what is known stays.
    api.fail(Verb::Watch, "", 10, Fault::Status(503));
    api.break_connections();
    runs(false)?;
    shop.dial(&shop.bed.pod(0), 3)?;
    runs(true)?;
    assert_eq!(lists()?, 1, "a watch goes on where it was");
    shop.dial(&shop.bed.pod(0), 4)?;
    api.gone();
    eventually("all is listed anew", || Ok(lists()? == 2))?;
    shop.dial(&shop.bed.pod(0), 5)?;
    runs(true)?;
    // What is told after all that arrives.
    let late = shop.bed.add_pod("late")?;
    eventually("it is watched", || {
        Ok(agent.attached()?.iter().any(|name| name == late.veth()))
    })?;
    api.apply(cluster::pod_object(shop.bed.node(), &late));
    shop.dial(&late, 6)?;
    let expected = BTreeMap::from([
        row(STRAIGHT, 14),
        row("pod_to_pod same_node shop/late shop/web", 6),
    ]);
    equal(&connections(&agent.settled()?), &expected);
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_reused_address_has_the_name_of_who_held_it_then() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let shop = Shop::new()?;
    let api = cluster::start(&shop.bed)?;
    let agent = shop.agent()?;
    let mut expected = BTreeMap::from([row(STRAIGHT, 1)]);
    shop.dial(&shop.bed.pod(0), 1)?;
    let pod = shop.bed.pod(0);
    let address = pod.ip().to_string();
    let mut holder = cluster::pod_name(&pod);
    let known = |pods: u64| {
        eventually("the agent has heard of it", || {
            Ok(agent.status()?["sources"]["names"]["local_pods"]["objects"] == pods)
        })
    };
    for (name, count) in [("second", 7), ("third", 9)] {
        api.delete("Pod", "shop", &holder);
        known(1)?;
        name.clone_into(&mut holder);
        let node = shop.bed.node().name();
        api.apply(objects::pod("shop", name, name, node, &address));
        known(2)?;
        shop.dial(&pod, count)?;
        let ends = format!("pod_to_pod same_node shop/{name} shop/web");
        expected.extend([row(&ends, count.into())]);
    }
    equal(&connections(&agent.settled()?), &expected);
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_pod_whose_object_comes_late_is_counted_under_its_name() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let shop = Shop::new()?;
    let api = cluster::start(&shop.bed)?;
    let agent = shop.agent()?;
    let young = shop.bed.add_pod("young")?;
    eventually("it is watched", || {
        Ok(agent.attached()?.iter().any(|name| name == young.veth()))
    })?;
    let line = Line::open(young.netns(), shop.web.address(), Duration::from_millis(5))?;
    shop.dial(&young, 6)?;
    std::thread::sleep(Duration::from_secs(1));
    api.apply(cluster::pod_object(shop.bed.node(), &young));
    line.go_on(20)?;
    line.close()?;
    let scrape = agent.settled()?;
    let ends = "pod_to_pod same_node shop/young shop/web";
    equal(&connections(&scrape), &BTreeMap::from([row(ends, 7)]));
    let packets = scrape.count_by("aksnet_flow_packets_total", cluster::ENDS);
    let back = "pod_to_pod same_node shop/web shop/young";
    let entries = shop.bed.node().conntrack()?;
    let of_young = entries.iter().filter(|e| e.original.source == young.ip());
    let (sent, received) = of_young.fold((0, 0), |(sent, received), e| {
        (sent + e.original.packets, received + e.reply.packets)
    });
    // No packet is nobody's.
    equal(
        &packets,
        &BTreeMap::from([row(ends, sent), row(back, received)]),
    );
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_signal_does_not_wait_for_an_api_server_that_is_not_there() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let shop = Shop::new()?;
    let agent = shop.starting()?;
    eventually("its pods are attached", || {
        Ok(agent.said().contains("serving http://") && !attached(&shop.bed)?.is_empty())
    })?;
    // It waits for names now, and is alive.
    assert_eq!(agent.get("/live", "")?.status, 200);
    assert_eq!(agent.get("/ready", "")?.status, 503);
    // In the two seconds that it promises, with nothing left attached.
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn without_the_api_there_are_addresses_and_no_names() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let shop = Shop::new()?;
    let flags = ["--kubernetes=off", "--cri-socket=off"];
    let agent = Agent::start(&shop.bed, &shop.home, flags)?;
    shop.dial(&shop.bed.pod(0), 4)?;
    let scrape = agent.settled()?;
    equal(&connections(&scrape), &BTreeMap::from([row(NAMELESS, 4)]));
    assert_eq!(scrape.samples_of("aksnet_agent_identity_synced").len(), 0);
    let status = agent.status()?;
    assert_eq!(status["sources"]["kubernetes"]["asked"], false);
    assert!(status["sources"]["kubernetes"]["because"].is_string());
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_kubeconfig_that_is_not_there_ends_with_66_and_one_that_is_none_with_78() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let shop = Shop::new()?;
    let path = shop.home.path().join("nothing");
    for (code, says) in [(66, "cannot be read"), (78, "has no context")] {
        let mut command = shop.home.command(&shop.bed, "run");
        command.arg("--kubeconfig").arg(&path);
        let mut agent = Agent::spawn(&shop.bed, &shop.home, &mut command)?;
        assert_eq!(agent.code()?, Some(code), "{}", agent.said());
        let said = agent.said();
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.contains(&format!("--kubeconfig {}: ", path.display())),
            "{said}"
        );
        assert!(last.contains(says), "{said}");
        std::fs::write(&path, "apiVersion: v1\nkind: Config\n")?;
    }
    Ok(())
}

#[test]
fn pod_labels_name_the_pods_and_top_names_both_ends() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let shop = Shop::new()?;
    let _api = cluster::start(&shop.bed)?;
    let mut flags = cluster::flags(&shop.bed, &shop.home)?;
    flags.push("--pod-labels".to_owned());
    let agent = Agent::start(&shop.bed, &shop.home, flags)?;
    let (client, web) = (shop.bed.pod(0), shop.bed.pod(1));
    let line = Line::open(client.netns(), shop.web.address(), Duration::from_millis(5))?;
    shop.dial(&client, 8)?;
    line.go_on(20)?;
    let mut top = shop.home.command(&shop.bed, "top");
    top.args(["--raw", "--json", "--count", "2", "--interval", "1"]);
    let output = top.output()?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let rows: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let who = |pod: &xtask::testbed::Pod| {
        json!({
            "namespace": "shop", "workload": cluster::workload(pod), "pod": cluster::pod_name(pod),
        })
    };
    let of_line = |row: &&Value| {
        [&row["before"]["src_port"], &row["before"]["dst_port"]]
            .contains(&&json!(line.local().port()))
    };
    let rows: Vec<&Value> = rows.iter().filter(of_line).collect();
    assert!(
        rows.iter().any(|row| row["reply"] == true) && rows.iter().any(|row| row["reply"] == false)
    );
    for row in rows {
        let (mut from, mut to) = (&row["from"], &row["to"]);
        if row["reply"] == true {
            std::mem::swap(&mut from, &mut to);
        }
        assert_eq!((from, to), (&who(&client), &who(&web)), "{row}");
    }
    line.close()?;
    let scrape = agent.settled()?;
    let pods = scrape.count_by("aksnet_flow_connections_total", ["src_pod", "dst_pod"]);
    let names = [&client, &web].map(|pod| cluster::pod_name(pod));
    assert_eq!(pods, BTreeMap::from([(names, 9)]));
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

//! `aksnet-agent top --raw`: rows for scripts, from the running agent or from programs of its own.

use std::{
    net::SocketAddr,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xtask::testbed::{Service, Testbed, traffic::TcpServer};

use crate::{
    life::{Agent, END, Home, attached, eventually, plan_flags, turn, wait},
    line::Line,
};

const GAP: Duration = Duration::from_millis(5);

/// A connection of each kind of NAT that goes on for as long as somebody looks.
struct Talk {
    _servers: Vec<TcpServer>,
    dialled: Line,
    service: SocketAddr,
    endpoint: SocketAddr,
    egress: Line,
    outside: SocketAddr,
}

impl Talk {
    fn new(bed: &Testbed) -> Result<Self> {
        let (client, web) = (bed.pod(0), bed.pod(1));
        let near = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        let far = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
        let service = Service::cluster_ip("shop", "web", 80).endpoints([near.address()]);
        let service = bed.add_service(service)?.address();
        Ok(Self {
            dialled: Line::open(client.netns(), service, GAP)?,
            service,
            endpoint: near.address(),
            egress: Line::open(client.netns(), far.address(), GAP)?,
            outside: far.address(),
            _servers: vec![near, far],
        })
    }

    /// The columns that name each of the four flows, by what each begins with.
    fn translations(&self, bed: &Testbed) -> [String; 4] {
        let (service, endpoint, outside) = (self.service, self.endpoint, self.outside);
        let (dialled, egress) = (self.dialled.local(), self.egress.local());
        // kube-proxy's masquerade is --random-fully: the port is the kernel's choice.
        let node = bed.node().ip();
        [
            format!("pod_to_service dnat tcp {dialled}>{service} → =>{endpoint} "),
            format!("pod_to_service dnat↩ tcp {endpoint}>{dialled} → {service}>= "),
            format!("pod_to_external snat tcp {egress}>{outside} → {node}:"),
            format!("pod_to_external snat↩ tcp {outside}>{node}:"),
        ]
    }
}

fn ends(src: SocketAddr, dst: SocketAddr) -> Value {
    json!({
        "src": src.ip(), "src_port": src.port(), "dst": dst.ip(), "dst_port": dst.port(),
    })
}

/// Runs `top` to its end.
fn output(command: &mut Command) -> Result<Output> {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok(child.wait_with_output()?)
}

/// Every look has a header and the four flows, each with its exact translation.
fn looks_are_right(output: &Output, talk: &Talk, bed: &Testbed) -> Result<()> {
    let text = String::from_utf8(output.stdout.clone())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0), "{}: {said}", output.status);
    ensure!(said.is_empty(), "nothing to complain of: {said}");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let looks: Vec<&str> = text.split("TIME ").skip(1).collect();
    ensure!(looks.len() == 2, "two looks:\n{text}");
    for look in looks {
        for expected in talk.translations(bed) {
            let row = look
                .lines()
                .map(words)
                .find(|l| l.contains(&expected))
                .with_context(|| format!("no row {expected:?}:\n{text}"))?;
            let time = row.split(' ').next().unwrap_or_default();
            ensure!(
                time.len() == 8 && time.split(':').count() == 3,
                "a time of day: {row}"
            );
        }
    }
    Ok(())
}

/// The same as JSON, one object a line, with numbers.
fn objects_are_right(output: &Output, talk: &Talk, bed: &Testbed) -> Result<()> {
    let text = String::from_utf8(output.stdout.clone())?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    let rows: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context(text.clone())?;
    let row = |before: Value, reply: bool| {
        rows.iter()
            .rfind(|r| r["before"] == before && r["reply"] == reply)
            .with_context(|| format!("no row {before}:\n{text}"))
    };
    let local = talk.dialled.local();
    let asked = row(ends(local, talk.service), false)?;
    assert_eq!(asked["class"], "pod_to_service");
    assert_eq!(asked["nat"], "dnat");
    assert_eq!(asked["scope"], "same_node");
    assert_eq!(asked["protocol"], "tcp");
    assert_eq!(asked["after"], ends(local, talk.endpoint));
    assert_eq!(asked["in_interface"], bed.pod(0).veth());
    assert_eq!(asked["out_interface"], bed.pod(1).veth());
    assert_eq!(asked["drops"], 0);
    assert!(
        asked["packets_per_second"].as_f64().context("a number")? > 10.0,
        "{asked}"
    );
    let (packets, bytes) = (asked["packets"].as_f64(), asked["bytes"].as_f64());
    assert!(
        bytes.context("bytes")? > 400.0 * packets.context("packets")?,
        "{asked}"
    );
    for number in ["samples", "p50_ns", "p99_ns"] {
        assert!(
            asked["established"][number].as_f64().context("a time")? > 0.0,
            "{asked}"
        );
    }
    let answered = row(ends(talk.endpoint, local), true)?;
    assert_eq!(answered["after"], ends(talk.service, local));
    assert_eq!(answered["class"], "pod_to_service");

    let out = row(ends(talk.egress.local(), talk.outside), false)?;
    assert_eq!(
        (&out["class"], &out["nat"]),
        (&json!("pod_to_external"), &json!("snat"))
    );
    assert_eq!(out["out_interface"], "eth0");
    let entry = bed.node().conntrack()?.into_iter().find(|e| {
        SocketAddr::new(e.original.source, e.original.source_port) == talk.egress.local()
    });
    let entry = entry.context("conntrack knows it")?;
    let public = SocketAddr::new(entry.reply.destination, entry.reply.destination_port);
    assert_eq!(out["after"], ends(public, talk.outside));
    Ok(())
}

const LOOK: [&str; 5] = ["--raw", "--count", "2", "--interval", "1"];

#[test]
fn rows_from_the_running_agent_name_class_nat_and_translation() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let talk = Talk::new(&bed)?;
    talk.dialled.go_on(20)?;
    looks_are_right(&output(home.command(&bed, "top").args(LOOK))?, &talk, &bed)?;
    let json = output(home.command(&bed, "top").args(LOOK).arg("--json"))?;
    objects_are_right(&json, &talk, &bed)?;
    // It only looks: the agent goes on, alone on its hooks.
    assert!(attached(&bed)?.iter().all(|h| h.ends_with(": 1")));
    let one = [
        "--raw",
        "--count",
        "1",
        "--interval",
        "0.2",
        "--limit",
        "1",
        "--json",
    ];
    let one = output(home.command(&bed, "top").args(one))?;
    assert_eq!(String::from_utf8(one.stdout)?.lines().count(), 1);
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn without_an_agent_top_loads_its_own_programs_and_leaves_nothing() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let config = home.path().join("agent.toml");
    let service = bed.plan().services.v4;
    std::fs::write(&config, format!("service_cidr = \"{service}\"\n"))?;
    // Connections that were there before are judged by what is seen of them.
    let talk = Talk::new(&bed)?;
    let top = || {
        let mut command = home.command(&bed, "top");
        command.args(LOOK).arg("--config").arg(&config);
        command
    };
    looks_are_right(&output(&mut top())?, &talk, &bed)?;
    assert_eq!(attached(&bed)?, [""; 0]);
    objects_are_right(&output(top().arg("--json"))?, &talk, &bed)?;
    assert_eq!(attached(&bed)?, [""; 0]);
    assert!(!home.socket().exists());

    // Interrupted, it leaves nothing either.
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut endless = home.command(&bed, "top");
        endless.args(["--raw", "--interval", "0.2"]);
        let (path, file) = home.log("rows")?;
        let mut child = bed
            .node()
            .netns()
            .spawn(endless.stdout(file).stderr(Stdio::null()))?;
        eventually("rows are shown", || Ok(std::fs::metadata(&path)?.len() > 0))?;
        assert!(!attached(&bed)?.is_empty());
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal)?;
        assert_eq!(wait(&mut child, END)?.code(), Some(0));
        assert_eq!(attached(&bed)?, [""; 0]);
        assert!(!home.socket().exists());
    }
    talk.dialled.go_on(5)
}

#[test]
fn an_agent_that_is_killed_under_top_ends_it_with_69_and_one_line() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, [""; 0])?;
    let mut command = home.command(&bed, "top");
    command.args(["--raw", "--interval", "0.2"]);
    let ((rows, out), (said, err)) = (home.log("rows")?, home.log("said")?);
    let mut top = bed.node().netns().spawn(command.stdout(out).stderr(err))?;
    eventually("rows are shown", || Ok(std::fs::metadata(&rows)?.len() > 0))?;
    agent.kill()?;
    let status = wait(&mut top, END)?;
    let said = std::fs::read_to_string(said)?;
    assert_eq!(status.code(), Some(69), "{said}");
    assert_eq!(
        said,
        "aksnet-agent: the agent has ended; start it again, or look at its log\n"
    );
    Ok(())
}

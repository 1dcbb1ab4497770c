//! Flow records on an emulated node: `flows`, `record` and `replay` tell what the kernel counted, and captures, of
//! tcpdump's or by `--capture`, come to the same.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use xtask::testbed::{
    Service, Testbed,
    traffic::{Ping, Tcp, TcpServer, Udp, UdpServer},
};

use crate::{
    life::{Agent, BINARY, Home, eventually, plan_flags, turn, wait},
    line::Line,
    truth::{Truth, count_own},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Servers, and traffic of each kind of NAT.
struct Shop<'a> {
    bed: &'a Testbed,
    near: TcpServer,
    far: TcpServer,
    /// For a connection that goes on.
    long: TcpServer,
    udp: UdpServer,
    service: SocketAddr,
}

impl<'a> Shop<'a> {
    fn open(bed: &'a Testbed) -> Result<Self> {
        let web = bed.pod(1);
        let near = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        let far = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
        let long = TcpServer::echo(web.netns(), (web.ip(), 8081))?;
        let udp = UdpServer::echo(web.netns(), (web.ip(), 53))?;
        let service = Service::cluster_ip("shop", "web", 80).endpoints([near.address()]);
        let service = bed.add_service(service)?.address();
        let shop = Self {
            bed,
            near,
            far,
            long,
            udp,
            service,
        };
        // Neighbours are known from here on, so that nothing but IP moves.
        count_own(bed)?;
        shop.trade()?;
        bed.settle()?;
        bed.pin_neighbours()?;
        bed.settle()?;
        Ok(shop)
    }

    fn trade(&self) -> Result<()> {
        let pod = self.bed.pod(0);
        let pod = pod.netns();
        Tcp::to(self.service).connections(3).bytes(900).run(pod)?;
        Tcp::to(self.far.address())
            .connections(2)
            .bytes(3_000)
            .run(pod)?;
        Tcp::to(self.near.address())
            .bytes(100)
            .run(self.bed.node().netns())?;
        Udp::to(self.udp.address())
            .datagrams(12)
            .flight(3)
            .run(pod)?;
        Ping::to(self.bed.outside_ip()).count(4).run(pod)?;
        for server in [&self.near, &self.far] {
            server.settle()?;
        }
        Ok(())
    }
}

fn bed() -> Result<Testbed> {
    Testbed::kubenet().pods(2).offloads(false).build()
}

fn terminate(child: &Child) -> Result<()> {
    Ok(kill(
        Pid::from_raw(child.id().cast_signed()),
        Signal::SIGTERM,
    )?)
}

/// The records that a command prints with `--json`.
fn records(command: &mut Command) -> Result<Vec<Value>> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(0), "{}: {said}", output.status);
    let text = String::from_utf8(output.stdout)?;
    of_lines(&text)
}

/// A value from each line.
fn of_lines(text: &str) -> Result<Vec<Value>> {
    let values = text.lines().map(serde_json::from_str);
    Ok(values.collect::<Result<_, _>>()?)
}

fn replay(file: &Path, args: &[String]) -> Result<Vec<Value>> {
    // Without privilege, and outside of the node.
    let mut command = Command::new(BINARY);
    command.arg("replay").arg(file).arg("--json").args(args);
    records(&mut command)
}

/// Packets and bytes of records, both ways.
fn sum(records: &[Value], packets: &str, bytes: &str) -> (u64, u64) {
    let of = |name: &str| {
        let both = records
            .iter()
            .flat_map(|record| [&record["forward"][name], &record["reply"][name]]);
        both.filter_map(Value::as_u64).sum()
    };
    (of(packets), of(bytes))
}

fn recorder(bed: &Testbed, home: &Home, args: &[&str]) -> Result<(Child, PathBuf, PathBuf)> {
    let file = home.path().join("session.jsonl.gz");
    let (said, err) = home.log("recorder")?;
    let mut command = home.command(bed, "record");
    command
        .arg(&file)
        .args(args)
        .stdout(Stdio::null())
        .stderr(err);
    let mut child = bed.node().netns().spawn(&mut command)?;
    eventually("it records", || {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("{status}: {}", fs::read_to_string(&said)?);
        }
        Ok(file.exists() && fs::metadata(&file)?.len() > 0)
    })?;
    Ok((child, file, said))
}

#[test]
fn a_recorded_session_has_every_packet_that_the_kernel_counted_and_replays() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let shop = Shop::open(&bed)?;
    let home = Home::new()?;
    let before = Truth::now(&bed)?;
    // Records of what closes, goes on, and is cut off by the agent's end: nothing idles for so long.
    let flags = ["--idle-timeout=120s", "--flow-active-timeout=1s"].map(str::to_owned);
    let agent = Agent::start(&bed, &home, plan_flags(&bed).into_iter().chain(flags))?;
    let (mut recorder, file, said) = recorder(&bed, &home, &[])?;
    let line = Line::open(
        bed.pod(0).netns(),
        shop.long.address(),
        Duration::from_millis(20),
    )?;
    shop.trade()?;
    line.go_on(100)?;
    line.pause(true)?;
    eventually("what is closed has ended", || {
        let flows = records(home.command(&bed, "flows").args(["--json", "--limit=0"]))?;
        Ok(flows.iter().filter(|flow| flow["end"] == "closed").count() >= 6)
    })?;
    agent.settled()?;
    let truth = Truth::now(&bed)?.since(before);
    agent.stop(Signal::SIGTERM)?;
    let code = wait(&mut recorder, PATIENCE)?.code();
    assert_eq!(code, Some(69), "{}", fs::read_to_string(&said)?);

    let mut replayed = replay(&file, &[])?;
    let summary = replayed.pop().context("a summary")?["summary"].clone();
    let counted = sum(&replayed, "packets", "bytes");
    assert_eq!(counted, (truth.packets, truth.bytes), "{replayed:#?}");
    assert_eq!(
        (
            summary["all"]["packets"].as_u64(),
            summary["all"]["bytes"].as_u64()
        ),
        (Some(counted.0), Some(counted.1))
    );
    assert_eq!(summary["missed_records"], 0);

    // Line by line what was written.
    let text = {
        let output = Command::new("gzip").arg("-dc").arg(&file).output()?;
        ensure!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)?
    };
    let lines = of_lines(&text)?;
    assert_eq!(lines[0]["session"]["format"], 1);
    assert!(
        lines[0]["session"]["knows"]["status"]["plan"].is_array(),
        "{}",
        lines[0]
    );
    assert_eq!(lines[lines.len() - 1]["end"]["flows"], replayed.len());
    let written: Vec<&Value> = lines.iter().filter_map(|line| line.get("flow")).collect();
    assert_eq!(written, replayed.iter().collect::<Vec<_>>());

    let ends = |end: &str| {
        replayed
            .iter()
            .filter(|record| record["end"] == end)
            .count()
    };
    assert!(
        ends("active") > 0 && ends("closed") >= 6 && ends("agent_end") > 0,
        "{replayed:#?}"
    );
    let of = |class: &str, nat: &str, protocol: &str| {
        let fits = |r: &&Value| r["class"] == class && r["nat"] == nat && r["protocol"] == protocol;
        let connections = replayed
            .iter()
            .filter(fits)
            .filter(|r| r["end"] == "closed");
        connections.filter(|r| r["outcome"] == "finished").count()
    };
    assert_eq!(of("pod_to_service", "dnat", "tcp"), 3);
    assert_eq!(of("pod_to_external", "snat", "tcp"), 2);
    let dialled = replayed
        .iter()
        .find(|r| r["class"] == "pod_to_service")
        .context("one")?;
    assert_eq!(dialled["before"]["dst"], shop.service.ip().to_string());
    assert_eq!(
        dialled["after"]["dst"],
        shop.near.address().ip().to_string()
    );
    assert_eq!(dialled["in_interface"], bed.pod(0).veth());
    assert!(dialled["first"]["p50_ns"].as_f64().context("a time")? > 0.0);
    Ok(())
}

#[test]
fn a_full_disk_ends_a_recording_and_what_was_written_replays() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let shop = Shop::open(&bed)?;
    let home = Home::new()?;
    let flags = ["--idle-timeout=1s".to_owned()];
    let agent = Agent::start(&bed, &home, plan_flags(&bed).into_iter().chain(flags))?;
    let (disk, kept) = (home.path().join("disk"), home.path().join("kept.jsonl"));
    fs::create_dir(&disk)?;
    // A disk of its own, which only this process and its children see; what is on it is kept.
    let script = "mount -t tmpfs -o size=48k none \"$1\"; shift; \"$@\" && code=0 || code=$?; cp \"$DISK\"/s.jsonl \"$KEPT\"; exit $code";
    let (said, err) = home.log("recorder")?;
    let mut command = bed.node().netns().command_with_sysfs("sh");
    command
        .args(["-ec", script, "sh"])
        .arg(&disk)
        .arg(BINARY)
        .arg("record")
        .arg(disk.join("s.jsonl"))
        .arg("--socket")
        .arg(home.socket())
        .env("DISK", &disk)
        .env("KEPT", &kept)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(err);
    let mut child = bed.node().netns().spawn(&mut command)?;
    let mut ended = None;
    eventually("the disk is full", || {
        shop.trade()?;
        ended = child.try_wait()?;
        Ok(ended.is_some())
    })?;
    let said = fs::read_to_string(&said)?;
    assert_eq!(ended.and_then(|status| status.code()), Some(74), "{said}");
    ensure!(said.contains("No space left on device"), "{said}");
    ensure!(said.trim_end().lines().count() == 1, "{said}");

    // What is there is whole, and the agent never noticed.
    let text = fs::read_to_string(&kept)?;
    ensure!(text.ends_with('\n'), "the last line is cut");
    let lines = of_lines(&text)?;
    let written = lines.iter().filter(|line| line.get("flow").is_some());
    let written = written.count();
    let mut replayed = replay(&kept, &[])?;
    replayed.pop().context("a summary")?;
    ensure!(written > 10 && replayed.len() == written, "{written}");
    ensure!(agent.complaints().is_empty(), "{:?}", agent.complaints());
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn flows_shows_the_live_and_the_ended_with_all_their_packets() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let shop = Shop::open(&bed)?;
    let home = Home::new()?;
    let before = Truth::now(&bed)?;
    let agent = Agent::start(
        &bed,
        &home,
        plan_flags(&bed)
            .into_iter()
            .chain(["--idle-timeout=2s".to_owned()]),
    )?;
    let line = Line::open(
        bed.pod(0).netns(),
        shop.long.address(),
        Duration::from_millis(20),
    )?;
    shop.trade()?;
    line.go_on(20)?;
    line.pause(true)?;
    agent.settled()?;
    let truth = Truth::now(&bed)?.since(before);
    let flows = |args: &[&str]| {
        records(
            home.command(&bed, "flows")
                .args(["--json", "--limit=0"])
                .args(args),
        )
    };
    let mut all = Vec::new();
    eventually("some have ended, and are told with the rest", || {
        all = flows(&[])?;
        Ok(all.iter().any(|record| record["end"] == "closed"))
    })?;
    assert_eq!(
        sum(&all, "total_packets", "total_bytes"),
        (truth.packets, truth.bytes),
        "{all:#?}"
    );
    let service = flows(&["--class=pod_to_service", "--nat=dnat", "--protocol=tcp"])?;
    assert_eq!(service.len(), 3, "{service:#?}");
    let few = home
        .command(&bed, "flows")
        .args(["--limit=1", "--class=pod_to_external"])
        .output()?;
    assert!(String::from_utf8(few.stdout)?.lines().count() <= 2);

    // Who follows hears what ends from now on, and only that.
    let (path, out) = home.log("followed")?;
    let mut command = home.command(&bed, "flows");
    command.args(["--json", "--follow", "--class=pod_to_external", "--count=4"]);
    let mut child = bed
        .node()
        .netns()
        .spawn(command.stdout(out).stderr(Stdio::null()))?;
    // It begins to follow some time: it is given more until it has what it wants.
    eventually("it has heard of four", || {
        Tcp::to(shop.far.address()).run(bed.pod(0).netns())?;
        Ok(child.try_wait()?.is_some())
    })?;
    assert_eq!(wait(&mut child, PATIENCE)?.code(), Some(0));
    assert_eq!(fs::read_to_string(&path)?.lines().count(), 4);

    // A recording ends by its own limits, too, and leaves another's file alone.
    let (mut recorder, file, _) = recorder(&bed, &home, &["--for=1s"])?;
    assert_eq!(wait(&mut recorder, PATIENCE)?.code(), Some(0));
    let again = home.command(&bed, "record").arg(&file).output()?;
    assert_eq!(again.status.code(), Some(73), "{again:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn tcpdump_on_any_replays_to_the_flows_that_the_agent_counted() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let shop = Shop::open(&bed)?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let file = home.path().join("any.pcap");
    let (said, err) = home.log("tcpdump")?;
    let mut command = bed.node().netns().command("tcpdump");
    command.args([
        "-i", "any", "-U", "-s", "128", "-B", "8192", "-Z", "root", "-w",
    ]);
    command
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(err);
    let mut tcpdump = bed
        .node()
        .netns()
        .spawn(&mut command)
        .context("tcpdump (cargo xtask setup installs it)")?;
    eventually("tcpdump listens", || {
        Ok(fs::read_to_string(&said)?.contains("listening on"))
    })?;
    shop.trade()?;
    agent.settled()?;
    let told = records(home.command(&bed, "flows").args(["--json", "--limit=0"]))?;
    agent.stop(Signal::SIGTERM)?;
    terminate(&tcpdump)?;
    wait(&mut tcpdump, PATIENCE)?;
    let report = fs::read_to_string(&said)?;
    ensure!(report.contains("0 packets dropped by kernel"), "{report}");

    let mut args = plan_flags(&bed);
    args.push(format!("--node-address={}", bed.node().ip()));
    let mut replayed = replay(&file, &args)?;
    let summary = replayed.pop().context("a summary")?["summary"].clone();
    let compact = |records: &[Value]| -> Vec<String> {
        let mut all: Vec<String> = records
            .iter()
            .map(|r| {
                let counts = |side: &str| {
                    let side = &r[side];
                    format!(
                        "{} {} {}",
                        side["total_packets"], side["total_bytes"], side["tcp_flags"]
                    )
                };
                format!(
                    "{} {} {} {} {} {} {} {}",
                    r["class"],
                    r["nat"],
                    r["protocol"],
                    r["before"],
                    r["after"],
                    counts("forward"),
                    counts("reply"),
                    r["outcome"]
                )
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(compact(&replayed), compact(&told), "{summary:#}");
    assert!(
        summary["capture"]["seen_again"].as_u64() > summary["capture"]["counted"].as_u64(),
        "{summary:#}"
    );
    Ok(())
}

#[test]
fn captured_counts_are_the_kernels_and_the_agent_says_what_is_missing() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let shop = Shop::open(&bed)?;
    let home = Home::new()?;
    let before = Truth::now(&bed)?;
    let agent = Agent::start(
        &bed,
        &home,
        plan_flags(&bed).into_iter().chain(["--capture".to_owned()]),
    )?;
    assert!(
        crate::life::attached(&bed)?.is_empty(),
        "no program is attached"
    );
    shop.trade()?;
    bed.settle()?;
    let truth = Truth::now(&bed)?.since(before);
    let packets = || -> Result<u64> { Ok(agent.scrape()?.count("aksnet_flow_packets_total", &[])) };
    eventually("all is counted", || Ok(packets()? >= truth.packets))?;
    let scrape = agent.settled()?;
    assert_eq!(
        scrape.count("aksnet_flow_packets_total", &[]),
        truth.packets,
        "{:#?}",
        scrape.count_by("aksnet_flow_packets_total", ["class", "nat", "protocol"])
    );
    assert_eq!(scrape.count("aksnet_flow_bytes_total", &[]), truth.bytes);
    let connections = |class: &str, nat: &str| {
        let labels = [("class", class), ("nat", nat), ("protocol", "tcp")];
        scrape.count("aksnet_flow_connections_total", &labels)
    };
    assert_eq!(connections("pod_to_service", "dnat"), 3);
    assert_eq!(connections("pod_to_external", "snat"), 2);
    assert_eq!(connections("node_to_pod", "none"), 1);
    let up = |program: &str| scrape.sum("aksnet_program_up", &[("program", program)]);
    assert!(up("capture") > 0.5 && up("aksnet_drop") < 0.5);
    assert_eq!(
        scrape.count("aksnet_nat_path_seconds_count", &[]),
        0,
        "there are no times"
    );
    assert!(
        agent.said().contains("no times on the NAT path, no drops"),
        "{}",
        agent.said()
    );
    agent.stop(Signal::SIGTERM)?;

    // By itself, too.
    let alone = home
        .command(&bed, "flows")
        .args(["--capture", "--json"])
        .output()?;
    assert_eq!(alone.status.code(), Some(0), "{alone:?}");
    assert!(
        String::from_utf8_lossy(&alone.stderr).contains("packets are captured"),
        "{alone:?}"
    );
    Ok(())
}

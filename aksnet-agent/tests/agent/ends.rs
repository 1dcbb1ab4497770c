//! How the agent ends, and what a killed one leaves to the next: traffic never notices.

use std::{
    hash::{BuildHasher as _, RandomState},
    io::Write as _,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use xtask::testbed::{
    Testbed,
    traffic::{Tcp, TcpServer, Udp, UdpServer},
};

use crate::{
    life::{Agent, END, Home, LISTEN, attached, has_tcx, plan_flags, turn, wait},
    line::Line,
    truth::{Truth, count_own},
};

const GAP: Duration = Duration::from_millis(5);

/// Agents that are killed at a random moment of their life, with each way to attach.
const KILLED: u32 = 50;

#[test]
fn a_signal_ends_it_in_two_seconds_with_nothing_left() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let line = Line::open(client.netns(), server.address(), GAP)?;
    for attach in ["tcx", "clsact"] {
        if attach == "tcx" && !has_tcx(bed.node().netns()) {
            println!("skipped: this kernel has no tcx");
            continue;
        }
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let home = Home::new()?;
            let agent = Agent::start(&bed, &home, ["--attach", attach])?;
            let hooks = attached(&bed)?;
            ensure!(
                hooks.len() == 6
                    && hooks
                        .iter()
                        .all(|h| h.contains(attach) && h.ends_with(": 1")),
                "{hooks:?}"
            );
            line.go_on(5)?;
            let said = agent.stop(signal)?;
            assert!(said.contains(&format!("{signal}: stopping")), "{said}");
            line.go_on(5)?;
        }
    }
    let sent = line.close()?;
    server.settle()?;
    assert_eq!(server.received(), sent);
    Ok(())
}

#[test]
fn neither_a_hanging_scrape_nor_a_connected_top_holds_it_up() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, [""; 0])?;
    // One client stops in the middle of its question, one asks again and again and never reads.
    let mut half = agent.dial()?;
    half.write_all(b"GET /metrics HTTP/1.1\r\nHost: no")?;
    let mut deaf = agent.dial()?;
    deaf.set_nonblocking(true)?;
    for _ in 0..5_000 {
        if deaf
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")
            .is_err()
        {
            break;
        }
    }
    let mut top = home.command(&bed, "top");
    top.args(["--raw", "--interval", "0.1"]);
    let (said, file) = home.log("top.log")?;
    let mut top = bed
        .node()
        .netns()
        .spawn(top.stdout(Stdio::null()).stderr(file))?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(top.try_wait()?.is_none(), "top reads");
    agent.stop(Signal::SIGTERM)?;

    let status = wait(&mut top, END)?;
    let said = std::fs::read_to_string(said)?;
    assert_eq!(status.code(), Some(69), "{said}");
    assert_eq!(
        said.trim(),
        "aksnet-agent: the agent has ended; start it again, or look at its log"
    );
    Ok(())
}

/// Starts agents and kills each at a random moment: while it starts, attaches, or is at work.
fn kill_at_random_moments(
    bed: &Testbed,
    home: &Home,
    flags: &[String],
    attach: &str,
) -> Result<()> {
    let begin = Instant::now();
    Agent::start(bed, home, flags)?.kill()?;
    let latest = begin.elapsed() * 3 / 2;
    let mut at_work = 0;
    for n in 0..KILLED {
        let mut command = home.command(bed, "run");
        command
            .args(["--listen", LISTEN, "--interval", "100ms"])
            .args(flags);
        let agent = Agent::spawn(bed, home, &mut command)?;
        let random = RandomState::new().hash_one(n).to_le_bytes()[0];
        let moment = latest * u32::from(random) / 255;
        std::thread::sleep(moment);
        at_work += u32::from(agent.get("/ready", "").is_ok_and(|r| r.status == 200));
        agent.kill()?;
        let hooks = attached(bed)?;
        let stale = hooks
            .iter()
            .any(|hook| attach == "tcx" || !hook.ends_with(": 1"));
        ensure!(!stale, "killed after {moment:?}: {hooks:?}");
    }
    println!("{attach}: {at_work} of {KILLED} were ready");
    ensure!(at_work > 0 && at_work < KILLED, "{at_work} were ready");
    Ok(())
}

/// Does something while datagrams go to a pod and to the outside and back. Nothing heals these: one that is lost is an
/// error.
fn while_datagrams_fly(bed: &Testbed, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (client, web) = (bed.pod(0), bed.pod(1));
    let servers = [
        UdpServer::echo(web.netns(), (web.ip(), 53))?,
        UdpServer::echo(bed.outside(), (bed.outside_ip(), 53))?,
    ];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let datagrams = scope.spawn(|| {
            while !over.load(SeqCst) {
                for server in &servers {
                    Udp::to(server.address())
                        .datagrams(20)
                        .run(client.netns())?;
                }
            }
            anyhow::Ok(())
        });
        let worked = work();
        over.store(true, SeqCst);
        datagrams.join().expect("the datagrams do not panic")?;
        worked
    })
}

fn killed_and_followed(attach: &str) -> Result<()> {
    let bed = Testbed::azure_overlay().offloads(false).build()?;
    if attach == "tcx" && !has_tcx(bed.node().netns()) {
        println!("skipped: this kernel has no tcx");
        return Ok(());
    }
    let (client, web) = (bed.pod(0), bed.pod(1));
    let near = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let outside = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
    count_own(&bed)?;
    Tcp::to(near.address()).run(client.netns())?;
    Tcp::to(outside.address()).run(client.netns())?;
    bed.settle()?;
    bed.pin_neighbours()?;

    let lines = [
        Line::open(client.netns(), near.address(), GAP)?,
        Line::open(client.netns(), outside.address(), GAP)?,
    ];
    let each = |work: &dyn Fn(&Line) -> Result<()>| lines.iter().try_for_each(work);
    let home = Home::new()?;
    let flags: Vec<String> = plan_flags(&bed)
        .into_iter()
        .chain(["--attach".to_owned(), attach.to_owned()])
        .collect();
    let expected = Agent::start(&bed, &home, &flags)?.attached()?.len() * 2;
    // The first was dropped, that is, killed. Two more, killed under traffic.
    for _ in 0..2 {
        let agent = Agent::start(&bed, &home, &flags)?;
        each(&|line| line.go_on(20))?;
        agent.kill()?;
        each(&|line| line.go_on(20))?;
        ensure!(home.socket().exists(), "a killed agent leaves its socket");
        let hooks = attached(&bed)?;
        let left = if attach == "tcx" { 0 } else { expected };
        ensure!(hooks.len() == left, "left by a killed agent: {hooks:?}");
    }

    while_datagrams_fly(&bed, || kill_at_random_moments(&bed, &home, &flags, attach))?;

    // A life that begins in quiet: it counts exactly what passes in it, on the connections it met midway.
    each(&|line| line.pause(true))?;
    bed.settle()?;
    let before = Truth::now(&bed)?;
    let agent = Agent::start(&bed, &home, &flags)?;
    let hooks = attached(&bed)?;
    ensure!(
        hooks.len() == expected
            && hooks
                .iter()
                .all(|h| h.contains(attach) && h.ends_with(": 1")),
        "exactly one on each hook: {hooks:?}"
    );
    each(&|line| line.pause(false))?;
    each(&|line| line.go_on(50))?;
    Tcp::to(near.address()).connections(7).run(client.netns())?;
    Tcp::to(outside.address())
        .connections(5)
        .run(client.netns())?;
    each(&|line| line.pause(true))?;
    let scrape = agent.settled()?;
    let truth = Truth::now(&bed)?.since(before);
    assert_eq!(
        scrape.count("aksnet_flow_packets_total", &[]),
        truth.packets
    );
    assert_eq!(scrape.count("aksnet_flow_bytes_total", &[]), truth.bytes);
    assert_eq!(
        scrape.count_by("aksnet_flow_connections_total", ["class", "nat"]),
        [
            (["pod_to_pod", "none"], 7),
            (["pod_to_external", "snat"], 5)
        ]
        .map(|(labels, n)| (labels.map(str::to_owned), n))
        .into()
    );
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    each(&|line| line.pause(false))?;
    each(&|line| line.go_on(10))?;
    agent.stop(Signal::SIGTERM)?;
    each(&|line| line.go_on(10))?;

    let mut sent = Vec::new();
    for line in lines {
        sent.push(line.close()?);
    }
    // Besides the lines: 100 bytes in each connection.
    for (server, (sent, others)) in [&near, &outside].into_iter().zip(sent.iter().zip([8, 6])) {
        server.settle()?;
        assert_eq!(server.received(), sent + 100 * others, "no byte was lost");
        assert_eq!(server.sent(), server.received());
    }
    Ok(())
}

#[test]
fn a_killed_agents_successor_takes_over_cleanly_by_tcx() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    killed_and_followed("tcx")
}

#[test]
fn a_killed_agents_successor_takes_over_cleanly_by_clsact() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    killed_and_followed("clsact")
}

#[test]
fn filters_of_others_stay_when_the_agent_comes_and_goes() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let netns = bed.node().netns();
    let veth = bed.pod(0).veth().to_owned();
    netns.output("tc", ["qdisc", "add", "dev", &veth, "clsact"])?;
    let other = [
        "filter", "add", "dev", &veth, "ingress", "pref", "7", "protocol", "ip", "u32",
    ];
    let other = other
        .into_iter()
        .chain(["match", "u32", "0", "0", "flowid", "1:1"]);
    netns.output("tc", other)?;
    let shown = || netns.output("tc", ["filter", "show", "dev", &veth, "ingress"]);
    let before = shown()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, ["--attach", "clsact"])?;
    let with = shown()?;
    assert!(
        with.contains("direct-action") && with.contains("pref 7 u32"),
        "{with}"
    );
    agent.kill()?;
    let agent = Agent::start(&bed, &home, ["--attach", "clsact"])?;
    assert_eq!(shown()?.matches("direct-action").count(), 1);
    agent.stop(Signal::SIGTERM)?;
    assert_eq!(shown()?, before);
    let qdiscs = netns.output("tc", ["qdisc", "show", "dev", &veth])?;
    assert!(qdiscs.contains("clsact"), "others' qdisc stays: {qdiscs}");
    Ok(())
}

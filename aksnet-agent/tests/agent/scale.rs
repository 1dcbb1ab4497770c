//! Full tables, many short connections, many live flows: totals stay exact and the agent stays small.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use xtask::{
    bench::process::processor_time,
    testbed::{
        Testbed, counters,
        frame::{Frame, Packet},
        traffic::{
            Connect, FrameSocket, ShortConnections, Tcp, TcpServer, Udp, UdpServer, connect,
        },
    },
};

use crate::{
    life::{Agent, Home, eventually, plan_flags, turn},
    line::Line,
    truth::{Truth, count_own},
};

/// A node with offloads off, so that interfaces count packets as on the wire, and known neighbours.
fn bed_with_servers() -> Result<(Testbed, Vec<TcpServer>, UdpServer)> {
    let bed = Testbed::azure_overlay().offloads(false).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let servers = [8080, 8081]
        .map(|port| TcpServer::echo(web.netns(), (web.ip(), port)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let udp = UdpServer::echo(web.netns(), (web.ip(), 53))?;
    count_own(&bed)?;
    Tcp::to(servers[0].address()).run(client.netns())?;
    Tcp::to(servers[0].address()).run(bed.remote_pod(0).netns())?;
    bed.settle()?;
    bed.pin_neighbours()?;
    Ok((bed, servers, udp))
}

#[test]
fn tables_far_too_small_lose_no_packet() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let (bed, servers, udp) = bed_with_servers()?;
    let home = Home::new()?;
    let flags = plan_flags(&bed).into_iter();
    let before = Truth::now(&bed)?;
    let agent = Agent::start(
        &bed,
        &home,
        flags.chain(["--flow-cells=16".to_owned(), "--spill-entries=4".to_owned()]),
    )?;
    let client = bed.pod(0);
    for _ in 0..5 {
        Tcp::to(servers[0].address())
            .connections(40)
            .parallel(4)
            .run(client.netns())?;
        Tcp::to(servers[1].address())
            .connections(20)
            .run(bed.remote_pod(0).netns())?;
        for _ in 0..20 {
            Udp::to(udp.address()).datagrams(3).run(client.netns())?;
        }
    }
    for server in &servers {
        server.settle()?;
    }
    let scrape = agent.settled()?;
    let truth = Truth::now(&bed)?.since(before);
    let overflow =
        |what: &str| scrape.count(&format!("aksnet_agent_flow_overflow_{what}_total"), &[]);
    assert!(overflow("packets") > 0, "the tables were full");
    assert_eq!(
        scrape.count("aksnet_flow_packets_total", &[]) + overflow("packets"),
        truth.packets,
        "overflow {}",
        overflow("packets")
    );
    assert_eq!(
        scrape.count("aksnet_flow_bytes_total", &[]) + overflow("bytes"),
        truth.bytes
    );
    assert_eq!(scrape.count("aksnet_agent_flow_map_limit", &[]), 16);
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// 20,000 short connections while cells are retired as fast as they may be.
fn short_connections(flags: &[&str], roomy: bool) -> Result<()> {
    let (bed, servers, _udp) = bed_with_servers()?;
    let home = Home::new()?;
    let before = Truth::now(&bed)?;
    let flags = plan_flags(&bed)
        .into_iter()
        .chain(["--idle-timeout=1s".to_owned()])
        .chain(flags.iter().map(|f| (*f).to_owned()));
    let agent = Agent::start(&bed, &home, flags)?;
    let ready = Truth::now(&bed)?;
    let to = servers.iter().map(TcpServer::address);
    let report = ShortConnections::to(to, 20_000).run(bed.pod(0).netns())?;
    assert_eq!(report.connections, 20_000);
    for server in &servers {
        server.settle()?;
    }
    bed.settle()?;
    let truth = Truth::now(&bed)?;
    let (retransmits, truth) = (truth.since(ready).retransmits, truth.since(before));
    let scrape = agent.settled()?;
    let count = |name: &str| scrape.count(name, &[]);
    let handshakes = count("aksnet_tcp_handshake_seconds_count");
    let counted = count("aksnet_tcp_retransmits_total");
    println!(
        "20,000 connections in {:?}: {handshakes} handshakes measured, {counted} of {retransmits} \
         retransmits seen",
        report.elapsed
    );
    assert_eq!(count("aksnet_flow_connections_total"), 20_000);
    assert_eq!(count("aksnet_flow_packets_total"), truth.packets);
    assert_eq!(count("aksnet_flow_bytes_total"), truth.bytes);
    assert_eq!(count("aksnet_tcp_handshake_failures_total"), 0);
    // A flow that spills has no times: for each handshake that is not measured, a packet spilled.
    let spilled = scrape.count(
        "aksnet_agent_datapath_events_total",
        &[("event", "spilled")],
    );
    assert!(
        handshakes <= 20_000 && handshakes + spilled >= 20_000,
        "{handshakes} + {spilled}"
    );
    assert!(counted <= retransmits && counted + spilled >= retransmits);
    // With room for ten times as many flows, hardly any bucket is ever full.
    assert!(!roomy || handshakes > 19_900, "{handshakes}");
    eventually("every cell is given back", || {
        Ok(agent.scrape()?.count("aksnet_agent_flow_map_entries", &[]) == 0)
    })?;
    let last = agent.scrape()?;
    assert_eq!(last.count("aksnet_flow_packets_total", &[]), truth.packets);
    assert_eq!(last.count("aksnet_flow_connections_total", &[]), 20_000);
    assert_eq!(last.count("aksnet_tcp_handshake_failures_total", &[]), 0);
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn twenty_thousand_short_connections_are_all_counted_while_cells_are_retired() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    short_connections(&[], false)?;
    short_connections(&["--flow-cells=524288"], true)
}

/// Answers that have no cell were given all the same.
#[test]
fn connections_whose_answers_spill_are_not_called_unanswered() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let (bed, servers, _udp) = bed_with_servers()?;
    let home = Home::new()?;
    for small in [
        ["--flow-cells=16", "--spill-entries=4"],
        ["--flow-cells=16", "--spill-entries=4096"],
    ] {
        let flags = plan_flags(&bed).into_iter().chain(small.map(str::to_owned));
        let agent = Agent::start(&bed, &home, flags)?;
        let lines = (0..30)
            .map(|n| {
                Line::open(
                    bed.pod(0).netns(),
                    servers[n % 2].address(),
                    Duration::from_millis(100),
                )
            })
            .collect::<Result<Vec<_>>>()?;
        // Refusals, whose only answer is a reset.
        let closed = SocketAddr::new(bed.pod(1).ip(), 4_242);
        for _ in 0..if small[1].ends_with("=4") { 0 } else { 10 } {
            let refused = connect(bed.pod(0).netns(), closed, Duration::from_secs(1))?;
            assert_eq!(refused, Connect::Refused);
        }
        // A SYN is given up after ten seconds.
        std::thread::sleep(Duration::from_secs(12));
        let failures = agent.scrape()?.count(
            "aksnet_tcp_handshake_failures_total",
            &[("outcome", "unanswered")],
        );
        assert_eq!(failures, 0, "{small:?}");
        for line in lines {
            line.close()?;
        }
        agent.stop(Signal::SIGTERM)?;
    }
    Ok(())
}

/// A figure of `/proc/PID/status` in kB.
pub fn memory(pid: u32, what: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text
        .lines()
        .find(|l| l.starts_with(what))
        .context("a figure")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("a number")?
        .parse()?)
}

/// Resident kB of a process's own binary.
pub fn code(pid: u32) -> Result<u64> {
    let binary = fs::read_link(format!("/proc/{pid}/exe"))?;
    let binary = binary.to_str().context("text")?;
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut own, mut sum) = (false, 0);
    for line in maps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            own = line.ends_with(binary);
        } else if own && first == "Rss:" {
            let kb = line.split_whitespace().nth(1).context("a number")?;
            sum += kb.parse::<u64>()?;
        }
    }
    Ok(sum)
}

#[test]
fn sixty_thousand_live_flows_fit_in_64_mebibytes() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let (bed, _servers, _udp) = bed_with_servers()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let home = Home::new()?;
    let flags = plan_flags(&bed)
        .into_iter()
        .chain(["--interval=1s".to_owned()]);
    let mut command = home.command(&bed, "run");
    command.args(["--listen", crate::life::LISTEN]).args(flags);
    let mut agent = Agent::spawn(&bed, &home, &mut command)?;
    agent.await_ready()?;
    let idle = memory(agent.pid(), "VmRSS:")?;

    // Somebody has to take them, or each would be answered by an ICMP error.
    let _silent = web.netns().run(|| Ok(UdpSocket::bind((web.ip(), 9))?))?;
    let from = counters::mac(client.netns(), "eth0")?;
    let to = counters::mac(bed.node().netns(), client.veth())?;
    let socket = FrameSocket::open(client.netns(), "eth0")?;
    for round in 0..3 {
        for port in 2_000..62_000 {
            let source = SocketAddr::new(client.ip(), port);
            let packet = Packet::udp(source, SocketAddr::new(web.ip(), 9), b"live");
            socket.send(&Frame::new(from, to, packet).build())?;
        }
        if round == 0 {
            std::thread::sleep(Duration::from_secs(2));
        }
    }
    let cpu = processor_time(agent.pid())?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let scrape = agent.scrape()?;
    let busy = processor_time(agent.pid())?.saturating_sub(cpu);
    let (rss, peak) = (
        memory(agent.pid(), "VmRSS:")?,
        memory(agent.pid(), "VmHWM:")?,
    );
    let live = scrape.count("aksnet_agent_flow_map_entries", &[]);
    let share = 100.0 * busy.as_secs_f64() / started.elapsed().as_secs_f64();
    let parts = ["RssAnon:", "RssFile:", "RssShmem:"].map(|p| memory(agent.pid(), p).unwrap_or(0));
    println!(
        "{live} live flows: RSS {rss} kB (peak {peak} kB, without flows {idle} kB; anonymous, files, shared: \
         {parts:?}), {share:.1}% of a core"
    );
    // The rest spilled: full buckets are nothing unusual in a table that is nine tenths full.
    assert!(live > 45_000, "{live} live flows");
    assert_eq!(
        scrape.count("aksnet_flow_packets_total", &[("protocol", "udp")]),
        180_000
    );
    // Code that is not optimised is three times the size of a release's, and no part of what is promised.
    let code = if cfg!(debug_assertions) {
        code(agent.pid())?
    } else {
        0
    };
    println!("of that, {code} kB are unoptimised code");
    assert!(rss - code < 64 * 1024, "RSS {rss} kB, code {code} kB");
    assert!(share < 100.0, "sweeps and a scrape take {share}% of a core");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

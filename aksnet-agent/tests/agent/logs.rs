//! What the agent logs, and what it makes the kernel account.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use xtask::testbed::{
    Testbed, counters,
    frame::{Frame, Packet},
    traffic::{FrameSocket, Tcp, TcpServer},
};

use crate::life::{Agent, Home, eventually, turn};

/// Sends a datagram from a pod that ends within its UDP header.
fn send_damaged(bed: &Testbed) -> Result<()> {
    let (client, web) = (bed.pod(0), bed.pod(1));
    let from = counters::mac(client.netns(), "eth0")?;
    let to = counters::mac(bed.node().netns(), client.veth())?;
    let ends = |ip| SocketAddr::new(ip, 53);
    let packet = Packet::udp(ends(client.ip()), ends(web.ip()), b"whole");
    let mut frame = Frame::new(from, to, packet).build();
    frame.truncate(14 + 20 + 3);
    FrameSocket::open(client.netns(), "eth0")?.send(&frame)
}

fn skipped(agent: &Agent) -> Result<u64> {
    Ok(agent
        .scrape()?
        .count("aksnet_agent_skipped_packets_total", &[]))
}

const LINE: &str = " not accounted: reason ";

#[test]
fn a_damaged_packet_is_counted_and_logged_only_if_asked() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    for (flags, logged) in [
        (&[][..], false),
        (&["--bpf-log=error"], false),
        (&["--bpf-log=debug"], true),
    ] {
        let home = Home::new()?;
        let agent = Agent::start(&bed, &home, flags)?;
        send_damaged(&bed)?;
        eventually("it is counted", || Ok(skipped(&agent)? >= 1))?;
        let scrape = agent.scrape()?;
        let mut reasons = scrape.count_by("aksnet_agent_skipped_packets_total", ["reason"]);
        // ARP may pass at any time.
        reasons.remove(&["not_ip".to_owned()]);
        assert_eq!(reasons, [(["truncated_ip".to_owned()], 1)].into());
        if logged {
            eventually("it is logged", || Ok(agent.said().contains(LINE)))?;
            let said = agent.said();
            let line = said.lines().find(|l| l.contains(LINE)).context("a line")?;
            let index = bed.node().link(bed.pod(0).veth())?.index;
            // The frame, with its Ethernet header.
            let words = format!("packet of 37 bytes on interface {index} not accounted");
            assert!(line.contains(&words), "{line}");
            assert!(!said.contains(" relocating "), "aya is not asked");
        } else {
            std::thread::sleep(std::time::Duration::from_millis(500));
            assert!(!agent.said().contains(LINE), "{}", agent.said());
        }
        agent.stop(Signal::SIGTERM)?;
    }
    Ok(())
}

#[test]
fn run_times_are_accounted_when_asked_for() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, ["--bpf-stats"])?;
    Tcp::to(server.address())
        .connections(20)
        .run(client.netns())?;
    let scrape = agent.settled()?;
    for program in ["enter", "exit"] {
        let labels = [("program", program)];
        let runs = scrape.count("aksnet_agent_bpf_runs_total", &labels);
        let seconds = scrape.sum("aksnet_agent_bpf_run_seconds_total", &labels);
        assert!(runs >= 200, "{program} ran {runs} times");
        assert!(seconds > 0.0 && seconds < 1.0, "{program} took {seconds} s");
    }
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn json_logs_are_one_object_a_line() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().pods(1).build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, ["--log-format=json"])?;
    let said = agent.stop(Signal::SIGTERM)?;
    assert!(said.lines().count() > 5, "{said}");
    for line in said.lines() {
        let object: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        assert!(
            object["level"].is_string() && object["message"].is_string(),
            "{line}"
        );
    }
    Ok(())
}

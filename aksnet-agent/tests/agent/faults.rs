//! What goes wrong around an agent: interfaces by the thousand, no file descriptors, a clock that jumps, flows
//! without end. It goes on, says what it lacks, and what it counts stays right.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use xtask::testbed::{Family, Testbed, counters, traffic::Flood};

use crate::{
    life::{Agent, BINARY, Home, LISTEN, eventually, plan_flags, turn},
    quiet::Quiet,
    scale::memory,
};

/// Interfaces that are there at once.
const AT_ONCE: usize = 100;

/// Flows of one packet each: as many as a busy node has in a day.
const FLOWS: u32 = 10_000_000;

/// Open file descriptors of a process.
fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn two_thousand_interfaces_come_and_go_and_leave_nothing_behind() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let quiet = Quiet::build()?;
    let node = quiet.bed.node().netns();
    let home = Home::new()?;
    let flags = plan_flags(&quiet.bed).into_iter();
    let pattern = "--pod-interface=azv*,churn*".to_owned();
    let agent = Agent::start(&quiet.bed, &home, flags.chain([pattern]))?;
    let before = agent.attached()?;
    let (open, mut most) = (descriptors(agent.pid())?, 0);
    for round in 0..20 {
        node.ip((0..AT_ONCE).map(|n| {
            let (near, far) = (format!("churn{n}"), format!("other{n}"));
            format!("link add {near} up type veth peer name {far}")
        }))?;
        // Some rounds end before the agent has got to the last.
        if round % 4 == 0 {
            eventually("all of a round are watched", || {
                most = most.max(agent.attached()?.len());
                Ok(most == before.len() + AT_ONCE)
            })?;
        }
        node.ip((0..AT_ONCE).map(|n| format!("link del churn{n}")))?;
    }
    eventually("all are forgotten", || Ok(agent.attached()? == before))?;
    eventually("nothing is left open", || {
        Ok(descriptors(agent.pid())? <= open)
    })?;
    quiet.is_counted(&agent, 50)?;
    let complaints = agent.complaints();
    ensure!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn without_a_descriptor_left_it_waits_for_one_and_goes_on() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let quiet = Quiet::build()?;
    let home = Home::new()?;
    let agent = Agent::start(&quiet.bed, &home, plan_flags(&quiet.bed))?;
    let open = descriptors(agent.pid())?;
    // As its container may have it: room for a few clients, and far more come.
    let status = Command::new("prlimit")
        .arg(format!("--pid={}", agent.pid()))
        .arg(format!("--nofile={}", open + 8))
        .status()
        .context("prlimit")?;
    ensure!(status.success(), "prlimit");
    let crowd = (0..100).map(|_| agent.dial()).collect::<Result<Vec<_>>>()?;
    eventually("none is left", || Ok(descriptors(agent.pid())? >= open + 8))?;
    // A pod that comes meanwhile needs some as well.
    let pod = quiet.bed.add_pod("late")?;
    std::thread::sleep(Duration::from_secs(1));
    drop(crowd);
    eventually("it answers again", || {
        Ok(agent.get("/ready", "").is_ok_and(|r| r.status == 200))
    })?;
    eventually("the late pod is watched", || {
        Ok(agent.attached()?.iter().any(|name| name == pod.veth()))
    })
    .with_context(|| agent.said())?;
    quiet.bed.settle()?;
    quiet.bed.pin_neighbours()?;
    quiet.is_counted(&agent, 20)?;
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// Starts an agent after these commands, in a view of the machine of its own.
fn start_after<'a>(quiet: &'a Quiet, home: &Home, commands: &str) -> Result<Agent<'a>> {
    let mut command = quiet.bed.node().netns().command_with_sysfs("sh");
    command
        .args(["-ec", &format!("{commands}; exec \"$@\""), "sh", BINARY])
        .args(["run", "--listen", LISTEN, "--interval", "100ms"])
        .arg(format!("--socket={}", home.socket().display()))
        .args(plan_flags(&quiet.bed));
    Agent::spawn(&quiet.bed, home, &mut command)
}

#[test]
fn without_proc_it_ends_with_one_line_and_without_parts_of_it_it_counts() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let quiet = Quiet::build()?;
    let home = Home::new()?;
    let mut agent = start_after(&quiet, &home, "mount -t tmpfs none /proc")?;
    assert_eq!(agent.code()?, Some(70));
    let said = agent.said();
    let last = said.trim_end().lines().last().unwrap_or_default();
    ensure!(last.contains("/proc/thread-self/ns/net"), "{said}");
    drop(agent);

    // Symbols, and conntrack's and the network's settings.
    let masked = "mount --bind /dev/null /proc/kallsyms; mount -t tmpfs none /proc/sys";
    let mut agent = start_after(&quiet, &home, masked)?;
    agent.await_ready()?;
    quiet.is_counted(&agent, 20)?;
    let complaints = agent.complaints();
    ensure!(
        complaints.len() == 1 && complaints[0].contains("/proc/kallsyms tells no addresses"),
        "{complaints:?}"
    );
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// The library that shifts a process's clock.
fn faketime() -> Result<PathBuf> {
    for directory in fs::read_dir("/usr/lib")? {
        let library = directory?.path().join("faketime/libfaketimeMT.so.1");
        if library.exists() {
            return Ok(library);
        }
    }
    anyhow::bail!("no libfaketimeMT.so.1: run `cargo xtask setup`")
}

/// Records of the connections that have been closed.
fn closed(home: &Home, bed: &Testbed) -> Result<Vec<Value>> {
    let output = home.command(bed, "flows").arg("--json").output()?;
    let lines = String::from_utf8(output.stdout)?;
    let records = lines.lines().map(serde_json::from_str);
    let mut records = records.collect::<Result<Vec<Value>, _>>()?;
    records.retain(|record| record["end"] == "closed");
    Ok(records)
}

#[test]
fn a_clock_that_jumps_changes_no_count_and_no_duration() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let quiet = Quiet::build()?;
    let home = Home::new()?;
    let clock = home.path().join("clock");
    fs::write(&clock, "+0")?;
    let mut command = home.command(&quiet.bed, "run");
    command
        .args(["--listen", LISTEN, "--interval", "100ms"])
        .args(plan_flags(&quiet.bed))
        .env("LD_PRELOAD", faketime()?)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut agent = Agent::spawn(&quiet.bed, &home, &mut command)?;
    agent.await_ready()?;
    let mut all = BTreeSet::new();
    let mut days = BTreeSet::new();
    for (n, jump) in ["-400d", "+30d", "-1h", "+0"].iter().enumerate() {
        fs::write(&clock, jump)?;
        quiet.is_counted(&agent, 10).with_context(|| *jump)?;
        eventually("each connection has a record", || {
            for record in closed(&home, &quiet.bed)? {
                let at = |key: &str| record[key].as_i64().context(key.to_owned());
                let (start, end) = (at("start_ms")?, at("end_ms")?);
                ensure!((0..60_000).contains(&(end - start)), "{jump}: {record}");
                if all.insert(record["before"]["src_port"].to_string()) {
                    days.insert(end / 86_400_000);
                }
            }
            Ok(all.len() == 10 * (n + 1))
        })?;
    }
    // A year ago, in a month, and now.
    ensure!(days.len() >= 3, "{days:?}");
    let complaints = agent.complaints();
    ensure!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn an_agent_that_stands_still_counts_what_passed_meanwhile() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let quiet = Quiet::build()?;
    let home = Home::new()?;
    // Idle flows are long over by then, some before, and some met only afterwards.
    let idle = ["--idle-timeout=2s".to_owned()];
    let flags = plan_flags(&quiet.bed).into_iter().chain(idle);
    let mut agent = Agent::start(&quiet.bed, &home, flags)?;
    quiet.is_counted(&agent, 10)?;
    quiet.is_counted_after(&agent, || {
        agent.signal(Signal::SIGSTOP)?;
        let before = quiet.talk(200)?;
        std::thread::sleep(Duration::from_secs(6));
        let after = quiet.talk(200)?;
        agent.signal(Signal::SIGCONT)?;
        Ok(before + after)
    })?;
    // Interfaces that come while it stands still are found by it afterwards.
    agent.signal(Signal::SIGSTOP)?;
    let pod = quiet.bed.add_pod("late")?;
    agent.signal(Signal::SIGCONT)?;
    eventually("the pod that came meanwhile is watched", || {
        Ok(agent.attached()?.iter().any(|name| name == pod.veth()))
    })?;
    quiet.bed.settle()?;
    quiet.bed.pin_neighbours()?;
    quiet.is_counted(&agent, 10)?;
    let complaints = agent.complaints();
    ensure!(complaints.is_empty(), "{complaints:?}");
    ensure!(agent.is_alive()?, "it goes on");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn flows_without_end_are_all_counted_and_leave_its_memory_as_it_is() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let quiet = Quiet::build()?;
    let bed = &quiet.bed;
    let (client, web) = (bed.pod(0), bed.pod(1));
    // Nothing of the kernel's own grows meanwhile, and nobody answers.
    let untracked = "*raw\n-I PREROUTING 1 -p udp -j CT --notrack\nCOMMIT\n";
    bed.node().restore(Family::V4, untracked)?;
    let swallow = "*raw\n-I PREROUTING 1 -p udp -j DROP\nCOMMIT\n";
    web.netns()
        .output_with_input("iptables-restore", ["--noflush"], swallow)?;
    let home = Home::new()?;
    let flags = plan_flags(bed).into_iter();
    let agent = Agent::start(bed, &home, flags.chain(["--idle-timeout=1s".to_owned()]))?;
    let before = agent.settled()?;

    let stations = [
        counters::mac(client.netns(), "eth0")?,
        counters::mac(bed.node().netns(), client.veth())?,
    ];
    let mut flood = Flood::open(
        client.netns(),
        "eth0",
        stations,
        [client.address().v4, web.address().v4],
        1_000,
    )?;
    flood.set_flows(FLOWS);
    let part = FLOWS / 10;
    let mut resident = Vec::new();
    for _ in 0..10 {
        flood.send(part)?;
        // A sweep at least.
        std::thread::sleep(Duration::from_millis(300));
        resident.push(memory(agent.pid(), "VmRSS:")?);
    }
    let after = agent.settled()?;
    let count = |name: &str| after.count(name, &[]) - before.count(name, &[]);
    let packets = count("aksnet_flow_packets_total");
    let overflow = count("aksnet_agent_flow_overflow_packets_total");
    println!(
        "kB resident after each million flows: {resident:?}; {overflow} packets in the overflow counters"
    );
    let sent = u64::from(part.div_ceil(64) * 64 * 10);
    ensure!(
        packets + overflow == sent,
        "{packets} + {overflow} of {sent}"
    );
    // One byte for each flow would be more: nothing is kept of flows that have gone, but what is bounded for all of them
    // together.
    let (second, last) = (resident[1], resident[9]);
    ensure!(last < second + 8 * 1024, "{resident:?}");
    eventually("every cell is given back", || {
        Ok(agent.scrape()?.count("aksnet_agent_flow_map_entries", &[]) == 0)
    })?;
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

//! *Delay* that is known, because netem adds it: what the agent measures lies between it and what a client on the same
//! way measured. Both bounds hold on a machine of any speed.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use xtask::testbed::{
    Netns, Testbed,
    traffic::{TcpServer, UdpServer},
};

use super::can;
use crate::life::{Agent, Home, eventually, plan_flags, stretched, turn};

/// What the other end adds to each of its answers.
const FAR: Duration = Duration::from_millis(80);

/// What the node adds between where packets enter it and its NAT.
const NEAR: Duration = Duration::from_millis(50);

const TIMES: u32 = 8;

/// The clock that times packets and netem's own differ by less: netem rounds to its ticks, of 64 ns.
const ROUNDING: f64 = 0.000_1;

/// Puts a delay on what a device of a namespace sends; `false` where the kernel has no netem.
fn delay(netns: &Netns, device: &str, by: Duration) -> bool {
    let by = format!("{}ms", by.as_millis());
    let words = ["qdisc", "add", "dev", device, "root", "netem", "delay", &by];
    netns.output("tc", words).is_ok()
}

/// Delays what comes in at a device, after the agent's program has seen it and before anything else does: packets make
/// a detour by an `ifb`, which has them go on where they were.
fn delay_inbound(netns: &Netns, device: &str, by: Duration) -> Result<()> {
    netns.ip(["link add detour type ifb", "link set detour up"])?;
    ensure!(delay(netns, "detour", by), "no netem on an ifb");
    let shown = netns.output("tc", ["qdisc", "show", "dev", device])?;
    if !shown.contains("clsact") {
        netns.output("tc", ["qdisc", "add", "dev", device, "clsact"])?;
    }
    // Behind the agent's own filter, of priority 1, where it is one.
    let filter =
        "filter add dev DEVICE ingress prio 7 matchall action mirred egress redirect dev detour";
    let words: Vec<&str> = filter
        .split(' ')
        .map(|word| if word == "DEVICE" { device } else { word })
        .collect();
    netns.output("tc", words)?;
    Ok(())
}

/// How long something takes in a namespace, in seconds, each of [`TIMES`] times and all together.
fn timed(netns: &Netns, once: impl Fn() -> Result<()> + Send + Sync) -> Result<f64> {
    netns.run(|| {
        let mut all = 0.0;
        for _ in 0..TIMES {
            let began = Instant::now();
            once()?;
            all += began.elapsed().as_secs_f64();
        }
        Ok(all)
    })
}

#[test]
fn handshakes_take_what_the_other_end_adds() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    if !can("netem", delay(bed.outside(), "eth0", FAR)) {
        return Ok(());
    }
    let server = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let to = server.address();
    let clients = timed(bed.pod(0).netns(), || {
        TcpStream::connect_timeout(&to, stretched(Duration::from_secs(5)))?;
        Ok(())
    })?;
    let labels = [("class", "pod_to_external"), ("nat", "snat")];
    let name = "aksnet_tcp_handshake_seconds";
    eventually("every handshake is timed", || {
        Ok(agent.scrape()?.count(&format!("{name}_count"), &labels) >= u64::from(TIMES))
    })?;
    let scrape = agent.settled()?;
    assert_eq!(
        scrape.count(&format!("{name}_count"), &labels),
        u64::from(TIMES)
    );
    between(scrape.sum(&format!("{name}_sum"), &labels), FAR, clients);
    Ok(())
}

#[test]
fn the_nat_path_takes_what_the_node_adds() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    // Whether there is netem is tried where it harms nobody.
    if !can("netem", delay(bed.vm(), "lo", NEAR)) {
        return Ok(());
    }
    let server = UdpServer::echo(bed.outside(), (bed.outside_ip(), 5300))?;
    let home = Home::new()?;
    let flags = plan_flags(&bed)
        .into_iter()
        .chain(["--sample=1".to_owned()]);
    let agent = Agent::start(&bed, &home, flags)?;
    delay_inbound(bed.node().netns(), bed.node().uplink(), NEAR)?;
    let to: SocketAddr = server.address();
    let clients = timed(bed.pod(0).netns(), || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(stretched(Duration::from_secs(5))))?;
        socket.send_to(b"how long", to)?;
        socket.recv_from(&mut [0; 16])?;
        Ok(())
    })?;
    let labels = [("class", "pod_to_external"), ("nat", "snat")];
    let name = "aksnet_nat_path_seconds";
    // Of each exchange the request and the answer are timed; the answer makes the detour.
    let timed = u64::from(2 * TIMES);
    eventually("every packet is timed", || {
        Ok(agent.scrape()?.count(&format!("{name}_count"), &labels) >= timed)
    })?;
    let scrape = agent.scrape()?;
    assert_eq!(scrape.count(&format!("{name}_count"), &labels), timed);
    between(scrape.sum(&format!("{name}_sum"), &labels), NEAR, clients);
    Ok(())
}

/// What was measured of [`TIMES`] is at least what was added, and at most what clients waited.
fn between(measured: f64, added: Duration, clients: f64) {
    let least = added.as_secs_f64() * f64::from(TIMES);
    let mean = |all: f64| 1e3 * all / f64::from(TIMES);
    println!(
        "added {:.1} ms, measured {:.3} ms, a client {:.3} ms",
        mean(least),
        mean(measured),
        mean(clients)
    );
    assert!(
        measured >= least - ROUNDING,
        "measured {measured} s, added {least} s"
    );
    assert!(
        measured <= clients + ROUNDING,
        "measured {measured} s, clients waited {clients} s"
    );
}

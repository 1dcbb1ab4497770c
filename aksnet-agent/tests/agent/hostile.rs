//! *Hostile traffic*: what somebody sends who wants the agent to miscount, to grow or to fall over. Totals stay those of
//! the kernel, the agent stays small, and what others do is told as before.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use xtask::testbed::{
    Family, Netns, Pod, Service, Testbed,
    api::objects,
    counters,
    frame::{Frame, Mac, Packet, SYN},
    snmp::Counters,
    traffic::{FrameSocket, Ping, RawIp, Tcp, TcpServer, Udp, UdpServer},
};

use crate::{
    cluster,
    life::{Agent, Home, eventually, plan_flags, turn},
    line::Line,
    scale::{code, memory},
    scrape::Scrape,
    truth::{Truth, count_own},
};

/// The most that the agent takes at its default sizes, code of an unoptimised build aside; `docs/reliability.md` has it.
const LARGEST_KB: u64 = 96 * 1024;

/// A table that the flood is five times as large as.
const CELLS: u32 = 16_384;
const SPILL: u32 = 4_096;
const FLOOD: u32 = 100_000;
const SYNS: u32 = 20_000;

/// A sequence that a seed determines (splitmix64).
struct Dice(u64);

impl Dice {
    fn bytes(&mut self) -> [u8; 8] {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_ne_bytes()
    }
}

/// Sends frames as a pod's own, whatever they say of their sender.
struct Spoofer {
    socket: FrameSocket,
    stations: [Mac; 2],
}

impl Spoofer {
    fn new(bed: &Testbed, pod: &Pod) -> Result<Self> {
        Ok(Self {
            socket: FrameSocket::open(pod.netns(), "eth0")?,
            stations: [
                counters::mac(pod.netns(), "eth0")?,
                counters::mac(bed.node().netns(), pod.veth())?,
            ],
        })
    }

    /// The length of the packet that was sent.
    fn send(&self, packet: Packet) -> Result<u64> {
        let frame = Frame::new(self.stations[0], self.stations[1], packet).build();
        self.socket.send(&frame)?;
        Ok(frame.len() as u64 - 14)
    }
}

fn ipv4(address: IpAddr) -> Result<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => anyhow::bail!("{address} is not IPv4"),
    }
}

/// Everything that was counted is what the kernel counted: with flows, without one, or skipped for a reason.
fn exact(scrape: &Scrape, truth: Truth, skipped: [u64; 2]) {
    let count = |name: &str| scrape.count(name, &[]);
    assert_eq!(count("aksnet_agent_skipped_packets_total"), skipped[0]);
    assert_eq!(
        count("aksnet_flow_packets_total")
            + count("aksnet_agent_flow_overflow_packets_total")
            + skipped[0],
        truth.packets,
        "{truth:?}"
    );
    assert_eq!(
        count("aksnet_flow_bytes_total")
            + count("aksnet_agent_flow_overflow_bytes_total")
            + skipped[1],
        truth.bytes,
        "{truth:?}"
    );
}

/// It runs, says nothing that would fill a disk, and is no larger than promised.
fn unharmed(agent: &mut Agent<'_>) -> Result<()> {
    assert!(agent.is_alive()?);
    let complaints = agent.complaints();
    assert!(complaints.len() <= 3, "{complaints:#?}");
    let (rss, peak) = (
        memory(agent.pid(), "VmRSS:")?,
        memory(agent.pid(), "VmHWM:")?,
    );
    let code = if cfg!(debug_assertions) {
        code(agent.pid())?
    } else {
        0
    };
    println!("RSS {rss} kB, at most {peak} kB, of that {code} kB unoptimised code");
    assert!(peak - code < LARGEST_KB, "{peak} kB, {code} kB of code");
    Ok(())
}

/// 100,000 datagrams with as many spoofed senders through a table of 16,384, then 20,000 connections from outside that
/// never get beyond their SYN, while a connection that was there before goes on.
#[test]
fn a_flood_of_spoofed_senders_and_of_syns_is_counted_and_harms_no_other_flow() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().offloads(false).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let server = TcpServer::echo(web.netns(), (web.ip(), 8081))?;
    let victim =
        bed.add_service(Service::cluster_ip("shop", "victim", 80).endpoints([server.address()]))?;
    let target = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    bed.add_service(
        Service::node_port("shop", "target", 80, 30_080).endpoints([target.address()]),
    )?;
    // Who sends a SYN-ACK once sends no second one after the test has looked.
    web.netns().sysctl("net.ipv4.tcp_synack_retries", "0")?;
    let _silent = web.netns().run(|| Ok(UdpSocket::bind((web.ip(), 9))?))?;
    count_own(&bed)?;
    let (from, to) = (client.ip(), web.ip());
    let rules = format!(
        "*filter\n\
        -I FORWARD 1 -p tcp -s {from} -d {to} --dport 8081 -m comment --comment victim\n\
        -I FORWARD 1 -p tcp -s {to} -d {from} --sport 8081 -m comment --comment victim\n\
        COMMIT\n"
    );
    bed.node().restore(Family::V4, &rules)?;
    Tcp::to(victim.address()).run(client.netns())?;
    Tcp::to(SocketAddr::new(bed.node().ip(), 30_080)).run(bed.outside())?;
    bed.settle()?;
    bed.pin_neighbours()?;
    bed.settle()?;

    let home = Home::new()?;
    let (before, passed_before) = (Truth::now(&bed)?, bed.node().rule_packets("victim")?);
    let flags = plan_flags(&bed).into_iter().chain([
        format!("--flow-cells={CELLS}"),
        format!("--spill-entries={SPILL}"),
        "--idle-timeout=2s".to_owned(),
    ]);
    let mut agent = Agent::start(&bed, &home, flags)?;
    let line = Line::open(client.netns(), victim.address(), Duration::from_millis(5))?;
    line.go_on(20)?;

    let spoofer = Spoofer::new(&bed, &client)?;
    let mut dice = Dice(7);
    for n in 0..FLOOD {
        // All of the address space, with loopback, multicast and broadcast among it.
        let [a, b, c, d, port, rest @ ..] = dice.bytes();
        let port = u16::from_be_bytes([port, rest[0]]);
        let source = SocketAddr::from(([a, b, c, d], port));
        let packet = Packet::udp(source, SocketAddr::new(web.ip(), 9), &n.to_be_bytes());
        spoofer.send(packet)?;
    }
    line.go_on(20)?;
    let node = ipv4(bed.node().ip())?;
    let syns = RawIp::open(bed.outside(), node, 255)?;
    for n in 0..SYNS {
        let [_, b, c, d] = n.to_be_bytes();
        let source = SocketAddr::from(([198, 18 + (b & 1), c, d], 1_024 + u16::from(d)));
        let to = SocketAddr::from((node, 30_080));
        syns.send(&Packet::tcp(source, to, SYN, n).build())?;
    }
    line.go_on(20)?;
    line.close()?;
    server.settle()?;
    bed.settle()?;
    let scrape = agent.settled()?;
    exact(&scrape, Truth::now(&bed)?.since(before), [0, 0]);
    let overflow = scrape.count("aksnet_agent_flow_overflow_packets_total", &[]);
    assert!(overflow > 0, "the flood was too small");
    let dialled = [("class", "pod_to_service"), ("protocol", "tcp")];
    assert_eq!(
        scrape.count("aksnet_flow_packets_total", &dialled),
        bed.node().rule_packets("victim")? - passed_before,
        "of the connection that went on"
    );
    let connections = |scrape: &Scrape| scrape.count("aksnet_flow_connections_total", &dialled);
    assert_eq!(connections(&scrape), 1);
    unharmed(&mut agent)?;

    // Once it is over, there is detail again.
    eventually("the cells are given back", || {
        Ok(agent.scrape()?.count("aksnet_agent_flow_map_entries", &[]) < 100)
    })?;
    Tcp::to(victim.address())
        .connections(20)
        .run(client.netns())?;
    server.settle()?;
    let scrape = agent.settled()?;
    assert_eq!(connections(&scrape), 21);
    let timed = scrape.count("aksnet_tcp_handshake_seconds_count", &dialled[..1]);
    assert_eq!(timed, 21, "every handshake is timed");
    println!("{overflow} packets had no flow of their own");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// Options that say nothing, `units` times eight bytes, in front of this next header.
fn extension(next: u8, units: u8) -> Vec<u8> {
    let mut header = vec![next, units - 1];
    // PadN fills it.
    header.extend([1, units * 8 - 4]);
    header.resize(usize::from(units) * 8, 0);
    header
}

/// Chains of IPv6 extension headers, one for each length up to `longest`; those beyond eight are not walked.
fn chains(bed: &Testbed, spoofer: &Spoofer, longest: u8) -> Result<[u64; 2]> {
    let (client, web) = (bed.pod(0), bed.pod(1));
    let mut skipped = [0, 0];
    for headers in 1..=longest {
        let ends = [(&client, 40_000), (&web, 9)]
            .map(|(pod, port)| SocketAddr::new(pod.ip_of(Family::V6), port));
        let datagram = Packet::udp(ends[0], ends[1], b"chained").build();
        // Behind its IPv6 header: the datagram. Destination options, which may come again and again.
        let mut payload = Vec::new();
        for at in 1..=headers {
            payload.extend(extension(if at == headers { 17 } else { 60 }, 1 + at % 3));
        }
        payload.extend(&datagram[40..]);
        let length = spoofer.send(Packet::new(ends[0].ip(), ends[1].ip(), 60, payload))?;
        if headers > 8 {
            skipped[0] += 1;
            skipped[1] += length;
        }
    }
    Ok(skipped)
}

/// Fragments of two datagrams with one identification, each cut in its own way, mixed.
fn overlapping(bed: &Testbed, spoofer: &Spoofer, family: Family, sets: u16) -> Result<()> {
    let (client, web) = (bed.pod(0), bed.pod(1));
    let ends =
        [(&client, 40_001), (&web, 9)].map(|(pod, port)| SocketAddr::new(pod.ip_of(family), port));
    for set in 0..sets {
        let of =
            |fill: u8| Packet::udp(ends[0], ends[1], &[fill; 400]).identification(0x4000 + set);
        let (coarse, fine) = (of(1).fragments(64), of(2).fragments(24));
        let mixed = coarse.into_iter().zip(fine.into_iter().skip(1).step_by(2));
        for (a, b) in mixed {
            // Whichever comes first.
            let pair = if set % 2 == 0 { [a, b] } else { [b, a] };
            for fragment in pair {
                spoofer.send(fragment)?;
            }
        }
    }
    Ok(())
}

/// ICMP errors from outside about a datagram as it left the node, and others that quote nothing real. How many of them
/// the pod must get.
fn errors(bed: &Testbed, port: u16) -> Result<u64> {
    let entries = counters::conntrack(bed.node().netns())?;
    let outside = bed.outside_ip();
    let entry = entries
        .iter()
        .find(|entry| {
            entry.original.destination_port == port && entry.original.destination == outside
        })
        .context("the datagram's entry")?;
    assert!(entry.is_snat(), "{entry:?}");
    let (node, left) = (bed.node().ip(), entry.reply.destination_port);
    let quote = |from: IpAddr, port_of: u16| {
        let ends = [
            SocketAddr::new(from, port_of),
            SocketAddr::new(outside, port),
        ];
        Packet::udp(ends[0], ends[1], b"quoted").build()
    };
    let real = quote(node, left);
    let pods = quote(bed.pod(0).ip(), left);
    let within = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &real].concat();
    let socket = RawIp::open(bed.outside(), node, 1)?;
    let mut taken = 0;
    for code in [1_u8, 3, 10, 13] {
        for (quoted, is_real) in [
            (&real[..], true),
            // The eight bytes behind the header are the least (RFC 792).
            (&real[..28], true),
            (&real[..20], false),
            (&real[..1], false),
            (&[], false),
            (&pods[..], false),
            (&within[..], false),
        ] {
            let mut message = vec![3, code, 0, 0, 0, 0, 0, 0];
            message.extend(quoted);
            let sum = xtask::testbed::frame::checksum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            socket.send(&message)?;
            taken += u64::from(is_real);
        }
    }
    Ok(taken)
}

#[test]
fn overlapping_fragments_chains_jumbo_frames_and_forged_errors_are_counted_to_the_byte()
-> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay()
        .dual_stack(true)
        .offloads(false)
        .build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    for pod in [&client, &web] {
        pod.netns().ip(["link set eth0 mtu 9000"])?;
        let veth = format!("link set {} mtu 9000", pod.veth());
        bed.node().netns().ip([veth])?;
    }
    let udp = UdpServer::echo(web.netns(), (web.ip(), 53))?;
    let _silent = [Family::V4, Family::V6].map(|family| {
        web.netns()
            .run(|| Ok(UdpSocket::bind((web.ip_of(family), 9))?))
    });
    count_own(&bed)?;
    // Who is spoken to has to be known to who speaks.
    Udp::to(udp.address()).run(client.netns())?;
    Ping::to(bed.outside_ip()).run(client.netns())?;
    for family in [Family::V4, Family::V6] {
        let web = web.ip_of(family);
        Ping::to(web).run(client.netns())?;
    }
    bed.settle()?;
    bed.pin_neighbours()?;
    // With another MTU an interface joins its IPv6 groups anew, and reports each twice within two seconds or so (MLDv2,
    // RFC 3810 section 9.11).
    eventually("the reports are over", || {
        let was = Truth::now(&bed)?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(Truth::now(&bed)? == was)
    })?;

    let home = Home::new()?;
    let before = Truth::now(&bed)?;
    let snmp = |netns: &Netns| Counters::of(netns);
    let (node_before, pod_before) = (snmp(bed.node().netns())?, snmp(client.netns())?);
    let mut agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let spoofer = Spoofer::new(&bed, &client)?;
    let mut skipped = [0, 0];
    for _ in 0..20 {
        let more = chains(&bed, &spoofer, 12)?;
        skipped = [skipped[0] + more[0], skipped[1] + more[1]];
    }
    for family in [Family::V4, Family::V6] {
        overlapping(&bed, &spoofer, family, 50)?;
    }
    Udp::to(udp.address())
        .datagrams(50)
        .size(8_900)
        .run(client.netns())?;
    let _sink = bed
        .outside()
        .run(|| Ok(UdpSocket::bind((bed.outside_ip(), 7_007))?))?;
    let to = SocketAddr::new(bed.outside_ip(), 7_007);
    let sender = client.netns().run(|| {
        let socket = UdpSocket::bind((client.ip(), 40_002))?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    sender.send(b"out")?;
    let taken = errors(&bed, 7_007)?;
    eventually("the pod gets what is about its own datagram", || {
        let now = snmp(client.netns())?;
        let got = |counters: &Counters| counters.get("Icmp.InDestUnreachs");
        Ok(got(&now) - got(&pod_before) == taken)
    })?;
    bed.settle()?;
    let scrape = agent.settled()?;
    let reasons = scrape.count_by("aksnet_agent_skipped_packets_total", ["reason"]);
    let expected = [(["too_many_ipv6_extensions".to_owned()], skipped[0])];
    assert_eq!(reasons, BTreeMap::from(expected));
    exact(&scrape, Truth::now(&bed)?.since(before), skipped);
    assert_eq!(skipped[0], 20 * 4);
    // They were what they are said to be: the kernel put no such datagram together.
    let node = snmp(bed.node().netns())?;
    let failed = |name: &str| node.get(name) - node_before.get(name);
    let failures = failed("Ip.ReasmFails") + failed("Ip6ReasmFails");
    println!("{failures} datagrams were not put together");
    let jumbo = [("protocol", "udp"), ("family", "ipv4")];
    assert!(scrape.count("aksnet_flow_bytes_total", &jumbo) > 2 * 50 * 8_900);
    unharmed(&mut agent)?;
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// The most series of a metric in the attack on them.
const SERIES: usize = 100;
/// Pods that come, send one datagram each, and go, in so many waves, each under names of their own.
const PODS: u8 = 60;
const WAVES: usize = 5;

#[test]
fn pods_that_come_and_go_under_new_names_do_not_grow_the_metrics_beyond_their_budget() -> Result<()>
{
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().offloads(false).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let _silent = web.netns().run(|| Ok(UdpSocket::bind((web.ip(), 9))?))?;
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    let mut flags = cluster::flags(&bed, &home)?;
    flags.extend([
        "--pod-labels".to_owned(),
        format!("--series-limit={SERIES}"),
    ]);
    let mut agent = Agent::start(&bed, &home, flags)?;
    let dial = || Tcp::to(server.address()).connections(5).run(client.netns());
    dial()?;
    let pods = || -> Result<u64> {
        let status = agent.status()?;
        status["sources"]["names"]["local_pods"]["objects"]
            .as_u64()
            .context("a number")
    };
    let own = pods()?;
    let spoofer = Spoofer::new(&bed, &client)?;
    let IpAddr::V4(base) = client.ip() else {
        anyhow::bail!("{} is not IPv4", client.ip())
    };
    let [a, b, c, _] = base.octets();
    for wave in 0..WAVES {
        let name = |n: u8| format!("attack-{wave}-{n}");
        for n in 0..PODS {
            let address = Ipv4Addr::from([a, b, c, 150 + n]).to_string();
            let (name, node) = (name(n), bed.node().name());
            api.apply(objects::pod("shop", &name, &name, node, &address));
        }
        eventually("all of a wave are known", || {
            Ok(pods()? == own + u64::from(PODS))
        })?;
        for n in 0..PODS {
            let source = SocketAddr::from(([a, b, c, 150 + n], 1_000 + u16::try_from(wave)?));
            let packet = Packet::udp(source, SocketAddr::new(web.ip(), 9), b"labels");
            spoofer.send(packet)?;
        }
        // Who goes before its datagram is judged has no name in it, and makes no series.
        agent.settled()?;
        for n in 0..PODS {
            api.delete("Pod", "shop", &name(n));
        }
        eventually("they are gone", || Ok(pods()? == own))?;
    }
    dial()?;
    let scrape = agent.settled()?;
    let ends = ["src_pod", "dst_pod"];
    let sent = scrape.count_by("aksnet_flow_packets_total", ["protocol"]);
    let attack = u64::from(PODS) * u64::try_from(WAVES)?;
    assert_eq!(sent[&["udp".to_owned()]], attack, "each is counted");
    for family in ["packets", "bytes", "connections"] {
        let name = format!("aksnet_flow_{family}_total");
        let series = scrape.samples_of(&name).len();
        assert!(series <= SERIES, "{series} series of {name}");
    }
    let folded = scrape.count("aksnet_agent_series_folded_total", &[]);
    assert!(folded >= attack - SERIES as u64, "{folded} folded");
    // Whose series was there before keeps it, and goes on.
    let pairs = scrape.count_by("aksnet_flow_connections_total", ends);
    let names = [&client, &web].map(|pod| cluster::pod_name(pod));
    assert_eq!(pairs.get(&names), Some(&10), "{pairs:#?}");
    unharmed(&mut agent)?;
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

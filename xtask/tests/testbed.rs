//! The emulated node behaves as a real one: every row of traffic that the agent is to recognise is translated,
//! routed and dropped here as DOMAIN knowledge says, judged by the kernel's own counters.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use xtask::testbed::bed::is_root;
use xtask::testbed::cni::HostPort;
use xtask::testbed::counters::{self, ConntrackEntry};
use xtask::testbed::frame::{Frame, Packet, sctp_init};
use xtask::testbed::hash::azure_veth;
use xtask::testbed::imds;
use xtask::testbed::iptables::Rule;
use xtask::testbed::record;
use xtask::testbed::traffic::{
    Connect, FrameSocket, Ping, RawIp, ShortConnections, Tcp, TcpServer, Udp, UdpServer, connect,
};
use xtask::testbed::{
    Backend, Builder, Cache, Engine, Family, Hairpin, Imds, LocalDns, PolicyRule, Proxy, Service,
    Testbed, Verdict,
};

/// Two cores: one testbed at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A short while: what a drop makes a client wait.
const SOON: Duration = Duration::from_millis(300);

/// Long enough for one retransmitted SYN. Between namespaces an ICMP error arrives while the client is still inside
/// `connect` and holds its socket, so that only the error of the retransmission, a second later, ends the attempt.
const ONE_RETRANSMIT: Duration = Duration::from_millis(2500);

fn turn() -> Option<MutexGuard<'static, ()>> {
    if !is_root() {
        println!("skipped: making network namespaces needs root");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The one conntrack entry of the node whose client is this address.
fn entry(bed: &Testbed, client: IpAddr, protocol: &str) -> Result<ConntrackEntry> {
    let entries = bed.node().conntrack()?;
    let mut ours = entries
        .iter()
        .filter(|entry| entry.original.source == client && entry.protocol == protocol);
    let entry = ours
        .next()
        .ok_or_else(|| anyhow::anyhow!("no {protocol} entry of {client} in {entries:#?}"))?;
    anyhow::ensure!(
        ours.next().is_none(),
        "several {protocol} entries of {client}"
    );
    Ok(entry.clone())
}

fn flavours(dual_stack: bool) -> [Builder; 4] {
    [
        Testbed::kubenet(),
        Testbed::kind(),
        Testbed::azure_overlay(),
        Testbed::azure_node_subnet(),
    ]
    .map(|builder| builder.dual_stack(dual_stack))
}

#[test]
fn every_flavour_carries_pod_to_pod_unchanged() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in flavours(true) {
        let bed = builder.build()?;
        let (client, near, far) = (bed.pod(0), bed.pod(1), bed.remote_pod(0));
        for family in bed.families() {
            for server_pod in [&near, &far] {
                let server = TcpServer::echo(server_pod.netns(), (server_pod.ip_of(family), 8080))?;
                let report = Tcp::to(server.address())
                    .connections(3)
                    .bytes(5000)
                    .run(client.netns())?;
                server.settle()?;
                assert_eq!(
                    (report.connections, report.received, server.received()),
                    (3, 15_000, 15_000)
                );
                assert!(
                    server
                        .peers()
                        .iter()
                        .all(|peer| peer.ip() == client.ip_of(family)),
                    "{:?}",
                    bed.plan().flavour
                );
                let ping = Ping::to(server_pod.ip_of(family))
                    .count(3)
                    .run(client.netns())?;
                assert_eq!(ping.received, 3);
            }
        }
    }
    Ok(())
}

#[test]
fn every_flavour_shows_the_node_to_the_outside() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in flavours(true) {
        let bed = builder.build()?;
        for family in bed.families() {
            let (outside, node) = (
                bed.plan().outside.of(family).unwrap(),
                bed.node().address().of(family).unwrap(),
            );
            let server = TcpServer::echo(bed.outside(), (outside, 443))?;
            Tcp::to(server.address())
                .from(bed.pod(0).ip_of(family), 40_000)
                .run(bed.pod(0).netns())?;
            // Neither masquerade agent randomises: the port is the pod's own.
            assert_eq!(server.peers(), [SocketAddr::new(node, 40_000)]);
            let seen = entry(&bed, bed.pod(0).ip_of(family), "tcp")?;
            assert!(seen.is_snat() && !seen.is_dnat());
            Ping::to(outside).count(2).run(bed.pod(0).netns())?;
        }
    }
    Ok(())
}

#[test]
fn node_subnet_pods_keep_their_address_in_the_vnet_and_overlay_pods_do_not() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for (builder, kept) in [
        (Testbed::azure_node_subnet(), true),
        (Testbed::azure_overlay(), false),
    ] {
        let bed = builder.build()?;
        let server = TcpServer::echo(bed.vm(), (bed.vm_ip(), 443))?;
        Tcp::to(server.address()).run(bed.pod(0).netns())?;
        let expected = if kept {
            bed.pod(0).ip()
        } else {
            bed.node().ip()
        };
        assert_eq!(server.peers()[0].ip(), expected);
    }
    Ok(())
}

#[test]
fn services_translate_in_both_backends_and_families() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        let bed = Testbed::kubenet()
            .dual_stack(true)
            .backend(backend)
            .build()?;
        let (client, web, far) = (bed.pod(0), bed.pod(1), bed.remote_pod(0));
        for family in bed.families() {
            let base = |name| {
                let service = Service::cluster_ip("shop", name, 80);
                if family == Family::V6 {
                    service.v6()
                } else {
                    service
                }
            };
            let name = if family == Family::V6 { "web6" } else { "web" };
            let near = TcpServer::echo(web.netns(), (web.ip_of(family), 8080))?;
            let remote = TcpServer::echo(far.netns(), (far.ip_of(family), 8080))?;
            let service =
                bed.add_service(base(name).endpoints([near.address(), remote.address()]))?;
            let report = Tcp::to(service.address())
                .connections(40)
                .run(client.netns())?;
            assert_eq!(
                report.connections,
                near.connections() + remote.connections()
            );
            assert!(
                near.connections() > 0 && remote.connections() > 0,
                "both endpoints are used"
            );

            let udp = UdpServer::echo(web.netns(), (web.ip_of(family), 53))?;
            let dns = bed.add_service(
                base(&format!("dns-{name}"))
                    .udp()
                    .endpoints([udp.address()]),
            )?;
            let report = Udp::to(dns.address())
                .datagrams(20)
                .flight(4)
                .run(client.netns())?;
            assert_eq!((report.received, udp.datagrams()), (20, 20));
            let seen = entry(&bed, client.ip_of(family), "udp")?;
            assert!(seen.is_dnat() && !seen.is_snat());
            assert_eq!((seen.original.packets, seen.reply.packets), (20, 20));
        }
    }
    Ok(())
}

#[test]
fn hairpin_is_translated_at_both_ends() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in flavours(false) {
        let bed = builder.hairpin(Hairpin::Veth).build()?;
        let web = bed.pod(1);
        let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        let service =
            bed.add_service(Service::cluster_ip("shop", "web", 80).endpoints([server.address()]))?;
        Tcp::to(service.address()).connections(1).run(web.netns())?;
        let seen = entry(&bed, web.ip(), "tcp")?;
        assert!(seen.is_snat() && seen.is_dnat(), "{:?}", bed.plan().flavour);
        assert_eq!(server.peers()[0].ip(), seen.reply.destination);
    }
    Ok(())
}

#[test]
fn promiscuous_bridge_gives_the_node_a_copy_of_what_a_service_sends_to_the_same_node() -> Result<()>
{
    let Some(_turn) = turn() else { return Ok(()) };
    for (hairpin, copies) in [(Hairpin::Promiscuous, true), (Hairpin::Veth, false)] {
        let bed = Testbed::kubenet().hairpin(hairpin).build()?;
        let (client, web) = (bed.pod(0), bed.pod(1));
        let server = UdpServer::echo(web.netns(), (web.ip(), 53))?;
        let dns = bed.add_service(
            Service::cluster_ip("shop", "dns", 53)
                .udp()
                .endpoints([server.address()]),
        )?;
        Udp::to(dns.address()).datagrams(10).run(client.netns())?;
        assert_eq!(server.datagrams(), 10, "each datagram arrives once");
        let rules = bed.node().rules(Family::V4)?;
        let invalid = rules
            .iter()
            .find(|rule| rule.chain == "KUBE-FORWARD" && rule.target() == Some("DROP"));
        let dropped = invalid.map_or(0, |rule| rule.packets);
        let deduplicated = bed
            .node()
            .netns()
            .output("ebtables", ["-L", "AKS-DEDUP-PROMISC", "--Lc"])?;
        println!("{hairpin:?}: {dropped} copies dropped as INVALID\n{deduplicated}");
        // Which of the two rules drops the copies depends on the kernel (see Hairpin).
        assert_eq!(
            dropped == 10 || deduplicated.contains("-j DROP , pcnt = 10 "),
            copies
        );
    }
    Ok(())
}

#[test]
fn node_port_and_load_balancer_follow_the_traffic_policy() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let (web, far) = (bed.pod(1), bed.remote_pod(0));
    let near = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let remote = TcpServer::echo(far.netns(), (far.ip(), 8080))?;
    let lb = |name: &str, port, node_port| {
        Service::load_balancer("shop", name, port, node_port, bed.frontend_ip())
    };
    let any = bed.add_service(lb("any", 80, 30_080).endpoints([near.address()]))?;
    let local = bed.add_service(
        lb("local", 81, 30_081)
            .local()
            .endpoints([near.address(), remote.address()]),
    )?;
    let second_hop = bed.add_service(lb("hop", 82, 30_082).endpoints([remote.address()]))?;

    Tcp::to(any.frontend()).run(bed.outside())?;
    Tcp::to((bed.node().ip(), 30_080)).run(bed.outside())?;
    Tcp::to(local.frontend())
        .connections(5)
        .run(bed.outside())?;
    let clients: Vec<IpAddr> = near.peers().iter().map(SocketAddr::ip).collect();
    let gateway: IpAddr = "10.244.0.1".parse()?;
    assert_eq!(
        clients[..2],
        [gateway, gateway],
        "etp=Cluster: towards a local pod the source is the bridge's"
    );
    assert_eq!(
        clients[2..],
        [bed.outside_ip(); 5],
        "etp=Local keeps the client and uses local endpoints"
    );

    Tcp::to(second_hop.frontend()).run(bed.outside())?;
    assert_eq!(
        remote.peers()[0].ip(),
        bed.node().ip(),
        "second hop: the other node's pod sees this node"
    );
    Ok(())
}

#[test]
fn source_ranges_and_missing_endpoints_are_refused_as_kube_proxy_does() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let web = bed.pod(1);
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let guarded = Service::load_balancer("shop", "guarded", 80, 30_080, bed.frontend_ip())
        .source_ranges(["203.0.113.0/24".parse()?])
        .endpoints([server.address()]);
    let chain = guarded.fw_chain();
    let guarded = bed.add_service(guarded)?;
    assert_eq!(
        connect(bed.outside(), guarded.frontend(), SOON)?,
        Connect::Connected
    );
    assert_eq!(
        connect(bed.vm(), guarded.frontend(), SOON)?,
        Connect::TimedOut
    );
    assert_eq!(
        bed.node()
            .rule_packets(&format!("shop/guarded traffic not accepted by {chain}"))?,
        1
    );

    let empty = bed.add_service(Service::cluster_ip("shop", "empty", 80))?;
    assert_eq!(
        connect(bed.pod(0).netns(), empty.address(), ONE_RETRANSMIT)?,
        Connect::Refused
    );
    assert_eq!(bed.node().rule_packets("shop/empty has no endpoints")?, 2);
    Ok(())
}

#[test]
fn drop_and_reject_counters_equal_what_was_sent() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(3).build()?;
    let (batch, db) = (bed.pod(0), bed.pod(2));
    let server = TcpServer::echo(db.netns(), (db.ip(), 5432))?;
    bed.add_policy(
        PolicyRule::drop("batch-to-db")
            .from(batch.ip())
            .to(db.ip())
            .udp(5432),
    )?;
    bed.add_policy(
        PolicyRule::reject("batch-rejected")
            .from(batch.ip())
            .to(db.ip())
            .tcp(5432),
    )?;
    Udp::to((db.ip(), 5432))
        .datagrams(25)
        .unanswered()
        .run(batch.netns())?;
    assert_eq!(
        connect(batch.netns(), server.address(), ONE_RETRANSMIT)?,
        Connect::Refused
    );
    assert_eq!(bed.node().rule_packets("batch-to-db")?, 25);
    assert_eq!(bed.node().rule_packets("batch-rejected")?, 2);
    assert_eq!(server.connections(), 0);

    bed.remove_policy("batch-rejected")?;
    bed.add_policy(
        PolicyRule::new("npm", Verdict::NpmIngress)
            .from(batch.ip())
            .to(db.ip())
            .tcp(5432),
    )?;
    assert_eq!(
        connect(batch.netns(), server.address(), SOON)?,
        Connect::TimedOut
    );
    assert_eq!(
        bed.node()
            .rule_packets("DROP-ON-INGRESS-DROP-MARK-0x400/0x400")?,
        1
    );

    assert_eq!(
        connect(batch.netns(), "168.63.129.16:80".parse()?, SOON)?,
        Connect::TimedOut
    );
    assert_eq!(bed.node().wireserver_packets(80)?, 1);
    Ok(())
}

#[test]
fn pods_come_and_go_during_traffic() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in flavours(false) {
        let bed = builder.build()?;
        let (client, web) = (bed.pod(0), bed.pod(1));
        let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        std::thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                Tcp::to(server.address())
                    .connections(500)
                    .parallel(2)
                    .run(client.netns())
            });
            for round in 0..3 {
                let name = format!("cron-{round}");
                let pod = bed.add_pod(&name)?;
                let udp = UdpServer::echo(pod.netns(), (pod.ip(), 53))?;
                Udp::to(udp.address()).datagrams(5).run(client.netns())?;
                let veth = pod.veth().to_owned();
                bed.delete_pod(&name)?;
                assert!(bed.node().link(&veth).is_err(), "the veth is gone");
            }
            let report = traffic.join().expect("the traffic does not panic")?;
            assert_eq!(report.connections, 500);
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn interface_counters_agree_across_a_link_with_offloads_off() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().offloads(false).build()?;
    let server = TcpServer::sink(bed.outside(), (bed.outside_ip(), 5201))?;
    Tcp::to(server.address())
        .one_way()
        .run(bed.pod(0).netns())?;
    bed.pin_neighbours()?;
    bed.settle()?;
    let (uplink, veth) = (
        bed.node().link("eth0")?,
        bed.node().link(bed.pod(0).veth())?,
    );
    let before = bed.node().conntrack()?.len();
    let bulk = Tcp::to(server.address())
        .one_way()
        .bytes(20_000_000)
        .run(bed.pod(0).netns())?;
    bed.settle()?;
    let (uplink_after, veth_after) = (
        bed.node().link("eth0")?,
        bed.node().link(bed.pod(0).veth())?,
    );
    assert_eq!(bulk.sent, 20_000_000);
    assert_eq!(bed.node().conntrack()?.len(), before + 1);
    let out = uplink_after.tx_packets - uplink.tx_packets;
    assert_eq!(
        out,
        veth_after.rx_packets - veth.rx_packets,
        "what the pod sent left the node, packet by packet"
    );
    assert_eq!(
        uplink_after.rx_packets - uplink.rx_packets,
        veth_after.tx_packets - veth.tx_packets
    );
    assert!(out > 20_000_000 / 1500, "no frame above the MTU");
    Ok(())
}

#[test]
fn many_short_connections_are_exact() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let web = bed.pod(1);
    let servers = [8080, 8081].map(|port| TcpServer::echo(web.netns(), (web.ip(), port)));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let report = ShortConnections::to(servers.iter().map(TcpServer::address), 10_000)
        .run(bed.pod(0).netns())?;
    println!(
        "{} short connections in {:?}",
        report.connections, report.elapsed
    );
    assert_eq!(
        report.connections,
        servers.iter().map(TcpServer::connections).sum::<u64>()
    );
    Ok(())
}

#[test]
fn nothing_is_left_after_drop_and_the_root_namespace_is_untouched() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let interfaces = || -> Result<Vec<String>> {
        let mut names: Vec<String> = std::fs::read_dir("/proc/sys/net/ipv4/conf")?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    };
    let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    let before = (interfaces()?, forwarding()?);
    let bed = Testbed::kubenet().build()?;
    let mut sleeper = bed
        .node()
        .netns()
        .spawn(bed.node().netns().command("sleep").arg("60"))?;
    let prefix = bed.prefix().to_owned();
    assert_eq!((interfaces()?, forwarding()?), before);
    drop(bed);
    assert!(!sleeper.wait()?.success(), "the child was killed");
    let left = |directory: &str| -> Vec<String> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&prefix))
            .collect()
    };
    assert_eq!(left("/run/netns"), Vec::<String>::new());
    assert_eq!(left("/run/aksnet-testbed"), Vec::<String>::new());
    assert_eq!((interfaces()?, forwarding()?), before);
    Ok(())
}

#[test]
fn odd_frames_arrive_as_they_were_sent() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().dual_stack(true).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    for family in bed.families() {
        let server = UdpServer::echo(web.netns(), (web.ip_of(family), 53))?;
        // Three fragments each way, made by the kernel.
        Udp::to(server.address())
            .datagrams(4)
            .size(4000)
            .run(client.netns())?;
        assert_eq!((server.datagrams(), server.bytes()), (4, 16_000));
        // Protocols without a socket at the other end: the node forwards them by their number.
        for (protocol, payload) in [(132, sctp_init(4000, 3868)), (253, vec![0; 40])] {
            let before = bed.node().link(web.veth())?.tx_packets;
            let raw = RawIp::open(client.netns(), web.ip_of(family), protocol)?;
            for _ in 0..5 {
                raw.send(&payload)?;
            }
            bed.settle()?;
            let after = bed.node().link(web.veth())?.tx_packets;
            assert!(
                after >= before + 5,
                "protocol {protocol}: {before} then {after}"
            );
        }
    }

    // A datagram in hand-made fragments, and one in a VLAN that the bridge does not filter.
    let own = counters::mac(client.netns(), "eth0")?;
    let peer = counters::mac(web.netns(), "eth0")?;
    let server = UdpServer::echo(web.netns(), (web.ip(), 9000))?;
    let packet =
        Packet::udp((client.ip(), 7000).into(), server.address(), &[7; 100]).identification(77);
    let wire = FrameSocket::open(client.netns(), "eth0")?;
    for fragment in packet.fragments(48) {
        wire.send(&Frame::new(own, peer, fragment).build())?;
    }
    let before = bed.node().link(client.veth())?.rx_packets;
    wire.send(&Frame::new(own, peer, packet).vlan(5).build())?;
    bed.settle()?;
    assert_eq!(server.datagrams(), 1, "the fragments make one datagram");
    assert!(bed.node().link(client.veth())?.rx_packets > before);
    Ok(())
}

#[test]
fn host_port_leads_to_its_pod() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let port = HostPort {
        host: 8443,
        container: 8080,
        udp: false,
    };
    let pod = bed.add_pod_with_ports("ingress", &[port])?;
    let server = TcpServer::echo(pod.netns(), (pod.ip(), 8080))?;
    Tcp::to((bed.node().ip(), 8443)).run(bed.outside())?;
    assert_eq!(server.peers()[0].ip(), bed.outside_ip());
    bed.delete_pod("ingress")
}

#[test]
fn azure_veths_are_named_after_their_pods() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let pod = bed.pod(0);
    assert_eq!(pod.veth(), azure_veth("shop", "frontend"));
    let link = bed.node().link(pod.veth())?;
    assert_eq!(link.mac, "aa:aa:aa:aa:aa:aa");
    let routes = bed
        .node()
        .netns()
        .output("ip", ["route", "show", "dev", pod.veth()])?;
    assert!(routes.contains(&pod.ip().to_string()));
    Ok(())
}

#[test]
fn service_keeps_counters_of_others_when_it_changes() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    bed.add_policy(
        PolicyRule::drop("counted")
            .from(client.ip())
            .to(bed.vm_ip())
            .udp(9),
    )?;
    Udp::to((bed.vm_ip(), 9))
        .datagrams(7)
        .unanswered()
        .run(client.netns())?;
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let service =
        bed.add_service(Service::cluster_ip("shop", "web", 80).endpoints([server.address()]))?;
    Tcp::to(service.address()).run(client.netns())?;
    bed.remove_service("shop", "web")?;
    assert_eq!(bed.node().rule_packets("counted")?, 7);
    let gone = service.svc_chain();
    assert!(
        !bed.node()
            .rules(Family::V4)?
            .iter()
            .any(|rule| rule.chain == gone)
    );
    Ok(())
}

/// Not a test of its own: the process that [`crash_is_cleaned_by_exactly_its_names`] kills.
#[test]
fn held_until_killed() -> Result<()> {
    if std::env::var_os("AKSNET_HOLD_TESTBED").is_none() {
        return Ok(());
    }
    let bed = Testbed::kubenet().pods(1).remote_pods(0).build()?;
    let _sleeper = bed
        .node()
        .netns()
        .spawn(bed.node().netns().command("sleep").arg("60"))?;
    println!("prefix={}", bed.prefix());
    std::thread::sleep(Duration::from_mins(1));
    Ok(())
}

#[test]
fn crash_is_cleaned_by_exactly_its_names() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let mut holder = Command::new(std::env::current_exe()?)
        .args(["--exact", "held_until_killed", "--nocapture"])
        .env("AKSNET_HOLD_TESTBED", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(holder.stdout.take().expect("it is piped"));
    let prefix = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("prefix=")?.1.to_owned()));
    let prefix = prefix.expect("the holder says its prefix");
    let node = format!("{prefix}-node");
    assert!(std::path::Path::new("/run/netns").join(&node).exists());
    assert!(
        !record::clean()?.iter().any(|what| what.contains(&prefix)),
        "its owner is alive"
    );

    let own = Testbed::kubenet().pods(0).remote_pods(0).build()?;
    holder.kill()?;
    holder.wait()?;
    let removed = record::clean()?;
    assert!(removed.contains(&format!("namespace {node}")));
    assert!(
        removed.iter().any(|what| what.starts_with("process ")),
        "its child too: {removed:?}"
    );
    assert!(
        !removed.iter().any(|what| what.contains(own.prefix())),
        "and nothing of a living one"
    );
    assert!(!std::path::Path::new("/run/netns").join(&node).exists());
    Ok(())
}

#[test]
fn nftables_mode_translates_refuses_and_follows_the_traffic_policy() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind()
        .dual_stack(true)
        .proxy(Proxy::Nftables)
        .build()?;
    let (client, web, far) = (bed.pod(0), bed.pod(1), bed.remote_pod(0));
    for family in bed.families() {
        let v6 = family == Family::V6;
        let named = |name: &str| format!("{name}{}", if v6 { "6" } else { "" });
        let near = TcpServer::echo(web.netns(), (web.ip_of(family), 8080))?;
        let away = TcpServer::echo(far.netns(), (far.ip_of(family), 8080))?;
        let frontend = bed.plan().load_balancer.of(family).context("a frontend")?;
        let port = if v6 { 31_080 } else { 30_080 };
        let any = bed.add_service(
            Service::load_balancer("shop", &named("any"), 80, port, frontend)
                .endpoints([near.address(), away.address()]),
        )?;
        Tcp::to(any.address()).connections(40).run(client.netns())?;
        assert_eq!(near.connections() + away.connections(), 40);
        assert!(near.connections() > 5 && away.connections() > 5);
        Tcp::to(any.frontend()).run(bed.outside())?;
        Tcp::to((bed.node().address().of(family).context("an address")?, port))
            .run(bed.outside())?;

        let local = Service::load_balancer("shop", &named("local"), 81, port + 1, frontend).local();
        let local = bed.add_service(local.endpoints([near.address(), away.address()]))?;
        let before = near.connections();
        Tcp::to(local.frontend())
            .connections(5)
            .run(bed.outside())?;
        assert_eq!(near.connections(), before + 5);
        let outside = bed.plan().outside.of(family).context("an address")?;
        assert!(near.peers().iter().any(|peer| peer.ip() == outside));

        let elsewhere = Service::load_balancer("shop", &named("elsewhere"), 82, port + 2, frontend);
        let elsewhere = bed.add_service(elsewhere.local().endpoints([away.address()]))?;
        let dial = |netns, to| connect(netns, to, SOON);
        assert_eq!(
            dial(bed.outside(), elsewhere.frontend())?,
            Connect::TimedOut
        );
        assert_eq!(
            dial(client.netns(), elsewhere.frontend())?,
            Connect::Connected
        );
        let empty = Service::cluster_ip("shop", &named("empty"), 80);
        let empty = bed.add_service(if v6 { empty.v6() } else { empty })?;
        assert_eq!(
            connect(client.netns(), empty.address(), ONE_RETRANSMIT)?,
            Connect::Refused
        );
        let guarded = Service::load_balancer("shop", &named("guarded"), 83, port + 3, frontend)
            .source_ranges([web.ip_of(family).into()])
            .endpoints([near.address()]);
        let guarded = bed.add_service(guarded)?;
        assert_eq!(dial(bed.outside(), guarded.frontend())?, Connect::TimedOut);
    }
    // A port that a ClusterIP does not have is refused, which iptables mode leaves to the network.
    let near = TcpServer::echo(web.netns(), (web.ip(), 9090))?;
    let some =
        bed.add_service(Service::cluster_ip("shop", "some", 90).endpoints([near.address()]))?;
    let other_port = (some.address().ip(), 91).into();
    assert_eq!(
        connect(client.netns(), other_port, ONE_RETRANSMIT)?,
        Connect::Refused
    );
    Ok(())
}

#[test]
fn ten_thousand_services_are_written_at_once_in_both_modes() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for proxy in [Proxy::Iptables, Proxy::Nftables] {
        let bed = Testbed::azure_overlay().proxy(proxy).build()?;
        let start = std::time::Instant::now();
        bed.filler_services(10_000)?;
        println!("{proxy:?}: 10,000 services in {:?}", start.elapsed());
        let start = std::time::Instant::now();
        let server = TcpServer::echo(bed.pod(1).netns(), (bed.pod(1).ip(), 8080))?;
        let service =
            bed.add_service(Service::cluster_ip("shop", "last", 80).endpoints([server.address()]))?;
        println!("{proxy:?}: one more in {:?}", start.elapsed());
        Tcp::to(service.address())
            .connections(3)
            .run(bed.pod(0).netns())?;
        assert_eq!(server.connections(), 3);
    }
    Ok(())
}

#[test]
fn engines_at_rest_are_there_by_name_and_let_traffic_pass() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for (engine, family, evidence) in [
        (Engine::AzureNpm, Family::V4, "AZURE-NPM"),
        (Engine::Calico, Family::V6, "cali-FORWARD"),
        (Engine::Kindnet, Family::V6, "kindnet-network-policies"),
    ] {
        let bed = Testbed::kind().dual_stack(true).engine(engine).build()?;
        let (client, web) = (bed.pod(0), bed.pod(1));
        for family in bed.families() {
            let server = TcpServer::echo(web.netns(), (web.ip_of(family), 8080))?;
            Tcp::to(server.address()).run(client.netns())?;
            assert_eq!(server.connections(), 1, "{engine:?}");
        }
        if engine == Engine::Kindnet {
            let tables = bed
                .node()
                .netns()
                .output("nft", ["list", "tables", "inet"])?;
            assert!(tables.contains(evidence), "{tables}");
        } else {
            let jumps = |rule: &&Rule| rule.chain == "FORWARD" && rule.target() == Some(evidence);
            let rules = bed.node().rules(family)?;
            assert_eq!(rules.iter().filter(jumps).count(), 1, "{engine:?}");
        }
        if engine == Engine::AzureNpm {
            // A policy wakes it, and the last one's end puts it to rest.
            let server = TcpServer::echo(web.netns(), (web.ip(), 9090))?;
            bed.add_policy(
                PolicyRule::new("deny", Verdict::NpmIngress)
                    .to(web.ip())
                    .tcp(9090),
            )?;
            let dial = || connect(client.netns(), server.address(), SOON);
            assert_eq!(dial()?, Connect::TimedOut);
            bed.remove_policy("deny")?;
            assert_eq!(dial()?, Connect::Connected);
            let rest = "LET-TRAFFIC-THROUGH-SINCE-THERE-ARE-NO-POLICIES";
            assert!(bed.node().rule_packets(rest)? > 0);
        }
    }
    Ok(())
}

#[test]
fn node_without_an_engine_has_none_of_their_chains() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let rules = bed.node().rules(Family::V4)?;
    let of_engine = |rule: &&Rule| {
        ["AZURE-NPM", "cali-"]
            .iter()
            .any(|name| rule.chain.starts_with(name) || rule.spec.contains(&format!("-j {name}")))
    };
    assert_eq!(rules.iter().filter(of_engine).count(), 0);
    Ok(())
}

#[test]
fn metadata_service_answers_the_node_and_pods_that_send_its_header() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let service = Imds::start(bed.azure(), "2")?;
    let path = "/metadata/instance/compute/zone?api-version=2021-02-01&format=text";
    for netns in [bed.node().netns(), bed.pod(0).netns()] {
        let (status, zone) = imds::ask(netns, service.address(), path, "Metadata: true\r\n")?;
        assert_eq!((status, zone.as_str()), (200, "2"));
        assert_eq!(imds::ask(netns, service.address(), path, "")?.0, 400);
    }
    assert_eq!((service.answered(), service.refused()), (2, 2));
    Ok(())
}

#[test]
fn dns_cache_answers_pods_past_connection_tracking() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in [Testbed::kubenet(), Testbed::azure_node_subnet()] {
        let bed = builder.build()?;
        for cache in [Cache::LocalDns, Cache::NodeLocal] {
            let dns = LocalDns::start(bed.node(), cache)?;
            for (udp, tcp) in dns.udp.iter().zip(&dns.tcp) {
                Udp::to(udp.address())
                    .datagrams(3)
                    .run(bed.pod(0).netns())?;
                Tcp::to(tcp.address()).run(bed.pod(0).netns())?;
                let asked = udp.address().ip();
                let entries = bed.node().conntrack()?;
                assert!(
                    entries.iter().all(|e| e.original.destination != asked),
                    "{cache:?}: {entries:#?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn frontend_without_floating_ip_arrives_at_the_node_port() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let web = bed.pod(1);
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let service = Service::load_balancer("shop", "plain", 80, 30_080, bed.frontend_ip());
    let service = service.without_floating_ip().endpoints([server.address()]);
    let service = bed.add_service(service)?;
    Tcp::to(service.frontend()).run(bed.outside())?;
    let seen = entry(&bed, bed.outside_ip(), "tcp")?;
    assert_eq!(seen.original.destination, bed.node().ip());
    assert_eq!(seen.original.destination_port, 30_080);
    bed.remove_service("shop", "plain")
}

#[test]
fn host_port_works_in_transparent_mode_too() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_node_subnet().build()?;
    let port = HostPort {
        host: 8443,
        container: 8080,
        udp: false,
    };
    let pod = bed.add_pod_with_ports("ingress", &[port])?;
    let server = TcpServer::echo(pod.netns(), (pod.ip(), 8080))?;
    Tcp::to((bed.node().ip(), 8443)).run(bed.outside())?;
    assert_eq!(server.peers()[0].ip(), bed.outside_ip());
    bed.delete_pod("ingress")?;
    let left = bed.node().rules(Family::V4)?;
    assert!(left.iter().all(|rule| !rule.spec.contains("--dport 8443")));
    Ok(())
}

//! What a drop brings with it, so that its cause can be told: the tuple that was dialled, conntrack's state, the
//! route, attempts, TTL; each on packets that the kernel really dropped there.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use aksnet_agent::bpf::LoadOptions;
use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::Addr,
    packet::{ACK, ICMP, ICMPV6, RST, SYN, TCP, UDP},
    passage::Tuple,
    tracked::{DropState, Tracking},
};
use anyhow::{Result, ensure};
use xtask::testbed::{
    Family, Netns, PolicyRule, Service, Testbed,
    frame::{Packet, checksum, transport_checksum},
    traffic::{Connect, RawIp, TcpServer, Udp, connect, send_packets},
};

use crate::watch::{Watch, node_ip, turn};

const SOON: Duration = Duration::from_millis(300);
const ONE_RETRANSMIT: Duration = Duration::from_millis(2500);

/// As a flow's key has it.
pub fn tuple(src: IpAddr, src_port: u16, dst: IpAddr, dst_port: u16) -> Tuple {
    Tuple {
        src: src.into(),
        dst: dst.into(),
        src_port,
        dst_port,
    }
}

/// The one entry for this protocol and destination port, among all drops so far.
fn dropped(watch: &mut Watch, protocol: u8, port: u16) -> Result<(DropKey, DropStats)> {
    let drops = watch.drops()?;
    let found: Vec<_> = drops
        .iter()
        .filter(|(k, _)| (k.key.protocol, k.key.dst_port) == (protocol, port))
        .collect();
    ensure!(found.len() == 1, "one entry for port {port}: {drops:#?}");
    Ok(*found[0])
}

/// What iptables is to do, in both families unless the text says otherwise.
fn rules(bed: &Testbed, text: &str) -> Result<()> {
    for family in bed.families() {
        bed.node().restore(family, text)?;
    }
    Ok(())
}

/// Sends a bare TCP header, as no TCP would.
pub fn send_tcp(netns: &Netns, tuple: &Tuple, flags: u8, seq: u32) -> Result<()> {
    let from = SocketAddr::new(tuple.src.into(), tuple.src_port);
    let to = SocketAddr::new(tuple.dst.into(), tuple.dst_port);
    send_packets(netns, &Packet::tcp(from, to, flags, seq), 1)
}

/// Sends an echo request with this identifier.
fn send_echo(netns: &Netns, src: IpAddr, dst: IpAddr, identifier: u16) -> Result<()> {
    let (protocol, kind) = if dst.is_ipv4() {
        (ICMP, 8)
    } else {
        (ICMPV6, 128)
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
    let sum = if dst.is_ipv4() {
        checksum(&[&message])
    } else {
        transport_checksum(src, dst, ICMPV6, &message)
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    RawIp::open(netns, dst, protocol)?.send(&message)
}

#[test]
fn a_denied_connection_behind_a_service_tells_what_was_dialled_and_that_it_was_one_attempt()
-> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let (from, to) = (
        bed.node().link(client.veth())?,
        bed.node().link(web.veth())?,
    );
    for family in bed.families() {
        let mut watch = Watch::start(&bed, &LoadOptions::default())?;
        let endpoint = SocketAddr::new(web.ip_of(family), 8080);
        let _server = TcpServer::echo(web.netns(), endpoint)?;
        let name = format!("web-{family:?}").to_lowercase();
        let service = Service::cluster_ip("shop", &name, 80).endpoints([endpoint]);
        let service = bed.add_service(match family {
            Family::V4 => service,
            Family::V6 => service.v6(),
        })?;
        bed.add_policy(
            PolicyRule::drop(&format!("deny-{name}"))
                .from(client.ip_of(family))
                .to(endpoint.ip())
                .tcp(8080),
        )?;
        let outcome = connect(client.netns(), service.address(), ONE_RETRANSMIT)?;
        assert_eq!(outcome, Connect::TimedOut);

        let (key, stats) = dropped(&mut watch, TCP, 8080)?;
        assert!(stats.syns >= 2, "a SYN was repeated: {stats:?}");
        assert_eq!((stats.attempts, stats.skbs), (1, stats.syns));
        assert_eq!(stats.first_syn_seq, stats.last_syn_seq);
        let dialled = tuple(
            client.ip_of(family),
            key.key.src_port,
            service.address().ip(),
            80,
        );
        assert_eq!((stats.dialled, stats.dialled_protocol), (dialled, TCP));
        assert_eq!(key.key.dst, Addr::from(endpoint.ip()));

        assert_eq!(key.state.tracking(), Tracking::New);
        assert_eq!(key.state.confirmed(), Some(false));
        assert!(key.state.has(DropState::DST_NAT));
        assert!(!key.state.has(DropState::SEEN_REPLY | DropState::SRC_NAT));
        assert_eq!(key.state.routed(), Some(true));
        assert_eq!(
            (key.iif, key.key.ifindex, stats.oif),
            (from.index, from.index, to.index)
        );
        // Forwarding has taken one off; a SYN with its options.
        let header = if family == Family::V6 { 40 } else { 20 };
        assert_eq!((stats.ttl, stats.len), (63, header + 40));
    }
    Ok(())
}

#[test]
fn attempts_from_one_port_are_told_apart_by_their_sequence_numbers() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    rules(
        &bed,
        "*filter\n-I FORWARD -p tcp --dport 7000 -j DROP\nCOMMIT\n",
    )?;
    let mut watch = Watch::start(&bed, &LoadOptions::default())?;
    for family in bed.families() {
        let tuple = tuple(client.ip_of(family), 40_000, web.ip_of(family), 7000);
        let send = |flags, seq| send_tcp(client.netns(), &tuple, flags, seq);
        for seq in [0, 0, 0, 9000] {
            send(SYN, seq)?;
        }
        bed.settle()?;
        let find = |watch: &mut Watch| -> Result<DropStats> {
            let mut sum = DropStats::default();
            for (_, stats) in watch
                .drops()?
                .iter()
                .filter(|(k, _)| k.key.tuple() == tuple)
            {
                sum.add(stats);
            }
            Ok(sum)
        };
        let stats = find(&mut watch)?;
        assert_eq!((stats.skbs, stats.syns, stats.attempts), (4, 4, 2));
        assert_eq!((stats.first_syn_seq, stats.last_syn_seq), (0, 9000));
        // Taken meanwhile: the repetition in the next epoch is the same attempt still.
        for seq in [9000, 9001] {
            send(SYN, seq)?;
        }
        bed.settle()?;
        let stats = find(&mut watch)?;
        assert_eq!((stats.skbs, stats.syns, stats.attempts), (6, 6, 3));
        assert_eq!((stats.first_syn_seq, stats.last_syn_seq), (0, 9001));
    }
    Ok(())
}

#[test]
fn a_packet_that_conntrack_calls_invalid_has_no_entry_and_one_not_tracked_says_so() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    rules(
        &bed,
        "*filter\n-I FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -I FORWARD -p udp --dport 7003 -j DROP\nCOMMIT\n\
         *raw\n-I PREROUTING -p udp --dport 7003 -j CT --notrack\nCOMMIT\n",
    )?;
    for family in bed.families() {
        let mut watch = Watch::start(&bed, &LoadOptions::default())?;
        let (src, dst) = (client.ip_of(family), web.ip_of(family));
        for flags in [RST, SYN | ACK] {
            send_tcp(client.netns(), &tuple(src, 40_000, dst, 7000), flags, 1)?;
        }
        Udp::to((dst, 7003)).unanswered().run(client.netns())?;
        bed.settle()?;
        let (key, stats) = dropped(&mut watch, TCP, 7000)?;
        assert_eq!(key.state.tracking(), Tracking::NoEntry);
        assert_eq!((key.state.status(), key.state.confirmed()), (None, None));
        assert_eq!(
            (stats.dialled, stats.dialled_protocol),
            (Tuple::default(), 0)
        );
        assert_eq!((stats.skbs, stats.syns, stats.attempts), (2, 0, 0));
        assert_eq!(key.state.routed(), Some(true));
        let (key, _) = dropped(&mut watch, UDP, 7003)?;
        assert_eq!(key.state.tracking(), Tracking::Untracked);
    }
    Ok(())
}

#[test]
fn a_drop_tells_how_far_the_packet_had_come() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let (from, to) = (
        bed.node().link(client.veth())?,
        bed.node().link(web.veth())?,
    );
    rules(
        &bed,
        "*raw\n-I PREROUTING -p udp --dport 7001 -j DROP\nCOMMIT\n\
         *mangle\n-I PREROUTING -p udp --dport 7002 -j DROP\n\
         -I POSTROUTING -p udp --dport 7004 -j DROP\nCOMMIT\n\
         *filter\n-I INPUT -p udp --dport 7005 -j DROP\nCOMMIT\n",
    )?;
    for family in bed.families() {
        let mut watch = Watch::start(&bed, &LoadOptions::default())?;
        let send = |to: IpAddr, port: u16| Udp::to((to, port)).unanswered().run(client.netns());
        for port in [7001, 7002, 7004] {
            send(web.ip_of(family), port)?;
        }
        send(node_ip(&bed, family)?, 7005)?;
        bed.settle()?;

        // Before conntrack, before routing.
        let (key, stats) = dropped(&mut watch, UDP, 7001)?;
        assert_eq!(key.state.tracking(), Tracking::NoEntry);
        assert_eq!((key.state.routed(), stats.oif), (Some(false), 0));
        assert_eq!(
            (key.iif, key.key.ifindex, stats.ttl),
            (from.index, from.index, 64)
        );
        // Behind conntrack, before routing: not even the nat rules were walked.
        let (key, stats) = dropped(&mut watch, UDP, 7002)?;
        assert_eq!(key.state.tracking(), Tracking::New);
        assert!(!key.state.has(DropState::DST_NAT_DONE));
        assert_eq!((key.state.routed(), stats.oif), (Some(false), 0));
        assert_eq!(stats.dialled, key.key.tuple());
        // On its way out: the device is the output device already.
        let (key, stats) = dropped(&mut watch, UDP, 7004)?;
        assert_eq!(key.state.tracking(), Tracking::New);
        assert!(key.state.has(DropState::DST_NAT_DONE));
        assert_eq!(key.state.routed(), Some(true));
        assert_eq!(
            (key.iif, key.key.ifindex, stats.oif),
            (from.index, to.index, to.index)
        );
        // For the node itself: the route leads to the loopback device.
        let (key, stats) = dropped(&mut watch, UDP, 7005)?;
        assert_eq!((key.state.routed(), stats.oif), (Some(true), 1));
        assert_eq!((key.iif, key.key.ifindex), (from.index, from.index));
    }
    Ok(())
}

#[test]
fn a_connection_without_a_port_left_is_dropped_with_both_tuples_known() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let client = bed.pod(0);
    bed.node().restore(
        Family::V4,
        "*nat\n-I POSTROUTING -p tcp --dport 7777 -j MASQUERADE --to-ports 40000-40001\nCOMMIT\n",
    )?;
    let server = TcpServer::echo(bed.outside(), (bed.outside_ip(), 7777))?;
    let mut watch = Watch::start(&bed, &LoadOptions::default())?;
    let streams: Vec<TcpStream> = client.netns().run(|| {
        let to = server.address();
        Ok((0..5)
            .filter_map(|_| TcpStream::connect_timeout(&to, SOON).ok())
            .collect())
    })?;
    ensure!(streams.len() == 2, "{} connected", streams.len());
    let uplink = bed.node().link("eth0")?.index;
    let drops: Vec<_> = watch
        .drops()?
        .iter()
        .filter(|(k, _)| (k.key.protocol, k.key.dst_port) == (TCP, 7777))
        .copied()
        .collect();
    let total: u64 = drops.iter().map(|(_, s)| s.attempts).sum();
    assert_eq!(total, 3, "{drops:#?}");
    for (key, stats) in &drops {
        // The packet as it would have left, and as the pod had sent it.
        assert_eq!(key.key.src, Addr::from(bed.node().ip()), "{key:?}");
        assert!((40_000..=40_001).contains(&key.key.src_port), "{key:?}");
        let dialled = tuple(client.ip(), stats.dialled.src_port, bed.outside_ip(), 7777);
        assert_eq!(stats.dialled, dialled);
        assert_eq!(key.state.tracking(), Tracking::New);
        assert_eq!(key.state.confirmed(), Some(false));
        assert!(key.state.has(DropState::SRC_NAT));
        assert_eq!((key.key.ifindex, stats.oif), (uplink, uplink));
    }
    Ok(())
}

#[test]
fn a_denied_ping_has_the_identifier_and_the_kind_of_its_flow() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    for family in bed.families() {
        let mut watch = Watch::start(&bed, &LoadOptions::default())?;
        let (src, dst) = (client.ip_of(family), web.ip_of(family));
        bed.add_policy(
            PolicyRule::drop(&format!("ping-{family:?}"))
                .from(src)
                .to(dst),
        )?;
        send_echo(client.netns(), src, dst, 0x1234)?;
        bed.settle()?;
        let (protocol, message) = match family {
            Family::V4 => (ICMP, 0x0800),
            Family::V6 => (ICMPV6, 0x8000),
        };
        let (key, stats) = dropped(&mut watch, protocol, message)?;
        assert_eq!(stats.dialled, tuple(src, 0x1234, dst, message));
        assert_eq!(
            (stats.dialled, stats.dialled_protocol),
            (key.key.tuple(), protocol)
        );
        assert_eq!((stats.syns, stats.attempts), (0, 0));
    }
    Ok(())
}

#[test]
fn used_up_hops_and_too_long_packets_show_it() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let to = bed.node().link(web.veth())?.index;
    for family in bed.families() {
        let mut watch = Watch::start(&bed, &LoadOptions::default())?;
        let dst = web.ip_of(family);
        bed.node()
            .netns()
            .ip([format!("link set {} mtu 1280", web.veth())])?;
        Udp::to((dst, 7008))
            .size(1400)
            .unanswered()
            .run(client.netns())?;
        let hops = match family {
            Family::V4 => "net.ipv4.ip_default_ttl",
            Family::V6 => "net.ipv6.conf.eth0.hop_limit",
        };
        client.netns().sysctl(hops, "1")?;
        Udp::to((dst, 7009)).unanswered().run(client.netns())?;
        bed.settle()?;
        let name = |watch: &Watch, key: &DropKey| watch.kernel.reason_name(key.reason);

        let (key, stats) = dropped(&mut watch, UDP, 7008)?;
        assert_eq!(name(&watch, &key), "pkt_too_big");
        let header = if family == Family::V6 { 40 } else { 20 };
        assert_eq!((stats.len, stats.oif), (header + 8 + 1400, to));
        let (key, stats) = dropped(&mut watch, UDP, 7009)?;
        assert_eq!(name(&watch, &key), "ip_inhdr");
        assert_eq!(stats.ttl, 1);
    }
    Ok(())
}

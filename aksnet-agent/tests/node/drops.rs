//! Drops: each is the kernel's, with its reason, its own headers, and the flow it belonged to.

use std::{net::SocketAddr, time::Duration};

use aksnet_agent::{
    bpf::{LoadOptions, kernel::text_symbols},
    collect::DropNames,
};
use aksnet_common::{
    packet::{ICMP, ICMPV6, TCP, UDP},
    passage::{NatKind, Tuple},
    stats::Event,
};
use anyhow::{Context as _, Result};
use xtask::testbed::{
    Backend, Family, Hairpin, PolicyRule, Service, Testbed, Verdict,
    traffic::{Connect, TcpServer, Udp, UdpServer, connect},
};

use crate::watch::{NODE, Watch, turn};

const SOON: Duration = Duration::from_millis(300);
const ONE_RETRANSMIT: Duration = Duration::from_millis(2500);

/// The one flow whose client is this pod's address and whose server is `to`.
fn dialled(
    watch: &Watch,
    from: std::net::IpAddr,
    to: SocketAddr,
) -> Result<(aksnet_common::flow::HotCell, aksnet_common::flow::ColdCell)> {
    let found: Vec<_> = watch
        .flows()
        .into_iter()
        .filter(|(h, _)| {
            h.key.src == from.into() && h.key.dst == to.ip().into() && h.key.dst_port == to.port()
        })
        .collect();
    anyhow::ensure!(
        found.len() == 1,
        "{} flows from {from} to {to}",
        found.len()
    );
    Ok(found[0])
}

#[test]
fn a_drop_behind_a_service_names_the_endpoint_and_the_service_dialled() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        for builder in [
            Testbed::kubenet().hairpin(Hairpin::Veth),
            Testbed::kind(),
            Testbed::azure_overlay(),
        ] {
            let bed = builder.dual_stack(true).backend(backend).build()?;
            let mut watch = Watch::start(&bed, &LoadOptions::default())?;
            for family in bed.families() {
                let (client, web) = (bed.pod(0), bed.pod(1));
                let endpoint = SocketAddr::new(web.ip_of(family), 8080);
                let _server = TcpServer::echo(web.netns(), endpoint)?;
                let name = if family == Family::V6 { "web6" } else { "web" };
                let service = Service::cluster_ip("shop", name, 80).endpoints([endpoint]);
                let service = bed.add_service(if family == Family::V6 {
                    service.v6()
                } else {
                    service
                })?;
                let rule = format!("deny-{name}");
                bed.add_policy(
                    PolicyRule::drop(&rule)
                        .from(client.ip_of(family))
                        .to(endpoint.ip())
                        .tcp(8080),
                )?;
                assert_eq!(
                    connect(client.netns(), service.address(), SOON)?,
                    Connect::TimedOut
                );

                let (hot, cold) = dialled(&watch, client.ip_of(family), service.address())?;
                assert_eq!((hot.skbs, cold.drops, cold.exits), (1, 1, 0));
                assert_eq!(NatKind::try_from(cold.nat), Ok(NatKind::Dnat));
                let seen = Tuple {
                    dst: endpoint.ip().into(),
                    dst_port: 8080,
                    ..hot.key.tuple()
                };
                assert_eq!(cold.after, seen);
                let number = watch
                    .kernel
                    .reason_number("netfilter_drop")
                    .context("a reason")?;
                assert_eq!(cold.drop_reason, number);

                let drops: Vec<_> = watch
                    .drops()?
                    .iter()
                    .filter(|(k, _)| k.key.tuple() == seen)
                    .copied()
                    .collect();
                let [(key, stats)] = drops.as_slice() else {
                    panic!("one drop: {drops:#?}")
                };
                assert_eq!((stats.skbs, stats.syns, stats.passages), (1, 1, 1));
                assert_eq!(
                    (key.reason, key.key.protocol, key.key.family),
                    (number, TCP, hot.key.family)
                );
                let symbols = DropNames::new([], text_symbols());
                let expected = if backend == Backend::Nft {
                    "nft_do_chain"
                } else {
                    "nf_hook_slow"
                };
                assert_eq!(symbols.symbol(key.location), expected);
                assert_eq!(bed.node().rule_packets(&rule)?, 1);
            }
        }
    }
    Ok(())
}

#[test]
fn a_reject_is_a_drop_and_an_answer_of_the_node() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    for family in bed.families() {
        for (port, verdict, answer) in [
            (
                7001,
                Verdict::Reject,
                if family == Family::V6 { ICMPV6 } else { ICMP },
            ),
            (7002, Verdict::RejectWithReset, TCP),
        ] {
            let (client, web) = (bed.pod(0), bed.pod(1));
            let mut watch = Watch::start(&bed, &LoadOptions::default())?;
            let rule = format!("reject-{port}-{family:?}");
            bed.add_policy(
                PolicyRule::new(&rule, verdict)
                    .from(client.ip_of(family))
                    .to(web.ip_of(family))
                    .tcp(port),
            )?;
            let to = SocketAddr::new(web.ip_of(family), port);
            assert_eq!(
                connect(client.netns(), to, ONE_RETRANSMIT)?,
                Connect::Refused
            );
            let packets = bed.node().rule_packets(&rule)?;
            assert!(packets >= 1);
            assert_eq!(
                watch.dropped_for("netfilter_drop")?,
                packets,
                "{:#?}",
                watch.drops()?
            );
            let (hot, cold) = dialled(&watch, client.ip_of(family), to)?;
            assert_eq!((hot.skbs, cold.drops), (packets, packets));
            // A retransmitted SYN is one attempt.
            assert_eq!(
                (hot.connections, u64::from(hot.retransmits)),
                (1, packets - 1)
            );
            // Destination (port) unreachable; ICMPv6 is also neighbour discovery, which is not meant.
            let message = match answer {
                ICMP => 0x0303,
                ICMPV6 => 0x0104,
                _ => hot.key.src_port,
            };
            let answers: u64 = watch
                .flows()
                .iter()
                .filter(|(h, _)| {
                    h.key.origin == NODE
                        && h.key.protocol == answer
                        && h.key.dst_port == message
                        && h.key.dst == client.ip_of(family).into()
                })
                .map(|(h, _)| h.skbs)
                .sum();
            assert_eq!(answers, packets);
        }
    }
    Ok(())
}

#[test]
fn a_promiscuous_bridges_copies_are_no_drops() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().hairpin(Hairpin::Promiscuous).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let server = UdpServer::echo(web.netns(), (web.ip(), 53))?;
    let dns = bed.add_service(
        Service::cluster_ip("shop", "dns", 53)
            .udp()
            .endpoints([server.address()]),
    )?;
    let mut watch = Watch::start(&bed, &LoadOptions::default())?;
    Udp::to(dns.address())
        .datagrams(200)
        .flight(4)
        .run(client.netns())?;
    bed.settle()?;
    assert_eq!(server.datagrams(), 200, "each arrived");
    assert_eq!(watch.drops()?, [], "none was dropped");
    assert_eq!(
        watch.event(Event::DropCopy),
        200,
        "one copy of each went to the bridge"
    );
    let (hot, cold) = dialled(&watch, client.ip(), dns.address())?;
    assert_eq!((hot.skbs, cold.drops), (200, 0));
    Ok(())
}

#[test]
fn a_drop_is_the_dropped_packets_own_whatever_was_left_behind_before() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let client = bed.pod(0);
    let mut watch = Watch::start(&bed, &crate::watch::every_packet())?;
    // Delivered on the node: their passages are never taken.
    let server = UdpServer::echo(bed.node().netns(), (bed.node().ip(), 10_250))?;
    Udp::to(server.address())
        .datagrams(100)
        .flight(8)
        .run(client.netns())?;
    // Nobody listens there: dropped on the node, after delivery.
    Udp::to((bed.node().ip(), 10_999))
        .datagrams(20)
        .unanswered()
        .run(client.netns())?;
    bed.settle()?;
    let no_socket = watch
        .kernel
        .reason_number("no_socket")
        .context("a reason")?;
    let drops = watch.drops()?.to_vec();
    assert!(!drops.is_empty());
    for (key, _) in &drops {
        assert_eq!(
            (key.reason, key.key.dst_port, key.key.protocol),
            (no_socket, 10_999, UDP),
            "{key:?}"
        );
    }
    assert_eq!(
        drops
            .iter()
            .map(|(_, s)| (s.skbs, s.passages))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (20, 20)
    );
    Ok(())
}

#[test]
fn what_a_pod_drops_itself_is_not_the_nodes() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let mut watch = Watch::start(&bed, &LoadOptions::default())?;
    // A closed port in the pod: the pod's own stack frees the SYN and answers with a reset.
    assert_eq!(
        connect(client.netns(), (web.ip(), 9).into(), SOON)?,
        Connect::Refused
    );
    Udp::to((web.ip(), 9))
        .datagrams(5)
        .unanswered()
        .run(client.netns())?;
    bed.settle()?;
    assert_eq!(watch.drops()?, []);
    Ok(())
}

#[test]
fn packets_without_a_route_are_dropped_for_that_reason() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let client = bed.pod(0);
    let mut watch = Watch::start(&bed, &LoadOptions::default())?;
    bed.node()
        .netns()
        .ip(["route add unreachable 198.51.100.0/24".to_owned()])?;
    Udp::to(("198.51.100.7".parse::<std::net::IpAddr>()?, 9))
        .datagrams(7)
        .unanswered()
        .run(client.netns())?;
    bed.settle()?;
    let drops = watch.drops()?.to_vec();
    let total: u64 = drops.iter().map(|(_, s)| s.skbs).sum();
    assert_eq!(total, 7, "{drops:#?}");
    let symbols = DropNames::new([], text_symbols());
    for (key, _) in &drops {
        assert_eq!(symbols.symbol(key.location), "ip_error");
    }
    Ok(())
}

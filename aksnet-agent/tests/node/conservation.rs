//! Nothing is lost and nothing doubled: what entered left, was dropped, or was delivered on the node, equal to
//! the packet with what interfaces, iptables rules and conntrack counted.

use aksnet_agent::bpf::LoadOptions;
use aksnet_common::stats::Event;
use anyhow::Result;
use xtask::testbed::{
    Family, Hairpin, PolicyRule, Service, Testbed,
    traffic::{Ping, Tcp, TcpServer, Udp, UdpServer},
};

use crate::watch::{ENTERED, Links, NODE, Watch, every_packet, turn};

/// Bytes of the Ethernet header, which interfaces count and IP does not.
const ETHERNET: u64 = 14;

/// Traffic of every kind through the node: forwarded, translated, dropped, to and from the node itself.
struct Mix {
    in_front: TcpServer,
    sink: TcpServer,
    udp: UdpServer,
    node_server: TcpServer,
    node_udp: UdpServer,
    service: Service,
}

impl Mix {
    fn new(bed: &Testbed) -> Result<Self> {
        let web = bed.pod(1);
        let in_front = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        let service = bed
            .add_service(Service::cluster_ip("shop", "web", 80).endpoints([in_front.address()]))?;
        bed.add_policy(
            PolicyRule::drop("no-batch")
                .from(bed.pod(2).ip())
                .to(web.ip())
                .udp(53),
        )?;
        Ok(Self {
            in_front,
            sink: TcpServer::sink(bed.outside(), (bed.outside_ip(), 5201))?,
            udp: UdpServer::echo(web.netns(), (web.ip(), 53))?,
            node_server: TcpServer::echo(bed.node().netns(), (bed.node().ip(), 10_250))?,
            node_udp: UdpServer::echo(bed.node().netns(), (bed.node().ip(), 10_251))?,
            service,
        })
    }

    fn run(&self, bed: &Testbed, scale: u32) -> Result<()> {
        let (client, web, batch, far) = (bed.pod(0), bed.pod(1), bed.pod(2), bed.remote_pod(0));
        let from = client.netns();
        Tcp::to(self.service.address())
            .connections(5 * scale)
            .bytes(2000)
            .run(from)?;
        Tcp::to(self.sink.address())
            .bytes(200_000 * scale as usize)
            .one_way()
            .run(from)?;
        Tcp::to(self.in_front.address())
            .connections(3)
            .run(far.netns())?;
        Udp::to(self.udp.address())
            .datagrams(20 * scale)
            .flight(8)
            .run(from)?;
        // Datagrams above the MTU: fragments.
        Udp::to(self.udp.address())
            .datagrams(3)
            .size(4000)
            .run(from)?;
        Udp::to(self.udp.address())
            .datagrams(10 * scale)
            .unanswered()
            .run(batch.netns())?;
        Ping::to(bed.outside_ip()).count(5).run(from)?;
        Ping::to(web.ip()).count(5).run(from)?;
        // To the node, from a pod and from outside; and the node's own packets to a pod.
        Tcp::to(self.node_server.address())
            .connections(2)
            .run(from)?;
        Tcp::to(self.node_server.address())
            .connections(2)
            .run(bed.outside())?;
        Udp::to(self.node_udp.address()).datagrams(10).run(from)?;
        Tcp::to(self.in_front.address())
            .connections(2)
            .run(bed.node().netns())?;
        Ping::to(client.ip()).count(3).run(bed.node().netns())?;
        for server in [&self.in_front, &self.sink, &self.node_server] {
            server.settle()?;
        }
        Ok(())
    }
}

fn held_against_interfaces(
    bed: &Testbed,
    watch: &mut Watch,
    before: &Links,
    every: bool,
) -> Result<()> {
    bed.settle()?;
    let after = Links::of(bed)?;
    let mut entered_all = 0;
    let mut sent_all = 0;
    let mut node_all = 0;
    let interfaces: Vec<String> = std::iter::once("eth0".to_owned())
        .chain(bed.node().pods().iter().map(|p| p.veth().to_owned()))
        .collect();
    for name in &interfaces {
        let (was, is) = (before.named(name), after.named(name));
        let (packets, bytes) = watch.counted(is.index, ENTERED)?;
        assert_eq!(
            packets,
            is.rx_packets - was.rx_packets,
            "packets that entered through {name}"
        );
        assert_eq!(
            bytes + packets * ETHERNET,
            is.rx_bytes - was.rx_bytes,
            "bytes that entered through {name}"
        );
        entered_all += packets;
        sent_all += is.tx_packets - was.tx_packets;
        node_all += watch.counted(is.index, NODE)?.0;
    }
    assert!(
        entered_all > 100 && node_all > 0,
        "there was traffic: {entered_all}, {node_all}"
    );
    let totals = watch.totals();
    assert!(
        totals.skipped.iter().all(|s| s.skbs == 0),
        "nothing was skipped: neighbours are pinned"
    );
    let event = |event: Event| totals.events[event as usize];
    if every {
        assert_eq!(
            event(Event::ExitMatched) + event(Event::ExitUnmatched) + node_all,
            sent_all,
            "what left: forwarded and the node's own"
        );
        assert_eq!(event(Event::ExitSkipped), 0);
    }
    Ok(())
}

fn conserved(builder: xtask::testbed::Builder, options: &LoadOptions, scale: u32) -> Result<()> {
    let every = options.sample == 1;
    let bed = builder.pods(3).build()?;
    let mix = Mix::new(&bed)?;
    let delivered = "*filter\n-A INPUT ! -i lo -m comment --comment delivered\nCOMMIT\n";
    bed.node().restore(Family::V4, delivered)?;
    mix.run(&bed, 1)?;
    bed.settle()?;
    bed.pin_neighbours()?;
    bed.settle()?;
    let mut watch = Watch::start(&bed, options)?;
    let before = Links::of(&bed)?;
    let delivered_before = bed.node().rule_packets("delivered")?;
    let dropped_before = bed.node().rule_packets("no-batch")?;
    mix.run(&bed, scale)?;
    held_against_interfaces(&bed, &mut watch, &before, every)?;

    let rule = bed.node().rule_packets("no-batch")? - dropped_before;
    assert_eq!(rule, 10 * u64::from(scale));
    assert_eq!(
        watch.dropped_for("netfilter_drop")?,
        rule,
        "drops: {:#?}",
        watch.drops()?
    );
    if every {
        let netfilter = watch.kernel.reason_number("netfilter_drop");
        let matched: u64 = watch
            .drops()?
            .iter()
            .filter(|(k, _)| Some(k.reason) == netfilter)
            .map(|(_, s)| s.passages)
            .sum();
        assert_eq!(
            matched, rule,
            "every packet that the rule dropped had entered"
        );
        let entered: u64 = watch
            .flows()
            .iter()
            .filter(|(h, _)| h.key.origin == ENTERED)
            .map(|(h, _)| h.skbs)
            .sum();
        assert_eq!(
            watch.event(Event::PassageLeft),
            entered,
            "every packet left a passage"
        );
        let left = watch.event(Event::ExitMatched) + watch.event(Event::ExitUnmatched);
        let delivered = bed.node().rule_packets("delivered")? - delivered_before;
        assert_eq!(
            entered,
            left + rule + delivered,
            "left {left}, dropped {rule}, delivered {delivered}"
        );
        assert!(watch.event(Event::ExitUnmatched) <= watch.event(Event::PassageReplaced));
    }
    Ok(())
}

#[test]
fn kubenet_with_offloads() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    conserved(
        Testbed::kubenet().hairpin(Hairpin::Veth),
        &every_packet(),
        10,
    )
}

#[test]
fn kubenet_without_offloads() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    conserved(
        Testbed::kubenet().hairpin(Hairpin::Veth).offloads(false),
        &every_packet(),
        10,
    )
}

#[test]
fn kind_at_the_default_sampling_rate() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    conserved(Testbed::kind(), &LoadOptions::default(), 10)
}

#[test]
fn azure_with_a_flow_table_far_too_small() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    conserved(
        Testbed::azure_overlay(),
        &LoadOptions {
            flow_cells: 16,
            spill_entries: 4096,
            ..LoadOptions::default()
        },
        5,
    )
}

//! Every row of traffic is recognised with its exact translation: the tuple before and after, both ways, as
//! conntrack has it, with the packets and bytes that conntrack counted.

use std::net::IpAddr;

use aksnet_common::{flow::STAGE_FIRST, passage::NatKind};
use anyhow::{Context as _, Result, ensure};
use xtask::testbed::{
    Builder, Family, Hairpin, Service, Testbed,
    counters::{self, ConntrackEntry},
    traffic::{Tcp, TcpServer, Udp, UdpServer},
};

use crate::watch::{Watch, answering, every_packet, of_direction, protocol, turn};

fn flavours() -> [Builder; 4] {
    [
        Testbed::kubenet().hairpin(Hairpin::Veth),
        Testbed::kind(),
        Testbed::azure_overlay(),
        Testbed::azure_node_subnet(),
    ]
    .map(|builder| builder.dual_stack(true))
}

/// Holds the flows of the one connection in the node's conntrack table against its entry.
fn check(bed: &Testbed, watch: &Watch, row: &str, nat: NatKind) -> Result<ConntrackEntry> {
    bed.settle()?;
    let entries = bed.node().conntrack()?;
    let [entry] = entries.as_slice() else {
        anyhow::bail!("{row}: one conntrack entry was expected: {entries:#?}");
    };
    let protocol = protocol(entry);
    let (there, there_cold) = watch
        .flow(&of_direction(&entry.original), protocol)
        .context(row.to_owned())?;
    let (back, back_cold) = watch
        .flow(&of_direction(&entry.reply), protocol)
        .context(row.to_owned())?;

    ensure!(
        there_cold.after == answering(&entry.reply),
        "{row}: leaves as {:?}, conntrack {entry:?}",
        there_cold.after
    );
    ensure!(
        back_cold.after == answering(&entry.original),
        "{row}: the answer leaves as {:?}",
        back_cold.after
    );
    ensure!(
        NatKind::try_from(there_cold.nat) == Ok(nat),
        "{row}: nat {}",
        there_cold.nat
    );
    ensure!(
        NatKind::try_from(back_cold.nat) == Ok(nat.of_reply()),
        "{row}: nat of the answer {}",
        back_cold.nat
    );
    let counted = [(there.skbs, there.bytes), (back.skbs, back.bytes)];
    let truth = [
        (entry.original.packets, entry.original.bytes),
        (entry.reply.packets, entry.reply.bytes),
    ];
    ensure!(
        counted == truth,
        "{row}: counted {counted:?}, conntrack {truth:?}"
    );
    ensure!(
        there_cold.exits == there.skbs,
        "{row}: {} of {} left",
        there_cold.exits,
        there.skbs
    );
    ensure!(
        back_cold.exits == back.skbs,
        "{row}: {} of {} answers left",
        back_cold.exits,
        back.skbs
    );
    ensure!(
        there.connections == 1,
        "{row}: {} connections",
        there.connections
    );
    ensure!(
        there_cold.times[STAGE_FIRST].iter().sum::<u32>() == 1,
        "{row}: one first packet"
    );
    ensure!(
        there_cold.translations == 0 && back_cold.translations == 0,
        "{row}: the translation changed"
    );
    Ok(entry.clone())
}

struct Rows<'a> {
    bed: &'a Testbed,
    watch: Watch,
    family: Family,
}

impl Rows<'_> {
    fn node_ip(&self) -> IpAddr {
        self.bed
            .node()
            .address()
            .of(self.family)
            .expect("the node has this family")
    }

    /// Runs TCP and checks it.
    fn tcp(
        &mut self,
        row: &str,
        nat: NatKind,
        client: &xtask::testbed::Netns,
        to: impl Into<std::net::SocketAddr>,
    ) -> Result<ConntrackEntry> {
        self.afresh()?;
        Tcp::to(to.into())
            .bytes(3000)
            .run(client)
            .with_context(|| row.to_owned())?;
        check(self.bed, &self.watch, row, nat)
    }

    fn udp(
        &mut self,
        row: &str,
        nat: NatKind,
        client: &xtask::testbed::Netns,
        to: impl Into<std::net::SocketAddr>,
    ) -> Result<ConntrackEntry> {
        self.afresh()?;
        Udp::to(to.into())
            .datagrams(5)
            .run(client)
            .with_context(|| row.to_owned())?;
        check(self.bed, &self.watch, row, nat)
    }

    /// Forgets what was before: conntrack's entries, and the flows (other ports make other flows, so they may stay).
    fn afresh(&self) -> Result<()> {
        self.bed.settle()?;
        counters::flush_conntrack(self.bed.node().netns())
    }
}

#[test]
fn every_row_has_its_exact_translation_on_every_flavour() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in flavours() {
        let bed = builder.build()?;
        for family in bed.families() {
            rows(&bed, family).with_context(|| format!("{:?} {family:?}", bed.plan().flavour))?;
        }
    }
    Ok(())
}

#[expect(
    clippy::too_many_lines,
    reason = "one row of traffic after the other, as in a table"
)]
fn rows(bed: &Testbed, family: Family) -> Result<()> {
    let (client, web, far) = (bed.pod(0), bed.pod(1), bed.remote_pod(0));
    let outside = bed
        .plan()
        .outside
        .of(family)
        .context("outside has this family")?;
    let frontend = bed.plan().load_balancer.of(family).context("a frontend")?;
    let mut rows = Rows {
        bed,
        watch: Watch::start(bed, &every_packet())?,
        family,
    };
    let of_family = |s: Service| if family == Family::V6 { s.v6() } else { s };
    let tag = if family == Family::V6 { "6" } else { "" };
    let name = |n: &str| format!("{n}{tag}");

    let near_server = TcpServer::echo(web.netns(), (web.ip_of(family), 8080))?;
    let far_server = TcpServer::echo(far.netns(), (far.ip_of(family), 8080))?;
    let near_udp = UdpServer::echo(web.netns(), (web.ip_of(family), 53))?;
    let out_server = TcpServer::echo(bed.outside(), (outside, 443))?;
    let own_server = TcpServer::echo(client.netns(), (client.ip_of(family), 8080))?;

    rows.tcp(
        "pod to pod, same node",
        NatKind::None,
        client.netns(),
        near_server.address(),
    )?;
    rows.tcp(
        "pod to pod, other node",
        NatKind::None,
        client.netns(),
        far_server.address(),
    )?;
    rows.tcp(
        "pod from the other node",
        NatKind::None,
        far.netns(),
        near_server.address(),
    )?;
    rows.udp(
        "pod to pod, UDP",
        NatKind::None,
        client.netns(),
        near_udp.address(),
    )?;

    let near = bed.add_service(
        of_family(Service::cluster_ip("shop", &name("near"), 80))
            .endpoints([near_server.address()]),
    )?;
    rows.tcp(
        "service, endpoint here",
        NatKind::Dnat,
        client.netns(),
        near.address(),
    )?;
    let remote = bed.add_service(
        of_family(Service::cluster_ip("shop", &name("remote"), 80))
            .endpoints([far_server.address()]),
    )?;
    rows.tcp(
        "service, endpoint elsewhere",
        NatKind::Dnat,
        client.netns(),
        remote.address(),
    )?;
    let dns = bed.add_service(
        of_family(Service::cluster_ip("shop", &name("dns"), 53))
            .udp()
            .endpoints([near_udp.address()]),
    )?;
    rows.udp("service, UDP", NatKind::Dnat, client.netns(), dns.address())?;
    let own = bed.add_service(
        of_family(Service::cluster_ip("shop", &name("own"), 80)).endpoints([own_server.address()]),
    )?;
    let entry = rows.tcp("hairpin", NatKind::Both, client.netns(), own.address())?;
    ensure!(
        entry.reply.source == entry.original.source,
        "the endpoint is the client itself"
    );
    let beyond = bed.add_service(
        of_family(Service::cluster_ip("shop", &name("api"), 443)).endpoints([out_server.address()]),
    )?;
    rows.tcp(
        "service, endpoint outside",
        NatKind::Both,
        client.netns(),
        beyond.address(),
    )?;

    let entry = rows.tcp(
        "egress",
        NatKind::Snat,
        client.netns(),
        out_server.address(),
    )?;
    ensure!(
        entry.reply.destination == rows.node_ip(),
        "egress takes the node's address"
    );

    let node_ip = rows.node_ip();
    let ports = if family == Family::V6 { 31_080 } else { 30_080 };
    let load_balancer = |n: &str, port, node_port| {
        of_family(Service::load_balancer(
            "shop",
            &name(n),
            port,
            node_port,
            frontend,
        ))
    };
    let any =
        bed.add_service(load_balancer("any", 80, ports).endpoints([near_server.address()]))?;
    rows.tcp(
        "load balancer, etp=Cluster, endpoint here",
        NatKind::Both,
        bed.outside(),
        any.frontend(),
    )?;
    rows.tcp(
        "node port, etp=Cluster",
        NatKind::Both,
        bed.outside(),
        (node_ip, ports),
    )?;
    let local = bed.add_service(
        load_balancer("local", 81, ports + 1)
            .local()
            .endpoints([near_server.address()]),
    )?;
    rows.tcp(
        "load balancer, etp=Local",
        NatKind::Dnat,
        bed.outside(),
        local.frontend(),
    )?;
    rows.tcp(
        "node port, etp=Local",
        NatKind::Dnat,
        bed.outside(),
        (node_ip, ports + 1),
    )?;
    let hop =
        bed.add_service(load_balancer("hop", 82, ports + 2).endpoints([far_server.address()]))?;
    rows.tcp(
        "load balancer, second hop",
        NatKind::Both,
        bed.outside(),
        hop.frontend(),
    )?;
    rows.tcp(
        "pod to its own load balancer",
        NatKind::Both,
        client.netns(),
        any.frontend(),
    )?;
    Ok(())
}

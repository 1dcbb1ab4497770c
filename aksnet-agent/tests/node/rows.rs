//! Every row of traffic is recognised with its exact translation: the tuple before and after, both ways, as
//! conntrack has it, with the packets and bytes that conntrack counted. The rows are the testbed's scenes.

use aksnet_common::{
    flow::{ColdCell, HotCell, STAGE_FIRST},
    passage::{NatKind, Tuple},
};
use anyhow::{Context as _, Result, ensure};
use xtask::testbed::{
    Builder, Hairpin, Proxy, Scene, Seen, Stage, Testbed,
    counters::{self, ConntrackEntry},
    traffic::{Tcp, TcpServer},
};

use crate::watch::{NODE, Watch, answering, every_packet, of_direction, protocol, turn};

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
    let entry = only_entry(bed, row)?;
    let protocol = protocol(&entry);
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
    Ok(entry)
}

/// The one entry of the node's conntrack table.
fn only_entry(bed: &Testbed, row: &str) -> Result<ConntrackEntry> {
    let entries = bed.node().conntrack()?;
    let [entry] = entries.as_slice() else {
        anyhow::bail!("{row}: one conntrack entry was expected: {entries:#?}");
    };
    Ok(entry.clone())
}

/// The one flow that the node itself sent with this tuple.
fn own_flow(watch: &Watch, tuple: &Tuple, protocol: u8) -> Result<(HotCell, ColdCell)> {
    let found: Vec<_> = watch
        .flows()
        .into_iter()
        .filter(|(hot, _)| {
            hot.key.tuple() == *tuple && hot.key.protocol == protocol && hot.key.origin == NODE
        })
        .collect();
    ensure!(
        found.len() == 1,
        "{} flows of the node's own for {tuple:?}",
        found.len()
    );
    Ok(found[0])
}

/// What ends or starts at the node: each direction passes the hooks once, with the tuple that it has on the way.
fn check_at_the_node(bed: &Testbed, watch: &Watch, scene: &Scene<'_>) -> Result<()> {
    let row = scene.name;
    bed.settle()?;
    let entry = only_entry(bed, row)?;
    let protocol = protocol(&entry);
    let (there, back) = match scene.seen {
        Seen::Ending => (
            watch.flow(&of_direction(&entry.original), protocol),
            own_flow(watch, &answering(&entry.original), protocol),
        ),
        _ => (
            own_flow(watch, &answering(&entry.reply), protocol),
            watch.flow(&of_direction(&entry.reply), protocol),
        ),
    };
    let (there, back) = (
        there.context(row.to_owned())?.0,
        back.context(row.to_owned())?.0,
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
        there.connections == 1,
        "{row}: {} connections",
        there.connections
    );
    let bits = (entry.is_snat(), entry.is_dnat());
    ensure!(
        nat_of(scene) == nat_by(bits),
        "{row}: conntrack has {bits:?}"
    );
    Ok(())
}

/// What passes no connection tracking, or is dropped: only the programs have seen it.
fn check_unseen(bed: &Testbed, watch: &Watch, scene: &Scene<'_>) -> Result<()> {
    let row = scene.name;
    bed.settle()?;
    let to: std::net::SocketAddr = scene.to.parse()?;
    let tracked = bed.node().conntrack()?.into_iter();
    let tracked = tracked
        .filter(|e| e.original.destination == to.ip())
        .count();
    ensure!(tracked == 0, "{row}: {tracked} conntrack entries");
    let found: Vec<_> = watch
        .flows()
        .into_iter()
        .filter(|(hot, _)| {
            let tuple = hot.key.tuple();
            tuple.dst == to.ip().into()
                && tuple.dst_port == to.port()
                && (hot.key.protocol == 17) == (scene.protocol == "udp")
        })
        .collect();
    let [(hot, cold)] = found.as_slice() else {
        anyhow::bail!("{row}: {} flows", found.len());
    };
    ensure!(
        hot.connections == 1,
        "{row}: {} connections",
        hot.connections
    );
    ensure!(
        cold.exits == 0,
        "{row}: {} of {} left the node",
        cold.exits,
        hot.skbs
    );
    if scene.seen == Seen::Dropped || scene.protocol == "udp" {
        ensure!(hot.skbs == 1, "{row}: {} packets", hot.skbs);
    }
    Ok(())
}

fn nat_of(scene: &Scene<'_>) -> NatKind {
    match scene.nat {
        "snat" => NatKind::Snat,
        "dnat" => NatKind::Dnat,
        "both" => NatKind::Both,
        _ => NatKind::None,
    }
}

fn nat_by((snat, dnat): (bool, bool)) -> NatKind {
    match (snat, dnat) {
        (true, true) => NatKind::Both,
        (true, false) => NatKind::Snat,
        (false, true) => NatKind::Dnat,
        (false, false) => NatKind::None,
    }
}

/// Plays every scene of every family, one connection each, and checks it.
fn rows_of(builder: Builder) -> Result<()> {
    let bed = builder.build()?;
    Stage::prepare(&bed)?;
    for family in bed.families() {
        let stage = Stage::set(&bed, family)?;
        let watch = Watch::start(&bed, &every_packet())?;
        for scene in stage.scenes() {
            let checked = (|| {
                bed.settle()?;
                counters::flush_conntrack(bed.node().netns())?;
                scene.play(1, 3000)?;
                match scene.seen {
                    Seen::Crossing => check(&bed, &watch, scene.name, nat_of(&scene)).map(drop),
                    Seen::Ending | Seen::Starting => check_at_the_node(&bed, &watch, &scene),
                    Seen::Untracked | Seen::Dropped => check_unseen(&bed, &watch, &scene),
                }
            })();
            let on = bed.plan().flavour.name();
            checked.with_context(|| format!("{} on {on}, {family:?}", scene.name))?;
        }
    }
    Ok(())
}

#[test]
fn every_row_has_its_exact_translation_on_every_flavour() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    flavours().into_iter().try_for_each(rows_of)
}

#[test]
fn every_row_has_its_exact_translation_in_nftables_mode() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    [Testbed::kind(), Testbed::azure_node_subnet()]
        .into_iter()
        .try_for_each(|builder| rows_of(builder.dual_stack(true).proxy(Proxy::Nftables)))
}

/// One connection from the first pod, on a node whose masquerade agent has these ranges.
fn anomaly(builder: Builder, row: &str, to_vm: bool, nat: NatKind) -> Result<ConntrackEntry> {
    let bed = builder.build()?;
    let watch = Watch::start(&bed, &every_packet())?;
    let far = bed.remote_pod(0);
    let server = if to_vm {
        TcpServer::echo(bed.vm(), (bed.vm_ip(), 8080))?
    } else {
        TcpServer::echo(far.netns(), (far.ip(), 8080))?
    };
    bed.settle()?;
    counters::flush_conntrack(bed.node().netns())?;
    Tcp::to(server.address())
        .bytes(3000)
        .run(bed.pod(0).netns())?;
    check(&bed, &watch, row, nat)
}

#[test]
fn pod_to_pod_is_seen_to_be_masqueraded_where_the_agent_spares_nothing() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in [Testbed::kubenet(), Testbed::azure_overlay()] {
        anomaly(
            builder.spared([]),
            "pod to pod with SNAT",
            false,
            NatKind::Snat,
        )?;
    }
    Ok(())
}

#[test]
fn egress_without_masquerade_is_seen_where_the_agent_spares_too_much() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let builder = Testbed::kubenet().spared(["10.0.0.0/8".parse()?]);
    let entry = anomaly(builder, "egress without SNAT", true, NatKind::None)?;
    ensure!(
        entry.reply.destination == entry.original.source,
        "the pod's own address leaves"
    );
    Ok(())
}

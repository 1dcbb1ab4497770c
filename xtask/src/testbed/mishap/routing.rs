//! Packets that *routing* does not send on: there is no way, they may not come from where they say, they have come too
//! far, or they are too long for the way.

use std::net::SocketAddr;

use anyhow::Result;

use super::{BOTH, Loss, Mishap, ONLY_V4, Sender};
use crate::testbed::bed::Testbed;
use crate::testbed::frame::Packet;
use crate::testbed::plan::Family;
use crate::testbed::service::Transport;

pub(super) const MISHAPS: &[Mishap] = &[
    Mishap::new("no route", "route", BOTH, no_route),
    Mishap::new("unreachable route", "route", BOTH, unreachable),
    Mishap::new("blackhole route", "route", BOTH, blackhole),
    Mishap::new("reverse path filter", "rp_filter", ONLY_V4, reverse_path),
    // The routing code finds the source impossible by itself, with or without rp_filter (reason IP_LOCALNET).
    Mishap::new("martian source", "route", ONLY_V4, martian),
    Mishap::new("TTL expired", "ttl", BOTH, expired),
    Mishap::new("MTU exceeded", "mtu", BOTH, too_long),
];

/// As without a default route: a `throw` ends the search in the table that has it.
fn no_route(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let (range, to) = sender.nowhere(2)?;
    sender.with_route(&format!("throw {range}"), || {
        sender.lose_datagrams(to, packets, "InNoRoutes", || {
            sender.counter("IpExt.InNoRoutes", "Ip6InNoRoutes")
        })
    })
}

fn unreachable(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let (range, to) = sender.nowhere(3)?;
    sender.with_route(&format!("unreachable {range}"), || {
        sender.lose_datagrams(to, packets, "came and went no further", || {
            sender.vanished()
        })
    })
}

fn blackhole(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let (range, to) = sender.nowhere(4)?;
    sender.with_route(&format!("blackhole {range}"), || {
        sender.lose_datagrams(to, packets, "came and went no further", || {
            sender.vanished()
        })
    })
}

/// A pod that sends from an address that the node would look for elsewhere.
fn reverse_path(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let (_, spoofed) = sender.nowhere(5)?;
    let key = format!("net/ipv4/conf/{}/rp_filter", sender.interface()?);
    super::with(
        || sender.node().sysctl(&key, "1"),
        || {
            spoof(&sender, spoofed, packets, "IPReversePathFilter", || {
                sender.counter("TcpExt.IPReversePathFilter", "")
            })
        },
        || sender.node().sysctl(&key, "0"),
    )
}

/// A pod that sends from an address that no host may have.
fn martian(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let loopback = SocketAddr::from(([127, 0, 0, 7], super::CLIENT_PORT));
    spoof(
        &sender,
        loopback,
        packets,
        "came and went no further",
        || sender.vanished(),
    )
}

fn spoof(
    sender: &Sender<'_>,
    source: SocketAddr,
    packets: u16,
    counter: &'static str,
    read: impl Fn() -> Result<u64>,
) -> Result<Loss> {
    let to = sender.outside(9000)?;
    let datagram = Packet::udp(source, to, &super::number().to_be_bytes());
    let loss = sender.lose((Transport::Udp, to), &datagram, packets, counter, read)?;
    Ok(Loss { source, ..loss })
}

/// Packets that have one hop left, and need two.
fn expired(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let to = sender.outside(9000)?;
    let datagram = Packet::udp(sender.source(), to, &super::number().to_be_bytes()).hops(1);
    sender.lose(
        (Transport::Udp, to),
        &datagram,
        packets,
        "InHdrErrors",
        || sender.counter("Ip.InHdrErrors", "Ip6InHdrErrors"),
    )
}

/// Packets that may not be fragmented, over an uplink that takes less than the pod's interface.
fn too_long(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let to = sender.outside(9000)?;
    let uplink = bed.node().uplink();
    let mtu = |mtu: u16| sender.node().ip([format!("link set {uplink} mtu {mtu}")]);
    super::with(
        || mtu(1300),
        || {
            let datagram = Packet::udp(sender.source(), to, &[0; 1350]).whole();
            sender.lose(
                (Transport::Udp, to),
                &datagram,
                packets,
                "FragFails",
                || sender.counter("Ip.FragFails", "Ip6InTooBigErrors"),
            )
        },
        || {
            mtu(1500)?;
            // The pod has learnt a path MTU that is not true any more.
            let families = ["-4", "-6"];
            families.into_iter().try_for_each(|family| {
                let words = [family, "route", "flush", "cache"];
                sender.pod.netns().output("ip", words).map(drop)
            })
        },
    )
}

//! Packets that *connection tracking* drops itself: two connections after NAT would be the same, or there is no room.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{BOTH, Loss, Mishap, Sender};
use crate::testbed::bed::Testbed;
use crate::testbed::counters::{self, conntrack_statistics};
use crate::testbed::fill::fill;
use crate::testbed::plan::Family;
use crate::testbed::service::Transport;
use crate::testbed::traffic::TcpServer;

/// Filling more than this takes too much memory: about 100 MB.
const MOST: u32 = 300_000;

/// How long a client waits: less than until its SYN is sent again.
const SOON: Duration = Duration::from_millis(300);

pub(super) const MISHAPS: &[Mishap] = &[
    Mishap::new("SNAT clash", "nat", BOTH, clash),
    Mishap::new("conntrack table full", "conntrack", BOTH, full)
        .only_if(|bed| limit(bed).is_ok_and(|limit| limit <= MOST)),
];

/// Ports run out: two are to do for two connections and as many more as are to be lost.
fn clash(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let to = sender.outside(7777)?;
    let server = TcpServer::echo(bed.outside(), to)?;
    let rule = "-p tcp -m tcp --dport 7777 -j MASQUERADE --to-ports 40000-40001";
    let failed = || Ok::<_, anyhow::Error>(conntrack_statistics(sender.node())?.insert_failed);
    sender.with_rule(["nat", "POSTROUTING", rule], || {
        let before = failed()?;
        let attempts = usize::from(packets) + 2;
        let streams: Vec<TcpStream> = sender.pod.netns().run(|| {
            Ok((0..attempts)
                .filter_map(|_| TcpStream::connect_timeout(&to, SOON).ok())
                .collect())
        })?;
        ensure!(
            streams.len() == 2 && server.address() == to,
            "{} connections through two ports",
            streams.len()
        );
        drop(streams);
        bed.settle()?;
        Ok(Loss {
            packets: packets.into(),
            transport: Transport::Tcp,
            source: SocketAddr::new(sender.source().ip(), 0),
            destination: to,
            interface: sender.interface()?,
            counted: Some(("insert_failed", failed()? - before)),
        })
    })
}

/// A table without room, in which nothing may be evicted.
fn full(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let node = sender.node();
    let to = sender.outside(5353)?;
    let limit = limit(bed)?;
    super::with(
        || fill(node, limit, true),
        || {
            let there = conntrack_statistics(node)?.entries;
            ensure!(there >= limit.into(), "{there} entries of {limit}");
            sender.lose_datagrams(to, packets, "conntrack drop", || {
                Ok(conntrack_statistics(node)?.drop)
            })
        },
        || counters::flush_conntrack(node),
    )
}

/// `nf_conntrack_max`, which is the machine's; what is counted against it is the namespace's own.
fn limit(bed: &Testbed) -> Result<u32> {
    let text = bed
        .node()
        .netns()
        .read("/proc/sys/net/netfilter/nf_conntrack_max")?;
    text.trim().parse().context("nf_conntrack_max is a number")
}

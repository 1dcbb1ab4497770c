//! A look at live flows from outside: everything that is known of one, put together when somebody asks.

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{ColdCell, HotCell, ORIGIN_NODE},
    packet::{FIN, RST},
    passage::NatKind,
};

use super::{
    cause::Cause,
    delta::{CLOSED, KNOWN, REOPENED, REPLY, TWIN},
    join::Side,
    source::Source,
    sweep::{Collector, milliseconds},
};
use crate::{
    classify::{Class, Verdict, Whois},
    metrics::{budget::Handle, histogram::PathTimes},
};

/// A flow as it stands now.
#[derive(Clone, Copy, Debug)]
pub struct LiveFlow {
    /// Its counts.
    pub hot: HotCell,
    /// Its times and translation.
    pub cold: ColdCell,
    /// Which side of its connection it is.
    pub side: Side,
    /// What its connection is.
    pub verdict: Verdict,
    /// Packets and bytes per second between the last two sweeps.
    pub rates: (f64, f64),
    /// When it was last seen to change; milliseconds since 1970.
    pub changed_unix_ms: u64,
    /// Packets of it that were dropped.
    pub drops: u64,
    /// The kernel's number for why the latest was.
    pub drop_reason: u32,
    /// What that means.
    pub drop_cause: Cause,
}

impl LiveFlow {
    /// Whether the node itself sends these packets.
    #[must_use]
    pub fn node_sends(&self) -> bool {
        self.hot.key.origin == ORIGIN_NODE
    }
}

/// A flow as the last sweep left it, without a look at its cell: what can be had of every flow many times a minute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glance {
    /// Where it is.
    pub(crate) cell: u32,
    /// Whether its packets are a connection's replies.
    pub(crate) reply: bool,
    /// Whether it stands for a connection: its originator's flow, and not that flow's second cell.
    pub(crate) connection: bool,
    /// Whether that connection has not been finished, as far as TCP's flags tell.
    pub(crate) open: bool,
    /// Kind of traffic.
    pub(crate) class: Class,
    /// What NAT did to the connection.
    pub(crate) nat: NatKind,
    /// Its series in the flow families.
    pub(crate) series: Handle,
    /// Packets on the wire.
    pub(crate) packets: u64,
    /// Bytes on the wire, IP length.
    pub(crate) bytes: u64,
    /// Packets and bytes per second between the last two sweeps.
    pub(crate) rates: (f64, f64),
    /// Dropped packets.
    pub(crate) drops: u64,
    /// The kernel's number for why the latest was.
    pub(crate) drop_reason: u32,
    /// What that means.
    pub(crate) drop_cause: Cause,
    /// Milliseconds since it was last seen to change.
    pub(crate) idle_ms: u32,
}

impl Collector {
    /// All judged flows at a glance.
    pub(crate) fn glances(&self) -> impl Iterator<Item = Glance> + '_ {
        let ms = self.ms();
        self.live().map(move |cell| {
            let (seen, link) = (&self.seen[cell as usize], &self.links[cell as usize]);
            let reply = seen.has(REPLY);
            let (packets, bytes) = seen.so_far();
            let finished = u32::from(seen.tcp) & u32::from(FIN | RST) != 0;
            Glance {
                cell,
                reply,
                connection: !reply && !seen.has(TWIN),
                open: !finished || seen.has(REOPENED),
                class: seen.class(),
                nat: seen.nat(),
                series: seen.flow,
                packets,
                bytes,
                rates: self.rates(cell),
                drops: link.drops,
                drop_reason: link.drop_reason,
                drop_cause: link.drop_cause,
                idle_ms: ms.wrapping_sub(seen.changed),
            }
        })
    }

    /// A flow's times on the NAT path as of the last sweep, by stage.
    pub(crate) fn times(&self, cell: u32) -> [PathTimes; 2] {
        self.cold[cell as usize].so_far()
    }

    /// Whether any packet of the flow was ever timed.
    pub(crate) fn timed(&self, cell: u32) -> bool {
        self.cold[cell as usize].exits() > 0
    }

    /// Wall time of the last sweep, and milliseconds between it and the one before.
    #[must_use]
    pub const fn swept(&self) -> (u64, u32) {
        (self.now.unix_ms, self.interval_ms)
    }

    /// The cells of all judged flows.
    pub fn live(&self) -> impl Iterator<Item = u32> + '_ {
        let known = |(cell, seen): (u32, &super::delta::Seen)| seen.has(KNOWN).then_some(cell);
        (0..).zip(&self.seen).filter_map(known)
    }

    /// Packets and bytes per second of a flow between the last two sweeps.
    #[must_use]
    pub fn rates(&self, cell: u32) -> (f64, f64) {
        let index = cell as usize;
        let seen = &self.seen[index];
        if self.interval_ms == 0 || seen.changed != self.ms() || seen.has(CLOSED) {
            return (0.0, 0.0);
        }
        let per_second = |n: f32| f64::from(n) * 1000.0 / f64::from(self.interval_ms);
        let last = self.last[index];
        (per_second(last.packets), per_second(last.bytes))
    }

    /// Dropped packets of a flow, and the kernel's number for why the latest was.
    #[must_use]
    pub fn drops(&self, cell: u32) -> (u64, u32) {
        let link = &self.links[cell as usize];
        (link.drops, link.drop_reason)
    }

    /// A flow, if the cell holds one that was judged.
    pub fn flow<S: Source>(&self, source: &S, whois: &Whois, cell: u32) -> Option<LiveFlow> {
        if !self.known(cell) {
            return None;
        }
        let (half, verdict) = self.verdict(source, whois, cell);
        let link = &self.links[cell as usize];
        let ago = self.ms().wrapping_sub(self.seen[cell as usize].changed);
        Some(LiveFlow {
            hot: half.hot,
            cold: source.cold(cell),
            side: self.side(cell),
            verdict,
            rates: self.rates(cell),
            changed_unix_ms: self.now.unix_ms.saturating_sub(u64::from(ago)),
            drops: link.drops,
            drop_reason: link.drop_reason,
            drop_cause: link.drop_cause,
        })
    }

    /// Drops of the last minute that belong to no live flow.
    pub fn orphan_drops(&self) -> impl Iterator<Item = (&DropKey, &DropStats, Cause)> {
        let drops = self.orphans.drops.iter();
        drops.map(|(key, (stats, cause))| (key, stats, *cause))
    }

    /// The wall time of a moment by `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn unix_ms(&self, monotonic_ns: u64) -> u64 {
        let ago = self.now.monotonic_ns.saturating_sub(monotonic_ns) / 1_000_000;
        self.now.unix_ms.saturating_sub(ago)
    }

    /// The last sweep, by the collector's clock.
    fn ms(&self) -> u32 {
        let started = self.started_ns.unwrap_or_default();
        milliseconds(self.now.monotonic_ns.saturating_sub(started))
    }
}

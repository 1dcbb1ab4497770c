//! A look at live flows from outside: everything that is known of one, put together when somebody asks.

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{ColdCell, HotCell, ORIGIN_NODE},
};

use super::{
    cause::Cause,
    delta::{CLOSED, KNOWN},
    join::Side,
    source::Source,
    sweep::{Collector, milliseconds},
};
use crate::classify::{Verdict, Whois};

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

impl Collector {
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

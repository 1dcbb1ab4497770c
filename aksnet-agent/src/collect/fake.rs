//! A source into which tests and benchmarks play packets: the same cells and the same protocol as the
//! programs use, in ordinary memory.

use std::{cell::RefCell, collections::HashMap};

use aksnet_common::{
    cell::{self, Cells, Place},
    drops::{DropKey, DropStats},
    flow::{ColdCell, FlowKey, HotCell, Sampling, SpillStats, WAYS, time_bucket},
    packet::{ACK, SYN, TCP},
    passage::{NatKind, Tuple},
    stats::Role,
};

use super::source::{Source, Totals};

/// A packet to be played.
#[derive(Clone, Copy, Debug, Default)]
pub struct FakePacket {
    /// What it says before NAT, and where it is counted.
    pub key: FlowKey,
    /// When, in `CLOCK_MONOTONIC` nanoseconds.
    pub ns: u64,
    /// IP length.
    pub bytes: u64,
    /// Further wire packets for which it stands.
    pub gso_packets: u64,
    /// Bytes of their headers.
    pub gso_bytes: u64,
    /// TCP flags.
    pub tcp: u8,
    /// Whether TCP has sent it before.
    pub again: bool,
    /// If it is timed: how it left, and after how long.
    pub exit: Option<FakeExit>,
}

/// How a timed packet left.
#[derive(Clone, Copy, Debug, Default)]
pub struct FakeExit {
    /// The tuple after NAT.
    pub after: Tuple,
    /// The interface; 0: it was dropped.
    pub ifindex: u32,
    /// Nanoseconds on the NAT path.
    pub ns: u64,
    /// [`aksnet_common::flow::STAGE_FIRST`] or the other.
    pub stage: usize,
}

/// Where a packet under way will be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticket {
    /// In a cell; true if it claimed it.
    Cell(usize, bool),
    /// In the spill map.
    Spill,
    /// In the overflow counters.
    Overflow,
}

/// See the module's header.
#[derive(Debug)]
pub struct FakeSource {
    hot: RefCell<Vec<HotCell>>,
    cold: RefCell<Vec<ColdCell>>,
    spill: HashMap<FlowKey, SpillStats>,
    spill_limit: usize,
    drops: HashMap<DropKey, DropStats>,
    /// Shown by [`Source::totals`].
    pub totals: Totals,
    /// Packets of other numbers leave without a time, whatever they say; SYNs have one.
    pub sampling: Sampling,
    mask: u64,
}

struct Bucket<'a> {
    hot: &'a RefCell<Vec<HotCell>>,
    base: usize,
}

impl Cells for Bucket<'_> {
    fn state(&self, way: usize) -> u64 {
        self.hot.borrow()[self.base + way].state
    }

    fn swap_state(&self, way: usize, old: u64, new: u64) -> u64 {
        let cell = &mut self.hot.borrow_mut()[self.base + way];
        let found = cell.state;
        if found == old {
            cell.state = new;
        }
        found
    }

    fn key_is(&self, way: usize, key: &FlowKey) -> bool {
        self.hot.borrow()[self.base + way].key == *key
    }

    fn write_key(&self, way: usize, key: &FlowKey) {
        self.hot.borrow_mut()[self.base + way].key = *key;
    }
}

impl FakeSource {
    /// A table of `buckets` (a power of two) times [`WAYS`] cells, and a spill map of so many entries.
    #[must_use]
    pub fn new(buckets: usize, spill_limit: usize) -> Self {
        assert!(buckets.is_power_of_two(), "buckets are a power of two");
        Self {
            hot: RefCell::new(vec![HotCell::default(); buckets * WAYS]),
            cold: RefCell::new(vec![ColdCell::default(); buckets * WAYS]),
            spill: HashMap::new(),
            spill_limit,
            drops: HashMap::new(),
            totals: Totals::default(),
            sampling: Sampling::EVERY,
            mask: buckets as u64 - 1,
        }
    }

    fn bucket(&self, cell: usize) -> Bucket<'_> {
        Bucket {
            hot: &self.hot,
            base: cell / WAYS * WAYS,
        }
    }

    /// Plays a packet from beginning to end.
    pub fn play(&mut self, packet: &FakePacket) {
        let ticket = self.begin(packet);
        self.complete(packet, ticket);
    }

    /// Finds the packet's place, as a program does first.
    #[expect(clippy::cast_possible_truncation, reason = "a fake's table is small")]
    pub fn begin(&mut self, packet: &FakePacket) -> Ticket {
        let hash = packet.key.hash(0);
        let base = (hash & self.mask) as usize * WAYS;
        let bucket = self.bucket(base);
        let place = match cell::find(&bucket, hash, &packet.key) {
            Some(way) => Place::Found(way),
            None => cell::claim(&bucket, hash, &packet.key),
        };
        match place {
            Place::Found(way) => Ticket::Cell(base + way, false),
            Place::Claimed(way) => {
                self.hot.borrow_mut()[base + way].first_ns = packet.ns;
                Ticket::Cell(base + way, true)
            }
            Place::Full
                if self.spill.contains_key(&packet.key) || self.spill.len() < self.spill_limit =>
            {
                // The entry exists from here on, as in the kernel's map.
                self.spill.entry(packet.key).or_default();
                Ticket::Spill
            }
            Place::Full => Ticket::Overflow,
        }
    }

    /// Counts the packet where it belongs and lets it leave, as programs do next.
    pub fn complete(&mut self, packet: &FakePacket, ticket: Ticket) {
        if self.count(packet, ticket) {
            self.leave(packet, ticket);
        }
    }

    /// Counts the packet where it belongs. True if it is timed, and so is to [`Self::leave`].
    pub fn count(&mut self, packet: &FakePacket, ticket: Ticket) -> bool {
        let syn = packet.key.protocol == TCP && packet.tcp & SYN != 0 && !packet.again;
        let opens = syn && packet.tcp & ACK == 0;
        match ticket {
            Ticket::Cell(index, claimed) => {
                let hot = &mut self.hot.borrow_mut()[index];
                hot.skbs += 1;
                hot.bytes += packet.bytes;
                hot.gso_packets += packet.gso_packets;
                hot.gso_bytes += packet.gso_bytes;
                hot.tcp_flags |= u32::from(packet.tcp);
                hot.retransmits += u32::from(packet.again);
                hot.connections += u32::from(opens || (claimed && packet.key.protocol != TCP));
                if syn {
                    hot.syn_ns = packet.ns;
                }
                let synchronises = packet.key.protocol == TCP && packet.tcp & SYN != 0;
                let number = hot.skbs - 1;
                packet.exit.is_some() && (self.sampling.selects(number) || synchronises || claimed)
            }
            Ticket::Spill => {
                let first = packet.key.protocol != TCP;
                let stats = self.spill.entry(packet.key).or_default();
                if first {
                    stats.connections = 1;
                } else {
                    stats.connections += u64::from(opens);
                }
                stats.tcp_flags |= u64::from(packet.tcp);
                count(stats, packet);
                false
            }
            Ticket::Overflow => {
                let overflow = &mut self.totals.overflow[Role::Pod as usize];
                overflow.connections += u64::from(opens);
                count(overflow, packet);
                false
            }
        }
    }

    /// A packet that has a cell leaves, or is dropped.
    pub fn leave(&mut self, packet: &FakePacket, ticket: Ticket) {
        let (Ticket::Cell(index, _), Some(exit)) = (ticket, packet.exit) else {
            return;
        };
        let cold = &mut self.cold.borrow_mut()[index];
        if cold.sequence == 0 || cold.after != exit.after || cold.exit_ifindex != exit.ifindex {
            cold.translations += u32::from(cold.sequence != 0);
            cold.sequence += 2;
            cold.after = exit.after;
            cold.exit_ifindex = exit.ifindex;
            cold.nat = NatKind::between(&packet.key.tuple(), &exit.after) as u32;
        }
        if exit.ifindex == 0 {
            cold.drops += 1;
        } else {
            cold.exits += 1;
            cold.sum_ns[exit.stage] += exit.ns;
            cold.times[exit.stage][time_bucket(exit.ns)] += 1;
        }
    }

    /// Reports a drop, as the program on `kfree_skb` does.
    pub fn drop(&mut self, key: DropKey, stats: &DropStats) {
        let sum = self.drops.entry(key).or_default();
        sum.add(stats);
    }

    /// The cell of a flow.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a fake's table is small")]
    pub fn find(&self, key: &FlowKey) -> Option<u32> {
        let hash = key.hash(0);
        let base = (hash & self.mask) as usize * WAYS;
        cell::find(&self.bucket(base), hash, key).map(|way| (base + way) as u32)
    }

    /// Adds one packet to every live cell, without looking any up.
    pub fn touch_all(&mut self, bytes: u64) {
        for hot in self.hot.borrow_mut().iter_mut() {
            if hot.state & cell::PHASE == cell::LIVE {
                hot.skbs += 1;
                hot.bytes += bytes;
            }
        }
    }

    /// The same with a timed packet.
    pub fn touch_all_timed(&mut self, bytes: u64) {
        self.touch_all(bytes);
        for cold in self.cold.borrow_mut().iter_mut() {
            if cold.sequence != 0 {
                cold.exits += 1;
                cold.sum_ns[1] += 3_000;
                cold.times[1][3] += 1;
            }
        }
    }
}

fn count(stats: &mut SpillStats, packet: &FakePacket) {
    stats.skbs += 1;
    stats.bytes += packet.bytes;
    stats.gso_packets += packet.gso_packets;
    stats.gso_bytes += packet.gso_bytes;
}

impl Source for FakeSource {
    #[expect(clippy::cast_possible_truncation, reason = "a fake's table is small")]
    fn cells(&self) -> u32 {
        self.hot.borrow().len() as u32
    }

    fn state(&self, cell: u32) -> u64 {
        self.hot.borrow()[cell as usize].state
    }

    fn counts(&self, cell: u32) -> (u64, u64) {
        let hot = &self.hot.borrow()[cell as usize];
        (hot.skbs, hot.bytes)
    }

    fn hot(&self, cell: u32) -> HotCell {
        self.hot.borrow()[cell as usize]
    }

    fn cold(&self, cell: u32) -> ColdCell {
        self.cold.borrow()[cell as usize]
    }

    fn timed(&self, cell: u32) -> u64 {
        let cold = &self.cold.borrow()[cell as usize];
        cold.exits + cold.drops
    }

    fn sampling(&self) -> Sampling {
        self.sampling
    }

    fn close(&self, cell: u32) -> bool {
        let cell = cell as usize;
        cell::close(&self.bucket(cell), cell % WAYS)
    }

    fn free(&self, cell: u32) {
        let cell = cell as usize;
        let state = self.hot.borrow()[cell].state;
        self.hot.borrow_mut()[cell] = HotCell {
            state,
            ..HotCell::default()
        };
        self.cold.borrow_mut()[cell] = ColdCell::default();
        cell::free(&self.bucket(cell), cell % WAYS);
    }

    fn take_spill(&mut self) -> anyhow::Result<Vec<(FlowKey, SpillStats)>> {
        Ok(self.spill.drain().collect())
    }

    fn totals(&self) -> anyhow::Result<Totals> {
        Ok(self.totals)
    }

    fn take_drops(&mut self) -> anyhow::Result<Vec<(DropKey, DropStats)>> {
        Ok(self.drops.drain().collect())
    }
}

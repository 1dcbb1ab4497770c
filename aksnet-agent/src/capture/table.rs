//! The *table*: what the programs' maps are to them, in ordinary memory. It counts by the rules of
//! `aksnet-ebpf/src/account.rs`, and a sweep reads it as a [`Source`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aksnet_common::{
    cell::{CLOSING, FREE, LIVE, PHASE},
    drops::{DropKey, DropStats},
    flow::{
        ColdCell, FlowKey, HotCell, KEY_FRAGMENT, STAGE_ESTABLISHED, STAGE_FIRST, SpillStats,
        time_bucket,
    },
    packet::{ACK, Parsed, SYN, TCP},
    passage::{NatKind, Tuple},
    stats::{Role, Skip},
};

use crate::collect::source::{Source, Totals};

/// Where a packet was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    cell: u32,
    /// Which of the flows that had the cell, one after the other.
    tenant: u32,
    stage: usize,
}

/// See the module's header.
#[derive(Debug)]
pub struct Table {
    index: HashMap<FlowKey, u32>,
    hot: Vec<HotCell>,
    cold: Vec<ColdCell>,
    tenants: Vec<u32>,
    free: Vec<u32>,
    most: usize,
    spill: HashMap<FlowKey, SpillStats>,
    spill_most: usize,
    totals: Totals,
}

impl Table {
    /// A table of so many cells and spill entries at the most; it grows as it is needed.
    #[must_use]
    pub fn new(cells: u32, spill_entries: u32) -> Self {
        Self {
            index: HashMap::new(),
            hot: Vec::new(),
            cold: Vec::new(),
            tenants: Vec::new(),
            free: Vec::new(),
            most: cells as usize,
            spill: HashMap::new(),
            spill_most: spill_entries as usize,
            totals: Totals::default(),
        }
    }

    /// Counts a packet under its flow. `None` if that has no cell.
    pub fn count(&mut self, key: &FlowKey, parsed: &Parsed, ns: u64) -> Option<Ticket> {
        let syn = parsed.tcp_flags & SYN != 0;
        let opens = syn && parsed.tcp_flags & ACK == 0;
        let Some((cell, claimed)) = self.place(key) else {
            self.spill(key, parsed, opens);
            return None;
        };
        let hot = &mut self.hot[cell as usize];
        if claimed {
            hot.first_ns = ns;
        }
        hot.skbs += 1;
        hot.bytes += u64::from(parsed.l3_len);
        if key.protocol == TCP && key.flags & KEY_FRAGMENT == 0 {
            hot.tcp_flags |= u32::from(parsed.tcp_flags);
            if (parsed.payload_len > 0 || claimed) && !syn {
                let end = parsed.tcp_seq.wrapping_add(parsed.payload_len);
                if claimed || end.wrapping_sub(hot.max_seq).cast_signed() > 0 {
                    hot.max_seq = end;
                } else {
                    hot.retransmits += 1;
                }
            }
        }
        let mut stage = STAGE_ESTABLISHED;
        if syn {
            if !claimed && hot.syn_ns != 0 && hot.syn_seq == parsed.tcp_seq {
                hot.retransmits += 1;
            } else {
                hot.syn_seq = parsed.tcp_seq;
                hot.syn_ns = ns;
                hot.max_seq = parsed
                    .tcp_seq
                    .wrapping_add(1)
                    .wrapping_add(parsed.payload_len);
                hot.connections += u32::from(opens);
            }
            if opens {
                stage = STAGE_FIRST;
            }
        } else if claimed && key.protocol != TCP {
            hot.connections += 1;
            stage = STAGE_FIRST;
        }
        let tenant = self.tenants[cell as usize];
        Some(Ticket {
            cell,
            tenant,
            stage,
        })
    }

    /// The flow's cell, and whether it is new.
    fn place(&mut self, key: &FlowKey) -> Option<(u32, bool)> {
        if let Some(cell) = self.index.get(key) {
            return Some((*cell, false));
        }
        let cell = match self.free.pop() {
            Some(cell) => cell,
            None if self.hot.len() < self.most => {
                self.hot.push(HotCell::default());
                self.cold.push(ColdCell::default());
                self.tenants.push(0);
                u32::try_from(self.hot.len() - 1).ok()?
            }
            None => return None,
        };
        let hot = &mut self.hot[cell as usize];
        hot.key = *key;
        hot.state = LIVE;
        self.index.insert(*key, cell);
        Some((cell, true))
    }

    fn spill(&mut self, key: &FlowKey, parsed: &Parsed, opens: bool) {
        let room = self.spill.len() < self.spill_most;
        let stats = match self.spill.get_mut(key) {
            Some(stats) => stats,
            None if room => {
                let stats = self.spill.entry(*key).or_default();
                stats.connections = u64::from(key.protocol != TCP);
                stats
            }
            None => &mut self.totals.overflow[Role::Pod as usize],
        };
        stats.skbs += 1;
        stats.bytes += u64::from(parsed.l3_len);
        stats.tcp_flags |= u64::from(parsed.tcp_flags);
        if key.protocol == TCP {
            stats.connections += u64::from(opens);
        }
    }

    /// The packet was seen to leave, after `ns` nanoseconds where that is known. `again`: it had been seen to leave
    /// before, by another device.
    pub fn leave(
        &mut self,
        ticket: Ticket,
        after: &Tuple,
        ifindex: u32,
        ns: Option<u64>,
        again: bool,
    ) {
        let cell = ticket.cell as usize;
        if self.tenants[cell] != ticket.tenant {
            return;
        }
        let before = self.hot[cell].key.tuple();
        let cold = &mut self.cold[cell];
        if cold.sequence == 0 || cold.after != *after || cold.exit_ifindex != ifindex {
            cold.translations += u32::from(cold.sequence != 0 && cold.after != *after);
            cold.sequence += 2;
            cold.after = *after;
            cold.exit_ifindex = ifindex;
            cold.nat = NatKind::between(&before, after) as u32;
        }
        if again {
            return;
        }
        cold.exits += 1;
        if let Some(ns) = ns {
            cold.sum_ns[ticket.stage] += ns;
            cold.times[ticket.stage][time_bucket(ns)] += 1;
        }
    }

    /// A packet whose headers cannot be read.
    pub fn skip(&mut self, why: Skip, bytes: u32) {
        let stats = &mut self.totals.skipped[why as usize];
        stats.skbs += 1;
        stats.bytes += u64::from(bytes);
    }

    /// What was not accounted to flows.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// How many flows have a cell.
    #[must_use]
    pub fn live(&self) -> usize {
        self.hot.len() - self.free.len()
    }
}

/// A table that somebody counts in while somebody else sweeps it.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<Table>>);

impl Shared {
    /// Shares it.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self(Arc::new(Mutex::new(table)))
    }

    /// To count in.
    pub fn lock(&self) -> MutexGuard<'_, Table> {
        // Counters only grow: what a panic left is still right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Shared {
    fn cells(&self) -> u32 {
        u32::try_from(self.lock().hot.len()).unwrap_or(u32::MAX)
    }

    fn limit(&self) -> u32 {
        u32::try_from(self.lock().most).unwrap_or(u32::MAX)
    }

    fn state(&self, cell: u32) -> u64 {
        self.lock().hot[cell as usize].state
    }

    fn counts(&self, cell: u32) -> (u64, u64) {
        let table = self.lock();
        let hot = &table.hot[cell as usize];
        (hot.skbs, hot.bytes)
    }

    fn hot(&self, cell: u32) -> HotCell {
        self.lock().hot[cell as usize]
    }

    fn cold(&self, cell: u32) -> ColdCell {
        self.lock().cold[cell as usize]
    }

    fn timed(&self, cell: u32) -> u64 {
        self.lock().cold[cell as usize].exits
    }

    fn close(&self, cell: u32) -> bool {
        let mut table = self.lock();
        let hot = &mut table.hot[cell as usize];
        if hot.state & PHASE != LIVE {
            return false;
        }
        hot.state = CLOSING;
        let key = hot.key;
        table.index.remove(&key);
        true
    }

    fn free(&self, cell: u32) {
        let mut table = self.lock();
        let at = cell as usize;
        if table.hot[at].state & PHASE != CLOSING {
            return;
        }
        table.hot[at] = HotCell {
            state: FREE,
            ..HotCell::default()
        };
        table.cold[at] = ColdCell::default();
        table.tenants[at] = table.tenants[at].wrapping_add(1);
        table.free.push(cell);
    }

    fn take_spill(&mut self) -> anyhow::Result<Vec<(FlowKey, SpillStats)>> {
        Ok(self.lock().spill.drain().collect())
    }

    fn totals(&self) -> anyhow::Result<Totals> {
        Ok(self.lock().totals)
    }

    fn take_drops(&mut self) -> anyhow::Result<Vec<(DropKey, DropStats)>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use aksnet_common::flow::Addr;

    use super::*;
    use crate::{
        classify::Whois,
        collect::{CollectConfig, Collector, DropNames, Now},
        identify::index::Index,
        metrics::{Metrics, MetricsConfig},
        plan::Plan,
    };

    fn packet(port: u16) -> Parsed {
        Parsed {
            key: FlowKey {
                src: Addr::v4([10, 244, 0, 5]),
                dst: Addr::v4([1, 1, 1, 1]),
                src_port: port,
                dst_port: 443,
                protocol: TCP,
                family: 4,
                ifindex: 3,
                ..FlowKey::default()
            },
            l3_offset: 0,
            l3_len: 40,
            l4_offset: 20,
            payload_len: 0,
            ip_id: 1,
            fragment_offset: 0,
            tcp_flags: SYN,
            icmp_echo: false,
            tcp_seq: 1,
        }
    }

    /// A table in which another flow is counted whenever a sweep asks how many there are.
    struct Growing {
        table: Shared,
        port: Cell<u16>,
    }

    impl Growing {
        fn grow(&self) {
            self.port.set(self.port.get() + 1);
            let parsed = packet(self.port.get());
            self.table.lock().count(&parsed.key, &parsed, 1);
        }
    }

    impl Source for Growing {
        fn cells(&self) -> u32 {
            let cells = self.table.cells();
            self.grow();
            cells
        }

        fn limit(&self) -> u32 {
            self.table.limit()
        }

        fn state(&self, cell: u32) -> u64 {
            self.table.state(cell)
        }

        fn counts(&self, cell: u32) -> (u64, u64) {
            self.table.counts(cell)
        }

        fn hot(&self, cell: u32) -> HotCell {
            self.table.hot(cell)
        }

        fn cold(&self, cell: u32) -> ColdCell {
            self.table.cold(cell)
        }

        fn close(&self, cell: u32) -> bool {
            self.table.close(cell)
        }

        fn free(&self, cell: u32) {
            self.table.free(cell);
        }

        fn take_spill(&mut self) -> anyhow::Result<Vec<(FlowKey, SpillStats)>> {
            self.table.take_spill()
        }

        fn totals(&self) -> anyhow::Result<Totals> {
            Source::totals(&self.table)
        }

        fn take_drops(&mut self) -> anyhow::Result<Vec<(DropKey, DropStats)>> {
            self.table.take_drops()
        }
    }

    #[test]
    fn a_table_that_grows_while_it_is_swept_loses_nothing() {
        let (table, port) = (Shared::new(Table::new(1_000, 10)), Cell::new(0));
        let mut source = Growing { table, port };
        let metrics = Metrics::new(MetricsConfig::default());
        let mut collector = Collector::new(CollectConfig::default(), metrics.clone(), 0);
        let plan = Plan::builder().build();
        let index = Index::new("");
        let whois = Whois {
            plan: &plan,
            index: &index,
            translations: None,
        };
        let names = DropNames::new([], []);
        let mut now = Now {
            monotonic_ns: 1_000_000_000,
            unix_ms: 1_000,
        };
        for _ in 0..5 {
            now.monotonic_ns += 1_000_000_000;
            collector.sweep(&mut source, now, whois, &names);
        }
        collector.finish(&mut source.table, now, whois, &names);
        assert!(source.port.get() >= 5, "it grew in each sweep");
        assert_eq!(collector.accounted().skbs, u64::from(source.port.get()));
        let text = metrics.encode().unwrap();
        assert!(text.contains("_limit 1000\n"), "{text}");
    }
}

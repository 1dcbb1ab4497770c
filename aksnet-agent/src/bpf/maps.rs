//! The maps as one sweep reads them.

use std::time::Duration;

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{ColdCell, FlowKey, HotCell, Sampling, SpillStats},
    stats::{Event, Role, Skip, SkipStats},
};
use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, Map, MapData, PerCpuArray},
};

use super::{batch::Emptied, mapped::FlowTable};
use crate::{
    collect::source::{Source, Totals},
    conntrack::fullness::Fullness,
};

/// The running programs' maps.
pub struct MapSource {
    table: FlowTable,
    sampling: Sampling,
    epoch_map: Array<MapData, u32>,
    epoch: u32,
    spill: [Emptied<FlowKey, SpillStats>; 2],
    drops: [Emptied<DropKey, DropStats>; 2],
    overflow: PerCpuArray<MapData, SpillStats>,
    skipped: PerCpuArray<MapData, SkipStats>,
    events: PerCpuArray<MapData, u64>,
    /// Events of spilling and dropping when each was last taken: while they stand still, there is nothing
    /// to take and the epoch need not turn.
    seen: Option<[u64; 2]>,
    /// What the last turn of the epoch brought that was not asked for yet.
    spilled: Vec<(FlowKey, SpillStats)>,
    /// As `spilled`.
    dropped: Vec<(DropKey, DropStats)>,
    conntrack: Fullness,
}

impl MapSource {
    /// Takes the maps out of the loaded object and maps the flow table. `sampling` is what the programs were told.
    ///
    /// # Errors
    /// When a map is missing or not of its kind, or cannot be mapped.
    pub fn take(ebpf: &mut Ebpf, cells: u32, sampling: Sampling) -> Result<Self> {
        let flows = data(take(ebpf, "FLOWS")?)?;
        let times = data(take(ebpf, "TIMES")?)?;
        Ok(Self {
            table: FlowTable::new(&flows, &times, cells)?,
            sampling,
            epoch_map: take(ebpf, "EPOCH")?.try_into()?,
            epoch: 0,
            spill: [
                take(ebpf, "SPILL_0")?.try_into()?,
                take(ebpf, "SPILL_1")?.try_into()?,
            ],
            drops: [
                take(ebpf, "DROPS_0")?.try_into()?,
                take(ebpf, "DROPS_1")?.try_into()?,
            ],
            overflow: take(ebpf, "OVERFLOW")?.try_into()?,
            skipped: take(ebpf, "SKIPPED")?.try_into()?,
            events: take(ebpf, "EVENTS")?.try_into()?,
            seen: None,
            spilled: Vec::new(),
            dropped: Vec::new(),
            conntrack: Fullness::default(),
        })
    }

    /// Turns the epoch if anything was spilled or dropped since the last time, waits until no program can
    /// still be writing the maps of the old one, and empties those.
    fn turn(&mut self) -> Result<()> {
        let event = |event| sum(&self.events, event as u32);
        let now = [event(Event::Spilled)?, event(Event::Dropped)?];
        if self.seen == Some(now) {
            return Ok(());
        }
        let old = self.epoch as usize & 1;
        self.epoch = self.epoch.wrapping_add(1);
        self.epoch_map
            .set(0, self.epoch, 0)
            .context("cannot turn the epoch")?;
        wait_for_programs();
        // Read before the epoch turned: what came in between is in the new maps and is still to be seen.
        self.seen = Some(now);
        self.spill[old]
            .move_to(&mut self.spilled)
            .context("cannot empty the spill map")?;
        self.drops[old]
            .move_to(&mut self.dropped)
            .context("cannot empty the drop map")?;
        Ok(())
    }
}

/// Returns when every program that ran at the call has ended: they run inside RCU read-side sections, and
/// `MEMBARRIER_CMD_GLOBAL` waits for a grace period (kernel/sched/membarrier.c, `synchronize_rcu`).
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call without pointers.
    let failed = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } != 0;
    if failed {
        std::thread::sleep(Duration::from_millis(aksnet_common::cell::QUIET_MS));
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the BPF object has no map {name}"))
}

fn data(map: Map) -> Result<MapData> {
    match map {
        Map::Array(data) => Ok(data),
        other => anyhow::bail!("not an array: {other:?}"),
    }
}

fn sum(map: &PerCpuArray<MapData, u64>, index: u32) -> Result<u64> {
    Ok(map.get(&index, 0)?.iter().sum())
}

impl Source for MapSource {
    fn cells(&self) -> u32 {
        self.table.cells()
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

    fn timed(&self, cell: u32) -> u64 {
        self.table.timed(cell)
    }

    fn sampling(&self) -> Sampling {
        self.sampling
    }

    fn close(&self, cell: u32) -> bool {
        self.table.close(cell)
    }

    fn free(&self, cell: u32) {
        self.table.free(cell);
    }

    fn take_spill(&mut self) -> Result<Vec<(FlowKey, SpillStats)>> {
        self.turn()?;
        Ok(std::mem::take(&mut self.spilled))
    }

    fn totals(&self) -> Result<Totals> {
        let mut totals = Totals::default();
        for role in Role::ALL {
            let to = &mut totals.overflow[role as usize];
            for from in self.overflow.get(&(role as u32), 0)?.iter() {
                to.skbs += from.skbs;
                to.bytes += from.bytes;
                to.gso_packets += from.gso_packets;
                to.gso_bytes += from.gso_bytes;
                to.tcp_flags |= from.tcp_flags;
                to.connections += from.connections;
            }
        }
        for skip in Skip::ALL {
            let to = &mut totals.skipped[skip as usize];
            for from in self.skipped.get(&(skip as u32), 0)?.iter() {
                to.skbs += from.skbs;
                to.bytes += from.bytes;
            }
        }
        for event in Event::ALL {
            totals.events[event as usize] = sum(&self.events, event as u32)?;
        }
        Ok(totals)
    }

    fn conntrack_is_full(&self) -> Option<bool> {
        self.conntrack.is_full()
    }

    fn take_drops(&mut self) -> Result<Vec<(DropKey, DropStats)>> {
        self.conntrack.mark();
        self.turn()?;
        Ok(std::mem::take(&mut self.dropped))
    }
}

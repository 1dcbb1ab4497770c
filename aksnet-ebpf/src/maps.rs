//! Every map of the object, with its contract. The sizes here are placeholders where the agent sets them
//! at load time.

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{Bucket, ColdCell, FlowKey, SpillStats},
    packet::Network,
    passage::PassageTable,
    stats::{Event, Role, Skip, SkipStats},
};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};

use crate::{atomic, drops::Dropping};

/// Bucket index → cells. Written by every ENTER (and by EXIT for the node's own packets), read and retired
/// by the agent through its mapping. Size: the agent's flow-cells / 4. Full bucket: SPILL.
#[map]
pub static FLOWS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Cell index → what timed packets of the flow leave: written by EXIT and DROP, read by the agent through its
/// mapping. Size: the agent's flow-cells.
#[map]
pub static TIMES: Array<ColdCell> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// CPU → its passages. Written by ENTER, taken by EXIT and DROP on the same CPU; the agent never reads it.
/// Size: possible CPUs. Full pair of slots: the older passage is replaced.
#[map]
pub static PASSAGES: Array<PassageTable> = Array::with_max_entries(1, 0);

/// The epoch (one value): which of the two spill maps and drop maps the programs write. The agent flips it,
/// waits until no program can still be writing the other ones, and empties those.
#[map]
pub static EPOCH: Array<u32> = Array::with_max_entries(1, 0);

/// Flow → counts, for flows that found no cell. Full: OVERFLOW.
#[map]
pub static SPILL_0: HashMap<FlowKey, SpillStats> = HashMap::with_max_entries(8192, 0);
/// As [`SPILL_0`], in odd epochs.
#[map]
pub static SPILL_1: HashMap<FlowKey, SpillStats> = HashMap::with_max_entries(8192, 0);

/// The epoch whose spill map was found full, plus one (one value). Written by ENTER: asking a full hash map for
/// room costs ten times what finding out here does, for each packet.
#[map]
pub static SPILL_FULL: Array<u32> = Array::with_max_entries(1, 0);

/// [`Role`] → counts of packets whose flow found neither a cell nor a spill entry. Totals; only grows.
#[map]
pub static OVERFLOW: PerCpuArray<SpillStats> = PerCpuArray::with_max_entries(Role::COUNT, 0);

/// [`Skip`] → packets that were not accounted. Totals; only grows.
#[map]
pub static SKIPPED: PerCpuArray<SkipStats> = PerCpuArray::with_max_entries(Skip::COUNT, 0);

/// [`Event`] → how often. Totals; only grows.
#[map]
pub static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Event::COUNT, 0);

/// Drop → counts. Full: `Event::DropOverflow`.
#[map]
pub static DROPS_0: HashMap<DropKey, DropStats> = HashMap::with_max_entries(8192, 0);
/// As [`DROPS_0`], in odd epochs.
#[map]
pub static DROPS_1: HashMap<DropKey, DropStats> = HashMap::with_max_entries(8192, 0);

/// Interface index → the bridge whose port it is, 0, or `WATCHED_BRIDGE`, for interfaces whose drops are of
/// interest: those the programs are attached to, and the bridges whose ports they are. Written by the agent,
/// read by DROP.
#[map]
pub static WATCHED: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// The headers of the packet that a tc program is looking at, if they are not of a common shape. Written and
/// read within one program run. What went through a map is unknown to the verifier, so it need not follow
/// every shape of header on.
#[map]
pub static HEADERS: PerCpuArray<Network> = PerCpuArray::with_max_entries(1, 0);

/// The drop that this CPU is looking at. Written and read within one program run.
#[map]
pub static DROPPING: PerCpuArray<Dropping> = PerCpuArray::with_max_entries(1, 0);

/// Counts an event on this CPU.
#[inline(always)]
pub fn count(event: Event) {
    if let Some(n) = EVENTS.get_ptr_mut(event as u32) {
        // SAFETY: the value is this CPU's. A plain addition would lose a count when a softirq interrupts a
        // drop in process context, so it is an atomic one.
        unsafe { atomic::add(n, 1) }
    }
}

/// Counts an event that only tc programs count. They run with softirqs off, so nothing on this CPU interleaves
/// and a plain addition loses nothing.
#[inline(always)]
pub fn count_tc(event: Event) {
    if let Some(n) = EVENTS.get_ptr_mut(event as u32) {
        // SAFETY: this CPU's value.
        unsafe { *n += 1 }
    }
}

/// The epoch, as the agent last set it; its lowest bit says which of two maps the programs write.
#[inline(always)]
pub fn epoch() -> u32 {
    match EPOCH.get_ptr(0) {
        // SAFETY: a live map value.
        Some(epoch) => unsafe { core::ptr::read_volatile(epoch) },
        None => 0,
    }
}

/// Whether this epoch's spill map was found full.
#[inline(always)]
pub fn spill_is_full(epoch: u32) -> bool {
    match SPILL_FULL.get_ptr(0) {
        // SAFETY: a live map value.
        Some(full) => unsafe { core::ptr::read_volatile(full) == epoch.wrapping_add(1) },
        None => false,
    }
}

/// Notes that this epoch's spill map is full.
#[inline(always)]
pub fn spill_found_full(epoch: u32) {
    if let Some(full) = SPILL_FULL.get_ptr_mut(0) {
        // SAFETY: a live map value; whoever writes writes the same.
        unsafe { core::ptr::write_volatile(full, epoch.wrapping_add(1)) }
    }
}

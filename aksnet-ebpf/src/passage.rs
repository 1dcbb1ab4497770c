//! Passages: left by ENTER, taken by EXIT or DROP on the same CPU.

use aksnet_common::{
    flow::{ColdCell, FlowKey, WAYS, time_bucket},
    packet::{Packet, Parsed},
    passage::{
        NO_CELL, NatKind, PASSAGE_JIFFIES, PASSAGE_PAIRS, PENDING_RESET_JIFFIES, Passage,
        PassageTable, Tuple, fingerprint,
    },
    stats::Event,
};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns};

use crate::{atomic, config, maps, skb::TcPacket};

/// This CPU's table.
#[inline(always)]
pub fn table() -> Option<*mut PassageTable> {
    // SAFETY: a helper without arguments.
    maps::PASSAGES.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// The pair of slots for a fingerprint.
#[inline(always)]
fn pair(table: *mut PassageTable, fingerprint: u64) -> *mut Passage {
    let index = (fingerprint >> 16) as usize & (PASSAGE_PAIRS - 1);
    // SAFETY: the mask keeps the index within the array.
    unsafe {
        (&raw mut (*table).slots)
            .cast::<[Passage; 2]>()
            .add(index)
            .cast::<Passage>()
    }
}

/// Leaves a passage for a packet that has just been counted, at the time `entered_ns`.
#[inline(always)]
pub fn leave(
    packet: &TcPacket,
    parsed: &Parsed,
    cell: u32,
    state_word: u64,
    stage: usize,
    entered_ns: u64,
) {
    let Some(table) = table() else {
        return;
    };
    let print = fingerprint(packet, parsed);
    let first = pair(table, print);
    // SAFETY: live map memory of this CPU. Tc programs run with softirqs off, so no other ENTER or EXIT
    // interleaves; a DROP in process context may have been interrupted, and takes by compare-and-exchange.
    unsafe {
        let second = first.add(1);
        let slot = if (*first).fingerprint == 0 {
            first
        } else if (*second).fingerprint == 0 {
            second
        } else {
            maps::count_tc(Event::PassageReplaced);
            if (*first).entered_ns <= (*second).entered_ns {
                first
            } else {
                second
            }
        };
        (*slot).key = parsed.key;
        (*slot).state = state_word;
        (*slot).cell = cell;
        (*slot).stage = stage as u32;
        let now = bpf_jiffies64();
        // Passages of packets that were delivered on the node are never taken: let the count forget them.
        if now.wrapping_sub((*table).reset_jiffies) > PENDING_RESET_JIFFIES {
            (*table).pending = 0;
            (*table).reset_jiffies = now;
        }
        (*table).pending += 1;
        (*table).last_jiffies = now;
        maps::count_tc(Event::PassageLeft);
        (*slot).entered_ns = entered_ns;
        (*slot).fingerprint = print;
    }
}

/// Whether a packet on its way out of this CPU may have a passage. Cheap: no helper unless so.
#[inline(always)]
pub fn pending(table: *mut PassageTable) -> bool {
    // SAFETY: live map memory of this CPU.
    unsafe {
        if (*table).pending == 0 {
            return false;
        }
        if bpf_jiffies64().wrapping_sub((*table).last_jiffies) > PASSAGE_JIFFIES {
            (*table).pending = 0;
            return false;
        }
    }
    true
}

/// How many of a flow's addresses and ports a packet still has.
#[inline(always)]
fn likeness(flow: &FlowKey, packet: &FlowKey) -> u32 {
    u32::from(flow.src == packet.src)
        + u32::from(flow.dst == packet.dst)
        + u32::from(flow.src_port == packet.src_port)
        + u32::from(flow.dst_port == packet.dst_port)
}

/// Takes the passage of a packet whose headers are now `parsed`. Of two with the same fingerprint (the same
/// datagram from two pods) the one that shares more of its addresses and ports with the packet.
#[inline(always)]
pub fn take<P: Packet>(table: *mut PassageTable, packet: &P, parsed: &Parsed) -> Option<Passage> {
    let print = fingerprint(packet, parsed);
    let first = pair(table, print);
    // SAFETY: live map memory of this CPU.
    unsafe {
        let second = first.add(1);
        let in_first = (*first).fingerprint == print;
        let in_second = (*second).fingerprint == print;
        let slot = if in_first && in_second {
            if likeness(&(*second).key, &parsed.key) > likeness(&(*first).key, &parsed.key) {
                second
            } else {
                first
            }
        } else if in_first {
            first
        } else if in_second {
            second
        } else {
            return None;
        };
        let passage = *slot;
        if atomic::compare_exchange(&raw mut (*slot).fingerprint, print, 0) != print {
            return None;
        }
        if (*table).pending > 0 {
            (*table).pending -= 1;
        }
        Some(passage)
    }
}

/// The timed half of the passage's flow, if the cell is still that flow's.
#[inline(always)]
pub fn cold(passage: &Passage) -> Option<*mut ColdCell> {
    if passage.cell == NO_CELL {
        return None;
    }
    let bucket = maps::FLOWS.get_ptr(passage.cell / WAYS as u32)?;
    // SAFETY: the mask keeps the way within the bucket; live map memory.
    let state = unsafe {
        let cell = (&raw const (*bucket).cells)
            .cast::<aksnet_common::flow::HotCell>()
            .add(passage.cell as usize & (WAYS - 1));
        core::ptr::read_volatile(&raw const (*cell).state)
    };
    if state != passage.state {
        return None;
    }
    maps::TIMES.get_ptr_mut(passage.cell)
}

/// Writes down how the flow leaves the node, if that is news. `exit_ifindex` 0: it was dropped.
///
/// # Safety
/// `cold` is a live map value.
#[inline(always)]
pub unsafe fn translate(cold: *mut ColdCell, passage: &Passage, after: &Tuple, exit_ifindex: u32) {
    // SAFETY: as the caller says. The sequence is taken by compare-and-exchange, so one program writes at a
    // time, and another that comes meanwhile leaves it at that: the next timed packet tells again.
    unsafe {
        let sequence = core::ptr::read_volatile(&raw const (*cold).sequence);
        let known = sequence != 0;
        if known
            && (*cold).after == *after
            && (exit_ifindex == 0 || (*cold).exit_ifindex == exit_ifindex)
        {
            return;
        }
        if sequence & 1 != 0
            || atomic::compare_exchange(&raw mut (*cold).sequence, sequence, sequence + 1)
                != sequence
        {
            return;
        }
        if known && (*cold).after != *after {
            (*cold).translations += 1;
        }
        (*cold).after = *after;
        (*cold).exit_ifindex = exit_ifindex;
        (*cold).nat = NatKind::between(&passage.key.tuple(), after) as u32;
        atomic::compare_exchange(&raw mut (*cold).sequence, sequence + 1, sequence + 2);
    }
}

/// EXIT: adds the packet's time on the NAT path and its translation to its flow.
#[inline(always)]
pub fn complete(passage: &Passage, after: &Tuple, exit_ifindex: u32) {
    maps::count_tc(Event::ExitMatched);
    // SAFETY: a helper without arguments.
    let ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(passage.entered_ns);
    let Some(cold) = cold(passage) else {
        return;
    };
    let stage = passage.stage as usize & 1;
    let bucket = time_bucket(ns) & (aksnet_common::flow::TIME_BUCKETS - 1);
    // SAFETY: a live map value; the masks keep the indices within the arrays.
    unsafe {
        translate(cold, passage, after, exit_ifindex);
        atomic::add(&raw mut (*cold).exits, 1);
        atomic::add((&raw mut (*cold).sum_ns).cast::<u64>().add(stage), ns);
        let times = (&raw mut (*cold).times).cast::<u32>();
        atomic::add32(
            times.add(stage * aksnet_common::flow::TIME_BUCKETS + bucket),
            1,
        );
    }
}

/// Whether every packet has a passage, so that EXITs are counted exactly.
#[inline(always)]
pub fn every_packet() -> bool {
    config::sample_mask() == 0
}

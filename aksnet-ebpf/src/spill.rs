//! Where a packet is counted whose flow found no cell: detail is lost step by step, totals never.

use aksnet_common::{
    flow::{FlowKey, SpillStats},
    packet::{ACK, Parsed, SYN, TCP},
    stats::Event,
};
use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};

use crate::{atomic, maps, skb::TcPacket};

/// Counts a packet in the spill map of this epoch, or, where that is full, by the role of its interface.
#[inline(always)]
pub fn spill(packet: &TcPacket, parsed: &Parsed, segments: u32, role: u32) {
    let further = u64::from(segments - 1);
    let opens = parsed.key.protocol == TCP && parsed.tcp_flags & (SYN | ACK) == SYN;
    let one = SpillStats {
        skbs: 1,
        bytes: u64::from(parsed.l3_len),
        gso_packets: further,
        gso_bytes: further * u64::from(parsed.l3_len - parsed.payload_len),
        tcp_flags: u64::from(parsed.tcp_flags),
        connections: u64::from(opens),
    };
    if record(&parsed.key, &one, role) != 0 {
        log_overflow(packet.skb());
    }
}

#[inline(never)]
fn log_overflow(skb: *mut __sk_buff) -> u32 {
    aya_log_ebpf::warn!(
        &aya_ebpf::programs::TcContext::new(skb),
        "flow table and spill map are full: a packet on interface {} is counted without its flow",
        TcPacket::new(skb).ifindex()
    );
    0
}

/// 0: has a spill entry; 1: overflowed.
#[inline(never)]
fn record(key: &FlowKey, one: &SpillStats, role: u32) -> u32 {
    let epoch = maps::epoch();
    let odd = epoch & 1 != 0;
    for _ in 0..2 {
        let entry = if odd {
            maps::SPILL_1.get_ptr_mut(key)
        } else {
            maps::SPILL_0.get_ptr_mut(key)
        };
        if let Some(entry) = entry {
            // SAFETY: a live map value. Entries are removed only by the agent, after it has turned the
            // epoch and no program can still write here.
            unsafe { add(entry, one) }
            maps::count(Event::Spilled);
            return 0;
        }
        if maps::spill_is_full(epoch) {
            break;
        }
        let mut first = *one;
        if key.protocol != TCP {
            first.connections = 1;
        }
        let inserted = if odd {
            maps::SPILL_1.insert(key, first, u64::from(BPF_NOEXIST))
        } else {
            maps::SPILL_0.insert(key, first, u64::from(BPF_NOEXIST))
        };
        // EEXIST: another CPU was quicker; its entry is found in the second round.
        match inserted {
            Ok(()) => {
                maps::count(Event::Spilled);
                return 0;
            }
            Err(EEXIST) => {}
            Err(error) => {
                if error == E2BIG {
                    maps::spill_found_full(epoch);
                }
                break;
            }
        }
    }
    if let Some(total) = maps::OVERFLOW.get_ptr_mut(role) {
        // SAFETY: this CPU's value.
        unsafe { add(total, one) }
    }
    maps::count(Event::Overflowed);
    1
}

const EEXIST: i32 = -17;
/// No room in the map (kernel/bpf/hashtab.c, `alloc_htab_elem`).
const E2BIG: i32 = -7;

/// # Safety
/// `to` is a live map value.
#[inline(always)]
unsafe fn add(to: *mut SpillStats, one: &SpillStats) {
    // SAFETY: as the caller says; each field is an aligned u64.
    unsafe {
        atomic::add(&raw mut (*to).skbs, one.skbs);
        atomic::add(&raw mut (*to).bytes, one.bytes);
        if one.gso_packets != 0 {
            atomic::add(&raw mut (*to).gso_packets, one.gso_packets);
            atomic::add(&raw mut (*to).gso_bytes, one.gso_bytes);
        }
        if one.connections != 0 {
            atomic::add(&raw mut (*to).connections, one.connections);
        }
        (*to).tcp_flags |= one.tcp_flags;
    }
}

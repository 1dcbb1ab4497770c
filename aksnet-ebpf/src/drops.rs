//! DROP: the kernel frees a packet that it did not deliver (`skb:kfree_skb`).
//!
//! The tracepoint fires for every namespace of the machine, and for frees that are no loss; what counts
//! here is a packet in the agent's namespace, on a watched interface or with a passage, for a reason that
//! is not noise.

use aksnet_common::{
    drops::{DropKey, DropStats, WATCHED_BRIDGE},
    flow::{ORIGIN_ENTER, ORIGIN_NODE},
    packet::{self, ACK, Link, Network, SYN, TCP},
    stats::Event,
    tracked::DropState,
};
use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_ns, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};

use crate::{
    atomic, config, maps, passage,
    skb::{DroppedPacket, kernel},
};

/// Prototype: `kfree_skb(struct sk_buff *skb, void *location)` in 5.15 mainline, with a third argument
/// `enum skb_drop_reason reason` since 5.17 and in the 5.15 of Ubuntu and Azure, and a fourth,
/// `struct sock *rx_sk`, since 6.11 (include/trace/events/skb.h).
#[btf_tracepoint(function = "kfree_skb")]
pub fn aksnet_drop(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    let location: u64 = ctx.arg(1);
    let reason: u32 = if config::kfree_skb_reason_arg() == 2 {
        ctx.arg(2)
    } else {
        0
    };
    if config::is_noise(reason) {
        maps::count(Event::DropNoise);
        return 0;
    }
    account(skb, location, reason);
    0
}

/// A drop under way, between the steps below. What goes through a map is unknown to the verifier, so it need
/// not follow every shape of header into the accounting.
#[derive(Clone, Copy)]
pub struct Dropping {
    segments: u32,
    /// Bit 0: it had a passage; above: the index of its flow's cell plus one, or 0.
    passage: u64,
    packet: DroppedPacket,
    headers: Network,
}

#[inline(always)]
fn account(skb: u64, location: u64, reason: u32) -> Option<()> {
    let device: u64 = kernel(skb + u64::from(config::skb_dev()))?;
    if device == 0 {
        return None;
    }
    let net: u64 = kernel(device + u64::from(config::dev_net()))?;
    let inum: u32 = kernel(net + u64::from(config::net_inum()))?;
    if inum != config::netns() {
        return None;
    }
    let ifindex: u32 = kernel(device + u64::from(config::dev_ifindex()))?;
    let iif: u32 = kernel(skb + u64::from(config::skb_iif()))?;
    let (at, from) = (watched(ifindex), watched(iif));
    if at == UNWATCHED && from == UNWATCHED {
        return None;
    }
    if at != UNWATCHED && reason == config::netfilter_drop() && is_copy(skb, device, at as u32, iif)
    {
        maps::count(Event::DropCopy);
        return None;
    }
    if !read_headers(skb) {
        maps::count(Event::DropUnreadable);
        return None;
    }
    take_passage(reason);
    settle(skb, location, reason, ifindex, iif);
    Some(())
}

/// No interface's value in [`maps::WATCHED`].
const UNWATCHED: u64 = u64::MAX;

/// What [`maps::WATCHED`] says of an interface. A subprogram, as the compiler would otherwise join two pointers
/// in one comparison, which the verifier does not allow.
#[inline(never)]
fn watched(ifindex: u32) -> u64 {
    // SAFETY: the value is copied at once.
    match unsafe { maps::WATCHED.get(ifindex) } {
        Some(&value) => u64::from(value),
        None => UNWATCHED,
    }
}

/// Reads the dropped packet's headers into [`maps::DROPPING`], in the steps of
/// [`crate::account::parse_uncommon`]; false where they cannot be read.
#[inline(always)]
fn read_headers(skb: u64) -> bool {
    read_network(skb) == 0 && read_extensions() == 0 && read_transport() == 0
}

#[inline(never)]
fn read_network(skb: u64) -> u32 {
    step(|drop| {
        drop.packet = DroppedPacket::new(skb)?;
        drop.headers = packet::network(&drop.packet, Link::Ip).ok()?;
        Some(())
    })
}

#[inline(never)]
fn read_extensions() -> u32 {
    step(|drop| {
        drop.headers = packet::extensions(&drop.packet, drop.headers).ok()?;
        Some(())
    })
}

#[inline(never)]
fn read_transport() -> u32 {
    step(|drop| {
        drop.headers.parsed = packet::transport(&drop.packet, drop.headers).ok()?;
        drop.segments = drop.packet.segments(drop.headers.parsed.payload_len);
        Some(())
    })
}

/// One step on this CPU's drop; 0 if it succeeded.
#[inline(always)]
fn step(read: impl FnOnce(&mut Dropping) -> Option<()>) -> u32 {
    let Some(drop) = maps::DROPPING.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's value. The kernel does not run the program inside itself (kernel/trace/bpf_trace.c,
    // `prog->active`), so nothing interleaves.
    u32::from(read(unsafe { &mut *drop }).is_none())
}

/// Takes the packet's passage, if it has one, and notes the drop with its flow.
#[inline(never)]
fn take_passage(reason: u32) -> u32 {
    let Some(drop) = maps::DROPPING.get_ptr_mut(0) else {
        return 1;
    };
    let Some(table) = passage::table() else {
        return 1;
    };
    // SAFETY: as in `step`; `cold` is a live map value.
    unsafe {
        (*drop).passage = 0;
        let Some(found) = passage::take(table, &(*drop).packet, &(*drop).headers.parsed) else {
            return 0;
        };
        maps::count(Event::DropMatched);
        (*drop).passage = 1;
        if let Some(cold) = passage::cold(&found) {
            (*drop).passage |= (u64::from(found.cell) + 1) << 1;
            passage::translate(cold, &found, &(*drop).headers.parsed.key.tuple(), 0);
            atomic::add(&raw mut (*cold).drops, 1);
            (*cold).drop_reason = reason;
        }
    }
    0
}

/// Counts the drop.
#[inline(never)]
fn settle(skb: u64, location: u64, reason: u32, ifindex: u32, iif: u32) -> u32 {
    let Some(drop) = maps::DROPPING.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `step`.
    let drop = unsafe { &*drop };
    let parsed = &drop.headers.parsed;
    let passage = drop.passage;
    let mut key = DropKey {
        key: parsed.key,
        location,
        reason,
        mark: kernel(skb + u64::from(config::skb_mark())).unwrap_or(0),
        iif,
        state: DropState::default(),
    };
    key.key.ifindex = ifindex;
    key.key.origin = if iif == 0 { ORIGIN_NODE } else { ORIGIN_ENTER };

    let further = u64::from(drop.segments.saturating_sub(1));
    let opens = parsed.key.protocol == TCP && parsed.tcp_flags & (SYN | ACK) == SYN;
    let one = DropStats {
        skbs: 1,
        bytes: u64::from(parsed.l3_len),
        gso_packets: further,
        gso_bytes: further * u64::from(parsed.l3_len - parsed.payload_len),
        syns: u64::from(opens),
        passages: passage & 1,
        // SAFETY: a helper without arguments.
        last_ns: unsafe { bpf_ktime_get_ns() },
        cell: passage >> 1,
        ..DropStats::default()
    };
    record(&key, &one);
    // After the map: an agent that has seen this count finds the entry in the map that it turns away from.
    maps::count(Event::Dropped);
    0
}

/// Whether a netfilter drop is that of a copy. kubenet's bridge is promiscuous: of a packet that it forwards
/// from port to port after DNAT, it also gives the node a copy, which the node routes back to the bridge.
/// Either the copy falls to iptables (kube-proxy's rule for INVALID), on the bridge, but with a destination
/// that is not the bridge's own; or to the ebtables rules that AKS installs for it (AKS-DEDUP-PROMISC), on its
/// way out of a port: iptables drops nothing there, its last hook sees the bridge.
#[inline(always)]
fn is_copy(skb: u64, device: u64, role: u32, iif: u32) -> bool {
    if role != WATCHED_BRIDGE {
        return role != 0 && role == iif;
    }
    addressed_elsewhere(skb, device).unwrap_or(false)
}

#[inline(always)]
fn addressed_elsewhere(skb: u64, device: u64) -> Option<bool> {
    let head: u64 = kernel(skb + u64::from(config::skb_head()))?;
    let offset: u16 = kernel(skb + u64::from(config::skb_mac_header()))?;
    if offset == u16::MAX {
        return None;
    }
    let to: [u8; 6] = kernel(head + u64::from(offset))?;
    let address: u64 = kernel(device + u64::from(config::dev_addr()))?;
    let own: [u8; 6] = kernel(address)?;
    Some(to[0] & 1 == 0 && to != own)
}

#[inline(never)]
fn record(key: &DropKey, one: &DropStats) -> u32 {
    let odd = maps::epoch() & 1 != 0;
    for _ in 0..2 {
        let entry = if odd {
            maps::DROPS_1.get_ptr_mut(key)
        } else {
            maps::DROPS_0.get_ptr_mut(key)
        };
        if let Some(entry) = entry {
            // SAFETY: a live map value, removed only by the agent after the epoch has turned.
            unsafe {
                atomic::add(&raw mut (*entry).skbs, 1);
                atomic::add(&raw mut (*entry).bytes, one.bytes);
                atomic::add(&raw mut (*entry).gso_packets, one.gso_packets);
                atomic::add(&raw mut (*entry).gso_bytes, one.gso_bytes);
                atomic::add(&raw mut (*entry).syns, one.syns);
                atomic::add(&raw mut (*entry).passages, one.passages);
                (*entry).last_ns = one.last_ns;
                if one.cell != 0 {
                    (*entry).cell = one.cell;
                }
            }
            return 0;
        }
        let inserted = if odd {
            maps::DROPS_1.insert(key, one, u64::from(BPF_NOEXIST))
        } else {
            maps::DROPS_0.insert(key, one, u64::from(BPF_NOEXIST))
        };
        match inserted {
            Ok(()) => return 0,
            // Another CPU was quicker (EEXIST): its entry is found in the second round.
            Err(-17) => {}
            Err(_) => break,
        }
    }
    maps::count(Event::DropOverflow);
    1
}

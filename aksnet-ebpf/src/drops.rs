//! DROP: the kernel frees a packet that it did not deliver (`skb:kfree_skb`).
//!
//! The tracepoint fires for every namespace of the machine, and for frees that are no loss; what counts
//! here is a packet in the agent's namespace, on a watched interface or come in by one, for a reason that
//! is not noise.

use aksnet_common::{
    drops::{DropKey, DropStats, WATCHED_BRIDGE},
    flow::{ORIGIN_ENTER, ORIGIN_NODE},
    packet::{self, ACK, Link, Network, Packet as _, SYN, TCP},
    stats::Event,
    tracked::{CtTuple, DropState, dialled},
};
use aya_ebpf::{
    EbpfContext as _, bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_ns,
    macros::btf_tracepoint, programs::BtfTracePointContext,
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
    account(&ctx, skb, location, reason);
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
    /// What it is counted by, and what it counts for: the stack has no room for them.
    key: DropKey,
    one: DropStats,
}

#[inline(always)]
fn account(ctx: &BtfTracePointContext, skb: u64, location: u64, reason: u32) -> Option<()> {
    let at = place(ctx, skb, reason);
    if at == NOWHERE {
        return None;
    }
    if !read_headers(skb) {
        maps::count(Event::DropUnreadable);
        return None;
    }
    take_passage(reason);
    look_up(skb);
    settle(skb, location, reason, at as u32, (at >> 32) as u32);
    Some(())
}

/// No packet of the node's.
const NOWHERE: u64 = u64::MAX;

/// The indices of a packet's device (low half) and of the interface it came in through, if its drop is to be
/// counted. A subprogram that returns a number: there are several ways to one, and the verifier would follow each
/// through all that comes after.
#[inline(never)]
fn place(ctx: &BtfTracePointContext, skb: u64, reason: u32) -> u64 {
    match find(ctx, skb, reason) {
        Some((ifindex, iif)) => u64::from(ifindex) | u64::from(iif) << 32,
        None => NOWHERE,
    }
}

#[inline(always)]
fn find(ctx: &BtfTracePointContext, skb: u64, reason: u32) -> Option<(u32, u32)> {
    let device: u64 = kernel(skb + u64::from(config::skb_dev()))?;
    let Some(inum) = namespace(device, config::dev_net()) else {
        return find_taken(ctx, skb, reason);
    };
    if inum != config::netns() {
        return None;
    }
    let iif: u32 = kernel(skb + u64::from(config::skb_iif()))?;
    let ifindex: u32 = kernel(device + u64::from(config::dev_ifindex()))?;
    let (at, from) = (watched(ifindex), watched(iif));
    if at == UNWATCHED && from == UNWATCHED {
        return None;
    }
    if at != UNWATCHED && reason == config::netfilter_drop() && is_copy(skb, device, at as u32, iif)
    {
        maps::count(Event::DropCopy);
        return None;
    }
    Some((ifindex, iif))
}

/// A packet that a socket has taken has no device any more: TCP forgets it (`tcp_v4_rcv`), UDP keeps other things
/// in its place (`udp_set_dev_scratch`), which are no address. What is left is the index of the interface it came
/// in through, which means something only in one namespace: that of the socket, which the kernel tells since
/// 6.11, or of the loopback device that its route leads to, where it still has one.
#[inline(always)]
fn find_taken(ctx: &BtfTracePointContext, skb: u64, reason: u32) -> Option<(u32, u32)> {
    if reason <= config::not_specified() {
        return None;
    }
    let iif: u32 = kernel(skb + u64::from(config::skb_iif()))?;
    if iif == 0 || watched(iif) == UNWATCHED {
        return None;
    }
    let inum = receiver(ctx)
        .and_then(|socket| namespace(socket, config::sock_net()))
        .or_else(|| namespace(routed_to(skb)?, config::dev_net()))?;
    if inum != config::netns() {
        return None;
    }
    Some((iif, iif))
}

/// The namespace of a device or socket whose pointer to it lies at `offset`.
#[inline(always)]
fn namespace(owner: u64, offset: u32) -> Option<u32> {
    if owner == 0 {
        return None;
    }
    let net: u64 = kernel(owner + u64::from(offset))?;
    kernel(net + u64::from(config::net_inum()))
}

/// The socket that was to have the packet, where the tracepoint says so. Read as memory: as an argument it would
/// be a pointer to the verifier, with which it allows less than with a number.
#[inline(always)]
fn receiver(ctx: &BtfTracePointContext) -> Option<u64> {
    let argument = config::kfree_skb_sock_arg();
    if argument == 0 || config::sock_net() == 0 {
        return None;
    }
    kernel(ctx.as_ptr() as u64 + 8 * u64::from(argument))
}

/// The device that the packet's route leads to; 0 without a route, or with one that has no device (the metadata
/// of a tunnel).
#[inline(always)]
fn routed_to(skb: u64) -> Option<u64> {
    /// `SKB_DST_NOREF` (include/linux/skbuff.h).
    const NO_REFERENCE: u64 = 1;
    if config::skb_refdst() == 0 {
        return None;
    }
    let route: u64 = kernel(skb + u64::from(config::skb_refdst()))?;
    let route = route & !NO_REFERENCE;
    if route == 0 {
        return Some(0);
    }
    kernel(route + u64::from(config::dst_dev()))
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

/// Looks up what routing and conntrack had made of the packet.
#[inline(never)]
fn look_up(skb: u64) -> u32 {
    step(|drop| {
        drop.one = DropStats::default();
        drop.key.state = DropState(route(skb, &mut drop.one) | connection(skb, &mut drop.one));
        let ttl_at = if drop.headers.parsed.key.family == 4 {
            8
        } else {
            7
        };
        drop.one.ttl = drop.packet.read::<1>(ttl_at)?[0];
        Some(())
    })
}

/// The state's bits on the route, and the device it leads to.
#[inline(always)]
fn route(skb: u64, one: &mut DropStats) -> u32 {
    match routed_to(skb) {
        None => 0,
        Some(0) => DropState::ROUTE_READ,
        Some(device) => match kernel(device + u64::from(config::dev_ifindex())) {
            Some(ifindex) => {
                one.oif = ifindex;
                DropState::ROUTE_READ | DropState::ROUTED
            }
            None => 0,
        },
    }
}

/// The state's bits on the connection, and the tuple that was dialled. The packet holds a reference to the entry.
#[inline(always)]
fn connection(skb: u64, one: &mut DropStats) -> u32 {
    if config::skb_nfct() == 0 {
        return 0;
    }
    let Some(nfct) = kernel::<u64>(skb + u64::from(config::skb_nfct())) else {
        return 0;
    };
    let info = (nfct & DropState::NFCT_INFO) as u32;
    let state = DropState::CT_READ | info << DropState::INFO_SHIFT;
    let entry = nfct & !DropState::NFCT_INFO;
    if entry == 0 {
        return state;
    }
    let state = state | DropState::ENTRY;
    if config::ct_status() == 0 || config::ct_original() == 0 {
        return state;
    }
    let Some(status) = kernel::<u32>(entry + u64::from(config::ct_status())) else {
        return state;
    };
    let Some(original) = kernel::<CtTuple>(entry + u64::from(config::ct_original())) else {
        return state;
    };
    if status & DropState::TEMPLATE == 0 {
        (one.dialled, one.dialled_protocol) = dialled(&original);
    }
    state | DropState::ENTRY_READ | (status & DropState::STATUS)
}

/// Counts the drop.
#[inline(never)]
fn settle(skb: u64, location: u64, reason: u32, ifindex: u32, iif: u32) -> u32 {
    step(|drop| {
        let parsed = &drop.headers.parsed;
        let key = &mut drop.key;
        key.key = parsed.key;
        key.key.ifindex = ifindex;
        key.key.origin = if iif == 0 { ORIGIN_NODE } else { ORIGIN_ENTER };
        key.location = location;
        key.reason = reason;
        key.mark = kernel(skb + u64::from(config::skb_mark())).unwrap_or(0);
        key.iif = iif;

        let further = u64::from(drop.segments.saturating_sub(1));
        let opens = parsed.key.protocol == TCP && parsed.tcp_flags & (SYN | ACK) == SYN;
        let one = &mut drop.one;
        one.skbs = 1;
        one.bytes = u64::from(parsed.l3_len);
        one.len = parsed.l3_len;
        one.gso_packets = further;
        one.gso_bytes = further * u64::from(parsed.l3_len - parsed.payload_len);
        if opens {
            one.syns = 1;
            one.attempts = 1;
            one.first_syn_seq = parsed.tcp_seq;
            one.last_syn_seq = parsed.tcp_seq;
        }
        one.passages = drop.passage & 1;
        // SAFETY: a helper without arguments.
        one.last_ns = unsafe { bpf_ktime_get_ns() };
        one.cell = drop.passage >> 1;
        Some(())
    });
    record();
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
fn record() -> u32 {
    let Some(drop) = maps::DROPPING.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `step`.
    let (key, one) = unsafe { (&(*drop).key, &(*drop).one) };
    let odd = maps::epoch() & 1 != 0;
    for _ in 0..2 {
        let entry = if odd {
            maps::DROPS_1.get_ptr_mut(key)
        } else {
            maps::DROPS_0.get_ptr_mut(key)
        };
        if let Some(entry) = entry {
            // SAFETY: a live map value, removed only by the agent after the epoch has turned.
            unsafe { add(entry, one) }
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

/// Adds a drop to those of its key, as [`DropStats::add`] does for sums.
///
/// # Safety
/// `entry` is a live map value.
#[inline(always)]
unsafe fn add(entry: *mut DropStats, one: &DropStats) {
    // SAFETY: as above; other processors write it as well, so what is summed is added atomically. What is the
    // latest's is whosever came last.
    unsafe {
        atomic::add(&raw mut (*entry).skbs, 1);
        atomic::add(&raw mut (*entry).bytes, one.bytes);
        atomic::add(&raw mut (*entry).passages, one.passages);
        if one.gso_packets != 0 {
            atomic::add(&raw mut (*entry).gso_packets, one.gso_packets);
            atomic::add(&raw mut (*entry).gso_bytes, one.gso_bytes);
        }
        if one.syns != 0 {
            atomic::add(&raw mut (*entry).syns, 1);
            let first = (*entry).attempts == 0;
            if first {
                (*entry).first_syn_seq = one.first_syn_seq;
            }
            if first || (*entry).last_syn_seq != one.last_syn_seq {
                (*entry).last_syn_seq = one.last_syn_seq;
                atomic::add(&raw mut (*entry).attempts, 1);
            }
        }
        (*entry).last_ns = one.last_ns;
        if one.cell != 0 {
            (*entry).cell = one.cell;
        }
        (*entry).dialled = one.dialled;
        (*entry).dialled_protocol = one.dialled_protocol;
        (*entry).oif = one.oif;
        (*entry).len = one.len;
        (*entry).ttl = one.ttl;
    }
}

//! Counting a packet: find its flow's cell, or claim one, and add.

use aksnet_common::{
    cell::{self, Cells, Place},
    flow::{
        Bucket, FlowKey, HotCell, KEY_FRAGMENT, STAGE_ESTABLISHED, STAGE_FIRST, Sampling, WAYS,
    },
    packet::{self, ACK, Link, Network, Packet, Parsed, SYN, TCP},
    passage::NO_CELL,
    stats::{Event, Role, Skip},
};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns},
};

use crate::{atomic, config, maps, passage, skb::TcPacket, spill};

/// A bucket's cells in map memory.
struct MapCells(*mut Bucket);

impl MapCells {
    #[inline(always)]
    fn cell(&self, way: usize) -> *mut HotCell {
        // SAFETY: the mask keeps the way within the bucket.
        unsafe {
            (&raw mut (*self.0).cells)
                .cast::<HotCell>()
                .add(way & (WAYS - 1))
        }
    }
}

impl MapCells {
    /// Reads from the cell's second line, so that both are fetched at once: the atomic additions to it would
    /// wait until the first has been compared. Two misses in turn become one.
    #[inline(always)]
    fn touch(&self, way: usize) {
        // SAFETY: a live map value.
        unsafe { core::ptr::read_volatile(&raw const (*self.cell(way)).skbs) };
    }
}

impl Cells for MapCells {
    #[inline(always)]
    fn state(&self, way: usize) -> u64 {
        // SAFETY: a live map value; volatile, as other CPUs and the agent write it.
        unsafe { core::ptr::read_volatile(&raw const (*self.cell(way)).state) }
    }

    #[inline(always)]
    fn swap_state(&self, way: usize, old: u64, new: u64) -> u64 {
        // SAFETY: a live, aligned map value.
        unsafe { atomic::compare_exchange(&raw mut (*self.cell(way)).state, old, new) }
    }

    #[inline(always)]
    fn key_is(&self, way: usize, key: &FlowKey) -> bool {
        // SAFETY: a live map value; a LIVE cell's key does not change.
        let have = unsafe { (*self.cell(way)).key.words() };
        let want = key.words();
        have[4] == want[4]
            && have[1] == want[1]
            && have[3] == want[3]
            && have[5] == want[5]
            && have[0] == want[0]
            && have[2] == want[2]
    }

    #[inline(always)]
    fn write_key(&self, way: usize, key: &FlowKey) {
        // SAFETY: the caller has claimed the cell, so nobody else writes or reads its key.
        unsafe { (*self.cell(way)).key = *key }
    }
}

/// The flow's place when the quick search found none: `way`, plus [`CLAIMED_FLAG`] if the cell is new, or
/// [`FULL`]. A subprogram of its own, so that the packets of known flows do not carry it.
#[inline(never)]
fn claim(bucket: *mut Bucket, hash: u64, key: &FlowKey) -> u64 {
    if bucket.is_null() {
        return FULL;
    }
    match cell::claim(&MapCells(bucket), hash, key) {
        Place::Found(way) => way as u64,
        Place::Claimed(way) => {
            maps::count_tc(Event::CellClaimed);
            way as u64 | CLAIMED_FLAG
        }
        Place::Full => FULL,
    }
}

const CLAIMED_FLAG: u64 = 4;
const FULL: u64 = 8;

/// Counts a packet that has no flow under the reason for it.
#[inline(always)]
fn skipped(reason: u32, packet: &TcPacket) {
    if let Some(stats) = maps::SKIPPED.get_ptr_mut(reason) {
        // SAFETY: this CPU's value; tc programs run with softirqs off, so nothing interleaves.
        unsafe {
            (*stats).skbs += 1;
            (*stats).bytes += u64::from(packet.len());
        }
    }
    if reason != Skip::NotIp as u32 {
        log_skipped(packet.skb(), reason);
    }
}

/// A subprogram of its own, as the log's buffers would count towards every packet's stack.
#[inline(never)]
fn log_skipped(skb: *mut __sk_buff, reason: u32) -> u32 {
    let packet = TcPacket::new(skb);
    aya_log_ebpf::debug!(
        &aya_ebpf::programs::TcContext::new(skb),
        "packet of {} bytes on interface {} not accounted: reason {}",
        packet.len(),
        packet.ifindex(),
        reason
    );
    0
}

/// Where and in which capacity a packet is counted, in one word for the subprograms: the role, whether the
/// node itself sent it, whether it starts with the IP header.
#[derive(Clone, Copy)]
pub struct At(u32);

impl At {
    #[inline(always)]
    pub const fn new(role: Role, origin: u8, link: Link) -> Self {
        Self(role as u32 | (origin as u32) << 1 | (link as u32) << 2)
    }

    /// A forwarded packet on its way out: it was counted, or skipped, when it came in.
    #[inline(always)]
    pub const fn passing(link: Link) -> Self {
        Self((link as u32) << 2 | 8)
    }

    /// What [`At::word`] gave.
    #[inline(always)]
    pub const fn of_word(word: u32) -> Self {
        Self(word)
    }

    #[inline(always)]
    const fn counts_skipped(self) -> bool {
        self.0 & 8 == 0
    }

    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn role(self) -> u32 {
        self.0 & 1
    }

    #[inline(always)]
    pub const fn origin(self) -> u8 {
        (self.0 >> 1 & 1) as u8
    }

    #[inline(always)]
    pub const fn link(self) -> Link {
        if self.0 & 4 == 0 {
            Link::Ethernet
        } else {
            Link::Ip
        }
    }
}

/// Counts a packet. The common shapes and the others are subprograms of their own: each has the whole
/// stack that the verifier grants a chain of calls.
#[inline(always)]
pub fn account(skb: *mut __sk_buff, at: At) {
    if let Link::Ip = at.link() {
        account_any(skb, at.0);
    } else if account_common(skb, at.0) != 0 {
        account_any(skb, at.0);
    }
}

#[inline(never)]
fn account_common(skb: *mut __sk_buff, at: u32) -> u32 {
    let packet = TcPacket::new(skb);
    match packet::parse_common(&packet) {
        Some(parsed) => {
            count(&packet, parsed, At(at));
            0
        }
        None => 1,
    }
}

#[inline(never)]
fn account_any(skb: *mut __sk_buff, at: u32) -> u32 {
    if parse_uncommon(skb, at) == 0 {
        count_uncommon(skb, at);
    }
    0
}

#[inline(never)]
fn count_uncommon(skb: *mut __sk_buff, at: u32) -> u32 {
    if let Some(headers) = maps::HEADERS.get_ptr_mut(0) {
        // SAFETY: this CPU's value; tc programs run with softirqs off, so nothing interleaves.
        count(&TcPacket::new(skb), unsafe { (*headers).parsed }, At(at));
    }
    0
}

/// Puts the headers of a packet of any shape into [`maps::HEADERS`]; where they cannot be read, counts the
/// reason and returns 1. The steps are subprograms that hand on through the map, where the verifier forgets
/// what it knew: else it would follow each combination of link layer, extensions and transport by itself.
#[inline(never)]
pub fn parse_uncommon(skb: *mut __sk_buff, at: u32) -> u32 {
    let mut failed = read_network(skb, at);
    if failed == 0 {
        failed = read_extensions(skb);
    }
    if failed == 0 {
        failed = read_transport(skb);
    }
    if failed == 0 {
        return 0;
    }
    if At(at).counts_skipped() {
        skipped(failed - 1, &TcPacket::new(skb));
    }
    1
}

#[inline(never)]
fn read_network(skb: *mut __sk_buff, at: u32) -> u32 {
    step(|_| packet::network(&TcPacket::new(skb), At(at).link()))
}

#[inline(never)]
fn read_extensions(skb: *mut __sk_buff) -> u32 {
    step(|network| packet::extensions(&TcPacket::new(skb), *network))
}

#[inline(never)]
fn read_transport(skb: *mut __sk_buff) -> u32 {
    step(|network| {
        let parsed = packet::transport(&TcPacket::new(skb), *network)?;
        Ok(Network {
            parsed,
            more_fragments: false,
        })
    })
}

/// One step on this CPU's headers. 0, or the number of the reason for which it failed plus one.
#[inline(always)]
fn step(read: impl FnOnce(&Network) -> Result<Network, Skip>) -> u32 {
    let Some(headers) = maps::HEADERS.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's value; tc programs run with softirqs off, so nothing interleaves.
    unsafe {
        match read(&*headers) {
            Ok(network) => {
                *headers = network;
                0
            }
            Err(reason) => reason as u32 + 1,
        }
    }
}

/// Counts a packet under its flow, and leaves a passage if it is a timed one that entered the node.
#[inline(always)]
fn count(packet: &TcPacket, mut parsed: Parsed, at: At) {
    let origin = at.origin();
    parsed.key = parsed.key.counted_on(packet.ifindex(), origin);
    let segments = packet.segments(parsed.payload_len);
    let hash = parsed.key.hash(config::hash_seed());
    let bucket_index = (hash >> 32) as u32 & config::bucket_mask();
    let Some(bucket) = maps::FLOWS.get_ptr_mut(bucket_index) else {
        return;
    };
    MapCells(bucket).touch(cell::first_way(hash));
    let (way, claimed) = if let Some(way) = cell::find(&MapCells(bucket), hash, &parsed.key) {
        (way, false)
    } else {
        let place = claim(bucket, hash, &parsed.key);
        if place & FULL != 0 {
            spill::spill(packet, &parsed, segments, at.role());
            if origin == aksnet_common::flow::ORIGIN_ENTER && config::sample_mask() == 0 {
                // SAFETY: a helper without arguments.
                let now = unsafe { bpf_ktime_get_ns() };
                passage::leave(packet, &parsed, NO_CELL, 0, STAGE_ESTABLISHED, now);
            }
            return;
        }
        (place as usize & (WAYS - 1), place & CLAIMED_FLAG != 0)
    };
    let cell = MapCells(bucket).cell(way);
    // SAFETY: a live map value; other CPUs add to the same counters, hence the atomics. The fields written
    // without one (last_jiffies, max_seq, syn_*) are hints where the last writer may win.
    unsafe {
        let number = atomic::fetch_add(&raw mut (*cell).skbs, 1);
        atomic::add(&raw mut (*cell).bytes, u64::from(parsed.l3_len));
        if segments > 1 {
            let further = u64::from(segments - 1);
            atomic::add(&raw mut (*cell).gso_packets, further);
            atomic::add(
                &raw mut (*cell).gso_bytes,
                further * u64::from(parsed.l3_len - parsed.payload_len),
            );
        }
        (*cell).last_jiffies = bpf_jiffies64() as u32;
        let syn = parsed.tcp_flags & SYN != 0;
        // A later fragment has no TCP header, so no flags and no sequence number.
        if parsed.key.protocol == TCP && parsed.key.flags & KEY_FRAGMENT == 0 {
            let flags = u32::from(parsed.tcp_flags);
            if flags & !(*cell).tcp_flags != 0 {
                atomic::or32(&raw mut (*cell).tcp_flags, flags);
            }
            // A flow may be met in the middle: then even an empty first packet tells where it stands.
            if (parsed.payload_len > 0 || claimed) && !syn {
                let end = parsed.tcp_seq.wrapping_add(parsed.payload_len);
                if claimed || end.wrapping_sub((*cell).max_seq) as i32 > 0 {
                    (*cell).max_seq = end;
                } else {
                    atomic::add32(&raw mut (*cell).retransmits, segments);
                }
            }
        }
        // The packet that claimed the cell is not always its first: another CPU's may have been quicker.
        let sampling = Sampling {
            mask: config::sample_mask(),
            first: config::first_packets(),
        };
        if !sampling.selects(number) && !syn && !claimed {
            return;
        }
        // One reading for all that is timed: it costs more than all the rest of a known flow's packet. What ENTER
        // still does after it, some 50 ns, counts as the NAT path's.
        let now = bpf_ktime_get_ns();
        let mut stage = STAGE_ESTABLISHED;
        if syn {
            stage = synchronise(cell, &parsed, claimed, now);
        } else if claimed && parsed.key.protocol != TCP {
            atomic::add32(&raw mut (*cell).connections, 1);
            stage = STAGE_FIRST;
        }
        if claimed {
            (*cell).first_ns = now;
        }
        if origin == aksnet_common::flow::ORIGIN_ENTER {
            let index = bucket_index * WAYS as u32 + way as u32;
            passage::leave(packet, &parsed, index, cell::live(hash), stage, now);
        }
    }
}

/// Notes a SYN or SYN-ACK: a connection, or the repetition of one.
///
/// # Safety
/// `cell` is a live map value.
#[inline(always)]
unsafe fn synchronise(cell: *mut HotCell, parsed: &Parsed, claimed: bool, now: u64) -> usize {
    let opens = parsed.tcp_flags & ACK == 0;
    // SAFETY: as the caller says.
    unsafe {
        if !claimed && (*cell).syn_ns != 0 && (*cell).syn_seq == parsed.tcp_seq {
            atomic::add32(&raw mut (*cell).retransmits, 1);
        } else {
            (*cell).syn_seq = parsed.tcp_seq;
            (*cell).syn_ns = now;
            (*cell).max_seq = parsed
                .tcp_seq
                .wrapping_add(1)
                .wrapping_add(parsed.payload_len);
            if opens {
                atomic::add32(&raw mut (*cell).connections, 1);
            }
        }
    }
    if opens {
        STAGE_FIRST
    } else {
        STAGE_ESTABLISHED
    }
}

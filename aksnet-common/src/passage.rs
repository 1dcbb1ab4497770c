//! A passage: one packet's way through the node, from ENTER to EXIT or to its drop.
//!
//! ENTER leaves a [`Passage`] in a small per-CPU table; EXIT and DROP find it by a *fingerprint* of what
//! NAT leaves alone. The tuple before and after then tells what NAT did, and the clock how long it took.

use crate::{
    flow::{Addr, FlowKey, mix},
    packet::{DCCP, ICMP, ICMPV6, Packet, Parsed, SCTP, TCP, UDP, UDPLITE},
};

/// Addresses and ports of a packet at one point of its way. Ports in host byte order.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

/// What NAT did to a packet between two points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum NatKind {
    /// Neither end was rewritten.
    None = 0,
    /// The source address or port was rewritten.
    Snat = 1,
    /// The destination address or port was rewritten.
    Dnat = 2,
    /// Both ends were rewritten.
    Both = 3,
}

impl NatKind {
    /// What turned `before` into `after`.
    #[inline(always)]
    #[must_use]
    pub fn between(before: &Tuple, after: &Tuple) -> Self {
        let source = before.src != after.src || before.src_port != after.src_port;
        let destination = before.dst != after.dst || before.dst_port != after.dst_port;
        match (source, destination) {
            (false, false) => Self::None,
            (true, false) => Self::Snat,
            (false, true) => Self::Dnat,
            (true, true) => Self::Both,
        }
    }

    /// The same NAT as the replies of the connection see it undone: a reply's destination is rewritten
    /// where the connection's source was.
    #[must_use]
    pub fn of_reply(self) -> Self {
        match self {
            Self::Snat => Self::Dnat,
            Self::Dnat => Self::Snat,
            other => other,
        }
    }
}

impl TryFrom<u32> for NatKind {
    type Error = u32;
    fn try_from(n: u32) -> Result<Self, u32> {
        Ok(match n {
            0 => Self::None,
            1 => Self::Snat,
            2 => Self::Dnat,
            3 => Self::Both,
            other => return Err(other),
        })
    }
}

/// A number that two sightings of one packet share, whatever NAT did in between, and that two packets
/// hardly ever share. Never 0.
///
/// Made of: IP version, protocol, IP length, IPv4 identification and fragment offset; TCP sequence,
/// acknowledgement, flags and window; the first 16 payload bytes of UDP; ICMP type, code and sequence (not
/// the identifier, which NAT rewrites as it does a port) and, for echo, the first 8 payload bytes (an error
/// message's payload holds a tuple that NAT rewrites); SCTP verification tag and the first 16 bytes of the
/// chunks; DCCP packet type and sequence number; the first 16 bytes of a later fragment and of any other
/// protocol. Checksums, TTL, DSCP and the identification of IPv6 fragments are left out: the node changes
/// them (conntrack reassembles, and `ip6_fragment` chooses an identification of its own).
#[inline(always)]
pub fn fingerprint<P: Packet>(packet: &P, parsed: &Parsed) -> u64 {
    let id = if parsed.key.family == 4 {
        parsed.ip_id
    } else {
        0
    };
    let head = u64::from(parsed.key.protocol)
        | u64::from(parsed.key.family) << 8
        | u64::from(id) << 16
        | u64::from(parsed.l3_len) << 32
        | u64::from(parsed.key.flags) << 62;
    let mut h = mix(head ^ 0x5851_f42d_4c95_7f2d).wrapping_add(u64::from(parsed.fragment_offset));
    let at = parsed.l4_offset;
    let end = parsed.l3_offset + parsed.l3_len;
    // Where bytes that nobody rewrites begin; `end` where they are already in.
    let payload = if parsed.key.flags & crate::flow::KEY_FRAGMENT != 0 {
        at
    } else {
        match parsed.key.protocol {
            TCP => {
                if let Some(b) = packet.read::<12>(at + 4) {
                    h = mix(h ^ word([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
                    h = mix(h ^ word([b[8], b[9], b[10], b[11], 0, 0, 0, 0]));
                }
                end
            }
            // DCCP: packet type and sequence number, behind the ports and the checksum.
            UDP | UDPLITE | DCCP => at + 8,
            SCTP => {
                if let Some(b) = packet.read::<4>(at + 4) {
                    h = mix(h ^ word([b[0], b[1], b[2], b[3], 0, 0, 0, 0]));
                }
                at + 12
            }
            ICMP | ICMPV6 if (parsed.key.protocol == ICMP) == (parsed.key.family == 4) => {
                h = mix(h ^ u64::from(parsed.key.dst_port));
                if let Some(b) = packet.read::<2>(at + 6) {
                    h = mix(h ^ u64::from(u16::from_ne_bytes(b)));
                }
                if parsed.icmp_echo
                    && parsed.payload_len >= 8
                    && let Some(b) = packet.read::<8>(at + 8)
                {
                    h = mix(h ^ word(b));
                }
                end
            }
            _ => at,
        }
    };
    h = payload16(packet, h, payload, end);
    if h == 0 { 1 } else { h }
}

/// Folds in the first 16 bytes of those from `at` to `end`, or all if they are fewer, but at least 4: two
/// reads, which overlap where the bytes are no multiple of 8 or 4. What lies beyond `end` is the link layer's
/// padding, which does not leave the node with the packet.
#[inline(always)]
fn payload16<P: Packet>(packet: &P, mut h: u64, at: u32, end: u32) -> u64 {
    if at + 8 <= end {
        let second = if at + 16 <= end { at + 8 } else { end - 8 };
        if let Some(b) = packet.read::<8>(at) {
            h = mix(h ^ word(b));
        }
        if let Some(b) = packet.read::<8>(second) {
            h = mix(h ^ word(b));
        }
    } else if at + 4 <= end {
        if let Some(b) = packet.read::<4>(at) {
            h = mix(h ^ word([b[0], b[1], b[2], b[3], 0, 0, 0, 0]));
        }
        if let Some(b) = packet.read::<4>(end - 4) {
            h = mix(h ^ word([b[0], b[1], b[2], b[3], 0, 0, 0, 0]));
        }
    }
    h
}

#[inline(always)]
fn word(b: [u8; 8]) -> u64 {
    u64::from_ne_bytes(b)
}

/// Slots of a CPU's passage table, as pairs: a passage may stand in either slot of its pair.
pub const PASSAGE_PAIRS: usize = 256;

/// One packet on its way. `fingerprint` 0: the slot is empty.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Passage {
    /// See [`fingerprint`].
    pub fingerprint: u64,
    /// `CLOCK_MONOTONIC` nanoseconds at ENTER.
    pub entered_ns: u64,
    /// The flow it was counted under.
    pub key: FlowKey,
    /// State word of the flow's cell when the packet was counted.
    pub state: u64,
    /// Index of the flow's cell, or [`NO_CELL`].
    pub cell: u32,
    /// [`crate::flow::STAGE_FIRST`] or [`crate::flow::STAGE_ESTABLISHED`].
    pub stage: u32,
}

const _: () = assert!(size_of::<Passage>() == 80);

/// A passage whose flow has no cell (it spilled).
pub const NO_CELL: u32 = u32::MAX;

/// One CPU's passages; element of the `PASSAGES` map, whose index is the CPU.
#[repr(C, align(64))]
#[cfg_attr(feature = "user", derive(Clone, Copy))]
pub struct PassageTable {
    /// Passages left and not yet taken, at most too high; 0: nothing pending, EXIT can return.
    pub pending: u64,
    /// `jiffies` at the last passage left here.
    pub last_jiffies: u64,
    /// `jiffies` when `pending` was last set to zero for drift.
    pub reset_jiffies: u64,
    #[doc(hidden)]
    pub padding: [u64; 5],
    /// The slots.
    pub slots: [[Passage; 2]; PASSAGE_PAIRS],
}

/// Jiffies after which a passage that nothing took no longer counts as pending.
pub const PASSAGE_JIFFIES: u64 = 2;
/// Jiffies after which the count of pending passages starts afresh.
pub const PENDING_RESET_JIFFIES: u64 = 16;

#[cfg(feature = "user")]
// SAFETY: a repr(C) struct of integers without implicit padding; any bytes are a valid value.
unsafe impl aya::Pod for PassageTable {}

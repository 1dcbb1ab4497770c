//! A drop: a packet that the kernel freed before it could leave the node, with the kernel's own reason.

use crate::{flow::FlowKey, passage::Tuple, tracked::DropState};

/// What drops are counted by. The addresses are those the packet had when it was dropped: after DNAT and
/// before SNAT for a drop in the FORWARD chain.
///
/// `key.ifindex` is the device the packet was attributed to (`skb->dev`): the input device for a drop in
/// FORWARD, the output device for one in POSTROUTING.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct DropKey {
    /// Tuple, protocol, and the device.
    pub key: FlowKey,
    /// Address of the kernel code that dropped the packet; `/proc/kallsyms` names it.
    pub location: u64,
    /// `enum skb_drop_reason` of the running kernel.
    pub reason: u32,
    /// `skb->mark`: policy engines leave their verdict here.
    pub mark: u32,
    /// `skb->skb_iif`: the device the packet came in through; 0 if the node sent it.
    pub iif: u32,
    /// What conntrack and routing had made of it. It is in the key because the same tuple may fall to a policy
    /// and, within the same second, to a rule for INVALID: those are two causes, and each has its own count.
    pub state: DropState,
}

const _: () = assert!(size_of::<DropKey>() == 72);

/// What is counted for a [`DropKey`]; the sums only grow, until the agent takes them. Beside the sums it has
/// what the latest of the drops looked like.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropStats {
    /// Packets as the kernel handles them.
    pub skbs: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Wire packets beyond `skbs` for which super-packets stood.
    pub gso_packets: u64,
    /// IP bytes of those packets' headers.
    pub gso_bytes: u64,
    /// TCP packets among `skbs` that try to open a connection (SYN without ACK), repetitions included.
    pub syns: u64,
    /// Attempts to open a connection among `syns`: a SYN whose sequence number is that of the one before is
    /// that attempt's repetition. An attempt that two epochs' maps share is in both: `last_syn_seq` of the older
    /// and `first_syn_seq` of the younger are then the same. Two processors that drop SYNs of one tuple at the
    /// same moment may each count an attempt.
    pub attempts: u64,
    /// Packets among `skbs` whose passage was found: they had entered through a watched interface.
    pub passages: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of the latest.
    pub last_ns: u64,
    /// Index of the flow's cell plus one, from the latest passage; 0 without.
    pub cell: u64,
    /// Of the latest: the tuple that the connection's client dialled, before any NAT, as conntrack has it
    /// (its *original* direction, also where the dropped packet is a reply). Zeros where
    /// [`DropState::dialled_is_known`] says no. Ports as in [`FlowKey`].
    pub dialled: Tuple,
    /// TCP sequence number of the first SYN; meaningless while `attempts` is 0.
    pub first_syn_seq: u32,
    /// TCP sequence number of the latest SYN; meaningless while `attempts` is 0.
    pub last_syn_seq: u32,
    /// Of the latest: the device its route leads to; the loopback device for what is delivered on the node,
    /// and for what has no route (there the reason says so). 0 where the state is not
    /// [`DropState::ROUTED`].
    pub oif: u32,
    /// Of the latest: its IP length in bytes; of a super-packet, that of the whole.
    pub len: u32,
    /// Of the latest: its TTL or hop limit as it was then. Forwarding has not yet taken one off where it finds
    /// that it is used up: 1 or 0.
    pub ttl: u8,
    /// Protocol of `dialled`. It is not the packet's own where an ICMP error belongs to a connection of
    /// another protocol.
    pub dialled_protocol: u8,
    #[doc(hidden)]
    pub padding: [u8; 6],
}

const _: () = assert!(size_of::<DropStats>() == 136);

impl DropStats {
    /// Adds what was counted later for the same key: sums are added, and of the latest drop what it was. An
    /// attempt that both share is one.
    pub fn add(&mut self, later: &Self) {
        let (first, cell) = (*self, later.cell);
        let shared =
            first.attempts != 0 && later.attempts != 0 && first.last_syn_seq == later.first_syn_seq;
        *self = Self {
            skbs: first.skbs + later.skbs,
            bytes: first.bytes + later.bytes,
            gso_packets: first.gso_packets + later.gso_packets,
            gso_bytes: first.gso_bytes + later.gso_bytes,
            syns: first.syns + later.syns,
            attempts: first.attempts + later.attempts - u64::from(shared),
            passages: first.passages + later.passages,
            last_ns: first.last_ns.max(later.last_ns),
            cell: if cell == 0 { first.cell } else { cell },
            ..*later
        };
        if first.attempts != 0 {
            self.first_syn_seq = first.first_syn_seq;
            if later.attempts == 0 {
                self.last_syn_seq = first.last_syn_seq;
            }
        }
    }
}

/// Value of the `WATCHED` map for a bridge; for a bridge's port it is the bridge's index, else 0.
pub const WATCHED_BRIDGE: u32 = u32::MAX;

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), integers only, no implicit padding (size asserted): any bytes are a valid value.
    unsafe impl aya::Pod for super::DropKey {}
    // SAFETY: repr(C), integers only: any bytes are a valid value. The one gap, four bytes at the end of `Tuple`,
    // is never read as anything: the agent takes values out of the map and puts none in.
    unsafe impl aya::Pod for super::DropStats {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syns(attempts: u64, first_syn_seq: u32, last_syn_seq: u32) -> DropStats {
        DropStats {
            skbs: attempts,
            syns: attempts,
            attempts,
            first_syn_seq,
            last_syn_seq,
            ..DropStats::default()
        }
    }

    #[test]
    fn an_attempt_that_two_epochs_share_is_one() {
        let mut sum = DropStats::default();
        sum.add(&syns(2, 10, 20));
        // The same attempt goes on, and another follows.
        sum.add(&syns(2, 20, 30));
        assert_eq!((sum.skbs, sum.syns, sum.attempts), (4, 4, 3));
        assert_eq!((sum.first_syn_seq, sum.last_syn_seq), (10, 30));
        // Packets that open nothing do not forget the latest attempt.
        sum.add(&DropStats {
            skbs: 1,
            ..DropStats::default()
        });
        sum.add(&syns(1, 30, 30));
        assert_eq!((sum.skbs, sum.attempts), (6, 3));
        // A sequence number of zero is as good as any.
        let mut sum = DropStats {
            skbs: 1,
            ..DropStats::default()
        };
        sum.add(&syns(1, 0, 0));
        sum.add(&syns(1, 0, 0));
        assert_eq!((sum.syns, sum.attempts), (2, 1));
    }
}

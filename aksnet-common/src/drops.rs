//! A drop: a packet that the kernel freed before it could leave the node, with the kernel's own reason.

use crate::flow::FlowKey;

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
    #[doc(hidden)]
    pub padding: u32,
}

const _: () = assert!(size_of::<DropKey>() == 72);

/// What is counted for a [`DropKey`]; only grows, until the agent takes it.
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
    /// Packets among `skbs` whose passage was found: they had entered through a watched interface.
    pub passages: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of the latest.
    pub last_ns: u64,
    /// Index of the flow's cell plus one, from the latest passage; 0 without.
    pub cell: u64,
}

/// Value of the `WATCHED` map for a bridge; for a bridge's port it is the bridge's index, else 0.
pub const WATCHED_BRIDGE: u32 = u32::MAX;

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), integers only, no implicit padding (size asserted): any bytes are a valid value.
    unsafe impl aya::Pod for super::DropKey {}
    // SAFETY: repr(C), every field is a u64.
    unsafe impl aya::Pod for super::DropStats {}
}

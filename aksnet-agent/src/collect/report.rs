//! What goes into a sweep besides the maps, and what comes out of it besides metrics.

use serde::Serialize;

use crate::{droplog::DropRecord, policy::engine::Engine};

/// Records that one sweep makes at the most: a flood of tuples is in the metrics, and nobody reads that fast.
pub const RECORDS: usize = 256;

/// What can be set about collecting. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectConfig {
    /// A flow without packets for this long is retired.
    pub idle_ms: u32,
    /// The same for a TCP flow that has finished or was reset.
    pub closed_idle_ms: u32,
    /// A flow is judged when it is this old: its first packet has then left, and its translation is known.
    pub settle_ms: u32,
    /// A flow of a pod that no object was heard of yet waits so long for its name.
    pub name_wait_ms: u32,
    /// A SYN without an answer for this long is unanswered.
    pub unanswered_ms: u32,
    /// Policies and labels must have been as they are for this long when a connection begins that they deny, for it to
    /// be a gap.
    pub policy_grace_ms: u32,
    /// A connection that goes on for longer has a flow record each time this has passed; 0: none.
    pub active_ms: u32,
}

impl Default for CollectConfig {
    fn default() -> Self {
        Self {
            idle_ms: 60_000,
            closed_idle_ms: 5_000,
            settle_ms: 10,
            name_wait_ms: 3_000,
            unanswered_ms: 10_000,
            policy_grace_ms: 10_000,
            active_ms: 60_000,
        }
    }
}

/// What is known of the node besides its flows, and a drop's cause depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// Who enforces policies; [`Engine::Kubernetes`] where that is not known.
    pub engine: Engine,
    /// Whether the node tracks connections.
    pub tracking: bool,
}

impl Default for Circumstances {
    fn default() -> Self {
        Self {
            engine: Engine::Kubernetes,
            tracking: true,
        }
    }
}

/// A record of the drop log that lacks what takes longer to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The record; its `location` is empty where the function's name is not at hand.
    pub record: DropRecord,
    /// Where in the kernel's code.
    pub address: u64,
}

/// The time of a sweep, by both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, as the programs read it.
    pub monotonic_ns: u64,
    /// Wall time since 1970.
    pub unix_ms: u64,
}

/// What a sweep found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SweepReport {
    /// Cells in use.
    pub live: u32,
    /// Flows that had packets since the last sweep.
    pub changed: u32,
    /// Flows seen for the first time.
    pub new: u32,
    /// Flows too young to be judged; the next sweep has them.
    pub unsettled: u32,
    /// Idle cells closed.
    pub closed: u32,
    /// Closed cells given back.
    pub freed: u32,
    /// Flows that had no cell.
    pub spilled: u32,
    /// Kinds of drops.
    pub drops: u32,
    /// What the kernel refused to tell; it is asked again in the next sweep, and nothing is lost.
    pub errors: Vec<String>,
}

/// Everything accounted so far, for tests of conservation and for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accounted {
    /// Packets as the kernel handles them.
    pub skbs: u64,
    /// Packets on the wire.
    pub packets: u64,
    /// Bytes on the wire, IP length.
    pub bytes: u64,
    /// Connections.
    pub connections: u64,
    /// Timed packets that left the node.
    pub exits: u64,
    /// Timed packets that were dropped.
    pub timed_drops: u64,
    /// Dropped packets on the wire.
    pub dropped_packets: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
}

//! The *live view*: what somebody who looks at a node sees of it at one moment. One [`Snapshot`] has all views: flows,
//! workloads, NAT, drops, the node. The terminal (`top`) and the page at `/` show it; the socket sends it.
//!
//! It is made when somebody asks, from what the last sweep left and from the other sources' last words; nothing is kept
//! for it. What it costs is in `docs/top.md`: with 65,536 flows two to eight sweeps' time.

// What is asked for.
pub mod query;

// Which flows, workloads and drops that chooses.
mod choice;

// What is answered.
pub mod snapshot;

// Sums by pairs of workloads.
mod pairs;

// NAT's cost by kind, and the node.
mod parts;

// The answer from the agent's accounts.
mod look;

pub use self::{
    choice::Choice,
    look::{Outside, View},
    query::{Filter, FlowId, LiveQuery, Sort},
    snapshot::{
        ByDestination, Causes, Conntrack, Drops, Health, Nat, NatCost, Node, PodAddresses, Ports,
        Program, Snapshot, Synced, Totals, Workload,
    },
};

#[cfg(test)]
mod tests;

//! From the maps' counters, which only grow, to what happened since the last look.

// Where counts are read from.
pub mod source;

// A source that tests and benchmarks play packets into.
#[doc(hidden)]
pub mod fake;

// What a cell's counters added.
pub mod delta;

// Which flow replies to which.
pub mod join;

// The sweep over all cells, and its steps.
pub mod sweep;

pub mod report;

mod fold;

mod judge;

mod waiting;

mod remains;

mod dropped;

mod handshake;

// What a drop means: by the kernel's word, and by all other evidence.
pub mod cause;

pub mod attribute;

mod attempts;

mod denial;

// What policies deny, and the node forwards.
mod gap;

// Live flows, for whoever asks.
mod live;

// Flow records, of what ends and of what goes on for long.
mod export;

pub(crate) use self::live::Glance;
pub use self::{
    cause::DropNames,
    export::Recording,
    live::LiveFlow,
    report::{Accounted, Circumstances, CollectConfig, Found, Now, SweepReport},
    sweep::Collector,
};

#[cfg(test)]
mod tests;

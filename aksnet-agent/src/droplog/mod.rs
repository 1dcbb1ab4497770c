//! The *drop log*: what was dropped, one record for each tuple, reason, place and sweep, for whoever follows it. Metrics
//! have the totals; the log has the addresses, the policy and the reasoning, and keeps the latest only.

// One drop, and how it reads.
pub mod record;

// The latest, and those who follow.
mod log;

// Names of the kernel's functions, looked up when somebody reads them.
pub mod symbols;

pub use self::{
    log::{DropLog, Following, News},
    record::{DropRecord, End},
};

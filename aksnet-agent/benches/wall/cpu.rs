//! Which processor does what: traffic on one, the reader of the tables on another where there is another.

use anyhow::Result;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Senders, both ends of all veths, and receivers.
pub const TRAFFIC: usize = 1;
/// The agent's part.
pub const READER: usize = 0;

/// Binds the calling thread to a processor; on a machine with one, that is the one.
pub fn pin(cpu: usize) -> Result<()> {
    let there = std::thread::available_parallelism()?.get();
    let mut set = CpuSet::new();
    set.set(if there > cpu { cpu } else { 0 })?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

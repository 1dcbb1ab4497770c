//! The protocol by which packets on every CPU and the agent share the cells of a bucket without a lock
//! and without losing a count.
//!
//! A cell's state word holds a *phase* in its two low bits and the flow's hash in the others:
//!
//! ```text
//!            packet: cmpxchg            packet: cmpxchg             agent: cmpxchg
//!   FREE (0) ───────────────▶ CLAIMED ───────────────▶ LIVE ────────────────────▶ CLOSING
//!      ▲                    (key being written)     (counted in)            (no packet joins)
//!      └──────────────────────── agent, a sweep later: reads the rest, clears, stores 0 ─┘
//! ```
//!
//! - A packet adds to a LIVE cell whose key is its own. It may have found the cell LIVE just before the
//!   agent closed it: that is why the agent waits from one sweep to the next, for a grace period of the kernel
//!   and at least [`QUIET_MS`], before it reads the last counts.
//! - Two CPUs that see a new flow at once contend for the same free cell, as both look in the same order;
//!   the loser finds the winner's cell. In the rare case that both claim one, the flow has two cells and
//!   its counts are their sum.
//! - The kernel side never takes a cell away from a flow.
//!
//! The functions are generic over [`Cells`], so that the same code runs in the kernel on map memory, in the
//! agent on the mapped pages, and in a model checker that tries all interleavings.

use crate::flow::{FlowKey, WAYS};

/// Nobody's.
pub const FREE: u64 = 0;
/// Claimed by a packet that is still writing the key.
pub const CLAIMED: u64 = 1;
/// Counted in.
pub const LIVE: u64 = 2;
/// No packet joins any more; the agent will free it.
pub const CLOSING: u64 = 3;
/// The bits of the state word that hold the phase.
pub const PHASE: u64 = 3;

/// The least time in milliseconds between closing a cell and reading its last counts.
pub const QUIET_MS: u64 = 50;

/// How often a packet looks again while another CPU is writing the key of what may be its own flow. Writing
/// it takes some ten instructions.
const LOOKS: usize = 12;

/// The cells of one bucket, as one side sees them.
pub trait Cells {
    /// The state word of a cell.
    fn state(&self, way: usize) -> u64;
    /// Sets the state word to `new` if it is `old`; returns what it was. Ordered before and after all
    /// other memory accesses.
    fn swap_state(&self, way: usize, old: u64, new: u64) -> u64;
    /// Whether the cell holds this key. Only asked of a LIVE cell.
    fn key_is(&self, way: usize, key: &FlowKey) -> bool;
    /// Writes the key into a cell that the caller has claimed.
    fn write_key(&self, way: usize, key: &FlowKey);
}

/// Where a packet's flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It had a cell.
    Found(usize),
    /// It has one now.
    Claimed(usize),
    /// Every cell of the bucket is another flow's.
    Full,
}

/// The way at which the search for a hash starts, so that a bucket's flows do not all queue at its first
/// cell. Uses bits that choose neither the bucket nor the phase.
#[inline(always)]
#[must_use]
pub const fn first_way(hash: u64) -> usize {
    (hash >> 62) as usize & (WAYS - 1)
}

/// The state word of a flow's LIVE cell.
#[inline(always)]
#[must_use]
pub const fn live(hash: u64) -> u64 {
    (hash & !PHASE) | LIVE
}

/// Finds the flow's cell.
#[inline(always)]
pub fn find<C: Cells>(cells: &C, hash: u64, key: &FlowKey) -> Option<usize> {
    let wanted = live(hash);
    let start = first_way(hash);
    for i in 0..WAYS {
        let way = (start + i) & (WAYS - 1);
        if cells.state(way) == wanted && cells.key_is(way, key) {
            return Some(way);
        }
    }
    None
}

/// Claims a cell for a flow for which [`find`] has just found none. Another CPU may claim one for the same
/// flow meanwhile: as all look in the same order, this packet then meets that cell before a free one.
#[inline(always)]
pub fn claim<C: Cells>(cells: &C, hash: u64, key: &FlowKey) -> Place {
    let tag = hash & !PHASE;
    let start = first_way(hash);
    for i in 0..WAYS {
        let way = (start + i) & (WAYS - 1);
        let mut state = cells.state(way);
        if state == FREE {
            state = cells.swap_state(way, FREE, tag | CLAIMED);
            if state == FREE {
                cells.write_key(way, key);
                cells.swap_state(way, tag | CLAIMED, tag | LIVE);
                return Place::Claimed(way);
            }
        }
        if state & !PHASE == tag {
            for _ in 0..LOOKS {
                if state != tag | CLAIMED {
                    break;
                }
                state = cells.state(way);
            }
            if state == tag | LIVE && cells.key_is(way, key) {
                return Place::Found(way);
            }
        }
    }
    Place::Full
}

/// Agent: lets no further packet join a live cell. False if the cell is not live.
#[inline]
pub fn close<C: Cells>(cells: &C, way: usize) -> bool {
    let state = cells.state(way);
    state & PHASE == LIVE && cells.swap_state(way, state, (state & !PHASE) | CLOSING) == state
}

/// Agent: gives back a cell closed at least [`QUIET_MS`] ago, after its last counts were read and its
/// counters cleared. False if the cell is not closing.
#[inline]
pub fn free<C: Cells>(cells: &C, way: usize) -> bool {
    let state = cells.state(way);
    state & PHASE == CLOSING && cells.swap_state(way, state, FREE) == state
}

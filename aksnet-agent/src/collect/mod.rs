//! From the maps' counters, which only grow, to what happened since the last look.

pub mod source;

pub mod cause;

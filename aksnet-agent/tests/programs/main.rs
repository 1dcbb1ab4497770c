//! Each tc program through `BPF_PROG_TEST_RUN` with crafted frames: every program passes every frame on
//! unchanged, and the maps hold exactly what the frame was.
//!
//! Needs root and a kernel with BPF and BTF; without, each test prints why it is skipped. The drop program
//! is not here: a test run cannot hand a tracepoint a real packet.
#![expect(
    unreachable_pub,
    reason = "one binary: `pub` here says what another module uses"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "frames are far shorter than the integers that hold their lengths"
)]

// Frames, and what is expected of them.
mod frame;

// A loaded datapath, to run frames through and look at.
mod rig;

// Each kind of header.
mod headers;

// Truncated, contradictory and random frames.
mod damaged;

// What one flow's counters say.
mod counters;

// From ENTER to EXIT.
mod passages;

// Tables too small, and cells given back.
mod tables;

// Two CPUs and the agent at once.
mod concurrent;

// What they cost, by what does not depend on the machine.
mod cost;

#[expect(dead_code, reason = "the benchmarks take all of it")]
#[path = "../../benches/runs/mod.rs"]
mod runs;

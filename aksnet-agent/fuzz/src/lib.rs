//! *Fuzz targets*: what the agent reads from others, given any bytes. A target panics where something that must hold
//! does not; that it ends, and in how much memory, is the fuzzer's to watch.
//!
//! Each is a function of bytes in a file of its own. `fuzz_targets/` gives each to libFuzzer, `cargo xtask fuzz` runs
//! those, and the test `aksnet-agent/tests/fuzz.rs` includes this file and runs each over its seeds in `seeds/`. The targets
//! for packets are in `aksnet-common/fuzz`.

// `crate::identify`, for the files that the target `policy` shares with the agent's own tests.
#[doc(hidden)]
pub use aksnet_agent::identify;

// Files.
mod pcap;

mod session;

mod config;

// What Kubernetes and its users write.
mod manifest;

mod objects;

mod policy;

// The kernel's answers.
mod conntrack;

mod ruleset;

mod route;

/// A target.
pub type Run = fn(&[u8]);

/// All of them, in the order of their modules: name, and what takes the bytes.
pub const TARGETS: &[(&str, Run)] = &[
    ("pcap", pcap::run),
    ("session", session::run),
    ("config", config::run),
    ("manifest", manifest::run),
    ("objects", objects::run),
    ("policy", policy::run),
    ("conntrack", conntrack::run),
    ("ruleset", ruleset::run),
    ("route", route::run),
];

/// Runs the target of this name.
///
/// # Panics
/// When there is none, or when what must hold does not.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(one, _)| *one == name);
    (target.expect("a target's name").1)(bytes);
}

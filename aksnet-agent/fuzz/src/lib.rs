//! *Fuzz targets*: what the agent reads from others, given any bytes. A target panics where something that must hold
//! does not; that it ends, and in how much memory, is the fuzzer's to watch.
//!
//! Each is a function of bytes in a file of its own. `fuzz_targets/` gives each to libFuzzer, `cargo xtask fuzz` runs
//! those, and the test `aksnet-agent/tests/fuzz.rs` includes this file and runs each over its seeds in `seeds/`.

// Packets.
mod packet;

mod parse;

mod fingerprint;

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

/// A target: its name, what it is given, and what it does with it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As `cargo xtask fuzz` and the folder of its seeds have it.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
}

/// All of them, in the order of their modules.
pub const TARGETS: &[Target] = &[
    target("parse", parse::run),
    target("fingerprint", fingerprint::run),
    target("pcap", pcap::run),
    target("session", session::run),
    target("config", config::run),
    target("manifest", manifest::run),
    target("objects", objects::run),
    target("policy", policy::run),
    target("conntrack", conntrack::run),
    target("ruleset", ruleset::run),
    target("route", route::run),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// Runs the target of this name.
///
/// # Panics
/// When there is none, or when what must hold does not.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target's name").run)(bytes);
}

//! *Fuzz targets* for packets, given any bytes: see `aksnet-agent/fuzz`, which has the others. They are by themselves as they
//! build in seconds, so that `cargo xtask test` can give them to the fuzzer.

mod packet;

mod parse;

mod fingerprint;

/// A target.
pub type Run = fn(&[u8]);

/// All of them: name, and what takes the bytes.
pub const TARGETS: &[(&str, Run)] = &[("parse", parse::run), ("fingerprint", fingerprint::run)];

/// Runs the target of this name.
///
/// # Panics
/// When there is none, or when what must hold does not.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(one, _)| *one == name);
    (target.expect("a target's name").1)(bytes);
}

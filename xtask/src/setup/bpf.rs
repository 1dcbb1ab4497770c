//! How the BPF object is built: with which compiler, and by which linker.
//!
//! `aksnet-agent/build.rs` looks in the same order, as it cannot depend on this crate:
//! 1. the compiler named by `AKSNET_BPF_RUSTC`, if set: it must come with a `core` for `bpfel-unknown-none`;
//! 2. rustup's nightly, if it has rust-src: `cargo +nightly build -Z build-std=core`;
//! 3. Debian's `rustc-web` (`/usr/bin/rustc`), if its sysroot has `lib/rustlib/bpfel-unknown-none`:
//!    `RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 cargo build`, with rustup's cargo.
//!
//! In all cases `--target bpfel-unknown-none`, and `bpf-linker` from `PATH` or cargo's own `bin` directory.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The BPF target.
pub const TARGET: &str = "bpfel-unknown-none";

/// Where Debian's rustc is.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that can build the BPF object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// With a `core` for the target in its sysroot: needs `RUSTC_BOOTSTRAP=1`.
    Prebuilt(PathBuf),
    /// rustup's nightly with rust-src: needs `-Z build-std=core`.
    Nightly,
}

/// The compiler that a build on this machine would use, if there is one.
#[must_use]
pub fn compiler() -> Option<Compiler> {
    if let Some(named) = env::var_os("AKSNET_BPF_RUSTC") {
        return has_target(Path::new(&named)).then(|| Compiler::Prebuilt(named.into()));
    }
    if sysroot(Command::new("rustup").args(["run", "nightly", "rustc"]))
        .is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").exists())
    {
        return Some(Compiler::Nightly);
    }
    has_target(Path::new(SYSTEM_RUSTC)).then(|| Compiler::Prebuilt(SYSTEM_RUSTC.into()))
}

/// `bpf-linker`, from `PATH` or cargo's own `bin` directory.
#[must_use]
pub fn linker() -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|directory| directory.join("bpf-linker"))
        .find(|file| file.exists())
}

fn has_target(rustc: &Path) -> bool {
    rustc.exists()
        && sysroot(&mut Command::new(rustc))
            .is_some_and(|root| root.join("lib/rustlib").join(TARGET).exists())
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(text.trim()))
}

//! *Cargo*, as this process was started by: what it is asked for, and what it tells of the repository.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::image::machine::Machine;
use crate::say;

/// All crates but the BPF one, which is for another target: aksnet-agent's build script compiles it. Features of
/// dependencies are those of the crates that are chosen together, so that another choice builds them again.
pub const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "aksnet-ebpf"];

/// What cargo sets for a program that it runs, of the program's own package. Names begin so.
const OF_PACKAGE: [&str; 5] = [
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_",
    "OUT_DIR",
];

/// Cargo, in the repository. What the one that started this process tells of its package does not reach it: build
/// scripts that look at it (ring's) would run again, and half of the dependencies be built again after them.
#[must_use]
pub fn command() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if OF_PACKAGE.iter().any(|begin| text.starts_with(begin)) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// The repository's root.
#[must_use]
pub fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// What `cargo metadata` says.
///
/// # Errors
/// When cargo fails.
pub fn metadata(arguments: &[&str]) -> Result<Value> {
    let output = command()
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(arguments)
        .output()
        .context("cargo")?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("cargo metadata prints JSON")
}

/// Where cargo puts what it builds.
///
/// # Errors
/// When cargo fails.
pub fn target_directory() -> Result<PathBuf> {
    metadata(&["--no-deps"])?["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names the target directory")
}

/// Builds the agent's release, for this machine or with a cross compiler for another, and says where it is.
///
/// # Errors
/// When it does not build.
pub fn release_agent(other: Option<Machine>) -> Result<PathBuf> {
    say::step("building the agent");
    let mut cargo = command();
    cargo.args(["build", "--release", "--package", "aksnet-agent"]);
    let mut directory = target_directory()?;
    if let Some(machine) = other {
        let triple = machine.triple();
        let variable = triple.to_uppercase().replace('-', "_");
        cargo
            .args(["--target", triple])
            .env(
                format!("CARGO_TARGET_{variable}_LINKER"),
                machine.compiler(),
            )
            .env(
                format!("CC_{}", triple.replace('-', "_")),
                machine.compiler(),
            );
        directory.push(triple);
    }
    say::run(&mut cargo)?;
    let binary = directory.join("release/aksnet-agent");
    ensure!(binary.exists(), "no agent at {}", binary.display());
    Ok(binary)
}

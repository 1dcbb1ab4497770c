//! `cargo xtask test`: everything that must hold before a change goes in, with nothing hidden.

use std::process::Command;

use anyhow::Result;

use crate::testbed::bed::is_root;
use crate::{say, setup};

/// Runs formatting, lints and all tests. The last lines are the test runners' own.
///
/// # Errors
/// At the first that fails.
pub fn run() -> Result<()> {
    setup::ensure(false)?;
    if is_root() {
        say::clean_up()?;
    } else {
        say::step(
            "not root: tests on the emulated node and of the programs in the kernel will say that they are skipped",
        );
    }
    // The BPF crate is for another target: aksnet-agent's build script compiles it.
    let workspace = ["--workspace", "--exclude", "aksnet-ebpf"];
    say::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    say::run(
        cargo(&["clippy"])
            .args(workspace)
            .args(["--all-targets", "--", "-D", "warnings"]),
    )?;
    say::run(cargo(&["test", "--no-fail-fast"]).args(workspace))
}

/// Cargo, as this process was started by.
fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words);
    command
}

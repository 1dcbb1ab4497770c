//! `cargo xtask test`: everything that must hold before a change goes in, with nothing hidden.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::cargo::{self, PACKAGES};
use crate::testbed::bed::is_root;
use crate::{
    docs, fuzz, say,
    setup::{self, bpf},
    vm,
};

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
    say::run(cargo("fmt").args(["--all", "--check"]))?;
    say::run(
        cargo("clippy")
            .args(PACKAGES)
            .args(["--all-targets", "--", "-D", "warnings"]),
    )?;
    lint_bpf()?;
    fuzz::packets()?;
    let here = say::run(cargo("test").arg("--no-fail-fast").args(PACKAGES));
    // Whatever failed here, so that one run tells of everything.
    let elsewhere = on_other_kernels();
    here.and(elsewhere)
}

/// The tests that depend on the kernel, on those that this machine does not run: a step of its own.
fn on_other_kernels() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        say::step("not x86-64: other kernels are not tried");
        return Ok(());
    }
    say::heading("Other kernels");
    match vm::run(&vm::Options::default()) {
        // Another distribution has no packages of them.
        Err(error) if error.is::<vm::NotTried>() => {
            say::step(&format!("{error:#}"));
            Ok(())
        }
        Err(error) => {
            // It may not be the one that the suite ends with.
            eprintln!("{} {error:#}", say::red("error:"));
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// The pages, as [`docs::run`] has it. The tests check the same (aksnet-agent/tests/docs.rs).
///
/// # Errors
/// As [`docs::run`], or when the agent does not build.
pub fn docs(check: bool) -> Result<()> {
    // With the test of it: what tests depend on has a say in the features, too, and the agent of the tests is there.
    let targets = ["--bin", "aksnet-agent", "--test", "docs"];
    say::run(cargo("build").args(PACKAGES).args(targets))?;
    let agent = cargo::target_directory()?.join("debug/aksnet-agent");
    docs::run(cargo::workspace(), &agent, check)
}

/// Clippy on the BPF crate, for its own target. It must be the same release as the compiler that has `core` for
/// that target, so this is done where that is Debian's, which has its clippy beside it.
fn lint_bpf() -> Result<()> {
    const DRIVER: &str = "/usr/bin/clippy-driver";
    let Some(bpf::Compiler::Prebuilt(rustc)) = bpf::compiler() else {
        say::step("the BPF crate is not linted: that is done with Debian's rustc and clippy");
        return Ok(());
    };
    if rustc != Path::new("/usr/bin/rustc") || !Path::new(DRIVER).exists() {
        say::step("the BPF crate is not linted: that is done with Debian's rustc and clippy");
        return Ok(());
    }
    say::run(
        cargo("check")
            .args(["--release", "--package", "aksnet-ebpf"])
            .args(["--target", bpf::TARGET])
            .args(["--target-dir", "target/bpf-lint"])
            .env("RUSTC", rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTC_WORKSPACE_WRAPPER", DRIVER)
            // How cargo-clippy hands its arguments to the driver.
            .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__")
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-cpu=v3"),
    )
}

fn cargo(what: &str) -> Command {
    let mut command = cargo::command();
    command.arg(what);
    command
}

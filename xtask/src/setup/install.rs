//! Does one step of a plan, in plain sight.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::axe;
use super::kubernetes;
use super::machine::{Machine, Privilege};
use super::plan::{LINKER_VERSION, LLVM_PREFIX, Step};
use crate::say;

/// Does a step.
///
/// # Errors
/// When its command fails.
pub fn run(machine: &Machine, step: &Step) -> Result<()> {
    say::step(&format!("setup: {step}"));
    let mut command = match step {
        Step::UpdatePackageLists => privileged(machine, &["apt-get", "update", "-q"]),
        Step::InstallPackages(packages) => {
            let mut command = privileged(
                machine,
                &["apt-get", "install", "-q", "-y", "--no-install-recommends"],
            );
            command
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive");
            command
        }
        Step::InstallNightly => {
            let mut command = Command::new("rustup");
            command.args([
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ]);
            command
        }
        Step::InstallLinkerForPrebuilt => {
            let mut command = Command::new("cargo");
            command.args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--locked",
            ]);
            command
                .args(["--no-default-features", "--features", "llvm-22"])
                .env("LLVM_PREFIX", LLVM_PREFIX);
            command
        }
        Step::InstallLinkerForNightly => {
            let mut command = Command::new("cargo");
            command.args([
                "+nightly",
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--locked",
            ]);
            command
        }
        Step::InstallKubernetesTools => {
            return kubernetes::install().with_context(|| format!("setup could not do: {step}"));
        }
        Step::InstallAxe => {
            return axe::install().with_context(|| format!("setup could not do: {step}"));
        }
    };
    // `cargo xtask` is itself run by cargo, whose settings of this build must not reach another one.
    for variable in ["CARGO", "RUSTUP_TOOLCHAIN", "CARGO_TARGET_DIR"] {
        command.env_remove(variable);
    }
    say::run(&mut command).with_context(|| format!("setup could not do: {step}"))
}

fn privileged(machine: &Machine, words: &[&str]) -> Command {
    let words = if machine.privilege == Privilege::Sudo {
        [&["sudo", "-n"], words].concat()
    } else {
        words.to_vec()
    };
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

//! `cargo xtask setup`: finds what building and testing needs, and installs what is missing.
//!
//! Three steps, each in its own module: [`machine`] looks (and changes nothing), [`plan`] decides (and does
//! nothing: it is pure), [`install`] does. With nothing missing, looking is all that happens, in well under a
//! second.

pub mod axe;
pub mod bpf;
pub mod install;

pub mod kubernetes;

pub mod machine;
mod npm;
pub mod plan;

use anyhow::{Result, bail};

use crate::say;
use machine::Machine;
use plan::{Plan, Step};

/// Makes sure that everything is there. Says each thing that it does, and with `verbose` also what was found.
///
/// # Errors
/// When something is missing that it cannot install; the error says what, and how to get it.
pub fn ensure(verbose: bool) -> Result<()> {
    bring(Machine::look, verbose)
}

/// The same for what building alone needs: what an image's builder runs.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_building() -> Result<()> {
    bring(|| Machine::look().for_building(), true)
}

fn bring(look: impl Fn() -> Machine, verbose: bool) -> Result<()> {
    let mut machine = look();
    let mut plan = Plan::of(&machine);
    if plan.is_nothing() {
        if verbose {
            machine
                .found()
                .iter()
                .for_each(|line| println!("  found      {line}"));
            say::step("setup: everything is here");
        }
        return Ok(());
    }
    if plan.needs_packages() && machine.can_install_packages() {
        // Only now is it worth asking the archive: what it has decides the way.
        install::run(&machine, &Step::UpdatePackageLists)?;
        machine.look_at_archive();
        plan = Plan::of(&machine);
    }
    for step in &plan.steps {
        if plan.missing.is_empty() || step.helps_alone() {
            install::run(&machine, step)?;
        }
    }
    if plan.missing.is_empty() {
        // What was installed is looked for again, so that success means that it is there.
        plan = Plan::of(&look());
        plan.missing.extend(
            plan.steps
                .iter()
                .map(|step| format!("{step}: done, and still not found")),
        );
    }
    if plan.missing.is_empty() {
        say::step("setup: everything is here now");
        return Ok(());
    }
    bail!(
        "setup cannot go on by itself:\n  - {}",
        plan.missing.join("\n  - ")
    )
}

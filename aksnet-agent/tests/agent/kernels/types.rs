//! Types of the kernel that are a module's own: conntrack's.

use std::path::Path;

use anyhow::Result;
use nix::sys::signal::Signal;
use xtask::testbed::Testbed;

use super::{can, is_loaded};
use crate::life::{Agent, Home, plan_flags, turn};

#[test]
fn conntracks_types_are_known_where_it_is_a_module() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    if !can("conntrack as a module", is_loaded("nf_conntrack")) {
        return Ok(());
    }
    assert!(Path::new("/sys/kernel/btf/nf_conntrack").exists());
    let bed = Testbed::kubenet().build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let status = agent.status()?;
    assert_eq!(status["tables"]["drops"]["dialled_known"], true, "{status}");
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn programs_are_attached_by_tcx_where_it_is_and_else_by_clsact() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let tcx = crate::life::has_tcx(bed.node().netns());
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let (found, other) = if tcx {
        ("tcx", "clsact")
    } else {
        ("clsact", "tcx")
    };
    let attached = crate::life::attached(&bed)?;
    assert!(
        !attached.is_empty() && attached.iter().all(|at| at.contains(found)),
        "{attached:?}, not by {other}"
    );
    // On the machine that builds this it is tcx; Debian's 6.1 is the one without.
    println!("attached by {found}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

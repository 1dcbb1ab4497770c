//! Where the kernel gives less.

use aksnet_agent::{
    config::ConntrackMode,
    conntrack::{Follower, follow::TableState},
};
use anyhow::{Result, bail, ensure};
use xtask::testbed::{
    Testbed,
    traffic::{Udp, UdpServer},
};

use crate::follow::{config, follow, turn, wait};

/// Starts a follower on a thread without capabilities.
fn follow_as_nobody(bed: &Testbed) -> Result<Follower> {
    bed.node().netns().run(|| {
        const NOBODY: libc::uid_t = 65_534;
        // SAFETY: the system call itself, unlike its wrapper, concerns the calling thread alone, which ends soon; it
        // takes three numbers and touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        if result != 0 {
            bail!("cannot become nobody: {}", std::io::Error::last_os_error());
        }
        Ok(Follower::start(config(ConntrackMode::Events))?)
    })
}

#[test]
fn without_the_capability_the_table_is_not_known_and_statistics_come_from_proc() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let out = UdpServer::echo(bed.outside(), (bed.outside_ip(), 53))?;
    Udp::to(out.address())
        .datagrams(1)
        .run(bed.pod(0).netns())?;
    let poor = follow_as_nobody(&bed)?;
    let rich = follow(bed.node().netns(), config(ConntrackMode::Dump))?;
    wait("both have statistics", || {
        Ok(poor.status().statistics.is_some() && rich.status().dumps > 0)
    })?;
    wait("the refusal is told", || {
        Ok(poor.status().table == TableState::Unknown("it needs CAP_NET_ADMIN".to_owned()))
    })?;
    ensure!(poor.status().statistics == Some("proc"));
    ensure!(rich.status().statistics == Some("ctnetlink"));
    let snapshot = poor.snapshot();
    ensure!(snapshot.ports.is_none(), "not known, rather than none");
    ensure!(snapshot.table_known == Some(false));
    wait("both sources say the same", || {
        let (poor, rich) = (poor.snapshot(), rich.snapshot());
        Ok(poor.size == rich.size && poor.counters == rich.counters)
    })?;
    ensure!(snapshot.size.entries.is_some_and(|n| n > 0));
    ensure!(snapshot.size.limit.is_some());
    Ok(())
}

#[test]
fn a_namespace_that_tracks_nothing_has_an_empty_table() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let follower = follow(bed.vm(), config(ConntrackMode::Events))?;
    wait("the table is known", || {
        Ok(follower.status().table == TableState::Known)
    })?;
    let snapshot = follower.snapshot();
    ensure!(snapshot.size.entries == Some(0), "{snapshot:?}");
    let ports = snapshot.ports.unwrap_or_default();
    ensure!(!ports.is_empty() && ports.iter().all(|u| u.in_use == 0));
    Ok(())
}

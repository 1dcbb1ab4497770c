//! Every way in which the emulated node loses packets loses just those that it says, by a counter of the kernel's that
//! has nothing to do with how drops are watched; and everything works again afterwards.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use xtask::testbed::bed::is_root;
use xtask::testbed::mishap::{self, handshake, handshake::Outcome};
use xtask::testbed::traffic::{Tcp, TcpServer};
use xtask::testbed::{Backend, Builder, Family, Proxy, Testbed};

/// Two cores: one testbed at a time.
static TURN: Mutex<()> = Mutex::new(());

/// More than fit any buffer or queue here.
const PACKETS: u16 = 12;

fn turn() -> Option<MutexGuard<'static, ()>> {
    if !is_root() {
        println!("skipped: making network namespaces needs root");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Pods reach each other and the internet.
fn works(bed: &Testbed, family: Family) -> Result<()> {
    let outside = bed
        .plan()
        .outside
        .of(family)
        .context("the family is there")?;
    let web = bed.pod(1);
    for (netns, ip) in [(bed.outside(), outside), (web.netns(), web.ip_of(family))] {
        let server = TcpServer::echo(netns, (ip, 443))?;
        Tcp::to(server.address()).run(bed.pod(0).netns())?;
    }
    Ok(())
}

/// Plays all that is possible; the names of these.
fn play_all(builder: Builder) -> Result<Vec<&'static str>> {
    let bed = builder.dual_stack(true).build()?;
    let mut played = Vec::new();
    for family in bed.families() {
        works(&bed, family)?;
        for mishap in mishap::all() {
            if !mishap.is_possible(&bed, family) {
                continue;
            }
            let loss = mishap.play(&bed, family, PACKETS)?;
            let (counter, risen) = loss.counted.context("each has a counter")?;
            ensure!(
                risen == loss.packets,
                "{mishap:?} ({family:?}): {} lost, {counter} says {risen}",
                loss.packets
            );
            ensure!(
                loss.packets == u64::from(PACKETS)
                    || ["socket buffer full", "queue full"].contains(&mishap.name),
                "{mishap:?}: {} of {PACKETS}",
                loss.packets
            );
            works(&bed, family).with_context(|| format!("after {mishap:?} ({family:?})"))?;
            played.push(mishap.name);
        }
    }
    Ok(played)
}

#[test]
fn every_mishap_on_azure_loses_what_it_says() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let played = play_all(Testbed::azure_overlay())?;
    for mishap in mishap::all() {
        if !played.contains(&mishap.name) {
            // The machine's nf_conntrack_max may be too much to fill.
            ensure!(
                mishap.name == "conntrack table full",
                "{mishap:?} is never possible"
            );
            println!("skipped: {mishap:?}");
        }
    }
    Ok(())
}

#[test]
fn every_mishap_behind_a_bridge_and_with_legacy_rules_loses_what_it_says() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    play_all(Testbed::kubenet().backend(Backend::Legacy)).map(drop)
}

#[test]
fn every_mishap_on_kind_and_with_nftables_loses_what_it_says() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let played = play_all(Testbed::kind().proxy(Proxy::Nftables))?;
    ensure!(!played.contains(&"wireserver") && played.contains(&"source ranges"));
    Ok(())
}

#[test]
fn names_are_unique() {
    let mut names: Vec<&str> = mishap::all().iter().map(|mishap| mishap.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn handshakes_end_as_they_say_and_silence_is_the_far_end_s() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in [
        Testbed::azure_overlay(),
        Testbed::kubenet(),
        Testbed::kind(),
    ] {
        let bed = builder.dual_stack(true).build()?;
        for family in bed.families() {
            for outcome in [Outcome::Answered, Outcome::Refused, Outcome::Unanswered] {
                let silent = (outcome == Outcome::Unanswered).then_some(3);
                for attempts in [
                    handshake::to_outside(&bed, family, outcome, 3)?,
                    handshake::to_pod(&bed, family, outcome, 3)?,
                ] {
                    ensure!(
                        (attempts.made, attempts.arrived) == (3, silent),
                        "{attempts:?}"
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn probes_of_a_node_port_end_as_they_say() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for proxy in [Proxy::Iptables, Proxy::Nftables] {
        let bed = Testbed::azure_overlay().proxy(proxy).build()?;
        for outcome in [Outcome::Answered, Outcome::Refused, Outcome::Unanswered] {
            let probes = handshake::probes(&bed, outcome, 30_123, 3)?;
            let silent = (outcome == Outcome::Unanswered).then_some(3);
            ensure!((probes.made, probes.arrived) == (3, silent), "{probes:?}");
            ensure!(probes.client.to_string() == "168.63.129.16");
        }
    }
    let kind = Testbed::kind().build()?;
    ensure!(handshake::probes(&kind, Outcome::Answered, 30_123, 1).is_err());
    Ok(())
}

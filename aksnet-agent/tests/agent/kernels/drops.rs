//! *Drops*, as this kernel numbers their reasons and calls the functions in which they happen: of each kind some, under
//! their cause to the packet. All of them, and what policies deny: `mishaps`, `denied`.

use anyhow::Result;
use nix::sys::signal::Signal;
use xtask::testbed::{Backend, Builder, Family, Testbed, mishap};

use crate::life::{Agent, Home, eventually, plan_flags, turn};

/// Netfilter's, conntrack's, routing's, forwarding's and a socket's.
const CHOSEN: [&str; 7] = [
    "wireserver",
    "administrator's rule",
    "conntrack INVALID",
    "unreachable route",
    "reverse path filter",
    "TTL expired",
    "closed UDP port",
];

const PACKETS: u16 = 5;

fn have_their_causes(builder: Builder) -> Result<()> {
    let bed = builder.build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let by_cause = || -> Result<_> {
        let scrape = agent.scrape()?;
        Ok(scrape.count_by("aksnet_drop_packets_total", ["cause"]))
    };
    let mut expected = by_cause()?;
    for name in CHOSEN {
        let mishap = mishap::named(name).expect("a mishap of this name");
        let loss = mishap.play(&bed, Family::V4, PACKETS)?;
        *expected.entry([mishap.cause.to_owned()]).or_default() += loss.packets;
        let counted = eventually(name, || Ok(by_cause()? == expected));
        counted.map_err(|error| match by_cause() {
            Ok(causes) => error.context(format!("{causes:?}, not {expected:?}")),
            Err(_) => error,
        })?;
    }
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn drops_have_their_causes_with_rules_in_legacy_iptables() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    have_their_causes(Testbed::kubenet().backend(Backend::Legacy))
}

#[test]
fn drops_have_their_causes_with_rules_in_nftables() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    have_their_causes(Testbed::azure_overlay())
}

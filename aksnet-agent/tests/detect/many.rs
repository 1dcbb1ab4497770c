//! Many services: what matters is found among them.

use std::{fmt::Write as _, time::Instant};

use anyhow::Result;
use xtask::testbed::{Backend, Family, Netns, iptables};

use crate::rig::{bare, detect, turn};

/// kube-proxy's chains for so many services with one endpoint each, and a masquerade agent after them.
fn services(netns: &Netns, backend: Backend, count: u32) -> Result<()> {
    let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n:IP-MASQ-AGENT - [0:0]\n");
    for n in 0..count {
        writeln!(text, ":KUBE-SVC-{n:016} - [0:0]\n:KUBE-SEP-{n:016} - [0:0]")?;
    }
    text += "-A PREROUTING -j KUBE-SERVICES\n-A POSTROUTING -j IP-MASQ-AGENT\n";
    for n in 0..count {
        let (high, low) = (n / 250 % 250, n % 250 + 1);
        writeln!(
            text,
            "-A KUBE-SERVICES -d 10.0.{high}.{low}/32 -p tcp -m comment --comment \"shop/service-{n} cluster IP\" -m tcp --dport 80 -j KUBE-SVC-{n:016}\n\
             -A KUBE-SVC-{n:016} -m comment --comment \"shop/service-{n}\" -j KUBE-SEP-{n:016}\n\
             -A KUBE-SEP-{n:016} -p tcp -m comment --comment \"shop/service-{n}\" -m tcp -j DNAT --to-destination 10.244.{high}.{low}:8080"
        )?;
    }
    text += "-A IP-MASQ-AGENT -d 10.244.0.0/16 -j RETURN\n-A IP-MASQ-AGENT -j MASQUERADE\nCOMMIT\n";
    iptables::restore(netns, backend, Family::V4, &text)
}

fn find(backend: Backend, count: u32) -> Result<()> {
    let netns = bare()?;
    services(&netns, backend, count)?;
    let root = tempfile::tempdir()?;
    // The first look finds out whether nf_tables is a module.
    detect(&netns, root.path(), None)?;
    let begin = Instant::now();
    let found = detect(&netns, root.path(), None)?;
    println!("{count} services, {backend:?}: {:?}", begin.elapsed());
    assert_eq!(found.proxy_mode.value, Some("iptables"));
    let agent = found.masquerade.value.flatten().expect("an agent");
    assert_eq!(agent.spared, ["10.244.0.0/16".parse()?]);
    Ok(())
}

#[test]
fn a_thousand_services_hide_nothing() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    find(Backend::Nft, 1000)?;
    find(Backend::Legacy, 1000)
}

#[test]
fn ten_thousand_services_hide_nothing() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    find(Backend::Nft, 10_000)?;
    find(Backend::Legacy, 10_000)
}

//! A follower on an emulated node, and the truth that it is held against.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aksnet_agent::{
    config::ConntrackMode,
    conntrack::{FollowConfig, Follower, Table, message::Entry},
};
use aksnet_common::{
    packet::{ICMP, ICMPV6},
    passage::{NatKind, Tuple},
};
use anyhow::{Result, bail};
use xtask::testbed::{Netns, counters};

/// Two cores: one testbed at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The right to use the machine, or `None` where these tests cannot run, having said why.
pub fn turn() -> Option<MutexGuard<'static, ()>> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// As configured by default, but reading its statistics each second.
pub fn config(mode: ConntrackMode) -> FollowConfig {
    FollowConfig {
        mode,
        interval: Duration::from_secs(1),
        ..FollowConfig::default()
    }
}

/// Starts a follower inside a namespace.
pub fn follow(netns: &Netns, config: FollowConfig) -> Result<Follower> {
    netns.run(|| Ok(Follower::start(config)?))
}

/// Waits until `is` holds.
pub fn wait(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is()? {
        if Instant::now() > deadline {
            bail!("{what}: not within ten seconds");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Protocol, and the tuple before and after NAT. Of ICMP without identifiers, which `conntrack -L` shows otherwise.
pub type Row = (String, [SocketAddr; 4]);

/// The translated connections that the kernel has.
pub fn truth(netns: &Netns) -> Result<BTreeSet<Row>> {
    let entries = counters::conntrack(netns)?.into_iter();
    let translated = entries.filter(|e| e.is_snat() || e.is_dnat());
    Ok(translated
        .map(|e| {
            let (o, r) = (e.original, e.reply);
            let ends = [
                (o.source, o.source_port),
                (o.destination, o.destination_port),
                (r.destination, r.destination_port),
                (r.source, r.source_port),
            ];
            (e.protocol, ends.map(SocketAddr::from))
        })
        .collect())
}

/// The translated connections that a table mirrors.
pub fn mirrored(table: &Table) -> BTreeSet<Row> {
    let translated = table.entries().filter(|e| e.nat() != NatKind::None);
    translated.map(row).collect()
}

fn row(entry: &Entry) -> Row {
    let name = match entry.protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        ICMP => "icmp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    };
    let icmp = matches!(entry.protocol, ICMP | ICMPV6);
    let port = |port| if icmp { 0 } else { port };
    let ends = |t: &Tuple| {
        [(t.src, t.src_port), (t.dst, t.dst_port)]
            .map(|(a, p)| SocketAddr::new(IpAddr::from(a), port(p)))
    };
    let ([a, b], [c, d]) = (ends(&entry.original), ends(&entry.after));
    (name, [a, b, c, d])
}

/// Waits until a follower's table is the kernel's, and says of what it consists.
pub fn equal(netns: &Netns, follower: &Follower, what: &str) -> Result<BTreeSet<Row>> {
    let mut last = (BTreeSet::new(), BTreeSet::new());
    let found = wait(what, || {
        last = (truth(netns)?, follower.with_table(mirrored));
        Ok(last.0 == last.1)
    });
    if let Err(error) = found {
        let (truth, mirrored) = &last;
        bail!(
            "{error}: {:?}; only the kernel has {:?}; only the mirror has {:?}",
            follower.status(),
            truth.difference(mirrored).collect::<Vec<_>>(),
            mirrored.difference(truth).collect::<Vec<_>>()
        );
    }
    Ok(last.0)
}

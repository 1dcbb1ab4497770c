//! *Truth*: what the kernel itself counted on the node under test, by other means than the agent's.

use anyhow::{Context as _, Result};
use xtask::testbed::{Family, Netns, Testbed, counters};

/// Bytes of the Ethernet header, which interfaces count and IP does not.
const ETHERNET: u64 = 14;

/// Counters of one moment, or the difference of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// IP packets that came in through a pod's interface or the uplink, or that the node itself sent.
    pub packets: u64,
    /// Their IP length.
    pub bytes: u64,
    /// Of these, what came in.
    pub entered: u64,
    /// ICMPv6 redirects among those that the node itself sent.
    pub redirects: u64,
    /// What was delivered to the node itself.
    pub delivered: u64,
    /// TCP segments that any host sent again. The node's own loopback is among it: scrapes have to wait.
    pub retransmits: u64,
}

/// Makes the node count what it sends and gets itself, and keeps TCP from probing for loss where there is none but
/// the machine is busy. To be called once per testbed, when its pods are there.
pub fn count_own(bed: &Testbed) -> Result<()> {
    every_host(bed, |netns| netns.sysctl("net.ipv4.tcp_early_retrans", "0"))?;
    let rules = "*filter\n\
        -I INPUT 1 ! -i lo -m comment --comment delivered\n\
        -I OUTPUT 1 ! -o lo -m comment --comment originated\n\
        COMMIT\n";
    for family in bed.families() {
        bed.node().restore(family, rules)?;
        if family == Family::V6 {
            let rule = "*filter\n\
                -I OUTPUT 1 -p icmpv6 --icmpv6-type redirect -m comment --comment redirects\n\
                COMMIT\n";
            bed.node().restore(family, rule)?;
        }
    }
    Ok(())
}

impl Truth {
    /// The counters now. Neighbours must be pinned, so that nothing but IP moves.
    pub fn now(bed: &Testbed) -> Result<Self> {
        let node = bed.node();
        let mut truth = Self::default();
        let links = counters::links(node.netns())?;
        let pods = node.pods();
        let watched = pods.iter().map(|p| p.veth()).chain(["eth0"]);
        for name in watched {
            let link = links.iter().find(|l| l.name == name).context("a link")?;
            truth.entered += link.rx_packets;
            truth.bytes += link.rx_bytes - ETHERNET * link.rx_packets;
        }
        truth.packets = truth.entered;
        for family in bed.families() {
            for rule in node.rules(family)? {
                match rule.comment() {
                    Some("originated") => {
                        truth.packets += rule.packets;
                        truth.bytes += rule.bytes;
                    }
                    Some("redirects") => truth.redirects += rule.packets,
                    Some("delivered") => truth.delivered += rule.packets,
                    _ => {}
                }
            }
        }
        every_host(bed, |netns| {
            truth.retransmits += retransmits(netns)?;
            Ok(())
        })?;
        Ok(truth)
    }

    /// What happened since an earlier moment.
    pub fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            entered: self.entered - before.entered,
            redirects: self.redirects - before.redirects,
            delivered: self.delivered - before.delivered,
            retransmits: self.retransmits - before.retransmits,
        }
    }
}

/// Every namespace that makes traffic.
fn every_host(bed: &Testbed, mut work: impl FnMut(&Netns) -> Result<()>) -> Result<()> {
    for netns in [bed.outside(), bed.vm()] {
        work(netns)?;
    }
    for node in [bed.node(), bed.node2()] {
        work(node.netns())?;
        for pod in node.pods() {
            work(pod.netns())?;
        }
    }
    Ok(())
}

/// `RetransSegs` of a namespace.
fn retransmits(netns: &Netns) -> Result<u64> {
    let text = netns.read("/proc/net/snmp")?;
    let mut tcp = text.lines().filter_map(|l| l.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().context("names")?, tcp.next().context("values")?);
    let (_, value) = names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "RetransSegs")
        .context("no RetransSegs")?;
    Ok(value.parse()?)
}

/// A service's address family by the testbed's builder methods.
pub fn of_family(service: xtask::testbed::Service, family: Family) -> xtask::testbed::Service {
    match family {
        Family::V4 => service,
        Family::V6 => service.v6(),
    }
}

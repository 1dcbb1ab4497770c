//! The datapath attached to an emulated node, and what its maps say.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aksnet_agent::{
    bpf::{Attacher, LoadOptions, MapSource, datapath::Datapath as _, kernel::Kernel, load},
    collect::source::{Source as _, Totals},
    node::interface::Interface,
};
use aksnet_common::{
    cell,
    drops::{DropKey, DropStats},
    flow::{ColdCell, FlowKey, HotCell, ORIGIN_ENTER, ORIGIN_NODE},
    packet::Link,
    passage::Tuple,
    stats::{Event, Role},
};
use anyhow::{Context as _, Result};
use xtask::testbed::{
    Family, Pod, Testbed,
    counters::{ConntrackEntry, Direction, LinkCounters},
};

/// Two cores: one testbed at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The right to use the machine, or `None` where these tests cannot run, having said why.
pub fn turn() -> Option<MutexGuard<'static, ()>> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces and BPF programs need root");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Every packet timed, so that every EXIT is counted.
pub fn every_packet() -> LoadOptions {
    LoadOptions {
        sample: 1,
        ..LoadOptions::default()
    }
}

/// The node's own address.
pub fn node_ip(bed: &Testbed, family: Family) -> Result<IpAddr> {
    let address = bed.node().address().of(family);
    address.context("the node has no address of this family")
}

/// The programs, watching an emulated node.
pub struct Watch {
    pub attacher: Attacher,
    pub source: MapSource,
    pub kernel: Kernel,
    drops: Vec<(DropKey, DropStats)>,
    spilled: Vec<(FlowKey, aksnet_common::flow::SpillStats)>,
}

impl Watch {
    /// Loads the programs and attaches them to all pods and the uplink of the node under test.
    pub fn start(bed: &Testbed, options: &LoadOptions) -> Result<Self> {
        let netns = u32::try_from(bed.node().netns().inode()?)?;
        let datapath = load(&LoadOptions {
            netns: Some(netns),
            ..options.clone()
        })?;
        let mut watch = Self {
            attacher: datapath.attacher,
            source: datapath.source,
            kernel: datapath.kernel,
            drops: Vec::new(),
            spilled: Vec::new(),
        };
        watch.attacher.attach_drops();
        watch.attach(bed, "eth0", Role::Uplink)?;
        for pod in bed.node().pods() {
            watch.attach_pod(bed, &pod)?;
        }
        Ok(watch)
    }

    pub fn attach_pod(&mut self, bed: &Testbed, pod: &Pod) -> Result<()> {
        self.attach(bed, pod.veth(), Role::Pod)
    }

    pub fn attach(&mut self, bed: &Testbed, name: &str, role: Role) -> Result<()> {
        let bridge = bed.node().link("cbr0").ok().filter(|_| role == Role::Pod);
        let target = Interface {
            index: bed.node().link(name)?.index,
            name: name.to_owned(),
            role,
            link: Link::Ethernet,
            bridge: bridge.map(|b| b.index),
        };
        let attacher = &mut self.attacher;
        bed.node()
            .netns()
            .run(move || attacher.attach(&target).context(target.name.clone()))
    }

    /// All live cells.
    pub fn flows(&self) -> Vec<(HotCell, ColdCell)> {
        (0..self.source.cells())
            .filter(|&c| self.source.state(c) & cell::PHASE == cell::LIVE)
            .map(|c| (self.source.hot(c), self.source.cold(c)))
            .collect()
    }

    /// The one flow that entered with this tuple.
    pub fn flow(&self, tuple: &Tuple, protocol: u8) -> Result<(HotCell, ColdCell)> {
        let found: Vec<_> = self
            .flows()
            .into_iter()
            .filter(|(hot, _)| {
                hot.key.tuple() == *tuple
                    && hot.key.protocol == protocol
                    && hot.key.origin == ORIGIN_ENTER
            })
            .collect();
        anyhow::ensure!(found.len() == 1, "{} flows for {tuple:?}", found.len());
        Ok(found[0])
    }

    pub fn totals(&self) -> Totals {
        self.source.totals().expect("the maps can be read")
    }

    pub fn event(&self, event: Event) -> u64 {
        self.totals().events[event as usize]
    }

    /// All drops so far.
    pub fn drops(&mut self) -> Result<&[(DropKey, DropStats)]> {
        self.drops.extend(self.source.take_drops()?);
        Ok(&self.drops)
    }

    /// All that spilled so far.
    pub fn spilled(&mut self) -> Result<&[(FlowKey, aksnet_common::flow::SpillStats)]> {
        self.spilled.extend(self.source.take_spill()?);
        Ok(&self.spilled)
    }

    /// Packets of drops with this reason.
    pub fn dropped_for(&mut self, reason: &str) -> Result<u64> {
        let number = self
            .kernel
            .reason_number(reason)
            .with_context(|| format!("no reason {reason}"))?;
        Ok(self
            .drops()?
            .iter()
            .filter(|(key, _)| key.reason == number)
            .map(|(_, stats)| stats.skbs)
            .sum())
    }

    /// Packets and bytes (IP length, super-packets as the kernel handled them) counted on an interface.
    pub fn counted(&mut self, ifindex: u32, origin: u8) -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for (hot, _) in self.flows() {
            if hot.key.ifindex == ifindex && hot.key.origin == origin {
                sum = (sum.0 + hot.skbs, sum.1 + hot.bytes);
            }
        }
        for (key, stats) in self.spilled()? {
            if key.ifindex == ifindex && key.origin == origin {
                sum = (sum.0 + stats.skbs, sum.1 + stats.bytes);
            }
        }
        Ok(sum)
    }
}

/// Interface counters of a node at one moment.
pub struct Links(Vec<LinkCounters>);

impl Links {
    pub fn of(bed: &Testbed) -> Result<Self> {
        Ok(Self(xtask::testbed::counters::links(bed.node().netns())?))
    }

    pub fn named(&self, name: &str) -> &LinkCounters {
        self.0
            .iter()
            .find(|l| l.name == name)
            .expect("the interface exists")
    }
}

/// The node's own packets on an interface.
pub const NODE: u8 = ORIGIN_NODE;
/// What came in through an interface.
pub const ENTERED: u8 = ORIGIN_ENTER;

fn tuple(src: IpAddr, src_port: u16, dst: IpAddr, dst_port: u16) -> Tuple {
    Tuple {
        src: src.into(),
        dst: dst.into(),
        src_port,
        dst_port,
    }
}

/// The tuple that a conntrack direction describes.
pub fn of_direction(d: &Direction) -> Tuple {
    tuple(d.source, d.source_port, d.destination, d.destination_port)
}

/// The tuple of the packet that answers a conntrack direction.
pub fn answering(d: &Direction) -> Tuple {
    tuple(d.destination, d.destination_port, d.source, d.source_port)
}

/// Protocol number of a conntrack entry.
pub fn protocol(entry: &ConntrackEntry) -> u8 {
    match entry.protocol.as_str() {
        "tcp" => 6,
        "udp" => 17,
        other => panic!("protocol {other}"),
    }
}

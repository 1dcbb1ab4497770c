//! Two routes through one node, alike in everything, of which one is watched:
//!
//! ```text
//!   pod-a ──veth-a──┐      ┌──veth-b── pod-b      under test
//!                   ├ node ┤
//!   pod-c ──veth-c──┘      └──veth-d── pod-d      control
//! ```
//!
//! The node only routes (the shape of Azure CNI): no iptables rule, no conntrack. That is the cheapest way through a
//! node there is, so shares of it are upper bounds, and differences in nanoseconds are what carries over.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context as _, Result};
use xtask::testbed::{
    Netns, fabric,
    frame::{Mac, parse_mac},
    record::Record,
    traffic::Flood,
};

/// The pods' default gateway, as Azure CNI's.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A pod with its host veth.
pub struct Pod {
    pub netns: Netns,
    pub veth: String,
    pub address: Ipv4Addr,
    stations: [Mac; 2],
}

/// From one pod to another.
pub struct Route {
    pub from: Pod,
    pub to: Pod,
}

/// The node and its routes.
pub struct Bed {
    pub node: Netns,
    pub hooked: Route,
    pub control: Route,
}

impl Bed {
    pub fn build() -> Result<Self> {
        let record = Arc::new(Record::create()?);
        let node = Netns::create(&record, "node")?;
        fabric::prepare(&node, false)?;
        fabric::forward(&node, false)?;
        let pod = |name: &str, number: u8| Pod::create(&record, &node, name, number);
        Ok(Self {
            hooked: Route {
                from: pod("a", 1)?,
                to: pod("b", 2)?,
            },
            control: Route {
                from: pod("c", 3)?,
                to: pod("d", 4)?,
            },
            node,
        })
    }
}

impl Pod {
    fn create(record: &Arc<Record>, node: &Netns, name: &str, number: u8) -> Result<Self> {
        let netns = Netns::create(record, &format!("pod-{name}"))?;
        fabric::prepare(&netns, false)?;
        // The client's closed connections are forgotten at once: the benchmark makes more than there are ports.
        netns.sysctl("net.ipv4.tcp_max_tw_buckets", "64")?;
        let veth = format!("veth-{name}");
        let address = Ipv4Addr::new(10, 240, 0, number);
        let [inner, outer] = [
            format!("02:00:00:00:01:{number:02x}"),
            format!("02:00:00:00:02:{number:02x}"),
        ];
        // Neighbours are permanent, so that no ARP comes between.
        node.ip([
            format!(
                "link add {veth} type veth peer name eth0 netns {}",
                netns.name()
            ),
            format!("link set {veth} address {outer} up"),
            format!("route add {address}/32 dev {veth}"),
            format!("neigh add {address} lladdr {inner} dev {veth} nud permanent"),
        ])?;
        netns.ip([
            format!("link set eth0 address {inner} up"),
            format!("addr add {address}/32 dev eth0"),
            format!("route add {GATEWAY} dev eth0 scope link"),
            format!("route add default via {GATEWAY} dev eth0"),
            format!("neigh add {GATEWAY} lladdr {outer} dev eth0 nud permanent"),
        ])?;
        let station = |text: &str| parse_mac(text).context("a hardware address");
        Ok(Self {
            netns,
            veth,
            address,
            stations: [station(&inner)?, station(&outer)?],
        })
    }
}

impl Route {
    /// A flood from one end to the other.
    pub fn flood(&self) -> Result<Flood> {
        Flood::open(
            &self.from.netns,
            "eth0",
            self.from.stations,
            [self.from.address, self.to.address],
            9,
        )
    }

    /// Frames that have arrived at the far end.
    pub fn arrived(&self) -> Result<u64> {
        Ok(xtask::testbed::counters::link(&self.to.netns, "eth0")?.rx_packets)
    }
}

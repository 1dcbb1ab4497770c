//! A *mishap* is one way in which a node loses packets that is no network policy: produced for real, of known count,
//! with what the kernel itself says of it, and undone afterwards.
//!
//! Each mishap says which packets are lost, from where to where; where there is one, a counter that has nothing to do
//! with how drops are watched says how many they were.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use ipnet::IpNet;

use super::bed::Testbed;
use super::frame::Packet;
use super::netns::Netns;
use super::plan::Family;
use super::pod::Pod;
use super::service::Transport;
use super::snmp::Counters;
use super::traffic::send_packets;

// Rules that drop.
mod netfilter;

// Connection tracking.
mod tracking;

// No way on.
mod routing;

// A way on, and nobody there.
mod delivery;

// What becomes of connections that nobody here drops.
pub mod handshake;

/// The source port of what pods send here.
const CLIENT_PORT: u16 = 40_000;

/// A number for packets that are to be told from those of other mishaps by more than where they go, as packets of
/// different programs are: no two have the same sequence number or content.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0x0102_0304);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

const BOTH: &[Family] = &[Family::V4, Family::V6];
const ONLY_V4: &[Family] = &[Family::V4];

/// What was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// How many packets.
    pub packets: u64,
    /// The protocol.
    pub transport: Transport,
    /// From where. A port of 0 is any.
    pub source: SocketAddr,
    /// Where to, as it stood in the packet when it came to the node.
    pub destination: SocketAddr,
    /// The interface of the node that they came in by.
    pub interface: String,
    /// The same by an independent counter of the kernel's: its name, and by how much it has risen.
    pub counted: Option<(&'static str, u64)>,
}

/// Plays a mishap in a family with so many packets.
type Play = fn(&Testbed, Family, u16) -> Result<Loss>;

/// One way to lose packets.
#[derive(Clone, Copy)]
pub struct Mishap {
    /// What it is, in words.
    pub name: &'static str,
    /// The agent's label `cause`.
    pub cause: &'static str,
    families: &'static [Family],
    possible: fn(&Testbed) -> bool,
    play: Play,
}

impl fmt::Debug for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Mishap {
    const fn new(
        name: &'static str,
        cause: &'static str,
        families: &'static [Family],
        play: Play,
    ) -> Self {
        Self {
            name,
            cause,
            families,
            possible: |_| true,
            play,
        }
    }

    const fn only_if(mut self, possible: fn(&Testbed) -> bool) -> Self {
        self.possible = possible;
        self
    }

    /// Whether it can happen on this testbed in this family.
    #[must_use]
    pub fn is_possible(&self, bed: &Testbed, family: Family) -> bool {
        self.families.contains(&family) && bed.families().contains(&family) && (self.possible)(bed)
    }

    /// Makes it happen to so many packets (some need others that get through besides; of some a few more are sent),
    /// and puts everything back. The testbed must have two pods and nothing else going on.
    ///
    /// # Errors
    /// When it cannot be brought about, or put back.
    pub fn play(&self, bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
        (self.play)(bed, family, packets).with_context(|| format!("{} ({family:?})", self.name))
    }
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Mishap> {
    [
        netfilter::MISHAPS,
        tracking::MISHAPS,
        routing::MISHAPS,
        delivery::MISHAPS,
    ]
    .concat()
}

/// The mishap of this name.
#[must_use]
pub fn named(name: &str) -> Option<Mishap> {
    all().into_iter().find(|mishap| mishap.name == name)
}

/// Who loses packets, and what they are.
struct Sender<'a> {
    bed: &'a Testbed,
    family: Family,
    pod: Arc<Pod>,
}

impl<'a> Sender<'a> {
    /// The first pod of the node under test.
    fn new(bed: &'a Testbed, family: Family) -> Self {
        Self {
            bed,
            family,
            pod: bed.pod(0),
        }
    }

    fn source(&self) -> SocketAddr {
        SocketAddr::new(self.pod.ip_of(self.family), CLIENT_PORT)
    }

    /// The interface of the node that the pod's packets come in by, as its IP layer sees it.
    fn interface(&self) -> Result<String> {
        let links = super::counters::links(self.bed.node().netns())?;
        Ok(if links.iter().any(|link| link.name == "cbr0") {
            "cbr0".to_owned()
        } else {
            self.pod.veth().to_owned()
        })
    }

    fn node(&self) -> &'a Netns {
        self.bed.node().netns()
    }

    /// Sends so many of a packet to its loss, and takes two readings of a counter.
    fn lose(
        &self,
        (transport, destination): (Transport, SocketAddr),
        packet: &Packet,
        packets: u16,
        counter: &'static str,
        read: impl Fn() -> Result<u64>,
    ) -> Result<Loss> {
        let before = read()?;
        send_packets(self.pod.netns(), packet, packets)?;
        self.bed.settle()?;
        Ok(Loss {
            packets: packets.into(),
            transport,
            source: self.source(),
            destination,
            interface: self.interface()?,
            counted: Some((counter, read()?.saturating_sub(before))),
        })
    }

    /// Sends so many connection attempts over TCP to their loss.
    fn lose_syns(
        &self,
        to: SocketAddr,
        packets: u16,
        counter: &'static str,
        read: impl Fn() -> Result<u64>,
    ) -> Result<Loss> {
        let syn = Packet::tcp(self.source(), to, super::frame::SYN, number());
        self.lose((Transport::Tcp, to), &syn, packets, counter, read)
    }

    /// Sends so many datagrams to their loss.
    fn lose_datagrams(
        &self,
        to: SocketAddr,
        packets: u16,
        counter: &'static str,
        read: impl Fn() -> Result<u64>,
    ) -> Result<Loss> {
        let datagram = Packet::udp(self.source(), to, &number().to_be_bytes());
        self.lose((Transport::Udp, to), &datagram, packets, counter, read)
    }

    /// The node's own count of packets that went no further.
    fn vanished(&self) -> Result<u64> {
        Ok(Counters::of(self.node())?.vanished(self.family))
    }

    /// A protocol counter of the node.
    fn counter(&self, v4: &str, v6: &str) -> Result<u64> {
        let counters = Counters::of(self.node())?;
        Ok(counters.get(match self.family {
            Family::V4 => v4,
            Family::V6 => v6,
        }))
    }

    /// The node's count of ICMP errors sent.
    fn unreachable_sent(&self) -> Result<u64> {
        Ok(Counters::of(self.node())?.unreachable_sent(self.family))
    }

    /// Has the node send an ICMP error for every packet while this goes on.
    fn with_every_error<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let key = match self.family {
            Family::V4 => "net.ipv4.icmp_ratelimit",
            Family::V6 => "net.ipv6.icmp.ratelimit",
        };
        with(
            || self.node().sysctl(key, "0"),
            act,
            || self.node().sysctl(key, "1000"),
        )
    }

    /// Lets a rule stand at the head of a chain while this goes on.
    fn with_rule<T>(
        &self,
        [table, chain, rule]: [&str; 3],
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let node = self.bed.node();
        let write = |verb: &str| {
            node.restore(
                self.family,
                &format!("*{table}\n-{verb} {chain} {rule}\nCOMMIT\n"),
            )
        };
        with(|| write("I"), act, || write("D"))
    }

    /// Lets the node have a route while this goes on.
    fn with_route<T>(&self, route: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let change = |verb: &str| self.node().ip([format!("route {verb} {route}")]);
        with(|| change("add"), act, || change("del"))
    }

    /// The internet host.
    fn outside(&self, port: u16) -> Result<SocketAddr> {
        let ip = self.bed.plan().outside.of(self.family);
        Ok(SocketAddr::new(
            ip.context("the family is the cluster's")?,
            port,
        ))
    }

    /// A range that nobody has, one for each mishap that needs one, and an address in it.
    fn nowhere(&self, n: u8) -> Result<(IpNet, SocketAddr)> {
        let (range, ip) = match self.family {
            // Benchmarks' range (RFC 2544), and documentation's.
            Family::V4 => (format!("198.18.{n}.0/24"), format!("198.18.{n}.7")),
            Family::V6 => (
                format!("2001:db8:bad:{n}::/64"),
                format!("2001:db8:bad:{n}::7"),
            ),
        };
        Ok((range.parse()?, SocketAddr::new(ip.parse::<IpAddr>()?, 9000)))
    }
}

/// Changes something for as long as this goes on; also when it fails.
fn with<T>(
    change: impl FnOnce() -> Result<()>,
    act: impl FnOnce() -> Result<T>,
    back: impl FnOnce() -> Result<()>,
) -> Result<T> {
    change()?;
    let done = act();
    let back = back().context("cannot be put back");
    let done = done?;
    back?;
    Ok(done)
}

//! A *scene* is one kind of traffic as a node sees it, with what the agent has to say of it: class, NAT and scope.
//!
//! The scenes are the rows of the truth table of a node's packet paths, in its order. The demo plays them for people;
//! tests play them and hold the agent, and the programs by themselves, to them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use super::netns::Netns;
use super::traffic::{Tcp, Udp, connect};

/// How long a client waits for an answer that never comes: less than until the first segment is sent again.
const UNANSWERED: Duration = Duration::from_millis(20);

/// Where the node's own hooks see a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It crosses the node: in by one interface, out by another.
    Crossing,
    /// It ends at the node itself.
    Ending,
    /// The node itself opens it: what was dialled is gone when its packets leave.
    Starting,
    /// It ends at the node itself, past connection tracking.
    Untracked,
    /// Nothing of it leaves the node: a rule drops it.
    Dropped,
}

/// Makes so many connections of so many bytes.
type Play<'a> = Box<dyn Fn(u32, usize) -> Result<()> + Send + Sync + 'a>;

/// One kind of traffic.
pub struct Scene<'a> {
    /// What it is, in words.
    pub name: &'static str,
    /// Who connects.
    pub from: String,
    /// What it dials.
    pub to: String,
    /// The agent's label `class`.
    pub class: &'static str,
    /// The agent's label `nat`.
    pub nat: &'static str,
    /// The agent's label `scope`.
    pub scope: &'static str,
    /// The agent's label `protocol`.
    pub protocol: &'static str,
    /// Where the node's hooks see it.
    pub seen: Seen,
    pub(super) play: Play<'a>,
}

impl fmt::Debug for Scene<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Scene<'_> {
    /// Plays it: so many connections, so many bytes each way in each (one datagram, with UDP).
    ///
    /// # Errors
    /// When one fails.
    pub fn play(&self, connections: u32, bytes: usize) -> Result<()> {
        (self.play)(connections, bytes)
    }

    pub(super) fn seen(self, seen: Seen) -> Self {
        Self { seen, ..self }
    }
}

/// Who connects: by name, in which namespace, from which address if not from any.
pub(super) struct Client<'a> {
    name: &'static str,
    netns: &'a Netns,
    source: Option<IpAddr>,
}

impl<'a> Client<'a> {
    /// From whichever address its host takes.
    pub(super) fn of(name: &'static str, netns: &'a Netns) -> Self {
        Self {
            name,
            netns,
            source: None,
        }
    }

    /// From this address of its host.
    pub(super) fn at(name: &'static str, netns: &'a Netns, ip: impl Into<IpAddr>) -> Self {
        Self {
            source: Some(ip.into()),
            ..Self::of(name, netns)
        }
    }
}

fn scene<'a>(
    name: &'static str,
    from: &Client<'_>,
    to: impl Into<SocketAddr>,
    [class, nat, scope]: [&'static str; 3],
    play: impl Fn(SocketAddr, u32, usize) -> Result<()> + Send + Sync + 'a,
) -> Scene<'a> {
    let to = to.into();
    Scene {
        name,
        from: from.name.to_owned(),
        to: to.to_string(),
        class,
        nat,
        scope,
        protocol: "tcp",
        seen: Seen::Crossing,
        play: Box::new(move |connections, bytes| play(to, connections, bytes)),
    }
}

/// Over TCP, to a server that echoes.
pub(super) fn tcp<'a>(
    name: &'static str,
    client: &Client<'a>,
    to: impl Into<SocketAddr>,
    labels: [&'static str; 3],
) -> Scene<'a> {
    let (netns, source) = (client.netns, client.source);
    scene(name, client, to, labels, move |to, connections, bytes| {
        let mut tcp = Tcp::to(to).connections(connections).bytes(bytes);
        if let Some(ip) = source {
            tcp = tcp.from(ip, 0);
        }
        tcp.run(netns).map(drop)
    })
}

/// Over UDP, a datagram and its echo each.
pub(super) fn udp<'a>(
    name: &'static str,
    client: &Client<'a>,
    to: impl Into<SocketAddr>,
    labels: [&'static str; 3],
) -> Scene<'a> {
    let netns = client.netns;
    let mut scene = scene(name, client, to, labels, move |to, connections, _| {
        // A socket of its own for each: a connection is what has ports of its own.
        (0..connections).try_for_each(|_| Udp::to(to).datagrams(1).run(netns).map(drop))
    });
    scene.protocol = "udp";
    scene
}

/// Attempts that nothing answers.
pub(super) fn attempts<'a>(
    name: &'static str,
    client: &Client<'a>,
    to: impl Into<SocketAddr>,
    labels: [&'static str; 3],
) -> Scene<'a> {
    let netns = client.netns;
    scene(name, client, to, labels, move |to, connections, _| {
        (0..connections).try_for_each(|_| connect(netns, to, UNANSWERED).map(drop))
    })
    .seen(Seen::Dropped)
}

//! *Handshakes* that come to nothing although the node drops nothing, and one that succeeds: attempts of known count and
//! outcome, from pods to the internet, between pods, and by the load balancer's probes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::with;
use crate::testbed::bed::Testbed;
use crate::testbed::iptables::{self, Backend};
use crate::testbed::netns::Netns;
use crate::testbed::plan::{Family, Flavour, WIRESERVER};
use crate::testbed::service::Service;
use crate::testbed::traffic::{Connect, TcpServer, connect, connect_from};

/// How long a client waits: less than until its SYN is sent again, so that each attempt is one packet.
const SOON: Duration = Duration::from_millis(300);

/// What becomes of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The connection stands.
    Answered,
    /// A reset comes back from the far end.
    Refused,
    /// Nothing comes back.
    Unanswered,
}

impl Outcome {
    /// The end that has this outcome.
    const fn of(connect: Connect) -> Option<Self> {
        match connect {
            Connect::Connected => Some(Self::Answered),
            Connect::Refused => Some(Self::Refused),
            Connect::TimedOut => Some(Self::Unanswered),
            Connect::Unreachable => None,
        }
    }
}

/// Attempts that were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    /// How many, of one SYN each.
    pub made: u64,
    /// From where, in the packet as it comes to the node.
    pub client: IpAddr,
    /// The SYNs that came to where they end, by a rule's counter there, if nobody answers.
    pub arrived: Option<u64>,
}

/// A pod calls the internet. Where it is unanswered, the SYN leaves the node by its uplink, arrives, and is dropped
/// there in silence.
///
/// # Errors
/// When the far end cannot be set up, or behaves in another way.
pub fn to_outside(bed: &Testbed, family: Family, outcome: Outcome, count: u16) -> Result<Attempts> {
    let ip = bed.plan().outside.of(family);
    let server = SocketAddr::new(ip.context("the family is the cluster's")?, 4443);
    let pod = bed.pod(0);
    let client = Client {
        netns: pod.netns(),
        ip: pod.ip_of(family),
        bind: false,
    };
    attempts(
        bed,
        (bed.outside(), server),
        &client,
        server,
        outcome,
        count,
    )
}

/// A pod calls another pod of its node, whose address everything is delivered to, whatever it makes of that.
///
/// # Errors
/// When the pod cannot be set up, or behaves in another way.
pub fn to_pod(bed: &Testbed, family: Family, outcome: Outcome, count: u16) -> Result<Attempts> {
    let web = bed.pod(1);
    let server = SocketAddr::new(web.ip_of(family), 4443);
    let pod = bed.pod(0);
    let client = Client {
        netns: pod.netns(),
        ip: pod.ip_of(family),
        bind: false,
    };
    attempts(bed, (web.netns(), server), &client, server, outcome, count)
}

/// Azure's load balancer probes a service at its port of the node; the service's endpoint is the node's second pod.
/// IPv4 only, as probes are.
///
/// # Errors
/// When there is no Azure around the node, the service cannot be set up, or behaves in another way.
pub fn probes(bed: &Testbed, outcome: Outcome, node_port: u16, count: u16) -> Result<Attempts> {
    ensure!(
        bed.plan().flavour != Flavour::Kind,
        "a kind node has no Azure load balancer: use another flavour"
    );
    let web = bed.pod(1);
    let endpoint = SocketAddr::new(web.ip(), 4443);
    let service = Service::node_port("shop", "probed", 80, node_port).endpoints([endpoint]);
    bed.add_service(service)?;
    let client = Client {
        netns: bed.azure(),
        ip: WIRESERVER.into(),
        bind: true,
    };
    let dialled = SocketAddr::new(bed.node().ip(), node_port);
    with(
        || Ok(()),
        || {
            attempts(
                bed,
                (web.netns(), endpoint),
                &client,
                dialled,
                outcome,
                count,
            )
        },
        || bed.remove_service("shop", "probed"),
    )
}

struct Client<'a> {
    netns: &'a Netns,
    ip: IpAddr,
    /// Whether its host has other addresses that it could take.
    bind: bool,
}

fn attempts(
    bed: &Testbed,
    (host, at): (&Netns, SocketAddr),
    client: &Client<'_>,
    dialled: SocketAddr,
    outcome: Outcome,
    count: u16,
) -> Result<Attempts> {
    let make = || -> Result<()> {
        for attempt in 0..count {
            let made = if client.bind {
                connect_from(client.netns, client.ip, dialled, SOON)?
            } else {
                connect(client.netns, dialled, SOON)?
            };
            ensure!(
                Outcome::of(made) == Some(outcome),
                "attempt {attempt} to {dialled} was to be {outcome:?} and is {made:?}"
            );
        }
        bed.settle()
    };
    let mut arrived = None;
    match outcome {
        Outcome::Refused => make()?,
        Outcome::Answered => {
            let server = TcpServer::echo(host, at)?;
            make()?;
            server.settle()?;
        }
        Outcome::Unanswered => arrived = Some(in_silence(host, at, make)?),
    }
    Ok(Attempts {
        made: count.into(),
        client: client.ip,
        arrived,
    })
}

/// Lets a host drop what comes to one of its ports while this goes on, and says how much it was.
fn in_silence(host: &Netns, at: SocketAddr, act: impl FnOnce() -> Result<()>) -> Result<u64> {
    const COMMENT: &str = "silent";
    let family = Family::of(at.ip());
    let write = |verb: &str| {
        let rule = format!(
            "*filter\n-{verb} INPUT -d {} -p tcp -m tcp --dport {} -m comment --comment {COMMENT} -j DROP\nCOMMIT\n",
            at.ip(),
            at.port()
        );
        iptables::restore(host, Backend::Nft, family, &rule)
    };
    with(
        || write("I"),
        || {
            act()?;
            let rules = iptables::rules(host, Backend::Nft, family)?;
            let rule = rules.iter().find(|rule| rule.comment() == Some(COMMENT));
            Ok(rule.context("the rule is there")?.packets)
        },
        || write("D"),
    )
}

//! *Enforcement* is what a policy engine does on a node once there are policies: the packets that they deny are lost.
//!
//! An [`Isolation`] says what is to be enforced and knows no engine. Each engine renders all of them in its own way,
//! as a pure function: [`npm`] and [`calico`] as ipsets and iptables rules, [`queue`] as an nftables table that hands
//! packets to a [`verdict`] program. [`apply`] brings that to a node, and reads back how much was denied.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::{Addresses, Family};
use super::pod::Pod;
use super::service::Transport;

// What each engine writes.
pub mod npm;

pub mod calico;

pub mod queue;

// Who answers the queue.
pub mod flow;

pub mod nfqueue;

pub mod verdict;

// From text to a node.
pub mod apply;

pub use apply::Engaged;

/// Which traffic of a pod a policy judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What an engine does with what no policy allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DenyAction {
    /// Drop it.
    #[default]
    Drop,
    /// Drop it and answer with an ICMP error, as Calico with `filterDenyAction: Reject`.
    Reject,
}

/// A pod as an engine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Its addresses.
    pub address: Addresses,
    /// The node's end of its veth.
    pub veth: String,
    /// Its namespace.
    pub namespace: String,
}

impl From<&Pod> for Selected {
    fn from(pod: &Pod) -> Self {
        Self {
            address: pod.address(),
            veth: pod.veth().to_owned(),
            namespace: pod.namespace().to_owned(),
        }
    }
}

/// Ports of one protocol, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The protocol.
    pub transport: Transport,
    /// The lowest.
    pub from: u16,
    /// The highest.
    pub to: u16,
}

/// What an isolated pod may do nevertheless.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow {
    /// With whom; none at all means with everybody.
    pub peers: Vec<IpNet>,
    /// At which ports of the destination; none at all means every protocol and port.
    pub ports: Vec<Ports>,
}

impl Allow {
    /// With everybody, at every port.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Also with this address.
    #[must_use]
    pub fn peer(mut self, ip: impl Into<IpAddr>) -> Self {
        self.peers.push(ip.into().into());
        self
    }

    /// Also with this range.
    #[must_use]
    pub fn range(mut self, range: IpNet) -> Self {
        self.peers.push(range);
        self
    }

    /// Also with this pod, in all its families.
    #[must_use]
    pub fn pod(mut self, pod: &Pod) -> Self {
        self.peers.extend(pod.address().iter().map(IpNet::from));
        self
    }

    /// Also at this TCP port.
    #[must_use]
    pub fn tcp(self, port: u16) -> Self {
        self.ports(Transport::Tcp, port, port)
    }

    /// Also at this UDP port.
    #[must_use]
    pub fn udp(self, port: u16) -> Self {
        self.ports(Transport::Udp, port, port)
    }

    /// Also at these ports.
    #[must_use]
    pub fn ports(mut self, transport: Transport, from: u16, to: u16) -> Self {
        self.ports.push(Ports {
            transport,
            from,
            to,
        });
        self
    }

    /// Its peers in a family; none when it has peers, but none in this family.
    fn peers_of(&self, family: Family) -> Option<Vec<IpNet>> {
        let peers: Vec<IpNet> = self
            .peers
            .iter()
            .copied()
            .filter(|peer| Family::of(peer.network()) == family)
            .collect();
        (self.peers.is_empty() || !peers.is_empty()).then_some(peers)
    }
}

/// One side of one policy, for the pods that it selects. Several that select a pod on one side allow it together what
/// any of them allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// The policy's namespace.
    pub namespace: String,
    /// The policy's name.
    pub policy: String,
    /// What it judges.
    pub side: Side,
    /// The pods it selects.
    pub pods: Vec<Selected>,
    /// What it allows.
    pub allow: Vec<Allow>,
}

impl Isolation {
    /// A policy that selects no pod yet and allows nothing.
    #[must_use]
    pub fn new(namespace: &str, policy: &str, side: Side) -> Self {
        Self {
            namespace: namespace.to_owned(),
            policy: policy.to_owned(),
            side,
            pods: Vec::new(),
            allow: Vec::new(),
        }
    }

    /// Selects this pod too.
    #[must_use]
    pub fn select(mut self, pod: &Pod) -> Self {
        self.pods.push(pod.into());
        self
    }

    /// Allows this too.
    #[must_use]
    pub fn allow(mut self, allow: Allow) -> Self {
        self.allow.push(allow);
        self
    }

    /// `namespace/policy`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.policy)
    }

    /// The selected pods' addresses of a family.
    fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.pods
            .iter()
            .filter_map(move |pod| pod.address.of(family))
    }
}

/// A range as members of an ipset, which takes no range of everything.
fn members(range: IpNet) -> Vec<IpNet> {
    if range.prefix_len() > 0 {
        return vec![range];
    }
    range
        .subnets(1)
        .map_or_else(|_| vec![range], Iterator::collect)
}

/// `ipset restore` input for one set of ranges.
fn set(name: &str, family: Family, ranges: impl IntoIterator<Item = IpNet>) -> String {
    let inet = match family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    };
    let mut text = format!("create {name} hash:net family {inet} maxelem 1048576\nflush {name}\n");
    for member in ranges.into_iter().flat_map(members) {
        let _ = writeln!(text, "add {name} {member}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_takes_everything_in_two_halves() {
        let text = set("x", Family::V4, ["0.0.0.0/0".parse().unwrap()]);
        assert!(
            text.ends_with("add x 0.0.0.0/1\nadd x 128.0.0.0/1\n"),
            "{text}"
        );
        let text = set("x", Family::V6, ["::/0".parse().unwrap()]);
        assert!(text.contains("inet6") && text.ends_with("add x ::/1\nadd x 8000::/1\n"));
    }

    #[test]
    fn peers_of_another_family_are_not_everybody() {
        let allow = Allow::all().range("10.0.0.0/8".parse().unwrap());
        assert_eq!(allow.peers_of(Family::V6), None);
        assert_eq!(Allow::all().peers_of(Family::V6), Some(Vec::new()));
    }
}

//! The node's *DNS cache*: a process on the node that pods ask at a link-local address, past connection tracking.
//! AKS's is `LocalDNS` (`localdns.sh` in Azure's `AgentBaker`), upstream's is `NodeLocal DNSCache` (`node-cache`).
//!
//! Only the question is untracked on AKS: the rules match the destination, so the answer to a UDP question makes an
//! entry of its own, with the cache as its client.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use super::node::Node;
use super::plan::Family;
use super::traffic::{TcpServer, UdpServer};

/// Whose cache it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// AKS: 169.254.10.10 answers the node and pods with its DNS settings, 169.254.10.11 all other pods.
    LocalDns,
    /// Upstream: 169.254.20.10.
    NodeLocal,
}

impl Cache {
    /// Where it listens.
    #[must_use]
    pub fn addresses(self) -> &'static [Ipv4Addr] {
        const AKS: [Ipv4Addr; 2] = [
            Ipv4Addr::new(169, 254, 10, 10),
            Ipv4Addr::new(169, 254, 10, 11),
        ];
        const UPSTREAM: [Ipv4Addr; 1] = [Ipv4Addr::new(169, 254, 20, 10)];
        match self {
            Self::LocalDns => &AKS,
            Self::NodeLocal => &UPSTREAM,
        }
    }

    /// The dummy link that has these addresses.
    #[must_use]
    pub fn link(self) -> &'static str {
        match self {
            Self::LocalDns => "localdns",
            Self::NodeLocal => "nodelocaldns",
        }
    }

    /// The rules that keep its traffic from being tracked.
    fn rules(self) -> String {
        let comment = match self {
            Self::LocalDns => "localdns: skip conntrack",
            Self::NodeLocal => "NodeLocal DNS Cache: skip conntrack",
        };
        let mut text = "*raw\n".to_owned();
        let mut rule = |chain: &str, transport: &str, matches: &str| {
            let _ = writeln!(
                text,
                "-A {chain} -p {transport} -m comment --comment \"{comment}\" -m {transport} {matches} -j NOTRACK"
            );
        };
        for address in self.addresses() {
            for transport in ["tcp", "udp"] {
                for chain in ["OUTPUT", "PREROUTING"] {
                    rule(chain, transport, &format!("-d {address} --dport 53"));
                }
                if self == Self::NodeLocal {
                    rule("OUTPUT", transport, &format!("-s {address} --sport 53"));
                }
            }
        }
        text + "COMMIT\n"
    }
}

/// A running cache: it answers every datagram and every byte with the same.
#[derive(Debug)]
pub struct LocalDns {
    /// Its UDP sockets, in the order of [`Cache::addresses`].
    pub udp: Vec<UdpServer>,
    /// Its TCP sockets, in the same order.
    pub tcp: Vec<TcpServer>,
}

impl LocalDns {
    /// Installs it on a node and starts it. It stops when dropped; link and rules stay with the node.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub fn start(node: &Node, cache: Cache) -> Result<Self> {
        let link = cache.link();
        let add = |kind: &str| node.netns().ip([format!("link add {link} type {kind}")]);
        // Kernels that are built for virtual machines may lack dummies; a bridge without ports is as good a place
        // for addresses.
        add("dummy").or_else(|_| add("bridge"))?;
        let mut lines = vec![format!("link set {link} up")];
        let addresses = cache.addresses();
        lines.extend(
            addresses
                .iter()
                .map(|ip| format!("addr add {ip}/32 dev {link}")),
        );
        node.netns().ip(lines)?;
        node.restore(Family::V4, &cache.rules())?;
        let at = |ip: &Ipv4Addr| (IpAddr::from(*ip), 53);
        Ok(Self {
            udp: addresses
                .iter()
                .map(|ip| UdpServer::echo(node.netns(), at(ip)))
                .collect::<Result<_>>()?,
            tcp: addresses
                .iter()
                .map(|ip| TcpServer::echo(node.netns(), at(ip)))
                .collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aks_leaves_questions_untracked_and_upstream_answers_too() {
        let aks = Cache::LocalDns.rules();
        assert_eq!(aks.matches("NOTRACK").count(), 8);
        assert!(!aks.contains("--sport"));
        assert_eq!(Cache::NodeLocal.rules().matches("--sport 53").count(), 2);
    }
}

//! Attribution: from the evidence of a drop to its cause.
//!
//! [`cause`](super::cause::cause) reads the kernel's reason and place, and knows that netfilter dropped a packet. Why it
//! did is the question here. On a node netfilter drops for network policies, and for a dozen other things that look
//! the same: so a drop is a policy's only if it looks like a drop of the engine that the node has *and* the policies
//! deny the flow, or if the engine's own mark says so.

use aksnet_common::tracked::{DropState, Tracking};

use super::cause::{Cause, cause, is_forwarding, is_queue};
use crate::{
    plan::Place,
    policy::{engine::Engine, model::Side},
};

/// What the policies say of a flow in one direction, at the end that is a pod of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opinion {
    /// Nothing: no pod of this node at that end, or no policy isolates it.
    #[default]
    None,
    /// They allow it.
    Allows,
    /// They deny it.
    Denies,
    /// They isolate the pod, and whether a rule allows it depends on labels that are not known.
    Undetermined,
}

/// Netfilter marks of Azure NPM (`npm/util/const.go`).
pub mod npm {
    /// A policy isolates the destination, and no rule before has allowed the packet.
    pub const INGRESS_DROP: u32 = 0x400;
    /// A policy isolates the source, and no rule before has allowed the packet.
    pub const EGRESS_DROP: u32 = 0x800;
    /// An ingress rule has allowed the packet: only egress can drop it any more.
    pub const INGRESS_ALLOW: u32 = 0x200;
}

/// What is known of a dropped packet besides its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The kernel's reason, lower case.
    pub reason: &'a str,
    /// The kernel's function that dropped it; empty if it tells nothing.
    pub symbol: &'a str,
    /// `skb->mark`.
    pub mark: u32,
    /// Who enforces policies on the node; [`Engine::Kubernetes`] where that is not known.
    pub engine: Engine,
    /// What conntrack and routing had made of it.
    pub state: DropState,
    /// Whether its source had been translated: dropped behind POSTROUTING's NAT.
    pub source_translated: bool,
    /// Whether the node tracks connections at all.
    pub tracking: bool,
    /// Whether the conntrack table is full; `None`: not known.
    pub table_full: Option<bool>,
    /// Its time to live or hop limit.
    pub ttl: u8,
    /// Where it was to go.
    pub dst: Place,
    /// The port there.
    pub dst_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// What the policies say of egress.
    pub egress: Opinion,
    /// What the policies say of ingress.
    pub ingress: Opinion,
}

/// Why, more closely than the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// As the reason and the place say.
    Reason,
    /// AKS keeps pods from the wireserver and the metadata service.
    PlatformBlock,
    /// Conntrack could not place it in any connection, and a rule drops such packets.
    Invalid,
    /// The conntrack table is full.
    TableFull,
    /// Another connection took the translated tuple first.
    Clash,
    /// The policies deny it in this direction.
    Denied(Side),
    /// The engine dropped it for a policy; whether the known ones deny it depends on labels that are not known.
    Likely(Side),
    /// The engine dropped it for a policy, but none that is known denies it: stale rules, or another kind of policy.
    Unexplained(Side),
    /// The engine's program refused it, but no policy that is known denies it.
    Refused,
    /// It could not be handed to the program that it was to be queued for: none is there, or its queue is full.
    NotQueued,
    /// It was addressed to a service that the node did not translate.
    Service,
    /// A rule of which nothing is known.
    Rule,
}

/// A cause, and how it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The value of the label.
    pub cause: Cause,
    /// How it was found.
    pub because: Because,
}

impl Attribution {
    const fn new(cause: Cause, because: Because) -> Self {
        Self { cause, because }
    }

    /// The direction in which a policy denied it.
    #[must_use]
    pub const fn side(&self) -> Option<Side> {
        match self.because {
            Because::Denied(side) | Because::Likely(side) | Because::Unexplained(side) => {
                Some(side)
            }
            _ => None,
        }
    }
}

/// The cause of a drop.
#[must_use]
pub fn attribute(evidence: &Evidence) -> Attribution {
    let found = cause(evidence.reason, evidence.symbol);
    match found {
        Cause::Firewall if is_queue(evidence.symbol) => queued(evidence),
        Cause::Firewall => by_netfilter(evidence),
        // Kernels without reasons of their own for it (before 5.19).
        Cause::Route if evidence.ttl <= 1 && is_forwarding(evidence.symbol) => {
            Attribution::new(Cause::Ttl, Because::Reason)
        }
        // Those without any reason (before 5.17): in IPv4 a missing route ends elsewhere (ip_error), and what else ends
        // there is larger than the way out takes (net/ipv4/ip_forward.c).
        Cause::Route if evidence.reason == "0" && evidence.symbol.starts_with("ip_forward") => {
            Attribution::new(Cause::Mtu, Because::Reason)
        }
        // Cilium drops in its own tc programs.
        Cause::Other if evidence.engine == Engine::Cilium && evidence.reason.starts_with("tc_") => {
            by_opinion(evidence).unwrap_or(Attribution::new(Cause::Other, Because::Reason))
        }
        cause => Attribution::new(cause, Because::Reason),
    }
}

/// Whether the cause of a drop in this state depends on whether the conntrack table is full.
#[must_use]
pub fn depends_on_table(state: DropState) -> bool {
    state.tracking() == Tracking::NoEntry && state.routed() == Some(false)
}

/// A verdict of a program in user space: kindnet's engine judges that way.
fn queued(evidence: &Evidence) -> Attribution {
    if evidence.symbol.starts_with("nf_queue") || evidence.symbol.starts_with("__nf_queue") {
        return Attribution::new(Cause::Firewall, Because::NotQueued);
    }
    // The program accepted it, and what is dropped behind the queue is dropped at the same place as by its verdict.
    if evidence.state.tracking() == Tracking::New && clashes(evidence) {
        return Attribution::new(Cause::Nat, Because::Clash);
    }
    let judges = matches!(
        evidence.engine,
        Engine::Kindnet | Engine::KubeNetworkPolicies | Engine::Kubernetes
    );
    judges
        .then(|| by_opinion(evidence))
        .flatten()
        .unwrap_or(Attribution::new(Cause::Firewall, Because::Refused))
}

/// Whether another connection has the translated tuple already. No rule, and no engine's queue, sees a packet
/// between the translation of its source and the end of POSTROUTING but conntrack, which finds the tuple taken there
/// (`nf_conntrack_confirm`, `nf_conntrack_core.c`).
fn clashes(evidence: &Evidence) -> bool {
    evidence.source_translated && evidence.state.confirmed() == Some(false)
}

/// A rule's drop, or conntrack's: both leave through `nf_hook_slow`.
fn by_netfilter(evidence: &Evidence) -> Attribution {
    // NPM's marks are set by its policy chains only, just before the drop.
    if evidence.engine == Engine::AzureNpm
        && let Some(side) = marked(evidence.mark)
    {
        let because = match evidence.opinion(side) {
            Opinion::Denies => Because::Denied(side),
            Opinion::Undetermined => Because::Likely(side),
            Opinion::None | Opinion::Allows => Because::Unexplained(side),
        };
        return Attribution::new(Cause::Policy, because);
    }
    if is_platform_block(evidence) {
        return Attribution::new(Cause::AzurePlatformBlock, Because::PlatformBlock);
    }
    let routed = evidence.state.routed() != Some(false);
    match evidence.state.tracking() {
        Tracking::New if clashes(evidence) && evidence.symbol != "nft_do_chain" => {
            return Attribution::new(Cause::Nat, Because::Clash);
        }
        // Before routing: no entry could be made, or a rule of table raw dropped it; the latter is not told from the
        // former by the place where rules are in x_tables.
        Tracking::NoEntry if evidence.tracking && !routed => {
            return if evidence.table_full == Some(false) || evidence.symbol == "nft_do_chain" {
                Attribution::new(Cause::Firewall, Because::Rule)
            } else {
                Attribution::new(Cause::Conntrack, Because::TableFull)
            };
        }
        Tracking::NoEntry if evidence.tracking => {
            return Attribution::new(Cause::Conntrack, Because::Invalid);
        }
        _ => {}
    }
    if matches!(evidence.dst, Place::Service | Place::LoadBalancer) {
        return Attribution::new(Cause::Firewall, Because::Service);
    }
    let judges = matches!(evidence.engine, Engine::Calico | Engine::Kubernetes);
    judges
        .then(|| by_opinion(evidence))
        .flatten()
        .unwrap_or(Attribution::new(Cause::Firewall, Because::Rule))
}

/// The direction that Azure NPM's marks name (`chain-management_linux.go`): ingress is judged first.
fn marked(mark: u32) -> Option<Side> {
    if mark & npm::INGRESS_DROP != 0 && mark & npm::INGRESS_ALLOW == 0 {
        Some(Side::Ingress)
    } else if mark & npm::EGRESS_DROP != 0 {
        Some(Side::Egress)
    } else {
        None
    }
}

/// AKS's own rules stop pods from reaching the wireserver (TCP 80 and 32526) and, where so configured, the metadata
/// service (Azure/AgentBaker, `block_wireserver.sh`).
fn is_platform_block(evidence: &Evidence) -> bool {
    let tcp = evidence.protocol == aksnet_common::packet::TCP;
    match evidence.dst {
        Place::Wireserver => tcp && matches!(evidence.dst_port, 80 | 32_526),
        Place::Metadata => tcp && evidence.dst_port == 80,
        _ => false,
    }
}

/// A policy's drop, if the policies deny the flow, or may: engines judge a connection by its first packet.
fn by_opinion(evidence: &Evidence) -> Option<Attribution> {
    if !matches!(
        evidence.state.tracking(),
        Tracking::New | Tracking::Unknown | Tracking::Untracked
    ) {
        return None;
    }
    let sides = [Side::Egress, Side::Ingress];
    let with = |opinion| {
        sides
            .into_iter()
            .find(|side| evidence.opinion(*side) == opinion)
    };
    let because = with(Opinion::Denies)
        .map(Because::Denied)
        .or_else(|| with(Opinion::Undetermined).map(Because::Likely))?;
    Some(Attribution::new(Cause::Policy, because))
}

impl Evidence<'_> {
    fn opinion(&self, side: Side) -> Opinion {
        match side {
            Side::Egress => self.egress,
            Side::Ingress => self.ingress,
        }
    }
}

#[cfg(test)]
mod tests;

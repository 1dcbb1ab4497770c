//! A *flow* as policies see it: a connection from its client to its server, after DNAT and before SNAT, so that both
//! ends are who they are and not who the wire says.
//!
//! Nothing here is looked up: whoever asks knows the pods and hands over their labels.

use std::net::IpAddr;

use crate::identify::object::Text;

/// A connection, or what the protocol has instead.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// The client: who sent the first packet.
    pub src: End<'a>,
    /// The server: who is meant after DNAT.
    pub dst: End<'a>,
    /// IP protocol number.
    pub protocol: u8,
    /// The server's port; 0 where the protocol has none.
    pub port: u16,
    /// It came in by a node port or a load balancer with `externalTrafficPolicy: Cluster`, and its source is masked.
    pub by_node_port: bool,
}

/// One end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End<'a> {
    /// Its address. The unspecified one (`0.0.0.0`, `::`): not known.
    pub address: IpAddr,
    /// Whose that is.
    pub who: Who<'a>,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who<'a> {
    /// A pod that is known.
    Pod(Pod<'a>),
    /// A pod of which nothing else is known.
    UnknownPod,
    /// A node, and with it every pod in its network (`hostNetwork`).
    Node {
        /// The node that the pod at the other end runs on. For what happens on the agent's node: that node.
        this: bool,
    },
    /// An address that is none of the cluster's.
    External,
    /// A service's, which nobody has translated: no pod.
    Service,
}

/// A pod with a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name; with the namespace it tells the pod from others.
    pub name: &'a str,
    /// Its labels, in the order of their keys.
    pub labels: &'a [(Text, Text)],
    /// Its namespace's labels, likewise. `None`: not known, except for `kubernetes.io/metadata.name`, which the API
    /// server gives every namespace.
    pub namespace_labels: Option<&'a [(Text, Text)]>,
    /// Its container ports that have a name: name, IP protocol number, port. `None`: not known.
    pub named_ports: Option<&'a [(Text, u8, u16)]>,
}

impl<'a> Who<'a> {
    /// The pod, if it is one that is known.
    #[must_use]
    pub const fn pod(&self) -> Option<&Pod<'a>> {
        match self {
            Self::Pod(pod) => Some(pod),
            _ => None,
        }
    }
}

impl Flow<'_> {
    /// Whether both ends are one pod.
    #[must_use]
    pub fn is_to_itself(&self) -> bool {
        match (self.src.who.pod(), self.dst.who.pod()) {
            (Some(src), Some(dst)) => src.namespace == dst.namespace && src.name == dst.name,
            _ => false,
        }
    }
}

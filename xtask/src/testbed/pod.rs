//! A *pod* is a namespace with an `eth0` that CNI wired to a node.

use std::net::IpAddr;

use super::cni::{Attachment, HostPort};
use super::netns::Netns;
use super::plan::{Addresses, Family};

/// A pod of a testbed. It lives until [`super::Testbed::delete_pod`] or the testbed's end.
#[derive(Debug)]
pub struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) netns: Netns,
    pub(super) attachment: Attachment,
    pub(super) ports: Vec<HostPort>,
    pub(super) node: usize,
}

impl Pod {
    /// Its Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its processes would run.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The node's end of its veth.
    #[must_use]
    pub fn veth(&self) -> &str {
        &self.attachment.veth
    }

    /// Its addresses.
    #[must_use]
    pub fn address(&self) -> Addresses {
        self.attachment.address
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.attachment.address.v4.into()
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// In a cluster that is not dual stack.
    #[must_use]
    pub fn ip6(&self) -> IpAddr {
        self.attachment
            .address
            .of(Family::V6)
            .expect("the testbed was built with dual_stack(true)")
    }

    /// Its address of a family.
    ///
    /// # Panics
    /// For IPv6 in a cluster that is not dual stack.
    #[must_use]
    pub fn ip_of(&self, family: Family) -> IpAddr {
        self.attachment
            .address
            .of(family)
            .expect("the testbed was built with dual_stack(true)")
    }

    /// Which node it is on: 0 is the node under test.
    #[must_use]
    pub fn node_index(&self) -> usize {
        self.node
    }
}

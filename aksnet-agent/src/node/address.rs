//! An address that the node owns.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address, with the length of its subnet's prefix.
    pub net: IpNet,
}

impl Address {
    /// The address alone.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.net.addr()
    }

    /// The subnet it tells of, if it tells of one: neither a single address nor link-local.
    #[must_use]
    pub fn subnet(&self) -> Option<IpNet> {
        let single = self.net.prefix_len() == self.net.max_prefix_len();
        (!single && !is_link_local(self.ip())).then(|| self.net.trunc())
    }

    /// From a netlink message; `None` if it carries no address.
    #[must_use]
    pub fn from_message(message: &AddressMessage) -> Option<Self> {
        let mut address = None;
        for attribute in &message.attributes {
            match attribute {
                // On point-to-point links IFA_ADDRESS is the other side's, and IFA_LOCAL ours.
                AddressAttribute::Local(ip) => {
                    address = Some(*ip);
                    break;
                }
                AddressAttribute::Address(ip) => address = Some(*ip),
                _ => {}
            }
        }
        Some(Self {
            index: message.header.index,
            net: IpNet::new(address?, message.header.prefix_len).ok()?,
        })
    }
}

/// 169.254.0.0/16, `fe80::/10`, loopback: never another machine's.
#[must_use]
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => a.is_link_local() || a.is_loopback(),
        IpAddr::V6(a) => a.is_unicast_link_local() || a.is_loopback(),
    }
}

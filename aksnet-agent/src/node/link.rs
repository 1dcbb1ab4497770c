//! A link: a network device as the kernel lists it, reduced to what decides whether it is watched.

use aksnet_common::packet;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique at any one time.
    pub index: u32,
    /// As `ip link` shows it.
    pub name: String,
    /// `veth`, `bridge`, `vxlan`, ...; empty for hardware.
    pub kind: String,
    /// The device that it is a port or member of.
    pub master: Option<u32>,
    /// The other end lives in another network namespace.
    pub peer_elsewhere: bool,
    /// What frames begin with; `None` for what the programs cannot read (`InfiniBand`, ...).
    pub layer: Option<packet::Link>,
    /// `lo`.
    pub loopback: bool,
    /// Administratively up.
    pub up: bool,
    /// Hardware address, where there is one.
    pub mac: Vec<u8>,
    /// The device at the other end or below (`IFLA_LINK`).
    pub below: Option<u32>,
}

impl Link {
    /// Whether it is a bridge: never watched itself, as every packet also passes one of its ports.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.kind == "bridge"
    }

    /// Whether the kernel pairs it with a device that a container can have.
    #[must_use]
    pub fn is_pair(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit")
    }

    /// From a netlink message.
    #[must_use]
    pub fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: String::new(),
            master: None,
            peer_elsewhere: false,
            layer: layer(message.header.link_layer_type),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            up: message.header.flags.contains(LinkFlags::Up),
            mac: Vec::new(),
            below: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Controller(index) => {
                    link.master = (*index != 0).then_some(*index);
                }
                LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Link(index) => link.below = (*index != 0).then_some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind_name(kind);
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Other(name) => name.clone(),
        known => known.to_string(),
    }
}

fn layer(kind: LinkLayerType) -> Option<packet::Link> {
    // ARPHRD_RAWIP (519): cellular modems and some tunnels; the crate has no name for it in all versions.
    match u16::from(kind) {
        // ARPHRD_ETHER, ARPHRD_LOOPBACK
        1 | 772 => Some(packet::Link::Ethernet),
        // ARPHRD_PPP, RAWIP, TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE, NONE
        512 | 519 | 768 | 769 | 776 | 778 | 823 | 0xfffe => Some(packet::Link::Ip),
        _ => None,
    }
}

//! A *plan* is the cluster on paper: which flavour of CNI, and every address that does not depend on what happens
//! later. It is pure; [`super::bed`] builds what it says.
//!
//! Addresses are those that AKS and kind give by default. 'Internet' hosts have documentation addresses
//! (RFC 5737, RFC 3849).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The prefix length of a single host.
    #[must_use]
    pub fn host_bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// How pods are wired to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// AKS kubenet: the real `bridge` plugin, `cbr0`, IP-MASQ-AGENT.
    Kubenet,
    /// kind: the real `ptp` plugin with kindnet's configuration, KIND-MASQ-AGENT.
    Kind,
    /// Azure CNI Overlay: transparent mode, `azv*` veths with host routes, private pod CIDR, IP-MASQ-AGENT.
    AzureOverlay,
    /// Azure CNI node subnet: transparent mode, pods have VNet addresses; SNAT only beyond the VNet.
    AzureNodeSubnet,
}

impl Flavour {
    /// The name used in output and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubenet => "kubenet",
            Self::Kind => "kind",
            Self::AzureOverlay => "azure-overlay",
            Self::AzureNodeSubnet => "azure-node-subnet",
        }
    }

    /// Whether azure-vnet's transparent mode wires the pods.
    #[must_use]
    pub fn is_transparent(self) -> bool {
        matches!(self, Self::AzureOverlay | Self::AzureNodeSubnet)
    }
}

/// One IPv4 address, and an IPv6 address in a dual-stack cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address, in a dual-stack cluster.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// The address of a family, if there is one.
    #[must_use]
    pub fn of(self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.v4.into()),
            Family::V6 => self.v6.map(IpAddr::from),
        }
    }

    /// All addresses, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::from(self.v4)).chain(self.v6.map(IpAddr::from))
    }
}

/// One IPv4 range, and an IPv6 range in a dual-stack cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    /// The IPv4 range.
    pub v4: Ipv4Net,
    /// The IPv6 range, in a dual-stack cluster.
    pub v6: Option<Ipv6Net>,
}

impl Ranges {
    /// The range of a family, if there is one.
    #[must_use]
    pub fn of(self, family: Family) -> Option<IpNet> {
        match family {
            Family::V4 => Some(self.v4.into()),
            Family::V6 => self.v6.map(IpNet::from),
        }
    }

    /// All ranges, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = IpNet> {
        std::iter::once(IpNet::from(self.v4)).chain(self.v6.map(IpNet::from))
    }
}

/// A node on paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePlan {
    /// The name that Kubernetes would have for it.
    pub name: &'static str,
    /// The address of its `eth0`.
    pub address: Addresses,
    /// What its pods get their addresses from.
    pub pods: Ranges,
}

/// The cluster on paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How pods are wired.
    pub flavour: Flavour,
    /// The network that the nodes are in.
    pub vnet: Ranges,
    /// Its gateway, which is the fabric's address on every link.
    pub gateway: Ipv4Addr,
    /// All pods of the cluster.
    pub pods: Ranges,
    /// All ClusterIPs.
    pub services: Ranges,
    /// The node under test and the second node.
    pub nodes: [NodePlan; 2],
    /// A host in the VNet that is no node.
    pub vm: Addresses,
    /// A host on the internet.
    pub outside: Addresses,
    /// The load balancer's frontend.
    pub load_balancer: Addresses,
    /// The frontend of an internal load balancer, in the VNet.
    pub internal_balancer: Addresses,
    /// An instance of an Application Gateway, in a subnet of its own.
    pub app_gateway: Addresses,
    /// A private endpoint, in a subnet of its own.
    pub private_endpoint: Addresses,
    /// The API server of a private cluster.
    pub api_server: Addresses,
}

/// Azure's platform address: DNS, wireserver, source of load balancer probes.
pub const WIRESERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Azure's instance metadata service.
pub const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The fabric's IPv6 address on every link, as Azure's router advertises itself.
pub const FABRIC_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc);

/// The fabric's address in the outside host's network.
pub const OUTSIDE_GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

impl Plan {
    /// The cluster of a flavour.
    #[must_use]
    pub fn new(flavour: Flavour, dual_stack: bool) -> Self {
        let v6 = |address: [u16; 8]| dual_stack.then(|| Ipv6Addr::from(address));
        let net6 =
            |address: [u16; 8], bits| dual_stack.then(|| Ipv6Net::new_assert(address.into(), bits));
        let kind = flavour == Flavour::Kind;
        let (a, b) = if kind { (172, 18) } else { (10, 224) };
        let vnet = Ranges {
            v4: net4(a, b, 0, 16),
            v6: net6([0xfd00, 0x224, 0, 0, 0, 0, 0, 0], 64),
        };
        let host = |c: u8, d: u8| Addresses {
            v4: Ipv4Addr::new(a, b, c, d),
            v6: v6([0xfd00, 0x224, 0, 0, 0, 0, c.into(), d.into()]),
        };
        let pods_of = |node: u8| {
            if flavour == Flavour::AzureNodeSubnet {
                // The 30 addresses that Azure CNI reserves for a node, as a range of their own in the VNet.
                Ranges {
                    v4: net4(a, b, 16 + node, 24),
                    v6: net6([0xfd00, 0x224, 0, 0, 0, 1 + u16::from(node), 0, 0], 96),
                }
            } else {
                Ranges {
                    v4: net4(10, 244, node, 24),
                    v6: net6([0xfd00, 0x244, 0, node.into(), 0, 0, 0, 0], 64),
                }
            }
        };
        let names = if kind {
            ["kind-worker", "kind-worker2"]
        } else {
            ["aks-nodepool1-vmss000000", "aks-nodepool1-vmss000001"]
        };
        Self {
            flavour,
            vnet,
            gateway: Ipv4Addr::new(a, b, 0, 1),
            pods: if flavour == Flavour::AzureNodeSubnet {
                vnet
            } else {
                Ranges {
                    v4: net4(10, 244, 0, 16),
                    v6: net6([0xfd00, 0x244, 0, 0, 0, 0, 0, 0], 48),
                }
            },
            services: Ranges {
                v4: if kind {
                    net4(10, 96, 0, 16)
                } else {
                    net4(10, 0, 0, 16)
                },
                v6: net6([0xfd00, 0x10, 0, 0, 0, 0, 0, 0], 108),
            },
            nodes: [
                NodePlan {
                    name: names[0],
                    address: host(0, 4),
                    pods: pods_of(0),
                },
                NodePlan {
                    name: names[1],
                    address: host(0, 5),
                    pods: pods_of(1),
                },
            ],
            vm: host(1, 10),
            outside: Addresses {
                v4: Ipv4Addr::new(203, 0, 113, 10),
                v6: v6([0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10]),
            },
            load_balancer: Addresses {
                v4: Ipv4Addr::new(198, 51, 100, 20),
                v6: v6([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x20]),
            },
            internal_balancer: host(0, 100),
            app_gateway: host(8, 4),
            private_endpoint: host(9, 5),
            api_server: host(0, 200),
        }
    }

    /// The subnet that holds one of the plan's VNet hosts and no other of them.
    #[must_use]
    pub fn subnet_of(&self, host: Addresses) -> Ranges {
        let [a, b, c, _] = host.v4.octets();
        Ranges {
            v4: net4(a, b, c, 24),
            v6: host
                .v6
                .and_then(|ip| Ipv6Net::new(ip, 112).ok())
                .map(|net| net.trunc()),
        }
    }

    /// Whether the cluster has IPv6 too.
    #[must_use]
    pub fn is_dual_stack(&self) -> bool {
        self.vnet.v6.is_some()
    }

    /// The families the cluster has, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> + use<> {
        std::iter::once(Family::V4).chain(self.is_dual_stack().then_some(Family::V6))
    }

    /// The `n`th ClusterIP of a family, from 10 up (lower ones are for the API server and DNS).
    #[must_use]
    pub fn cluster_ip(&self, family: Family, n: u16) -> Option<IpAddr> {
        nth(self.services.of(family)?, 10 + u32::from(n))
    }
}

/// The `n`th address of a range.
#[must_use]
pub fn nth(range: IpNet, n: u32) -> Option<IpAddr> {
    let ip = match range.network() {
        IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from_bits(ip.to_bits().checked_add(n)?)),
        IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from_bits(ip.to_bits().checked_add(n.into())?)),
    };
    range.contains(&ip).then_some(ip)
}

fn net4(a: u8, b: u8, c: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap_and_nodes_lie_in_the_vnet() {
        for flavour in [Flavour::Kubenet, Flavour::Kind, Flavour::AzureOverlay] {
            let plan = Plan::new(flavour, true);
            for family in plan.families() {
                let range = |ranges: Ranges| ranges.of(family).unwrap();
                assert!(!range(plan.pods).contains(&range(plan.vnet)));
                assert!(!range(plan.pods).contains(&range(plan.services)));
                for node in plan.nodes {
                    assert!(range(plan.vnet).contains(&node.address.of(family).unwrap()));
                    assert!(range(plan.pods).contains(&range(node.pods)));
                }
                assert_ne!(range(plan.nodes[0].pods), range(plan.nodes[1].pods));
            }
        }
    }

    #[test]
    fn node_subnet_pods_have_vnet_addresses() {
        let plan = Plan::new(Flavour::AzureNodeSubnet, true);
        for family in plan.families() {
            assert!(
                plan.vnet
                    .of(family)
                    .unwrap()
                    .contains(&plan.nodes[1].pods.of(family).unwrap())
            );
        }
    }

    #[test]
    fn nth_stays_inside_the_range() {
        let range = "10.0.0.0/30".parse().unwrap();
        assert_eq!(nth(range, 3), Some("10.0.0.3".parse().unwrap()));
        assert_eq!(nth(range, 4), None);
    }
}

//! The *fabric* is the router that stands for the Azure VNet (on kind: for the container network): every host hangs
//! on a link of its own, and the fabric answers ARP for all others, as Azure's does.
//!
//! It holds what no node can see: the route table that sends a pod CIDR to its node (UDR), and where the load
//! balancer sends its frontend (floating IP: the destination stays the frontend's address). It does no NAT of its
//! own, so that an outside host sees the address that left the node; but for frontends without floating IP.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::iptables::{self, Backend};
use super::netns::Netns;
use super::plan::{Addresses, FABRIC_LINK_LOCAL, Family, IMDS, OUTSIDE_GATEWAY, Plan, WIRESERVER};
use super::service::Service;

/// Settings that every namespace of a testbed gets: no source checks in the way of asymmetric paths, no IPv6
/// chatter that was not asked for, local ports enough for many short connections.
///
/// # Errors
/// When the kernel refuses one.
pub fn prepare(netns: &Netns, dual_stack: bool) -> Result<()> {
    netns.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    netns.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
    netns.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    netns.sysctl("net.ipv4.tcp_max_tw_buckets", "262144")?;
    // Bridges join a link-local group, and their reports would blur counts of packets at random times.
    netns.sysctl("net.ipv4.igmp_link_local_mcast_reports", "0")?;
    for scope in ["all", "default"] {
        if dual_stack {
            netns.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            netns.sysctl(&format!("net.ipv6.conf.{scope}.accept_ra"), "0")?;
            netns.sysctl(&format!("net.ipv6.conf.{scope}.router_solicitations"), "0")?;
        } else {
            netns.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1")?;
        }
    }
    Ok(())
}

/// Makes a namespace forward packets.
///
/// # Errors
/// When the kernel refuses.
pub fn forward(netns: &Netns, dual_stack: bool) -> Result<()> {
    netns.sysctl("net.ipv4.ip_forward", "1")?;
    netns.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
    netns.sysctl("net.ipv4.conf.default.send_redirects", "0")?;
    if dual_stack {
        netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    }
    Ok(())
}

/// The fabric's end of the link to a host.
#[must_use]
pub fn link(host: &str) -> String {
    format!("to-{host}")
}

/// The `ip` lines that make a link and give the fabric its end; run in the fabric's namespace.
fn fabric_end(plan: &Plan, host: &str, peer: &Netns, addresses: &[IpAddr]) -> Vec<String> {
    let link = link(host);
    let mut lines = vec![
        format!(
            "link add {link} type veth peer name eth0 netns {}",
            peer.name()
        ),
        if host == "outside" {
            format!("addr add {OUTSIDE_GATEWAY}/24 dev {link}")
        } else {
            format!("addr add {}/32 dev {link}", plan.gateway)
        },
    ];
    if plan.is_dual_stack() {
        lines.push(format!("addr add {FABRIC_LINK_LOCAL}/64 dev {link} nodad"));
    }
    lines.push(format!("link set {link} up"));
    lines.extend(
        addresses
            .iter()
            .map(|ip| format!("route replace {ip} dev {link}")),
    );
    lines
}

/// The `ip` lines that give a VNet host its end: an address in the VNet, and the fabric as its way out.
fn vnet_end(plan: &Plan, address: Addresses) -> Vec<String> {
    let mut lines = vec![
        format!(
            "addr add {}/{} dev eth0",
            address.v4,
            plan.vnet.v4.prefix_len()
        ),
        "link set eth0 up".to_owned(),
        format!("route add default via {} dev eth0", plan.gateway),
    ];
    // What Azure's DHCP gives besides.
    lines.extend(
        [WIRESERVER, IMDS].map(|ip| format!("route add {ip} via {} dev eth0", plan.gateway)),
    );
    lines.extend(v6_end(address));
    lines
}

/// The `ip` lines for a host's IPv6: an address by itself and the fabric's link-local address as the router, as
/// DHCPv6 and router advertisements give on Azure.
fn v6_end(address: Addresses) -> Vec<String> {
    let Some(v6) = address.v6 else {
        return Vec::new();
    };
    vec![
        format!("addr add {v6}/128 dev eth0 nodad"),
        format!("route add default via {FABRIC_LINK_LOCAL} dev eth0"),
    ]
}

/// The namespaces that are not nodes.
#[derive(Debug)]
pub struct Fabric {
    /// The router itself.
    pub router: Netns,
    /// A VNet host that is no node.
    pub vm: Netns,
    /// Azure's platform services: 168.63.129.16 and 169.254.169.254.
    pub azure: Netns,
    /// An internet host.
    pub outside: Netns,
}

impl Fabric {
    /// Sets up the router and the hosts that are not nodes.
    ///
    /// # Errors
    /// When a namespace, link or address cannot be made.
    pub fn build(plan: &Plan, create: impl Fn(&str) -> Result<Netns>) -> Result<Self> {
        let fabric = Self {
            router: create("fabric")?,
            vm: create("vm")?,
            azure: create("azure")?,
            outside: create("outside")?,
        };
        forward(&fabric.router, plan.is_dual_stack())?;
        for scope in ["all", "default"] {
            fabric
                .router
                .sysctl(&format!("net.ipv4.conf.{scope}.proxy_arp"), "1")?;
        }
        fabric.attach(plan, "vm", &fabric.vm, plan.vm)?;
        for host in [plan.app_gateway, plan.private_endpoint, plan.api_server] {
            fabric.add_vnet_addresses(host)?;
        }

        let platform = [IpAddr::from(WIRESERVER), IpAddr::from(IMDS)];
        fabric.link(plan, "azure", &fabric.azure, &platform)?;
        fabric.azure.ip([
            format!("addr add {WIRESERVER}/32 dev eth0"),
            format!("addr add {IMDS}/32 dev eth0"),
            "link set eth0 up".to_owned(),
            format!(
                "route add default via {} dev eth0 onlink src {WIRESERVER}",
                plan.gateway
            ),
        ])?;

        let outside = plan.outside;
        fabric.link(
            plan,
            "outside",
            &fabric.outside,
            &outside.iter().skip(1).collect::<Vec<_>>(),
        )?;
        fabric.outside.ip([
            format!("addr add {}/24 dev eth0", outside.v4),
            "link set eth0 up".to_owned(),
            format!("route add default via {OUTSIDE_GATEWAY} dev eth0"),
        ])?;
        fabric.outside.ip(v6_end(outside))?;
        Ok(fabric)
    }

    /// Gives a VNet host its link, address and routes.
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn attach(&self, plan: &Plan, host: &str, netns: &Netns, address: Addresses) -> Result<()> {
        self.link(plan, host, netns, &address.iter().collect::<Vec<_>>())?;
        netns.ip(vnet_end(plan, address))
    }

    /// Makes a link to a host, and the fabric's end of it.
    fn link(&self, plan: &Plan, host: &str, netns: &Netns, addresses: &[IpAddr]) -> Result<()> {
        self.router.ip(fabric_end(plan, host, netns, addresses))?;
        // Else the kernel answers for others only after a random while of up to 0.8 s.
        self.router
            .sysctl(&format!("net/ipv4/neigh/{}/proxy_delay", link(host)), "0")?;
        if plan.is_dual_stack() {
            self.router
                .sysctl(&format!("net/ipv6/conf/{}/proxy_ndp", link(host)), "1")?;
            self.router
                .sysctl(&format!("net/ipv6/neigh/{}/proxy_delay", link(host)), "0")?;
        }
        Ok(())
    }

    /// Answers neighbour solicitations of a host for the IPv6 address of another one, so that it may be a next hop.
    /// (For IPv4 the fabric answers for everyone.)
    ///
    /// # Errors
    /// When the entry cannot be set.
    pub fn answer_for(&self, address: IpAddr, host: &str) -> Result<()> {
        self.router
            .ip([format!("neigh replace proxy {address} dev {}", link(host))])
    }

    /// Routes a range to a host: a pod CIDR to its node (a UDR), a frontend to the node that is to get its traffic.
    ///
    /// # Errors
    /// When the route cannot be set.
    pub fn route(&self, range: &str, host: &str, via: IpAddr) -> Result<()> {
        self.router.ip([format!(
            "route replace {range} via {via} dev {} onlink",
            link(host)
        )])
    }

    /// Translates frontends without floating IP to a node's port, as the load balancer itself does. `there` is
    /// whether it has done so before: a router that never did tracks no connections.
    ///
    /// # Errors
    /// When the rules cannot be written.
    pub fn translate(&self, there: &mut bool, services: &[Service], node: Addresses) -> Result<()> {
        let plain = || services.iter().filter(|service| !service.floating_ip);
        if !*there && plain().next().is_none() {
            return Ok(());
        }
        for family in [Family::V4, Family::V6] {
            let Some(node) = node.of(family) else {
                continue;
            };
            let mut rules = "*nat\n:BALANCER - [0:0]\n".to_owned();
            if !*there {
                rules.push_str("-A PREROUTING -j BALANCER\n");
            }
            for service in plain().filter(|service| service.family == family) {
                let (transport, port) = (service.transport, service.port);
                for frontend in &service.frontends {
                    let to = SocketAddr::new(node, service.node_port.unwrap_or(port));
                    let _ = writeln!(
                        rules,
                        "-A BALANCER -d {frontend} -p {transport} -m {transport} --dport {port} -j DNAT --to-destination {to}"
                    );
                }
            }
            rules.push_str("COMMIT\n");
            iptables::restore(&self.router, Backend::Nft, family, &rules)?;
        }
        *there = true;
        Ok(())
    }

    /// Gives the VNet host further addresses, so that it can stand for several.
    fn add_vnet_addresses(&self, addresses: Addresses) -> Result<()> {
        for ip in addresses.iter() {
            let host = if ip.is_ipv4() { "/32" } else { "/128 nodad" };
            let (address, flags) = host.split_once(' ').unwrap_or((host, ""));
            self.vm
                .ip([format!("addr add {ip}{address} dev eth0 {flags}")])?;
            self.router
                .ip([format!("route replace {ip} dev {}", link("vm"))])?;
        }
        Ok(())
    }

    /// Gives the outside host one more address, so that it can stand for several.
    ///
    /// # Errors
    /// When it cannot be set.
    pub fn add_outside_address(&self, address: Ipv4Addr) -> Result<()> {
        self.outside
            .ip([format!("addr replace {address}/24 dev eth0")])
    }
}

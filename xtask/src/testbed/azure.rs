//! Wiring a pod as *azure-vnet's transparent mode* does: a veth with a name that follows from the pod's, a host
//! route to the pod, and in the pod a gateway that no host has, with a static neighbour entry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::hash::azure_veth;
use super::netns::Netns;
use super::plan::Addresses;

/// The gateway that pods see; azure-vnet calls it the virtual gateway.
pub const VIRTUAL_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The same for IPv6.
pub const VIRTUAL_GATEWAY_V6: Ipv6Addr =
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x1234, 0x5678, 0x9abc, 0xdef0);

/// The hardware address of every host-side veth.
pub const HOST_MAC: &str = "aa:aa:aa:aa:aa:aa";

/// The name of the host's end.
#[must_use]
pub fn veth(namespace: &str, pod: &str) -> String {
    azure_veth(namespace, pod)
}

/// The `ip` lines to run in the node.
#[must_use]
pub fn node_end(veth: &str, pod: &Netns, address: Addresses) -> Vec<String> {
    let mut lines = vec![
        format!(
            "link add {veth} address {HOST_MAC} type veth peer name eth0 netns {}",
            pod.name()
        ),
        format!("link set {veth} up"),
    ];
    for ip in address.iter() {
        match ip {
            IpAddr::V4(ip) => lines.push(format!("route add {ip}/32 dev {veth}")),
            IpAddr::V6(ip) => lines.push(format!("route add {ip}/128 dev {veth}")),
        }
    }
    lines
}

/// The CNI result that azure-vnet hands on to the next plugin.
#[must_use]
pub fn result(veth: &str, pod: &Netns, address: Addresses) -> Value {
    let ips: Vec<Value> = address
        .iter()
        .map(|ip| {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            json!({ "address": format!("{ip}/{bits}"), "interface": 1 })
        })
        .collect();
    json!({
        "cniVersion": "0.3.1",
        "interfaces": [{ "name": veth }, { "name": "eth0", "sandbox": pod.path() }],
        "ips": ips,
    })
}

/// The `ip` lines to run in the pod.
#[must_use]
pub fn pod_end(address: Addresses) -> Vec<String> {
    let mut lines = vec![
        format!("addr add {}/32 dev eth0", address.v4),
        "link set eth0 up".to_owned(),
        format!("route add {VIRTUAL_GATEWAY}/32 dev eth0 scope link"),
        format!("route add default via {VIRTUAL_GATEWAY} dev eth0"),
        format!("neigh add {VIRTUAL_GATEWAY} lladdr {HOST_MAC} dev eth0 nud permanent"),
    ];
    if let Some(v6) = address.v6 {
        lines.extend([
            format!("addr add {v6}/128 dev eth0 nodad"),
            format!("route add {VIRTUAL_GATEWAY_V6}/128 dev eth0"),
            format!("route add default via {VIRTUAL_GATEWAY_V6} dev eth0"),
            format!("neigh add {VIRTUAL_GATEWAY_V6} lladdr {HOST_MAC} dev eth0 nud permanent"),
        ]);
    }
    lines
}

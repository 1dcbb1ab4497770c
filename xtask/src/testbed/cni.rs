//! Wiring a pod with the *real CNI plugins*: `bridge` or `ptp`, `host-local` and `portmap`, called as a container
//! runtime calls them, with the configuration that AKS and kind write.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::netns::Netns;
use super::plan::{Addresses, Flavour, Ranges};

/// Where distributions put the plugins.
const PLUGIN_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The directory that holds the plugins on this machine.
///
/// # Errors
/// When there is none.
pub fn plugin_directory() -> Result<PathBuf> {
    PLUGIN_DIRECTORIES
        .iter()
        .map(PathBuf::from)
        .find(|directory| directory.join("bridge").exists())
        .with_context(|| {
            format!("no CNI plugins in {PLUGIN_DIRECTORIES:?}: run `cargo xtask setup`")
        })
}

/// How a pod behind kubenet's bridge reaches itself through its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hairpin {
    /// As AKS configures it: the bridge is promiscuous, so the node gets a copy of what would have to go back to
    /// the port that it came from, and routes it there.
    ///
    /// Kernels that take the connection tracking entry from such copies (6.9 and stable releases since April 2024:
    /// `netfilter: br_netfilter: skip conntrack input hook for promisc packets`) let KUBE-FORWARD see them as
    /// INVALID: hairpins do not work there. The copy that the node gets of *every* packet to a same-node endpoint
    /// of a service is dropped by the same rule, while the packet itself arrives.
    Promiscuous,
    /// kubelet's `hairpin-veth`: the bridge sends back to the port that a frame came from. Works on every kernel.
    Veth,
}

/// The file name and text of the configuration that a flavour has in `/etc/cni/net.d`, with the address store in a
/// directory of the testbed's.
#[must_use]
pub fn conflist(
    flavour: Flavour,
    hairpin: Hairpin,
    pods: Ranges,
    store: &Path,
) -> (&'static str, Value) {
    let ranges: Vec<Value> = pods
        .iter()
        .map(|range| json!([{ "subnet": range.to_string() }]))
        .collect();
    let routes: Vec<Value> = pods
        .iter()
        .map(|range| json!({ "dst": everything(range) }))
        .collect();
    let ipam =
        json!({ "type": "host-local", "dataDir": store, "ranges": ranges, "routes": routes });
    match flavour {
        Flavour::Kind => (
            "10-kindnet.conflist",
            json!({
                "cniVersion": "0.3.1",
                "name": "kindnet",
                "plugins": [
                    { "type": "ptp", "ipMasq": false, "ipam": ipam, "mtu": 1500 },
                    { "type": "portmap", "capabilities": { "portMappings": true } },
                ],
            }),
        ),
        Flavour::Kubenet => (
            "10-containerd-net.conflist",
            json!({
                "cniVersion": "0.3.1",
                "name": "kubenet",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": "cbr0",
                        "mtu": 1500,
                        "addIf": "eth0",
                        "isGateway": true,
                        "ipMasq": false,
                        "promiscMode": hairpin == Hairpin::Promiscuous,
                        "hairpinMode": hairpin == Hairpin::Veth,
                        "ipam": ipam,
                    },
                    {
                        "type": "portmap",
                        "capabilities": { "portMappings": true },
                        "externalSetMarkChain": "KUBE-MARK-MASQ",
                    },
                ],
            }),
        ),
        Flavour::AzureOverlay | Flavour::AzureNodeSubnet => {
            let overlay = flavour == Flavour::AzureOverlay;
            let ipam = if overlay {
                json!({ "mode": "overlay", "type": "azure-cns" })
            } else {
                json!({ "type": "azure-vnet-ipam" })
            };
            (
                if overlay {
                    "15-azure-swift-overlay.conflist"
                } else {
                    "10-azure.conflist"
                },
                json!({
                    "cniVersion": "0.3.0",
                    "name": "azure",
                    "plugins": [
                        { "type": "azure-vnet", "mode": "transparent", "ipsToRouteViaHost": ["169.254.20.10"], "ipam": ipam },
                        { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
                    ],
                }),
            )
        }
    }
}

fn everything(range: IpNet) -> &'static str {
    if range.network().is_ipv4() {
        "0.0.0.0/0"
    } else {
        "::/0"
    }
}

/// A port of the node that leads to a port of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// The node's port.
    pub host: u16,
    /// The pod's port.
    pub container: u16,
    /// Whether it is UDP; TCP otherwise.
    pub udp: bool,
}

/// What a plugin chain made for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The node's end of the pod's veth.
    pub veth: String,
    /// The pod's addresses.
    pub address: Addresses,
    /// The result itself, which `DEL` wants back.
    pub result: Value,
}

/// Calls a chain of plugins inside a node.
#[derive(Debug)]
pub struct Chain {
    plugins: PathBuf,
    conflist: Value,
}

impl Chain {
    /// The chain of a configuration.
    ///
    /// # Errors
    /// When the plugins are not installed.
    pub fn new(conflist: Value) -> Result<Self> {
        Ok(Self {
            plugins: plugin_directory()?,
            conflist,
        })
    }

    /// Wires a pod: `ADD` for each plugin in turn.
    ///
    /// # Errors
    /// When a plugin fails; the error carries its message.
    pub fn add(&self, node: &Netns, pod: &Netns, ports: &[HostPort]) -> Result<Attachment> {
        let mut result = Value::Null;
        for plugin in self.plugin_list()? {
            result = self.call(node, pod, "ADD", plugin, &result, ports)?;
        }
        parse(&result)
    }

    /// Unwires a pod: `DEL` for each plugin in reverse order.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn delete(
        &self,
        node: &Netns,
        pod: &Netns,
        ports: &[HostPort],
        attachment: &Attachment,
    ) -> Result<()> {
        for plugin in self.plugin_list()?.iter().rev() {
            self.call(node, pod, "DEL", plugin, &attachment.result, ports)?;
        }
        Ok(())
    }

    /// Calls only the plugin that maps host ports, for a pod that was wired by other means with this result.
    ///
    /// # Errors
    /// When the chain has none, or it fails.
    pub fn map_ports(
        &self,
        node: &Netns,
        pod: &Netns,
        verb: &str,
        ports: &[HostPort],
        result: &Value,
    ) -> Result<()> {
        let plugins = self.plugin_list()?;
        let portmap = plugins.iter().find(|plugin| plugin["type"] == "portmap");
        let portmap = portmap.context("the chain has no portmap")?;
        self.call(node, pod, verb, portmap, result, ports).map(drop)
    }

    fn plugin_list(&self) -> Result<&Vec<Value>> {
        self.conflist["plugins"]
            .as_array()
            .context("a conflist has plugins")
    }

    fn call(
        &self,
        node: &Netns,
        pod: &Netns,
        verb: &str,
        plugin: &Value,
        previous: &Value,
        ports: &[HostPort],
    ) -> Result<Value> {
        let name = plugin["type"].as_str().context("a plugin has a type")?;
        let config = plugin_config(&self.conflist, plugin, previous, ports);
        let mut command = node.command(self.plugins.join(name));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", pod.name())
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins);
        let output = node
            .output_of(&mut command, Some(&config.to_string()))
            .with_context(|| format!("CNI {verb}"))?;
        if output.trim().is_empty() {
            return Ok(previous.clone());
        }
        serde_json::from_str(&output)
            .with_context(|| format!("plugin {name} did not print JSON: {output}"))
    }
}

/// What a runtime hands one plugin of a chain: its part of the list, the list's name and version, the result so far,
/// and the arguments of the capabilities it declares.
fn plugin_config(conflist: &Value, plugin: &Value, previous: &Value, ports: &[HostPort]) -> Value {
    let mut config = plugin.clone();
    config["name"] = conflist["name"].clone();
    config["cniVersion"] = conflist["cniVersion"].clone();
    if !previous.is_null() {
        config["prevResult"] = previous.clone();
    }
    if plugin["capabilities"]["portMappings"] == true {
        let mappings: Vec<Value> = ports
            .iter()
            .map(|port| {
                let protocol = if port.udp { "udp" } else { "tcp" };
                json!({ "hostPort": port.host, "containerPort": port.container, "protocol": protocol })
            })
            .collect();
        config["runtimeConfig"] = json!({ "portMappings": mappings });
    }
    config
}

/// Reads a CNI result: the pod's addresses, and the veth that is not in a sandbox.
fn parse(result: &Value) -> Result<Attachment> {
    let veth = result["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty())
        .filter_map(|interface| interface["name"].as_str())
        .find(|name| name.starts_with("veth"))
        .with_context(|| format!("no host veth in {result}"))?
        .to_owned();
    let (mut v4, mut v6) = (None::<Ipv4Addr>, None::<Ipv6Addr>);
    for entry in result["ips"].as_array().into_iter().flatten() {
        let net: IpNet = entry["address"].as_str().context("an address")?.parse()?;
        match net.addr() {
            IpAddr::V4(ip) => v4 = Some(ip),
            IpAddr::V6(ip) => v6 = Some(ip),
        }
    }
    match v4 {
        Some(v4) => Ok(Attachment {
            veth,
            address: Addresses { v4, v6 },
            result: result.clone(),
        }),
        None => bail!("no IPv4 address in {result}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::plan::Plan;

    fn kubenet() -> Value {
        conflist(
            Flavour::Kubenet,
            Hairpin::Promiscuous,
            Plan::new(Flavour::Kubenet, true).nodes[0].pods,
            Path::new("/store"),
        )
        .1
    }

    #[test]
    fn kubenet_is_what_aks_writes() {
        let list = kubenet();
        let bridge = &list["plugins"][0];
        assert_eq!(list["name"], "kubenet");
        assert_eq!(
            (&bridge["bridge"], &bridge["ipMasq"], &bridge["promiscMode"]),
            (&json!("cbr0"), &json!(false), &json!(true))
        );
        assert_eq!(bridge["ipam"]["ranges"][0][0]["subnet"], "10.244.0.0/24");
        assert_eq!(bridge["ipam"]["routes"][1]["dst"], "::/0");
    }

    #[test]
    fn port_mappings_go_only_to_the_plugin_that_declares_them() {
        let list = kubenet();
        let ports = [HostPort {
            host: 8080,
            container: 80,
            udp: false,
        }];
        let bridge = plugin_config(&list, &list["plugins"][0], &Value::Null, &ports);
        let portmap = plugin_config(&list, &list["plugins"][1], &json!({"ips": []}), &ports);
        assert!(bridge.get("runtimeConfig").is_none() && bridge.get("prevResult").is_none());
        assert_eq!(
            portmap["runtimeConfig"]["portMappings"][0]["hostPort"],
            8080
        );
        assert!(portmap.get("prevResult").is_some());
    }

    #[test]
    fn result_tells_the_host_end_from_the_sandbox_and_the_bridge() {
        let attachment = parse(&json!({
            "interfaces": [
                { "name": "cbr0", "mac": "x" }, { "name": "veth1234", "mac": "y" },
                { "name": "eth0", "sandbox": "/run/netns/pod" },
            ],
            "ips": [ { "address": "10.244.0.7/24", "gateway": "10.244.0.1" }, { "address": "fd00:244::7/64" } ],
        }))
        .unwrap();
        assert_eq!(attachment.veth, "veth1234");
        assert_eq!(attachment.address.v4, Ipv4Addr::new(10, 244, 0, 7));
        assert_eq!(attachment.address.v6, Some("fd00:244::7".parse().unwrap()));
    }
}

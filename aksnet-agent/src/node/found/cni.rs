//! Who connects pods: by the CNI configuration, else by what interfaces there are.

use std::net::IpAddr;

use super::{Finding, conflist::Conflist, evidence::Evidence};
use crate::node::{
    address::{Address, is_link_local},
    link::Link,
};

/// The label of nodes in an overlay network, whose value is its kind.
const NETWORK_TYPE: &str = "kubernetes.azure.com/podnetwork-type";
/// Its older form.
const OVERLAY: &str = "kubernetes.azure.com/azure-cni-overlay";
/// The label of nodes with Azure CNI powered by Cilium.
const DATAPLANE: &str = "kubernetes.azure.com/ebpf-dataplane";

pub(super) fn conclude(evidence: &Evidence) -> Finding<&'static str> {
    let mut seen = Vec::new();
    let mut configured = None;
    match &evidence.conflist {
        Ok(Some(list)) => {
            configured = by_conflist(evidence, list);
            seen.push(list.describe());
        }
        Ok(None) => {}
        Err(why) => seen.push(format!("the CNI configuration cannot be read: {why}")),
    }
    let interface = by_interface(evidence);
    if let Some((_, why)) = &interface {
        seen.push(why.clone());
    }
    for label in [NETWORK_TYPE, OVERLAY, DATAPLANE] {
        if let Some(value) = evidence.label(label) {
            seen.push(format!("node label {label}={value}"));
        }
    }
    let shown = interface.map(|(cni, _)| cni);
    match (configured, shown) {
        (Some(cni), shown) => {
            if let Some(other) = shown.filter(|other| kind(other) != kind(cni)) {
                seen.push(format!("against it: interfaces look like {other}"));
            }
            Finding::known(cni, seen)
        }
        (None, Some(cni)) => Finding::known(cni, seen),
        (None, None) if evidence.conflist == Ok(None) => {
            seen.push("no CNI configuration and no interface of a known CNI".to_owned());
            Finding::known("none", seen)
        }
        (None, None) => Finding::not_known(seen),
    }
}

/// Interfaces do not tell Azure's modes apart, nor Azure's Cilium from another.
fn kind(cni: &str) -> &str {
    match cni {
        "azure_cilium" => "cilium",
        other => other.split('_').next().unwrap_or(other),
    }
}

fn by_conflist(evidence: &Evidence, list: &Conflist) -> Option<&'static str> {
    let has = |kind| list.plugin(kind).is_some();
    let ipam = list.ipam();
    let ipam_is = |kind| ipam.is_some_and(|i| i.kind == kind);
    if has("cilium-cni") {
        return Some(cilium(evidence, ipam_is("azure-ipam")));
    }
    if has("azure-vnet") || has("azure-vnet-ipam") {
        // `v4overlay`, `dualStackOverlay`, `overlay`.
        let overlay = ipam.is_some_and(|i| i.mode.to_ascii_lowercase().ends_with("overlay"));
        return Some(match ipam_is("azure-cns") {
            true if overlay || labelled_overlay(evidence) => "azure_overlay",
            true => "azure_pod_subnet",
            false => "azure_node_subnet",
        });
    }
    if has("calico") {
        return Some("calico");
    }
    // Its network is named cbr0, and it delegates to `bridge`.
    if has("flannel") {
        return Some("flannel");
    }
    if list.name == "kindnet" || has("cni-kindnet") {
        return Some("kindnet");
    }
    let bridge = list.plugin("bridge")?;
    (list.name == "kubenet" || bridge.bridge == "cbr0").then_some("kubenet")
}

fn labelled_overlay(evidence: &Evidence) -> bool {
    evidence.label(NETWORK_TYPE) == Some("overlay") || evidence.label(OVERLAY) == Some("true")
}

fn cilium(evidence: &Evidence, azure: bool) -> &'static str {
    if azure || evidence.label(DATAPLANE) == Some("cilium") {
        "azure_cilium"
    } else {
        "cilium"
    }
}

fn by_interface(evidence: &Evidence) -> Option<(&'static str, String)> {
    if evidence.link("cilium_host").is_some() {
        let pods = evidence
            .link_like("lxc")
            .map_or(String::new(), |l| format!(" and {}", l.name));
        return Some((
            cilium(evidence, false),
            format!("interfaces cilium_host{pods}"),
        ));
    }
    if let Some(link) = evidence.link_like("azv") {
        return Some(azure(evidence, &link.name));
    }
    if let Some(link) = evidence.link_like("cali") {
        return Some(("calico", format!("interface {}", link.name)));
    }
    if evidence.link("cbr0").is_some_and(Link::is_bridge) {
        let at = subnet_of(evidence, "cbr0");
        return Some(("kubenet", format!("bridge cbr0{at}")));
    }
    let flannel = evidence.link_like("flannel.");
    if let (Some(tunnel), Some(_)) = (flannel, evidence.link("cni0")) {
        return Some(("flannel", format!("bridge cni0 and {}", tunnel.name)));
    }
    // kindnet's interfaces are like anybody's; its chain is not.
    if let Some(chain) = evidence.chain("nat", "KIND-MASQ-AGENT") {
        return Some(("kindnet", chain));
    }
    None
}

fn subnet_of(evidence: &Evidence, name: &str) -> String {
    let index = evidence.link(name).map(|l| l.index);
    evidence
        .snapshot
        .addresses
        .iter()
        .filter(|a| Some(a.index) == index)
        .find_map(Address::subnet)
        .map_or(String::new(), |net| format!(" {net}"))
}

/// Azure's modes by their traces: pods of the virtual network have addresses of the uplink's subnet or of
/// another; an overlay's are masqueraded; a pod subnet has no masquerade agent, but CNS's own chain.
fn azure(evidence: &Evidence, name: &str) -> (&'static str, String) {
    let why = |what: &str| format!("interface {name}{what}");
    if labelled_overlay(evidence) {
        return ("azure_overlay", why(" and the node's label"));
    }
    if let Some(chain) = ["SWIFT-POSTROUTING", "SWIFT"]
        .iter()
        .find_map(|chain| evidence.chain("nat", chain))
    {
        return ("azure_pod_subnet", why(&format!(" and {chain}")));
    }
    let snapshot = evidence.snapshot;
    let pod = snapshot.routes.iter().find_map(|r| {
        let (device, _) = r.hops.first()?;
        let azv = snapshot.link(*device)?.name.starts_with("azv");
        (azv && r.is_host()).then(|| r.to.addr())
    });
    let in_subnet = |pod: &IpAddr| {
        snapshot
            .addresses
            .iter()
            .filter(|a| !is_link_local(a.ip()))
            .filter_map(Address::subnet)
            .any(|net| net.contains(pod))
    };
    match pod {
        Some(pod) if !in_subnet(&pod) => (
            "azure_overlay",
            why(&format!(", whose pod {pod} is in no subnet of the node")),
        ),
        Some(pod) => (
            "azure_node_subnet",
            why(&format!(", whose pod {pod} is in the node's subnet")),
        ),
        None => ("azure_node_subnet", why("")),
    }
}

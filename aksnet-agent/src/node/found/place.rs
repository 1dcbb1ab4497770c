//! Where the node is: its zone, its own addresses, its DNS cache.

use std::net::IpAddr;

use super::{Finding, evidence::Evidence};
use crate::{node::address::Address, plan};

/// The zone's label, and its older form.
const ZONE: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
];
/// The dummy on which IPVS keeps the services' addresses: bound, but not the node's.
const IPVS: &str = "kube-ipvs0";
/// AKS's `localdns`, upstream's `nodelocaldns`.
const LOCAL_DNS: &str = "localdns";

pub(super) fn local_dns(evidence: &Evidence) -> Finding<Vec<IpAddr>> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for (address, device) in own(evidence) {
        if is_local_dns(address, device) {
            seen.push(format!("address {} of {device}", address.ip()));
            found.push(address.ip());
        }
    }
    if found.is_empty() {
        seen.push("no interface localdns or nodelocaldns, nor an address of theirs".to_owned());
    }
    Finding::known(found, seen)
}

pub(super) fn addresses(evidence: &Evidence) -> Finding<Vec<IpAddr>> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for (address, device) in own(evidence) {
        // A ptp gateway's address is on every pod's interface.
        if !address.ip().is_loopback()
            && !is_local_dns(address, device)
            && !found.contains(&address.ip())
        {
            seen.push(format!("{} of {device}", address.ip()));
            found.push(address.ip());
        }
    }
    if found.is_empty() {
        return Finding::not_known(vec!["no address was read".to_owned()]);
    }
    Finding::known(found, seen)
}

fn own<'a>(evidence: &'a Evidence) -> impl Iterator<Item = (&'a Address, &'a str)> {
    let snapshot = evidence.snapshot;
    snapshot
        .addresses
        .iter()
        .map(move |a| (a, snapshot.link(a.index).map_or("?", |l| l.name.as_str())))
        .filter(|(_, device)| *device != IPVS)
}

fn is_local_dns(address: &Address, device: &str) -> bool {
    device.contains(LOCAL_DNS)
        || plan::LOCAL_DNS
            .iter()
            .any(|dns| IpAddr::V4(*dns) == address.ip())
}

pub(super) fn zone(evidence: &Evidence) -> Finding<String> {
    for label in ZONE {
        if let Some(value) = evidence.label(label) {
            let mut seen = vec![format!("node label {label}={value}")];
            let zone = named(value);
            if zone.is_empty() {
                seen.push("a fault domain's number: in no zone".to_owned());
            }
            if let Some(other) = &evidence.compute
                && other.zone() != zone
            {
                let other = other.zone();
                seen.push(format!(
                    "against it: the instance metadata service says '{other}'"
                ));
            }
            return Finding::known(zone, seen);
        }
    }
    if let Some(compute) = &evidence.compute {
        let seen = format!(
            "instance metadata: location '{}', zone '{}'",
            compute.location, compute.zone
        );
        return Finding::known(compute.zone(), vec![seen]);
    }
    let labels = match evidence.labels {
        Some(_) => "no zone among the node's labels",
        None => "the node's labels are not known",
    };
    Finding::not_known(vec![format!(
        "{labels}, and no answer of the instance metadata service"
    )])
}

/// Nodes outside of zones carry the number of their fault domain in the zone's label
/// (kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_zones.go`).
fn named(label: &str) -> String {
    if label.bytes().all(|b| b.is_ascii_digit()) {
        String::new()
    } else {
        label.to_owned()
    }
}

//! What was *found* about the node: CNI, proxy mode, policy engine, masquerade agent, zone, each with the
//! evidence for it, so that an operator can see why the agent takes the node for what it says.
//!
//! [`evidence`] gathers, [`conclude`] draws the conclusions, which are pure. A finding that rests on a source
//! which could not be read is *not known*; `none` is said only where every source was read and none shows
//! anything.

// What is looked at.
pub mod conflist;

pub mod evidence;

// What follows from it.
mod cni;

mod proxy;

mod policy;

mod masquerade;

mod place;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde_json::{Value, json};

use self::evidence::Evidence;
use super::{Snapshot, metadata::Compute};
use crate::config::Config;

pub use self::masquerade::Masquerade;

/// Labels of the Kubernetes node, where they are known.
pub type Labels = BTreeMap<String, String>;

/// A conclusion and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<T> {
    /// `None` if it is not known.
    pub value: Option<T>,
    /// What was seen, strongest first; then what speaks against it, and what could not be read.
    pub evidence: Vec<String>,
}

impl<T> Finding<T> {
    fn known(value: T, evidence: Vec<String>) -> Self {
        Self {
            value: Some(value),
            evidence,
        }
    }

    fn not_known(evidence: Vec<String>) -> Self {
        Self {
            value: None,
            evidence,
        }
    }
}

/// What the node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `kubenet`, `azure_node_subnet`, `azure_pod_subnet`, `azure_overlay`, `azure_cilium`, `cilium`,
    /// `kindnet`, `calico`, `flannel`; `none` on a machine without any.
    pub cni: Finding<&'static str>,
    /// `iptables`, `nftables`, `ipvs`, `ebpf`, `none`.
    pub proxy_mode: Finding<&'static str>,
    /// `azure_npm`, `calico`, `kindnet`, `kube_network_policies`, `cilium`, `none`.
    pub policy_engine: Finding<&'static str>,
    /// Who masquerades pods; the inner `None` is: nobody.
    pub masquerade: Finding<Option<Masquerade>>,
    /// Where the node's DNS cache listens; empty without one.
    pub local_dns: Finding<Vec<IpAddr>>,
    /// All other addresses that the node owns, bridges' included.
    pub addresses: Finding<Vec<IpAddr>>,
    /// The availability zone, `eastus2-1`; empty for a node in none.
    pub zone: Finding<String>,
    /// The kernel's release.
    pub kernel: String,
}

/// What detection depends on besides the node itself.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the host's root directory is.
    pub host_root: PathBuf,
    /// What the instance metadata service said, if it was asked.
    pub compute: Option<Compute>,
}

impl Settings {
    /// From the agent's settings.
    #[must_use]
    pub fn new(config: &Config, compute: Option<Compute>) -> Self {
        Self {
            host_root: config.host_root.clone(),
            compute,
        }
    }
}

/// Looks at the node and concludes. Blocks for some milliseconds: not for the threads of the runtime. Asks
/// about the calling thread's network namespace.
#[must_use]
pub fn detect(settings: &Settings, snapshot: &Snapshot, labels: Option<&Labels>) -> Found {
    conclude(&Evidence::gather(settings, snapshot, labels))
}

/// Concludes from the evidence.
#[must_use]
pub fn conclude(evidence: &Evidence) -> Found {
    let cni = cni::conclude(evidence);
    Found {
        proxy_mode: proxy::conclude(evidence),
        policy_engine: policy::conclude(evidence),
        masquerade: masquerade::conclude(evidence),
        local_dns: place::local_dns(evidence),
        addresses: place::addresses(evidence),
        zone: place::zone(evidence),
        kernel: evidence.kernel.clone(),
        cni,
    }
}

impl Found {
    /// What the agent logs at start, and when it changes.
    #[must_use]
    pub fn line(&self) -> String {
        let masquerade = match &self.masquerade.value {
            None => "not known".to_owned(),
            Some(None) => "none".to_owned(),
            Some(Some(m)) => m.to_string(),
        };
        let zone = match self.zone.value.as_deref() {
            None => "not known",
            Some("") => "none",
            Some(zone) => zone,
        };
        format!(
            "this node: CNI {}, kube-proxy {}, policy engine {}, masquerading {masquerade}{}, zone {zone}{}",
            told(&self.cni),
            told(&self.proxy_mode),
            told(&self.policy_engine),
            why(&self.masquerade.evidence),
            why(&self.zone.evidence),
        )
    }

    /// For `/status`: `{cni: {value, evidence}, …}`; a value that is not known is `"not known"`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        fn shown<T>(finding: &Finding<T>, value: impl Fn(&T) -> Value) -> Value {
            let value = finding.value.as_ref().map_or(json!("not known"), value);
            json!({"value": value, "evidence": finding.evidence})
        }
        json!({
            "cni": shown(&self.cni, |v| json!(v)),
            "proxy_mode": shown(&self.proxy_mode, |v| json!(v)),
            "policy_engine": shown(&self.policy_engine, |v| json!(v)),
            "masquerade": shown(&self.masquerade, |v| match v {
                Some(m) => json!({
                    "agent": m.agent,
                    "chain": m.chain,
                    "non_masquerade_cidrs": m.spared,
                    "masquerades_link_local": m.link_local,
                    "random_fully": m.random_fully,
                }),
                None => json!("none"),
            }),
            "local_dns": shown(&self.local_dns, |v| json!(v)),
            "addresses": shown(&self.addresses, |v| json!(v)),
            "zone": shown(&self.zone, |v| json!(v)),
            "kernel": self.kernel,
        })
    }
}

fn told(finding: &Finding<&'static str>) -> String {
    let value = finding.value.unwrap_or("not known");
    format!("{value}{}", why(&finding.evidence))
}

fn why(evidence: &[String]) -> String {
    evidence
        .first()
        .map_or(String::new(), |first| format!(" ({first})"))
}

#[cfg(test)]
pub(crate) mod tests;

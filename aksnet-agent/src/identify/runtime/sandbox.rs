//! A *sandbox* as a pod: what the runtime says of it, reduced to what is kept; and what a list of them changes.
//! Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::wire;
use crate::identify::{
    object::{Kind, Labels, Pod, Text},
    workload,
};

/// Labels that kubelet adds to the pod's own (`pkg/kubelet/types/labels.go`).
const KUBELET_LABELS: &str = "io.kubernetes.pod.";
/// Where kubelet has a pod from: `api`, or `file` and `http` for a static pod
/// (`pkg/kubelet/types/pod_update.go`, `ConfigSourceAnnotationKey`).
const SOURCE: &str = "kubernetes.io/config.source";
/// The longest name of a pod (RFC 1123 subdomain) or namespace.
const LONGEST_NAME: usize = 253;
/// The longest key of a label: prefix, slash, name.
const LONGEST_LABEL_KEY: usize = 317;
/// The longest value of a label.
const LONGEST_LABEL_VALUE: usize = 63;
/// More labels than this are not kept.
const MOST_LABELS: usize = 256;
/// More addresses than this are not kept; a pod has one of each family, more with several networks.
const MOST_ADDRESSES: usize = 16;

/// A sandbox in the runtime's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The runtime's id of it.
    pub id: Text,
    /// `SANDBOX_READY`; else it was stopped, or its process died.
    pub ready: bool,
}

/// What a list changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Not known yet: to be asked for; those that are ready first.
    pub ask: Vec<Text>,
    /// Known as running, and not ready any more.
    pub finished: Vec<Text>,
    /// Known, and not listed any more.
    pub gone: Vec<Text>,
}

/// What this list changes, by what is known under each id.
///
/// A sandbox is asked for again as long as it is ready and has no address: containerd 2 and CRI-O list it while
/// its network is still being made.
#[must_use]
pub fn fold(known: &BTreeMap<Text, Option<Pod>>, listed: &[Listed]) -> Changes {
    let mut changes = Changes::default();
    let mut later = Vec::new();
    let mut seen = BTreeSet::new();
    for sandbox in listed {
        if !seen.insert(&sandbox.id) {
            continue;
        }
        match known.get(&sandbox.id) {
            None if sandbox.ready => changes.ask.push(sandbox.id.clone()),
            None => later.push(sandbox.id.clone()),
            Some(Some(pod)) if sandbox.ready => {
                if pod.finished || (pod.addresses.is_empty() && !pod.host_network) {
                    changes.ask.push(sandbox.id.clone());
                }
            }
            Some(Some(pod)) if !pod.finished => changes.finished.push(sandbox.id.clone()),
            Some(_) => {}
        }
    }
    changes.ask.append(&mut later);
    changes.gone = known
        .keys()
        .filter(|id| !seen.contains(id))
        .cloned()
        .collect();
    changes
}

/// The sandbox as a pod of this node; `None` if it has no name that a pod could have.
pub(super) fn pod(id: &Text, status: wire::PodSandboxStatus, node: &Text) -> Option<Pod> {
    let metadata = status.metadata?;
    let named = |name: &str| !name.is_empty() && name.len() <= LONGEST_NAME;
    if !named(&metadata.name) || !named(&metadata.namespace) {
        return None;
    }
    let host_network = status
        .linux
        .and_then(|linux| linux.namespaces?.options)
        .is_some_and(|options| options.network == wire::NODE);
    let network = status.network.unwrap_or_default();
    let addresses = std::iter::once(&network.ip)
        .chain(network.additional_ips.iter().map(|more| &more.ip))
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .filter(|ip| !ip.is_unspecified())
        .take(MOST_ADDRESSES)
        .map(Into::into);
    // The API server knows a static pod by a copy of it, which has another uid.
    let of_api = status
        .annotations
        .get(SOURCE)
        .is_none_or(|source| source == "api");
    let labels = labels(status.labels);
    let name: Text = metadata.name.into();
    Some(Pod {
        kind: Kind::Sandbox,
        key_name: id.clone(),
        namespace: metadata.namespace.into(),
        workload: workload::by_labels(&name, node, &labels),
        name,
        uid: if of_api && metadata.uid.len() <= LONGEST_NAME {
            metadata.uid.into()
        } else {
            Text::default()
        },
        // Some runtimes give the node's address for such a pod.
        addresses: if host_network {
            Vec::new()
        } else {
            addresses.collect()
        },
        node: node.clone(),
        host_network,
        finished: status.state != wire::READY,
        labels,
        named_ports: Vec::new(),
        host_ports: Vec::new(),
    })
}

/// The pod's own labels, as far as they are labels.
fn labels(all: BTreeMap<String, String>) -> Labels {
    all.into_iter()
        .filter(|(key, value)| {
            !key.starts_with(KUBELET_LABELS)
                && key.len() <= LONGEST_LABEL_KEY
                && value.len() <= LONGEST_LABEL_VALUE
        })
        .take(MOST_LABELS)
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

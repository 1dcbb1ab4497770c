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

/// Labels that kubelet adds to the pod's own (`newPodLabels`, `pkg/kubelet/kuberuntime/labels.go`).
const KUBELET_LABELS: [&str; 3] = [
    "io.kubernetes.pod.name",
    "io.kubernetes.pod.namespace",
    "io.kubernetes.pod.uid",
];
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
/// A sandbox is asked for again as long as it is ready and has no address. containerd lists it when its network is
/// made (`RunPodSandbox`, `internal/cri/server/sandbox_run.go`, adds it to the store last); CRI does not say that
/// every runtime must.
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
            !KUBELET_LABELS.contains(&&**key)
                && key.len() <= LONGEST_LABEL_KEY
                && value.len() <= LONGEST_LABEL_VALUE
        })
        .take(MOST_LABELS)
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{
        LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp, PodSandboxMetadata,
        PodSandboxNetworkStatus, PodSandboxStatus,
    };
    use super::*;

    fn status(name: &str, ip: &str, more: &[&str]) -> PodSandboxStatus {
        PodSandboxStatus {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: "u".to_owned(),
                namespace: "shop".to_owned(),
            }),
            network: Some(PodSandboxNetworkStatus {
                ip: ip.to_owned(),
                additional_ips: more
                    .iter()
                    .map(|ip| PodIp {
                        ip: (*ip).to_owned(),
                    })
                    .collect(),
            }),
            ..PodSandboxStatus::default()
        }
    }

    fn made(status: PodSandboxStatus) -> Option<Pod> {
        pod(&"id".into(), status, &"node-0".into())
    }

    fn addresses(pod: &Pod) -> Vec<String> {
        let ips = pod.addresses.iter().map(|&a| IpAddr::from(a).to_string());
        ips.collect()
    }

    #[test]
    fn a_pod_has_its_name_both_addresses_and_its_own_labels() {
        let mut status = status("web-5d4f8c7b9d-x7k2p", "10.244.0.7", &["fd00::7"]);
        status.labels = BTreeMap::from(
            [
                ("io.kubernetes.pod.name", "web-5d4f8c7b9d-x7k2p"),
                ("io.kubernetes.pod.uid", "u"),
                ("pod-template-hash", "5d4f8c7b9d"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        let pod = made(status).unwrap();
        assert_eq!(addresses(&pod), ["10.244.0.7", "fd00::7"]);
        assert_eq!(
            (&*pod.namespace, &*pod.name, &*pod.uid, &*pod.workload),
            ("shop", "web-5d4f8c7b9d-x7k2p", "u", "web")
        );
        assert_eq!(
            (&*pod.key_name, &*pod.node, pod.kind),
            ("id", "node-0", Kind::Sandbox)
        );
        let labels: Vec<&str> = pod.labels.iter().map(|(key, _)| &**key).collect();
        assert_eq!(labels, ["pod-template-hash"]);
        assert!(!pod.finished && !pod.host_network);
    }

    #[test]
    fn a_pod_on_the_nodes_network_has_no_address_of_its_own() {
        let mut status = status("exporter", "10.224.0.4", &[]);
        status.linux = Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: Some(NamespaceOption {
                    network: wire::NODE,
                }),
            }),
        });
        let pod = made(status).unwrap();
        assert!(pod.host_network && pod.addresses.is_empty());
    }

    #[test]
    fn what_is_no_address_is_left_out() {
        let pod = made(status(
            "web",
            "",
            &["10.244.0.7/24", "::", "0.0.0.0", "fd00::7"],
        ))
        .unwrap();
        assert_eq!(addresses(&pod), ["fd00::7"]);
        let many = vec!["10.244.0.7"; 100];
        assert_eq!(
            made(status("web", "", &many)).unwrap().addresses.len(),
            MOST_ADDRESSES
        );
    }

    #[test]
    fn a_static_pod_has_no_uid_that_the_api_server_would_know() {
        let mut status = status("kube-proxy-node-0", "", &[]);
        status
            .annotations
            .insert(SOURCE.to_owned(), "file".to_owned());
        assert_eq!(&*made(status.clone()).unwrap().uid, "");
        status
            .annotations
            .insert(SOURCE.to_owned(), "api".to_owned());
        assert_eq!(&*made(status).unwrap().uid, "u");
    }

    #[test]
    fn what_has_no_name_that_a_pod_could_have_is_no_pod() {
        assert_eq!(made(PodSandboxStatus::default()), None);
        assert_eq!(made(status("", "10.244.0.7", &[])), None);
        assert_eq!(made(status(&"x".repeat(254), "10.244.0.7", &[])), None);
    }

    #[test]
    fn what_is_no_label_is_not_kept_and_not_more_than_a_pod_could_have() {
        let mut status = status("web", "10.244.0.7", &[]);
        status.labels = (0..1000)
            .map(|n| (format!("k{n}"), "v".to_owned()))
            .collect();
        status.labels.insert("a".to_owned(), "v".repeat(64));
        status.labels.insert("b".repeat(318), String::new());
        let pod = made(status).unwrap();
        assert_eq!(pod.labels.len(), MOST_LABELS);
        assert!(pod.labels.iter().all(|(key, _)| key.starts_with('k')));
    }

    fn listed(id: &str, ready: bool) -> Listed {
        Listed {
            id: id.into(),
            ready,
        }
    }

    /// Known by its id, with or without an address.
    fn known(id: &str, finished: bool, addresses: usize) -> (Text, Option<Pod>) {
        let ips = vec!["10.244.0.7"; addresses];
        let mut pod = made(status("web", "", &ips)).unwrap();
        pod.finished = finished;
        (id.into(), Some(pod))
    }

    #[test]
    fn what_is_new_is_asked_for_and_what_runs_first() {
        let list = [listed("a", false), listed("b", true), listed("b", true)];
        let changes = fold(&BTreeMap::new(), &list);
        assert_eq!(changes.ask, ["b".into(), "a".into()]);
        assert_eq!((changes.finished.len(), changes.gone.len()), (0, 0));
    }

    #[test]
    fn what_is_known_is_not_asked_for_unless_it_runs_and_has_no_address() {
        let known = BTreeMap::from([
            known("a", false, 1),
            known("b", false, 0),
            known("c", true, 0),
            ("d".into(), None),
        ]);
        let list = ["a", "b", "c", "d"].map(|id| listed(id, id != "c"));
        assert_eq!(
            fold(&known, &list),
            Changes {
                ask: vec!["b".into()],
                ..Changes::default()
            }
        );
    }

    #[test]
    fn what_is_not_ready_any_more_is_finished_once_and_what_is_not_listed_is_gone() {
        let known = BTreeMap::from([
            known("a", false, 1),
            known("b", true, 1),
            known("c", false, 1),
            ("d".into(), None),
        ]);
        let list = [listed("a", false), listed("b", false)];
        assert_eq!(
            fold(&known, &list),
            Changes {
                ask: vec![],
                finished: vec!["a".into()],
                gone: vec!["c".into(), "d".into()],
            }
        );
    }

    proptest! {
        #[test]
        fn once_followed_the_same_list_changes_nothing(
            before in prop::collection::btree_map(0..9_u8, any::<bool>(), 0..9),
            after in prop::collection::btree_map(0..9_u8, any::<bool>(), 0..9),
        ) {
            let mut state = BTreeMap::new();
            for list in [before, after] {
                let list: Vec<Listed> =
                    list.iter().map(|(id, ready)| listed(&id.to_string(), *ready)).collect();
                let changes = fold(&state, &list);
                for id in changes.gone {
                    prop_assert!(state.remove(&id).is_some());
                }
                for id in changes.finished {
                    state.get_mut(&id).unwrap().as_mut().unwrap().finished = true;
                }
                for id in changes.ask {
                    let ready = list.iter().any(|sandbox| sandbox.id == id && sandbox.ready);
                    state.extend([known(&id, !ready, 1)]);
                }
                prop_assert_eq!(fold(&state, &list), Changes::default());
                prop_assert_eq!(state.len(), list.len());
            }
        }
    }
}

//! A *workload*: what a person deployed and would look for, such as a Deployment rather than its `ReplicaSet` of
//! today.
//!
//! It is told by names alone, as reading every `ReplicaSet` and `Job` of a cluster would cost the API server far
//! more than a name is worth. Each pattern is what the controller itself builds.

use super::object::Text;

/// A controller that owns a pod: the entry of `metadata.ownerReferences` with `controller: true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Its kind, such as `ReplicaSet`.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// The hash of a pod's template, on pods and `ReplicaSet`s of a Deployment
/// (`DefaultDeploymentUniqueLabelKey`, kubernetes `staging/src/k8s.io/api/apps/v1/types.go`). Argo Rollouts has one
/// of its own.
const TEMPLATE_HASH: [&str; 2] = ["pod-template-hash", "rollouts-pod-template-hash"];

/// On a pod of a `StatefulSet`: its name, and since Kubernetes 1.28 its number (`StatefulSetPodNameLabel` and
/// `PodIndexLabel`, same file).
const STATEFUL: [&str; 2] = [
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

/// On a pod of a Job: the Job's name. The second is what it was called before Kubernetes 1.27
/// (`JobNameLabel`, kubernetes `staging/src/k8s.io/api/batch/v1/types.go`).
const JOB: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

/// On a pod of a `DaemonSet` or `StatefulSet`: its revision (`ControllerRevisionHashLabelKey`, kubernetes
/// `staging/src/k8s.io/api/apps/v1/types.go`).
const REVISION: &str = "controller-revision-hash";

/// Letters that generated suffixes and encoded hashes consist of (apimachinery `pkg/util/rand/rand.go`).
const ALPHANUMS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What `generateName` adds (apiserver `pkg/storage/names/generate.go`).
const RANDOM: usize = 5;

/// The longest name that `generateName` makes; what stands before the suffix is cut (same file).
const GENERATED: usize = 63;

/// The workload's name of a pod by its owner.
///
/// - `ReplicaSet` with `-<pod-template-hash>` at its end: the Deployment or Rollout (kubernetes
///   `pkg/controller/deployment/sync.go`, `getNewReplicaSet`);
/// - `Job` with `-<minutes since 1970>` at its end: the `CronJob` (kubernetes
///   `pkg/controller/cronjob/cronjob_controllerv2.go`, `getJobName`; seconds before Kubernetes 1.21);
/// - `Node`, which owns the mirror of a static pod: the pod's name less the node's (kubernetes
///   `pkg/kubelet/config/common.go`, `generatePodName`);
/// - any other controller: its own name; none: the pod's.
#[must_use]
pub fn by_owner(owner: Option<Owner<'_>>, pod: &str, node: &str, labels: &[(Text, Text)]) -> Text {
    let name = match owner {
        None | Some(Owner { name: "", .. }) => pod,
        Some(Owner {
            kind: "ReplicaSet",
            name,
        }) => template_hash(labels)
            .find_map(|hash| less(name, hash))
            .unwrap_or(name),
        Some(Owner { kind: "Job", name }) => cron_job(name).unwrap_or(name),
        Some(Owner { kind: "Node", .. }) => static_pod(pod, node).unwrap_or(pod),
        Some(Owner { name, .. }) => name,
    };
    name.into()
}

/// The workload's name of a pod by its labels: the container runtime knows no owners. Where the labels tell of no
/// controller and the pod's name ends in the node's, it is a static pod.
#[must_use]
pub fn by_labels(pod: &str, node: &str, labels: &[(Text, Text)]) -> Text {
    let name = template_hash(labels)
        .find_map(|hash| deployment(pod, hash))
        .or_else(|| stateful(pod, labels))
        .or_else(|| {
            let job = JOB.iter().find_map(|key| value(labels, key))?;
            Some(cron_job(job).unwrap_or(job))
        })
        .or_else(|| value(labels, REVISION).and_then(|_| less_random(pod)))
        .or_else(|| static_pod(pod, node))
        .unwrap_or(pod);
    name.into()
}

fn value<'a>(labels: &'a [(Text, Text)], key: &str) -> Option<&'a str> {
    labels
        .iter()
        .find(|(known, value)| **known == *key && !value.is_empty())
        .map(|(_, value)| &**value)
}

fn template_hash(labels: &[(Text, Text)]) -> impl Iterator<Item = &str> {
    TEMPLATE_HASH.iter().filter_map(|key| value(labels, key))
}

/// A name less `-` and this end; nothing where it has another end, or is nothing but it.
fn less<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    name.strip_suffix(end)?
        .strip_suffix('-')
        .filter(|rest| !rest.is_empty())
}

/// A pod's name less what `generateName` added to `<controller>-`.
fn less_random(pod: &str) -> Option<&str> {
    let (rest, suffix) = pod.split_at_checked(pod.len().checked_sub(RANDOM)?)?;
    let random = suffix.bytes().all(|letter| ALPHANUMS.contains(&letter));
    let rest = rest
        .strip_suffix('-')
        .unwrap_or(if pod.len() == GENERATED { rest } else { "" });
    (random && !rest.is_empty()).then_some(rest)
}

/// The Deployment of a pod: `<deployment>-<hash>-<random>`, of which a long name has lost a part of the hash.
fn deployment<'a>(pod: &'a str, hash: &str) -> Option<&'a str> {
    let rest = less_random(pod)?;
    if let Some(name) = less(rest, hash) {
        return Some(name);
    }
    let (name, part) = rest.rsplit_once('-')?;
    (pod.len() == GENERATED && hash.starts_with(part) && !name.is_empty()).then_some(name)
}

/// The `StatefulSet` of a pod: `<set>-<number>` (kubernetes `pkg/controller/statefulset/stateful_set_utils.go`,
/// `getPodName`).
fn stateful<'a>(pod: &'a str, labels: &[(Text, Text)]) -> Option<&'a str> {
    STATEFUL.iter().find_map(|key| value(labels, key))?;
    let (set, number) = pod.rsplit_once('-')?;
    (digits(number) && !set.is_empty()).then_some(set)
}

/// The `CronJob` of a Job. Eight digits are minutes from 1989 to 2160, ten are seconds from 2001 on.
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    ((8..=10).contains(&time.len()) && digits(time) && !name.is_empty()).then_some(name)
}

/// The static pod of a mirror. The kubelet writes the node's name in lower case.
fn static_pod<'a>(pod: &'a str, node: &str) -> Option<&'a str> {
    if node.is_empty() {
        return None;
    }
    less(pod, &node.to_ascii_lowercase())
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Vec<(Text, Text)> {
        pairs
            .iter()
            .map(|(k, v)| (Text::from(*k), Text::from(*v)))
            .collect()
    }

    fn owned(kind: &str, name: &str, pod: &str, pairs: &[(&str, &str)]) -> String {
        let owner = Owner { kind, name };
        by_owner(Some(owner), pod, "aks-np-0", &labels(pairs)).to_string()
    }

    fn labelled(pod: &str, pairs: &[(&str, &str)]) -> String {
        by_labels(pod, "aks-np-0", &labels(pairs)).to_string()
    }

    const HASH: (&str, &str) = ("pod-template-hash", "7d9c8b5f6");

    #[test]
    fn a_replica_set_with_the_template_hash_is_its_deployment() {
        assert_eq!(owned("ReplicaSet", "web-7d9c8b5f6", "p", &[HASH]), "web");
        let rollout = [("rollouts-pod-template-hash", "66f5c")];
        assert_eq!(owned("ReplicaSet", "shop-66f5c", "p", &rollout), "shop");
    }

    #[test]
    fn a_replica_set_of_its_own_keeps_its_name() {
        assert_eq!(
            owned("ReplicaSet", "web-7d9c8b5f6", "p", &[]),
            "web-7d9c8b5f6"
        );
        assert_eq!(owned("ReplicaSet", "web", "p", &[HASH]), "web");
        assert_eq!(
            owned("ReplicaSet", "-7d9c8b5f6", "p", &[HASH]),
            "-7d9c8b5f6"
        );
    }

    #[test]
    fn other_controllers_go_by_their_own_names() {
        for kind in [
            "StatefulSet",
            "DaemonSet",
            "ReplicationController",
            "CloneSet",
        ] {
            assert_eq!(owned(kind, "db-12345678", "db-0", &[]), "db-12345678");
        }
    }

    #[test]
    fn a_job_of_a_cron_job_is_the_cron_job() {
        assert_eq!(owned("Job", "backup-28931040", "p", &[]), "backup");
        assert_eq!(owned("Job", "backup-1735862400", "p", &[]), "backup");
        for name in [
            "migrate",
            "migrate-3",
            "migrate-1234567",
            "migrate-12345678901",
            "a-2893104x",
        ] {
            assert_eq!(owned("Job", name, "p", &[]), name);
        }
    }

    #[test]
    fn a_static_pod_loses_its_nodes_name() {
        let pod = "kube-proxy-aks-np-0";
        assert_eq!(owned("Node", "aks-np-0", pod, &[]), "kube-proxy");
        assert_eq!(
            owned("Node", "other", "kube-proxy-other", &[]),
            "kube-proxy-other"
        );
        let upper = by_owner(
            Some(Owner {
                kind: "Node",
                name: "N",
            }),
            "etcd-n",
            "N",
            &[],
        );
        assert_eq!(&*upper, "etcd");
    }

    #[test]
    fn a_pod_without_a_controller_is_its_own_workload() {
        assert_eq!(
            &*by_owner(None, "debug", "aks-np-0", &labels(&[HASH])),
            "debug"
        );
        assert_eq!(owned("ReplicaSet", "", "debug", &[HASH]), "debug");
    }

    #[test]
    fn labels_tell_of_a_deployment() {
        assert_eq!(labelled("web-7d9c8b5f6-x2x4z", &[HASH]), "web");
        assert_eq!(
            labelled("web-7d9c8b5f6-x2x4", &[HASH]),
            "web-7d9c8b5f6-x2x4"
        );
        assert_eq!(labelled("copied", &[HASH]), "copied");
    }

    #[test]
    fn a_cut_name_is_still_its_deployments() {
        let name = "a".repeat(52);
        // 58 characters stay: the name, a hyphen, and five of the hash's nine.
        assert_eq!(labelled(&format!("{name}-7d9c8x2x4z"), &[HASH]), name);
    }

    #[test]
    fn labels_tell_of_a_stateful_set() {
        assert_eq!(
            labelled("db-0", &[("statefulset.kubernetes.io/pod-name", "db-0")]),
            "db"
        );
        let revision = ("controller-revision-hash", "db-6c5f9d");
        assert_eq!(
            labelled("db-12", &[revision, ("apps.kubernetes.io/pod-index", "12")]),
            "db"
        );
    }

    #[test]
    fn labels_tell_of_a_job_and_its_cron_job() {
        assert_eq!(
            labelled("backup-28931040-x2x4z", &[("job-name", "backup-28931040")]),
            "backup"
        );
        let job = ("batch.kubernetes.io/job-name", "migrate");
        assert_eq!(labelled("migrate-x2x4z", &[job]), "migrate");
    }

    #[test]
    fn labels_tell_of_a_daemon_set() {
        let revision = [("controller-revision-hash", "6c5f9d")];
        assert_eq!(labelled("azure-npm-x2x4z", &revision), "azure-npm");
        assert_eq!(labelled("azure-npm-abcde", &revision), "azure-npm-abcde");
    }

    #[test]
    fn without_telling_labels_a_pod_is_static_or_its_own() {
        assert_eq!(labelled("kube-proxy-aks-np-0", &[]), "kube-proxy");
        assert_eq!(labelled("debug", &[("app", "web")]), "debug");
        assert_eq!(labelled("aks-np-0", &[]), "aks-np-0");
    }

    proptest! {
        #[test]
        fn a_workload_is_never_empty_and_never_longer_than_what_told_of_it(
            kind in prop::sample::select(vec!["ReplicaSet", "Job", "Node", "DaemonSet", "X"]),
            name in "\\PC{1,12}(-[0-9]{0,11})?",
            pod in "\\PC{1,70}",
            node in "\\PC{0,6}",
            hash in "\\PC{0,4}",
        ) {
            let keys = ["pod-template-hash", "job-name", "controller-revision-hash", "apps.kubernetes.io/pod-index"];
            for key in keys {
                let labels = labels(&[(key, &hash)]);
                let owned = by_owner(Some(Owner { kind, name: &name }), &pod, &node, &labels);
                prop_assert!(!owned.is_empty() && owned.len() <= name.len().max(pod.len()));
                let labelled = by_labels(&pod, &node, &labels);
                prop_assert!(!labelled.is_empty() && labelled.len() <= pod.len().max(hash.len()));
            }
        }
    }
}

//! The *survey*: looks at the node again and again (its CNI, rules, pod addresses, zone), away from the agent's life,
//! as that takes files, netlink dumps and an answer over HTTP.
//!
//! It is done at once when interfaces or the cluster's services and nodes change, but not twice in two seconds, and
//! every minute in any case: rules change without a trace.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    config::Config,
    identify::{index::Index, object::Kind, shared::Shared, sink::Status},
    node::{
        Context, Snapshot,
        found::{self, Found, Labels, Settings},
        metadata::{self, Compute},
        pod_ips::{self, Accounts, Kubernetes, Living},
    },
    sources::Sources,
};

/// How long the first survey waits for names: where pods live is the nodes' objects to tell, and connections that are
/// judged before that are judged for good. It is less than the first sweep waits for the first survey.
const NAMES: Duration = Duration::from_secs(3);
/// Between two surveys when something changes all the time.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two surveys when nothing does.
const EVERY: Duration = Duration::from_mins(1);
/// How often Kubernetes' objects are checked for news.
const CHECK: Duration = Duration::from_secs(1);
/// Between two questions to a metadata service that did not answer.
const ASK_AGAIN: Duration = Duration::from_mins(10);

/// How long to wait after a survey that took so long: on a node with very large legacy tables it takes 100 ms, and
/// shall not take more than a fiftieth of a core.
fn pause_after(took: Duration) -> Duration {
    PAUSE.max(took * 50).min(EVERY)
}

/// What one survey says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// What the node is.
    pub found: Found,
    /// How many pod addresses it has handed out.
    pub pod_ips: Accounts,
    /// Where the cluster's pods live, by the nodes' `spec.podCIDRs`, joined where they are neighbours.
    pub pod_cidrs: Vec<IpNet>,
    /// The same of this node alone.
    pub own_pod_cidrs: Vec<IpNet>,
    /// Why the metadata service told nothing, if it did not.
    pub metadata: Option<String>,
    /// Whether a load balancer of the standard SKU is in front, by the metadata service; `None`: not known.
    pub standard_balancer: Option<bool>,
}

impl Surveyed {
    /// What of it the address plan rests on.
    #[must_use]
    pub fn context(&self) -> Context {
        Context {
            found: Some(self.found.clone()),
            pod_cidrs: self.pod_cidrs.clone(),
            own_pod_cidrs: self.own_pod_cidrs.clone(),
        }
    }

    /// For `/status`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "found": self.found.to_json(),
            "pod_ips": self.pod_ips.to_json(),
            "metadata_service": self.metadata,
            "standard_load_balancer": self.standard_balancer,
        })
    }
}

/// A running survey; ends when it is dropped.
pub struct Survey {
    task: JoinHandle<()>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    results: watch::Receiver<Option<Arc<Surveyed>>>,
}

impl Drop for Survey {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Survey {
    /// Starts. Must be called within a tokio runtime whose threads are in the node's network namespace.
    #[must_use]
    pub fn start(config: &Config, snapshot: &Snapshot, sources: Arc<Sources>) -> Self {
        let (snapshots, mut changes) = watch::channel(Arc::new(snapshot.clone()));
        let (sender, results) = watch::channel(None);
        let config = config.clone();
        let task = tokio::spawn(async move {
            sources.settle(NAMES).await;
            let names = sources.names.clone();
            drop(sources);
            let mut metadata = Metadata::default();
            loop {
                let began = Instant::now();
                let snapshot = changes.borrow_and_update().clone();
                let seen = names.read().generation();
                let surveyed = survey(&config, &snapshot, &names, &mut metadata).await;
                sender.send_if_modified(|last: &mut Option<Arc<Surveyed>>| {
                    let news = last.as_deref() != Some(&surveyed);
                    if news {
                        *last = Some(Arc::new(surveyed));
                    }
                    news
                });
                sleep_until(Instant::now() + pause_after(began.elapsed())).await;
                let due = sleep_until(began + EVERY);
                tokio::pin!(due);
                loop {
                    tokio::select! {
                        told = changes.changed() => {
                            if told.is_err() {
                                return;
                            }
                            break;
                        }
                        () = &mut due => break,
                        () = tokio::time::sleep(CHECK) => {
                            if names.read().generation() != seen {
                                break;
                            }
                        }
                    }
                }
            }
        });
        Self {
            task,
            snapshots,
            results,
        }
    }

    /// The node's interfaces, addresses or routes are these now.
    pub fn look(&self, snapshot: &Snapshot) {
        self.snapshots.send_replace(Arc::new(snapshot.clone()));
    }

    /// The next result that differs from the one before.
    pub async fn next(&mut self) -> Arc<Surveyed> {
        loop {
            if self.results.changed().await.is_err() {
                // The task has ended, which it does only with its runtime.
                std::future::pending::<()>().await;
            }
            if let Some(surveyed) = self.results.borrow_and_update().clone() {
                return surveyed;
            }
        }
    }
}

/// The metadata service's answer, asked for until there is one: a machine does not change its zone.
#[derive(Default)]
struct Metadata {
    compute: Option<Compute>,
    refused: Option<(Instant, String)>,
    /// Whether a standard load balancer is in front, and when that was asked.
    balancer: Option<(Instant, Option<bool>)>,
}

impl Metadata {
    async fn ask(&mut self, config: &Config) {
        let waits = |(at, _): &(Instant, String)| at.elapsed() < ASK_AGAIN;
        if self.compute.is_some() || self.refused.as_ref().is_some_and(waits) {
            return;
        }
        match metadata::ask(config.imds, std::path::Path::new(metadata::ASSET_TAG)).await {
            Ok(compute) => (self.compute, self.refused) = (Some(compute), None),
            Err(why) => self.refused = Some((Instant::now(), why)),
        }
    }

    /// A load balancer may come with the first service that asks for one: "none" is asked again.
    async fn ask_balancer(&mut self, config: &Config) {
        let stays =
            |(at, told): &(Instant, Option<bool>)| *told == Some(true) || at.elapsed() < ASK_AGAIN;
        if self.compute.is_none() || self.balancer.as_ref().is_some_and(stays) {
            return;
        }
        let tag = std::path::Path::new(metadata::ASSET_TAG);
        let told = metadata::ask_balancer(config.imds, tag).await;
        if let Err(why) = &told {
            tracing::debug!("the metadata service does not tell of a load balancer: {why}");
        }
        self.balancer = Some((Instant::now(), told.ok()));
    }
}

async fn survey(
    config: &Config,
    snapshot: &Arc<Snapshot>,
    names: &Shared,
    metadata: &mut Metadata,
) -> Surveyed {
    metadata.ask(config).await;
    metadata.ask_balancer(config).await;
    let (labels, kubernetes, pod_cidrs) = of_kubernetes(&names.read());
    let living = living(names);
    let settings = Settings::new(config, metadata.compute.clone());
    let looked = {
        let snapshot = snapshot.clone();
        tokio::task::spawn_blocking(move || found::detect(&settings, &snapshot, labels.as_ref()))
    };
    let Ok(found) = looked.await else {
        // It panicked, which is on record, or the agent ends.
        return std::future::pending().await;
    };
    Surveyed {
        found,
        pod_ips: pod_ips::read(config, snapshot, kubernetes.as_ref(), &living).await,
        pod_cidrs,
        own_pod_cidrs: kubernetes.map_or_else(Vec::new, |known| known.pod_cidrs),
        metadata: metadata.refused.as_ref().map(|(_, why)| why.clone()),
        standard_balancer: metadata.balancer.and_then(|(_, told)| told),
    }
}

/// What Kubernetes says of this node, and where the cluster's pods live.
fn of_kubernetes(index: &Index) -> (Option<Labels>, Option<Kubernetes>, Vec<IpNet>) {
    let all: Vec<IpNet> = index
        .nodes()
        .flat_map(|node| node.pod_cidrs.iter().copied())
        .collect();
    let pod_cidrs = IpNet::aggregate(&all);
    let Some(node) = index.this_node() else {
        return (None, None, pod_cidrs);
    };
    let labels = node.labels.iter();
    let labels = labels.map(|(key, value)| (key.to_string(), value.to_string()));
    let pods = index
        .pods_on_node()
        .filter(|pod| !pod.host_network && !pod.finished && !pod.addresses.is_empty())
        .count();
    let kubernetes = Kubernetes {
        pod_cidrs: node.pod_cidrs.clone(),
        pods: pods as u64,
    };
    (Some(labels.collect()), Some(kubernetes), pod_cidrs)
}

/// Who can have a pod address. A source that is out of touch does not know who is new.
fn living(names: &Shared) -> Living {
    let sources = names.sources();
    let in_touch = |kind| {
        let status = sources.get(&kind);
        // Between its list and its watch a source that never failed is as good as in touch.
        let well = |status: &Status| status.connected || status.last_error.is_none();
        status.is_some_and(|status| status.synced && well(status))
    };
    let index = names.read();
    let sandboxes = index.sandboxes().filter(|_| in_touch(Kind::Sandbox));
    let pods = index.pods_on_node();
    Living {
        sandboxes: sandboxes.map(|ids| ids.map(ToString::to_string).collect()),
        addresses: in_touch(Kind::LocalPod).then(|| {
            let addresses = pods.flat_map(|pod| &pod.addresses);
            addresses.map(|address| (*address).into()).collect()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify::object::{Labels as ObjectLabels, Node, Object, Pod};
    use crate::identify::sink::{Change, Sink as _};

    #[test]
    fn surveys_take_a_fiftieth_of_a_core_at_the_most_and_come_each_minute_at_the_least() {
        assert_eq!(pause_after(Duration::from_millis(3)), PAUSE);
        assert_eq!(
            pause_after(Duration::from_millis(100)),
            Duration::from_secs(5)
        );
        assert_eq!(pause_after(Duration::from_secs(9)), EVERY);
    }

    fn node(name: &str, pod_cidr: &str) -> Object {
        Object::Node(Node {
            name: name.into(),
            addresses: vec![],
            zone: "eastus2-1".into(),
            pod_cidrs: vec![pod_cidr.parse().unwrap()],
            labels: ObjectLabels::from([("a".into(), "b".into())]),
            pod_capacity: 0,
        })
    }

    fn pod(name: &str, host_network: bool, finished: bool) -> Object {
        Object::Pod(Pod {
            kind: Kind::LocalPod,
            key_name: name.into(),
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
            addresses: vec![
                std::net::IpAddr::from([10, 244, 0, u8::try_from(name.len()).unwrap()]).into(),
            ],
            workload: name.into(),
            node: "aks-1".into(),
            host_network,
            finished,
            labels: [].into(),
            named_ports: vec![],
            host_ports: vec![],
        })
    }

    #[test]
    fn neighbouring_pod_ranges_are_joined_and_pods_with_an_address_of_their_own_counted() {
        let mut index = Index::new("aks-1");
        for (name, net) in [
            ("aks-1", "10.244.0.0/24"),
            ("aks-2", "10.244.1.0/24"),
            ("aks-3", "10.244.9.0/24"),
        ] {
            index.apply(node(name, net), 1);
        }
        index.begin(Kind::LocalPod);
        index.apply(pod("web", false, false), 1);
        index.apply(pod("proxy", true, false), 1);
        index.apply(pod("finished", false, true), 1);
        index.settle(Kind::LocalPod, 1);
        let (labels, kubernetes, pod_cidrs) = of_kubernetes(&index);
        assert_eq!(labels.unwrap()["a"], "b");
        let kubernetes = kubernetes.unwrap();
        assert_eq!(kubernetes.pods, 1);
        assert_eq!(kubernetes.pod_cidrs, ["10.244.0.0/24".parse().unwrap()]);
        let joined: Vec<String> = pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(joined, ["10.244.0.0/23", "10.244.9.0/24"]);
    }

    #[test]
    fn who_lives_here_is_told_by_sources_that_are_in_touch() {
        let shared = Shared::new(Index::new("aks-1"));
        let sandbox = Pod {
            kind: Kind::Sandbox,
            ..match pod("web", false, false) {
                Object::Pod(pod) => pod,
                _ => unreachable!("it is a pod"),
            }
        };
        for (kind, object) in [
            (Kind::LocalPod, pod("web", false, false)),
            (Kind::Sandbox, Object::Pod(sandbox)),
        ] {
            let mut changes = vec![
                Change::Begin(kind),
                Change::Apply(object),
                Change::Settle(kind),
            ];
            shared.fold(&mut changes);
        }
        assert_eq!(
            living(&shared),
            Living::default(),
            "no source has told how it does"
        );
        let status = |kind, synced, connected, error: Option<&str>| {
            let status = Status {
                synced,
                connected,
                last_error: error.map(str::to_owned),
                ..Status::default()
            };
            shared.status(kind, &status);
        };
        status(Kind::Sandbox, true, true, None);
        // It has listed, and is about to watch.
        status(Kind::LocalPod, true, false, None);
        let known = living(&shared);
        assert_eq!(known.sandboxes, Some(["web".to_owned()].into()));
        let address = std::net::IpAddr::from([10, 244, 0, 3]);
        assert_eq!(known.addresses, Some([address].into()));
        status(Kind::Sandbox, true, false, Some("no such socket"));
        status(Kind::LocalPod, false, true, None);
        assert_eq!(living(&shared), Living::default());
    }

    #[test]
    fn a_node_that_kubernetes_does_not_know_has_neither_labels_nor_an_account() {
        let mut index = Index::new("stranger");
        index.apply(node("aks-2", "10.244.1.0/24"), 1);
        let (labels, kubernetes, pod_cidrs) = of_kubernetes(&index);
        assert_eq!((labels, kubernetes), (None, None));
        assert_eq!(pod_cidrs.len(), 1);
    }
}

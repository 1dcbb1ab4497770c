//! The *sources*: whatever tells of the world beside the datapath's maps, started together and held until the end.
//!
//! They are the Kubernetes API and the container runtime, which name addresses, and the conntrack table, which knows
//! translations and ports. None of them is needed: without one the agent knows less, and says so.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    config::Config,
    conntrack::{Follower, Limits, allocated},
    exit::{Exit, Failure, OrExit},
    identify::{
        index::Index,
        kube::{self, KubeConfig, Watches},
        object::Kind,
        runtime::{Options, Runtime},
        shared::Shared,
        sink::{Sink, Status},
    },
};

/// The running sources; dropping them ends them.
pub struct Sources {
    /// Who has which address, and had.
    pub names: Arc<Shared>,
    /// The node's connections and their translations.
    pub conntrack: Arc<Follower>,
    /// This node's name.
    pub node_name: String,
    watches: Watches,
    runtime: Option<Runtime>,
    /// Tells the runtime's source that pods may have come or gone.
    hint: Arc<Notify>,
    limits: Limits,
    /// Azure's ports are to be derived from the number of nodes.
    derive_azure: bool,
}

impl Sources {
    /// Starts all that the config asks for. Must be called within a tokio runtime, on a thread in the node's network
    /// namespace.
    ///
    /// # Errors
    /// When a kubeconfig is named that cannot be used, or no thread can be started.
    pub async fn start(config: &Config, node_name: &str) -> Result<Self, Failure> {
        let names = Arc::new(Shared::new(Index::new(node_name)));
        let sink: Arc<dyn Sink> = names.clone();
        let watches = kube::start(&KubeConfig::of(config, node_name), &sink).await?;
        let hint = Arc::new(Notify::new());
        let options = Options::new(&config.cri_socket, node_name);
        let runtime = Runtime::start(options, sink, hint.clone());
        let follow = config.conntrack();
        let limits = follow.limits;
        let conntrack = Follower::start(follow)
            .map_err(|e| anyhow::anyhow!("cannot start a thread for the conntrack table: {e}"))
            .or_exit(Exit::Os)?;
        Ok(Self {
            names,
            conntrack: Arc::new(conntrack),
            node_name: node_name.to_owned(),
            watches,
            runtime,
            hint,
            limits,
            derive_azure: config.azure_snat_ports == Some(0),
        })
    }

    /// Waits until every source of names has told all it has, but no longer than `patience`: flows that are judged
    /// after that have their names from the start. True if they have.
    pub async fn settle(&self, patience: Duration) -> bool {
        let settled = async {
            while !self.has_settled() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience, settled).await.is_ok()
    }

    fn has_settled(&self) -> bool {
        if self.watches.off.is_some() {
            // The runtime may not be there at all, which shows only by its first answer.
            return self.runtime.as_ref().is_none_or(|runtime| {
                let status = runtime.status();
                status.synced || status.last_error.is_some()
            });
        }
        have_told(&self.names.sources())
    }

    /// Whether the Kubernetes API is asked.
    #[must_use]
    pub fn asks_kubernetes(&self) -> bool {
        self.watches.off.is_none()
    }

    /// Interfaces have changed: pods may have come or gone.
    pub fn hint(&self) {
        self.hint.notify_one();
    }

    /// What depends on the number of nodes, which changes while the cluster scales.
    pub fn count_nodes(&self) {
        if !self.derive_azure {
            return;
        }
        let nodes = u32::try_from(self.names.read().nodes().count()).unwrap_or(u32::MAX);
        // How many frontends the outbound rule has is not to be seen from here: one, as AKS sets it up.
        let azure = if nodes > 0 { allocated(nodes, 1) } else { None };
        self.conntrack.set_limits(Limits {
            azure,
            ..self.limits
        });
    }

    /// How all of them are doing, for `/status`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let problems = self.names.read().problems();
        json!({
            "kubernetes": match &self.watches.off {
                Some(why) => json!({"asked": false, "because": why}),
                None => json!({"asked": true}),
            },
            "container_runtime": self.runtime.as_ref().map(Runtime::status),
            "names": self.names.to_json(),
            "odd": {
                "addresses_held_twice": problems.duplicates,
                "objects_refused": problems.refused_objects,
                "addresses_refused": problems.refused_addresses,
                "forgotten_early": problems.crowded,
            },
            "conntrack": self.conntrack.status(),
        })
    }
}

/// Whether the watches have told all they have, or all they will.
///
/// Names are waited for whatever keeps them away, as long as the wait lasts. Policies name nobody, and a role from before
/// they were asked for does not allow them: the first answer, be it a refusal, is enough.
fn have_told(told: &BTreeMap<Kind, Status>) -> bool {
    told.iter()
        .filter(|(kind, _)| **kind != Kind::Sandbox)
        .all(|(kind, status)| status.synced || *kind == Kind::Policy && status.last_error.is_some())
        && told.contains_key(&Kind::LocalPod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> Status {
        Status {
            synced: true,
            ..Status::default()
        }
    }

    fn refused() -> Status {
        Status {
            last_error: Some("403 Forbidden".to_owned()),
            ..Status::default()
        }
    }

    #[test]
    fn names_are_waited_for_and_refused_policies_are_not() {
        let all = |policies: Status, nodes: Status| {
            have_told(&BTreeMap::from([
                (Kind::LocalPod, listed()),
                (Kind::Node, nodes),
                (Kind::Policy, policies),
                // The runtime's is no name that the API server does not know, too.
                (Kind::Sandbox, Status::default()),
            ]))
        };
        assert!(all(listed(), listed()));
        assert!(all(refused(), listed()));
        assert!(!all(Status::default(), listed()));
        assert!(!all(listed(), refused()));
        assert!(!all(refused(), Status::default()));
        assert!(!have_told(&BTreeMap::new()));
    }
}

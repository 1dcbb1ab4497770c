//! The Kubernetes API as a source of identity: a watch for each kind of object, which feeds a [`Sink`].
//!
//! A *watch* is a list of everything and then the changes since. The agent only lists and watches, and keeps little of
//! what it sees (`reduce`). It works without the API server: names are then those last known, or none, and
//! [`Status`] says so.

// What is asked for, and as whom.
pub mod resource;

pub mod access;

pub(crate) mod request;

// An answer while it arrives.
mod pages;

mod lines;

// The watch itself, and what comes of it.
mod timing;

mod watch;

// The list without the watch.
pub mod once;

pub mod status;

use std::sync::Arc;

use tokio::task::AbortHandle;
use tracing::info;

pub use self::{
    access::Access,
    resource::{RESOURCES, Resource, VERBS},
    timing::Timing,
};
use self::{status::Health, watch::Watch};
use super::{object::Kind, sink::Sink};
use crate::{
    config::{Config, Kubernetes},
    exit::Failure,
};

/// What the watches need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeConfig {
    /// How to get to the API server.
    pub access: Access,
    /// This node's name in Kubernetes.
    pub node: String,
    /// Whether pods of other nodes are watched.
    pub remote_pods: bool,
    /// How long to wait for what.
    pub timing: Timing,
}

impl KubeConfig {
    /// What the agent's settings say.
    #[must_use]
    pub fn of(config: &Config, node: &str) -> Self {
        Self {
            access: match config.kubernetes {
                Kubernetes::Off => Access::Off("switched off by --kubernetes".to_owned()),
                Kubernetes::Auto => Access::auto(&config.kubeconfig, &config.kube_context),
            },
            node: node.to_owned(),
            remote_pods: config.remote_pods,
            timing: Timing::default(),
        }
    }
}

/// The running watches; dropping them ends them.
#[derive(Debug)]
pub struct Watches {
    tasks: Vec<AbortHandle>,
    /// Why there are none.
    pub off: Option<String>,
}

impl Drop for Watches {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The kinds that are watched.
pub fn kinds(remote_pods: bool) -> impl Iterator<Item = Kind> {
    let all = RESOURCES.iter().map(|resource| resource.kind);
    all.filter(move |kind| remote_pods || *kind != Kind::RemotePod)
}

/// Starts the watches on the current runtime. Returns at once, whether the API server is there or not.
///
/// # Errors
/// When a kubeconfig is named that cannot be used; the message names it and what to do.
pub async fn start(config: &KubeConfig, sink: &Arc<dyn Sink>) -> Result<Watches, Failure> {
    let client = match config.access.client().await? {
        Ok(client) => client,
        Err(why) => {
            info!("Kubernetes API: not used: {why}");
            return Ok(Watches {
                tasks: Vec::new(),
                off: Some(why),
            });
        }
    };
    let health = Arc::new(Health::default());
    let watched: Vec<Kind> = kinds(config.remote_pods).collect();
    let tasks = RESOURCES
        .iter()
        .filter(|resource| watched.contains(&resource.kind));
    let tasks = tasks.map(|resource| {
        let watch = Watch::new(
            client.clone(),
            *resource,
            &config.node,
            config.timing,
            Arc::clone(sink),
            Arc::clone(&health),
        );
        tokio::spawn(watch.run()).abort_handle()
    });
    Ok(Watches {
        tasks: tasks.collect(),
        off: None,
    })
}

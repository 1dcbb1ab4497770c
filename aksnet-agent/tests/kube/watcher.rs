//! The watches at work: started for a stand-in server, with the index that they fill.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aksnet_agent::identify::{
    index::Index,
    kube::{self, Access, KubeConfig, Timing, Watches},
    object::Kind,
    shared::Shared,
    sink::{Sink, Status},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use xtask::testbed::api::{ApiServer, kubeconfig};

/// The node that the watches are of.
pub const NODE: &str = "aks-a";

/// Waits that are short enough for tests.
pub const FAST: Timing = Timing {
    answer: Duration::from_secs(1),
    page: Duration::from_mins(1),
    watch: Duration::from_mins(1),
    silence: Duration::from_secs(30),
    first_pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(100),
    page_size: 10,
};

/// Watches that run until they are dropped.
pub struct Watcher {
    pub shared: Arc<Shared>,
    watches: Option<Watches>,
    runtime: Runtime,
    _directory: TempDir,
}

impl Watcher {
    pub fn of(server: &ApiServer) -> Self {
        Self::with(&server.kubeconfig(), FAST, false)
    }

    pub fn at(url: &str) -> Self {
        Self::with(&kubeconfig(url), FAST, false)
    }

    pub fn with(kubeconfig: &str, timing: Timing, remote_pods: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig).unwrap();
        let config = KubeConfig {
            access: Access::auto(&path, ""),
            node: NODE.to_owned(),
            remote_pods,
            timing,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shared = Arc::new(Shared::new(Index::new(NODE)));
        let sink: Arc<dyn Sink> = Arc::clone(&shared) as _;
        let watches = runtime.block_on(kube::start(&config, &sink)).unwrap();
        assert_eq!(watches.off, None);
        Self {
            shared,
            watches: Some(watches),
            runtime,
            _directory: directory,
        }
    }

    pub fn stop(&mut self) {
        self.watches = None;
        // Tasks end at their next await.
        self.runtime
            .block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    }

    pub fn count(&self, kind: Kind) -> usize {
        let counts = self.shared.read().counts();
        let count = counts.into_iter().find(|(other, _)| *other == kind);
        count.map_or(0, |(_, count)| count)
    }

    pub fn status(&self, kind: Kind) -> Status {
        self.shared.sources().remove(&kind).unwrap_or_default()
    }

    /// Whether the index knows a namespace of this name; they are the smallest objects.
    pub fn knows(&self, namespace: &str) -> bool {
        let index = self.shared.read();
        index.namespaces().any(|known| &*known.name == namespace)
    }

    /// Waits until it is so.
    pub fn wait(&self, what: &str, so: impl Fn(&Self) -> bool) {
        self.wait_for(Duration::from_secs(20), what, so);
    }

    pub fn wait_for(&self, patience: Duration, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + patience;
        while !so(self) {
            assert!(
                Instant::now() < deadline,
                "not within {patience:?}: {what}\n{:#}",
                self.shared.to_json()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_until_connected(&self) {
        self.wait("all watches run", |watcher| {
            kube::kinds(false).all(|kind| watcher.status(kind).connected)
        });
    }
}

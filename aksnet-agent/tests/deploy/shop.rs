//! A *shop*: pods of which one may be dialled by one other only, kindnet that enforces it, and an API server that tells of
//! all that. Its answers are known, so they can be compared.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use xtask::testbed::{
    Builder, Pod, Testbed,
    api::{self, ApiServer, objects},
    enforce::{Allow, Isolation, Side},
    traffic::{Connect, TcpServer, connect},
};

/// The node's loopback: nobody watches it, and a pod in the node's network reaches it.
const API: ([u8; 4], u16) = ([127, 0, 0, 1], 6443);

/// Allowed connections of [`Shop::trade`].
pub const ALLOWED: u64 = 3;

pub struct Shop {
    pub bed: Testbed,
    _api: ApiServer,
    _web: TcpServer,
    at: SocketAddr,
    files: PathBuf,
}

impl Shop {
    /// On a node with an engine that enforces policies.
    pub fn open(builder: Builder) -> Result<Self> {
        let bed = builder.pods(5).build()?;
        let api = ApiServer::start_in(bed.node().netns(), API.into())?;
        api.apply_all(["default", "shop"].map(objects::namespace));
        let node = bed.node();
        let (address, range) = (node.ip().to_string(), node.plan().pods.v4.to_string());
        api.apply(objects::node(node.name(), &address, &range, "westeurope-1"));
        for pod in node.pods() {
            let name = format!("{}-7d4b9c6f5d-x2k9p", pod.name());
            let address = pod.ip().to_string();
            api.apply(objects::pod(
                pod.namespace(),
                &name,
                pod.name(),
                node.name(),
                &address,
            ));
        }
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "frontend"}}}]}],
        });
        api.apply(objects::policy("shop", "web-policy", &spec));
        let (frontend, web) = (bed.pod(0), bed.pod(1));
        bed.enforce(&[Isolation::new("shop", "web-policy", Side::Ingress)
            .select(&web)
            .allow(Allow::all().pod(&frontend))])?;
        let at = SocketAddr::new(web.ip(), 8080);
        let server = TcpServer::echo(web.netns(), at)?;
        let files = bed.node().root().join("test");
        std::fs::create_dir_all(&files)?;
        let url = format!("http://{}", SocketAddr::from(API));
        std::fs::write(files.join("kubeconfig"), api::kubeconfig(&url))?;
        Ok(Self {
            bed,
            _api: api,
            _web: server,
            at,
            files: PathBuf::from("test"),
        })
    }

    /// What the agent's container has besides what the manifest gives it: a service account that stands in for the
    /// cluster's, and sweeps that a test need not wait for.
    pub fn settings() -> [(&'static str, &'static str); 2] {
        [
            ("AKSNET_KUBECONFIG", "/run/test/kubeconfig"),
            ("AKSNET_INTERVAL", "100ms"),
        ]
    }

    /// Where those files are, below the node's.
    pub fn files(&self) -> &PathBuf {
        &self.files
    }

    /// [`ALLOWED`] connections that succeed, and one that is denied.
    pub fn trade(&self) -> Result<()> {
        let dial = |from: &Pod, patience| connect(from.netns(), self.at, patience);
        for _ in 0..ALLOWED {
            let ended = dial(&self.bed.pod(0), Duration::from_secs(5))?;
            ensure!(ended == Connect::Connected, "frontend: {ended:?}");
        }
        let ended = dial(&self.bed.pod(4), Duration::from_millis(300))?;
        ensure!(ended == Connect::TimedOut, "cache: {ended:?}");
        Ok(())
    }

    /// Packets that the engine itself says it has denied.
    pub fn denied(&self) -> Result<u64> {
        self.bed
            .denied_packets("shop/web-policy", Side::Ingress)
            .context("the engine counts")
    }
}

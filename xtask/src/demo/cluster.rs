//! The demo's *cluster* as Kubernetes would tell of it: an API server of the demo's own, on the node's loopback.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::shop::Shop;
use crate::testbed::Testbed;
use crate::testbed::api::{ApiServer, objects};

/// Where it answers, inside the node: its own loopback, so that no interface carries it.
pub(super) const API: ([u8; 4], u16) = ([127, 0, 0, 1], 16_443);

/// One zone for each node.
const ZONES: [&str; 2] = ["eastus2-1", "eastus2-2"];

/// The running API server, and the file that tells the agent of it.
pub(super) struct Cluster {
    _server: ApiServer,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// Tells of the nodes, the shop's pods and its services.
    pub(super) fn tell(bed: &Testbed, shop: &Shop<'_>) -> Result<Self> {
        let server = ApiServer::start_in(bed.node().netns(), API.into())?;
        server.apply_all(["default", "kube-system", "shop"].map(objects::namespace));
        for ((node, plan), zone) in [bed.node(), bed.node2()]
            .into_iter()
            .zip(bed.plan().nodes)
            .zip(ZONES)
        {
            let address = node.ip().to_string();
            server.apply(objects::node(
                node.name(),
                &address,
                &plan.pods.v4.to_string(),
                zone,
            ));
            for pod in node.pods() {
                let (namespace, app) = place(pod.name());
                let address = pod.ip().to_string();
                let name = pod_name(app, node.name());
                server.apply(objects::pod(namespace, &name, app, node.name(), &address));
            }
        }
        server.apply_all(services(bed, shop));
        let kubeconfig = bed.node().root().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig())
            .with_context(|| format!("cannot write {}", kubeconfig.display()))?;
        Ok(Self {
            _server: server,
            kubeconfig,
        })
    }

    /// What an operator tells the agent: where the API is, and what only the virtual network's owner knows.
    pub(super) fn flags(&self, bed: &Testbed) -> Vec<String> {
        let node = bed.node();
        [
            ("--kubeconfig", self.kubeconfig.display().to_string()),
            ("--node-name", node.name().to_owned()),
            ("--host-root", node.root().display().to_string()),
            ("--vnet-cidr", bed.plan().vnet.v4.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }
}

/// Namespace and application of one of the testbed's pods.
fn place(pod: &str) -> (&'static str, &str) {
    if pod == "coredns" {
        ("kube-system", pod)
    } else {
        ("shop", pod)
    }
}

/// A deployment's pod has random letters behind its name; here they tell its node.
fn pod_name(app: &str, node: &str) -> String {
    let last = node.chars().last().unwrap_or('0');
    format!("{app}-7d4b9c6f5d-x{last}k2p")
}

fn services(bed: &Testbed, shop: &Shop<'_>) -> Vec<Value> {
    let mut told = Vec::new();
    for (namespace, service, app, port) in shop.services() {
        let name = service.name();
        let mut object = objects::service(namespace, name, &service.address().ip().to_string());
        object["spec"]["ports"][0]["port"] = json!(port);
        if let Some(frontend) = service.frontends().first() {
            object["spec"]["type"] = json!("LoadBalancer");
            object["spec"]["ports"][0]["nodePort"] = json!(super::shop::NODE_PORT);
            object["status"]["loadBalancer"] = json!({"ingress": [{"ip": frontend}]});
        }
        told.push(object);
        let mut pods = Vec::new();
        for node in [bed.node(), bed.node2()] {
            for pod in node.pods() {
                let served = service.backends().iter().any(|e| e.ip() == pod.ip());
                if pod.name() == app && served {
                    let name = pod_name(app, node.name());
                    pods.push((name, node.name(), pod.ip().to_string()));
                }
            }
        }
        let pods: Vec<(&str, &str, &str)> = pods
            .iter()
            .map(|(name, node, ip)| (name.as_str(), *node, ip.as_str()))
            .collect();
        told.push(objects::slice(namespace, name, &pods));
    }
    told
}

//! A *cluster*: what an API server on the node's loopback says of a testbed, whose pods are Deployments named after them.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use xtask::testbed::{
    Flavour, Node, Pod, Service, Testbed,
    api::{self, ApiServer, objects},
};

use crate::{life::Home, scrape::Scrape};

/// The node's loopback: nobody watches it.
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 6443);

/// The zones of the node under test and of the other one.
pub const ZONES: [&str; 2] = ["westeurope-1", "westeurope-2"];

/// How many connections there are, by class, scope, and who talks to whom.
pub type Connections = BTreeMap<[String; 6], u64>;

/// Their labels.
pub const ENDS: [&str; 6] = [
    "class",
    "scope",
    "src_namespace",
    "src_workload",
    "dst_namespace",
    "dst_workload",
];

/// Flags with which the agent asks the API server of a home, and nobody else.
pub fn flags(bed: &Testbed, home: &Home) -> Result<Vec<String>> {
    let path = kubeconfig(home)?;
    Ok(vec![
        format!("--kubeconfig={}", path.display()),
        format!("--node-name={}", bed.node().name()),
        "--cri-socket=off".to_owned(),
    ])
}

fn kubeconfig(home: &Home) -> Result<PathBuf> {
    let path = home.path().join("kubeconfig");
    let address = std::net::SocketAddr::from(ADDRESS);
    std::fs::write(&path, api::kubeconfig(&format!("http://{address}")))?;
    Ok(path)
}

/// An API server that knows nothing yet.
pub fn empty(bed: &Testbed) -> Result<ApiServer> {
    ApiServer::start_in(bed.node().netns(), ADDRESS.into())
}

/// One that knows nodes, namespaces and pods.
pub fn start(bed: &Testbed) -> Result<ApiServer> {
    let api = empty(bed)?;
    tell(&api, bed);
    Ok(api)
}

/// Tells of nodes, namespaces and pods.
pub fn tell(api: &ApiServer, bed: &Testbed) {
    api.apply_all(["default", "shop"].map(objects::namespace));
    for (node, zone) in [bed.node(), bed.node2()].into_iter().zip(ZONES) {
        let (address, pods) = (node.ip().to_string(), node.plan().pods.v4.to_string());
        let mut object = objects::node(node.name(), &address, &pods, zone);
        if bed.plan().flavour != Flavour::AzureOverlay {
            // AKS has this label on nodes with the overlay only.
            let labels = object["metadata"]["labels"].as_object_mut();
            labels.and_then(|labels| labels.remove("kubernetes.azure.com/podnetwork-type"));
        }
        api.apply(object);
        for pod in node.pods() {
            api.apply(pod_object(node, &pod));
        }
    }
}

/// The workload of a pod; those of the second node begin with `far-`.
pub fn workload(pod: &Pod) -> String {
    let far = if pod.node_index() == 0 { "" } else { "far-" };
    format!("{far}{}", pod.name())
}

/// The name of its object.
pub fn pod_name(pod: &Pod) -> String {
    format!("{}-7d4b9c6f5d-x2k9p", workload(pod))
}

pub fn pod_object(node: &Node, pod: &Pod) -> Value {
    let (name, app, address) = (pod_name(pod), workload(pod), pod.ip().to_string());
    let mut object = objects::pod(pod.namespace(), &name, &app, node.name(), &address);
    let all: Vec<Value> = pod
        .address()
        .iter()
        .map(|address| json!({"ip": address}))
        .collect();
    object["status"]["podIPs"] = json!(all);
    object
}

/// A service, and its slice with these pods.
pub fn tell_service(
    api: &ApiServer,
    bed: &Testbed,
    name: &str,
    service: &Service,
    endpoints: &[&Pod],
) -> Value {
    let object = objects::service("shop", name, &service.address().ip().to_string());
    api.apply(object.clone());
    let names: Vec<[String; 2]> = endpoints
        .iter()
        .map(|pod| [pod_name(pod), pod.ip().to_string()])
        .collect();
    let nodes = [bed.node().name(), bed.node2().name()];
    let pods: Vec<(&str, &str, &str)> = endpoints
        .iter()
        .zip(&names)
        .map(|(pod, [name, address])| (name.as_str(), nodes[pod.node_index()], address.as_str()))
        .collect();
    let mut slice = objects::slice("shop", name, &pods);
    for (at, pod) in endpoints.iter().enumerate() {
        slice["endpoints"][at]["zone"] = json!(ZONES[pod.node_index()]);
    }
    api.apply(slice);
    object
}

/// Those of a scrape.
pub fn connections(scrape: &Scrape) -> Connections {
    scrape.count_by("aksnet_flow_connections_total", ENDS)
}

/// A row of [`connections`]: class, scope, and two of `namespace/workload`, all separated by blanks.
pub fn row(text: &str, count: u64) -> ([String; 6], u64) {
    let words: Vec<&str> = text.split(' ').collect();
    let [class, scope, from, to] = words[..] else {
        panic!("{text}: four words")
    };
    let [from, to] = [from, to].map(|who| who.split_once('/').expect("namespace/workload"));
    let row = [class, scope, from.0, from.1, to.0, to.1];
    (row.map(str::to_owned), count)
}

/// The two are equal; shows where they are not.
pub fn equal(counted: &Connections, expected: &Connections) {
    let beyond = |a: &Connections, b: &Connections| -> Vec<String> {
        a.iter()
            .filter(|(key, n)| b.get(*key) != Some(n))
            .map(|(key, n)| format!("{n} {key:?}"))
            .collect()
    };
    let (more, fewer) = (beyond(counted, expected), beyond(expected, counted));
    assert!(
        more.is_empty() && fewer.is_empty(),
        "counted {more:#?}\nexpected {fewer:#?}"
    );
}

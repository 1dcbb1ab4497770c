//! A large cluster: 5,000 nodes, 10,000 services, 150,000 pods. Objects are made when they are asked for, so the server,
//! which is in the same process, holds next to nothing of them.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aksnet_agent::identify::{kube::Timing, object::Kind};
use serde_json::Value;
use xtask::testbed::api::{ApiServer, Verb, objects};

use crate::watcher::{FAST, NODE, Watcher};

const NODES: usize = 5_000;
const SERVICES: usize = 10_000;
const PODS: usize = 150_000;

/// Objects made from one text, in which marks are replaced.
struct Template(Vec<(String, Option<Mark>)>);

#[derive(Clone, Copy)]
enum Mark {
    Number,
    Node,
    Address,
    App,
}

impl Template {
    /// Without what agents do not read, as a debug build would spend a minute on just that.
    fn lean(mut object: Value) -> Self {
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.remove("managedFields");
        if let Some(status) = object["status"].as_object_mut() {
            status.remove("images");
            status.remove("containerStatuses");
        }
        Self::of(&object)
    }

    fn of(object: &Value) -> Self {
        let text = object.to_string();
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once('@') {
            let mark = match &after[..1] {
                "N" => Mark::Number,
                "O" => Mark::Node,
                "I" => Mark::Address,
                "A" => Mark::App,
                _ => {
                    parts.push((format!("{before}@"), None));
                    rest = after;
                    continue;
                }
            };
            parts.push((before.to_owned(), Some(mark)));
            rest = &after[1..];
        }
        parts.push((rest.to_owned(), None));
        Self(parts)
    }

    fn make(&self, n: usize) -> String {
        let mut text = String::with_capacity(4096);
        for (part, mark) in &self.0 {
            text.push_str(part);
            match mark {
                Some(Mark::Number) => text.push_str(&n.to_string()),
                Some(Mark::Node) => text.push_str(&(n % NODES).to_string()),
                Some(Mark::App) => text.push_str(&(n % SERVICES).to_string()),
                Some(Mark::Address) => {
                    let [_, b, c, d] = u32::try_from(n).unwrap().to_be_bytes();
                    write!(text, "10.{}.{c}.{d}", 100 + b).unwrap();
                }
                None => {}
            }
        }
        text
    }
}

fn generate(server: &ApiServer, kind: &str, count: usize, template: Template) {
    server.generate(kind, count, move |n| template.make(n + 1));
}

fn pod() -> Value {
    objects::pod("shop-@A", "app-@A-7d4b9c6f5d-@N", "app-@A", "aks-@O", "@I")
}

fn slice() -> Value {
    let pod = ("app-@A-7d4b9c6f5d-@N", "aks-@O", "@I");
    objects::slice("shop-@A", "app-@A", &[pod; 1])
}

/// What a policy of an app says that has one client.
fn spec() -> Value {
    serde_json::json!({
        "podSelector": {"matchLabels": {"app": "app-@A"}}, "policyTypes": ["Ingress"],
        "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": "front"}}}],
            "ports": [{"protocol": "TCP", "port": 8080}],
        }],
    })
}

/// A line of `/proc/self/status`, in MiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    let kib: String = value.chars().filter(char::is_ascii_digit).collect();
    kib.parse::<u64>().unwrap() / 1024
}

/// One large test at a time.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_large_cluster_is_known_in_full_within_its_memory() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // The peak counts from here on (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let server = ApiServer::start().unwrap();
    generate(&server, "Pod", PODS, Template::lean(pod()));
    generate(
        &server,
        "Node",
        NODES,
        Template::lean(objects::node("aks-@N", "@I", "10.1.0.0/24", "westeurope-1")),
    );
    generate(
        &server,
        "Service",
        SERVICES,
        Template::lean(objects::service("shop-@A", "app-@A", "@I")),
    );
    generate(&server, "EndpointSlice", SERVICES, Template::lean(slice()));
    let timing = Timing {
        page_size: 500,
        answer: Duration::from_secs(30),
        page: Duration::from_mins(2),
        ..FAST
    };
    let began = Instant::now();
    let watcher = Watcher::with(&server.kubeconfig(), timing, true);
    let kinds = [Kind::RemotePod, Kind::Node, Kind::Service, Kind::Slice];
    watcher.wait_for(Duration::from_mins(4), "all lists", |watcher| {
        kinds.iter().all(|kind| watcher.status(*kind).synced)
    });
    let took = began.elapsed();
    assert_eq!(watcher.count(Kind::RemotePod), PODS);
    assert_eq!(watcher.count(Kind::Node), NODES);
    assert_eq!(watcher.count(Kind::Service), SERVICES);
    assert_eq!(watcher.count(Kind::Slice), SERVICES);
    let bytes: u64 = server.seen().iter().map(|seen| seen.bytes).sum();
    let peak = memory("VmHWM:");
    let megabytes = bytes / 1_000_000;
    println!(
        "{megabytes} MB in {took:.1?}; memory {} MiB, at most {peak} MiB",
        memory("VmRSS:")
    );
    // All of it with the server, the test and its neighbours in this process.
    assert!(peak < 250, "{peak} MiB");
    assert!(watcher.status(Kind::RemotePod).retries == 0);
}

#[test]
fn a_burst_of_changes_is_folded_to_its_end() {
    const CHANGES: usize = 20_000;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let server = ApiServer::start().unwrap();
    let watcher = Watcher::with(&server.kubeconfig(), FAST, true);
    watcher.wait("the watch", |w| w.status(Kind::RemotePod).connected);
    let template = Template::lean(pod());
    let began = Instant::now();
    for n in 1..=CHANGES {
        let object = template.make(n);
        server.inject("Pod", &format!(r#"{{"type":"ADDED","object":{object}}}"#));
    }
    let sent = began.elapsed();
    // The watch of this node's pods hears of them, too: the server does not look into lines that it is given.
    watcher.wait_for(Duration::from_mins(1), "all of them", |watcher| {
        watcher.count(Kind::RemotePod) == CHANGES && watcher.count(Kind::LocalPod) == CHANGES
    });
    println!(
        "sent {CHANGES} changes in {sent:.1?}; folded twice in {:.1?}",
        began.elapsed()
    );
    assert_eq!(watcher.status(Kind::RemotePod).lists, 1);
    assert_eq!(watcher.status(Kind::RemotePod).odd, 0);
}

#[test]
fn what_a_node_costs_the_server_is_as_documented() {
    let server = ApiServer::start().unwrap();
    // A part of each, as they are in full; the mean is what is documented.
    generate(&server, "Pod", PODS / 100, Template::of(&pod()));
    generate(
        &server,
        "Node",
        NODES / 10,
        Template::of(&objects::node(
            "aks-@N",
            "@I",
            "10.1.0.0/24",
            "westeurope-1",
        )),
    );
    generate(
        &server,
        "Service",
        SERVICES / 10,
        Template::of(&objects::service("shop-@A", "app-@A", "@I")),
    );
    generate(
        &server,
        "EndpointSlice",
        SERVICES / 10,
        Template::of(&slice()),
    );
    generate(
        &server,
        "NetworkPolicy",
        SERVICES / 10,
        Template::of(&objects::policy("shop-@A", "app-@A", &spec())),
    );
    server.apply_all((0..30).map(|n| {
        objects::pod(
            "shop-1",
            &format!("app-1-7d4b9c6f5d-{n}"),
            "app-1",
            NODE,
            &format!("10.244.0.{}", n + 2),
        )
    }));
    let watcher = Watcher::with(
        &server.kubeconfig(),
        Timing {
            answer: Duration::from_secs(30),
            ..FAST
        },
        true,
    );
    watcher.wait("all lists", |watcher| {
        aksnet_agent::identify::kube::kinds(true).all(|kind| watcher.status(kind).connected)
    });
    let seen = server.seen();
    let page = include_str!("../../../docs/identity.md");
    for (what, path, remote, count) in [
        ("a pod of this node", "/pods", false, 30),
        ("a pod of another node", "/pods", true, PODS / 100),
        ("a node", "/nodes", false, NODES / 10),
        ("a service", "/services", false, SERVICES / 10),
        (
            "a network policy of one rule",
            "/networkpolicies",
            false,
            SERVICES / 10,
        ),
        (
            "an endpoint slice of one endpoint",
            "/endpointslices",
            false,
            SERVICES / 10,
        ),
    ] {
        let of = seen.iter().filter(|seen| {
            let selector = seen.query.get("fieldSelector");
            seen.path.ends_with(path) && selector.is_some_and(|s| s.contains("!=")) == remote
        });
        let lists = of.clone().filter(|s| s.verb == Verb::List);
        let lists: Vec<u64> = lists.map(|s| s.bytes).collect();
        assert_eq!(lists.len(), 1, "lists of {what}");
        let changes = of.filter(|s| s.verb == Verb::Watch);
        assert_eq!(changes.count(), 1, "watches of {what}");
        let row = format!("| {what} | {} |", lists[0] / count as u64);
        assert!(page.contains(&row), "docs/identity.md lacks: {row}");
    }
    let pod = ("app-1-7d4b9c6f5d-1", "aks-1", "10.244.0.10");
    let size = |pods: usize| {
        objects::slice("shop-1", "app-1", &vec![pod; pods])
            .to_string()
            .len()
    };
    let row = format!("| each further endpoint | {} |", (size(11) - size(1)) / 10);
    assert!(page.contains(&row), "docs/identity.md lacks: {row}");
}

//! A real containerd with real sandboxes on the conflist of AKS's kubenet: what is told is what the pods are called
//! and what the plugins gave them.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use aksnet_agent::identify::object::{Pod, Text};
use anyhow::{Result, ensure};

use crate::{
    bed::{Bed, lacking},
    kubelet::{Kubelet, NAMESPACE, Wanted, uid},
    told::{Source, State, Tale, Told, eventually},
};

/// As kubelet has it for a Deployment's pod, a `StatefulSet`'s, a `DaemonSet`'s on the host network, and one of its
/// own.
const PODS: [(Wanted, &str); 4] = [
    (
        Wanted {
            name: "web-5d4f8c7b9d-x7k2p",
            labels: &[("app", "web"), ("pod-template-hash", "5d4f8c7b9d")],
            host_network: false,
        },
        "web",
    ),
    (
        Wanted {
            name: "db-0",
            labels: &[
                ("app", "db"),
                ("apps.kubernetes.io/pod-index", "0"),
                ("controller-revision-hash", "db-7c9d8f6b5"),
                ("statefulset.kubernetes.io/pod-name", "db-0"),
            ],
            host_network: false,
        },
        "db",
    ),
    (
        Wanted {
            name: "exporter-q8w5z",
            labels: &[
                ("app", "exporter"),
                ("controller-revision-hash", "6f7d9c5b48"),
                ("pod-template-generation", "1"),
            ],
            host_network: true,
        },
        "exporter",
    ),
    (
        Wanted {
            name: "alone",
            labels: &[],
            host_network: false,
        },
        "alone",
    ),
];

/// A pod of the list, as it must be told.
fn expected(id: &str, (wanted, workload): &(Wanted, &str), addresses: &[IpAddr]) -> Pod {
    let text = |text: &str| -> Text { text.into() };
    let labels = wanted.labels.iter().map(|(k, v)| (text(k), text(v)));
    Pod {
        kind: aksnet_agent::identify::object::Kind::Sandbox,
        key_name: text(id),
        namespace: text(NAMESPACE),
        name: text(wanted.name),
        uid: uid(wanted.name).into(),
        addresses: addresses.iter().map(|&address| address.into()).collect(),
        workload: text(workload),
        node: text("node-0"),
        host_network: wanted.host_network,
        finished: false,
        labels: labels.collect(),
        named_ports: Vec::new(),
        host_ports: Vec::new(),
    }
}

/// The pods as told, their addresses in order.
fn told(told: &Told) -> BTreeMap<String, Pod> {
    let mut pods = told.pods();
    for pod in pods.values_mut() {
        pod.addresses.sort_by_key(|&address| IpAddr::from(address));
    }
    pods
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_addresses_are_those_of_real_sandboxes_through_their_life_and_a_restart()
-> Result<()> {
    if let Some(why) = lacking() {
        println!("skipped: {why}");
        return Ok(());
    }
    let mut bed = Bed::new()?;
    // The agent is there first.
    let source = Source::start(&bed.socket(), Duration::from_millis(500));
    let error = source.error().await;
    ensure!(error.contains("No such file"), "{error}");
    bed.start()?;
    bed.import()?;
    let mut kubelet = Kubelet::connect(&bed.socket(), &bed.group).await?;
    source.synced().await;
    let runtime = source.runtime.status().runtime.unwrap_or_default();
    ensure!(runtime.starts_with("containerd "), "{runtime}");

    let mut ids = Vec::new();
    for (wanted, _) in &PODS {
        ids.push(kubelet.run(wanted).await?);
    }
    source.hint.notify_one();
    eventually("all are told", || source.told.pods().len() == PODS.len()).await;
    let held = bed.held()?;
    let mut pods = BTreeMap::new();
    for (id, row) in ids.iter().zip(&PODS) {
        let addresses = held.get(id).map_or(&[][..], Vec::as_slice);
        let families = addresses.iter().filter(|a| a.is_ipv6()).count();
        let wanted = if row.0.host_network { (0, 0) } else { (2, 1) };
        assert_eq!((addresses.len(), families), wanted, "{}", row.0.name);
        pods.insert(id.clone(), expected(id, row, addresses));
    }
    assert_eq!(told(&source.told), pods);
    let bridge = bed.bridge()?;
    ensure!(
        bridge.contains("10.244.0.1/24"),
        "it is kubenet's: {bridge}"
    );
    ensure!(
        !std::path::Path::new("/sys/class/net/cbr0").exists(),
        "the machine's own namespace has no such bridge"
    );

    // Stopped, its addresses go back, and it is known whose they were; then it is gone.
    kubelet.stop(&ids[0]).await?;
    eventually("it is finished", || source.told.pods()[&ids[0]].finished).await;
    assert!(!bed.held()?.contains_key(&ids[0]));
    let mut stopped = pods[&ids[0]].clone();
    stopped.finished = true;
    assert_eq!(told(&source.told)[&ids[0]], stopped);
    kubelet.remove(&ids[0]).await?;
    eventually("it is gone", || !source.told.pods().contains_key(&ids[0])).await;
    pods.remove(&ids[0]);

    // A restart changes nothing of what there is.
    let before = source.told.tales().len();
    bed.stop()?;
    eventually("it is missed", || !source.runtime.status().synced).await;
    assert_eq!(told(&source.told), pods);
    bed.start()?;
    source.synced().await;
    let tales = source.told.tales()[before..].to_vec();
    assert!(
        matches!(
            &tales[..],
            [Tale::Status(State::Failed(_)), Tale::Status(State::Synced)]
        ),
        "{tales:?}"
    );

    // And life goes on.
    kubelet.stop(&ids[1]).await?;
    kubelet.remove(&ids[1]).await?;
    let again = kubelet.run(&PODS[0].0).await?;
    eventually("both are seen", || {
        let pods = source.told.pods();
        pods.contains_key(&again) && !pods.contains_key(&ids[1])
    })
    .await;
    pods.remove(&ids[1]);
    pods.insert(
        again.clone(),
        expected(&again, &PODS[0], &bed.held()?[&again]),
    );
    assert_eq!(told(&source.told), pods);
    assert_eq!(source.runtime.status().sandboxes, 3);
    Ok(())
}

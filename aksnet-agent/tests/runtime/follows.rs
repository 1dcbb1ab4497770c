//! Sandboxes come and go: each is asked for once, and what changed is told, soon when hinted at.

use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{
    fake::{Fake, Sandbox},
    told::{Source, eventually},
};

const EVERY: Duration = Duration::from_millis(50);

#[tokio::test]
async fn each_sandbox_is_asked_for_once_and_its_end_is_told() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    let fake = Fake::start(&path);
    fake.put("a", Sandbox::new("web-1", &["10.244.0.2", "fd00::2"]));
    let source = Source::start(&path, EVERY);
    source.synced().await;
    let status = source.runtime.status();
    assert_eq!(status.runtime.as_deref(), Some("fake 1.2.3"));
    assert_eq!(
        (status.path.as_deref(), status.sandboxes),
        (Some(&*path), 1)
    );
    let lists = fake.asked("ListPodSandbox");
    eventually("more lists", || fake.asked("ListPodSandbox") > lists + 3).await;
    assert_eq!(fake.asked("PodSandboxStatus/a"), 1);
    assert_eq!(fake.asked("Version"), 1);
    // Stopped: containerd gives no address any more, but the address was the pod's.
    let stopped = Sandbox {
        ready: false,
        ..Sandbox::new("web-1", &[])
    };
    fake.put("a", stopped);
    eventually("finished", || source.told.pods()["a"].finished).await;
    assert_eq!(source.told.pods()["a"].addresses.len(), 2);
    fake.script.lock().unwrap().sandboxes.clear();
    eventually("gone", || source.told.pods().is_empty()).await;
    eventually("counted", || source.runtime.status().sandboxes == 0).await;
}

#[tokio::test]
async fn a_sandbox_listed_before_it_has_an_address_is_asked_for_until_it_has() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    let fake = Fake::start(&path);
    fake.put("a", Sandbox::new("web-1", &[]));
    let source = Source::start(&path, EVERY);
    source.synced().await;
    assert_eq!(source.told.pods()["a"].addresses, []);
    fake.put("a", Sandbox::new("web-1", &["10.244.0.2"]));
    eventually("it has", || source.told.pods()["a"].addresses.len() == 1).await;
    assert_eq!(source.told.applied("a"), 2, "only what changed is told");
}

#[tokio::test]
async fn a_hint_finds_a_new_sandbox_long_before_its_turn() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    let fake = Fake::start(&path);
    let hour = Duration::from_hours(1);
    let source = Source::start(&path, hour);
    source.synced().await;
    // As on a node: the interface is there first, and the sandbox is listed half a second later.
    let hinted = Instant::now();
    source.hint.notify_one();
    tokio::time::sleep(Duration::from_millis(500)).await;
    fake.put("a", Sandbox::new("web-1", &["10.244.0.2"]));
    eventually("found", || source.told.pods().len() == 1).await;
    assert!(hinted.elapsed() < Duration::from_secs(10));
}

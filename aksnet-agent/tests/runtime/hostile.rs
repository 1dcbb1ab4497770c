//! What is no runtime, or a bad one: the agent goes on, says why, and tries again.

use std::{
    io::Write as _,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use aksnet_agent::identify::runtime::{DEADLINE, Options, Place, Runtime};
use tempfile::TempDir;

use crate::{
    fake::{Fake, Reply, Sandbox},
    told::{Source, State, Tale, Told, eventually},
};

const EVERY: Duration = Duration::from_millis(50);

/// Whether nothing was told but that it failed.
fn told_only_failure(source: &Source) -> bool {
    let tales = source.told.tales();
    matches!(
        &tales[..],
        [Tale::Status(State::Starting), Tale::Status(State::Failed(why))] if !why.is_empty()
    )
}

#[tokio::test]
async fn a_socket_that_never_answers_costs_a_deadline_and_holds_nobody_up() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    // The backlog accepts; nobody reads.
    let _listener = UnixListener::bind(&path).unwrap();
    let source = Source::start(&path, EVERY);
    // The test's runtime has one thread: were it held up, this would not turn.
    let (started, mut turns) = (Instant::now(), 0_u32);
    while source.runtime.status().last_error.is_none() {
        assert!(started.elapsed() < DEADLINE * 4, "it still waits");
        tokio::time::sleep(Duration::from_millis(10)).await;
        turns += 1;
    }
    assert!(turns > 20, "{turns}");
    let error = source.error().await;
    assert!(error.contains("no answer within 2s"), "{error}");
    assert!(told_only_failure(&source), "{:?}", source.told.tales());
}

#[tokio::test]
async fn a_socket_that_talks_garbage_is_said_to() {
    let home = TempDir::new().unwrap();
    for (name, garbage) in [
        ("http1", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]),
        ("binary", &[0xff; 4096][..]),
        // A frame of HTTP/2 that says that it is 16 MiB long.
        ("frame", &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1, 7, 7][..]),
        ("nothing", b""),
    ] {
        let path = home.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let garbage = garbage.to_vec();
        // Ends with the test's process; two tries are enough.
        std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let _closed = stream.and_then(|mut stream| stream.write_all(&garbage));
            }
        });
        let source = Source::start(&path, EVERY);
        let error = source.error().await;
        assert!(error.contains(name), "the path is named: {error}");
        assert!(told_only_failure(&source), "{:?}", source.told.tales());
    }
}

#[tokio::test]
async fn a_path_that_is_no_socket_or_not_there_is_said_to_be() {
    let home = TempDir::new().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = Source::start(&file, EVERY).error().await;
    assert!(error.ends_with("/file: is no socket"), "{error}");
    let error = Source::start(&home.path().join("none"), EVERY)
        .error()
        .await;
    assert!(error.contains("No such file"), "{error}");
    // Bound once, and closed since.
    let path = home.path().join("left");
    drop(UnixListener::bind(&path).unwrap());
    let error = Source::start(&path, EVERY).error().await;
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_runtime_without_cri_is_said_to_be_one() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    let fake = Fake::start(&path);
    fake.reply("Version", Reply::Status(12));
    let source = Source::start(&path, EVERY);
    let error = source.error().await;
    assert!(
        error.contains("Version: ") && error.contains("not implemented"),
        "{error}"
    );
    eventually("tried again", || fake.asked("Version") > 1).await;
    assert!(told_only_failure(&source), "it is said once");
}

#[tokio::test]
async fn the_first_socket_that_answers_is_asked() {
    let home = TempDir::new().unwrap();
    let paths = ["none", "docker", "k3s", "other"].map(|name| home.path().join(name));
    let [_, docker, k3s, other] = &paths;
    let without_cri = Fake::start(docker);
    without_cri.reply("Version", Reply::Status(12));
    let fake = Fake::start(k3s);
    fake.put("a", Sandbox::new("web-1", &["10.244.0.2"]));
    let unasked = Fake::start(other);
    let source = Source::start_with(&paths.each_ref().map(|path| &**path), EVERY);
    source.synced().await;
    assert_eq!(source.runtime.status().path.as_ref(), Some(k3s));
    assert_eq!(source.told.pods().len(), 1);
    assert_eq!(unasked.asked("Version"), 0);
}

#[tokio::test]
async fn a_runtime_that_vanishes_midway_is_told_of_whole_when_it_is_back() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    let fake = Fake::start(&path);
    fake.put("a", Sandbox::new("web-1", &["10.244.0.2"]));
    fake.put("b", Sandbox::new("web-2", &["10.244.0.3"]));
    fake.reply("PodSandboxStatus/b", Reply::Close);
    let source = Source::start(&path, EVERY);
    source.error().await;
    assert!(told_only_failure(&source), "{:?}", source.told.tales());
    fake.relent("PodSandboxStatus/b");
    source.synced().await;
    let tales = source.told.tales();
    let all = [
        Tale::Begin,
        Tale::Apply("a".to_owned()),
        Tale::Apply("b".to_owned()),
        Tale::Settle,
        Tale::Status(State::Synced),
    ];
    assert_eq!(tales[2..], all);
    assert_eq!(fake.asked("PodSandboxStatus/a"), 1, "an answer is kept");
}

#[tokio::test]
async fn what_was_told_stays_while_the_runtime_is_away() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    let fake = Fake::start(&path);
    fake.put("a", Sandbox::new("web-1", &["10.244.0.2"]));
    fake.put("b", Sandbox::new("web-2", &["10.244.0.3"]));
    let source = Source::start(&path, EVERY);
    source.synced().await;
    drop(fake);
    eventually("lost", || !source.runtime.status().synced).await;
    assert_eq!(source.told.pods().len(), 2);
    // Back with one of them, and another one.
    let fake = Fake::start(&path);
    fake.put("b", Sandbox::new("web-2", &["10.244.0.3"]));
    fake.put("c", Sandbox::new("web-3", &["10.244.0.2"]));
    source.synced().await;
    assert_eq!(
        source.told.pods().into_keys().collect::<Vec<_>>(),
        ["b", "c"]
    );
    assert_eq!(
        source.told.applied("b"),
        1,
        "what is as it was is not told again"
    );
    let begins = |tale: &&Tale| **tale == Tale::Begin;
    assert_eq!(source.told.tales().iter().filter(begins).count(), 1);
}

#[tokio::test]
async fn a_list_beyond_belief_or_a_cut_one_is_refused() {
    let home = TempDir::new().unwrap();
    for (name, list, why) in [
        ("long", [0x0a, 0].repeat(20_000), "more than"),
        ("cut", vec![0x0a, 9, 1], "in the middle"),
    ] {
        let path = home.path().join(name);
        let fake = Fake::start(&path);
        fake.reply("ListPodSandbox", Reply::Message(list));
        let source = Source::start(&path, EVERY);
        let error = source.error().await;
        assert!(error.contains(why), "{error}");
        assert!(told_only_failure(&source), "{:?}", source.told.tales());
    }
}

#[tokio::test]
async fn a_call_that_is_never_answered_ends_at_its_deadline() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    let fake = Fake::start(&path);
    fake.reply("ListPodSandbox", Reply::Silence);
    let source = Source::start(&path, EVERY);
    let error = source.error().await;
    assert!(
        error.contains("ListPodSandbox: no answer within 2s"),
        "{error}"
    );
    fake.relent("ListPodSandbox");
    source.synced().await;
    assert_eq!(source.runtime.status().last_error, None);
}

#[tokio::test]
async fn a_sandbox_that_the_runtime_cannot_tell_of_hides_no_other() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("s");
    let fake = Fake::start(&path);
    fake.put("a", Sandbox::new("web-1", &["10.244.0.2"]));
    fake.put("b", Sandbox::new("web-2", &["10.244.0.3"]));
    fake.put("c", Sandbox::new("", &["10.244.0.4"]));
    fake.reply("PodSandboxStatus/a", Reply::Status(13));
    let source = Source::start(&path, EVERY);
    source.synced().await;
    assert_eq!(source.told.pods().into_keys().collect::<Vec<_>>(), ["b"]);
    let error = source.error().await;
    assert!(error.contains("sandbox a: PodSandboxStatus"), "{error}");
    fake.relent("PodSandboxStatus/a");
    eventually("told late", || source.told.pods().len() == 2).await;
    eventually("all well", || source.runtime.status().last_error.is_none()).await;
    assert_eq!(fake.asked("PodSandboxStatus/c"), 1, "it has no name");
}

#[tokio::test]
async fn switched_off_nothing_is_asked() {
    let told = std::sync::Arc::new(Told::default());
    let options = Options::new(&Place::Off, "node-0");
    assert!(Runtime::start(options, told.clone(), std::sync::Arc::default()).is_none());
    assert_eq!(told.tales(), []);
}

//! A server that is not there, refuses, stalls or talks nonsense.

use std::time::Duration;

use aksnet_agent::identify::object::Kind;
use xtask::testbed::api::{ApiServer, Fault, Verb, objects::namespace};

use crate::watcher::{FAST, Watcher};

const NAMESPACES: &str = "/api/v1/namespaces";
const KIND: Kind = Kind::Namespace;

/// A server that answers the first so many lists of namespaces so.
fn failing(times: usize, fault: Fault) -> (ApiServer, Watcher) {
    let server = ApiServer::start().unwrap();
    server.apply(namespace("first"));
    server.fail(Verb::List, NAMESPACES, times, fault);
    let watcher = Watcher::of(&server);
    (server, watcher)
}

/// It catches up after all, having said why it could not.
fn recovers(watcher: &Watcher, failures: u64, why: &str) {
    watcher.wait("a failure", |w| w.status(KIND).retries >= failures);
    watcher.wait("recovery", |w| w.status(KIND).connected);
    assert!(watcher.knows("first"));
    let status = watcher.status(KIND);
    assert!(status.synced);
    assert_eq!(status.retries, failures);
    let error = status.last_error.unwrap();
    assert!(error.contains(why), "'{error}' does not say '{why}'");
}

#[test]
fn refusals_are_told_and_tried_again() {
    for (code, why) in [
        (
            401,
            "401 Unauthorized: as the test wants; the token or certificate is not accepted",
        ),
        (
            403,
            "403 Forbidden: as the test wants; deploy/base/rbac.yaml",
        ),
        (500, "500 Internal Server Error: as the test wants"),
        (503, "503 Service Unavailable"),
    ] {
        let (_server, watcher) = failing(3, Fault::Status(code));
        recovers(&watcher, 3, why);
    }
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    let (server, watcher) = failing(1, Fault::RetryAfter(429, 1));
    watcher.wait("a failure", |w| w.status(KIND).retries == 1);
    std::thread::sleep(Duration::from_millis(500));
    let lists = server.seen();
    let lists = lists.iter().filter(|seen| seen.path == NAMESPACES);
    assert_eq!(
        lists.count(),
        1,
        "asked again within the second it was asked to wait"
    );
    recovers(&watcher, 1, "429 Too Many Requests");
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let (_server, watcher) = failing(1, Fault::Silence);
    recovers(&watcher, 1, "no answer within 1 s");
}

#[test]
fn a_slow_server_is_waited_for() {
    let (_server, watcher) = failing(1, Fault::Dribble(10, Duration::from_millis(30)));
    watcher.wait("the list", |w| w.status(KIND).connected);
    assert!(watcher.knows("first"));
    assert_eq!(watcher.status(KIND).retries, 0);
}

#[test]
fn a_list_that_is_never_complete_is_given_up() {
    let server = ApiServer::start().unwrap();
    server.apply(namespace("first"));
    let slow = Fault::Dribble(1, Duration::from_millis(100));
    server.fail(Verb::List, NAMESPACES, 1, slow);
    let timing = aksnet_agent::identify::kube::Timing {
        page: Duration::from_secs(1),
        ..FAST
    };
    let watcher = Watcher::with(&server.kubeconfig(), timing, false);
    recovers(&watcher, 1, "a list was not complete within 1 s");
}

#[test]
fn a_list_that_is_cut_off_is_asked_for_again() {
    let (_server, watcher) = failing(2, Fault::Cut(150));
    watcher.wait("recovery", |w| w.status(KIND).connected);
    assert!(watcher.knows("first"));
    assert_eq!(watcher.status(KIND).retries, 2);
}

#[test]
fn nonsense_never_passes_for_an_empty_list() {
    for nonsense in [
        "",
        "{}",
        "null",
        "<html>Bad gateway</html>",
        r#"{"items":[]}"#,
        r#"{"metadata":{"resourceVersion":"1"},"items":[{"metadata":"#,
        r#"{"kind":"Status","status":"Success"}"#,
    ] {
        let (_server, watcher) = failing(1, Fault::Body(nonsense.to_owned()));
        watcher.wait("recovery", |w| w.status(KIND).connected);
        assert_eq!(watcher.status(KIND).retries, 1, "{nonsense}");
        assert!(watcher.knows("first"), "{nonsense}");
    }
}

#[test]
fn a_watch_that_is_refused_goes_on_without_a_list() {
    let server = ApiServer::start().unwrap();
    server.apply(namespace("first"));
    server.fail(Verb::Watch, NAMESPACES, 3, Fault::Status(500));
    let watcher = Watcher::of(&server);
    recovers(&watcher, 3, "500 Internal Server Error");
    assert_eq!(watcher.status(KIND).lists, 1);
}

#[test]
fn watches_that_end_at_once_are_not_asked_for_without_pause() {
    let server = ApiServer::start().unwrap();
    server.apply(namespace("first"));
    server.fail(Verb::Watch, NAMESPACES, 1000, Fault::Body(String::new()));
    let watcher = Watcher::of(&server);
    watcher.wait("failures", |w| w.status(KIND).retries >= 3);
    std::thread::sleep(Duration::from_secs(1));
    // After a few, each pause is 100 to 200 ms.
    let retries = watcher.status(KIND).retries;
    assert!(retries < 25, "{retries} watches in a second");
    let error = watcher.status(KIND).last_error.unwrap();
    assert_eq!(error, "a watch ended as it began");
}

#[test]
fn a_server_that_appears_later_is_found() {
    // A port that nobody listens on.
    let address = ApiServer::start().unwrap().address();
    std::thread::sleep(Duration::from_millis(50));
    let watcher = Watcher::at(&format!("http://{address}"));
    watcher.wait("failures", |w| w.status(KIND).retries >= 3);
    let status = watcher.status(KIND);
    assert!(!status.synced && !status.connected);
    let error = status.last_error.unwrap();
    assert!(error.contains("Connection refused"), "{error}");
    let server = ApiServer::start_at(address).unwrap();
    server.apply(namespace("first"));
    watcher.wait_until_connected();
    watcher.wait("its objects", |w| w.knows("first"));
}

#[test]
fn a_server_that_goes_away_leaves_what_is_known() {
    let server = ApiServer::start().unwrap();
    let address = server.address();
    server.apply(namespace("first"));
    let watcher = Watcher::of(&server);
    watcher.wait_until_connected();
    drop(server);
    watcher.wait("the loss", |w| w.status(KIND).retries >= 2);
    let status = watcher.status(KIND);
    assert!(status.synced && !status.connected);
    assert!(watcher.knows("first"));
    let server = ApiServer::start_at(address).unwrap();
    server.apply(namespace("first"));
    server.apply(namespace("second"));
    watcher.wait_until_connected();
    watcher.wait("news", |w| w.knows("second"));
}

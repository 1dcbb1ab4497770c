//! How a watch goes on: events, bookmarks, connections that break, versions that are gone.

use std::time::Duration;

use aksnet_agent::identify::{kube::Timing, object::Kind};
use xtask::testbed::api::{ApiServer, Fault, Seen, Verb, objects::namespace};

use crate::watcher::{FAST, Watcher};

const NAMESPACES: &str = "/api/v1/namespaces";

fn seen(server: &ApiServer, verb: Verb) -> Vec<Seen> {
    let mut seen = server.seen();
    seen.retain(|seen| seen.verb == verb && seen.path == NAMESPACES);
    seen
}

/// A server with one namespace, and watches that run.
fn running(timing: Timing) -> (ApiServer, Watcher) {
    let server = ApiServer::start().unwrap();
    server.apply(namespace("first"));
    let watcher = Watcher::with(&server.kubeconfig(), timing, false);
    watcher.wait_until_connected();
    (server, watcher)
}

#[test]
fn events_are_folded_in_their_order_and_twice_is_once() {
    let (server, watcher) = running(FAST);
    server.apply(namespace("second"));
    server.delete("Namespace", "", "first");
    let event = r#"{"type":"ADDED","object":{"metadata":{"name":"third","resourceVersion":"9"}}}"#;
    server.inject("Namespace", event);
    server.inject("Namespace", event);
    server.apply(namespace("last"));
    watcher.wait("the last", |w| w.knows("last"));
    assert!(!watcher.knows("first"));
    assert!(watcher.knows("second") && watcher.knows("third"));
    assert_eq!(watcher.count(Kind::Namespace), 3);
}

#[test]
fn a_connection_that_breaks_is_made_again_without_a_list() {
    let (server, watcher) = running(FAST);
    for round in 0..3 {
        let name = format!("round-{round}");
        server.apply(namespace(&name));
        watcher.wait("an event", |w| w.knows(&name));
        server.break_connections();
        server.delete("Namespace", "", &name);
        watcher.wait("an event that nobody watched", |w| !w.knows(&name));
    }
    assert_eq!(seen(&server, Verb::List).len(), 1);
    assert!(seen(&server, Verb::Watch).len() >= 3);
}

#[test]
fn a_connection_that_breaks_within_an_event_loses_nothing() {
    let (server, watcher) = running(FAST);
    // The next watch hears of two, and breaks within the second's line.
    server.fail(Verb::Watch, NAMESPACES, 1, Fault::Cut(700));
    server.break_connections();
    server.apply(namespace("second"));
    server.apply(namespace("third"));
    watcher.wait("both", |w| w.knows("second") && w.knows("third"));
    let begun = seen(&server, Verb::Watch);
    assert_eq!(
        begun.len(),
        3,
        "the first, the cut one, and one that went on"
    );
    assert_eq!(begun[1].query["resourceVersion"], "1");
    assert_eq!(
        begun[2].query["resourceVersion"], "2",
        "the first event was whole"
    );
    assert_eq!(seen(&server, Verb::List).len(), 1);
    assert_eq!(watcher.status(Kind::Namespace).odd, 0);
}

#[test]
fn a_bookmark_moves_the_version_that_is_gone_on_from() {
    let (server, watcher) = running(FAST);
    server.wait_for_watches(NAMESPACES, 1).unwrap();
    assert_eq!(
        seen(&server, Verb::Watch)[0].query["allowWatchBookmarks"],
        "true"
    );
    for _ in 0..5 {
        server.bookmark();
    }
    std::thread::sleep(Duration::from_millis(200));
    server.break_connections();
    watcher.wait("a second watch", |_| seen(&server, Verb::Watch).len() >= 2);
    assert_eq!(seen(&server, Verb::Watch)[1].query["resourceVersion"], "6");
}

#[test]
fn a_version_that_is_gone_is_listed_again_and_what_is_known_stays_meanwhile() {
    for by_event in [true, false] {
        let (server, watcher) = running(FAST);
        let slow = Fault::Dribble(20, Duration::from_millis(10));
        server.fail(Verb::List, NAMESPACES, 1, slow);
        if by_event {
            server.gone();
        } else {
            server.fail(Verb::Watch, NAMESPACES, 1, Fault::Status(410));
            server.break_connections();
        }
        watcher.wait("a list", |_| seen(&server, Verb::List).len() == 2);
        assert!(watcher.knows("first"), "by event: {by_event}");
        server.apply(namespace("second"));
        watcher.wait("an event", |w| w.knows("second"));
        assert!(watcher.knows("first"));
        // From memory, and not older than what was seen.
        let list = &seen(&server, Verb::List)[1];
        assert_eq!(list.query["resourceVersionMatch"], "NotOlderThan");
        assert_eq!(list.query["resourceVersion"], "1");
        assert!(!list.query.contains_key("limit"));
    }
}

#[test]
fn a_version_that_the_server_does_not_have_yet_is_given_up() {
    // As after a restore of etcd: all versions are smaller than before.
    let server = ApiServer::start().unwrap();
    let address = server.address();
    server.apply_all((0..50).map(|n| namespace(&format!("old-{n}"))));
    let watcher = Watcher::of(&server);
    watcher.wait_until_connected();
    drop(server);
    std::thread::sleep(Duration::from_millis(100));
    let server = ApiServer::start_at(address).unwrap();
    server.apply(namespace("new"));
    server.fail(Verb::Watch, NAMESPACES, 1, Fault::Status(410));
    watcher.wait("the restored state", |w| {
        w.knows("new") && !w.knows("old-1")
    });
    assert_eq!(watcher.count(Kind::Namespace), 1);
}

#[test]
fn a_watch_that_falls_silent_is_made_again() {
    let timing = Timing {
        silence: Duration::from_millis(300),
        ..FAST
    };
    let (server, watcher) = running(timing);
    server.wait_for_watches(NAMESPACES, 3).unwrap();
    assert_eq!(seen(&server, Verb::List).len(), 1);
    assert!(watcher.knows("first"));
}

#[test]
fn an_end_that_was_asked_for_is_no_failure() {
    let timing = Timing {
        watch: Duration::from_secs(2),
        ..FAST
    };
    let (server, watcher) = running(timing);
    server.wait_for_watches(NAMESPACES, 2).unwrap();
    let status = watcher.status(Kind::Namespace);
    assert_eq!(status.retries, 0);
    assert_eq!(status.last_error, None);
    assert!(status.connected);
}

#[test]
fn odd_events_are_counted_and_do_not_end_the_watch() {
    let (server, watcher) = running(FAST);
    for line in [
        "no json",
        r#"{"type":"ADDED"}"#,
        r#"{"type":"RENAMED","object":{"metadata":{"name":"x"}}}"#,
        r#"{"type":3,"object":{}}"#,
        r#"{"type":"MODIFIED","object":{"metadata":{"name":["x"],"resourceVersion":5}}}"#,
        r#"{"type":"DELETED","object":"first"}"#,
        "[]",
        "7",
    ] {
        server.inject("Namespace", line);
    }
    server.apply(namespace("second"));
    watcher.wait("the good one", |w| w.knows("second"));
    assert!(watcher.knows("first"));
    assert_eq!(watcher.status(Kind::Namespace).odd, 8);
    assert_eq!(seen(&server, Verb::Watch).len(), 1);
}

#[test]
fn watches_end_when_they_are_dropped() {
    let (server, mut watcher) = running(FAST);
    watcher.stop();
    let before = server.seen().len();
    server.break_connections();
    server.apply(namespace("second"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.seen().len(), before);
    assert!(!watcher.knows("second"));
}

//! What is listed, how, and what becomes of it.

use aksnet_agent::identify::{
    kube::{self, RESOURCES},
    object::Kind,
};
use xtask::testbed::api::{
    ApiServer, Fault, Seen, Verb,
    objects::{namespace, node, pod, policy, service, slice},
};

use crate::watcher::{FAST, NODE, Watcher};

const NAMESPACES: &str = "/api/v1/namespaces";

fn lists<'a>(seen: &'a [Seen], path: &'a str) -> impl Iterator<Item = &'a Seen> + Clone {
    let of = move |seen: &&Seen| seen.verb == Verb::List && seen.path == path;
    seen.iter().filter(of)
}

fn given<'a>(seen: &'a Seen, key: &str) -> &'a str {
    seen.query.get(key).map_or("", String::as_str)
}

/// A server with so many namespaces.
fn many(count: usize) -> ApiServer {
    let server = ApiServer::start().unwrap();
    server.apply_all((0..count).map(|n| namespace(&format!("ns-{n}"))));
    server
}

#[test]
fn every_kind_is_listed_and_watched_once() {
    let server = ApiServer::start().unwrap();
    server.apply_all([
        namespace("shop"),
        node(NODE, "10.224.0.4", "10.244.0.0/24", "westeurope-1"),
        pod("shop", "web-0", "web", NODE, "10.244.0.7"),
        pod("shop", "web-1", "web", "aks-b", "10.244.1.7"),
        service("shop", "web", "10.0.0.10"),
        policy("shop", "web", &serde_json::json!({"podSelector": {}})),
        slice(
            "shop",
            "web",
            &[
                ("web-0", NODE, "10.244.0.7"),
                ("web-1", "aks-b", "10.244.1.7"),
            ],
        ),
    ]);
    let watcher = Watcher::of(&server);
    watcher.wait_until_connected();
    for kind in kube::kinds(false) {
        assert_eq!(watcher.count(kind), 1, "{}", kind.name());
        assert!(watcher.shared.read().synced(kind));
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 2 * kube::kinds(false).count());
    for resource in RESOURCES.iter().filter(|r| r.kind != Kind::RemotePod) {
        let path = resource.path();
        assert_eq!(lists(&seen, &path).count(), 1, "{path}");
        let list = lists(&seen, &path).next().unwrap();
        assert_eq!(given(list, "resourceVersion"), "0");
        assert_eq!(given(list, "limit"), "10");
    }
    let pods = seen.iter().filter(|seen| seen.path.ends_with("/pods"));
    let selectors: Vec<&str> = pods.map(|seen| given(seen, "fieldSelector")).collect();
    assert_eq!(selectors, ["spec.nodeName=aks-a"; 2]);
}

#[test]
fn pods_of_other_nodes_are_watched_only_when_asked_for() {
    let server = ApiServer::start().unwrap();
    let mut waiting = pod("shop", "new", "web", "", "");
    waiting["spec"].as_object_mut().unwrap().remove("nodeName");
    server.apply_all([
        pod("shop", "web-0", "web", NODE, "10.244.0.7"),
        pod("shop", "web-1", "web", "aks-b", "10.244.1.7"),
        waiting,
    ]);
    let watcher = Watcher::with(&server.kubeconfig(), FAST, true);
    watcher.wait("remote pods", |w| w.status(Kind::RemotePod).synced);
    watcher.wait("local pods", |w| w.status(Kind::LocalPod).synced);
    assert_eq!(watcher.count(Kind::LocalPod), 1);
    assert_eq!(watcher.count(Kind::RemotePod), 1);
    // A pod that gets a node appears.
    server.wait_for_watches("/pods", 2).unwrap();
    server.apply(pod("shop", "new", "web", "aks-b", "10.244.1.8"));
    watcher.wait("the new pod", |w| w.count(Kind::RemotePod) == 2);
    assert_eq!(watcher.count(Kind::LocalPod), 1);
}

#[test]
fn a_list_in_pages_is_followed_to_its_end() {
    let server = many(95);
    server.page_always(true);
    let watcher = Watcher::of(&server);
    watcher.wait("all pages", |w| w.status(Kind::Namespace).synced);
    assert_eq!(watcher.count(Kind::Namespace), 95);
    let seen = server.seen();
    assert_eq!(lists(&seen, NAMESPACES).count(), 10);
    let tokens = lists(&seen, NAMESPACES).filter(|seen| seen.query.contains_key("continue"));
    // With a token no version may be given.
    assert!(
        tokens
            .clone()
            .all(|seen| !seen.query.contains_key("resourceVersion"))
    );
    assert_eq!(tokens.count(), 9);
}

#[test]
fn a_list_that_comes_whole_is_taken_whole() {
    let server = many(95);
    let watcher = Watcher::of(&server);
    watcher.wait("the list", |w| w.status(Kind::Namespace).synced);
    assert_eq!(watcher.count(Kind::Namespace), 95);
    assert_eq!(lists(&server.seen(), NAMESPACES).count(), 1);
}

#[test]
fn a_token_that_expires_in_the_middle_of_a_list_begins_it_again_without_pages() {
    let server = many(95);
    server.page_always(true);
    // The second page is slow, and meanwhile the server forgets.
    let slow = Fault::Dribble(100, std::time::Duration::from_millis(20));
    server.fail(Verb::List, NAMESPACES, 1, slow);
    let watcher = Watcher::of(&server);
    watcher.wait("a first page", |_| {
        lists(&server.seen(), NAMESPACES).count() >= 1
    });
    server.compact();
    watcher.wait("the list", |w| w.status(Kind::Namespace).synced);
    assert_eq!(watcher.count(Kind::Namespace), 95);
    let seen = server.seen();
    let last = lists(&seen, NAMESPACES).last().unwrap();
    assert_eq!(last.query.len(), 0, "{last:?}");
    assert_eq!(watcher.status(Kind::Namespace).lists, 2);
}

#[test]
fn what_went_away_while_nobody_watched_is_gone_after_the_next_list() {
    let server = many(3);
    let watcher = Watcher::of(&server);
    watcher.wait_until_connected();
    assert!(watcher.knows("ns-1"));
    // Refused until long after the deletion, of which no watch can tell then.
    server.fail(Verb::Watch, NAMESPACES, 20, Fault::Status(500));
    server.break_connections();
    let status = |w: &Watcher| w.status(Kind::Namespace);
    watcher.wait("a refusal", |w| status(w).retries > 1);
    assert_eq!(status(&watcher).lists, 1);
    server.delete("Namespace", "", "ns-1");
    server.compact();
    watcher.wait("it is gone", |w| status(w).lists > 1 && !w.knows("ns-1"));
    assert!(watcher.knows("ns-0") && watcher.knows("ns-2"));
}

#[test]
fn an_odd_object_does_not_hide_the_others() {
    let server = ApiServer::start().unwrap();
    let items = r#"{"metadata":{"resourceVersion":"1"},"items":[
        {"metadata":{"name":"good-1"}}, {"metadata":{"name":7}}, null, [1,2], "text", {"metadata":{"name":"\ud800"}},
        {"metadata":{"name":"half","labels":{"a":"b","c":["d"]}}}, {"metadata":{"name":1e999}}, {"metadata":{"name":"good-2"}}]}"#;
    server.fail(Verb::List, NAMESPACES, 1, Fault::Body(items.to_owned()));
    let watcher = Watcher::of(&server);
    watcher.wait("the list", |w| w.status(Kind::Namespace).synced);
    assert!(watcher.knows("good-1") && watcher.knows("good-2") && watcher.knows("half"));
    assert_eq!(watcher.count(Kind::Namespace), 3);
    assert_eq!(watcher.status(Kind::Namespace).odd, 7);
    assert_eq!(watcher.status(Kind::Namespace).retries, 0);
}

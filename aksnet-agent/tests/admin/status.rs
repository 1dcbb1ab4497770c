//! What `/status` does not show.

use aksnet_agent::{
    admin::{Door, Limits},
    config::{file, merge},
};

use crate::bed::{Server, metrics};

/// A word that is in every file with something secret in it.
const SECRET: &str = "hunter2";

#[tokio::test]
async fn of_files_with_secrets_the_paths_are_shown_and_nothing_that_is_in_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, SECRET).unwrap();
        path
    };
    let (key, kubeconfig) = (path("key"), path("kubeconfig"));
    let text = format!("tls_cert='c'\ntls_key={key:?}\nkubeconfig={kubeconfig:?}\n");
    let effective = merge::merge(vec![file::read("f", &text).unwrap()]).unwrap();
    let server = Server::of(&effective, metrics(""), Door::default(), Limits::default()).await;
    let headers = format!("Authorization: Bearer {SECRET}\r\nCookie: {SECRET}\r\n");
    let (_, body) = server.get("/status", &headers).await;
    let text = String::from_utf8(body).unwrap();
    assert!(text.contains(key.to_str().unwrap()), "{text}");
    assert!(!text.contains(SECRET), "{text}");
    assert!(!effective.to_line().contains(SECRET));
    assert!(!effective.to_toml().contains(SECRET));

    // What could hold one is not taken.
    for line in [
        "otlp_endpoint='http://me:hunter2@c:1'",
        "cns_url='http://c/?key=hunter2'",
    ] {
        let read = file::read("f", line).unwrap();
        let error = merge::merge(vec![read]).unwrap_err().to_string();
        assert!(!error.contains(SECRET), "{error}");
    }
    // Every part of it is one that is looked at here: a new one has to be thought about.
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut parts: Vec<&str> = status
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    parts.sort_unstable();
    let known = [
        "config",
        "interfaces",
        "node",
        "not_ready_because",
        "plan",
        "programs",
        "ready",
        "revision",
        "sources",
        "sweep_error",
        "sweeps",
        "tables",
        "uptime_seconds",
        "version",
    ];
    assert_eq!(parts, known);
}

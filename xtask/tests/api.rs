//! The stand-in API server answers as its users expect, wherever it stands.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use xtask::testbed::Netns;
use xtask::testbed::api::{ApiServer, Fault, Verb, objects};
use xtask::testbed::bed::is_root;
use xtask::testbed::record::Record;

/// Sends a request and gives what came within a while, without the chunks' sizes.
fn ask(address: SocketAddr, target: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read) = stream.read(&mut buffer) {
        if read == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8(text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    let parts = body.split("\r\n").skip(1).step_by(2);
    Ok(format!("{status} {}", parts.collect::<String>()))
}

fn list(address: SocketAddr, target: &str) -> Value {
    let text = ask(address, target).unwrap();
    serde_json::from_str(text.strip_prefix("200 ").unwrap()).unwrap()
}

#[test]
fn lists_are_paged_and_selected() {
    let server = ApiServer::start().unwrap();
    server.apply_all([
        objects::pod("shop", "a", "web", "aks-a", "10.244.0.1"),
        objects::pod("shop", "b", "web", "aks-b", "10.244.0.2"),
        objects::pod("shop", "c", "web", "aks-b", "10.244.0.3"),
    ]);
    server.generate("Pod", 2, |n| {
        format!(r#"{{"metadata":{{"name":"made-{n}"}}}}"#)
    });
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = list(server.address(), "/api/v1/pods?limit=3&resourceVersion=0");
    assert_eq!(names(&all).len(), 5, "version 0 is answered whole");
    let first = list(server.address(), "/api/v1/pods?limit=3");
    assert_eq!(names(&first), ["a", "b", "c"]);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = list(
        server.address(),
        &format!("/api/v1/pods?limit=3&continue={token}"),
    );
    assert_eq!(names(&second), ["made-0", "made-1"]);
    assert!(second["metadata"]["continue"].is_null());
    let ours = list(
        server.address(),
        "/api/v1/pods?fieldSelector=spec.nodeName%3Daks-a",
    );
    assert_eq!(names(&ours), ["a"]);
    let others = list(
        server.address(),
        "/api/v1/pods?fieldSelector=spec.nodeName%21%3Daks-a",
    );
    assert_eq!(names(&others), ["b", "c", "made-0", "made-1"]);
    assert!(
        ask(server.address(), "/api/v1/secrets")
            .unwrap()
            .starts_with("404 ")
    );
    server.compact();
    let expired = ask(server.address(), &format!("/api/v1/pods?continue={token}")).unwrap();
    assert!(expired.starts_with("410 "), "{expired}");
}

#[test]
fn a_watch_tells_what_its_selector_sees() {
    let server = ApiServer::start().unwrap();
    server.apply(objects::pod("shop", "a", "web", "aks-a", "10.244.0.1"));
    server.apply(objects::pod("shop", "a", "web", "aks-b", "10.244.0.1"));
    server.delete("Pod", "shop", "a");
    server.bookmark();
    let types = |query: &str| -> Vec<String> {
        let text = ask(
            server.address(),
            &format!("/api/v1/pods?watch=true&{query}"),
        )
        .unwrap();
        let lines = text.strip_prefix("200 ").unwrap().lines();
        let events = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        events
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect()
    };
    let marks = "allowWatchBookmarks=true&resourceVersion=0";
    assert_eq!(types(marks), ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]);
    assert_eq!(types("resourceVersion=1"), ["MODIFIED", "DELETED"]);
    let one = "fieldSelector=spec.nodeName=aks-a&resourceVersion=0";
    assert_eq!(types(one), ["ADDED", "DELETED"]);
    server.gone();
    assert_eq!(types("resourceVersion=1"), ["ERROR"]);
}

#[test]
fn faults_come_as_often_as_planned() {
    let server = ApiServer::start().unwrap();
    server.fail(Verb::List, "/nodes", 2, Fault::RetryAfter(429, 7));
    let codes = (0..3).map(|_| ask(server.address(), "/api/v1/nodes").unwrap()[..3].to_owned());
    assert_eq!(codes.collect::<Vec<_>>(), ["429", "429", "200"]);
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn a_server_inside_of_a_namespace_is_found_only_there() -> Result<()> {
    if !is_root() {
        println!("skipped: making network namespaces needs root");
        return Ok(());
    }
    let record = Arc::new(Record::create()?);
    let netns = Netns::create(&record, "api")?;
    let server = ApiServer::start_in(&netns, "127.0.0.1:0".parse()?)?;
    server.apply(objects::namespace("shop"));
    let address = server.address();
    let inside = netns.run(|| ask(address, "/api/v1/namespaces"))?;
    assert!(inside.contains("\"shop\""), "{inside}");
    assert_eq!(server.seen().len(), 1);
    // Whoever has the port out here, it is not this server.
    let _ = ask(address, "/api/v1/namespaces");
    assert_eq!(server.seen().len(), 1);
    Ok(())
}

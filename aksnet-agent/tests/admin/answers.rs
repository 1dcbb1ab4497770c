//! What is answered.

use std::{io::Read, sync::Arc};

use aksnet_agent::{admin, board::Readiness, exit::Exit};
use tokio::net::TcpListener;

use crate::bed::{Server, metrics};

#[tokio::test]
async fn metrics_are_text_and_zipped_if_asked() {
    let text = "aksnet_flow_packets_total{class=\"pod_to_pod\"} 7\n".repeat(1000);
    let server = Server::start(metrics(&text)).await;
    let (head, body) = server.get("/metrics", "").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(!head.contains("content-encoding"), "{head}");
    assert_eq!(body, text.as_bytes());

    let (head, body) = server
        .get("/metrics", "Accept-Encoding: gzip;q=1.0\r\n")
        .await;
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(body.len() < text.len() / 20, "{} bytes", body.len());
    let mut unzipped = String::new();
    flate2::read::GzDecoder::new(&body[..])
        .read_to_string(&mut unzipped)
        .unwrap();
    assert_eq!(unzipped, text);
}

#[tokio::test]
async fn a_scrape_that_fails_is_a_500_with_the_reason() {
    let server = Server::start(Arc::new(|| anyhow::bail!("two series of one name"))).await;
    let (head, body) = server.get("/metrics", "").await;
    assert!(head.starts_with("http/1.1 500"), "{head}");
    assert_eq!(body, b"two series of one name\n");
}

#[tokio::test]
async fn ready_only_when_it_is() {
    let server = Server::start(metrics("")).await;
    let (head, body) = server.get("/ready", "").await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert_eq!(body, b"starting\n");
    server.board.post_readiness(Readiness::Ready);
    assert!(server.get("/ready", "").await.0.starts_with("http/1.1 200"));
    assert!(server.get("/live", "").await.0.starts_with("http/1.1 200"));
}

#[tokio::test]
async fn status_is_json_and_the_index_names_the_endpoints() {
    let server = Server::start(metrics("")).await;
    let (head, body) = server.get("/status", "").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["config"]["sample"]["value"], "64");
    let index = String::from_utf8(server.get("/", "").await.1).unwrap();
    for path in ["/metrics", "/live", "/ready", "/status"] {
        assert!(index.contains(path), "{index}");
    }
    assert!(
        server
            .get("/nothing", "")
            .await
            .0
            .starts_with("http/1.1 404")
    );
}

#[tokio::test]
async fn stops_when_told() {
    let server = Server::start(metrics("")).await;
    server.stop.send(()).unwrap();
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_port_and_a_strange_address_are_told_apart() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let failure = admin::bind(address).await.unwrap_err();
    assert_eq!(failure.exit, Exit::CantCreate);
    let text = failure.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("--listen"),
        "{text}"
    );

    // TEST-NET-1: nobody's own.
    let failure = admin::bind(([192, 0, 2, 1], 9435).into())
        .await
        .unwrap_err();
    assert_eq!(failure.exit, Exit::CantCreate);
    assert!(failure.to_string().contains("no such address"));
}

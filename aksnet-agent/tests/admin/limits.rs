//! What strangers can cost: connections, slow ones, many at once, and rubbish.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aksnet_agent::admin::{Door, Limits};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::bed::{Ca, Server, code_tls, door, eventually, metrics};

/// A connection that the other side has closed gives an end, or an error.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = [0; 1024];
    loop {
        match tokio::time::timeout(Duration::from_millis(20), stream.read(&mut rest)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
            Err(_later) => return false,
        }
    }
}

// As many threads as could make more answers at once than are allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn two_hundred_that_scrape_at_once_all_have_their_answer() {
    let text = "aksnet_flow_packets_total{class=\"pod_to_pod\"} 7\n".repeat(20_000);
    let at_once = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let made = {
        let (text, at_once) = (text.clone(), at_once.clone());
        Arc::new(move || {
            let now = at_once.0.fetch_add(1, Ordering::SeqCst) + 1;
            at_once.1.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            at_once.0.fetch_sub(1, Ordering::SeqCst);
            Ok(text.clone())
        })
    };
    // On a busy machine, each of them may wait for all others.
    let limits = Limits {
        wait: Duration::from_mins(2),
        whole: Duration::from_mins(3),
        slow: Duration::from_mins(1),
        ..Limits::default()
    };
    let server = Arc::new(Server::with(made, Door::default(), limits).await);
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        let server = server.clone();
        clients.spawn(async move { server.get("/metrics", "").await.1 });
    }
    let bodies = clients.join_all().await;
    assert_eq!(bodies.len(), 200);
    assert!(bodies.iter().all(|body| body == text.as_bytes()));
    let most = at_once.1.load(Ordering::SeqCst);
    assert!(most <= limits.answers, "{most} answers at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_say_nothing_keep_nobody_out_and_are_closed_in_time() {
    let limits = Limits {
        connections: 16,
        head: Duration::from_secs(3),
        ..Limits::default()
    };
    let server = Server::with(metrics("up 1\n"), Door::default(), limits).await;
    let mut silent = Vec::new();
    for n in 0..100 {
        let mut stream = server.dial().await;
        if n % 2 == 0 {
            // Says a little now and never more; who was closed meanwhile does not say it.
            let _gone = stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ").await;
        }
        silent.push(stream);
    }
    assert_eq!(server.code("/metrics").await, 200);
    assert_eq!(server.code("/live").await, 200);
    let mut open = 0;
    for stream in &mut silent {
        open += usize::from(!is_closed(stream).await);
    }
    assert!(open <= limits.connections, "{open} connections are open");
    eventually("all of them are closed", async || {
        for stream in &mut silent {
            if !is_closed(stream).await {
                return false;
            }
        }
        true
    })
    .await;
    assert_eq!(server.code("/metrics").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_byte_at_a_time_is_too_slow() {
    let limits = Limits {
        head: Duration::from_millis(500),
        ..Limits::default()
    };
    let server = Server::with(metrics("up 1\n"), Door::default(), limits).await;
    let mut stream = server.dial().await;
    let mut sent = 0;
    while !is_closed(&mut stream).await && sent < 10_000 {
        sent += 1;
        let _closed = stream.write_all(b"G").await;
    }
    assert!(sent < 10_000, "it may go on for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_do_not_read_their_answers_make_room_for_those_who_do() {
    // More than the kernel's buffers take.
    let text = "x".repeat(32 << 20);
    let limits = Limits {
        answers: 2,
        slow: Duration::from_millis(200),
        wait: Duration::from_secs(30),
        ..Limits::default()
    };
    let server = Server::with(metrics(&text), Door::default(), limits).await;
    let mut stuck = Vec::new();
    for _ in 0..6 {
        let mut stream = server.dial().await;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        stuck.push(stream);
    }
    let (head, body) = server.get("/metrics", "").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(body.len(), text.len());
    assert_eq!(server.code("/live").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_answers_do_not_end_others_are_told_to_come_again_and_probes_are_not_held_up() {
    let (hold, over) = std::sync::mpsc::channel::<()>();
    let over = std::sync::Mutex::new(over);
    let slow = Arc::new(move || {
        // Until the test is over.
        let _ended = over.lock().unwrap().recv();
        Ok(String::new())
    });
    let limits = Limits {
        answers: 1,
        wait: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = Arc::new(Server::with(slow, Door::default(), limits).await);
    let first = {
        let server = server.clone();
        tokio::spawn(async move { server.code("/metrics").await })
    };
    eventually("a second is told to wait", async || {
        let mut asked = JoinSet::new();
        let there = server.clone();
        asked.spawn(async move { there.get("/status", "").await.0 });
        let head = asked.join_next().await.unwrap().unwrap();
        head.starts_with("http/1.1 503") && head.contains("retry-after: 10")
    })
    .await;
    assert_eq!(server.code("/live").await, 200);
    drop(hold);
    assert_eq!(first.await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_and_what_is_too_large_is_refused_and_the_next_is_served() {
    let server = Server::start(metrics("up 1\n")).await;
    let large = format!(
        "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000));
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice();
    let zeros = vec![0; 100_000];
    for (what, said) in [
        ("zeros", zeros.as_slice()),
        ("TLS", tls),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("no HTTP", b"hello\r\n\r\n"),
        ("a large header", large.as_bytes()),
        ("a long path", path.as_bytes()),
        ("many headers", many.as_bytes()),
        (
            "no length",
            b"POST /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        ),
        (
            "two lengths",
            b"POST /metrics HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        ),
    ] {
        let mut stream = server.dial().await;
        let _closed = stream.write_all(said).await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{what}: {answer}"
        );
        assert_eq!(server.code("/metrics").await, 200, "after {what}");
    }
    // What nobody reads is not taken in: a body that would be large.
    let mut stream = server.dial().await;
    let post = format!(
        "POST /metrics HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        1u64 << 40
    );
    stream.write_all(post.as_bytes()).await.unwrap();
    let mut sent = 0usize;
    let piece = vec![0; 1 << 16];
    while sent < 256 << 20 && stream.write_all(&piece).await.is_ok() {
        sent += piece.len();
    }
    assert!(sent < 256 << 20, "{sent} bytes were taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_stop_halfway_keep_nobody_out_and_are_closed_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new("servers");
    let limits = Limits {
        connections: 16,
        head: Duration::from_secs(3),
        ..Limits::default()
    };
    let door = door(directory.path(), &ca.server(), None);
    let server = Server::with(metrics("up 1\n"), door, limits).await;
    let mut halfway = Vec::new();
    for n in 0..100u8 {
        let mut stream = server.dial().await;
        if n % 2 == 0 {
            // The beginning of a ClientHello that goes on for long.
            let _gone = stream
                .write_all(b"\x16\x03\x01\x20\x00\x01\x00\x1f\xfc\x03\x03")
                .await;
        }
        halfway.push(stream);
    }
    assert_eq!(
        code_tls(&server, &ca, None, "/metrics", "").await.unwrap(),
        200
    );
    eventually("all of them are closed", async || {
        for stream in &mut halfway {
            if !is_closed(stream).await {
                return false;
            }
        }
        true
    })
    .await;
    assert_eq!(
        code_tls(&server, &ca, None, "/live", "").await.unwrap(),
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_one_request_and_an_end() {
    let limits = Limits {
        whole: Duration::from_secs(1),
        head: Duration::from_mins(1),
        ..Limits::default()
    };
    let server = Server::with(metrics("up 1\n"), Door::default(), limits).await;
    let mut stream = server.dial().await;
    let request = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    // And one that never asks.
    let mut silent = server.dial().await;
    eventually("it is closed", async || is_closed(&mut silent).await).await;
}

//! Bearer tokens, against an API server that reviews them.

use std::time::Duration;

use aksnet_agent::{
    admin::{Door, Limits, Patience, Reviewer, Tls},
    config::{Config, MetricsAuth},
    exit::Exit,
    identify::kube::Access,
};
use tempfile::TempDir;
use xtask::testbed::api::{ApiServer, Fault, Verb, kubeconfig};

use crate::bed::{Ca, Server, ask, code_tls, dial_tls, eventually, files, metrics};

const BRIEF: Patience = Patience {
    answer: Duration::from_secs(2),
    allowed: Duration::from_millis(500),
    denied: Duration::from_millis(100),
};

const LONG: Patience = Patience {
    answer: Duration::from_secs(20),
    allowed: Duration::from_hours(1),
    denied: Duration::from_hours(1),
};

/// A server whose tokens this API server reviews.
struct Bed {
    server: Server,
    ca: Ca,
    _files: TempDir,
}

impl Bed {
    async fn start(url: &str, patience: Patience, clients: Option<&Ca>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, kubeconfig(url)).unwrap();
        let reviewer = Reviewer::with(&Access::auto(&path, ""), patience)
            .await
            .unwrap();
        let ca = Ca::new("servers");
        ca.server().write(directory.path());
        if let Some(clients) = clients {
            std::fs::write(directory.path().join("ca.crt"), clients.pem()).unwrap();
        }
        let tls = Tls::open(files(directory.path(), clients.is_some())).unwrap();
        let door = Door::new(Some(tls), Some(reviewer));
        Self {
            server: Server::with(metrics("up 1\n"), door, Limits::default()).await,
            ca,
            _files: directory,
        }
    }

    async fn get(&self, path: &str, token: &str) -> (String, String) {
        let stream = dial_tls(&self.server, &self.ca, None).await.unwrap();
        let header = match token {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        let (head, body) = ask(stream, path, &header).await.unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    async fn code(&self, path: &str, token: &str) -> u16 {
        crate::bed::code(&self.get(path, token).await.0)
    }
}

fn reviews(api: &ApiServer) -> usize {
    let seen = api.seen();
    seen.iter().filter(|seen| seen.verb == Verb::Review).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_let_in_to_what_its_user_may_get_and_others_are_told_why_not() {
    let api = ApiServer::start().unwrap();
    api.grant(
        "scraper",
        "system:serviceaccount:monitoring:prometheus",
        &["/metrics"],
    );
    api.grant("visitor", "system:serviceaccount:shop:web", &[]);
    let bed = Bed::start(&api.url(), LONG, None).await;
    assert_eq!(bed.get("/metrics", "scraper").await.1, "up 1\n");
    let (head, body) = bed.get("/status", "scraper").await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    assert!(
        body.contains("monitoring:prometheus may not get /status"),
        "{body}"
    );
    let (head, body) = bed.get("/metrics", "visitor").await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    assert!(body.contains("shop:web may not get /metrics"), "{body}");
    for token in ["", "rubbish"] {
        let (head, body) = bed.get("/metrics", token).await;
        assert!(head.starts_with("http/1.1 401"), "{head}");
        assert!(head.contains("www-authenticate: bearer"), "{head}");
        assert!(!body.contains("up 1"), "{body}");
    }
    // Probes have nothing to show, and nothing is asked for them.
    let before = reviews(&api);
    assert_eq!(bed.code("/live", "").await, 200);
    assert_eq!(bed.code("/ready", "rubbish").await, 503);
    assert_eq!(reviews(&api), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_is_kept_for_a_while_and_then_asked_again() {
    let api = ApiServer::start().unwrap();
    api.grant("scraper", "prometheus", &["/metrics"]);
    let bed = Bed::start(&api.url(), LONG, None).await;
    for _ in 0..5 {
        assert_eq!(bed.code("/metrics", "scraper").await, 200);
        assert_eq!(bed.code("/metrics", "rubbish").await, 401);
    }
    assert_eq!(reviews(&api), 3, "two for the one, one for the other");

    let bed = Bed::start(&api.url(), BRIEF, None).await;
    assert_eq!(bed.code("/metrics", "scraper").await, 200);
    assert_eq!(bed.code("/metrics", "late").await, 401);
    api.revoke("scraper");
    api.grant("late", "prometheus", &["/metrics"]);
    eventually("a token that was taken back is not let in", async || {
        bed.code("/metrics", "scraper").await == 401
    })
    .await;
    eventually("one that was given is", async || {
        bed.code("/metrics", "late").await == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_api_server_does_not_say_nobody_is_let_in() {
    let api = ApiServer::start().unwrap();
    api.grant("scraper", "prometheus", &["/metrics"]);
    let bed = Bed::start(&api.url(), BRIEF, None).await;
    for (path, fault) in [
        ("tokenreviews", Fault::Status(403)),
        ("tokenreviews", Fault::Status(500)),
        ("tokenreviews", Fault::Body("rubbish".to_owned())),
        ("tokenreviews", Fault::Body("x".repeat(1 << 20))),
        ("tokenreviews", Fault::Cut(10)),
        ("tokenreviews", Fault::Silence),
        ("subjectaccessreviews", Fault::Status(403)),
        ("subjectaccessreviews", Fault::Silence),
    ] {
        api.fail(Verb::Review, path, 1, fault.clone());
        let (head, body) = bed.get("/metrics", "scraper").await;
        assert!(head.starts_with("http/1.1 503"), "{fault:?}: {head}");
        assert!(
            body.starts_with("the token cannot be reviewed: "),
            "{fault:?}: {body}"
        );
        assert_eq!(bed.code("/live", "").await, 200, "{fault:?}");
    }
    // Nothing of that is kept.
    assert_eq!(bed.code("/metrics", "scraper").await, 200);

    let gone = Bed::start("http://127.0.0.1:1", BRIEF, None).await;
    assert_eq!(gone.code("/metrics", "scraper").await, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_both_a_certificate_or_a_token_does() {
    let api = ApiServer::start().unwrap();
    api.grant("scraper", "prometheus", &["/metrics"]);
    let clients = Ca::new("clients");
    let bed = Bed::start(&api.url(), LONG, Some(&clients)).await;
    assert_eq!(bed.code("/metrics", "scraper").await, 200);
    assert_eq!(bed.code("/metrics", "").await, 401);
    let client = clients.client();
    for path in ["/metrics", "/status"] {
        let code = code_tls(&bed.server, &bed.ca, Some(&client), path, "").await;
        assert_eq!(code.unwrap(), 200, "{path}");
    }
}

#[tokio::test]
async fn without_a_way_to_the_api_server_it_does_not_start() {
    let config = Config {
        metrics_auth: MetricsAuth::Token,
        ..Config::default()
    };
    let failure = Door::of(&config).await.err().unwrap();
    assert_eq!(failure.exit, Exit::Config);
    let text = failure.to_string();
    assert!(
        text.contains("--metrics-auth token") && text.contains("--kubeconfig"),
        "{text}"
    );
}

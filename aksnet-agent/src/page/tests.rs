//! The page's routes, against a source of live views that counts how often it is looked at.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
    response::Response,
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;
use crate::{
    board::Board,
    config::{Config, merge},
    live::{LiveQuery, Snapshot},
};

/// Looks are counted; each has as many flows matching as its limit.
#[derive(Default)]
struct Looks {
    /// So far.
    all: AtomicUsize,
    /// At this moment.
    now: AtomicUsize,
    /// At once, at the most.
    most: AtomicUsize,
    /// How long one takes.
    take: Duration,
}

impl Looks {
    fn look(&self, query: &LiveQuery) -> Result<Snapshot, String> {
        self.all.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(self.take);
        self.now.fetch_sub(1, Ordering::SeqCst);
        if query.filter.class.iter().any(|class| class == "walk") {
            return Err("no class 'walk'".to_owned());
        }
        Ok(Snapshot {
            matching: query.limit as u64,
            ..Snapshot::default()
        })
    }
}

struct Page {
    router: Router,
    board: Arc<Board>,
    looks: Arc<Looks>,
}

impl Page {
    fn new() -> Self {
        Self::whose_looks_take(Duration::ZERO)
    }

    fn whose_looks_take(take: Duration) -> Self {
        let board = Arc::new(Board::new(&merge::merge(vec![]).unwrap()));
        let looks = Arc::new(Looks {
            take,
            ..Looks::default()
        });
        let looking = looks.clone();
        let look: Look = Arc::new(move |query| looking.look(query));
        let shown = Arc::new(Shown::new(board.clone(), look));
        Self {
            router: router(shown, Hosts::at([127, 0, 0, 1].into())),
            board,
            looks,
        }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn get(&self, path: &str) -> Response {
        self.ask("GET", path, &[("host", "localhost:9436")]).await
    }

    fn looks(&self) -> usize {
        self.looks.all.load(Ordering::SeqCst)
    }
}

async fn body(response: Response) -> Vec<u8> {
    response
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
        .to_vec()
}

async fn json(response: Response) -> Value {
    serde_json::from_slice(&body(response).await).unwrap()
}

fn header_of<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn the_page_and_its_files_come_with_a_strict_policy() {
    let page = Page::new();
    for (path, kind) in [
        ("/", "text/html"),
        ("/page/app.js", "text/javascript"),
        ("/page/style.css", "text/css"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/api/live", "application/json"),
    ] {
        let response = page.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert!(
            header_of(&response, "content-type").starts_with(kind),
            "{path}"
        );
        let policy = header_of(&response, "content-security-policy");
        assert!(policy.starts_with("default-src 'none'; "), "{path}");
        assert!(!policy.contains("unsafe"), "{path}");
        assert_eq!(header_of(&response, "x-content-type-options"), "nosniff");
        assert_eq!(header_of(&response, "cache-control"), "no-store");
        assert!(!body(response).await.is_empty(), "{path}");
    }
    let missing = page.get("/metrics").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let page = Page::new();
    let local = [("host", "localhost")];
    let head = page.ask("HEAD", "/", &local).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert!(body(head).await.is_empty());
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        for path in ["/", "/api/live"] {
            let refused = page.ask(method, path, &local).await;
            assert_eq!(
                refused.status(),
                StatusCode::METHOD_NOT_ALLOWED,
                "{method} {path}"
            );
        }
    }
    assert_eq!(page.looks(), 0);
}

#[tokio::test]
async fn a_strangers_name_is_refused_before_anything_is_looked_at() {
    let page = Page::new();
    for path in ["/", "/api/live", "/page/app.js", "/nothing"] {
        for headers in [&[("host", "evil.example:9436")][..], &[]] {
            let refused = page.ask("GET", path, headers).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{path}");
            assert!(!header_of(&refused, "content-security-policy").is_empty());
        }
    }
    assert_eq!(page.looks(), 0);
}

#[tokio::test]
async fn equal_questions_cost_one_look_a_sweep() {
    let page = Page::new();
    for _ in 0..3 {
        assert_eq!(
            json(page.get("/api/live?limit=7").await).await["matching"],
            7
        );
        let same = page.get("/api/live?text=&limit=7").await;
        assert_eq!(json(same).await["matching"], 7);
    }
    assert_eq!(page.looks(), 1);
    assert_eq!(
        json(page.get("/api/live?limit=8").await).await["matching"],
        8
    );
    assert_eq!(page.looks(), 2);
    page.board.post_sweep(Ok(Value::Null));
    let answer = json(page.get("/api/live?limit=7").await).await;
    assert_eq!(page.looks(), 3);
    assert_eq!(answer["health"]["sweeps"], 1);
    let (a, b) = tokio::join!(page.get("/api/live?limit=9"), page.get("/api/live?limit=9"));
    assert_eq!(body(a).await, body(b).await);
    assert_eq!(page.looks(), 4, "whoever asks meanwhile gets the same");
}

#[tokio::test]
async fn browsers_that_hang_up_leave_one_look_at_a_time() {
    let page = Page::whose_looks_take(Duration::from_millis(20));
    for limit in 0..5 {
        let path = format!("/api/live?limit={limit}");
        // As far as it comes without waiting.
        tokio::select! {
            biased;
            _answered = page.get(&path) => {}
            () = std::future::ready(()) => {}
        }
    }
    assert_eq!(page.get("/api/live?limit=9").await.status(), StatusCode::OK);
    assert_eq!(page.looks.most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_is_zipped_if_asked() {
    let page = Page::new();
    for path in ["/api/live", "/page/app.js"] {
        let plain = body(page.get(path).await).await;
        let zipped = [("host", "localhost"), ("accept-encoding", "gzip")];
        let response = page.ask("GET", path, &zipped).await;
        assert_eq!(header_of(&response, "content-encoding"), "gzip");
        let zipped = body(response).await;
        let mut unzipped = Vec::new();
        std::io::copy(
            &mut flate2::read::GzDecoder::new(&zipped[..]),
            &mut unzipped,
        )
        .unwrap();
        assert_eq!(unzipped, plain);
    }
}

#[tokio::test]
async fn what_is_not_understood_is_said() {
    let page = Page::new();
    for (query, said) in [
        ("limit=many", "limit: 'many' is not a whole number"),
        ("class=walk", "no class 'walk'"),
    ] {
        let refused = page.get(&format!("/api/live?{query}")).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert_eq!(refused.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(json(refused).await["error"], said);
    }
}

#[tokio::test]
async fn the_place_is_its_own_or_beside_or_nowhere() {
    let listen = Config::default().listen;
    let off = Place::take(None, listen).await;
    assert!(matches!(&off, Place::Nowhere(why) if why.contains("off")));
    assert!(matches!(
        Place::take(Some(listen), listen).await,
        Place::Beside
    ));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let Place::Own(listener, address) = Place::take(Some(any), listen).await else {
        panic!("a free port is taken");
    };
    let second = Place::take(Some(address), listen).await;
    let Place::Nowhere(why) = &second else {
        panic!("the port is taken");
    };
    assert!(
        why.contains("the port is in use") && why.contains("--page"),
        "{why}"
    );
    assert!(second.line().contains("not served: cannot listen on"));
    drop(listener);
}

//! The admin HTTP server: what Prometheus scrapes, what Kubernetes probes, what people look at.

// Who is let in, over what.
mod door;

mod tls;

mod review;

// Connections, and what they may cost.
mod seats;

mod server;

use std::{io::Write, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use tokio::net::TcpListener;

use crate::{
    board::{Board, Readiness},
    exit::{Exit, Failure},
};

pub use self::{
    door::Door,
    review::{Patience, Reviewer, Verdict},
    server::Limits,
    tls::{Files, Tls},
};
pub(crate) use self::{door::named, server::serve as serve_router};

/// Gives the metrics in Prometheus' text format.
pub type Metrics = Arc<dyn Fn() -> anyhow::Result<String> + Send + Sync>;

/// Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is where.
const INDEX: &str = "aksnet-agent\n\n\
    /metrics  for Prometheus (text, gzip if asked)\n\
    /live     200 while the agent's loop turns\n\
    /ready    200 once programs are attached and a first sweep is done\n\
    /status   programs, interfaces, tables, address plan and config, as JSON\n\n";

/// Takes the listen address.
///
/// # Errors
/// When it is taken already, or not this machine's, with what to do.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(listen).await.map_err(|error| {
        let port = listen.port();
        let (exit, why) = match error.kind() {
            std::io::ErrorKind::AddrInUse => (
                Exit::CantCreate,
                format!(
                    "the port is in use, perhaps by another agent (see `ss -ltnp sport = :{port}`); \
                     stop that, or choose another with --listen"
                ),
            ),
            std::io::ErrorKind::AddrNotAvailable => (
                Exit::CantCreate,
                "this machine has no such address; 127.0.0.1 is always there, 0.0.0.0 and [::] stand for \
                 all"
                .to_owned(),
            ),
            std::io::ErrorKind::PermissionDenied => (
                Exit::NoPermission,
                "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE".to_owned(),
            ),
            _ => (Exit::Os, error.to_string()),
        };
        Failure::new(exit, format_args!("cannot listen on {listen}: {why}"))
    })
}

#[derive(Clone)]
struct Shared {
    board: Arc<Board>,
    metrics: Metrics,
}

/// `/` where the page is not: what is where, with a further line.
pub fn index(line: &str) -> Router {
    let text = format!("{INDEX}{line}");
    Router::new().route("/", get(async || text))
}

/// Serves until `stop`, behind `door`, with `root` beside: [`index`], or the page.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    board: Arc<Board>,
    metrics: Metrics,
    root: Router,
    (door, limits): (Door, Limits),
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/metrics", get(serve_metrics))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .with_state(Shared { board, metrics })
        .merge(root);
    serve_router(listener, app, door, limits, stop).await
}

async fn serve_metrics(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let text = match (shared.metrics)() {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!("a scrape failed: {error:#}");
            return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response();
        }
    };
    let content = (header::CONTENT_TYPE, TEXT_FORMAT);
    if wants_gzip(&headers)
        && let Ok(zipped) = gzip(&text)
    {
        let encoding = (header::CONTENT_ENCODING, "gzip");
        return ([content, encoding], zipped).into_response();
    }
    ([content], text).into_response()
}

async fn live(State(shared): State<Shared>) -> Response {
    match shared.board.alive() {
        Ok(()) => "live\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn ready(State(shared): State<Shared>) -> Response {
    match shared.board.readiness() {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::Waiting(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
        }
    }
}

async fn status(State(shared): State<Shared>) -> Response {
    let text = format!("{:#}\n", shared.board.status());
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// `gzip` or `*`, unless with `q=0`.
pub(crate) fn wants_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|item| {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or("");
            let refused = parts.any(|p| {
                p.strip_prefix("q=")
                    .is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0))
            });
            (name.eq_ignore_ascii_case("gzip") || name == "*") && !refused
        })
}

/// Zipped, fast rather than small.
pub(crate) fn gzip(text: &str) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_given_to_those_who_ask() {
        let asks = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            wants_gzip(&headers)
        };
        assert!(asks("gzip") && asks("deflate, GZIP;q=0.5") && asks("*"));
        assert!(!asks("identity") && !asks("gzip;q=0") && !asks("gzipped"));
        assert!(!wants_gzip(&HeaderMap::new()));
    }
}

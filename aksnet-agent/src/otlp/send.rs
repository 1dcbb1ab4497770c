//! Sending, by OTLP over HTTP with protobuf (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>), to a collector on or
//! beside the node. A collector that is slow or dead costs neither memory nor time: records wait in the flow log's ring
//! only, and those that fall out of it or cannot be sent are counted.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header};
use prost::Message as _;
use tokio::time::{MissedTickBehavior, interval_at, timeout_at};

use super::message;
use crate::{
    flowlog::{FlowLog, FlowRecord, Following, News},
    metrics::Metrics,
    node::http::answer,
};

/// Records in one request.
const BATCH: usize = 512;
/// How long a record waits for others.
const WAIT: Duration = Duration::from_secs(1);
/// Between two requests with metrics.
const METRICS: Duration = Duration::from_secs(15);
/// From the start to the first of them.
const FIRST_METRICS: Duration = Duration::from_secs(2);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// No answer is longer.
const ANSWER: usize = 64 * 1024;
/// How often a batch is tried, with twice the pause each time.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// Sends until it is cancelled. Two loops, so that neither waits for the other.
pub async fn send(endpoint: String, node: String, log: Arc<FlowLog>, metrics: Metrics) {
    let following = log.follow();
    drop(log);
    tokio::join!(
        records(&endpoint, &node, following, &metrics),
        families(&endpoint, &node, &metrics)
    );
}

async fn records(endpoint: &str, node: &str, mut following: Following, metrics: &Metrics) {
    loop {
        let mut batch: Vec<Arc<FlowRecord>> = Vec::new();
        let mut dropped = 0;
        let mut take = |news| match news {
            News::Record(record) => batch.push(record),
            News::Missed(missed) => dropped += missed,
        };
        match following.next().await {
            Some(news) => take(news),
            None => return,
        }
        let until = tokio::time::Instant::now() + WAIT;
        let mut open = true;
        for _ in 1..BATCH {
            match timeout_at(until, following.next()).await {
                Ok(Some(news)) => take(news),
                Ok(None) => {
                    open = false;
                    break;
                }
                Err(_) => break,
            }
        }
        metrics.count_otlp_records(0, dropped);
        let body = message::logs(node, batch.iter().map(AsRef::as_ref)).encode_to_vec();
        let records = batch.len() as u64;
        match post(endpoint, "/v1/logs", body, metrics, TRIES).await {
            Ok(()) => metrics.count_otlp_records(records, 0),
            Err(error) => {
                metrics.count_otlp_records(0, records);
                tracing::warn!("{records} flow records could not be sent: {error}");
            }
        }
        if !open {
            return;
        }
    }
}

async fn families(endpoint: &str, node: &str, metrics: &Metrics) {
    let started = now_ns();
    // The first comes when there is something to tell.
    let mut ticks = interval_at(tokio::time::Instant::now() + FIRST_METRICS, METRICS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let families = metrics.registry().gather();
        let body = message::metrics(node, &families, started, now_ns()).encode_to_vec();
        // The next ones are newer: these are not tried again.
        if let Err(error) = post(endpoint, "/v1/metrics", body, metrics, 1).await {
            tracing::debug!("metrics could not be sent: {error}");
        }
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

async fn post(
    endpoint: &str,
    path: &str,
    body: Vec<u8>,
    metrics: &Metrics,
    tries: u32,
) -> Result<(), String> {
    let body = Bytes::from(body);
    let mut pause = PAUSE;
    let mut attempt = 1;
    loop {
        match once(endpoint, path, body.clone()).await {
            Ok(()) => return Ok(()),
            Err(failed) => {
                metrics.count_otlp_failure();
                if attempt >= tries || failed.for_good {
                    return Err(failed.why);
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
        attempt += 1;
    }
}

/// Why a request failed.
struct Failed {
    /// The collector will not take it, however often it is asked.
    for_good: bool,
    why: String,
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        let for_good = false;
        Self { for_good, why }
    }
}

async fn once(endpoint: &str, path: &str, body: Bytes) -> Result<(), Failed> {
    let url = format!("{}{path}", endpoint.trim_end_matches('/'));
    let request = Request::post(&url)
        .header(header::CONTENT_TYPE, "application/x-protobuf")
        .header(
            header::USER_AGENT,
            concat!("aksnet-agent/", env!("CARGO_PKG_VERSION")),
        );
    let uri: http::Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let host = uri.host().ok_or_else(|| format!("{url} names no host"))?;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    // Over HTTP/1.1 the server is asked for the path alone.
    let target = uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let request = request
        .uri(target)
        .header(header::HOST, authority)
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let look_up =
        tokio::net::lookup_host((host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(80)));
    let found = tokio::time::timeout(PATIENCE, look_up).await;
    let found = found.map_err(|_| format!("{host}: no answer by name"))?;
    let mut found = found.map_err(|error| format!("{host}: {error}"))?;
    let server = found
        .next()
        .ok_or_else(|| format!("{host} has no address"))?;
    let (status, _said) = answer(server, request, ANSWER, PATIENCE).await?;
    if status.is_success() {
        return Ok(());
    }
    Err(Failed {
        // OTLP/HTTP, "Failures": all others must not be tried again.
        for_good: !matches!(status.as_u16(), 429 | 502 | 503 | 504),
        why: format!("{server} answered {status}"),
    })
}

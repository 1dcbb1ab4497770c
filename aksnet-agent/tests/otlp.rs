//! OTLP: what a stand-in collector gets, decoded, and what becomes of records when there is none.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aksnet_agent::{
    flowlog::{BEHIND, Counts, End, FlowLog, FlowRecord},
    metrics::{Metrics, MetricsConfig},
    otlp::send::send,
    top::model::{Ends, Timing, Who},
};
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    logs::v1::LogRecord,
    metrics::v1::{Metric, metric::Data, number_data_point},
};
use prost::Message as _;

fn record(port: u16) -> FlowRecord {
    let who = |name: &str| Who {
        namespace: "shop".to_owned(),
        workload: name.to_owned(),
        pod: format!("{name}-0"),
    };
    let ends = |dst: [u8; 4], dst_port| Ends {
        src: [10, 244, 0, 5].into(),
        src_port: port,
        dst: dst.into(),
        dst_port,
    };
    let counts = |packets| Counts {
        packets,
        bytes: packets * 100,
        total_packets: packets,
        total_bytes: packets * 100,
        tcp_flags: "FSPA".to_owned(),
        ..Counts::default()
    };
    FlowRecord {
        start_ms: 1_700_000_000_000,
        end_ms: 1_700_000_001_000,
        end: End::Closed,
        node: "node-1".to_owned(),
        class: "pod_to_service".to_owned(),
        nat: "dnat".to_owned(),
        scope: "same_node".to_owned(),
        protocol: "tcp".to_owned(),
        in_interface: "veth0".to_owned(),
        out_interface: "veth1".to_owned(),
        from: who("frontend"),
        to: who("web"),
        before: ends([10, 0, 0, 10], 80),
        after: Some(ends([10, 244, 0, 7], 8080)),
        forward: counts(6),
        reply: Some(counts(4)),
        connections: 1,
        outcome: "finished".to_owned(),
        first: Some(Timing {
            samples: 1,
            p50_ns: 90_000.0,
            p99_ns: 99_000.0,
        }),
        established: None,
        drop_reason: None,
        drop_cause: None,
        policies: vec!["shop/web".to_owned()],
        verdict: None,
    }
}

/// What a collector got.
#[derive(Default)]
struct Got {
    logs: Vec<ExportLogsServiceRequest>,
    metrics: Vec<ExportMetricsServiceRequest>,
    /// Answers that are failures, before it takes anything.
    refuse: u32,
    /// It takes nothing, ever.
    never: bool,
}

type Collector = Arc<Mutex<Got>>;

fn take(
    collector: &Collector,
    headers: &HeaderMap,
    take: impl FnOnce(&mut Got),
) -> axum::http::StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let mut got = collector.lock().unwrap();
    if got.never {
        return axum::http::StatusCode::BAD_REQUEST;
    }
    if got.refuse > 0 {
        got.refuse -= 1;
        return axum::http::StatusCode::SERVICE_UNAVAILABLE;
    }
    take(&mut got);
    axum::http::StatusCode::OK
}

async fn collector(refuse: u32) -> (Collector, SocketAddr) {
    let collector: Collector = Arc::default();
    collector.lock().unwrap().refuse = refuse;
    let app = Router::new()
        .route(
            "/v1/logs",
            post(
                |State(c): State<Collector>, headers: HeaderMap, body: Bytes| async move {
                    let request = ExportLogsServiceRequest::decode(body).expect("protobuf");
                    take(&c, &headers, |got| got.logs.push(request))
                },
            ),
        )
        .route(
            "/v1/metrics",
            post(
                |State(c): State<Collector>, headers: HeaderMap, body: Bytes| async move {
                    let request = ExportMetricsServiceRequest::decode(body).expect("protobuf");
                    take(&c, &headers, |got| got.metrics.push(request))
                },
            ),
        )
        .with_state(collector.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (collector, address)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> &'a Value {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let value = found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
    value.unwrap_or_else(|| panic!("no {key}"))
}

fn string(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Value::StringValue(text) => text.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

fn count(metrics: &Metrics, line: &str) -> u64 {
    let text = metrics.encode().unwrap();
    let found = text
        .lines()
        .find_map(|l| l.strip_prefix(line)?.trim().parse::<f64>().ok());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small count"
    )]
    let found = found.unwrap_or_else(|| panic!("no {line}")) as u64;
    found
}

fn outcome(metrics: &Metrics, outcome: &str) -> u64 {
    count(
        metrics,
        &format!("aksnet_agent_otlp_records_total{{outcome=\"{outcome}\"}}"),
    )
}

fn metrics_are_as_exposed(request: &ExportMetricsServiceRequest, metrics: &Metrics) {
    let families = &request.resource_metrics[0].scope_metrics[0].metrics;
    let family = |name: &str| -> &Metric {
        families
            .iter()
            .find(|metric| metric.name == name)
            .unwrap_or_else(|| panic!("no {name}"))
    };
    let Some(Data::Gauge(up)) = &family("aksnet_program_up").data else {
        panic!("a gauge");
    };
    assert_eq!(
        up.data_points[0].value,
        Some(number_data_point::Value::AsDouble(1.0))
    );
    assert_eq!(string(&up.data_points[0].attributes, "program"), "enter");
    let Some(Data::Sum(sent)) = &family("aksnet_agent_otlp_records_total").data else {
        panic!("a counter");
    };
    assert!(sent.is_monotonic);
    let sweeps = family("aksnet_agent_sweep_seconds");
    assert_eq!(sweeps.unit, "s");
    let Some(Data::Histogram(sweeps)) = &sweeps.data else {
        panic!("a histogram");
    };
    let point = &sweeps.data_points[0];
    assert_eq!(
        (point.count, point.bucket_counts.iter().sum::<u64>()),
        (1, 1)
    );
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    let at = point.bucket_counts.iter().position(|n| *n == 1).unwrap();
    assert!(
        (point.explicit_bounds[at] - 0.0025).abs() < 1e-9,
        "2 ms lie below 2.5"
    );
    let exposed: Vec<String> = metrics
        .registry()
        .gather()
        .iter()
        .map(|f| f.name().to_owned())
        .collect();
    let sent: Vec<String> = families.iter().map(|f| f.name.clone()).collect();
    assert_eq!(sent, exposed, "the same names");
}

#[tokio::test]
async fn a_collector_gets_records_as_logs_and_the_metrics_under_their_names() {
    // It is not there yet for the first two requests.
    let (collector, address) = collector(2).await;
    let (log, metrics) = (
        Arc::new(FlowLog::default()),
        Metrics::new(MetricsConfig::default()),
    );
    metrics.set_program_up("enter", "tcx", true);
    metrics.observe_sweep(Duration::from_millis(2));
    let sender = tokio::spawn(send(
        format!("http://{address}/"),
        "node-1".to_owned(),
        log.clone(),
        metrics.clone(),
    ));
    eventually("it follows", || log.followers() == 1).await;
    log.publish((1..=700).map(record), 0);
    eventually("all is sent", || outcome(&metrics, "sent") == 700).await;
    eventually("metrics, too", || {
        !collector.lock().unwrap().metrics.is_empty()
    })
    .await;
    assert_eq!(outcome(&metrics, "dropped"), 0);
    assert_eq!(
        count(&metrics, "aksnet_agent_otlp_failed_requests_total"),
        2
    );

    let got = collector.lock().unwrap();
    let resource = got.logs[0].resource_logs[0].resource.as_ref().unwrap();
    assert_eq!(string(&resource.attributes, "k8s.node.name"), "node-1");
    assert_eq!(string(&resource.attributes, "service.name"), "aksnet-agent");
    let all = got.logs.iter().flat_map(|request| &request.resource_logs);
    let all: Vec<&LogRecord> = all
        .flat_map(|r| &r.scope_logs)
        .flat_map(|s| &s.log_records)
        .collect();
    let ports: Vec<_> = all
        .iter()
        .map(|log| value(&log.attributes, "source.port").clone())
        .collect();
    assert_eq!(
        ports,
        (1..=700).map(Value::IntValue).collect::<Vec<_>>(),
        "each once, in order"
    );
    let first = all[0];
    for (key, text) in [
        ("source.address", "10.244.0.5"),
        ("destination.address", "10.0.0.10"),
        ("network.transport", "tcp"),
        ("network.type", "ipv4"),
        ("source.k8s.namespace.name", "shop"),
        ("source.k8s.pod.name", "frontend-0"),
        ("destination.k8s.workload.name", "web"),
        ("aksnet.translated.destination.address", "10.244.0.7"),
        ("aksnet.class", "pod_to_service"),
        ("aksnet.nat", "dnat"),
        ("aksnet.outcome", "finished"),
        ("aksnet.end", "closed"),
    ] {
        assert_eq!(string(&first.attributes, key), text, "{key}");
    }
    assert_eq!(
        *value(&first.attributes, "aksnet.forward.packets"),
        Value::IntValue(6)
    );
    assert_eq!(
        *value(&first.attributes, "aksnet.reply.bytes"),
        Value::IntValue(400)
    );
    assert_eq!(
        *value(&first.attributes, "aksnet.nat_path.first.p50_seconds"),
        Value::DoubleValue(90e-6)
    );
    assert_eq!(first.time_unix_nano, 1_700_000_001_000_000_000);
    assert_eq!(first.event_name, "aksnet.flow");

    metrics_are_as_exposed(&got.metrics[0], &metrics);
    sender.abort();
}

#[tokio::test]
async fn what_a_collector_refuses_for_good_is_not_sent_again() {
    let (collector, address) = collector(0).await;
    collector.lock().unwrap().never = true;
    let (log, metrics) = (
        Arc::new(FlowLog::default()),
        Metrics::new(MetricsConfig::default()),
    );
    let endpoint = format!("http://{address}");
    let sender = tokio::spawn(send(endpoint, "n".to_owned(), log.clone(), metrics.clone()));
    eventually("it follows", || log.followers() == 1).await;
    log.publish([record(1)], 0);
    eventually("it is lost", || outcome(&metrics, "dropped") == 1).await;
    // Those with metrics are tried once in any case.
    let failures = count(&metrics, "aksnet_agent_otlp_failed_requests_total");
    assert!(failures <= 2, "{failures}");
    sender.abort();
}

#[tokio::test]
async fn a_dead_collector_blocks_nobody_and_what_is_lost_is_counted() {
    // A port on which nobody listens.
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let (log, metrics) = (
        Arc::new(FlowLog::default()),
        Metrics::new(MetricsConfig::default()),
    );
    let sender = tokio::spawn(send(
        format!("http://{address}"),
        "n".to_owned(),
        log.clone(),
        metrics.clone(),
    ));
    eventually("it follows", || log.followers() == 1).await;
    // More than the ring holds: the oldest fall out of it, and memory does not grow.
    let published = BEHIND as u64 + 1_000;
    log.publish((0..published).map(|_| record(1)), 0);
    eventually("what fell out is counted, and then the first batch", || {
        outcome(&metrics, "dropped") >= 1_500
    })
    .await;
    assert_eq!(outcome(&metrics, "sent"), 0);
    let failures = count(&metrics, "aksnet_agent_otlp_failed_requests_total");
    assert!(failures >= 4, "a batch is tried again: {failures}");
    assert!(log.recent().len() <= 512);
    log.close();
    assert!(outcome(&metrics, "dropped") <= published);
    sender.abort();
}

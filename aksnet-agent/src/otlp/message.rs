//! From records and metric families to OTLP's messages. Attributes have the names of OpenTelemetry's semantic
//! conventions where there is one, and begin with `aksnet.` else; `docs/records.md` lists them.

use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest},
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use prometheus::proto::{self, MetricFamily, MetricType};

use crate::{
    cli::VERSION,
    flowlog::{Counts, FlowRecord},
    top::model::{Timing, Who},
};

const NS_IN_MS: u64 = 1_000_000;

fn text(value: impl Into<String>) -> Value {
    Value::StringValue(value.into())
}

fn number(value: u64) -> Value {
    Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn resource(node: &str) -> Resource {
    Resource {
        attributes: vec![
            attribute("service.name", text("aksnet-agent")),
            attribute("service.version", text(VERSION)),
            attribute("k8s.node.name", text(node)),
        ],
        ..Resource::default()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "aksnet".to_owned(),
        version: VERSION.to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Records as logs.
#[must_use]
pub fn logs<'a>(
    node: &str,
    records: impl IntoIterator<Item = &'a FlowRecord>,
) -> ExportLogsServiceRequest {
    let records = records.into_iter().map(log);
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(resource(node)),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope()),
                log_records: records.collect(),
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    }
}

fn log(record: &FlowRecord) -> LogRecord {
    let mut attributes = Vec::with_capacity(40);
    let mut add = |key: &str, value: Value| attributes.push(attribute(key, value));
    add("source.address", text(record.before.src.to_string()));
    add("source.port", number(record.before.src_port.into()));
    add("destination.address", text(record.before.dst.to_string()));
    add("destination.port", number(record.before.dst_port.into()));
    add("network.transport", text(record.protocol.as_str()));
    let family = if record.before.src.is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    };
    add("network.type", text(family));
    for (side, who) in [("source", &record.from), ("destination", &record.to)] {
        who_is(&mut add, side, who);
    }
    if let Some(after) = record.after {
        add(
            "aksnet.translated.source.address",
            text(after.src.to_string()),
        );
        add(
            "aksnet.translated.source.port",
            number(after.src_port.into()),
        );
        add(
            "aksnet.translated.destination.address",
            text(after.dst.to_string()),
        );
        add(
            "aksnet.translated.destination.port",
            number(after.dst_port.into()),
        );
    }
    for (key, value) in [
        ("aksnet.class", &record.class),
        ("aksnet.nat", &record.nat),
        ("aksnet.scope", &record.scope),
        ("aksnet.outcome", &record.outcome),
        ("aksnet.interface.in", &record.in_interface),
        ("aksnet.interface.out", &record.out_interface),
    ] {
        if !value.is_empty() {
            add(key, text(value.as_str()));
        }
    }
    add("aksnet.end", text(record.end.name()));
    add("aksnet.start_unix_ms", number(record.start_ms));
    add("aksnet.connections", number(record.connections));
    counts(&mut add, "forward", &record.forward);
    if let Some(reply) = &record.reply {
        counts(&mut add, "reply", reply);
    }
    times(&mut add, record);
    if let Some(cause) = &record.drop_cause {
        add("aksnet.drop.cause", text(cause.as_str()));
    }
    if let Some(reason) = &record.drop_reason {
        add("aksnet.drop.reason", text(reason.as_str()));
    }
    if !record.policies.is_empty() {
        let values = record.policies.iter().map(|policy| AnyValue {
            value: Some(text(policy.as_str())),
        });
        let values = values.collect();
        add("aksnet.policies", Value::ArrayValue(ArrayValue { values }));
    }
    let dropped = record.drops() > 0;
    LogRecord {
        time_unix_nano: record.end_ms.saturating_mul(NS_IN_MS),
        observed_time_unix_nano: record.end_ms.saturating_mul(NS_IN_MS),
        severity_number: if dropped {
            SeverityNumber::Warn
        } else {
            SeverityNumber::Info
        } as i32,
        severity_text: if dropped { "WARN" } else { "INFO" }.to_owned(),
        body: Some(AnyValue {
            value: Some(text(record.line())),
        }),
        attributes,
        event_name: "aksnet.flow".to_owned(),
        ..LogRecord::default()
    }
}

/// Times on the NAT path.
fn times(add: &mut impl FnMut(&str, Value), record: &FlowRecord) {
    for (stage, timing) in [("first", record.first), ("established", record.established)] {
        if let Some(Timing {
            samples,
            p50_ns,
            p99_ns,
        }) = timing
        {
            add(&format!("aksnet.nat_path.{stage}.samples"), number(samples));
            add(
                &format!("aksnet.nat_path.{stage}.p50_seconds"),
                Value::DoubleValue(p50_ns / 1e9),
            );
            add(
                &format!("aksnet.nat_path.{stage}.p99_seconds"),
                Value::DoubleValue(p99_ns / 1e9),
            );
        }
    }
}

fn who_is(add: &mut impl FnMut(&str, Value), side: &str, who: &Who) {
    for (key, value) in [
        ("k8s.namespace.name", &who.namespace),
        ("k8s.workload.name", &who.workload),
        ("k8s.pod.name", &who.pod),
    ] {
        if !value.is_empty() {
            add(&format!("{side}.{key}"), text(value.as_str()));
        }
    }
}

fn counts(add: &mut impl FnMut(&str, Value), side: &str, counts: &Counts) {
    for (key, value) in [
        ("packets", counts.packets),
        ("bytes", counts.bytes),
        ("total_packets", counts.total_packets),
        ("total_bytes", counts.total_bytes),
        ("drops", counts.drops),
        ("retransmits", counts.retransmits),
    ] {
        add(&format!("aksnet.{side}.{key}"), number(value));
    }
    if !counts.tcp_flags.is_empty() {
        add(
            &format!("aksnet.{side}.tcp_flags"),
            text(counts.tcp_flags.as_str()),
        );
    }
}

/// Metric families under their own names. Counters have been counted since `started_ns`.
#[must_use]
pub fn metrics(
    node: &str,
    families: &[MetricFamily],
    started_ns: u64,
    now_ns: u64,
) -> ExportMetricsServiceRequest {
    let time = (started_ns, now_ns);
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource(node)),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope()),
                metrics: families
                    .iter()
                    .filter_map(|family| metric(family, time))
                    .collect(),
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
}

fn metric(family: &MetricFamily, time: (u64, u64)) -> Option<Metric> {
    let all = family.get_metric();
    let cumulative = AggregationTemporality::Cumulative as i32;
    let points = |value: fn(&proto::Metric) -> f64| {
        let point = |metric: &proto::Metric| NumberDataPoint {
            attributes: labels(metric),
            start_time_unix_nano: time.0,
            time_unix_nano: time.1,
            value: Some(number_data_point::Value::AsDouble(value(metric))),
            ..NumberDataPoint::default()
        };
        all.iter().map(point).collect()
    };
    let data = match family.get_field_type() {
        MetricType::COUNTER => Data::Sum(Sum {
            data_points: points(|metric| metric.get_counter().get_value()),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        MetricType::GAUGE => Data::Gauge(Gauge {
            data_points: points(|metric| metric.get_gauge().get_value()),
        }),
        MetricType::HISTOGRAM => Data::Histogram(Histogram {
            data_points: all.iter().map(|metric| histogram(metric, time)).collect(),
            aggregation_temporality: cumulative,
        }),
        _ => return None,
    };
    Some(Metric {
        name: family.name().to_owned(),
        description: family.help().to_owned(),
        unit: unit(family.name()).to_owned(),
        data: Some(data),
        ..Metric::default()
    })
}

/// The unit that a name ends with, as OTLP writes it (UCUM).
fn unit(name: &str) -> &'static str {
    match name.strip_suffix("_total").unwrap_or(name) {
        name if name.ends_with("_seconds") => "s",
        name if name.ends_with("_bytes") => "By",
        _ => "",
    }
}

fn labels(metric: &proto::Metric) -> Vec<KeyValue> {
    let labels = metric.get_label().iter();
    labels
        .map(|label| attribute(label.name(), text(label.value())))
        .collect()
}

/// Prometheus' buckets hold all that is less, OTLP's what is between two bounds.
fn histogram(metric: &proto::Metric, time: (u64, u64)) -> HistogramDataPoint {
    let histogram = metric.get_histogram();
    let count = histogram.get_sample_count();
    let mut below = 0;
    let mut bounds = Vec::new();
    let mut counts = Vec::new();
    for bucket in histogram.get_bucket() {
        if bucket.upper_bound().is_finite() {
            bounds.push(bucket.upper_bound());
            counts.push(bucket.cumulative_count().saturating_sub(below));
            below = bucket.cumulative_count();
        }
    }
    counts.push(count.saturating_sub(below));
    HistogramDataPoint {
        attributes: labels(metric),
        start_time_unix_nano: time.0,
        time_unix_nano: time.1,
        count,
        sum: Some(histogram.get_sample_sum()),
        bucket_counts: counts,
        explicit_bounds: bounds,
        ..HistogramDataPoint::default()
    }
}

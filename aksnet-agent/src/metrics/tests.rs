//! The families together: what is registered, and how it reads.

use std::collections::BTreeSet;

use prometheus::proto::MetricType;

use super::*;

#[test]
fn every_collected_family_is_described_and_the_reverse() {
    let metrics = Metrics::new(MetricsConfig::default());
    let collected = metrics.lock().collect();
    let names: BTreeSet<_> = collected.iter().map(|f| f.name().to_owned()).collect();
    let described: BTreeSet<_> = describe().iter().map(|d| d.name.to_owned()).collect();
    assert_eq!(names, described);
    assert_eq!(described.len(), describe().len(), "a name is used twice");
    for family in collected {
        let description = describe().into_iter().find(|d| d.name == family.name());
        let description = description.expect("described");
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            other => panic!("{other:?}"),
        };
        assert_eq!(kind, description.kind.name());
        assert_eq!(
            description.kind == Kind::Counter,
            description.name.ends_with("_total")
        );
    }
    assert_eq!(
        Exposition::new(Arc::clone(&metrics.families)).descs.len(),
        described.len()
    );
}

#[test]
fn the_text_names_programs_and_the_process() {
    let metrics = Metrics::new(MetricsConfig::default());
    metrics.set_program_up("enter", "tcx", true);
    metrics.set_build("0.1.0", "abc");
    metrics.observe_sweep(Duration::from_millis(2));
    metrics.set_identity_objects("nodes", 3);
    metrics.set_identity_synced("nodes", false);
    let text = metrics.encode().expect("encodes");
    for line in [
        "aksnet_program_up{program=\"enter\",hook=\"tcx\"} 1",
        "aksnet_build_info{version=\"0.1.0\",revision=\"abc\"} 1",
        "aksnet_agent_identity_objects{kind=\"nodes\"} 3",
        "aksnet_agent_identity_synced{source=\"nodes\"} 0",
        "aksnet_agent_sweep_seconds_bucket{le=\"0.0025\"} 1",
        "aksnet_agent_sweep_seconds_bucket{le=\"+Inf\"} 1",
        "aksnet_agent_skipped_packets_total{reason=\"not_ip\"} 0",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        assert!(text.contains(line), "no {line} in:\n{text}");
    }
}

#[test]
fn the_documentation_has_every_family_as_it_is() {
    let docs = include_str!("../../../docs/metrics.md");
    assert!(
        docs.contains(&markdown()),
        "docs/metrics.md lacks this table:\n{}",
        markdown()
    );
}

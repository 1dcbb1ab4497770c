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

/// Words of a text that look like one of the agent's metrics. Those of recording rules have colons, and are held against
/// the rules by the dashboards' test.
fn metric_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .map(|word| word.trim_end_matches(':'))
        // Neither a path in the code.
        .filter(|word| word.starts_with("aksnet_") && !word.contains("::"))
}

#[test]
fn every_metric_that_a_page_names_is_exported() {
    // Crates and programs have such names, too.
    const OTHERS: [&str; 4] = [
        "aksnet_agent",
        "aksnet_common",
        "aksnet_ebpf",
        "aksnet_drop",
    ];
    const PROGRAMS: [&str; 3] = ["aksnet_enter_", "aksnet_exit_", "aksnet_bench_"];
    let known: Vec<&str> = describe().iter().map(|d| d.name).collect();
    let exported = |word: &str| {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| word.strip_suffix(suffix))
            .unwrap_or(word);
        known.contains(&word) || known.contains(&family)
    };
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md"), root.join("deploy/README.md")];
    for folder in ["docs", "docs/runbooks"] {
        let found = std::fs::read_dir(root.join(folder)).unwrap();
        pages.extend(found.map(|entry| entry.unwrap().path()));
    }
    pages.retain(|page| page.extension().is_some_and(|e| e == "md"));
    assert!(pages.len() > 24, "{pages:?}");
    let mut named = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for word in metric_words(&text) {
            let other = OTHERS.contains(&word)
                || PROGRAMS.iter().any(|program| word.starts_with(program))
                // A pattern: `aksnet_flow_*`.
                || word.ends_with('_');
            if other {
                continue;
            }
            named += 1;
            assert!(
                exported(word),
                "{} names {word}, which is not exported",
                page.display()
            );
        }
    }
    assert!(named > 50, "{named}");
}

//! Recording rules and alerts: what they ask for is there, what they say leads somewhere, and each alert is tested.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use aksnet_agent::collect::cause::Cause;
use serde_json::Value;
use xtask::{
    cargo::workspace,
    dashboards::{self, DOCS},
};

use crate::labels::{Contract, Labels};

fn read(path: &str) -> String {
    let path = workspace().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// All rules, in the order of the file.
pub fn rules() -> Vec<Value> {
    let file = yaml(dashboards::rules::PLAIN);
    let groups = list(&file["groups"]).iter();
    groups
        .flat_map(|group| list(&group["rules"]).to_vec())
        .collect()
}

fn alerts() -> Vec<Value> {
    let alerts: Vec<Value> = rules()
        .into_iter()
        .filter(|rule| rule["alert"].is_string())
        .collect();
    assert!(alerts.len() > 20, "{}", alerts.len());
    alerts
}

/// Adds what is recorded.
pub fn record(contract: &mut Contract) {
    for rule in rules() {
        if let Some(name) = rule["record"].as_str() {
            let labels = contract
                .labels(text(&rule, "expr"))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            contract.record(name, labels);
        }
    }
}

/// The files of promtool's unit tests.
fn unit_tests() -> Vec<PathBuf> {
    let directory = workspace().join("deploy/prometheus/tests");
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn promtool(arguments: &[&str], files: &[PathBuf]) {
    let output = Command::new("promtool")
        .args(arguments)
        .args(files)
        .current_dir(workspace())
        .output()
        .unwrap_or_else(|error| panic!("promtool: {error}; `cargo xtask setup` installs it"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {arguments:?}:\n{said}");
}

#[test]
fn prometheus_takes_the_rules_and_their_unit_tests_pass() {
    promtool(
        &["check", "rules", "--lint-fatal"],
        &[workspace().join(dashboards::rules::PLAIN)],
    );
    promtool(&["test", "rules"], &unit_tests());
}

#[test]
fn the_operators_object_has_the_same_rules() {
    let (plain, object) = (
        yaml(dashboards::rules::PLAIN),
        yaml(dashboards::rules::OBJECT),
    );
    assert_eq!(object["kind"], "PrometheusRule");
    assert_eq!(object["spec"], plain);
}

#[test]
fn rules_ask_for_metrics_and_labels_that_exist_and_alerts_say_only_labels_that_they_have() {
    let mut contract = Contract::new();
    record(&mut contract);
    for alert in alerts() {
        let name = text(&alert, "alert");
        let labels = contract
            .labels(text(&alert, "expr"))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for annotation in ["summary", "description", "runbook_url"] {
            for label in named(text(&alert["annotations"], annotation)) {
                assert!(
                    labels.contains(&label),
                    "{name}: the {annotation} says {label}"
                );
            }
        }
    }
}

/// Labels that a template names.
fn named(template: &str) -> Labels {
    let rest = template.split("$labels.").skip(1);
    rest.map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        rest[..end.unwrap_or(rest.len())].to_owned()
    })
    .collect()
}

#[test]
fn every_alert_tells_what_is_felt_how_much_and_where_to_go_on() {
    // They are about what has just happened, or count over an hour.
    const AT_ONCE: [&str; 2] = ["AksnetPolicyDenialsAppeared", "AksnetAgentRestarts"];
    for alert in alerts() {
        let name = text(&alert, "alert");
        let severity = text(&alert["labels"], "severity");
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity}"
        );
        assert_eq!(alert["for"].is_string(), !AT_ONCE.contains(&name), "{name}");
        let annotations = &alert["annotations"];
        let (summary, description) = (
            text(annotations, "summary"),
            text(annotations, "description"),
        );
        assert!(
            !summary.contains("aksnet_") && summary.len() > 40,
            "{name}: {summary}"
        );
        assert!(
            description.contains("$value"),
            "{name}: no value in {description}"
        );
        for page in pages(&alert) {
            let text = read(&format!("docs/runbooks/{page}.md"));
            assert!(text.contains("**What is felt:**"), "{name}: {page}");
        }
    }
}

/// The runbooks that an alert leads to: one, or one for each cause.
fn pages(alert: &Value) -> Vec<String> {
    const BY_CAUSE: &str = r#"{{ reReplaceAll "_" "-" $labels.cause }}"#;
    let url = text(&alert["annotations"], "runbook_url");
    let page = url
        .strip_prefix(&format!("{DOCS}/runbooks/"))
        .and_then(|rest| rest.strip_suffix(".md"))
        .unwrap_or_else(|| panic!("{}: {url}", text(alert, "alert")));
    if page == BY_CAUSE {
        let causes = Cause::ALL.into_iter();
        return causes.map(|cause| cause.name().replace('_', "-")).collect();
    }
    assert!(!page.contains("{{"), "{page}");
    vec![page.to_owned()]
}

#[test]
fn every_alert_is_tested_to_fire_and_not_to() {
    let mut fires: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for file in unit_tests() {
        let file: Value = serde_saphyr::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        for test in list(&file["tests"]) {
            for case in list(&test["alert_rule_test"]) {
                let name = text(case, "alertname").to_owned();
                let firing = !list(&case["exp_alerts"]).is_empty();
                fires.entry(name).or_default().insert(firing);
            }
        }
    }
    let alerts: BTreeSet<String> = alerts()
        .iter()
        .map(|a| text(a, "alert").to_owned())
        .collect();
    for name in &alerts {
        assert_eq!(
            fires.get(name),
            Some(&BTreeSet::from([false, true])),
            "{name}"
        );
    }
    assert_eq!(
        fires.into_keys().collect::<BTreeSet<_>>(),
        alerts,
        "tests of alerts that are none"
    );
}

/// Rows of a Markdown table whose first column is in backquotes.
fn rows(page: &str) -> Vec<Vec<String>> {
    let lines = page.lines().filter(|line| line.starts_with("| `Aksnet"));
    lines
        .map(|line| {
            line.trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn the_page_on_alerts_has_them_all_as_they_are() {
    let page = read("docs/alerts.md");
    let rows = rows(&page);
    let alerts = alerts();
    let listed: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let all: Vec<&str> = alerts.iter().map(|alert| text(alert, "alert")).collect();
    assert_eq!(listed, all);
    for (row, alert) in rows.iter().zip(&alerts) {
        let name = text(alert, "alert");
        assert_eq!(row.len(), 5, "{name}: {row:?}");
        assert_eq!(row[1], text(&alert["labels"], "severity"), "{name}");
        let wait = alert["for"].as_str().unwrap_or("at once");
        assert!(row[2].contains(wait), "{name}: {} is not {wait}", row[2]);
        // The numbers of the condition are those of the expression.
        for number in numbers(text(alert, "expr")) {
            assert!(
                row[2].contains(&number),
                "{name}: {} lacks {number}",
                row[2]
            );
        }
        let pages = pages(alert);
        let expected = if pages.len() == 1 {
            format!("](runbooks/{}.md)", pages[0])
        } else {
            "](runbooks/README.md)".to_owned()
        };
        assert!(row[4].contains(&expected), "{name}: {}", row[4]);
    }
    for rule in rules() {
        if let Some(name) = rule["record"].as_str() {
            assert!(
                page.contains(&format!("| `{name}` |")),
                "docs/alerts.md lacks {name}"
            );
        }
    }
}

/// What a value is compared with: ratios as per cent, as people say them.
fn numbers(expr: &str) -> Vec<String> {
    let words: Vec<&str> = expr.split_whitespace().collect();
    let compared = words
        .windows(2)
        .filter(|pair| [">", ">=", "<"].contains(&pair[0]));
    let values = compared.filter_map(|pair| pair[1].trim_matches([')', '(']).parse::<f64>().ok());
    values
        .filter(|value| *value != 0.0)
        .map(|value| {
            let is_ratio = (expr.contains("ratio") || expr.contains("_ips")) && value <= 1.0;
            if is_ratio {
                format!("{:.0} %", value * 100.0)
            } else {
                value.to_string()
            }
        })
        .collect()
}

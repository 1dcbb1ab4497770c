//! Dashboards: files that Grafana takes, and whose queries, legends, links and variables lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use aksnet_agent::metrics::describe;
use serde_json::Value;
use xtask::{
    cargo::workspace,
    dashboards::{self, DOCS},
};

use crate::{labels::Contract, rules};

/// Families that no panel asks for, and why.
const NOT_SHOWN: &[(&str, &str)] = &[
    (
        "aksnet_agent_otlp_records_total",
        "only there where flow records are sent to a collector, which has accounts of its own",
    ),
    ("aksnet_agent_otlp_failed_requests_total", "the same"),
];

fn dashboards() -> Vec<Value> {
    let directory = workspace().join("deploy/grafana");
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "json")
    });
    files.sort();
    assert_eq!(files.len(), dashboards::all().len());
    let read = |file| serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    files.into_iter().map(read).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} of {value}"))
}

#[test]
fn files_are_as_their_source_says() {
    for (path, content) in dashboards::files().unwrap() {
        let there = fs::read_to_string(workspace().join(&path)).unwrap_or_default();
        assert!(
            there == content,
            "{}: run `cargo xtask dashboards`",
            path.display()
        );
    }
}

#[test]
fn panels_have_places_of_their_own_and_all_that_grafana_needs() {
    let mut uids = BTreeSet::new();
    for dashboard in dashboards() {
        let uid = text(&dashboard, "uid").to_owned();
        assert!(uid.len() <= 40 && uids.insert(uid.clone()), "{uid}");
        assert!(number(&dashboard, "schemaVersion") >= 39, "{uid}");
        assert!(dashboard["id"].is_null(), "{uid}: an id is the instance's");
        let mut ids = BTreeSet::new();
        let mut taken = BTreeMap::new();
        for panel in list(&dashboard["panels"]) {
            let (id, title) = (number(panel, "id"), text(panel, "title"));
            assert!(id > 0 && ids.insert(id), "{uid}: {id} twice");
            let place = &panel["gridPos"];
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| number(place, key));
            assert!(w > 0 && h > 0 && x + w <= 24, "{uid}: {title}");
            for cell in (y..y + h).flat_map(|row| (x..x + w).map(move |column| (column, row))) {
                let before = taken.insert(cell, title);
                assert_eq!(before, None, "{uid}: {title} covers it at {cell:?}");
            }
            if text(panel, "type") == "row" {
                continue;
            }
            assert!(title.ends_with('?'), "{uid}: {title} is no question");
            assert!(
                text(panel, "description").len() > 40,
                "{uid}: {title}: how is it read?"
            );
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(defaults["unit"].is_string(), "{uid}: {title}: no unit");
            assert!(
                !list(&defaults["thresholds"]["steps"]).is_empty(),
                "{uid}: {title}"
            );
            assert_eq!(
                panel["datasource"]["uid"], "${datasource}",
                "{uid}: {title}"
            );
            let targets = list(&panel["targets"]);
            let letters: BTreeSet<_> = targets.iter().map(|t| text(t, "refId")).collect();
            assert!(
                !targets.is_empty() && letters.len() == targets.len(),
                "{uid}: {title}"
            );
        }
    }
}

/// As Grafana does, with everything chosen.
fn replaced(expr: &str) -> String {
    ["$cluster", "$node", "$namespace"]
        .iter()
        .fold(expr.to_owned(), |expr, variable| {
            expr.replace(variable, ".*")
        })
        .replace("$__rate_interval", "1m")
        .replace("$__range", "1h")
}

#[test]
fn queries_ask_for_metrics_and_labels_that_exist_and_every_family_is_shown() {
    let mut contract = Contract::new();
    rules::record(&mut contract);
    contract.asked.clear();
    for dashboard in dashboards() {
        for panel in list(&dashboard["panels"]) {
            for target in list(&panel["targets"]) {
                let (title, expr) = (text(panel, "title"), text(target, "expr"));
                let labels = contract
                    .labels(&replaced(expr))
                    .unwrap_or_else(|e| panic!("{title}: {e}"));
                let legend = text(target, "legendFormat").split("{{").skip(1);
                for label in legend
                    .filter_map(|rest| rest.split_once("}}"))
                    .map(|(label, _)| label)
                {
                    assert!(labels.contains(label), "{title}: the legend names {label}");
                }
                assert!(
                    expr.contains("$cluster") && expr.contains("$node"),
                    "{title}: all nodes, always"
                );
                // How often agents are scraped, only the data source knows.
                for rate in expr.split("rate(").skip(1) {
                    let window = rate.split('[').nth(1).unwrap_or_default();
                    assert!(
                        window.starts_with("$__rate_interval]"),
                        "{title}: rate over [{window}"
                    );
                }
            }
        }
    }
    // What is recorded stands for what it is recorded from.
    let mut asked = contract.asked.clone();
    for rule in rules::rules() {
        if rule["record"]
            .as_str()
            .is_some_and(|name| contract.asked.contains(name))
        {
            let mut of_rule = Contract::new();
            rules::record(&mut of_rule);
            of_rule.asked.clear();
            of_rule.labels(text(&rule, "expr")).unwrap();
            asked.extend(of_rule.asked);
        }
    }
    for family in describe() {
        let reason = NOT_SHOWN.iter().find(|(name, _)| *name == family.name);
        let shown = asked.contains(family.name);
        assert!(
            shown != reason.is_some(),
            "{}: shown {shown}, reason {reason:?}",
            family.name
        );
    }
}

#[test]
fn variables_choose_the_data_source_the_clusters_and_the_nodes() {
    let mut contract = Contract::new();
    for dashboard in dashboards() {
        let variables = list(&dashboard["templating"]["list"]);
        let names: Vec<&str> = variables.iter().map(|v| text(v, "name")).collect();
        let (first, others) = variables.split_first().unwrap();
        assert_eq!(
            (text(first, "type"), text(first, "query")),
            ("datasource", "prometheus")
        );
        assert_eq!(
            names[..3],
            ["datasource", "cluster", "node"],
            "{}",
            text(&dashboard, "uid")
        );
        for variable in others {
            assert_eq!(variable["multi"], true);
            assert_eq!(variable["includeAll"], true);
            // What lacks the label is not hidden by All.
            assert_eq!(variable["allValue"], ".*");
            let query = text(variable, "definition")
                .strip_prefix("label_values(")
                .unwrap();
            let (series, label) = query.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            let labels = contract.labels(&replaced(series)).unwrap();
            assert!(labels.contains(label), "{label} of {series}");
        }
        let used = dashboard["panels"].to_string();
        for name in names {
            assert!(
                used.contains(&format!("${name}")) || used.contains(&format!("${{{name}}}")),
                "{name}"
            );
        }
    }
}

#[test]
fn links_lead_to_runbooks_and_to_each_other() {
    let dashboards = dashboards();
    let uids: BTreeSet<&str> = dashboards.iter().map(|d| text(d, "uid")).collect();
    let mut runbooks = BTreeSet::new();
    for dashboard in &dashboards {
        let among = list(&dashboard["links"])
            .iter()
            .any(|link| link["type"] == "dashboards");
        assert!(among, "{}", text(dashboard, "uid"));
        for panel in list(&dashboard["panels"]) {
            for link in list(&panel["links"]) {
                let url = text(link, "url");
                if let Some(page) = url.strip_prefix(&format!("{DOCS}/")) {
                    assert!(workspace().join("docs").join(page).exists(), "{url}");
                    runbooks.insert(page.to_owned());
                } else {
                    let uid = url
                        .strip_prefix("/d/")
                        .and_then(|rest| rest.split('?').next());
                    assert!(uid.is_some_and(|uid| uids.contains(uid)), "{url}");
                    assert!(url.contains("${__url_time_range}"), "{url}: keep the time");
                }
            }
        }
    }
    assert!(runbooks.len() > 8, "{runbooks:?}");
}

#[test]
fn the_kustomization_has_every_dashboard() {
    let root = workspace();
    let path = root.join("deploy/grafana/kustomization.yaml");
    let text = fs::read_to_string(path).unwrap();
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    let listed: BTreeSet<String> = list(&file["configMapGenerator"])
        .iter()
        .flat_map(|map| list(&map["files"]))
        .filter_map(|file| file.as_str().map(str::to_owned))
        .collect();
    let all = dashboards::all()
        .into_iter()
        .map(|d| format!("{}.json", d.uid));
    assert_eq!(listed, all.collect());
    assert_eq!(file["generatorOptions"]["labels"]["grafana_dashboard"], "1");
    // What `kubectl apply` keeps in an annotation has 256 KiB of room.
    for name in listed {
        let size = fs::metadata(root.join("deploy/grafana").join(&name))
            .unwrap()
            .len();
        assert!(size < 200_000, "{name}: {size}");
    }
}

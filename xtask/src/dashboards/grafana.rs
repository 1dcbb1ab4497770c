//! A dashboard as Grafana's *JSON* (schema 39, of Grafana 10.4 and later): ready to be provisioned, with the data
//! source as a variable.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::panel::{Dashboard, Kind, Panel, Query, Unit};
use super::{DOCS, all};

const COLUMNS: u32 = 24;

/// The oldest Grafana whose panels have these options.
const PLUGINS: &str = "10.4.0";

/// The file's content.
///
/// # Errors
/// When a panel is wider than a dashboard.
pub(super) fn json(dashboard: &Dashboard) -> Result<String> {
    let value = json!({
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["aksnet"],
        "schemaVersion": 39,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "1m",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards", "title": "aksnet", "tags": ["aksnet"], "asDropdown": false,
                "includeVars": true, "keepTime": true, "targetBlank": false,
            },
            link("Runbooks", &format!("{DOCS}/runbooks/README.md")),
        ],
        "templating": {"list": variables(dashboard.namespaces)},
        "panels": panels(dashboard)?,
    });
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn link(title: &str, url: &str) -> Value {
    json!({"type": "link", "title": title, "url": url, "targetBlank": true, "icon": "doc"})
}

fn variables(namespaces: bool) -> Vec<Value> {
    let mut list = vec![json!({
        "type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus",
        "refresh": 1, "hide": 0, "regex": "", "current": {},
    })];
    let chosen = r#"cluster=~"$cluster""#;
    let mut add = |name: &str, label: &str, query: String| {
        list.push(json!({
            "type": "query", "name": name, "label": label, "datasource": source(),
            "query": {"query": query, "refId": name, "qryType": 5}, "definition": query,
            // All is any value and none: where a series lacks the label, nothing is hidden.
            "multi": true, "includeAll": true, "allValue": ".*",
            "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
            // On a change of the time range.
            "refresh": 2, "sort": 1, "hide": 0, "regex": "",
        }));
    };
    add(
        "cluster",
        "Cluster",
        "label_values(aksnet_build_info, cluster)".to_owned(),
    );
    add(
        "node",
        "Node",
        format!("label_values(aksnet_build_info{{{chosen}}}, instance)"),
    );
    if namespaces {
        let series = format!(r#"aksnet_flow_packets_total{{{chosen}, instance=~"$node"}}"#);
        add(
            "namespace",
            "Namespace",
            format!("label_values({series}, src_namespace)"),
        );
    }
    list
}

/// The panels with their places: rows one below the other, panels from left to right.
fn panels(dashboard: &Dashboard) -> Result<Vec<Value>> {
    let mut list = Vec::new();
    let mut y = 0;
    for row in &dashboard.rows {
        let id = list.len() + 1;
        list.push(json!({
            "type": "row", "id": id, "title": row.title, "collapsed": false, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }));
        y += 1;
        let (mut x, mut tallest) = (0, 0);
        for panel in &row.panels {
            let (width, height) = panel.size;
            ensure!(width <= COLUMNS, "{}: too wide", panel.title);
            if x + width > COLUMNS {
                (x, y, tallest) = (0, y + tallest, 0);
            }
            let id = list.len() + 1;
            let place = json!({"x": x, "y": y, "w": width, "h": height});
            list.push(panel_json(dashboard, panel, id, &place));
            x += width;
            tallest = tallest.max(height);
        }
        y += tallest;
    }
    Ok(list)
}

fn panel_json(dashboard: &Dashboard, panel: &Panel, id: usize, place: &Value) -> Value {
    let mut value = json!({
        "id": id,
        "type": type_of(panel.kind),
        "title": panel.title,
        "description": panel.description,
        "pluginVersion": PLUGINS,
        "datasource": source(),
        "gridPos": place,
        "targets": panel.queries.iter().zip('A'..).map(|(q, id)| target(panel.kind, q, id)).collect::<Vec<_>>(),
        "fieldConfig": {"defaults": defaults(panel), "overrides": overrides(panel)},
        "options": options(panel.kind),
        "links": links(dashboard, panel),
    });
    if panel.kind == Kind::Table {
        value["transformations"] = transformations(panel);
    }
    value
}

const fn type_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Stat => "stat",
        Kind::Graph | Kind::Stack => "timeseries",
        Kind::State => "state-timeline",
        Kind::Table => "table",
    }
}

fn target(kind: Kind, query: &Query, id: char) -> Value {
    let instant = kind == Kind::Table;
    json!({
        "refId": id.to_string(),
        "datasource": source(),
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": if query.legend.is_empty() { "__auto" } else { query.legend },
        "instant": instant,
        "range": !instant,
        "format": if instant { "table" } else { "time_series" },
    })
}

fn defaults(panel: &Panel) -> Value {
    let mut defaults = json!({
        "unit": panel.unit.grafana(),
        "color": {"mode": match panel.kind {
            Kind::Stat | Kind::State => "thresholds",
            Kind::Graph | Kind::Stack | Kind::Table => "palette-classic",
        }},
        "thresholds": {"mode": "absolute", "steps": steps(panel)},
        "noValue": "none",
    });
    if matches!(panel.kind, Kind::Graph | Kind::Stack) {
        defaults["min"] = json!(0);
        let stacked = panel.kind == Kind::Stack;
        defaults["custom"] = json!({
            "drawStyle": "line",
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "fillOpacity": if stacked { 40 } else { 8 },
            "showPoints": "never",
            "spanNulls": false,
            "stacking": {"mode": if stacked { "normal" } else { "none" }, "group": "A"},
            "thresholdsStyle": {"mode": if panel.thresholds.is_some() { "dashed" } else { "off" }},
        });
        // Overhead is a difference, and may be negative.
        if panel
            .queries
            .iter()
            .any(|q| q.expr.contains("nat_overhead_seconds"))
        {
            defaults.as_object_mut().map(|d| d.remove("min"));
        }
    }
    if let Some(max) = panel
        .max
        .filter(|_| matches!(panel.kind, Kind::Stat | Kind::Stack))
    {
        defaults["max"] = json!(max);
    }
    if panel.kind == Kind::State {
        let state = |text: &str, color: &str| json!({"text": text, "color": color});
        let (no, yes) = if panel.more_is_better {
            (state("down", "red"), state("up", "green"))
        } else {
            (state("no", "green"), state("yes", "orange"))
        };
        defaults["mappings"] = json!([{"type": "value", "options": {"0": no, "1": yes}}]);
        defaults["custom"] = json!({"fillOpacity": 70, "lineWidth": 0});
    }
    defaults
}

fn steps(panel: &Panel) -> Value {
    let [low, middle, high] = if panel.more_is_better {
        ["red", "orange", "green"]
    } else {
        ["green", "orange", "red"]
    };
    match panel.thresholds {
        // Grafana's first step is from minus infinity on, which it writes as null.
        Some((look, bad)) => json!([
            {"color": low, "value": null},
            {"color": middle, "value": look},
            {"color": high, "value": bad},
        ]),
        None => json!([{"color": "text", "value": null}]),
    }
}

fn options(kind: Kind) -> Value {
    match kind {
        Kind::Stat => json!({
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
            "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto",
            "textMode": "auto", "wideLayout": true,
        }),
        Kind::Graph | Kind::Stack => json!({
            "legend": {
                "showLegend": true, "displayMode": "list", "placement": "bottom", "calcs": ["lastNotNull"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }),
        Kind::State => json!({
            "mergeValues": true, "showValue": "auto", "alignValue": "left", "rowHeight": 0.8,
            "legend": {"showLegend": false, "displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "single", "sort": "none"},
        }),
        Kind::Table => json!({
            "showHeader": true, "cellHeight": "sm",
            "footer": {"show": false, "reducer": ["sum"], "countRows": false, "fields": ""},
        }),
    }
}

/// Units of a table's columns, where they have one of their own.
fn overrides(panel: &Panel) -> Value {
    if panel.kind != Kind::Table {
        return json!([]);
    }
    let columns = panel.queries.iter().map(|query| {
        json!({
            "matcher": {"id": "byName", "options": query.legend},
            "properties": [{"id": "unit", "value": query.unit.unwrap_or(panel.unit).grafana()}],
        })
    });
    columns.collect()
}

/// What labels are called at the head of a column.
const HEADS: &[(&str, &str)] = &[
    ("cluster", "Cluster"),
    ("instance", "Node"),
    ("policy", "Policy"),
    ("cause", "Cause"),
    ("reason", "Kernel's reason"),
    ("outcome", "Outcome"),
    ("anomaly", "Anomaly"),
    ("direction", "Direction"),
    ("confidence", "Confidence"),
    ("class", "Class"),
    ("src_namespace", "From namespace"),
    ("src_workload", "From"),
    ("dst_namespace", "To namespace"),
    ("dst_workload", "To"),
    ("port", "Port"),
    ("source", "Account"),
    ("program", "Program"),
    ("hook", "Hook"),
    ("cni", "CNI"),
    ("policy_engine", "Policy engine"),
    ("proxy_mode", "kube-proxy"),
    ("kernel", "Kernel"),
    ("zone", "Zone"),
    ("version", "Version"),
    ("revision", "Revision"),
];

/// One row for each set of labels: the numbers of all queries side by side, labels first, the largest on top.
fn transformations(panel: &Panel) -> Value {
    let mut names = Map::new();
    let mut order = Map::new();
    for (at, (label, head)) in HEADS.iter().enumerate() {
        names.insert((*label).to_owned(), json!(head));
        order.insert((*label).to_owned(), json!(at));
    }
    let several = panel.queries.len() > 1;
    for (query, id) in panel.queries.iter().zip('A'..) {
        let column = if several {
            format!("Value #{id}")
        } else {
            "Value".to_owned()
        };
        order.insert(column.clone(), json!(order.len()));
        names.insert(column, json!(query.legend));
    }
    let mut list = vec![];
    if several {
        list.push(json!({"id": "merge", "options": {}}));
    }
    list.push(json!({"id": "organize", "options": {
        "excludeByName": {"Time": true}, "indexByName": order, "renameByName": names,
    }}));
    if let Some(query) = panel.queries.first() {
        let sort = json!([{"field": query.legend, "desc": true}]);
        list.push(json!({"id": "sortBy", "options": {"fields": {}, "sort": sort}}));
    }
    json!(list)
}

fn links(dashboard: &Dashboard, panel: &Panel) -> Value {
    let mut links = Vec::new();
    for page in &panel.runbooks {
        links.push(json!({
            "title": format!("Runbook: {}", page.replace('-', " ")),
            "url": format!("{DOCS}/runbooks/{page}.md"),
            "targetBlank": true,
        }));
    }
    for uid in &panel.more {
        let Some(other) = all_titles().into_iter().find(|(id, _)| id == uid) else {
            continue;
        };
        let mut url = format!(
            "/d/{uid}?${{__url_time_range}}&${{datasource:queryparam}}&${{cluster:queryparam}}&${{node:queryparam}}"
        );
        if dashboard.namespaces {
            url.push_str("&${namespace:queryparam}");
        }
        links
            .push(json!({"title": format!("More: {}", other.1), "url": url, "targetBlank": false}));
    }
    json!(links)
}

/// Uid and title of each dashboard.
fn all_titles() -> Vec<(&'static str, &'static str)> {
    all().iter().map(|d| (d.uid, d.title)).collect()
}

impl Unit {
    /// A number in this unit, for people.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        let scaled = |suffix: &str| {
            let (mut value, mut at) = (value, 0);
            while value.abs() >= 1000.0 && at < 4 {
                value /= 1000.0;
                at += 1;
            }
            format!("{} {}{suffix}", short(value), ["", "k", "M", "G", "T"][at])
        };
        match self {
            Self::Count => scaled("").trim_end().to_owned(),
            Self::Bytes => scaled("B"),
            Self::BytesPerSecond => scaled("B/s"),
            Self::PacketsPerSecond => scaled("p/s"),
            Self::ConnectionsPerSecond => scaled("conn/s"),
            Self::PerSecond => scaled("/s"),
            Self::Ratio => format!("{} %", short(value * 100.0)),
            Self::Cores => format!("{} cores", short(value)),
            Self::Seconds if value == 0.0 => "0 s".to_owned(),
            Self::Seconds if value.abs() < 1e-3 => format!("{} µs", short(value * 1e6)),
            Self::Seconds if value.abs() < 1.0 => format!("{} ms", short(value * 1e3)),
            Self::Seconds => format!("{} s", short(value)),
        }
    }
}

/// Three digits or so.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        text.as_str()
    };
    if text == "-0" { "0" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_their_unit() {
        for (unit, value, text) in [
            (Unit::Count, 0.0, "0"),
            (Unit::Count, 1234.0, "1.23 k"),
            (Unit::BytesPerSecond, 2_500_000.0, "2.5 MB/s"),
            (Unit::Ratio, 0.853, "85.3 %"),
            (Unit::Seconds, 0.000_004_6, "4.6 µs"),
            (Unit::Seconds, 0.25, "250 ms"),
            (Unit::Seconds, -1e-18, "0 µs"),
        ] {
            assert_eq!(unit.show(value), text);
        }
    }
}

//! Do dashboards, alerts and recording rules have answers: a real Prometheus scrapes the real agent on a node with
//! every kind of trouble, and every query is put to it as Grafana would. With the variable [`dashboards::PICTURES`] it
//! goes on for longer and draws the pictures of the documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{
    dashboards::{self, Expect, Kind, Panel, Query},
    testbed::{Family, Stage},
};

use crate::life::{Agent, Home, eventually, turn};

mod draw;

mod secure;

mod server;

mod trouble;

use server::{Prometheus, Series, now};

/// Rounds of trouble until everything must have an answer.
const ROUNDS: usize = 8;

/// How long the pictures show.
const PICTURED: Duration = Duration::from_mins(4);

/// What Grafana puts in place of its variables.
struct Variables {
    cluster: &'static str,
    node: &'static str,
    namespace: &'static str,
    /// Seconds.
    range: f64,
    interval: u32,
}

impl Variables {
    /// All of everything, over so many seconds.
    const fn all(range: f64) -> Self {
        Self {
            cluster: ".*",
            node: ".*",
            namespace: ".*",
            range,
            interval: 15,
        }
    }

    fn replace(&self, expr: &str) -> Result<String> {
        let range = format!("{:.0}s", self.range);
        let interval = format!("{}s", self.interval);
        let replaced = [
            ("$__rate_interval", interval.as_str()),
            ("$__range", &range),
            ("$cluster", self.cluster),
            ("$node", self.node),
            ("$namespace", self.namespace),
        ]
        .into_iter()
        .fold(expr.to_owned(), |expr, (name, value)| {
            expr.replace(name, value)
        });
        ensure!(
            !replaced.contains('$'),
            "a variable that Grafana would not know: {replaced}"
        );
        Ok(replaced)
    }
}

/// Asks as the panel does: a table as of now, all else over time.
fn ask(
    prometheus: &Prometheus<'_>,
    panel: &Panel,
    query: &Query,
    variables: &Variables,
) -> Result<Vec<Series>> {
    let expr = variables.replace(&query.expr)?;
    let to = now();
    let answer = if panel.kind == Kind::Table {
        prometheus.query(&expr)
    } else {
        prometheus.query_range(&expr, to - variables.range, to)
    };
    answer.with_context(|| format!("{}: {expr}", panel.title))
}

/// What is not as expected of an answer.
fn fault(query: &Query, answer: &[Series]) -> Option<String> {
    let values: Vec<f64> = answer
        .iter()
        .flat_map(|series| series.values.iter().map(|(_, value)| *value))
        .filter(|value| value.is_finite())
        .collect();
    let fault = match query.expect {
        _ if values.is_empty() => "no answer".to_owned(),
        Expect::Values if values.iter().all(|value| *value == 0.0) => "only zeros".to_owned(),
        Expect::Zeros if values.iter().any(|value| *value != 0.0) => format!("not 0: {answer:?}"),
        _ => {
            // What the legend names, some series has.
            let names = query.legend.split("{{").skip(1);
            let names = names.filter_map(|rest| rest.split("}}").next());
            let lacking: Vec<&str> = names
                .filter(|name| {
                    !answer
                        .iter()
                        .any(|series| series.labels.contains_key(*name))
                })
                .collect();
            if lacking.is_empty() {
                return None;
            }
            format!("a legend of labels that no series has: {lacking:?}")
        }
    };
    Some(format!("{fault}: {}", query.expr))
}

/// What is not as expected of all panels.
fn faults(prometheus: &Prometheus<'_>, variables: &Variables) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for dashboard in dashboards::all() {
        for panel in dashboard.panels() {
            for query in &panel.queries {
                let answer = ask(prometheus, panel, query, variables)?;
                if let Some(fault) = fault(query, &answer) {
                    faults.push(format!("{} / {}: {fault}", dashboard.uid, panel.title));
                }
            }
        }
    }
    Ok(faults)
}

/// Alerts that this node must have, firing or about to. `AksnetPolicyDenialsAppeared` has nothing to say in the first
/// two hours of a cluster; what it goes by is looked at by itself.
const TOLD: &[&str] = &[
    "AksnetEgressUnanswered",
    "AksnetLoadBalancerProbesFail",
    "AksnetNatOverheadFlagged",
    "AksnetPacketsDropped",
    "AksnetPodSilent",
    "AksnetPolicyGap",
];

/// Those that it may have: they depend on how long the table was full, how fast ports clash, and how often probes come.
const POSSIBLE: &[&str] = &[
    "AksnetConntrackFillsUp",
    "AksnetConntrackFull",
    "AksnetConntrackNotKnown",
    "AksnetLoadBalancerProbesFailEverywhere",
    "AksnetSnatClash",
];

/// Names of alerts that are firing or pending.
fn told(rules: &[Value]) -> BTreeSet<&str> {
    let active = |rule: &&Value| {
        ["firing", "pending"]
            .iter()
            .any(|state| rule["state"] == *state)
    };
    rules
        .iter()
        .filter(active)
        .filter_map(|rule| rule["name"].as_str())
        .collect()
}

/// What is not as expected of the rules.
fn rule_faults(prometheus: &Prometheus<'_>) -> Result<Vec<String>> {
    let rules = prometheus.rules()?;
    let mut faults = Vec::new();
    for rule in &rules {
        let name = rule["name"].as_str().context("a name")?;
        if rule["health"] != "ok" {
            faults.push(format!("{name}: {} {}", rule["health"], rule["lastError"]));
        }
        let answer = prometheus
            .query(rule["query"].as_str().context("a query")?)
            .with_context(|| name.to_owned())?;
        if rule["type"] == "recording" && answer.is_empty() {
            faults.push(format!("{name}: nothing is recorded"));
        }
    }
    let told = told(&rules);
    let lacking = TOLD.iter().filter(|name| !told.contains(*name));
    faults.extend(lacking.map(|name| format!("{name} is not told")));
    let wrong = told
        .iter()
        .filter(|name| !TOLD.contains(name) && !POSSIBLE.contains(name));
    faults.extend(wrong.map(|name| format!("{name} is told, and nothing is amiss")));
    Ok(faults)
}

#[test]
fn every_query_of_every_panel_rule_and_alert_has_the_answer_that_the_node_gives() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let pictures = env::var_os(dashboards::PICTURES);
    let bed = trouble::bed()?;
    let _api = trouble::cluster(&bed)?;
    let stage = Stage::set(&bed, Family::V4)?;
    let home = Home::new()?;
    let agent = trouble::agent(&bed, &home)?;
    let prometheus = Prometheus::start(&bed, &home)?;
    let (began, started) = (now(), Instant::now());
    let scenes = stage.scenes();
    eventually(
        "Prometheus has scraped the agent and recorded something",
        || {
            scenes[0].play(1, 100)?;
            Ok(prometheus.is_ready())
        },
    )?;
    drop(scenes);
    let variables = || Variables::all(now() - began);
    let mut wrong = Vec::new();
    for round in 0..ROUNDS {
        trouble::round(&stage, round == 0)?;
        wrong = faults(&prometheus, &variables())?;
        wrong.extend(rule_faults(&prometheus)?);
        if wrong.is_empty() {
            break;
        }
        println!("after round {round}: {wrong:#?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    every_denial_is_recorded_by_policy_and_pair(&prometheus, &agent)?;
    choices_narrow_the_answer(&prometheus, now() - began)?;

    if let Some(directory) = pictures {
        while started.elapsed() < PICTURED {
            trouble::round(&stage, false)?;
        }
        let ask = |panel: &Panel| -> Result<Vec<Vec<Series>>> {
            let variables = variables();
            let answers = panel.queries.iter();
            answers
                .map(|query| ask(&prometheus, panel, query, &variables))
                .collect()
        };
        for dashboard in dashboards::all() {
            draw::dashboard(&dashboard, Path::new(&directory), ask)?;
        }
    }
    drop(prometheus);
    drop(stage);
    drop(agent);
    Ok(())
}

/// What the alert on denials goes by is, to the connection, what the agent has counted: first ones included.
fn every_denial_is_recorded_by_policy_and_pair(
    prometheus: &Prometheus<'_>,
    agent: &Agent<'_>,
) -> Result<()> {
    let pair = [
        ("policy", "shop/batch-policy"),
        ("direction", "egress"),
        ("src_namespace", "shop"),
        ("src_workload", "batch"),
        ("dst_workload", "internet"),
    ];
    eventually("all denials are recorded", || {
        let counted = agent
            .scrape()?
            .sum("aksnet_policy_denied_connections_total", &pair);
        let recorded = prometheus.query("pair:aksnet_policy_denied_connections:increase15m")?;
        let mut of_pair = recorded.iter().filter(|series| {
            let has =
                |(name, value): &(&str, &str)| series.labels.get(*name).is_some_and(|v| v == value);
            pair.iter().all(has)
        });
        let recorded = of_pair.next().and_then(|series| series.values.first());
        Ok(counted >= 1.0 && recorded.is_some_and(|(_, value)| (value - counted).abs() < 1e-9))
    })
}

/// With a choice of one or several, queries work as well; of a cluster or namespace that is not there, nothing is
/// shown.
fn choices_narrow_the_answer(prometheus: &Prometheus<'_>, range: f64) -> Result<()> {
    let chosen = Variables {
        cluster: "test",
        node: "(aks-nodepool1-vmss000000|another)",
        namespace: "(shop|default)",
        ..Variables::all(range)
    };
    let elsewhere = Variables {
        cluster: "elsewhere",
        ..Variables::all(range)
    };
    let nobody = Variables {
        namespace: "nobody",
        ..Variables::all(range)
    };
    let sum = |series: &[Series]| -> f64 {
        let values = series
            .iter()
            .flat_map(|s| &s.values)
            .map(|(_, value)| *value);
        values.filter(|value| value.is_finite()).map(f64::abs).sum()
    };
    for dashboard in dashboards::all() {
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for panel in dashboard.panels() {
            for query in &panel.queries {
                let some = sum(&ask(prometheus, panel, query, &chosen)?);
                *sums.entry(dashboard.uid).or_default() += some;
                let none = sum(&ask(prometheus, panel, query, &elsewhere)?);
                assert!(none == 0.0, "{}: of another cluster: {none}", panel.title);
                if query.expr.contains("$namespace") {
                    let none = sum(&ask(prometheus, panel, query, &nobody)?);
                    assert!(none == 0.0, "{}: of another namespace: {none}", panel.title);
                }
            }
        }
        assert!(
            sums[dashboard.uid] > 0.0,
            "{}: nothing of what is there",
            dashboard.uid
        );
    }
    Ok(())
}

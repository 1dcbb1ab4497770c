//! The *class table*: each kind of traffic that such a node sees is played by itself, and the row says what the agent
//! has counted it as.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::agent::Agent;
use super::rows::nanoseconds;
use super::scrape::{PATH, Scrape};
use super::screen;
use crate::say;
use crate::testbed::{Family, Scene, Stage, Testbed};

/// Connections of each kind.
const CONNECTIONS: u32 = 10;

/// Bytes each way in each.
const BYTES: usize = 3_000;

/// How long the agent may take to have counted them.
const PATIENCE: Duration = Duration::from_secs(3);

/// Flags for what Kubernetes would tell, by the names that an agent may have for them.
const BALANCER: [&str; 2] = ["--load-balancer-address", "--load-balancer"];
const API_SERVER: [&str; 1] = ["--api-server"];

/// From this width on a row is one line.
const ONE_LINE: usize = 118;

/// One row: what was played, and what was counted.
struct Row {
    name: &'static str,
    who: String,
    labels: [String; 3],
    connections: f64,
    packets: f64,
    first: Option<f64>,
    later: Option<f64>,
}

/// Plays every scene and prints its row.
pub(super) fn table(bed: &Testbed, agent: &Agent<'_>) -> Result<()> {
    let stage = Stage::set(bed, Family::V4)?;
    let wide = screen::width() >= ONE_LINE;
    for line in header(wide) {
        println!("{}", say::bold(&line));
    }
    for scene in stage.scenes() {
        say::check()?;
        for line in lines(&row(agent, &scene)?, wide) {
            println!("{line}");
        }
    }
    for (what, why) in stage.absent() {
        println!("{}", say::dim(&format!("not here: {what} ({why})")));
    }
    stage.strike()
}

/// What an agent has flags for, of what Kubernetes would tell it.
pub(super) fn flags(bed: &Testbed, binary: &Path) -> Result<Vec<String>> {
    let output = Command::new(binary).args(["run", "--help"]).output()?;
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let known = |names: &[&'static str]| {
        let words = || help.split(|c: char| c.is_whitespace() || c == '=');
        names
            .iter()
            .copied()
            .find(|name| words().any(|word| word == *name))
    };
    let plan = bed.plan();
    let mut flags = vec![format!(
        "--private-endpoint-cidr={}",
        plan.subnet_of(plan.private_endpoint).v4
    )];
    if let Some(flag) = known(&BALANCER) {
        flags.push(format!(
            "{flag}={},{}",
            plan.load_balancer.v4, plan.internal_balancer.v4
        ));
    }
    if let Some(flag) = known(&API_SERVER) {
        flags.push(format!("{flag}={}:443", plan.api_server.v4));
    }
    Ok(flags)
}

/// Plays one scene.
fn row(agent: &Agent<'_>, scene: &Scene<'_>) -> Result<Row> {
    let before = agent.scrape()?;
    scene.play(CONNECTIONS, BYTES)?;
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    let after = loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = agent.scrape()?;
        let counted = counted(&before, &now);
        let connections: f64 = counted.values().map(|(connections, _)| connections).sum();
        // Judged, and no packet comes any more.
        let done = connections >= f64::from(CONNECTIONS) && last.as_ref() == Some(&counted);
        if done || Instant::now() > deadline {
            break now;
        }
        last = Some(counted);
    };
    let counted = counted(&before, &after);
    let most = counted.into_iter().max_by(|a, b| a.1.0.total_cmp(&b.1.0));
    let (labels, (connections, packets)) =
        most.with_context(|| format!("{}: the agent counted nothing", scene.name))?;
    let median = |stage| {
        let labels = [
            ("class", labels[0].as_str()),
            ("nat", &labels[1]),
            ("stage", stage),
        ];
        let times = after.histogram(PATH, &labels);
        times.since(&before.histogram(PATH, &labels)).quantile(0.5)
    };
    Ok(Row {
        name: scene.name,
        who: format!("{} → {}", scene.from, scene.to),
        connections,
        packets,
        first: median("first"),
        later: median("established"),
        labels,
    })
}

/// Connections and packets by class, NAT and scope that were counted in between.
fn counted(before: &Scrape, after: &Scrape) -> BTreeMap<[String; 3], (f64, f64)> {
    let by = |scrape: &Scrape, name| scrape.sums_by(name, ["class", "nat", "scope"]);
    let mut counted: BTreeMap<[String; 3], (f64, f64)> = BTreeMap::new();
    for (name, is_packets) in [
        ("aksnet_flow_connections_total", false),
        ("aksnet_flow_packets_total", true),
    ] {
        let earlier = by(before, name);
        for (labels, sum) in by(after, name) {
            let more = sum - earlier.get(&labels).copied().unwrap_or(0.0);
            let entry = counted.entry(labels).or_default();
            if is_packets {
                entry.1 += more;
            } else {
                entry.0 += more;
            }
        }
    }
    counted.retain(|_, (connections, packets)| *connections + *packets > 0.5);
    counted
}

fn header(wide: bool) -> Vec<String> {
    let texts = ["CLASS", "NAT", "SCOPE", "CONN", "PKTS", "FIRST", "LATER"].map(str::to_owned);
    layout(["WHAT", "WHO → WHOM"], &texts, wide)
}

fn lines(row: &Row, wide: bool) -> Vec<String> {
    let time =
        |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), |s| nanoseconds(s * 1e9));
    let [class, nat, scope] = row.labels.clone();
    let counts = [row.connections, row.packets].map(|n| format!("{n:.0}"));
    let [connections, packets] = counts;
    let cells = [
        class,
        nat,
        scope,
        connections,
        packets,
        time(row.first),
        time(row.later),
    ];
    layout([row.name, &row.who], &cells, wide)
}

/// One line on a wide terminal; on a narrow one what it is stands above what it counts as.
fn layout([name, who]: [&str; 2], cells: &[String; 7], wide: bool) -> Vec<String> {
    let [class, nat, scope, connections, packets, first, later] = cells;
    let label = format!("{class:<16} {nat:<4} {scope:<10}");
    let numbers = format!("{connections:>4} {packets:>4} {first:>5} {later:>5}");
    if wide {
        vec![format!("{label} {who:<32} {name:<31} {numbers}")]
    } else {
        vec![
            format!("{name:<32} {who}"),
            format!("    {label} {numbers:>38}"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Row {
        Row {
            name: "load balancer, Local, none here",
            who: "168.63.129.16 → 10.224.0.4:32700".to_owned(),
            labels: ["private_endpoint", "both", "cross_node"].map(str::to_owned),
            connections: 10.0,
            packets: 1_234.0,
            first: Some(12.3e-6),
            later: None,
        }
    }

    #[test]
    fn rows_fit_the_terminal() {
        for (wide, columns, count) in [(true, 120, 1), (false, 80, 2)] {
            let lines = [header(wide), lines(&example(), wide)].concat();
            assert_eq!(lines.len(), 2 * count);
            for line in lines {
                assert!(line.chars().count() <= columns, "{line}");
            }
        }
    }

    #[test]
    fn only_what_came_in_between_is_counted() {
        let text = |here: u32, there: u32| {
            let series = |scope: &str, n: u32| {
                format!(
                    "aksnet_flow_connections_total{{class=\"pod_to_pod\",nat=\"none\",scope=\"{scope}\",src_workload=\"\"}} {n}\n"
                )
            };
            Scrape::parse(&(series("same_node", here) + &series("cross_node", there)))
        };
        let counted = counted(&text(5, 7), &text(5, 9));
        let key = ["pod_to_pod", "none", "cross_node"].map(str::to_owned);
        assert_eq!(counted, BTreeMap::from([(key, (2.0, 0.0))]));
    }
}

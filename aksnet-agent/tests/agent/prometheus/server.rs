//! A *server* of Prometheus, Debian's own, in the node's namespace: it scrapes the agent, evaluates our rules, and is
//! asked over its HTTP API as Grafana does.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{cargo::workspace, dashboards, testbed::Testbed};

use crate::life::{Home, LISTEN};

/// On the node's loopback, which nobody watches.
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 9090);

/// The labels that a cluster's Prometheus gives its targets.
pub const CLUSTER: &str = "test";

/// One series of an answer: labels and values in the order of their times (in seconds since 1970).
#[derive(Clone, Debug)]
pub struct Series {
    pub labels: BTreeMap<String, String>,
    pub values: Vec<(f64, f64)>,
}

/// A running Prometheus. Dropping it kills it.
pub struct Prometheus<'a> {
    bed: &'a Testbed,
    child: Child,
}

impl<'a> Prometheus<'a> {
    /// Starts it, with our rules.
    pub fn start(bed: &'a Testbed, home: &Home) -> Result<Self> {
        Self::with_jobs(bed, home, &[("aksnet", "")])
    }

    /// The same, with several jobs that scrape the agent, each in its own way: its name, and lines of its configuration.
    pub fn with_jobs(bed: &'a Testbed, home: &Home, jobs: &[(&str, &str)]) -> Result<Self> {
        let rules = workspace().join(dashboards::rules::PLAIN);
        let mut config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n",
            rules.display(),
        );
        for (name, lines) in jobs {
            let node = bed.node().name();
            write!(
                config,
                "- job_name: {name}\n  \
                   static_configs:\n  \
                   - targets: ['{LISTEN}']\n    \
                     labels: {{cluster: {CLUSTER}, instance: {node}}}\n"
            )?;
            for line in lines.lines() {
                writeln!(config, "  {line}")?;
            }
        }
        let file = home.path().join("prometheus.yml");
        fs::write(&file, config)?;
        let (_, log) = home.log("prometheus.log")?;
        let mut command = bed.node().netns().command("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                home.path().join("prometheus").display()
            ))
            .arg(format!(
                "--web.listen-address={}",
                SocketAddr::from(ADDRESS)
            ))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = bed
            .node()
            .netns()
            .spawn(&mut command)
            .context("`cargo xtask setup` installs Debian's package prometheus")?;
        Ok(Self { bed, child })
    }

    /// Whether it has scraped the agent and evaluated its rules.
    pub fn is_ready(&self) -> bool {
        self.query("up == 1 and on () namespace:aksnet_flow_bytes:rate5m")
            .is_ok_and(|series| !series.is_empty())
    }

    /// The answer to a query as of now.
    pub fn query(&self, expr: &str) -> Result<Vec<Series>> {
        let path = format!("/api/v1/query?query={}", encoded(expr));
        series(&self.get(&path)?)
    }

    /// The same over time, a value each second.
    pub fn query_range(&self, expr: &str, from: f64, to: f64) -> Result<Vec<Series>> {
        let expr = encoded(expr);
        let path = format!("/api/v1/query_range?query={expr}&start={from}&end={to}&step=1");
        series(&self.get(&path)?)
    }

    /// Every rule, as it stands.
    pub fn rules(&self) -> Result<Vec<Value>> {
        let data = self.get("/api/v1/rules")?;
        let groups = data["groups"].as_array().context("groups")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array());
        Ok(rules.flatten().cloned().collect())
    }

    /// Why the last scrape of a job failed; empty if it did not, or there was none.
    pub fn scrape_error(&self, job: &str) -> Result<String> {
        let data = self.get("/api/v1/targets?state=active")?;
        let targets = data["activeTargets"].as_array().context("targets")?;
        let mut theirs = targets.iter().filter(|t| t["labels"]["job"] == job);
        let target = theirs.next().context("no such job")?;
        Ok(target["lastError"].as_str().unwrap_or_default().to_owned())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let mut stream = self.bed.node().netns().run(|| {
            let stream = TcpStream::connect_timeout(&ADDRESS.into(), Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            Ok(stream)
        })?;
        // HTTP/1.0: the answer ends where the connection does.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: prometheus\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .context("no HTTP answer")?;
        let mut answer: Value = serde_json::from_slice(&answer[end + 4..])?;
        ensure!(answer["status"] == "success", "{}", answer["error"]);
        Ok(answer["data"].take())
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The time now as Prometheus writes it.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

fn encoded(text: &str) -> String {
    let octets = text.bytes().map(|b| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    });
    octets.collect()
}

fn series(data: &Value) -> Result<Vec<Series>> {
    let result = data["result"].as_array().context("a result")?;
    if data["resultType"] == "scalar" {
        return Ok(vec![Series {
            labels: BTreeMap::new(),
            values: vec![point(&data["result"])?],
        }]);
    }
    let one = |item: &Value| -> Result<Series> {
        let labels = serde_json::from_value(item["metric"].clone())?;
        let values = match item["values"].as_array() {
            Some(values) => values.iter().map(point).collect::<Result<_>>()?,
            None => vec![point(&item["value"])?],
        };
        Ok(Series { labels, values })
    };
    result.iter().map(one).collect()
}

fn point(pair: &Value) -> Result<(f64, f64)> {
    let time = pair[0].as_f64().context("a time")?;
    let value = pair[1].as_str().context("a value")?.parse()?;
    Ok((time, value))
}

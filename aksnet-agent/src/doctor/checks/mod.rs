//! The *checks*, one file each. A check is a question of the person on call, answered by the evidence alone.
//!
//! Each has one finding at least: what is wrong, or `ok` where it looked and found nothing, or `unknown` where the
//! evidence does not suffice.

mod agent;

mod pod_ips;

mod lb_pending;

mod lb_probes;

mod policy_unenforced;

mod policy_denials;

mod conntrack;

mod snat_ports;

mod snat_clash;

mod pod_to_pod_snat;

mod egress_snat;

mod cross_zone;

mod unanswered;

mod drops;

mod nat_time;

mod end_dates;

use super::{
    evidence::{Count, Evidence},
    finding::{Finding, Severity},
};

/// A check.
#[derive(Debug)]
pub struct Check {
    /// Its name, for `--check`.
    pub name: &'static str,
    /// What it looks at, in a few words.
    pub looks_at: &'static str,
    /// Where more is written: a path below the repository's root.
    pub runbook: &'static str,
    findings: fn(&Evidence) -> Vec<Finding>,
}

impl Check {
    /// Runs it.
    #[must_use]
    pub fn run(&self, evidence: &Evidence) -> Vec<Finding> {
        let mut findings = (self.findings)(evidence);
        for finding in &mut findings {
            self.name.clone_into(&mut finding.check);
            if finding.runbook.is_empty() {
                self.runbook.clone_into(&mut finding.runbook);
            }
        }
        findings
    }
}

/// All checks: first whether the agent can be believed, then what cuts pods off, then what costs.
pub const CHECKS: &[Check] = &[
    agent::CHECK,
    pod_ips::CHECK,
    lb_pending::CHECK,
    lb_probes::CHECK,
    policy_unenforced::CHECK,
    policy_denials::CHECK,
    conntrack::CHECK,
    snat_ports::CHECK,
    snat_clash::CHECK,
    pod_to_pod_snat::CHECK,
    egress_snat::CHECK,
    unanswered::CHECK,
    drops::CHECK,
    cross_zone::CHECK,
    nat_time::CHECK,
    end_dates::CHECK,
];

/// How many lines of one kind are shown; the rest is a number.
const LINES: usize = 5;

/// The first lines, and how many more there are.
fn some(lines: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = lines.into_iter().collect();
    if lines.len() > LINES {
        let more = lines.len() - LINES;
        lines.truncate(LINES);
        lines.push(format!("and {more} more"));
    }
    lines
}

/// `1 policy`, `2 policies`.
fn plural(n: u64, one: &str, many: &str) -> String {
    if n == 1 {
        format!("1 {one}")
    } else {
        format!("{n} {many}")
    }
}

fn connections(n: u64) -> String {
    plural(n, "connection", "connections")
}

fn packets(n: u64) -> String {
    plural(n, "packet", "packets")
}

/// `in the last 5 min`: what `recent` means.
fn lately(evidence: &Evidence) -> String {
    format!("in the last {}", ago(evidence.window_s))
}

/// A time in one unit, rounded.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time that is shown is positive, and far below 2^64 seconds"
)]
pub(super) fn ago(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A share in percent.
#[expect(
    clippy::cast_precision_loss,
    reason = "a share is shown in whole percent"
)]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

fn sum(counts: impl Iterator<Item = Count>) -> Count {
    counts.fold(Count::default(), |sum, count| Count {
        total: sum.total.saturating_add(count.total),
        recent: sum.recent.saturating_add(count.recent),
    })
}

/// Connections that are translated as they should not be.
struct Anomalous {
    /// Whether there were any lately; else what is told is since the agent's start.
    recent: bool,
    /// How many.
    count: u64,
    /// In which time.
    when: String,
    /// Between whom, the most first.
    who: Vec<String>,
}

/// Those of one kind; `None`: there were none since the agent's start.
fn anomalous(evidence: &Evidence, anomaly: &str) -> Option<Anomalous> {
    let all = evidence.anomalies.iter();
    let mut of: Vec<_> = all.filter(|one| one.anomaly == anomaly).collect();
    let sum = sum(of.iter().map(|one| one.connections));
    if sum.total == 0 {
        return None;
    }
    let recent = sum.recent > 0;
    let told = |count: Count| if recent { count.recent } else { count.total };
    of.sort_by_key(|one| std::cmp::Reverse(one.connections));
    let who = of.iter().map(|one| {
        let n = connections(told(one.connections));
        format!("{} → {}: {n}", one.src, one.dst)
    });
    let lately = lately(evidence);
    Some(Anomalous {
        recent,
        count: told(sum),
        when: if recent {
            lately
        } else {
            format!("since the agent's start, and none {lately}")
        },
        who: some(who),
    })
}

/// Why names of Kubernetes' objects are not known.
fn no_names(evidence: &Evidence, source: &str) -> String {
    let agent = &evidence.agent;
    let because = agent.asks_not_because.clone().or_else(|| {
        agent
            .sources
            .get(source)
            .and_then(|source| source.last_error.clone())
    });
    match because {
        Some(because) => format!("{source} are not known: {because}"),
        None => format!("{source} are not known (yet): the Kubernetes API has not told them"),
    }
}

/// Why what programs see cannot be judged, if one of those named does not run.
fn blind(evidence: &Evidence, needed: &[&str]) -> Option<Finding> {
    let programs = &evidence.agent.programs;
    let down: Vec<String> = needed
        .iter()
        .filter(|name| !programs.iter().any(|p| p.program == **name && p.up))
        .map(|name| {
            let states = programs.iter().filter(|p| p.program == *name);
            let state = states.map(|p| p.state.clone()).next();
            format!(
                "program {name}: {}",
                state.unwrap_or_else(|| "not loaded".to_owned())
            )
        })
        .collect();
    (!down.is_empty()).then(|| {
        Finding::unknown("not judged: a program that sees this does not run").because_all(down)
    })
}

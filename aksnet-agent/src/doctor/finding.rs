//! A *finding*: what one check says, with the evidence for it and what to do about it.

use serde::{Deserialize, Serialize};

use super::evidence::{Evidence, SCHEMA};

/// How bad it is, from the least to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It was looked at, and nothing is wrong.
    Ok,
    /// It cannot be judged.
    Unknown,
    /// Worth knowing; nobody has to get up for it.
    Info,
    /// Something is lost or will be; today's work.
    Warning,
    /// Pods are cut off, or are not protected as they should be: now.
    Critical,
}

impl Severity {
    /// All, from the least to the worst.
    pub const ALL: [Self; 5] = [
        Self::Ok,
        Self::Unknown,
        Self::Info,
        Self::Warning,
        Self::Critical,
    ];

    /// As it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// See the module's header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name.
    pub check: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in one line.
    pub title: String,
    /// What that rests on, the most telling first.
    pub evidence: Vec<String>,
    /// What to do; empty where there is nothing to do.
    pub fix: String,
    /// Where more is written: a path below the repository's root.
    pub runbook: String,
}

impl Finding {
    /// One without evidence and fix. The table fills in check and runbook.
    pub(super) fn new(severity: Severity, title: impl Into<String>) -> Self {
        Self {
            check: String::new(),
            severity,
            title: title.into(),
            evidence: Vec::new(),
            fix: String::new(),
            runbook: String::new(),
        }
    }

    pub(super) fn ok(title: impl Into<String>) -> Self {
        Self::new(Severity::Ok, title)
    }

    pub(super) fn unknown(title: impl Into<String>) -> Self {
        Self::new(Severity::Unknown, title)
    }

    pub(super) fn because(mut self, line: impl Into<String>) -> Self {
        self.evidence.push(line.into());
        self
    }

    pub(super) fn because_all(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(lines);
        self
    }

    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// Another page than the check's own.
    pub(super) fn see(mut self, page: impl Into<String>) -> Self {
        self.runbook = page.into();
        self
    }
}

/// What all checks say together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// As in [`Evidence`].
    pub schema: u32,
    /// The node's name.
    pub node: String,
    /// When the evidence was taken; wall time, seconds since 1970.
    pub taken_unix_s: u64,
    /// The time in seconds that "recent" reaches back.
    pub window_s: f64,
    /// The worst severity.
    pub worst: Severity,
    /// The findings, the worst first; each check has one at least.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Orders findings.
    #[must_use]
    pub fn new(evidence: &Evidence, mut findings: Vec<Finding>) -> Self {
        // Stable: within a severity they stay in the order of the table.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Self {
            schema: SCHEMA,
            node: evidence.node.name.clone(),
            taken_unix_s: evidence.taken_unix_s,
            window_s: evidence.window_s,
            worst: findings.first().map_or(Severity::Ok, |f| f.severity),
            findings,
        }
    }

    /// How many findings have this severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.findings
            .iter()
            .filter(|f| f.severity == severity)
            .count()
    }
}

//! The *doctor* walks the common faults of a node's networking and says which of them it has: each with the evidence,
//! how bad it is, and what to do.
//!
//! Everything that it judges by is in one plain value, the [`Evidence`], which a running agent gives over its socket and
//! which can be kept in a file. The [`checks`] are pure functions of it: the same evidence gives the same findings, on
//! whatever machine. A check that the evidence does not suffice for says `unknown` and why; `ok` is said only of what was
//! looked at.

// What is judged by, and how it comes together.
pub mod evidence;

pub mod tally;

pub mod history;

pub mod gather;

// What is made of it.
pub mod finding;

pub mod checks;

// How it reads.
pub mod text;

pub use self::{
    checks::{CHECKS, Check},
    evidence::Evidence,
    finding::{Finding, Report, Severity},
};

/// Runs the checks of these names, in the order of the table; all of them where no name is given.
#[must_use]
pub fn examine(evidence: &Evidence, names: &[String]) -> Report {
    let wanted = |check: &&Check| names.is_empty() || names.iter().any(|name| name == check.name);
    let findings = CHECKS.iter().filter(wanted);
    Report::new(
        evidence,
        findings.flat_map(|check| check.run(evidence)).collect(),
    )
}

#[cfg(test)]
mod tests;

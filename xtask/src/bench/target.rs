//! *Targets*: what the agent promises to cost at the most, and whether a run kept it.

use super::figure::{Figure, Table, number};
use super::row;

/// One promise about one figure.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// For people.
    pub text: &'static str,
    table: Table,
    row: &'static str,
    column: &'static str,
    most: f64,
    unit: &'static str,
}

/// All of them.
pub const TARGETS: [Target; 26] = {
    const K1: &str = "1,000 flows";
    const K100: &str = "100,000 flows";
    use Table::{Agent, Growth, RunTime, Sockets, TestRun, Wall};
    [
        target(
            "ENTER at 1,000 flows, test run, TCP",
            TestRun,
            row::ENTER_TCP,
            K1,
            30.0,
            "ns",
        ),
        target(
            "ENTER at 1,000 flows, test run, UDP",
            TestRun,
            row::ENTER_UDP,
            K1,
            30.0,
            "ns",
        ),
        target(
            "ENTER at 1,000 flows, real packets",
            RunTime,
            row::RUN_ENTER,
            K1,
            30.0,
            "ns",
        ),
        target(
            "ENTER at 100,000 flows, test run, TCP",
            TestRun,
            row::ENTER_TCP,
            K100,
            100.0,
            "ns",
        ),
        target(
            "ENTER at 100,000 flows, test run, UDP",
            TestRun,
            row::ENTER_UDP,
            K100,
            100.0,
            "ns",
        ),
        target(
            "ENTER at 100,000 flows, real packets",
            RunTime,
            row::RUN_ENTER,
            K100,
            100.0,
            "ns",
        ),
        target(
            "EXIT with nothing pending, test run",
            TestRun,
            row::EXIT_IDLE,
            "-",
            8.0,
            "ns",
        ),
        target(
            "EXIT, real packets, 1,000 flows",
            RunTime,
            row::RUN_EXIT,
            K1,
            8.0,
            "ns",
        ),
        target("a new flow, UDP", TestRun, row::NEW_UDP, "-", 250.0, "ns"),
        target("a new flow, SYN", TestRun, row::NEW_SYN, "-", 250.0, "ns"),
        target(
            "a routed packet, both hooks, 1,000 flows",
            Wall,
            row::AGENT,
            K1,
            160.0,
            "ns",
        ),
        target(
            "a routed packet, both hooks, 100,000 flows",
            Wall,
            row::AGENT,
            K100,
            300.0,
            "ns",
        ),
        target(
            "TCP throughput",
            Sockets,
            row::THROUGHPUT,
            row::AGENT,
            2.0,
            "%",
        ),
        target(
            "TCP connection rate",
            Sockets,
            row::CONNECTIONS,
            row::AGENT,
            4.0,
            "%",
        ),
        target(
            "small-packet rate",
            Sockets,
            row::SMALL_PACKETS,
            row::AGENT,
            5.0,
            "%",
        ),
        target(
            "a sweep of 65,536 live flows",
            Agent,
            row::SWEEP,
            "-",
            10.0,
            "ms",
        ),
        target(
            "a sweep of 1,000,000 live flows",
            Growth,
            row::GROWTH_SWEEP,
            "1,000,000 flows",
            100.0,
            "ms",
        ),
        target(
            "a sweep that names 65,536 new flows",
            Agent,
            row::SWEEP_NAMED,
            "-",
            150.0,
            "ms",
        ),
        target(
            "a scrape of 20,000 series",
            Agent,
            row::SCRAPE,
            "-",
            50.0,
            "ms",
        ),
        target(
            "a lookup among 150,000 pods",
            Agent,
            row::LOOKUP,
            "-",
            200.0,
            "ns",
        ),
        target(
            "a pod's change, 20,000 a second",
            Agent,
            row::POD_EVENT,
            "-",
            50.0,
            "µs",
        ),
        target(
            "RSS with the largest cluster's objects",
            Agent,
            row::INDEX_MEMORY,
            "-",
            250.0,
            "MiB",
        ),
        target(
            "a flow allowed, 10,000 policies, 150,000 pods",
            Agent,
            row::POLICY_ALLOWED,
            "-",
            20.0,
            "µs",
        ),
        target(
            "a flow denied, 10,000 policies, 150,000 pods",
            Agent,
            row::POLICY_DENIED,
            "-",
            20.0,
            "µs",
        ),
        target(
            "a policy's change among 10,000",
            Agent,
            row::POLICY_CHANGED,
            "-",
            50.0,
            "ms",
        ),
        target("agent RSS", Agent, row::RESIDENT, "-", 64.0, "MiB"),
    ]
};

const fn target(
    text: &'static str,
    table: Table,
    row: &'static str,
    column: &'static str,
    most: f64,
    unit: &'static str,
) -> Target {
    Target {
        text,
        table,
        row,
        column,
        most,
        unit,
    }
}

impl Target {
    /// The figure it is about, where it was measured.
    #[must_use]
    pub fn figure<'a>(&self, figures: &'a [Figure]) -> Option<&'a Figure> {
        figures
            .iter()
            .find(|f| f.table == self.table && f.row == self.row && f.column == self.column)
    }

    /// Whether the median keeps it.
    #[must_use]
    pub fn is_met_by(&self, figure: &Figure) -> bool {
        figure.median <= self.most
    }

    /// What is allowed.
    #[must_use]
    pub fn limit(&self) -> String {
        format!("at most {} {}", number(self.most), self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides() {
        let figure = Figure::range(Table::TestRun, row::EXIT_IDLE, "-", vec![1.0, 8.0, 30.0]);
        let target = TARGETS
            .iter()
            .find(|target| target.row == row::EXIT_IDLE)
            .unwrap();
        let found = target.figure(std::slice::from_ref(&figure)).unwrap();
        assert!(target.is_met_by(found));
    }

    #[test]
    fn columns_are_written_as_the_benchmarks_write_them() {
        for column in [row::flows(1_000), row::flows(100_000)] {
            assert!(TARGETS.iter().any(|target| target.column == column));
        }
    }
}

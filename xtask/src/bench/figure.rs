//! A *figure*: one measured value with its spread, as a benchmark hands it to `cargo xtask bench` — a line of JSON
//! on standard output among lines for people.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// The argument with which a benchmark prints figures as JSON.
pub const JSON: &str = "--json";

/// The argument with which it measures fewer rounds.
pub const QUICK: &str = "--quick";

/// What a line with a figure begins with.
const MARK: &str = "figure ";

/// Which table a figure stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Table {
    /// A program by itself, repeated on one frame by `BPF_PROG_TEST_RUN`.
    TestRun,
    /// The kernel's own statistics of a program's runs while real packets pass.
    RunTime,
    /// What a routed packet takes longer.
    Wall,
    /// What sockets notice.
    Sockets,
    /// What the agent itself needs.
    Agent,
    /// What grows with the number of flows.
    Growth,
    /// A node that is full of pods.
    Pods,
    /// What a cluster's services cost first packets, as the agent shows it.
    Services,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Where it stands.
    pub table: Table,
    /// What was measured.
    pub row: String,
    /// Under which condition: a number of flows, or what was attached.
    pub column: String,
    /// The median of the rounds.
    pub median: f64,
    /// The least of the rounds, or their lower quartile where the table says so.
    pub low: f64,
    /// The most of the rounds, or their upper quartile.
    pub high: f64,
}

impl Figure {
    /// A figure of these rounds: median, least, most.
    ///
    /// # Panics
    /// When there are no rounds.
    #[must_use]
    pub fn range(
        table: Table,
        row: impl Into<String>,
        column: impl Into<String>,
        mut rounds: Vec<f64>,
    ) -> Self {
        rounds.sort_by(f64::total_cmp);
        Self {
            table,
            row: row.into(),
            column: column.into(),
            median: quantile(&rounds, 2),
            low: rounds[0],
            high: rounds[rounds.len() - 1],
        }
    }

    /// A figure of these rounds: median and quartiles, as single rounds on a busy machine say little.
    ///
    /// # Panics
    /// When there are no rounds.
    #[must_use]
    pub fn quartiles(
        table: Table,
        row: impl Into<String>,
        column: impl Into<String>,
        mut rounds: Vec<f64>,
    ) -> Self {
        rounds.sort_by(f64::total_cmp);
        Self {
            table,
            row: row.into(),
            column: column.into(),
            median: quantile(&rounds, 2),
            low: quantile(&rounds, 1),
            high: quantile(&rounds, 3),
        }
    }

    /// Prints it, for people or, if so asked, for `cargo xtask bench`.
    ///
    /// # Panics
    /// Never: a figure is numbers and text.
    pub fn print(&self) {
        if std::env::args().any(|argument| argument == JSON) {
            let json = serde_json::to_string(self).expect("a figure is JSON");
            println!("{MARK}{json}");
        } else {
            println!("{}", self.line());
        }
    }

    /// The figure in a line of benchmark's output, if it holds one.
    #[must_use]
    pub fn of_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(MARK)?).ok()
    }

    /// For people.
    #[must_use]
    pub fn line(&self) -> String {
        format!("  {:<44} {:>16}  {}", self.row, self.column, self.text())
    }

    /// The value with its spread.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = number(self.median);
        if self.low < self.high {
            let _ = write!(text, " ({} to {})", number(self.low), number(self.high));
        }
        text
    }
}

/// Whether fewer rounds were asked for.
#[must_use]
pub fn is_quick() -> bool {
    std::env::args().any(|argument| argument == QUICK)
}

/// As many digits as mean something.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 2.0 || size == 0.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The median.
///
/// # Panics
/// When there are no values.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 2)
}

/// A quartile of sorted values, between neighbours where it falls between.
fn quantile(sorted: &[f64], quarter: usize) -> f64 {
    let place = (sorted.len() - 1) * quarter;
    let (below, rest) = (place / 4, place % 4);
    let step = sorted
        .get(below + 1)
        .map_or(0.0, |next| next - sorted[below]);
    #[expect(clippy::cast_precision_loss, reason = "0 to 3")]
    let part = rest as f64 / 4.0;
    sorted[below] + step * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_survives_its_line() {
        let figure = Figure::range(Table::Wall, "agent", "1,000", vec![3.0, 1.0, 2.0]);
        let line = format!("{MARK}{}", serde_json::to_string(&figure).unwrap());
        assert_eq!(Figure::of_line(&line), Some(figure));
        assert_eq!(Figure::of_line("running 3 tests"), None);
    }

    #[test]
    fn medians_and_quartiles_lie_between_neighbours() {
        let even = Figure::quartiles(Table::Wall, "", "", vec![4.0, 1.0, 3.0, 2.0]);
        assert!((even.median - 2.5).abs() < 1e-9);
        assert!((even.low - 1.75).abs() < 1e-9 && (even.high - 3.25).abs() < 1e-9);
        let one = Figure::range(Table::Wall, "", "", vec![7.0]);
        assert!((one.median - 7.0).abs() < 1e-9 && (one.low - one.high).abs() < 1e-9);
    }
}

//! The *report*: figures and targets as Markdown tables, between two marks of docs/overhead.md. What stands around
//! them is written by people.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::figure::{Figure, Table};
use super::target::TARGETS;

const BEGIN: &str = "<!-- begin: written by `cargo xtask bench` -->";
const END: &str = "<!-- end -->";

/// The tables in their order, with what each says of itself.
const TABLES: [(Table, &str, &str); 8] = [
    (
        Table::TestRun,
        "A program by itself",
        "Nanoseconds per run over an empty program, `BPF_PROG_TEST_RUN`: median (least to most) of rounds in which the \
         two take turns; for new flows the quartiles.",
    ),
    (
        Table::RunTime,
        "A program under real packets",
        "Nanoseconds per run over the empty program under the same load, by `kernel.bpf_stats_enabled`: median (least \
         to most).",
    ),
    (
        Table::Wall,
        "A routed packet",
        "Nanoseconds that a packet takes longer through the node, both hooks together, than one on the control route: \
         median of the pairwise differences (quartiles). Two rows are not differences: a packet's whole time, and what the \
         agent's programs take of a core.",
    ),
    (
        Table::Sockets,
        "What programs notice",
        "Per cent worse than without, the same route in alternating slices: median of the pairs (quartiles). Less than \
         the null check's is nothing.",
    ),
    (Table::Agent, "The agent itself", "Median (least to most)."),
    (
        Table::Growth,
        "What grows with the number of live flows",
        "Each with a table of its own that has room for all of them: no packet is without its flow. Nanoseconds as in \
         *A program by itself*, round-robin over all flows; median (least to most).",
    ),
    (
        Table::Pods,
        "A node with as many pods as AKS allows",
        "The release build of the agent on an emulated node with Azure's overlay: 250 network namespaces behind veths, each \
         of which opens connections to a service of another node.",
    ),
    (
        Table::Services,
        "What services cost a connection",
        "Microseconds from entering the node to leaving it, of the packet that opens a connection to the last service \
         of so many more, by the agent's own `aksnet_nat_path_seconds{stage=\"first\"}`: median (quartiles).",
    ),
];

/// The whole report, with the plots of docs/images that have these names.
#[must_use]
pub fn render(figures: &[Figure], notes: &[String], plots: &[String], about: &str) -> String {
    let mut text =
        format!("{about}\n\n### Targets\n\n| target | allowed | measured | |\n|---|---|---|---|\n");
    for target in &TARGETS {
        let (measured, met) = match target.figure(figures) {
            Some(figure) if target.is_met_by(figure) => (figure.text(), "met"),
            Some(figure) => (figure.text(), "**not met**"),
            None => ("-".to_owned(), "not measured"),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {measured} | {met} |",
            target.text,
            target.limit()
        );
    }
    for (table, title, method) in TABLES {
        let of_table: Vec<&Figure> = figures.iter().filter(|f| f.table == table).collect();
        if !of_table.is_empty() {
            let _ = write!(text, "\n### {title}\n\n{method}\n\n{}", grid(&of_table));
            if table == Table::Growth {
                for plot in plots {
                    let name = plot.trim_end_matches(".svg");
                    let _ = write!(text, "\n![{name}](images/{plot})\n");
                }
            }
        }
    }
    if !notes.is_empty() {
        text.push_str("\nWhat the benchmarks said besides:\n\n");
        for note in notes {
            let _ = writeln!(text, "- {note}");
        }
    }
    text
}

/// Rows and columns in the order of their first figures.
fn grid(figures: &[&Figure]) -> String {
    let (mut rows, mut columns): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for figure in figures {
        if !rows.contains(&figure.row.as_str()) {
            rows.push(&figure.row);
        }
        if !columns.contains(&figure.column.as_str()) {
            columns.push(&figure.column);
        }
    }
    let mut text = format!(
        "| | {} |\n|---|{}\n",
        columns.join(" | "),
        "---|".repeat(columns.len())
    );
    for row in rows {
        let _ = write!(text, "| {row} |");
        for column in &columns {
            let cell = figures
                .iter()
                .find(|f| f.row == row && f.column == *column)
                .map(|f| f.text())
                .unwrap_or_default();
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

/// Puts the report between the marks of a file, which it makes if there is none.
///
/// # Errors
/// When the file cannot be read or written, or lacks the marks.
pub fn write(path: &Path, report: &str) -> Result<()> {
    let old = match std::fs::read_to_string(path) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("# What aksnet costs\n\n{BEGIN}\n{END}\n")
        }
        Err(error) => return Err(error).context("docs/overhead.md"),
    };
    let new = replace(&old, report).context("docs/overhead.md has lost the marks of its tables")?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, new).context("docs/overhead.md")
}

fn replace(old: &str, report: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!(
        "{before}{BEGIN}\n\n{}\n\n{END}{after}",
        report.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row;

    #[test]
    fn tables_are_replaced_and_what_people_wrote_stays() {
        let old = format!("# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n");
        let new = replace(&old, "new\n").unwrap();
        assert_eq!(
            new,
            format!("# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n")
        );
        assert_eq!(replace(&new, "new"), Some(new.clone()));
        assert_eq!(replace("no marks", "new"), None);
    }

    #[test]
    fn a_figure_stands_in_its_row_and_column_and_beside_its_target() {
        let figures = [
            Figure::range(Table::TestRun, row::ENTER_TCP, row::flows(1), vec![20.0]),
            Figure::range(
                Table::TestRun,
                row::ENTER_TCP,
                row::flows(1_000),
                vec![31.0],
            ),
            Figure::range(Table::TestRun, row::EXIT_IDLE, "-", vec![2.0]),
        ];
        let report = render(&figures, &[], &[], "machine");
        assert!(
            report.contains("| ENTER, known flow, IPv4 TCP | 20.0 | 31.0 |  |"),
            "{report}"
        );
        assert!(
            report.contains(
                "| ENTER at 1,000 flows, test run, TCP | at most 30.0 ns | 31.0 | **not met** |"
            ),
            "{report}"
        );
        assert!(
            report.contains("| EXIT with nothing pending, test run | at most 8.0 ns | 2.0 | met |")
        );
        assert!(report.contains("| agent RSS | at most 64.0 MiB | - | not measured |"));
    }
}

//! *What libFuzzer says*, as figures: it prints a line for each input that reached something new, and sums at its end.

/// Of one target's run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// Inputs that were run.
    pub(super) executions: u64,
    /// Places in the code (edges) that any of them reached.
    pub(super) edges: u64,
    /// The same, told apart by how often each was reached and by what was compared.
    pub(super) features: u64,
    /// Inputs that are kept, as each reached something that the others do not.
    pub(super) kept: u64,
    /// Inputs that are new among them.
    pub(super) new: u64,
    /// Most memory, MiB.
    pub(super) memory_mb: u64,
}

impl Figures {
    pub(super) const HEADING: &str =
        "target       seconds    executions   edges  features  inputs     new  memory";

    /// Reads what it printed. What it did not print is 0.
    pub(super) fn read(text: &str) -> Self {
        let mut figures = Self::default();
        for line in text.lines() {
            if let Some(stat) = line.strip_prefix("stat::") {
                let Some((name, value)) = stat.split_once(':') else {
                    continue;
                };
                let value = value.trim().parse().unwrap_or(0);
                match name {
                    "number_of_executed_units" => figures.executions = value,
                    "new_units_added" => figures.new = value,
                    "peak_rss_mb" => figures.memory_mb = value,
                    _ => {}
                }
            } else if line.starts_with('#') {
                let words: Vec<&str> = line.split_whitespace().collect();
                for pair in words.windows(2) {
                    let number = || pair[1].split('/').next()?.parse().ok();
                    match pair[0] {
                        "cov:" => figures.edges = number().unwrap_or(figures.edges),
                        "ft:" => figures.features = number().unwrap_or(figures.features),
                        "corp:" => figures.kept = number().unwrap_or(figures.kept),
                        _ => {}
                    }
                }
            }
        }
        figures
    }

    /// In words, as soon as it is known.
    pub(super) fn line(&self, name: &str, seconds: u64) -> String {
        format!(
            "{name}: {} executions in {seconds} s, {} edges, {} new inputs",
            self.executions, self.edges, self.new
        )
    }

    /// A row under [`Self::HEADING`].
    pub(super) fn row(&self, name: &str, seconds: u64) -> String {
        format!(
            "{name:<12} {seconds:>7} {:>13} {:>7} {:>9} {:>7} {:>7} {:>3} MiB",
            self.executions, self.edges, self.features, self.kept, self.new, self.memory_mb
        )
    }
}

/// Why it ended, from what it printed: a panic's message, or what libFuzzer itself found.
pub(super) fn why(text: &str) -> String {
    let mut lines = text.lines();
    let panic = lines.by_ref().find(|line| line.contains("panicked at"));
    if let Some(panic) = panic {
        let message = lines.next().unwrap_or_default();
        return format!("{} {message}", panic.trim());
    }
    let own = text
        .lines()
        .find(|line| line.contains("ERROR: libFuzzer:") || line.contains("ERROR:"));
    own.map_or_else(|| "it ended".to_owned(), |line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
INFO: Seed: 2
#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 40Mb
#4096\tNEW    cov: 12 ft: 30 corp: 9/120b lim: 4 exec/s: 0 rss: 41Mb L: 4/4 MS: 1 ChangeBit-
#9000\tDONE   cov: 13 ft: 31 corp: 10/124b lim: 8 exec/s: 4500 rss: 44Mb
Done 9000 runs in 2 second(s)
stat::number_of_executed_units: 9000
stat::average_exec_per_sec:     4500
stat::new_units_added:          9
stat::slowest_unit_time_sec:    0
stat::peak_rss_mb:              44
";

    #[test]
    fn the_last_line_of_progress_and_the_sums_are_read() {
        let figures = Figures {
            executions: 9_000,
            edges: 13,
            features: 31,
            kept: 10,
            new: 9,
            memory_mb: 44,
        };
        assert_eq!(Figures::read(RUN), figures);
        assert_eq!(
            figures.row("parse", 2).len(),
            Figures::HEADING.len(),
            "the columns stand under their heading"
        );
        assert_eq!(Figures::read(""), Figures::default());
    }

    #[test]
    fn a_panic_is_named_before_what_libfuzzer_makes_of_it() {
        let text = "thread '<unnamed>' panicked at src/parse.rs:3:5:\nthe fast way differs\nnote: run with\n\
                    ==7== ERROR: libFuzzer: deadly signal\n";
        assert_eq!(
            why(text),
            "thread '<unnamed>' panicked at src/parse.rs:3:5: the fast way differs"
        );
        let slow =
            "ALARM: working on the last Unit\n==7== ERROR: libFuzzer: timeout after 10 seconds\n";
        assert!(why(slow).contains("timeout after 10 seconds"));
        assert_eq!(why(""), "it ended");
    }
}

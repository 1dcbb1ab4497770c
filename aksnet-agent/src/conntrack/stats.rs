//! The kernel's *statistics* of connection tracking: what it counts itself, for each CPU.
//!
//! The kernel's counters are 32 bits wide (`struct ip_conntrack_stat`) and are never reset. Three of them tell of
//! lost packets: `insert_failed` (another entry took the same tuple first: a NAT clash), `drop` (no room or no memory,
//! or a failed insert), `early_drop` (an entry was evicted to make room). They come by ctnetlink, or from
//! `/proc/net/stat/nf_conntrack`. What a source does not say is not known, which is not zero.

use std::path::Path;

use serde::Serialize;

/// What one CPU counted. `None`: the source does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuReading {
    /// Entries whose tuple another one took first.
    pub insert_failed: Option<u32>,
    /// Packets that conntrack dropped.
    pub drop: Option<u32>,
    /// Entries evicted to make room.
    pub early_drop: Option<u32>,
}

/// How full the table is. `None`: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableSize {
    /// Entries of this network namespace.
    pub entries: Option<u64>,
    /// How many it may have: `nf_conntrack_max`, which is the machine's.
    pub limit: Option<u64>,
}

/// The counters summed over CPUs; they only grow. `None`: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Entries whose tuple another one took first.
    pub insert_failed: Option<u64>,
    /// Packets that conntrack dropped.
    pub drop: Option<u64>,
    /// Entries evicted to make room.
    pub early_drop: Option<u64>,
}

/// Sums readings so that the sums only grow: a counter that wraps goes on, and a CPU that goes away keeps its part.
#[derive(Clone, Debug, Default)]
pub struct Summing {
    /// By the order of the CPUs, which is the same from both sources.
    last: Vec<CpuReading>,
    sums: Counters,
}

impl Summing {
    /// Takes a reading of all CPUs, in their order, and gives the sums.
    pub fn add(&mut self, readings: &[CpuReading]) -> Counters {
        if self.last.len() < readings.len() {
            self.last.resize(readings.len(), CpuReading::default());
        }
        for (last, now) in self.last.iter_mut().zip(readings) {
            let sums = &mut self.sums;
            grow(
                &mut sums.insert_failed,
                &mut last.insert_failed,
                now.insert_failed,
            );
            grow(&mut sums.drop, &mut last.drop, now.drop);
            grow(&mut sums.early_drop, &mut last.early_drop, now.early_drop);
        }
        self.sums
    }
}

fn grow(sum: &mut Option<u64>, last: &mut Option<u32>, now: Option<u32>) {
    let Some(now) = now else { return };
    let added = now.wrapping_sub(last.unwrap_or(0));
    // Half the range or more is a step back: a reading that was overtaken, or a counter that began anew.
    let added = if added < 1 << 31 || last.is_none() {
        added
    } else {
        0
    };
    *last = Some(now);
    *sum = Some(sum.unwrap_or(0) + u64::from(added));
}

/// The number in a file of `/proc/sys`.
pub(super) fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads `/proc/net/stat/nf_conntrack`: a line of names, then a line of hexadecimal numbers for each CPU. The first
/// column, `entries`, is the whole table's in every line. `None` when it does not look like that.
#[must_use]
pub fn parse_proc(text: &str) -> Option<(Vec<CpuReading>, Option<u64>)> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.split_ascii_whitespace().collect();
    let column = |name: &str| names.iter().position(|n| *n == name);
    let columns = ["insert_failed", "drop", "early_drop"].map(column);
    if columns.iter().all(Option::is_none) {
        return None;
    }
    let mut entries = None;
    let mut readings = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // Some kernels' names and numbers differ in count; then no column can be told.
        if words.len() != names.len() {
            return None;
        }
        let number = |at: Option<usize>| u32::from_str_radix(words[at?], 16).ok();
        let [insert_failed, drop, early_drop] = columns.map(number);
        readings.push(CpuReading {
            insert_failed,
            drop,
            early_drop,
        });
        entries = entries.or_else(|| number(column("entries")).map(u64::from));
    }
    Some((readings, entries))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reading(insert_failed: u32, drop: u32) -> CpuReading {
        CpuReading {
            insert_failed: Some(insert_failed),
            drop: Some(drop),
            early_drop: None,
        }
    }

    #[test]
    fn the_first_column_is_the_tables_and_the_others_are_summed() {
        let text = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n\
            0000000a  0 0 0 0 0 0 0 0 00000010 00000003 00000001 0  0 0 0 0\n\
            0000000a  0 0 0 0 0 0 0 0 00000002 00000000 00000000 0  0 0 0 0\n";
        let (readings, entries) = parse_proc(text).expect("it is such a table");
        assert_eq!(entries, Some(10));
        assert_eq!(
            Summing::default().add(&readings),
            Counters {
                insert_failed: Some(18),
                drop: Some(3),
                early_drop: Some(1)
            }
        );
    }

    #[test]
    fn a_file_without_the_columns_is_not_known_rather_than_zero() {
        for text in ["", "entries found\n1 2\n", "drop entries\n1 2 3\n", "\n\n"] {
            assert_eq!(parse_proc(text), None, "{text:?}");
        }
        let (readings, _) = parse_proc("entries drop\n1 zz\n").expect("a table");
        assert_eq!(Summing::default().add(&readings), Counters::default());
    }

    #[test]
    fn a_cpu_that_goes_away_keeps_its_part() {
        let mut summing = Summing::default();
        summing.add(&[reading(5, 1), reading(7, 2)]);
        assert_eq!(summing.add(&[reading(6, 1)]).insert_failed, Some(13));
        assert_eq!(
            summing.add(&[reading(6, 1), reading(8, 2)]).insert_failed,
            Some(14)
        );
    }

    #[test]
    fn a_counter_that_wraps_goes_on_and_one_that_steps_back_stays() {
        let mut summing = Summing::default();
        summing.add(&[reading(u32::MAX, 10)]);
        let sums = summing.add(&[reading(2, 4)]);
        assert_eq!(sums.insert_failed, Some(u64::from(u32::MAX) + 3));
        assert_eq!(sums.drop, Some(10));
        assert_eq!(summing.add(&[reading(2, 5)]).drop, Some(11));
    }

    #[test]
    fn what_one_source_lacks_keeps_its_sum() {
        let mut summing = Summing::default();
        summing.add(&[reading(1, 1)]);
        let sums = summing.add(&[CpuReading::default()]);
        assert_eq!((sums.drop, sums.early_drop), (Some(1), None));
    }

    proptest! {
        #[test]
        fn sums_never_shrink(rows in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..4), 0..20)) {
            let mut summing = Summing::default();
            let mut before = 0;
            for row in rows {
                let readings: Vec<_> = row.iter().map(|n| reading(*n, 0)).collect();
                let now = summing.add(&readings).insert_failed.unwrap_or(0);
                prop_assert!(now >= before);
                before = now;
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "([a-z_]{0,12}|[0-9a-f]{0,12}|drop|entries| |\n){0,80}") {
            if let Some((readings, _)) = parse_proc(&text) {
                prop_assert!(readings.len() <= text.lines().count());
            }
        }
    }
}

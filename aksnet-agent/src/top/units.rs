//! Numbers as people read them: three digits and a unit.

use super::model::Timing;

/// A count: `999`, `1.2k`, `35M`.
#[must_use]
pub fn count(n: f64) -> String {
    scaled(n, 1000.0, &["", "k", "M", "G", "T", "P"])
}

/// A number of bytes, in powers of 1000: `999B`, `1.2kB`, `35MB`.
#[must_use]
pub fn bytes(n: f64) -> String {
    scaled(n, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A duration in nanoseconds: `850ns`, `4.2µs`, `1.1ms`.
#[must_use]
pub fn nanoseconds(n: f64) -> String {
    scaled(n, 1000.0, &["ns", "µs", "ms", "s"])
}

/// Half took no longer / 99 in 100 took no longer: `4.2µs/13µs`; `-` without times.
#[must_use]
pub fn times(timing: Option<Timing>) -> String {
    timing.map_or_else(
        || "-".to_owned(),
        |t| format!("{}/{}", nanoseconds(t.p50_ns), nanoseconds(t.p99_ns)),
    )
}

fn scaled(mut n: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // 999.5 would be shown as 1000.
    while n >= step - 0.5 && unit + 1 < units.len() {
        n /= step;
        unit += 1;
    }
    if n < 9.95 && (unit > 0 || n.fract() > 0.0) {
        format!("{n:.1}{}", units[unit])
    } else {
        format!("{n:.0}{}", units[unit])
    }
}

/// The time of day (UTC) of milliseconds since 1970: `14:03:59`.
#[must_use]
pub fn time_of_day(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_three_digits() {
        for (n, shown) in [
            (0.0, "0"),
            (7.0, "7"),
            (0.25, "0.2"),
            (999.0, "999"),
            (999.6, "1.0k"),
            (1_234.0, "1.2k"),
            (9_960.0, "10k"),
            (35_400_000.0, "35M"),
            (2e18, "2000P"),
        ] {
            assert_eq!(count(n), shown);
        }
        assert_eq!(bytes(1500.0), "1.5kB");
        assert_eq!(nanoseconds(4200.0), "4.2µs");
        assert_eq!(nanoseconds(98_000.0), "98µs");
        assert_eq!(nanoseconds(800.0), "800ns");
    }

    #[test]
    fn time_of_day_wraps_at_midnight() {
        assert_eq!(time_of_day(86_399_999), "23:59:59");
        assert_eq!(time_of_day(86_400_000 + 3_661_000), "01:01:01");
    }
}

//! Lengths of time as people write them: `250ms`, `1s`, `2m`, or a plain number of seconds.

use std::time::Duration;

const UNITS: [(&str, f64); 6] = [
    // Longest suffix first: `ms` also ends in `s`.
    ("ns", 1e-9),
    ("us", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Reads a length of time.
///
/// # Errors
/// When it is not a number with one of the units, or negative, or absurdly long.
pub fn parse(text: &str) -> Result<Duration, String> {
    let (number, seconds) = UNITS
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)))
        .unwrap_or((text, 1.0));
    number
        .trim()
        .parse::<f64>()
        .ok()
        .and_then(|n| Duration::try_from_secs_f64(n * seconds).ok())
        .ok_or_else(|| format!("'{text}' is not a time; write for example 500ms, 1s or 2m"))
}

/// Writes a length of time so that [`parse`] reads it back.
#[must_use]
pub fn show(duration: Duration) -> String {
    let ns = duration.as_nanos();
    for (unit, length) in [
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
    ] {
        if ns >= length && ns.is_multiple_of(length) {
            return format!("{}{unit}", ns / length);
        }
    }
    if ns == 0 {
        "0s".to_owned()
    } else {
        format!("{ns}ns")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in [("250ms", 250), ("1s", 1000), ("1.5", 1500), ("2m", 120_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse("100us"), Ok(Duration::from_micros(100)));
    }

    #[test]
    fn refuses_with_an_example() {
        for text in ["", "s", "-1s", "1 day", "1e99h", "nan"] {
            assert!(parse(text).unwrap_err().contains("500ms"), "{text}");
        }
    }

    #[test]
    fn is_read_back_as_written() {
        for text in ["0s", "1s", "250ms", "90s", "2m", "1h", "7us", "13ns"] {
            assert_eq!(show(parse(text).unwrap()), text);
        }
    }
}

//! How patient the watches are.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// How long the watches wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// For the beginning of an answer, and for each next piece of a list.
    pub answer: Duration,
    /// For a page as a whole. API servers end a list themselves after 60 s (`--request-timeout`).
    pub page: Duration,
    /// A watch is asked to end after so long, at the latest; each somewhat earlier, so that not all end at once.
    pub watch: Duration,
    /// A watch that is silent for so long is taken for broken: bookmarks come about once a minute.
    pub silence: Duration,
    /// After a first failure; doubled with each further one, and up to as much again by chance.
    pub first_pause: Duration,
    /// No pause is longer, but for what comes by chance.
    pub longest_pause: Duration,
    /// Objects of a page.
    pub page_size: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            page: Duration::from_mins(2),
            watch: Duration::from_secs(290),
            silence: Duration::from_secs(150),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            page_size: 500,
        }
    }
}

impl Timing {
    /// The pauses after one failure upon another, without end.
    pub(super) fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .with_factor(2.0)
            .without_max_times()
            .with_jitter()
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_differ() {
        let timing = Timing::default();
        let pauses: Vec<Duration> = timing.pauses().take(20).collect();
        assert!(pauses[0] >= timing.first_pause && pauses[0] <= 2 * timing.first_pause);
        assert!(pauses[19] >= timing.longest_pause && pauses[19] <= 2 * timing.longest_pause);
        let others: Vec<Duration> = timing.pauses().take(20).collect();
        assert_ne!(pauses, others);
    }
}

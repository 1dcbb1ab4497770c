//! The *pace* of asking: seldom while nothing happens, soon after something did, less and less while nobody
//! answers.
//!
//! The node sees a new pod's interface before the runtime lists its sandbox, which it does when all plugins are
//! done. So a hint is followed by several rounds, at growing distances.

use std::time::Duration;

/// The first round after a hint.
const SOON: Duration = Duration::from_millis(200);
/// After the first failure.
const RETRY: Duration = Duration::from_secs(1);
/// After many.
const RETRY_AT_MOST: Duration = Duration::from_secs(15);

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    every: Duration,
    next: Duration,
    failing: bool,
}

impl Pace {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            next: every,
            failing: false,
        }
    }

    /// The pause after a round that went well.
    pub(super) fn after_success(&mut self) -> Duration {
        if std::mem::take(&mut self.failing) {
            self.next = self.every;
        }
        let pause = self.next;
        self.next = (pause * 2).min(self.every);
        pause
    }

    /// The pause after a round that did not.
    pub(super) fn after_failure(&mut self) -> Duration {
        if !std::mem::replace(&mut self.failing, true) {
            self.next = RETRY;
        }
        let pause = self.next;
        self.next = (pause * 2).min(RETRY_AT_MOST);
        pause
    }

    /// Something happened: the longest that the next round may wait from now on.
    pub(super) fn hinted(&mut self) -> Duration {
        if self.failing {
            return RETRY;
        }
        let pause = SOON.min(self.every);
        self.next = (pause * 2).min(self.every);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(pauses: impl IntoIterator<Item = Duration>) -> Vec<u128> {
        pauses.into_iter().map(|p| p.as_millis()).collect()
    }

    #[test]
    fn a_hint_is_followed_by_rounds_at_growing_distances() {
        let mut pace = Pace::new(Duration::from_secs(5));
        assert_eq!(ms([pace.after_success(), pace.hinted()]), [5000, 200]);
        let next: Vec<_> = (0..6).map(|_| pace.after_success()).collect();
        assert_eq!(ms(next), [400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn who_does_not_answer_is_asked_less_and_less_and_hints_do_not_change_that() {
        let mut pace = Pace::new(Duration::from_secs(5));
        let pauses: Vec<_> = (0..6).map(|_| pace.after_failure()).collect();
        assert_eq!(ms(pauses), [1000, 2000, 4000, 8000, 15_000, 15_000]);
        assert_eq!(ms([pace.hinted(), pace.after_failure()]), [1000, 15_000]);
        assert_eq!(
            ms([pace.after_success(), pace.after_failure()]),
            [5000, 1000]
        );
    }
}

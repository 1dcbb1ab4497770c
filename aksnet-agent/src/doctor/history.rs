//! The *history*: a few tallies of the last minutes, so that "lately" can be told from "ever"; and since when a service
//! waits for its load balancer.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{evidence::Count, tally::Tally};
use crate::conntrack::stats::Counters;

/// How far back the window reaches at the least, once there is as much.
pub const WINDOW: Duration = Duration::from_mins(5);
/// Between two tallies.
const STEP: Duration = Duration::from_secs(150);

/// What was counted at one moment.
#[derive(Debug)]
struct Slot {
    at: Instant,
    tally: Tally,
    kernel: Counters,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct History {
    nothing: Tally,
    slots: VecDeque<Slot>,
    /// Since when each service is pending, and whether it was when services were first looked at.
    pending: BTreeMap<(String, String), (Instant, bool)>,
    looked: bool,
}

impl History {
    /// Whether another tally is due.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        let last = self.slots.back();
        last.is_none_or(|slot| now.saturating_duration_since(slot.at) >= STEP)
    }

    /// Remembers a tally, and the kernel's own counters.
    pub fn add(&mut self, now: Instant, tally: Tally, kernel: Counters) {
        let tally = match self.slots.back() {
            Some(last) => tally.sharing(&last.tally),
            None => tally,
        };
        self.slots.push_back(Slot {
            at: now,
            tally,
            kernel,
        });
        // The first one stays as long as the second is not old enough to do for it.
        while self
            .slots
            .get(1)
            .is_some_and(|slot| now.saturating_duration_since(slot.at) >= WINDOW)
        {
            self.slots.pop_front();
        }
    }

    /// How long ago the window begins, and what had been counted then.
    #[must_use]
    pub fn window(&self, now: Instant) -> (Duration, &Tally) {
        self.slots
            .front()
            .map_or((Duration::ZERO, &self.nothing), |slot| {
                (now.saturating_duration_since(slot.at), &slot.tally)
            })
    }

    /// How far a counter of the kernel's has grown in the window. These do not begin with the agent, so what it was
    /// before it was first read does not count.
    #[must_use]
    pub fn kernel(
        &self,
        now: Option<u64>,
        counter: impl Fn(&Counters) -> Option<u64>,
    ) -> Option<Count> {
        let total = now?;
        let then = self.slots.iter().find_map(|slot| counter(&slot.kernel));
        Some(Count {
            total,
            recent: then.map_or(0, |then| total.saturating_sub(then)),
        })
    }

    /// Whether a counter of the kernel's is known now for the first time: its growth counts from here on.
    pub fn note_kernel(&mut self, now: Counters) {
        let Some(last) = self.slots.back_mut() else {
            return;
        };
        for (known, now) in [
            (&mut last.kernel.insert_failed, now.insert_failed),
            (&mut last.kernel.drop, now.drop),
            (&mut last.kernel.early_drop, now.early_drop),
        ] {
            if known.is_none() {
                *known = now;
            }
        }
    }

    /// These services wait for their load balancer now.
    pub fn note_pending(&mut self, now: Instant, pending: impl Iterator<Item = (String, String)>) {
        let first = !self.looked;
        self.looked = true;
        let mut then = std::mem::take(&mut self.pending);
        self.pending = pending
            .map(|service| {
                let since = then.remove(&service).unwrap_or((now, first));
                (service, since)
            })
            .collect();
    }

    /// For how long a service has waited, as far as was seen, and whether it did when the agent first looked.
    #[must_use]
    pub fn pending(&self, now: Instant, service: &(String, String)) -> (Duration, bool) {
        self.pending
            .get(service)
            .map_or((Duration::ZERO, !self.looked), |(since, first)| {
                (now.saturating_duration_since(*since), *first)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(drop: Option<u64>) -> Counters {
        Counters {
            drop,
            ..Counters::default()
        }
    }

    #[test]
    fn the_window_is_five_minutes_and_not_much_more_once_the_agent_is_as_old() {
        let start = Instant::now();
        let mut history = History::default();
        for step in 0..60 {
            let now = start + STEP * step;
            assert!(history.is_due(now));
            history.add(now, Tally::default(), Counters::default());
            assert!(!history.is_due(now + STEP / 2));
            let (age, _) = history.window(now + STEP / 2);
            if step < 2 {
                assert_eq!(age, STEP * step + STEP / 2);
            } else {
                assert!(age >= WINDOW && age < WINDOW + STEP, "{age:?}");
            }
        }
        assert!(history.slots.len() <= 4);
    }

    #[test]
    fn what_the_kernel_counted_before_it_was_first_read_is_not_recent() {
        let start = Instant::now();
        let mut history = History::default();
        history.add(start, Tally::default(), dropped(None));
        let drop = |history: &History, now| history.kernel(Some(now), |c| c.drop);
        let count = |total, recent| Some(Count { recent, total });
        assert_eq!(drop(&history, 100), count(100, 0));
        history.note_kernel(dropped(Some(100)));
        assert_eq!(drop(&history, 103), count(103, 3));
        history.note_kernel(dropped(Some(103)));
        assert_eq!(drop(&history, 104), count(104, 4));
        assert_eq!(history.kernel(None, |c| c.drop), None);
    }

    #[test]
    fn a_service_waits_since_it_was_first_seen_to() {
        let start = Instant::now();
        let service = |name: &str| ("shop".to_owned(), name.to_owned());
        let mut history = History::default();
        history.note_pending(start, [service("old")].into_iter());
        let later = start + STEP;
        history.note_pending(later, [service("old"), service("new")].into_iter());
        let now = later + STEP;
        assert_eq!(history.pending(now, &service("old")), (STEP * 2, true));
        assert_eq!(history.pending(now, &service("new")), (STEP, false));
        // It was served, and waits again.
        history.note_pending(now, [service("new")].into_iter());
        history.note_pending(now, [service("old"), service("new")].into_iter());
        assert_eq!(
            history.pending(now, &service("old")),
            (Duration::ZERO, false)
        );
    }
}

//! How the watches are doing, and when that is worth a log line.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use tracing::{info, warn};

use super::request::{Class, Failure};
use crate::identify::object::Kind;

/// What is wrong with any of the watches, for one log line on loss and one on recovery.
#[derive(Debug, Default)]
pub(super) struct Health {
    failing: Mutex<Failing>,
}

#[derive(Debug, Default)]
struct Failing {
    kinds: BTreeSet<Kind>,
    /// What was told since all watches ran: an outage that changes its face back and forth is one.
    told: Vec<Class>,
    since: Option<Instant>,
    /// The watch of policies is refused, and that was told.
    refused: bool,
}

/// What to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct News {
    /// All watches run again that were part of an outage.
    back: bool,
    /// A watch fails as none has before.
    lost: bool,
}

impl Failing {
    /// A watch fails. It is news unless one has failed so before.
    ///
    /// Policies that are refused are a state for good, of a role that does not allow them: they are no part of an outage,
    /// which would never end then, and the next one would not be told.
    fn lost(&mut self, kind: Kind, class: Class, now: Instant) -> News {
        if kind == Kind::Policy && class == Class::Status(403) {
            let told = self.refused;
            let back = self.back(kind);
            self.refused = true;
            return News { back, lost: !told };
        }
        self.kinds.insert(kind);
        self.since.get_or_insert(now);
        let lost = !self.told.contains(&class);
        if lost {
            self.told.push(class);
        }
        News { back: false, lost }
    }

    /// A watch runs. Whether it is the last that did not.
    fn back(&mut self, kind: Kind) -> bool {
        self.refused &= kind != Kind::Policy;
        let last = self.kinds.remove(&kind) && self.kinds.is_empty();
        if last {
            self.told.clear();
        }
        last
    }
}

impl Health {
    pub(super) fn lost(&self, kind: Kind, failure: &Failure) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let news = failing.lost(kind, failure.class, Instant::now());
        if news.back {
            failing.tell_back();
        }
        if news.lost {
            warn!(
                kind = kind.name(),
                "Kubernetes API: {}; what was last known stays, and it is tried again",
                failure.message
            );
        }
    }

    pub(super) fn back(&self, kind: Kind) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.back(kind) {
            failing.tell_back();
        }
    }
}

impl Failing {
    fn tell_back(&mut self) {
        let seconds = self.since.take().map_or(0, |s| s.elapsed().as_secs());
        info!(seconds, "Kubernetes API: all watches run again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: News = News {
        back: false,
        lost: false,
    };
    const LOST: News = News {
        back: false,
        lost: true,
    };
    const BACK: News = News {
        back: true,
        lost: false,
    };

    #[test]
    fn a_loss_is_told_once_for_all_watches_and_its_end_once() {
        let mut failing = Failing::default();
        let now = Instant::now();
        let gone = Class::Unreachable;
        assert_eq!(failing.lost(Kind::Node, gone, now), LOST);
        assert_eq!(failing.lost(Kind::Service, gone, now), NOTHING);
        assert_eq!(failing.lost(Kind::Node, gone, now), NOTHING);
        assert!(!failing.back(Kind::Node));
        assert!(!failing.back(Kind::Slice));
        assert!(failing.back(Kind::Service));
        assert!(!failing.back(Kind::Service));
    }

    #[test]
    fn a_second_cause_is_news_once_until_all_is_well() {
        let mut failing = Failing::default();
        let now = Instant::now();
        failing.lost(Kind::Node, Class::Unreachable, now);
        let denied = Class::Status(403);
        assert_eq!(failing.lost(Kind::Service, denied, now), LOST);
        for class in [denied, Class::Unreachable, denied] {
            assert_eq!(failing.lost(Kind::Service, class, now), NOTHING);
        }
        assert!(!failing.back(Kind::Node));
        assert!(failing.back(Kind::Service));
        assert_eq!(failing.lost(Kind::Node, denied, now), LOST);
    }

    #[test]
    fn policies_that_are_refused_are_told_once_and_hide_no_outage() {
        let mut failing = Failing::default();
        let now = Instant::now();
        let (gone, denied) = (Class::Unreachable, Class::Status(403));
        assert_eq!(failing.lost(Kind::Policy, denied, now), LOST);
        assert_eq!(failing.lost(Kind::Policy, denied, now), NOTHING);
        for _ in 0..2 {
            assert_eq!(failing.lost(Kind::Policy, gone, now), LOST);
            assert_eq!(failing.lost(Kind::Node, gone, now), NOTHING);
            assert!(!failing.back(Kind::Node));
            assert_eq!(failing.lost(Kind::Policy, denied, now), BACK);
            assert_eq!(failing.lost(Kind::Policy, denied, now), NOTHING);
        }
        // Allowed, and refused again.
        assert!(!failing.back(Kind::Policy));
        assert_eq!(failing.lost(Kind::Policy, denied, now), LOST);
        // The first refusal is what an outage ends with.
        assert!(!failing.back(Kind::Policy));
        assert_eq!(failing.lost(Kind::Policy, gone, now), LOST);
        let both = News {
            back: true,
            lost: true,
        };
        assert_eq!(failing.lost(Kind::Policy, denied, now), both);
        // A refusal of anything else is an outage.
        assert_eq!(failing.lost(Kind::Node, denied, now), LOST);
        assert!(failing.back(Kind::Node));
    }
}

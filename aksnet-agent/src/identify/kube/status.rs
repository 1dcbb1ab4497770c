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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Nothing,
    Lost,
    Back,
}

impl Failing {
    /// A watch fails. It is news unless one has failed so before.
    ///
    /// Policies that are refused are a state for good, of a role that does not allow them: they are no part of an outage,
    /// which would never end then, and the next one would not be told.
    fn lost(&mut self, kind: Kind, class: Class, now: Instant) -> Line {
        if kind == Kind::Policy && class == Class::Status(403) {
            let told = self.refused;
            let back = self.back(kind);
            self.refused = true;
            return if told { back } else { Line::Lost };
        }
        self.kinds.insert(kind);
        self.since.get_or_insert(now);
        if self.told.contains(&class) {
            return Line::Nothing;
        }
        self.told.push(class);
        Line::Lost
    }

    /// A watch runs. It is news when it is the last that did not.
    fn back(&mut self, kind: Kind) -> Line {
        self.refused &= kind != Kind::Policy;
        if self.kinds.remove(&kind) && self.kinds.is_empty() {
            self.told.clear();
            Line::Back
        } else {
            Line::Nothing
        }
    }
}

impl Health {
    pub(super) fn lost(&self, kind: Kind, failure: &Failure) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match failing.lost(kind, failure.class, Instant::now()) {
            Line::Nothing => {}
            Line::Lost => {
                let what = if kind == Kind::Policy {
                    "policies"
                } else {
                    "names"
                };
                warn!(
                    kind = kind.name(),
                    "Kubernetes API: {}; {what} stay as they were last known, and it is tried again",
                    failure.message
                );
            }
            Line::Back => failing.tell_back(),
        }
    }

    pub(super) fn back(&self, kind: Kind) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.back(kind) == Line::Back {
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

    #[test]
    fn a_loss_is_told_once_for_all_watches_and_its_end_once() {
        let mut failing = Failing::default();
        let now = Instant::now();
        let gone = Class::Unreachable;
        assert_eq!(failing.lost(Kind::Node, gone, now), Line::Lost);
        assert_eq!(failing.lost(Kind::Service, gone, now), Line::Nothing);
        assert_eq!(failing.lost(Kind::Node, gone, now), Line::Nothing);
        assert_eq!(failing.back(Kind::Node), Line::Nothing);
        assert_eq!(failing.back(Kind::Slice), Line::Nothing);
        assert_eq!(failing.back(Kind::Service), Line::Back);
        assert_eq!(failing.back(Kind::Service), Line::Nothing);
    }

    #[test]
    fn a_second_cause_is_news_once_until_all_is_well() {
        let mut failing = Failing::default();
        let now = Instant::now();
        failing.lost(Kind::Node, Class::Unreachable, now);
        let denied = Class::Status(403);
        assert_eq!(failing.lost(Kind::Service, denied, now), Line::Lost);
        for class in [denied, Class::Unreachable, denied] {
            assert_eq!(failing.lost(Kind::Service, class, now), Line::Nothing);
        }
        assert_eq!(failing.back(Kind::Node), Line::Nothing);
        assert_eq!(failing.back(Kind::Service), Line::Back);
        assert_eq!(failing.lost(Kind::Node, denied, now), Line::Lost);
    }

    #[test]
    fn policies_that_are_refused_are_told_once_and_hide_no_outage() {
        let mut failing = Failing::default();
        let now = Instant::now();
        let (gone, denied) = (Class::Unreachable, Class::Status(403));
        assert_eq!(failing.lost(Kind::Policy, denied, now), Line::Lost);
        assert_eq!(failing.lost(Kind::Policy, denied, now), Line::Nothing);
        for _ in 0..2 {
            assert_eq!(failing.lost(Kind::Policy, gone, now), Line::Lost);
            assert_eq!(failing.lost(Kind::Node, gone, now), Line::Nothing);
            assert_eq!(failing.back(Kind::Node), Line::Nothing);
            assert_eq!(failing.lost(Kind::Policy, denied, now), Line::Back);
            assert_eq!(failing.lost(Kind::Policy, denied, now), Line::Nothing);
        }
        // Allowed, and refused again.
        assert_eq!(failing.back(Kind::Policy), Line::Nothing);
        assert_eq!(failing.lost(Kind::Policy, denied, now), Line::Lost);
        // A refusal of anything else is an outage.
        assert_eq!(failing.lost(Kind::Node, denied, now), Line::Lost);
        assert_eq!(failing.back(Kind::Node), Line::Back);
    }
}

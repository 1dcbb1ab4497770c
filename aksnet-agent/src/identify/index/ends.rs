//! When policies *ended*: were deleted, or lost to other content.
//!
//! A connection that was allowed goes on when the policy that allowed it ends, as most engines judge new connections
//! alone. So whoever says that a connection should not be has to know of every policy that ended since it began, long
//! after the policy itself was forgotten.

use std::collections::HashMap;

use crate::{
    identify::object::{Moment, Text},
    policy::model::Selector,
};

/// Selectors that are told apart in a namespace; of more, the longest ended count for every pod there.
const SELECTORS: usize = 16;

/// Namespaces that are told apart. With more, all of them are forgotten, and the last end counts for every pod.
const NAMESPACES: usize = 4_096;

/// The ends of a namespace's policies.
#[derive(Debug, Default)]
struct Space {
    /// Of policies that selected so, when the last one ended; the longest ended first.
    ended: Vec<(Selector, Moment)>,
    /// When the last of all others ended.
    others: Moment,
}

/// All ends.
#[derive(Debug, Default)]
pub(super) struct Ends {
    spaces: HashMap<Text, Space>,
    /// When the last of those ended whose namespace was forgotten.
    others: Moment,
}

impl Ends {
    /// A policy ended.
    pub(super) fn note(&mut self, namespace: &Text, selector: &Selector, now: Moment) {
        if self.spaces.len() == NAMESPACES && !self.spaces.contains_key(namespace) {
            self.spaces.clear();
            self.others = now;
        }
        let space = self.spaces.entry(namespace.clone()).or_default();
        space.ended.retain(|(known, _)| known != selector);
        if space.ended.len() == SELECTORS {
            space.others = space.ended.remove(0).1;
        }
        space.ended.push((selector.clone(), now));
    }

    /// A namespace is gone, and its pods with it.
    pub(super) fn forget(&mut self, namespace: &str) {
        self.spaces.remove(namespace);
    }

    /// When the last policy ended that selected a pod with these labels, or may have done so; 0 if none did.
    pub(super) fn last(&self, namespace: &str, labels: &[(Text, Text)]) -> Moment {
        let Some(space) = self.spaces.get(namespace) else {
            return self.others;
        };
        let matching = space.ended.iter().rev();
        let last = matching.filter(|(selector, _)| selector.matches(labels));
        let last = last.map(|(_, moment)| *moment).next().unwrap_or(0);
        last.max(space.others).max(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::{Operator, Requirement};

    fn app(value: &str) -> Selector {
        Selector(Box::new([Requirement {
            key: "app".into(),
            operator: Operator::In,
            values: Box::new([value.into()]),
        }]))
    }

    #[test]
    fn an_end_counts_for_the_pods_that_were_selected() {
        let mut ends = Ends::default();
        let labels = |value: &str| [(Text::from("app"), Text::from(value))];
        ends.note(&"shop".into(), &app("web"), 10);
        ends.note(&"shop".into(), &app("db"), 20);
        ends.note(&"shop".into(), &app("web"), 30);
        let last = |ends: &Ends, namespace, value| ends.last(namespace, &labels(value));
        assert_eq!(last(&ends, "shop", "web"), 30);
        assert_eq!(last(&ends, "shop", "db"), 20);
        assert_eq!(last(&ends, "shop", "cart"), 0);
        assert_eq!(last(&ends, "other", "web"), 0);
        ends.forget("shop");
        assert_eq!(last(&ends, "shop", "web"), 0);
    }

    #[test]
    fn what_there_is_no_room_for_counts_for_every_pod() {
        let mut ends = Ends::default();
        let labels = [(Text::from("app"), Text::from("web"))];
        let count = SELECTORS as u64 + 3;
        for n in 1..=count {
            ends.note(&"shop".into(), &app(&n.to_string()), n);
        }
        assert_eq!(ends.spaces["shop"].ended.len(), SELECTORS);
        assert_eq!(ends.last("shop", &labels), 3);
        assert_eq!(ends.last("other", &labels), 0);
        for n in 0..NAMESPACES as u64 {
            ends.note(&format!("ns-{n}").into(), &app("x"), 100 + n);
        }
        assert!(ends.spaces.len() <= NAMESPACES);
        assert_eq!(ends.last("other", &labels), 99 + NAMESPACES as u64);
    }
}

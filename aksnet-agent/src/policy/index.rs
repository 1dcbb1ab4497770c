//! All policies, *indexed* by the pods that they select.
//!
//! A policy is in force in *versions*: each from when its content was first seen until other content replaced it or it
//! was deleted. Versions that ended are remembered for [`KEEP`]: an engine lags behind the API, and what it drops a
//! moment after a policy was deleted is still that policy's.
//!
//! Nothing of pods is kept here, so a change of labels costs nothing.

use std::collections::{HashMap, VecDeque};

use super::{
    flow::Pod,
    model::{NetworkPolicy, Operator, Side},
};
use crate::identify::object::{Moment, Text};

/// How long a version is remembered that is no longer in force: a minute, in nanoseconds.
pub const KEEP: Moment = 60_000_000_000;

/// Versions that ended are remembered at most this many: 68 changes each second before one is forgotten early.
const ENDED: usize = 4_096;

/// Not ended.
const EVER: Moment = Moment::MAX;

/// A policy's content, and when it was in force.
#[derive(Clone, Debug)]
pub struct Version {
    /// The content.
    pub policy: NetworkPolicy,
    /// When it was first seen.
    pub since: Moment,
    /// When it ended; [`Moment::MAX`] while it is in force.
    pub until: Moment,
    /// When the version before it ended, while that is remembered; 0 otherwise.
    before: Moment,
    /// The requirement of its selector whose postings lead to it.
    by: Option<usize>,
}

/// Which versions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Those in force at that moment.
    At(Moment),
    /// Every policy as an engine that lags behind may still have it: in the version it had `lag` before, or the first
    /// one since. So a policy that was deleted or changed less than `lag` ago counts with its old content, and not with
    /// its new one: ask [`When::At`] first.
    Lately {
        /// The moment in question.
        at: Moment,
        /// How far the engine may be behind, at most [`KEEP`].
        lag: Moment,
    },
}

impl When {
    fn counts(self, version: &Version) -> bool {
        match self {
            Self::At(at) => version.since <= at && at < version.until,
            Self::Lately { at, lag } => {
                let from = at.saturating_sub(lag);
                version.since <= at && from < version.until && version.before <= from
            }
        }
    }
}

/// Numbers of versions in the order in which they came.
type Posting = Vec<u32>;

/// The policies of a namespace.
#[derive(Debug, Default)]
struct Space {
    /// A policy's versions by its name, the oldest first.
    names: HashMap<Text, Vec<u32>>,
    /// Versions by a label that a pod needs: key, value.
    labels: HashMap<Text, HashMap<Text, Posting>>,
    /// Versions whose selector needs no label of a certain value.
    rest: Posting,
}

/// The index.
#[derive(Debug, Default)]
pub struct Policies {
    spaces: HashMap<Text, Space>,
    versions: Vec<Option<Version>>,
    free: Vec<u32>,
    /// When versions ended, in the order in which they did: moment, number.
    ended: VecDeque<(Moment, u32)>,
    /// Policies in force.
    len: usize,
}

impl Policies {
    /// A policy is there, with this content. Whether that is news: equal content changes nothing.
    pub fn apply(&mut self, policy: NetworkPolicy, now: Moment) -> bool {
        let last = self.get(&policy.namespace, &policy.name);
        if last.is_some_and(|last| last.policy == policy) {
            return false;
        }
        self.delete(&policy.namespace, &policy.name, now);
        // It ended last, so the bound has not taken it.
        let before = self
            .last(&policy.namespace, &policy.name)
            .and_then(|last| self.versions[last as usize].as_ref())
            .map_or(0, |version| version.until);
        let number = self.free.pop().unwrap_or_else(|| {
            self.versions.push(None);
            u32::try_from(self.versions.len() - 1).unwrap_or(u32::MAX)
        });
        let space = self.spaces.entry(policy.namespace.clone()).or_default();
        let names = space.names.entry(policy.name.clone()).or_default();
        names.push(number);
        let by = space.post(&policy, number);
        self.versions[number as usize] = Some(Version {
            policy,
            since: now,
            until: EVER,
            before,
            by,
        });
        self.len += 1;
        true
    }

    /// A policy is gone. Whether it was there.
    pub fn delete(&mut self, namespace: &str, name: &str, now: Moment) -> bool {
        self.expire(now);
        let Some(number) = self.last(namespace, name) else {
            return false;
        };
        let Some(version) = &mut self.versions[number as usize] else {
            return false;
        };
        if version.until != EVER {
            return false;
        }
        version.until = now.max(version.since);
        self.ended.push_back((version.until, number));
        self.len -= 1;
        while self.ended.len() > ENDED {
            self.forget_first();
        }
        true
    }

    /// Forgets versions that ended [`KEEP`] ago.
    pub fn expire(&mut self, now: Moment) {
        let before = now.saturating_sub(KEEP);
        while self.ended.front().is_some_and(|(until, _)| *until < before) {
            self.forget_first();
        }
    }

    /// How many policies are in force.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no policy is in force.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nothing is known of any policy, be it in force or ended.
    pub(super) fn is_blank(&self) -> bool {
        self.len == 0 && self.ended.is_empty()
    }

    /// The versions in force, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Version> {
        let all = self.versions.iter().flatten();
        all.filter(|version| version.until == EVER)
    }

    /// The version of a policy that is in force.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Version> {
        let number = self.last(namespace, name)?;
        let version = self.versions[number as usize].as_ref()?;
        (version.until == EVER).then_some(version)
    }

    /// The versions that isolate a pod in a direction: those that select it and speak of the direction.
    pub fn isolating<'p, 'a>(
        &'p self,
        pod: &Pod<'a>,
        side: Side,
        when: When,
    ) -> impl Iterator<Item = &'p Version> + use<'p, 'a> {
        let labels = pod.labels;
        let spaces = self.spaces.get(pod.namespace).into_iter();
        spaces
            .flat_map(move |space| {
                let posted = move |(key, value): &(Text, Text)| space.labels.get(key)?.get(value);
                let posted = labels.iter().filter_map(posted).flatten();
                posted.chain(&space.rest)
            })
            .filter_map(|number| self.versions[*number as usize].as_ref())
            .filter(move |version| {
                when.counts(version)
                    && version.policy.rules(side).is_some()
                    && version.policy.pods.matches(labels)
            })
    }

    /// Versions and namespaces that take room.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> (usize, usize) {
        (self.versions.iter().flatten().count(), self.spaces.len())
    }

    /// The newest version of a policy.
    fn last(&self, namespace: &str, name: &str) -> Option<u32> {
        self.spaces.get(namespace)?.names.get(name)?.last().copied()
    }

    fn forget_first(&mut self) {
        let Some((_, number)) = self.ended.pop_front() else {
            return;
        };
        let Some(version) = self.versions[number as usize].take() else {
            return;
        };
        self.free.push(number);
        let namespace = &version.policy.namespace;
        let Some(space) = self.spaces.get_mut(namespace) else {
            return;
        };
        space.withdraw(&version, number);
        if let Some(names) = space.names.get_mut(&version.policy.name) {
            names.retain(|one| *one != number);
            if let Some(next) = names.first() {
                if let Some(next) = &mut self.versions[*next as usize] {
                    next.before = 0;
                }
            } else {
                space.names.remove(&version.policy.name);
            }
        }
        if space.names.is_empty() {
            self.spaces.remove(namespace);
        }
    }
}

impl Space {
    /// Puts a version where the pods that it selects lead to it: to the label that fewest policies need so far. A label
    /// that all of them need is thus not what all of them are found by.
    fn post(&mut self, policy: &NetworkPolicy, number: u32) -> Option<usize> {
        let crowd = |key: &Text, values: &[Text]| -> usize {
            let Some(by_value) = self.labels.get(key) else {
                return 0;
            };
            let lists = values.iter().filter_map(|value| by_value.get(value));
            lists.map(Vec::len).sum()
        };
        let by = policy
            .pods
            .0
            .iter()
            .enumerate()
            .filter(|(_, requirement)| requirement.operator == Operator::In)
            .min_by_key(|(_, requirement)| crowd(&requirement.key, &requirement.values))
            .map(|(n, _)| n);
        let Some(requirement) = by.map(|n| &policy.pods.0[n]) else {
            self.rest.push(number);
            return None;
        };
        let by_value = self.labels.entry(requirement.key.clone()).or_default();
        for value in &requirement.values {
            let posting = by_value.entry(value.clone()).or_default();
            // A value may stand there twice.
            if posting.last() != Some(&number) {
                posting.push(number);
            }
        }
        by
    }

    fn withdraw(&mut self, version: &Version, number: u32) {
        let Some(requirement) = version.by.map(|n| &version.policy.pods.0[n]) else {
            self.rest.retain(|one| *one != number);
            return;
        };
        let Some(by_value) = self.labels.get_mut(&requirement.key) else {
            return;
        };
        for value in &requirement.values {
            if let Some(posting) = by_value.get_mut(value) {
                posting.retain(|one| *one != number);
                if posting.is_empty() {
                    by_value.remove(value);
                }
            }
        }
        if by_value.is_empty() {
            self.labels.remove(&requirement.key);
        }
    }
}

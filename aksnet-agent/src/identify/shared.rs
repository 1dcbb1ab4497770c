//! The index as the watches fill it and everybody else reads it, and how its sources are doing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde_json::{Value, json};

use super::{
    index::Index,
    object::{Kind, Moment},
    sink::{Change, Sink, Status},
};
use crate::metrics::Metrics;

/// An index behind a lock, and the status of each source. Put it into an `Arc`.
#[derive(Debug)]
pub struct Shared {
    index: RwLock<Index>,
    sources: Mutex<BTreeMap<Kind, Status>>,
}

/// Now, by the clock of the datapath.
#[must_use]
pub fn now() -> Moment {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    // Linux always has this clock, and it begins with the boot.
    nix::time::clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or_default();
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or_default()
    })
}

impl Shared {
    /// Shares an index.
    #[must_use]
    pub const fn new(index: Index) -> Self {
        Self {
            index: RwLock::new(index),
            sources: Mutex::new(BTreeMap::new()),
        }
    }

    /// The index to look things up in. Not to be held for long, nor across an `await`: the watches wait.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        // A panic inside of the index is a bug, but what it knows is still better than nothing.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index to change.
    pub fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How each source is doing that has told yet.
    #[must_use]
    pub fn sources(&self) -> BTreeMap<Kind, Status> {
        let sources = self.sources.lock();
        sources.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For `/status`: by source, how it is doing and how many objects are known.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let counts: BTreeMap<Kind, usize> = self.read().counts().into_iter().collect();
        let sources = self.sources();
        let sources = sources.iter().map(|(kind, status)| {
            let mut value = json!(status);
            value["objects"] = json!(counts.get(kind));
            (kind.name().to_owned(), value)
        });
        Value::Object(sources.collect())
    }
}

impl Shared {
    /// Sets the metrics of each source that has told how it is doing: called before a scrape, or each sweep.
    pub fn show(&self, metrics: &Metrics) {
        let counts = self.read().counts();
        let sources = self.sources();
        for (kind, count) in counts {
            if let Some(status) = sources.get(&kind) {
                metrics.set_identity_objects(kind.name(), count as u64);
                metrics.set_identity_synced(kind.name(), status.synced && status.connected);
            }
        }
    }
}

impl Sink for Shared {
    fn fold(&self, changes: &mut Vec<Change>) {
        let now = now();
        let mut index = self.write();
        for change in changes.drain(..) {
            match change {
                Change::Begin(kind) => index.begin(kind),
                Change::Apply(object) => index.apply(object, now),
                Change::Delete(key) => index.delete(&key, now),
                Change::Settle(kind) => index.settle(kind, now),
            }
        }
    }

    fn status(&self, kind: Kind, status: &Status) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.insert(kind, status.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identify::object::{Namespace, Object},
        metrics::MetricsConfig,
    };

    #[test]
    fn changes_are_folded_and_shown_with_their_source() {
        let shared = Shared::new(Index::new("node"));
        let object = Object::Namespace(Namespace {
            name: "shop".into(),
            labels: [].into(),
        });
        let kind = Kind::Namespace;
        let mut changes = vec![
            Change::Begin(kind),
            Change::Apply(object.clone()),
            Change::Settle(kind),
        ];
        shared.fold(&mut changes);
        assert!(changes.is_empty());
        assert!(shared.read().synced(kind));
        let status = Status {
            synced: true,
            ..Status::default()
        };
        shared.status(kind, &status);
        assert_eq!(shared.to_json()["namespaces"]["objects"], 1);
        assert_eq!(shared.to_json()["namespaces"]["synced"], true);
        let metrics = Metrics::new(MetricsConfig::default());
        shared.show(&metrics);
        let text = metrics.encode().unwrap();
        assert!(text.contains("aksnet_agent_identity_objects{kind=\"namespaces\"} 1"));
        // A list was complete, but nothing is watched.
        assert!(text.contains("aksnet_agent_identity_synced{source=\"namespaces\"} 0"));
        assert!(!text.contains("kind=\"nodes\""));
        shared.fold(&mut vec![Change::Delete(object.key())]);
        assert_eq!(shared.to_json()["namespaces"]["objects"], 0);
    }
}

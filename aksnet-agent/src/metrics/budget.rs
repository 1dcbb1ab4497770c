//! The series budget: how many label sets one family may have, and where the others go.
//!
//! A family's series live in a flat table; a *handle* is an index into it, so that adding to a known series
//! costs nothing but the addition. A label set beyond the budget is *folded*: its identity labels become
//! `other`, so that totals by class, NAT and reach stay exact. A part of the budget is kept for those
//! series; should even that be used up, one last series takes the rest, with `other` for every label.

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher,
};

use super::labels::{LabelSet, OTHER, Symbols};

/// How many series a family may have unless told otherwise.
pub const DEFAULT_LIMIT: usize = 5_000;

/// Folded label sets are told apart, to count each once, up to this many times the limit.
const FOLDED_MEMORY: usize = 8;

/// The index of a series in its table.
pub type Handle = u32;

/// The series of one family.
#[derive(Clone, Debug)]
pub struct SeriesTable<K, V> {
    index: HashMap<K, Handle>,
    /// `None`: the last series, all of whose labels are `other`.
    keys: Vec<Option<K>>,
    values: Vec<V>,
    last: Option<Handle>,
    limit: usize,
    folded: HashSet<u64>,
}

impl<K: LabelSet, V: Default> SeriesTable<K, V> {
    /// A table of at most `limit` series, at least one.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            index: HashMap::new(),
            keys: Vec::new(),
            values: Vec::new(),
            last: None,
            limit: limit.max(1),
            folded: HashSet::new(),
        }
    }

    /// Series kept back for folded label sets.
    fn reserve(&self) -> usize {
        (self.limit / 4).clamp(1, 256)
    }

    /// The series of a label set, or the one that stands for it.
    pub fn handle(&mut self, key: K) -> Handle {
        if let Some(handle) = self.index.get(&key) {
            return *handle;
        }
        if self.values.len() < self.limit - self.reserve() {
            return self.insert(Some(key));
        }
        let folded = key.folded();
        if folded != key {
            self.note(&key);
            if let Some(handle) = self.index.get(&folded) {
                return *handle;
            }
        }
        if self.values.len() + 1 < self.limit {
            return self.insert(Some(folded));
        }
        if folded == key {
            self.note(&key);
        }
        if let Some(handle) = self.last {
            return handle;
        }
        let handle = self.insert(None);
        self.last = Some(handle);
        handle
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a table of 2^32 series would not fit into memory"
    )]
    fn insert(&mut self, key: Option<K>) -> Handle {
        let handle = self.values.len() as Handle;
        self.keys.push(key);
        self.values.push(V::default());
        if let Some(key) = key {
            self.index.insert(key, handle);
        }
        handle
    }

    fn note(&mut self, key: &K) {
        if self.folded.len() < self.limit.saturating_mul(FOLDED_MEMORY) {
            self.folded.insert(self.index.hasher().hash_one(key));
        }
    }

    /// The label set of a series; `None` is the last one, which stands for whatever had no room.
    #[must_use]
    pub fn key(&self, handle: Handle) -> Option<&K> {
        self.keys.get(handle as usize)?.as_ref()
    }

    /// The value of a series.
    pub fn at(&mut self, handle: Handle) -> &mut V {
        &mut self.values[handle as usize]
    }

    /// The value of a label set's series.
    pub fn entry(&mut self, key: K) -> &mut V {
        let handle = self.handle(key);
        self.at(handle)
    }

    /// All series with their label values.
    pub fn iter<'a>(
        &'a self,
        symbols: &'a Symbols,
    ) -> impl Iterator<Item = (Vec<String>, &'a V)> + 'a {
        self.series()
            .map(|(key, value)| (Self::labels(key, symbols), value))
    }

    /// All series; `None` is the last one, which stands for whatever had no room.
    pub fn series(&self) -> impl Iterator<Item = (Option<&K>, &V)> {
        self.keys.iter().map(Option::as_ref).zip(&self.values)
    }

    /// The label values of a series.
    #[must_use]
    pub fn labels(key: Option<&K>, symbols: &Symbols) -> Vec<String> {
        key.map_or_else(
            || vec![OTHER.to_owned(); K::NAMES.len()],
            |key| key.values(symbols),
        )
    }

    /// How many series there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is none yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// How many different label sets were folded; at most eight times the limit are told apart.
    #[must_use]
    pub fn folded(&self) -> u64 {
        self.folded.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A label set of a fixed label and an identity, 0 standing for `other`.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    struct Pair(u8, u32);

    impl LabelSet for Pair {
        const NAMES: &'static [&'static str] = &["kind", "who"];
        fn folded(self) -> Self {
            Self(self.0, 0)
        }
        fn values(&self, _: &Symbols) -> Vec<String> {
            vec![self.0.to_string(), self.1.to_string()]
        }
    }

    #[test]
    fn label_sets_beyond_the_budget_share_the_series_of_their_kind() {
        let mut table: SeriesTable<Pair, u64> = SeriesTable::new(8);
        for who in 1..=30 {
            *table.entry(Pair(1, who)) += 1;
            *table.entry(Pair(2, who)) += 1;
        }
        assert_eq!(table.len(), 8);
        assert_eq!(table.folded(), 60 - 6);
        assert_eq!(*table.entry(Pair(1, 0)), 27);
    }

    #[test]
    fn a_budget_of_one_is_one_series() {
        let mut table: SeriesTable<Pair, u64> = SeriesTable::new(1);
        *table.entry(Pair(1, 1)) += 1;
        *table.entry(Pair(2, 2)) += 2;
        let all: Vec<_> = table
            .iter(&Symbols::default())
            .map(|(l, v)| (l, *v))
            .collect();
        assert_eq!(all, [(vec![OTHER.to_owned(), OTHER.to_owned()], 3)]);
    }

    proptest! {
        #[test]
        fn totals_stay_exact_within_every_budget(
            limit in 1usize..40,
            adds in prop::collection::vec((0u8..6, 1u32..60, 1u64..1000), 0..400),
        ) {
            let mut table: SeriesTable<Pair, u64> = SeriesTable::new(limit);
            for (kind, who, n) in &adds {
                *table.entry(Pair(*kind, *who)) += n;
            }
            prop_assert!(table.len() <= limit);
            let total: u64 = table.iter(&Symbols::default()).map(|(_, v)| *v).sum();
            prop_assert_eq!(total, adds.iter().map(|a| a.2).sum::<u64>());
            let sets: HashSet<_> = adds.iter().map(|a| (a.0, a.1)).collect();
            if sets.len() + table.reserve() <= limit {
                prop_assert_eq!(table.folded(), 0);
                prop_assert_eq!(table.len(), sets.len());
            }
        }
    }
}

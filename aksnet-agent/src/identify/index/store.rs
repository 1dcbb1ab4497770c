//! A *store*: the objects of one kind, and what its source has said about them since it last listed.

use std::collections::HashMap;

use super::{Name, hash::Mixing};

/// Which object of a kind: namespace and name.
pub(super) type Id = (Name, Name);

/// One object.
#[derive(Debug)]
pub(super) struct Entry<T> {
    /// The number under which the object holds addresses; no two objects have the same.
    pub(super) owner: u64,
    /// The listing in which it was last seen.
    seen: u32,
    pub(super) object: T,
}

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Store<T> {
    entries: HashMap<Id, Entry<T>, Mixing>,
    listing: u32,
    /// It lists anew: what it has not seen since is not known to be there.
    pub(super) relisting: bool,
    /// It has listed once in full.
    pub(super) synced: bool,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            entries: HashMap::default(),
            listing: 0,
            relisting: false,
            synced: false,
        }
    }
}

impl<T> Store<T> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, id: Id) -> Option<&Entry<T>> {
        self.entries.get(&id)
    }

    /// Puts an object in, and gives back what was there under its name.
    pub(super) fn put(&mut self, id: Id, owner: u64, object: T) -> Option<T> {
        let entry = Entry {
            owner,
            seen: self.listing,
            object,
        };
        self.entries.insert(id, entry).map(|old| old.object)
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Entry<T>> {
        self.entries.remove(&id)
    }

    /// The object with this number, searched for from end to end.
    pub(super) fn owned_by(&self, owner: u64) -> Option<&T> {
        let mut entries = self.entries.values();
        let entry = entries.find(|entry| entry.owner == owner)?;
        Some(&entry.object)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.values().map(|entry| &entry.object)
    }

    pub(super) fn begin(&mut self) {
        self.listing = self.listing.wrapping_add(1);
        self.relisting = true;
    }

    /// Ends a listing: what it did not see, and whether it is the first.
    pub(super) fn settle(&mut self) -> (Vec<Id>, bool) {
        let gone = if std::mem::take(&mut self.relisting) {
            let unseen = |entry: &Entry<T>| entry.seen != self.listing;
            self.entries
                .iter()
                .filter(|(_, entry)| unseen(entry))
                .map(|(id, _)| *id)
                .collect()
        } else {
            Vec::new()
        };
        (gone, !std::mem::replace(&mut self.synced, true))
    }
}

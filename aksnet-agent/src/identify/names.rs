//! Names: strings that an index hands out as numbers, so that a flow carries four bytes instead of a text.
//!
//! Every use of a name is counted. Pods come with names of their own, so what nobody uses any more is forgotten,
//! and its number serves another string.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::object::{Labels, NamedPorts, Text};

/// A string of an index: its place in the table, and how often that place was filled before (modulo 256).
///
/// Only the index that gave it can read it. It lasts as long as what it names, and then as long as the index keeps
/// what has ended; after that its text is empty until the place has been filled 256 times more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Name(u32);

/// Places a table has at most.
const PLACES: usize = 1 << 24;

impl Name {
    /// The empty string.
    pub const EMPTY: Self = Self(0);

    /// Whether it is the empty string.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn place(self) -> usize {
        (self.0 >> 8) as usize
    }
}

/// One place of the table.
#[derive(Debug)]
struct Place {
    text: Text,
    name: Name,
    uses: u32,
}

/// The table.
#[derive(Debug)]
pub(super) struct Names {
    places: Vec<Place>,
    numbers: HashMap<Text, Name>,
    /// Places that are free, the longest free first.
    free: VecDeque<u32>,
}

impl Names {
    pub(super) fn new() -> Self {
        let empty = Place {
            text: Text::default(),
            name: Name::EMPTY,
            uses: 0,
        };
        Self {
            places: vec![empty],
            numbers: HashMap::new(),
            free: VecDeque::new(),
        }
    }

    /// The text of a name; empty when nothing uses it any more.
    pub(super) fn text(&self, name: Name) -> &str {
        self.places
            .get(name.place())
            .filter(|place| place.name == name)
            .map_or("", |place| &place.text)
    }

    /// The name of a string that something uses.
    pub(super) fn find(&self, text: &str) -> Option<Name> {
        if text.is_empty() {
            return Some(Name::EMPTY);
        }
        self.numbers.get(text).copied()
    }

    /// A use of a string. A table that is full has no name for it but the empty one.
    pub(super) fn using(&mut self, text: &Text) -> Name {
        if let Some(name) = self.find(text) {
            return self.again(name);
        }
        let place = if let Some(place) = self.free.pop_front() {
            place as usize
        } else if self.places.len() < PLACES {
            self.places.push(Place {
                text: Text::default(),
                name: Name(u32::try_from(self.places.len() << 8).unwrap_or(0)),
                uses: 0,
            });
            self.places.len() - 1
        } else {
            return Name::EMPTY;
        };
        let entry = &mut self.places[place];
        entry.text = text.clone();
        entry.uses = 1;
        self.numbers.insert(text.clone(), entry.name);
        entry.name
    }

    /// One more use of a name that is in use.
    pub(super) fn again(&mut self, name: Name) -> Name {
        if !name.is_empty()
            && let Some(place) = self.places.get_mut(name.place())
        {
            debug_assert!(place.name == name, "a name is in use");
            place.uses = place.uses.saturating_add(1);
        }
        name
    }

    /// A use has ended.
    pub(super) fn done(&mut self, name: Name) {
        if name.is_empty() {
            return;
        }
        let Some(place) = self.places.get_mut(name.place()) else {
            return;
        };
        debug_assert!(place.name == name && place.uses > 0, "a name is in use");
        place.uses = place.uses.saturating_sub(1);
        if place.uses > 0 {
            return;
        }
        let text = std::mem::take(&mut place.text);
        // The next string here is another name: the low byte counts the fillings.
        place.name = Name(name.0 & !0xff | (name.0.wrapping_add(1) & 0xff));
        self.numbers.remove(&text);
        self.free.push_back(name.0 >> 8);
    }

    /// One more use of each.
    pub(super) fn use_all<const N: usize>(&mut self, names: [Name; N]) {
        for name in names {
            self.again(name);
        }
    }

    /// A use of each has ended.
    pub(super) fn end_all<const N: usize>(&mut self, names: [Name; N]) {
        for name in names {
            self.done(name);
        }
    }

    /// How many strings are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}

/// What selectors see of a pod: the same for all pods of a workload, so that each of them has one pointer for it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) labels: Labels,
    /// `None`: not known.
    pub(super) named_ports: Option<NamedPorts>,
}

/// Strings, label sets and ports that pods of one workload share: what arrives anew is exchanged for what is there.
#[derive(Debug, Default)]
pub(super) struct Pool {
    texts: HashSet<Text>,
    sets: HashSet<Labels>,
    ports: HashSet<NamedPorts>,
    shapes: HashSet<Arc<Shape>>,
    /// Sets when the pool was last swept.
    swept: usize,
}

impl Pool {
    pub(super) fn shape(
        &mut self,
        labels: &Labels,
        named_ports: Option<&[(Text, u8, u16)]>,
    ) -> Arc<Shape> {
        let shape = Shape {
            labels: self.labels(labels),
            named_ports: named_ports.map(|ports| self.ports(ports)),
        };
        if let Some(known) = self.shapes.get(&shape) {
            return known.clone();
        }
        let shape = Arc::new(shape);
        self.shapes.insert(shape.clone());
        shape
    }

    fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.sets.get(labels) {
            return known.clone();
        }
        let shared: Labels = labels
            .iter()
            .map(|(key, value)| (self.text(key), self.text(value)))
            .collect();
        self.sets.insert(shared.clone());
        shared
    }

    fn ports(&mut self, ports: &[(Text, u8, u16)]) -> NamedPorts {
        if let Some(known) = self.ports.get(ports) {
            return known.clone();
        }
        let shared: NamedPorts = ports
            .iter()
            .map(|(name, protocol, port)| (self.text(name), *protocol, *port))
            .collect();
        self.ports.insert(shared.clone());
        shared
    }

    fn text(&mut self, text: &Text) -> Text {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        self.texts.insert(text.clone());
        text.clone()
    }

    /// Forgets what only the pool holds, once it has grown by half since it last did.
    pub(super) fn sweep(&mut self) {
        if self.len() < self.swept + self.swept / 2 + 64 {
            return;
        }
        self.shapes.retain(|shape| Arc::strong_count(shape) > 1);
        self.sets.retain(|set| Arc::strong_count(set) > 1);
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.swept = self.len();
    }

    /// Sets of labels and of ports.
    pub(super) fn len(&self) -> usize {
        self.sets.len() + self.ports.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(s: &str) -> Text {
        s.into()
    }

    #[test]
    fn one_string_is_one_name_while_it_is_used() {
        let mut names = Names::new();
        let (a, b) = (names.using(&text("a")), names.using(&text("b")));
        assert_eq!(names.using(&text("a")), a);
        assert_ne!(a, b);
        assert_eq!((names.text(a), names.text(b)), ("a", "b"));
        names.done(a);
        assert_eq!(names.text(a), "a");
        names.done(a);
        assert_eq!(names.text(a), "");
        assert_eq!(names.find("a"), None);
    }

    #[test]
    fn the_empty_string_is_always_there_and_never_counted() {
        let mut names = Names::new();
        assert_eq!(names.using(&text("")), Name::EMPTY);
        names.done(Name::EMPTY);
        assert_eq!(names.text(Name::EMPTY), "");
        assert_eq!(names.len(), 0);
    }

    #[test]
    fn a_forgotten_name_does_not_read_as_its_successor() {
        let mut names = Names::new();
        let old = names.using(&text("old"));
        names.done(old);
        let new = names.using(&text("new"));
        assert_eq!((names.text(old), names.text(new)), ("", "new"));
    }

    #[test]
    fn pods_that_come_and_go_do_not_make_the_table_grow() {
        let mut names = Names::new();
        for n in 0..10_000 {
            let name = names.using(&text(&format!("pod-{n}")));
            names.done(name);
        }
        assert_eq!((names.len(), names.places.len()), (0, 2));
    }

    #[test]
    fn equal_label_sets_are_one_allocation_and_unused_ones_go() {
        let set = |n: u32| -> Labels { [(text("app"), text(&n.to_string()))].into() };
        let mut pool = Pool::default();
        let (a, b) = (pool.labels(&set(1)), pool.labels(&set(1)));
        assert!(Arc::ptr_eq(&a, &b));
        for n in 0..1000 {
            pool.labels(&set(n + 2));
        }
        pool.sweep();
        assert_eq!(pool.len(), 1);
        assert_eq!(pool.texts.len(), 2);
    }

    proptest! {
        #[test]
        fn a_used_name_reads_as_its_string(steps in prop::collection::vec((0u8..20, any::<bool>()), 0..300)) {
            let mut names = Names::new();
            let mut used: Vec<(Name, String)> = Vec::new();
            for (n, begin) in steps {
                if begin {
                    let string = format!("s{n}");
                    used.push((names.using(&text(&string)), string));
                } else if !used.is_empty() {
                    let (name, _) = used.swap_remove(usize::from(n) % used.len());
                    names.done(name);
                }
                for (name, string) in &used {
                    prop_assert_eq!(names.text(*name), string);
                }
            }
            for (name, _) in used {
                names.done(name);
            }
            prop_assert_eq!(names.len(), 0);
        }
    }
}

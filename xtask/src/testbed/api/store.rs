//! What the server holds: objects by kind, and what became of them since.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

/// The paths of the collections, by the kind of their objects.
const PATHS: [(&str, &str); 6] = [
    ("Pod", "/api/v1/pods"),
    ("Service", "/api/v1/services"),
    ("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"),
    ("Node", "/api/v1/nodes"),
    ("Namespace", "/api/v1/namespaces"),
    (
        "NetworkPolicy",
        "/apis/networking.k8s.io/v1/networkpolicies",
    ),
];

fn path_of(kind: &str) -> &'static str {
    let known = PATHS.iter().find(|(name, _)| *name == kind);
    known
        .unwrap_or_else(|| panic!("objects of kind '{kind}' are not served"))
        .1
}

/// Makes the object with this number.
pub(super) type Make = Arc<dyn Fn(usize) -> String + Send + Sync>;

/// Something that happened.
pub(super) enum Entry {
    /// An object was as the first and is as the second.
    Changed(Option<Arc<Value>>, Option<Arc<Value>>),
    /// A line that watches are to have.
    Line(String),
    Bookmark,
}

#[derive(Default)]
pub(super) struct Collection {
    objects: BTreeMap<(String, String), Arc<Value>>,
    generated: Option<(usize, Make)>,
    pub(super) history: Vec<(u64, Entry)>,
}

#[derive(Default)]
pub(super) struct Store {
    pub(super) version: u64,
    /// Versions below are forgotten.
    pub(super) oldest: u64,
    /// Watches that began in an earlier era are over.
    pub(super) era: u64,
    pub(super) page_always: bool,
    collections: BTreeMap<&'static str, Collection>,
}

fn key(object: &Value) -> (String, String) {
    let text = |name: &str| {
        object["metadata"][name]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (text("namespace"), text("name"))
}

impl Store {
    fn collection_of(&mut self, kind: &str) -> &mut Collection {
        self.collections.entry(path_of(kind)).or_default()
    }

    pub(super) fn serves(path: &str) -> bool {
        PATHS.iter().any(|(_, known)| *known == path)
    }

    pub(super) fn collection(&mut self, path: &str) -> Option<&mut Collection> {
        let path = PATHS.iter().find(|(_, known)| *known == path)?.1;
        Some(self.collections.entry(path).or_default())
    }

    pub(super) fn apply(&mut self, mut object: Value) {
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let key = key(&object);
        assert!(!key.1.is_empty(), "an object without a name");
        let object = Arc::new(object);
        let collection = self.collection_of(&kind);
        let before = collection.objects.insert(key, Arc::clone(&object));
        let entry = Entry::Changed(before, Some(object));
        collection.history.push((version, entry));
    }

    pub(super) fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        let version = self.version + 1;
        let collection = self.collection_of(kind);
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(before) = collection.objects.remove(&key) {
            let entry = Entry::Changed(Some(before), None);
            collection.history.push((version, entry));
            self.version = version;
        }
    }

    pub(super) fn generate(&mut self, kind: &str, count: usize, make: Make) {
        self.version += 1;
        self.collection_of(kind).generated = Some((count, make));
    }

    pub(super) fn inject(&mut self, kind: &str, line: &str) {
        self.version += 1;
        let entry = (self.version, Entry::Line(line.to_owned()));
        self.collection_of(kind).history.push(entry);
    }

    pub(super) fn bookmark(&mut self) {
        self.version += 1;
        for (_, path) in PATHS {
            let collection = self.collections.entry(path).or_default();
            collection.history.push((self.version, Entry::Bookmark));
        }
    }

    pub(super) fn forget(&mut self, end_watches: bool) {
        self.version += 1;
        self.oldest = self.version;
        self.era += u64::from(end_watches);
        for collection in self.collections.values_mut() {
            collection.history.clear();
        }
    }
}

impl Collection {
    /// How many there are, selected or not.
    pub(super) fn len(&self) -> usize {
        self.objects.len() + self.generated.as_ref().map_or(0, |(count, _)| *count)
    }

    /// The objects from this place on that are selected, each with the place after it.
    pub(super) fn from(&self, place: usize, selector: &str) -> impl Iterator<Item = (usize, Item)> {
        let held = self.objects.values().enumerate().skip(place);
        let held = held.filter(|(_, object)| selects(selector, object));
        let held = held.map(|(at, object)| (at + 1, Item::Held(Arc::clone(object))));
        let first = self.objects.len();
        let any = selector
            .split(',')
            .all(|term| term.is_empty() || term.contains("!="));
        let generated = self.generated.iter().filter(move |_| any);
        let made = generated.flat_map(move |(count, make)| {
            (place.max(first)..first + count)
                .map(move |at| (at + 1, Item::Made(at - first, Arc::clone(make))))
        });
        held.chain(made)
    }
}

/// An object of a list.
pub(super) enum Item {
    Held(Arc<Value>),
    Made(usize, Make),
}

impl Item {
    pub(super) fn json(&self) -> String {
        match self {
            Self::Held(object) => object.to_string(),
            Self::Made(number, make) => make(*number),
        }
    }
}

/// Whether a field selector selects an object. What an object does not have is empty.
pub(super) fn selects(selector: &str, object: &Value) -> bool {
    let value = |path: &str| {
        let found = path
            .split('.')
            .try_fold(object, |value, key| value.get(key));
        found.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    selector
        .split(',')
        .filter(|term| !term.is_empty())
        .all(|term| {
            if let Some((path, wanted)) = term.split_once("!=") {
                value(path) != wanted
            } else {
                term.split_once('=')
                    .is_some_and(|(path, wanted)| value(path) == wanted)
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select_by_field() {
        let pod = json!({"spec": {"nodeName": "a"}});
        let waiting = json!({"spec": {}});
        assert!(selects("", &pod));
        assert!(selects("spec.nodeName=a", &pod));
        assert!(!selects("spec.nodeName!=a", &pod));
        assert!(selects("spec.nodeName!=b,spec.nodeName!=", &pod));
        assert!(!selects("spec.nodeName!=b,spec.nodeName!=", &waiting));
    }
}

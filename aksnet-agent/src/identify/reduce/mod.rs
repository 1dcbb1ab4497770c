//! *Reduction*: JSON of an API object in, what the agent keeps of it out. Pure.
//!
//! What is missing or of the wrong type is left out and told as *odd*; the rest is used. An object without a name is
//! none. Field names and meanings: k8s.io/api `core/v1/types.go`, `discovery/v1/types.go`, `networking/v1/types.go`.

mod field;

mod symbols;

// One file per kind of object.
mod pod;

mod service;

mod slice;

mod node;

mod policy;

use std::net::IpAddr;

use ipnet::IpNet;

use aksnet_common::flow::Addr;

use self::{
    field::{Field, Pairs, Shape, shape},
    symbols::Symbols,
};
use super::object::{Kind, Labels, Object, Text};

/// What became of an object.
#[derive(Debug, Default)]
pub struct Reduced {
    /// What is kept; none if it has no name.
    pub object: Option<Object>,
    /// `metadata.resourceVersion`; empty if it has none.
    pub version: String,
    /// Namespace and name as far as they are known, for the log: `shop/web-0`.
    pub label: String,
    /// The fields of which something was left out; each at most once.
    pub odd: Vec<&'static str>,
}

/// What an event of a watch says.
#[derive(Debug)]
pub enum Event {
    /// The object is so now (`ADDED`, `MODIFIED`).
    Applied(Reduced),
    /// The object is gone, or is not selected any more (`DELETED`).
    Deleted(Reduced),
    /// The watch has come so far (`BOOKMARK`); its `resourceVersion`.
    Bookmark(String),
    /// The watch ends (`ERROR`).
    Error(Problem),
    /// Nothing that is known; its type as it was written.
    Unknown(String),
}

/// A `Status` object: how the API server says what is wrong (apimachinery `meta/v1/types.go`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// As an HTTP status; 0 if it has none.
    pub code: u64,
    /// One word: `Expired`, `Forbidden`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// `details.retryAfterSeconds`; 0 if it has none.
    pub retry_after: u64,
}

/// The end of a page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageEnd {
    /// The list's `resourceVersion`; empty if it has none.
    pub version: String,
    /// What to ask the next page with; empty after the last.
    pub next: String,
}

shape! {
    Metadata {
        name: String = "name",
        namespace: String = "namespace",
        uid: String = "uid",
        version: String = "resourceVersion",
        labels: Pairs = "labels",
        owners: Vec<Field<Owner>> = "ownerReferences",
    }
}

shape! {
    Owner {
        kind: String = "kind",
        name: String = "name",
        controller: bool = "controller",
    }
}

shape! {
    RawProblem {
        code: u64 = "code",
        reason: String = "reason",
        message: String = "message",
        details: Details = "details",
    }
}

shape! {
    Details {
        retry_after: u64 = "retryAfterSeconds",
    }
}

shape! {
    ListMetadata {
        version: String = "resourceVersion",
        next: String = "continue",
    }
}

shape! {
    RawPageEnd {
        metadata: ListMetadata = "metadata",
    }
}

/// A kind of object as it is written.
trait Raw: Shape + Default {
    /// Its metadata, which is left empty.
    fn metadata(&mut self) -> Field<Metadata>;

    /// What is kept of it.
    fn reduce(self, kind: Kind, about: About, context: &mut Context<'_>) -> Object;
}

/// What metadata says.
struct About {
    name: Text,
    namespace: Text,
    uid: Text,
    labels: Labels,
    /// The owner that is the controller: kind and name.
    owner: Option<(String, String)>,
}

/// What reducing needs besides the object.
struct Context<'a> {
    symbols: &'a mut Symbols,
    odd: &'a mut Vec<&'static str>,
}

impl Context<'_> {
    fn text(&mut self, field: Field<String>, name: &'static str) -> Text {
        field
            .take(name, self.odd)
            .map_or_else(Text::default, |text| self.symbols.text(&text))
    }

    fn number<T: TryFrom<u64> + Default>(&mut self, field: Field<u64>, name: &'static str) -> T {
        let Some(number) = field.take(name, self.odd) else {
            return T::default();
        };
        T::try_from(number).unwrap_or_else(|_| {
            self.odd.push(name);
            T::default()
        })
    }

    /// A port that must be there: 1 to 65535.
    fn port(&mut self, field: Field<u64>, name: &'static str) -> Option<u16> {
        let port = self.number(field, name);
        (port != 0).then_some(port)
    }

    fn address(&mut self, text: &str, name: &'static str) -> Option<Addr> {
        let address = text.parse::<IpAddr>().ok().filter(|a| !a.is_unspecified());
        if address.is_none() {
            self.odd.push(name);
        }
        address.map(Addr::from)
    }

    /// Those of the texts that are addresses, each once.
    fn addresses(&mut self, texts: impl Iterator<Item = String>, name: &'static str) -> Vec<Addr> {
        let mut addresses = Vec::new();
        for text in texts {
            if let Some(address) = self.address(&text, name)
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Those of the texts that are ranges of addresses.
    fn ranges(&mut self, texts: &[String], name: &'static str) -> Vec<IpNet> {
        let mut ranges = Vec::new();
        for text in texts {
            // The API takes blanks around them where it takes a list of them from users.
            match text.trim().parse::<IpNet>() {
                Ok(range) => ranges.push(range.trunc()),
                Err(_) => self.odd.push(name),
            }
        }
        ranges
    }

    /// The IP protocol number; TCP where nothing is said.
    fn protocol(&mut self, field: Field<String>, name: &'static str) -> Option<u8> {
        let text = match field {
            Field::Absent => return Some(6),
            field => field.take(name, self.odd)?,
        };
        match text.as_str() {
            "TCP" | "" => Some(6),
            "UDP" => Some(17),
            "SCTP" => Some(132),
            _ => {
                self.odd.push(name);
                None
            }
        }
    }

    fn labels(&mut self, field: Field<Pairs>, name: &'static str) -> Labels {
        let pairs = field.take(name, self.odd).unwrap_or_default();
        let mut labels = Vec::new();
        for (key, value) in pairs.0 {
            if let Some(value) = value.take(name, self.odd) {
                labels.push((self.symbols.text(&key), self.symbols.text(&value)));
            }
        }
        self.symbols.labels(labels)
    }

    /// None without a name.
    fn about(&mut self, metadata: Metadata) -> Option<About> {
        let odd = &mut *self.odd;
        let name = metadata.name.take("metadata.name", odd);
        let name = name.filter(|name| !name.is_empty());
        let uid = metadata.uid.take("metadata.uid", odd).unwrap_or_default();
        let mut owner = None;
        for reference in metadata.owners.items("metadata.ownerReferences", odd) {
            let kind = reference.kind.take("metadata.ownerReferences", odd);
            let name = reference.name.take("metadata.ownerReferences", odd);
            let controller = reference.controller.take("metadata.ownerReferences", odd);
            if let (Some(kind), Some(name), Some(true)) = (kind, name, controller) {
                owner = Some((kind, name));
            }
        }
        let labels = self.labels(metadata.labels, "metadata.labels");
        let namespace = self.text(metadata.namespace, "metadata.namespace");
        let Some(name) = name else {
            self.odd.push("metadata.name");
            return None;
        };
        Some(About {
            name: Text::from(name),
            namespace,
            uid: Text::from(uid),
            labels,
            owner,
        })
    }
}

/// Reduces objects, and lets them share what they have in common.
#[derive(Debug, Default)]
pub struct Reducer {
    symbols: Symbols,
}

shape! {
    Head {
        kind: String = "type",
    }
}

/// An event with its object.
#[derive(Debug)]
struct Whole<T> {
    object: Field<T>,
}

impl<T: Shape> Shape for Whole<T> {
    fn map<'de, A: serde::de::MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut object = Field::Absent;
        while let Some(key) = map.next_key_seed(field::Names(&["object"]))? {
            if key.is_some() {
                object = map.next_value()?;
            } else {
                map.next_value::<serde::de::IgnoredAny>()?;
            }
        }
        Ok(Some(Self { object }))
    }
}

impl Reducer {
    /// Reduces an object of this kind.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn object(&mut self, kind: Kind, json: &[u8]) -> Result<Reduced, serde_json::Error> {
        self.by_kind(kind, json, false)
    }

    /// Reads an event of a watch of this kind.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn event(&mut self, kind: Kind, json: &[u8]) -> Result<Event, serde_json::Error> {
        let head: Field<Head> = serde_json::from_slice(json)?;
        let kind_of_event = match head {
            Field::Good(head) => head.kind.take("type", &mut Vec::new()).unwrap_or_default(),
            Field::Absent | Field::Odd => String::new(),
        };
        Ok(match kind_of_event.as_str() {
            "ADDED" | "MODIFIED" => Event::Applied(self.by_kind(kind, json, true)?),
            "DELETED" => Event::Deleted(self.by_kind(kind, json, true)?),
            "BOOKMARK" => Event::Bookmark(self.by_kind(kind, json, true)?.version),
            "ERROR" => Event::Error(problem_of(inner(json)?)),
            _ => Event::Unknown(kind_of_event),
        })
    }

    fn by_kind(
        &mut self,
        kind: Kind,
        json: &[u8],
        event: bool,
    ) -> Result<Reduced, serde_json::Error> {
        match kind {
            Kind::LocalPod | Kind::RemotePod | Kind::Sandbox => {
                self.read::<pod::RawPod>(kind, json, event)
            }
            Kind::Service => self.read::<service::RawService>(kind, json, event),
            Kind::Slice => self.read::<slice::RawSlice>(kind, json, event),
            Kind::Node => self.read::<node::RawNode>(kind, json, event),
            Kind::Namespace => self.read::<node::RawNamespace>(kind, json, event),
            Kind::Policy => self.read::<policy::RawPolicy>(kind, json, event),
        }
    }

    fn read<T: Raw>(
        &mut self,
        kind: Kind,
        json: &[u8],
        event: bool,
    ) -> Result<Reduced, serde_json::Error> {
        let field: Field<T> = if event {
            inner(json)?
        } else {
            serde_json::from_slice(json)?
        };
        let mut reduced = Reduced::default();
        let odd = &mut reduced.odd;
        let Some(mut raw) = field.take("object", odd) else {
            odd.push("object");
            return Ok(reduced);
        };
        let mut metadata = raw.metadata().take("metadata", odd).unwrap_or_default();
        let version = std::mem::take(&mut metadata.version);
        reduced.version = version
            .take("metadata.resourceVersion", odd)
            .unwrap_or_default();
        let mut context = Context {
            symbols: &mut self.symbols,
            odd,
        };
        if let Some(about) = context.about(metadata) {
            reduced.label = if about.namespace.is_empty() {
                about.name.to_string()
            } else {
                format!("{}/{}", about.namespace, about.name)
            };
            reduced.object = Some(raw.reduce(kind, about, &mut context));
        }
        reduced.odd.sort_unstable();
        reduced.odd.dedup();
        Ok(reduced)
    }
}

fn inner<T: Shape>(json: &[u8]) -> Result<Field<T>, serde_json::Error> {
    let whole: Field<Whole<T>> = serde_json::from_slice(json)?;
    Ok(match whole {
        Field::Good(whole) => whole.object,
        Field::Absent | Field::Odd => Field::Odd,
    })
}

fn problem_of(field: Field<RawProblem>) -> Problem {
    let ignored = &mut Vec::new();
    let raw = field.take("status", ignored).unwrap_or_default();
    let details = raw.details.take("details", ignored).unwrap_or_default();
    Problem {
        code: raw.code.take("code", ignored).unwrap_or_default(),
        reason: raw.reason.take("reason", ignored).unwrap_or_default(),
        message: raw.message.take("message", ignored).unwrap_or_default(),
        retry_after: details
            .retry_after
            .take("retryAfterSeconds", ignored)
            .unwrap_or_default(),
    }
}

/// Reads the body of an answer that is an error. What is no `Status` gives an empty one.
#[must_use]
pub fn problem(json: &[u8]) -> Problem {
    problem_of(serde_json::from_slice(json).unwrap_or_default())
}

/// Reads what a page says besides its items.
///
/// # Errors
/// When it is no JSON.
pub fn page_end(json: &[u8]) -> Result<PageEnd, serde_json::Error> {
    let ignored = &mut Vec::new();
    let raw: Field<RawPageEnd> = serde_json::from_slice(json)?;
    let raw = raw.take("list", ignored).unwrap_or_default();
    let metadata = raw.metadata.take("metadata", ignored).unwrap_or_default();
    Ok(PageEnd {
        version: metadata
            .version
            .take("version", ignored)
            .unwrap_or_default(),
        next: metadata.next.take("continue", ignored).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;

//! Where a *source* puts what it learns: the one way from a watch or a poll into the index.
//!
//! A source that starts, or that starts over, says [`Sink::begin`], applies everything there is, and says
//! [`Sink::settle`]: what was not applied in between is gone. After that it tells of changes alone. A source
//! that merely loses touch says nothing: what it told stays true until it knows better.

use super::object::{Key, Kind, Object};

/// How a source does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has not told everything yet.
    Starting,
    /// It told everything, and tells of changes.
    Synced,
    /// It is out of touch, for this reason; it tries again.
    Failed(String),
}

/// Takes what sources tell. The calls are short and never wait for the network.
pub trait Sink: Send + Sync {
    /// All objects of this kind follow.
    fn begin(&self, kind: Kind);

    /// The object is there, like this; what was known under its key is replaced.
    fn apply(&self, object: Object);

    /// The object is gone. One that was not known is no error.
    fn delete(&self, key: &Key);

    /// All objects of this kind have been applied since [`Sink::begin`]; any other of the kind is gone.
    fn settle(&self, kind: Kind);

    /// How the source of this kind does now.
    fn status(&self, kind: Kind, status: Status);
}

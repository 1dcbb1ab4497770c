//! Where a *source* puts what it learns: the one way from a watch or a poll into the index.
//!
//! A source that starts, or that starts over, says [`Change::Begin`], applies everything there is, and says
//! [`Change::Settle`]: what was not applied in between is gone. After that it tells of changes alone. A source
//! that merely loses touch says nothing: what it told stays true until it knows better.

use std::time::SystemTime;

use serde::Serialize;

use super::object::{Key, Kind, Object};

/// One thing that a source has learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// All objects of this kind follow. What is known stays until they are settled; a list that was begun before
    /// and not settled counts no more.
    Begin(Kind),
    /// The object is there, like this; what was known under its key is replaced.
    Apply(Object),
    /// The object is gone. One that was not known is no error.
    Delete(Key),
    /// All objects of this kind have been applied since [`Change::Begin`]; any other of the kind is gone.
    Settle(Kind),
}

/// How a source does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// A list was complete, now or in the past: what is known is all there was then.
    pub synced: bool,
    /// It is in touch: what is known is what there is.
    pub connected: bool,
    /// Why it is not, or why it last was not.
    pub last_error: Option<String>,
    /// Since when it is or is not, by the wall clock in seconds since 1970; for people.
    pub since: u64,
    /// Requests that failed.
    pub retries: u64,
    /// Lists that were begun.
    pub lists: u64,
    /// Objects of which something was left out, or everything.
    pub odd: u64,
}

/// Now, as [`Status::since`] has it.
#[must_use]
pub(super) fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

/// Takes what sources learn. The calls are short and never wait for the network; they come from several tasks at
/// once, each for kinds of its own.
pub trait Sink: Send + Sync {
    /// Takes changes in their order, all of one kind, and leaves the vector empty: one call for everything that
    /// arrived together, so that a lock is taken once for many.
    fn fold(&self, changes: &mut Vec<Change>);

    /// Takes how the source of a kind does; called when something about it has changed.
    fn status(&self, kind: Kind, status: &Status);
}

//! Where the watches put what they see.

use super::status::Status;
use crate::identify::object::{Key, Kind, Object};

/// One thing that a watch has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A list of all objects of this kind begins. What is known stays until the list is settled; a list that was
    /// begun before and not settled counts no more.
    Begin(Kind),
    /// The object is so now.
    Apply(Object),
    /// The object is gone.
    Delete(Key),
    /// The list is complete: what was known before it began and was not in it is gone.
    Settle(Kind),
}

/// Takes what the watches see. Called from several tasks at once, each for kinds of its own.
pub trait Sink: Send + Sync {
    /// Takes changes in their order, all of one kind, and leaves the vector empty: one call for everything that
    /// arrived together, so that a lock is taken once for many.
    fn fold(&self, changes: &mut Vec<Change>);

    /// Takes how the watch of a kind is doing; called when something about it has changed.
    fn status(&self, kind: Kind, status: &Status);
}

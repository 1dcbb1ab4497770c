//! Ways in which the server fails.

use std::time::Duration;

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A list.
    List,
    /// A watch.
    Watch,
    /// A review of a token, or of what somebody may do.
    Review,
}

/// A way to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this status and a `Status` object.
    Status(u16),
    /// The same, with this header.
    RetryAfter(u16, u32),
    /// Reads the request and never answers.
    Silence,
    /// Answers so many bytes at a time, with a pause after each.
    Dribble(usize, Duration),
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Answers with this body, and an end.
    Body(String),
}

/// Faults that are still to come.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(Verb, String, usize, Fault)>);

impl Faults {
    pub(super) fn plan(&mut self, verb: Verb, path: &str, times: usize, fault: Fault) {
        self.0.push((verb, path.to_owned(), times, fault));
    }

    /// The fault for this request, if there is one.
    pub(super) fn next(&mut self, verb: Verb, path: &str) -> Option<Fault> {
        let planned = self.0.iter_mut().find(|(on, part, times, _)| {
            *on == verb && *times > 0 && path.contains(part.as_str())
        })?;
        planned.2 -= 1;
        Some(planned.3.clone())
    }
}

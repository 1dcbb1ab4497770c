//! The watches of the Kubernetes API against a server that answers as the real one does, and fails in every way it can.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

// What the tests stand on.
mod watcher;

// The questions.
mod lists;

mod goes_on;

mod failures;

mod access;

mod tls;

mod policies;

mod rules;

mod scale;

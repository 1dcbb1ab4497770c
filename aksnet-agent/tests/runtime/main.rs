//! The container runtime as a source of names: runtimes that misbehave, played by a server of the tests' own, and
//! a real containerd that runs real sandboxes.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

// What the tests stand on.
mod told;

mod fake;

#[expect(
    dead_code,
    reason = "the tests of what is deployed use it too, and more of it"
)]
mod bed;

mod kubelet;

// The questions.
mod hostile;

mod follows;

mod containerd;

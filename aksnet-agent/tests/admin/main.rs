//! The admin server as Prometheus, Kubernetes and people meet it.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

// What the tests stand on.
mod bed;

// What is served.
mod answers;

// To whom.
mod tls;

mod tokens;

// And how much of it, whoever asks.
mod limits;

mod status;

//! What is deployed, run as it is deployed: the image that `cargo xtask image` makes, in a real containerd, with what the
//! rendered manifest gives it and nothing else, on an emulated node.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

// What the tests stand on.
#[path = "../runtime/bed.rs"]
#[expect(dead_code, reason = "what the tests of the runtime need is more")]
mod bed;

#[path = "../agent/scrape.rs"]
#[expect(dead_code, reason = "what the tests of the agent need is more")]
mod scrape;

mod manifest;

mod cri;

mod node;

mod shop;

// The questions.
mod suffices;

mod chroot;

mod without;

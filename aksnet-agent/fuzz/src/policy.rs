//! Any policies, pods and flows, made of bytes: the evaluator says what the naive implementation of its tests says.

use aksnet_agent::policy::{engine, evaluate, explain, flow, index, model};

#[path = "../../src/policy/naive.rs"]
mod naive;

#[expect(dead_code, reason = "the evaluator's tests use the rest")]
#[path = "../../src/policy/random.rs"]
mod random;

use random::{Dice, check};

/// Flows in the cluster that the bytes describe.
const FLOWS: usize = 8;

pub(crate) fn run(bytes: &[u8]) {
    check(&mut Dice::Bytes(bytes), FLOWS, |_| {});
}

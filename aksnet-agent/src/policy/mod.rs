//! Why a flow is denied, or should have been: Kubernetes network policies (`networking.k8s.io/v1`) as values, and what
//! they say of a flow. Pure: no clock, no API, no packet. The page for operators is `docs/policy.md`.

// What a policy says, reduced as it arrives.
pub mod model;

// All of them, by the pods that they select, with those that ended a moment ago.
pub mod index;

// What is asked: who talks to whom, and by which port.
pub mod flow;

// Where those who enforce policies differ from the API's text.
pub mod engine;

// What the policies say of a flow.
pub mod evaluate;

// And why, as values and in words.
pub mod explain;

pub mod words;

// For tests and fuzzers, which include these files: the rules once more, and clusters to compare the two by.
#[cfg(test)]
mod naive;

#[cfg(test)]
mod random;

#[cfg(test)]
mod tests;

//! Identification: whose address is this, and whose was it when the flow began.
//!
//! [`object`] holds what the agent keeps of a Kubernetes object, `index` answers by address and time, and is
//! pure; `kube` and `runtime` only feed it.

// What is kept of an object.
pub mod object;

// From JSON to that.
pub mod reduce;

// Where it comes from.
pub mod kube;

//! Identification: whose address is this, and whose was it when the flow began.
//!
//! [`object`] holds what the agent keeps of a Kubernetes object, `index` answers by address and time, and is
//! pure; `kube` and `runtime` only feed it.

// What is kept of an object.
pub mod object;

pub mod workload;

pub mod names;

// From JSON to that.
pub mod reduce;

// Whose address it is, and was.
pub mod index;

// The index as all share it.
pub mod shared;

// Where it comes from.
pub mod kube;

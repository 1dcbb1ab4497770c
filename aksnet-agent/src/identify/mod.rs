//! Identification: whose address is this, and whose was it when the flow began.
//!
//! [`object`] holds what the agent keeps of a Kubernetes object, `index` answers by address and time, and is
//! pure; `kube` and `runtime` only feed it.

// What is kept of an object.
pub mod object;

// What a pod and its workload are called.
pub mod workload;

pub mod names;

// How sources tell of objects.
pub mod sink;

// Pods of this node, by the container runtime's socket.
pub mod runtime;

// Whose address it is, and was.
pub mod index;

//! Identification: whose address is this, and whose was it when the flow began.
//!
//! [`object`] holds what the agent keeps of a Kubernetes object; [`index`] answers by address and time, and is
//! pure. [`mod@kube`] and [`runtime`] are its sources: they feed it through a [`sink`], behind a lock ([`shared`]).

// What is kept of an object.
pub mod object;

// What a pod and its workload are called.
pub mod workload;

pub mod names;

// Whose address it is, and was.
pub mod index;

// How sources tell of objects, and the index as all share it.
pub mod sink;

pub mod shared;

// From JSON to objects.
pub mod reduce;

// All objects, by the Kubernetes API.
pub mod kube;

// Pods of this node, by the container runtime's socket.
pub mod runtime;

//! The container *runtime* as a source: pod names without an API server.
//!
//! kubelet has each pod's *sandbox* (its network namespace and what keeps it) made by a runtime, over a socket,
//! in the protocol CRI (`runtime.v1.RuntimeService`), and gives it the pod's name, namespace and labels. So the
//! runtime can tell whose an address of this node is. It knows nothing of other nodes, services or owners.
//!
//! Only three calls are made, and none that changes anything: `Version`, `ListPodSandbox`, `PodSandboxStatus`.
//! Sandboxes are asked for one by one only when new, as a sandbox keeps its addresses and labels for life
//! (`PodSandboxConfig` is given once, to `RunPodSandbox`).

// Where the socket is.
mod place;

// What is on the wire.
mod wire;

mod client;

// What is made of it.
mod sandbox;

// When it is asked.
mod pace;

mod poll;

pub use client::DEADLINE;
pub use place::{Place, WELL_KNOWN};
pub use poll::{Options, Runtime, Status};
pub use sandbox::{Changes, Listed, fold};

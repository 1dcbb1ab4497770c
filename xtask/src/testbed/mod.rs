//! The emulated node: an AKS- or kind-like cluster of network namespaces on one machine.
//!
//! ```text
//!            pods                         pods
//!   ┌─────────┴─────────┐        ┌─────────┴─────────┐
//!   │ node (under test) │        │       node2       │
//!   └────────┬──────────┘        └─────────┬─────────┘
//!           eth0                          eth0
//!            └────────────┐   ┌────────────┘
//!                       ┌─┴───┴──┐
//!   vm (VNet host) ─────┤ fabric ├───── azure (168.63.129.16, 169.254.169.254)
//!                       └────┬───┘
//!                         outside (an internet host; clients of the load balancer)
//! ```
//!
//! The vm also stands for a private endpoint, an Application Gateway and a private API server.
//!
//! Every link, address and rule lives inside namespaces that this module made, under names with a prefix of
//! their own; the machine's own network is never touched. What was made is on record before it is made
//! ([`record`]), so that a crashed run can be cleaned by exactly its names.

// What was made, and where it lives.
pub mod record;

pub mod netns;

// The cluster on paper: addresses and names.
pub mod hash;

pub mod plan;

// Wiring: links, pods, CNI.
pub mod fabric;

pub mod cni;

pub mod azure;

pub mod pod;

pub mod node;

// Rules: rendered as text by pure functions, applied at the edge.
pub mod service;

pub mod proxy;

pub mod nftables;

pub mod masq;

pub mod policy;

pub mod engine;

pub mod enforce;

pub mod iptables;

// What runs on the node and beside it.
pub mod local_dns;

pub mod imds;

// The whole, and what is done with it.
pub mod builder;

pub mod bed;

pub mod offload;

pub mod frame;

pub mod traffic;

pub mod counters;

pub mod snmp;

pub mod nfnetlink;

pub mod fill;

// The Kubernetes API, as far as a node's agent asks it.
pub mod api;

// Every kind of traffic that a node sees.
pub mod scene;

pub mod stage;

mod scenes;

// Every way in which a node loses packets.
pub mod mishap;

pub use bed::Testbed;
pub use builder::Builder;
pub use cni::{Hairpin, HostPort};
pub use enforce::{Allow, DenyAction, Isolation, Side};
pub use engine::Engine;
pub use imds::Imds;
pub use iptables::Backend;
pub use local_dns::{Cache, LocalDns};
pub use netns::Netns;
pub use node::Node;
pub use plan::{Addresses, Family, Flavour, Plan};
pub use pod::Pod;
pub use policy::{PolicyRule, Verdict};
pub use proxy::Proxy;
pub use scene::{Scene, Seen};
pub use service::{Endpoint, Service, TrafficPolicy};
pub use stage::Stage;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock whose data is whole at any time, also when a thread has panicked with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What `cargo xtask` does, as a library, so that tests and benchmarks of other crates share it.
//!
//! [`testbed`] is the part they use most: a Kubernetes node of network namespaces, wired by real CNI plugins
//! and real iptables rules, with real traffic of known counts.

pub mod testbed;

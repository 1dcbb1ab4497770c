//! What `cargo xtask` does, as a library, so that tests and benchmarks of other crates share it.
//!
//! [`testbed`] is the part they use most: a Kubernetes node of network namespaces, wired by real CNI plugins
//! and real iptables rules, with real traffic of known counts.

// What building and testing needs, found or installed.
pub mod setup;

// How commands are run and told about.
pub mod say;

// What builds and tests.
pub mod cargo;

// The emulated node.
pub mod testbed;

// What Grafana and Prometheus are given.
pub mod dashboards;

// The two commands people run, and the one that measures.
pub mod demo;

pub mod suite;

// The fuzzer.
pub mod fuzz;

// What readers have.
pub mod docs;

pub mod inventory;

// What is installed: the image, and the manifests as they are rendered.
pub mod image;

pub mod deploy;

pub mod bench;

pub mod font;

// The same tests on kernels that this machine does not run.
pub mod vm;

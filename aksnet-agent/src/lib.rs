//! The agent of aksnet, in the order in which a packet's counts flow through it.

// 1. The kernel side: loads the programs, attaches them, hands out their maps.
pub mod bpf;

// 2. What this node is: interfaces, routes, addresses.
pub mod plan;

// 3. Maps to flow deltas.
pub mod collect;

// 4. Flows to classes.
pub mod classify;

// 5. Deltas and classes to Prometheus.
pub mod metrics;

// 6. Live flows to the terminal.
pub mod top;

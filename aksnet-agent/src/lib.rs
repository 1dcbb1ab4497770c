//! The agent of aksnet, in the order in which a packet's counts flow through it.

// 0. What it is told, and how it ends when it cannot do that.
pub mod cli;

pub mod config;

pub mod escaped;

pub mod exit;

pub mod logging;

pub mod preflight;

// 1. The kernel side: loads the programs, attaches them, hands out their maps.
pub mod bpf;

// 2. What this node is: interfaces, routes, addresses.
pub mod node;

pub mod plan;

pub mod attachments;

// What its conntrack table says: ports in use, how full it is, what was dialled.
pub mod conntrack;

// 3. Maps to flow deltas.
pub mod collect;

// 4. Addresses to pods, services and nodes.
pub mod identify;

// 5. Flows to classes.
pub mod classify;

// Which policies deny a flow, and why.
pub mod policy;

pub mod explain;

// 6. Deltas and classes to Prometheus.
pub mod metrics;

// 7. Live flows to the terminal.
pub mod live;

pub mod page;

pub mod top;

// What was dropped, and why, for whoever follows it.
pub mod droplog;

// What each connection did, for whoever follows it.
pub mod flowlog;

// The same, and the metrics, for an OpenTelemetry collector.
pub mod otlp;

// What is wrong with the node, and what to do.
pub mod doctor;

// 7. How it is doing, over HTTP and over the local socket.
pub mod board;

pub mod admin;

pub mod socket;

// Packets from files, and from interfaces without programs.
pub mod capture;

// What was told, as a file.
pub mod session;

// What feeds 2 and 4 besides the kernel: started, held, and asked again.
pub mod sources;

pub mod survey;

// All of it, wired: the life from start to end.
pub mod agent;

pub mod commands;

pub mod wiring;

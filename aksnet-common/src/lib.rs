//! What the kernel side and the agent of aksnet share: the layouts of the maps, and the logic that is
//! pure enough to run unchanged in the kernel, in the agent, in tests and in fuzzers.
//!
//! The pipeline, and the words for it:
//!
//! - A *packet* enters the node at a watched interface (tc ingress: ENTER), walks the *NAT path*
//!   (conntrack, DNAT, policy, routing, SNAT), and leaves at another (tc egress: EXIT), is delivered on
//!   the node, or is dropped.
//! - [`packet`] turns its headers into a [`packet::Parsed`], whose addresses are a [`flow::FlowKey`].
//! - [`flow`] defines what is counted for a key: a [`flow::HotCell`] touched by every packet and a
//!   [`flow::ColdCell`] touched only by timed ones. [`cell`] is the protocol by which packets on every
//!   CPU and the agent share those cells.
//! - [`passage`] recognises the same packet at EXIT, although NAT has rewritten it.
//! - [`drops`] is what is kept of a packet that the kernel freed, [`tracked`] what conntrack and routing had
//!   made of it by then.
//! - [`stats`] counts what could not be given a flow of its own, and why.
//! - [`probe_config`] is what the agent tells the programs before it loads them.
#![cfg_attr(not(test), no_std)]
#![expect(
    clippy::inline_always,
    reason = "in the programs, what is not inlined is a call per packet that the verifier follows anew"
)]

const _: () = assert!(
    cfg!(target_endian = "little"),
    "the map layouts and the programs are little-endian, as every AKS node is"
);

pub mod packet;

pub mod flow;

pub mod cell;

pub mod passage;

pub mod tracked;

pub mod drops;

pub mod stats;

pub mod probe_config;

//! Conntrack: the kernel's own record of connections and of what NAT made of each.
//!
//! The datapath sees what NAT does to packets; what it cannot see is how many ports of the node are taken, how full
//! the kernel's table is, and what a process of the node itself had dialled before its packets were rewritten. That
//! is asked here, from ctnetlink (`net/netfilter/nf_conntrack_netlink.c`):
//!
//! - [`message`] reads its messages, without trust; [`stats`] the kernel's statistics;
//! - [`table`] mirrors the entries that matter, [`snat`] says what they use up;
//! - [`netlink`] is the only place with a socket, and [`follow`] keeps the mirror up to date.
//!
//! Nothing of this is on a packet's way through the agent's own programs: without it, flows and drops are as exact.

// What the kernel says.
pub mod message;

pub mod stats;

mod netlink;

// What is kept of it.
pub mod table;

pub mod snat;

// Asked when a drop has to be explained.
pub mod fullness;

// Keeping it.
pub mod schedule;

pub mod follow;

pub use follow::{FollowConfig, Follower, Snapshot, Status};
pub use schedule::Reason;
pub use snat::{Limits, allocated};
pub use table::Table;

//! What is asked of the live view. Every field may be left out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::top::model::{Ends, Row};

/// The most rows of a kind that one snapshot has.
pub const MOST: usize = 5_000;

/// What makes a flow or a pair of workloads come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// Bytes per second in the last interval.
    #[default]
    ByteRate,
    /// Packets per second in the last interval.
    PacketRate,
    /// Bytes so far.
    Bytes,
    /// Packets so far.
    Packets,
    /// The median time on the NAT path of packets that open connections.
    First,
    /// The median time on the NAT path of all others.
    Established,
    /// Dropped packets.
    Drops,
    /// The latest to change.
    Recent,
}

impl Sort {
    /// All, in the order in which a reader goes through them.
    pub const ALL: [Self; 8] = [
        Self::ByteRate,
        Self::PacketRate,
        Self::Bytes,
        Self::Packets,
        Self::First,
        Self::Established,
        Self::Drops,
        Self::Recent,
    ];
}

/// Which flows, workloads and drops. What is empty chooses all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Words, all of which have to be found: in an address, a namespace, workload or pod, an interface, a class, a policy;
    /// or as a whole port, protocol, NAT, reach, or cause or reason of drops. Upper and lower case are one.
    pub text: String,
    /// One of these classes.
    pub class: Vec<String>,
    /// One of these: `none`, `snat`, `dnat`, `both`.
    pub nat: Vec<String>,
    /// This Kubernetes namespace at one end at least.
    pub namespace: Option<String>,
}

/// What tells a flow from all others: its packets as they enter, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FlowId {
    /// IP protocol.
    pub protocol: String,
    /// Where its packets enter; empty: the node itself sends them.
    pub in_interface: String,
    /// Addresses and ports as they enter.
    pub before: Ends,
}

impl FlowId {
    /// Of a row.
    #[must_use]
    pub fn of(row: &Row) -> Self {
        Self {
            protocol: row.protocol.clone(),
            in_interface: row.in_interface.clone(),
            before: row.before,
        }
    }
}

/// What is asked of the live view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LiveQuery {
    /// Seconds between answers; each comes after a sweep of its own.
    pub interval: f64,
    /// At most so many flows, workloads, drops and destinations each, never more than [`MOST`].
    pub limit: usize,
    /// What makes flows and workloads come first.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
    /// Which flows, workloads and drops.
    pub filter: Filter,
    /// A flow that is answered whatever the filter and the limit say, as long as it lives.
    pub follow: Option<FlowId>,
}

impl Default for LiveQuery {
    fn default() -> Self {
        Self {
            interval: 1.0,
            limit: 200,
            sort: Sort::default(),
            reverse: false,
            filter: Filter::default(),
            follow: None,
        }
    }
}

impl LiveQuery {
    /// The time between answers, within reason.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Self::every(self.interval)
    }

    /// So many seconds, within reason.
    #[must_use]
    pub fn every(seconds: f64) -> Duration {
        let seconds = if seconds.is_nan() { 1.0 } else { seconds };
        Duration::from_secs_f64(seconds.clamp(0.1, 3600.0))
    }

    /// How many rows of a kind, within reason.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.min(MOST)
    }
}

//! What the live view answers. All of it reads and writes as JSON; a reader takes what it does not know for absent.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    droplog::DropRecord,
    top::model::{Row, Timing, Who},
};

/// The node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// When the last sweep was; milliseconds since 1970. Everything about flows is as of then.
    pub unix_ms: u64,
    /// Milliseconds between the last two sweeps, which rates are over.
    pub interval_ms: u64,
    /// Microseconds for which sweeps would have had to wait for this look.
    pub took_us: u64,
    /// Sums over all flows, whatever the filter.
    pub totals: Totals,
    /// The flows that come first.
    pub flows: Vec<Row>,
    /// How many flows the filter chooses.
    pub matching: u64,
    /// The flow that was to be followed, if it lives.
    pub followed: Option<Row>,
    /// The pairs of workloads that come first.
    pub workloads: Vec<Workload>,
    /// How many pairs the filter chooses.
    pub pairs: u64,
    /// What NAT does and costs.
    pub nat: Nat,
    /// What is dropped.
    pub drops: Drops,
    /// What the node is, and what of it is used up.
    pub node: Node,
    /// How the agent is doing; absent where only the accounts were asked.
    pub health: Option<Health>,
}

/// Sums over all flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Flows, each one direction of a connection.
    pub flows: u64,
    /// Connections that have a flow, those that ended a moment ago included.
    pub connections: u64,
    /// Of these, those that are not finished, as far as TCP's flags tell.
    pub open: u64,
    /// Of all connections, those that NAT rewrites.
    pub nated: u64,
    /// Packets per second in the last interval. A packet that passes two watched interfaces is one flow's, so counts once.
    pub packets_per_second: f64,
    /// Bytes (IP length) per second in the last interval.
    pub bytes_per_second: f64,
}

/// Who talks to whom: the connections of one workload to another, both directions together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// Who opens the connections. `pod` is always empty. `other`/`other`: those beyond the series budget.
    pub from: Who,
    /// To whom.
    pub to: Who,
    /// Kinds of traffic, that with most connections first.
    pub classes: Vec<String>,
    /// Connections that have a flow, those that ended a moment ago included.
    pub connections: u64,
    /// Of these, those that are not finished.
    pub open: u64,
    /// Of all connections, those that NAT rewrites.
    pub nated: u64,
    /// Packets per second in the last interval, from the client.
    pub packets_out: f64,
    /// Packets per second in the last interval, to the client.
    pub packets_in: f64,
    /// Bytes per second in the last interval, from the client.
    pub bytes_out: f64,
    /// Bytes per second in the last interval, to the client.
    pub bytes_in: f64,
    /// Packets of the flows that live, both directions.
    pub packets: u64,
    /// Bytes (IP length) of the flows that live, both directions.
    pub bytes: u64,
    /// NAT-path time of packets that open connections.
    pub first: Option<Timing>,
    /// NAT-path time of all others.
    pub established: Option<Timing>,
    /// Dropped packets of live flows, and of the last minute's that belong to none.
    pub drops: u64,
}

/// What NAT does and costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nat {
    /// By what NAT does: `none`, `snat`, `dnat`, `both`, always all four, over all classes.
    pub kinds: Vec<NatCost>,
    /// The same by class, where there is anything.
    pub classes: Vec<NatCost>,
    /// The destinations that are nearest to running out of the node's ports.
    pub destinations: Vec<ByDestination>,
    /// How many destinations there are; absent: the conntrack table is not known.
    pub all_destinations: Option<u64>,
}

/// What one kind of NAT costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NatCost {
    /// `none`, `snat`, `dnat` or `both`.
    pub nat: String,
    /// The class; empty: all.
    pub class: String,
    /// Connections that have a flow.
    pub connections: u64,
    /// Packets per second in the last interval, both directions.
    pub packets_per_second: f64,
    /// Bytes per second in the last interval, both directions.
    pub bytes_per_second: f64,
    /// The last minute's NAT-path times of packets that open connections.
    pub first: Option<Timing>,
    /// The last minute's NAT-path times of all others.
    pub established: Option<Timing>,
    /// By how many nanoseconds the median of `first` exceeds that without NAT, over all classes; absent where either has
    /// fewer than 20 times.
    pub first_overhead_ns: Option<f64>,
    /// The same of `established`.
    pub established_overhead_ns: Option<f64>,
}

/// Ports of the node that are taken towards one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByDestination {
    /// IP protocol.
    pub protocol: String,
    /// The address that connections leave the node with.
    pub node: IpAddr,
    /// Where to.
    pub to: IpAddr,
    /// Which port there.
    pub port: u16,
    /// Who that is.
    pub who: Who,
    /// Connections, each with a port of its own.
    pub in_use: u64,
    /// How many there can be.
    pub limit: u64,
}

/// What is dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drops {
    /// The latest records that the filter chooses, the latest first.
    pub records: Vec<DropRecord>,
    /// How many records the filter chooses of those that are kept.
    pub matching: u64,
    /// The last minute by cause and policy, most packets first, whatever the filter, as far as the log reaches back.
    pub causes: Vec<Causes>,
}

/// Drops of one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Causes {
    /// The cause.
    pub cause: String,
    /// The policies that did it, joined by commas; empty for other causes.
    pub policy: String,
    /// Packets.
    pub packets: u64,
    /// Attempts to open a connection among them.
    pub connections: u64,
}

/// What the node is, and what of it is used up. An empty text is: not known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its name in Kubernetes.
    pub name: String,
    /// Container network interface.
    pub cni: String,
    /// Who enforces network policies.
    pub policy_engine: String,
    /// kube-proxy's mode.
    pub proxy_mode: String,
    /// The kernel's release.
    pub kernel: String,
    /// The availability zone; also empty for a node in none.
    pub zone: String,
    /// The kernel's connection table.
    pub conntrack: Conntrack,
    /// Ports that NAT uses up, by protocol and family; absent: not known.
    pub snat_ports: Option<Vec<Ports>>,
    /// Ports of Azure's load balancer that are in use towards the busiest destination, TCP and UDP.
    pub azure_snat_ports: Vec<Ports>,
    /// Pod addresses, by source.
    pub pod_ips: Vec<PodAddresses>,
    /// The agent's programs.
    pub programs: Vec<Program>,
    /// Cells of the flow table in use.
    pub flow_cells: u64,
    /// Cells that the flow table has.
    pub flow_cells_limit: u64,
    /// Where names come from.
    pub sources: Vec<Synced>,
}

/// The kernel's connection table. Absent: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conntrack {
    /// Entries.
    pub entries: Option<u64>,
    /// How many there can be.
    pub limit: Option<u64>,
    /// Entries whose tuple another one took first, since the start.
    pub insert_failed: Option<u64>,
    /// Packets that conntrack dropped, since the start.
    pub drop: Option<u64>,
    /// Entries evicted to make room, since the start.
    pub early_drop: Option<u64>,
}

/// Ports that NAT uses up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ports {
    /// IP protocol.
    pub protocol: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// In use.
    pub in_use: u64,
    /// How many there are; 0: not known.
    pub limit: u64,
    /// Of the destination that is nearest to running out: ports in use by ports there are.
    pub saturation: f64,
}

/// Pod addresses by one account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodAddresses {
    /// Whose account.
    pub source: String,
    /// Handed out.
    pub in_use: u64,
    /// Of how many; absent: the account does not tell.
    pub limit: Option<u64>,
    /// Of those handed out, without a pod; absent: not known.
    pub leaked: Option<u64>,
}

/// A program of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Program {
    /// `enter`, `exit`, `drop`.
    pub program: String,
    /// Where it is attached.
    pub hook: String,
    /// Whether it is attached and runs.
    pub up: bool,
}

/// A source of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Synced {
    /// Its name.
    pub source: String,
    /// Whether it has told all it has, and tells what changes.
    pub synced: bool,
}

/// How the agent is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Its version.
    pub version: String,
    /// The commit it was built from.
    pub revision: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Whether it is ready.
    pub ready: bool,
    /// Why not; empty if it is.
    pub not_ready_because: String,
    /// Sweeps since it started.
    pub sweeps: u64,
    /// Why the last sweep failed; empty if it did not.
    pub sweep_error: String,
}

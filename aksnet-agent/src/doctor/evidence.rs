//! The *evidence*: what an agent knows of its node at one moment, as far as checks need it. A plain value that can be
//! written to a file and judged elsewhere. Who talks to whom is told by workload; the addresses in it are those of load
//! balancers' frontends, of leaked allocations, of masquerading rules, and those that drops' reasons name.
//!
//! Fields may be added; a file of an older agent lacks them, and they have the value that says "not known".

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// What the meaning of the fields is numbered by. It grows when a field's meaning changes, not when one is added.
pub const SCHEMA: u32 = 1;

/// See the module's header.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// [`SCHEMA`] of the agent that wrote it.
    pub schema: u32,
    /// When it was taken; wall time, seconds since 1970.
    pub taken_unix_s: u64,
    /// The time in seconds over which `recent` of every count reaches back.
    pub window_s: f64,
    /// How the agent itself is doing.
    pub agent: Agent,
    /// What the node is.
    pub node: Node,
    /// The accounts of pod addresses.
    pub pod_ips: PodIps,
    /// Services of type `LoadBalancer`; `None`: services are not known.
    pub balanced: Option<Vec<Balanced>>,
    /// Network policies; `None`: they are not known.
    pub policies: Option<Policies>,
    /// What policies denied.
    pub denials: Vec<Denial>,
    /// What policies deny, and the node forwarded.
    pub gaps: Vec<Gap>,
    /// Dropped packets.
    pub drops: Vec<Drop>,
    /// The conntrack table.
    pub conntrack: Conntrack,
    /// Ports in use by source NAT; `None`: the table is not known.
    pub snat_ports: Option<Vec<Ports>>,
    /// Source-translated connections that are open, by workload; the most first.
    pub snat_users: Vec<User>,
    /// Connections that were opened, by class.
    pub opened: BTreeMap<String, Count>,
    /// Connections that leave the cluster, by where to.
    pub opened_to: BTreeMap<String, Count>,
    /// Connections that are translated as they should not be.
    pub anomalies: Vec<Anomaly>,
    /// Bytes by the label `scope`.
    pub scope_bytes: BTreeMap<String, Count>,
    /// Who exchanges bytes with another zone; the most first.
    pub cross_zone: Vec<Pair>,
    /// SYNs that left the node by an uplink, and got no answer.
    pub unanswered: Vec<Pair>,
    /// Health probes of Azure's load balancer.
    pub probes: Vec<Probe>,
    /// Classes whose NAT takes longer than the budget.
    pub nat_flagged: Vec<Flagged>,
    /// How many classes have samples enough for that to be judged.
    pub nat_judged: u64,
}

/// A counter: since the agent's start, and over the window.
///
/// Ordered by what is recent first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    /// Of the total, in the window.
    pub recent: u64,
    /// Since the agent's start; since the node's, for what the kernel counts.
    pub total: u64,
}

/// How the agent is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Whether it is ready.
    pub ready: bool,
    /// Why not.
    pub not_ready_because: Option<String>,
    /// Why the latest sweep failed, if it did.
    pub sweep_error: Option<String>,
    /// Its programs.
    pub programs: Vec<Program>,
    /// Interfaces that should be watched and are not, each with the reason.
    pub unattached: Vec<String>,
    /// Flows in the flow table.
    pub flow_cells: u64,
    /// Flows that it has room for.
    pub flow_cells_limit: u64,
    /// Packets that were counted without a flow of their own, as the table was full.
    pub overflow: Count,
    /// Whether the Kubernetes API is asked.
    pub asks_kubernetes: bool,
    /// Why not.
    pub asks_not_because: Option<String>,
    /// How each source of names is doing.
    pub sources: BTreeMap<String, Source>,
    /// Whether Kubernetes has a node of this name; `None`: nodes are not known.
    pub known_node: Option<bool>,
}

/// A program in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Program {
    /// `enter`, `exit`, `drop`.
    pub program: String,
    /// Where it is attached.
    pub hook: String,
    /// Whether it runs.
    pub up: bool,
    /// In words, with the reason where it does not run.
    pub state: String,
}

/// A source of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// It has told all it had at one time.
    pub synced: bool,
    /// It is in touch.
    pub connected: bool,
    /// Why not, or why it last was not.
    pub last_error: Option<String>,
}

/// What the node is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its CNI.
    pub cni: Fact,
    /// Who enforces network policies.
    pub policy_engine: Fact,
    /// What translates services.
    pub proxy_mode: Fact,
    /// Its zone; the empty value is: in none.
    pub zone: Fact,
    /// Who masquerades pods.
    pub masquerade: Masquerade,
    /// The kernel's release.
    pub kernel: String,
    /// Whether Azure's metadata service knows a standard load balancer in front: it does not know basic ones. `None`: not
    /// known.
    pub standard_balancer: Option<bool>,
}

/// A finding of the survey.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fact {
    /// `None`: not known.
    pub value: Option<String>,
    /// What it rests on.
    pub because: Vec<String>,
}

/// Who gives pods' packets the node's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Masquerade {
    /// Whether all rules could be read.
    pub known: bool,
    /// Whose chain; `None`: nobody's.
    pub agent: Option<String>,
    /// The chain.
    pub chain: String,
    /// Ranges that are not masqueraded.
    pub spared: Vec<String>,
    /// Whether ports are drawn at random.
    pub random_fully: bool,
    /// What that rests on.
    pub because: Vec<String>,
}

/// The accounts of pod addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIps {
    /// Whether the node was surveyed.
    pub known: bool,
    /// The accounts.
    pub accounts: Vec<Account>,
    /// Accounts that are there and could not be read: whose, and why.
    pub skipped: Vec<(String, String)>,
    /// Addresses that are handed out to nobody.
    pub leaks: Vec<Leak>,
}

/// An account of pod addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Whose.
    pub source: String,
    /// Handed out.
    pub in_use: u64,
    /// Of how many; `None`: it does not tell.
    pub limit: Option<u64>,
    /// Of those in use, how many are leaked; `None`: not known.
    pub leaked: Option<u64>,
}

/// An address that is handed out, and nobody has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// The address.
    pub address: IpAddr,
    /// The file that holds it, as the node sees its path.
    pub file: String,
    /// The container it was handed out to.
    pub container: String,
    /// When; wall time, seconds since 1970.
    pub since_unix_s: u64,
}

/// A service of type `LoadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Balanced {
    /// `namespace/name`.
    pub service: String,
    /// `status.loadBalancer.ingress` is empty.
    pub pending: bool,
    /// For how many seconds the agent has seen it so.
    pub pending_s: u64,
    /// It was so when the agent first looked: it may have been for longer.
    pub pending_before: bool,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// Its frontends.
    pub frontends: Vec<IpAddr>,
    /// Its ports on every node.
    pub node_ports: Vec<u16>,
    /// `healthCheckNodePort`; 0: none.
    pub health_check_port: u16,
}

/// Network policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policies {
    /// How many there are in the cluster.
    pub known: u64,
    /// Those that select pods of this node: `namespace/name`, and how many pods.
    pub selecting: BTreeMap<String, u64>,
}

/// What policies denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Denial {
    /// `namespace/name` of each policy that may be the one, separated by commas.
    pub policy: String,
    /// Whose side denies.
    pub direction: String,
    /// `exact`, `candidates`, `unexplained`.
    pub confidence: String,
    /// Who enforces.
    pub engine: String,
    /// From whom.
    pub src: String,
    /// To whom.
    pub dst: String,
    /// Packets.
    pub packets: Count,
    /// Connections.
    pub connections: Count,
    /// Why, by the latest record of the drop log.
    pub why: String,
}

/// What policies deny, and the node forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gap {
    /// As in [`Denial`].
    pub policy: String,
    /// As in [`Denial`].
    pub direction: String,
    /// From whom.
    pub src: String,
    /// To whom.
    pub dst: String,
    /// Connections.
    pub connections: Count,
}

/// Dropped packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drop {
    /// What it means.
    pub cause: String,
    /// The kernel's own reason.
    pub reason: String,
    /// From whom.
    pub src: String,
    /// To whom.
    pub dst: String,
    /// Packets.
    pub packets: Count,
    /// Why, by the latest record of the drop log.
    pub why: String,
}

/// The conntrack table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conntrack {
    /// Whether its content is known; `None`: it is not followed.
    pub table_known: Option<bool>,
    /// Whether the kernel's statistics are.
    pub statistics_known: bool,
    /// Entries.
    pub entries: Option<u64>,
    /// Of how many.
    pub limit: Option<u64>,
    /// Entries whose tuple another one took first.
    pub insert_failed: Option<Count>,
    /// Packets that it dropped.
    pub drop: Option<Count>,
    /// Entries evicted to make room.
    pub early_drop: Option<Count>,
}

/// Ports in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ports {
    /// `node`: a node address's ports; `azure`: those that Azure's load balancer keeps for the node, an estimate.
    pub of: String,
    /// The protocol.
    pub protocol: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// In use; of Azure's, to the destination that has most.
    pub in_use: u64,
    /// Of how many.
    pub limit: u64,
    /// The worst destination: in use towards it, by how many there are.
    pub saturation: f64,
}

/// Who has source-translated connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// Who.
    pub who: String,
    /// How many.
    pub connections: u64,
}

/// A connection that is translated as it should not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Anomaly {
    /// The value of the label `anomaly`.
    pub anomaly: String,
    /// From whom.
    pub src: String,
    /// To whom.
    pub dst: String,
    /// Connections.
    pub connections: Count,
}

/// A count of something between two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pair {
    /// From whom.
    pub src: String,
    /// To whom.
    pub dst: String,
    /// How much.
    pub count: Count,
}

/// Health probes of one port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// The service behind the port, or who else is there.
    pub dst: String,
    /// The port of the node.
    pub port: String,
    /// Handshakes that were answered.
    pub answered: Count,
    /// Refused.
    pub refused: Count,
    /// Met with silence.
    pub unanswered: Count,
}

/// NAT beyond its budget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flagged {
    /// The class.
    pub class: String,
    /// Which translation.
    pub nat: String,
}

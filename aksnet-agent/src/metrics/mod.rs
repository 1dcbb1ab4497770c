//! What Prometheus sees. The collector adds to the families' series; the registry shows them.
//!
//! Counters are integers and exact; they become floating point only on the way out. All families are
//! listed in [`describe()`], and how many series each may have is bounded by [`budget`].

pub mod labels;

pub mod budget;

pub mod histogram;

pub mod flow;

pub mod nat;

mod drops;

pub mod policy;

mod tcp;

mod probes;

mod conntrack;

mod agent;

mod node;

mod identity;

mod describe;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::{
    Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricFamily,
};

use aksnet_common::flow::Addr;

use crate::{
    classify::Whois,
    conntrack::Snapshot,
    identify::object::Moment,
    node::{found::Found, pod_ips::PodIps},
};

pub use self::{
    agent::ProgramRuns,
    describe::{Description, Kind, describe, markdown},
    nat::OverheadBudget,
    tcp::Outcome,
};
pub(crate) use self::{drops::DropLabels, flow::FlowCounts};

/// What can be set about the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// The most series a family may have.
    pub series_limit: usize,
    /// How much NAT may add before it is flagged.
    pub overhead_budget: OverheadBudget,
    /// Whether the flow families name pods besides workloads.
    pub pod_labels: bool,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            series_limit: budget::DEFAULT_LIMIT,
            overhead_budget: OverheadBudget::default(),
            pod_labels: false,
        }
    }
}

/// All series.
#[derive(Debug)]
pub(crate) struct Families {
    pub(crate) symbols: labels::Symbols,
    pub(crate) flow: flow::FlowFamilies,
    pub(crate) nat: nat::NatFamilies,
    pub(crate) drops: drops::DropFamilies,
    pub(crate) policy: policy::PolicyFamilies,
    pub(crate) tcp: tcp::TcpFamilies,
    pub(crate) probes: probes::ProbeFamilies,
    pub(crate) conntrack: conntrack::ConntrackFamilies,
    pub(crate) agent: agent::AgentFamilies,
    pub(crate) node: node::NodeFamilies,
    pub(crate) identity: identity::IdentityFamilies,
}

impl Families {
    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        let symbols = &self.symbols;
        self.flow.collect(symbols, &mut families);
        self.nat.collect(&mut families);
        self.drops.collect(symbols, &mut families);
        self.policy.collect(symbols, &mut families);
        self.tcp.collect(symbols, &mut families);
        self.probes.collect(symbols, &mut families);
        self.conntrack.collect(symbols, &mut families);
        let mut folded = self.flow.folded().to_vec();
        folded.extend(self.drops.folded());
        folded.extend(self.policy.folded());
        folded.extend(self.tcp.folded());
        folded.extend(self.probes.folded());
        folded.extend(self.conntrack.folded());
        self.node.collect(&mut families);
        self.agent.collect(&folded, &mut families);
        self.identity.collect(&mut families);
        families
    }
}

/// A handle to the metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    families: Arc<Mutex<Families>>,
    registry: Registry,
}

impl Metrics {
    /// Metrics with all families registered, and the process's own.
    ///
    /// # Panics
    /// If two families have the same name, which a test rules out.
    #[must_use]
    pub fn new(config: MetricsConfig) -> Self {
        let limit = config.series_limit;
        let families = Families {
            symbols: labels::Symbols::default(),
            flow: flow::FlowFamilies::new(limit, config.pod_labels),
            nat: nat::NatFamilies::new(config.overhead_budget),
            drops: drops::DropFamilies::new(limit),
            policy: policy::PolicyFamilies::new(limit),
            tcp: tcp::TcpFamilies::new(limit),
            probes: probes::ProbeFamilies::new(limit),
            conntrack: conntrack::ConntrackFamilies::new(limit),
            agent: agent::AgentFamilies::default(),
            node: node::NodeFamilies::default(),
            identity: identity::IdentityFamilies::default(),
        };
        let families = Arc::new(Mutex::new(families));
        let registry = Registry::new();
        let exposition = Exposition::new(Arc::clone(&families));
        let registered = registry
            .register(Box::new(exposition))
            .and_then(|()| registry.register(Box::new(ProcessCollector::for_self())));
        assert!(registered.is_ok(), "families collide: {registered:?}");
        Self { families, registry }
    }

    /// The series themselves. A sweep holds them from beginning to end, so that a scrape sees whole sweeps.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Families> {
        // A panic while the lock was held leaves integers that were added to or not: nothing is torn.
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a program is attached and runs.
    pub fn set_program_up(&self, program: &str, hook: &str, up: bool) {
        let key = (program.to_owned(), hook.to_owned());
        self.lock().agent.programs.insert(key, up);
    }

    /// The kernel's own account of a program; both numbers only grow.
    pub fn set_program_runs(&self, program: &str, runs: ProgramRuns) {
        self.lock().agent.runs.insert(program.to_owned(), runs);
    }

    /// What the conntrack table and its statistics say.
    pub fn set_conntrack(&self, snapshot: Snapshot) {
        self.lock().conntrack.set(snapshot);
    }

    /// Live source-translated connections by workload; replaces what was set before.
    pub fn set_snat_connections(&self, connections: impl Iterator<Item = (labels::Party, u64)>) {
        self.lock().conntrack.set_connections(connections);
    }

    /// The same from the clients' addresses, named as of `now`.
    pub fn count_snat_connections(
        &self,
        whois: &Whois,
        now: Moment,
        clients: impl IntoIterator<Item = (Addr, u64)>,
    ) {
        let mut families = self.lock();
        families.symbols.forget_names();
        let mut by_party: BTreeMap<labels::Party, u64> = BTreeMap::new();
        for (address, connections) in clients {
            let client = whois.peer(address, 0, now);
            let party = labels::party(&mut families.symbols, whois, &client);
            *by_party.entry(party).or_default() += connections;
        }
        families.conntrack.set_connections(by_party.into_iter());
    }

    /// How many objects of a kind are known to the identity index.
    pub fn set_identity_objects(&self, kind: &'static str, count: u64) {
        self.lock().identity.objects.insert(kind, count);
    }

    /// Whether a source of identity has told all it has, and tells what changes.
    pub fn set_identity_synced(&self, source: &'static str, synced: bool) {
        self.lock().identity.synced.insert(source, synced);
    }

    /// Flow records that were sent to an OpenTelemetry collector, and that could not be.
    pub fn count_otlp_records(&self, sent: u64, dropped: u64) {
        let [all_sent, all_dropped] = &mut self.lock().agent.otlp_records;
        *all_sent += sent;
        *all_dropped += dropped;
    }

    /// A request to an OpenTelemetry collector failed.
    pub fn count_otlp_failure(&self) {
        self.lock().agent.otlp_failures += 1;
    }

    /// What was built.
    pub fn set_build(&self, version: &str, revision: &str) {
        self.lock().agent.build = Some((version.to_owned(), revision.to_owned()));
    }

    /// What the node is: replaces what was said before.
    pub fn set_node(&self, name: &str, found: &Found) {
        self.lock().node.set_info(name, found);
    }

    /// The accounts of pod addresses: replaces those before.
    pub fn set_pod_ips(&self, accounts: &[PodIps]) {
        accounts.clone_into(&mut self.lock().node.pod_ips);
    }

    /// How long a sweep took.
    pub fn observe_sweep(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.lock().agent.sweep(ns);
    }

    /// The registry, for families that others add.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All families in Prometheus' text format.
    ///
    /// # Errors
    /// When a family breaks the format's rules.
    pub fn encode(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Shows the families to the registry.
struct Exposition {
    families: Arc<Mutex<Families>>,
    descs: Vec<Desc>,
}

impl Exposition {
    fn new(families: Arc<Mutex<Families>>) -> Self {
        let descs = describe().into_iter().filter_map(|d| {
            let labels = d.labels.iter().map(|l| (*l).to_owned()).collect();
            Desc::new(d.name.to_owned(), d.help.to_owned(), labels, HashMap::new()).ok()
        });
        let descs = descs.collect();
        Self { families, descs }
    }
}

impl Collector for Exposition {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.families
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .collect()
    }
}

#[cfg(test)]
mod tests;

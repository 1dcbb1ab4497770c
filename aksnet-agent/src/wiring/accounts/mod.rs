//! The *accounts*: the maps, or the table that captured packets are counted in, and what was made of them. The agent's
//! life sweeps them, and whoever asks over the socket is answered from them.

// What is answered from them.
mod answers;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aksnet_common::flow::Addr;
use serde_json::{Value, json};

use crate::{
    agent::{Parts, Sweeper},
    bpf::{self, MapSource, datapath::Datapath, kernel},
    capture::table::Shared,
    classify::Whois,
    cli::{REVISION, VERSION},
    collect::{
        self, Circumstances, CollectConfig, Collector, DropNames, Found, Now, Recording,
        SweepReport,
    },
    config::Config,
    conntrack::fullness,
    doctor::{gather, history::History, tally::Tally},
    droplog::{DropLog, symbols::Places},
    flowlog::FlowLog,
    identify::{object::Kind, shared},
    metrics::Metrics,
    node::Node,
    otlp,
    plan::Plan,
    policy::engine::Engine,
    sources::Sources,
    survey::Surveyed,
};

/// The maps, and what was made of them. Sweeps and readers of `top` take turns.
pub(super) struct Accounts<S>(Arc<Mutex<Inner<S>>>);

impl<S> Clone for Accounts<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<S> {
    collector: Collector,
    source: S,
    names: DropNames,
    /// Why drops come without the tuple that was dialled.
    conntrack_unreadable: Option<String>,
    plan: Arc<Plan>,
    sources: Arc<Sources>,
    /// When what changes slowly was last looked at.
    slow: Option<Instant>,
    report: SweepReport,
    drops: Arc<DropLog>,
    flows: Arc<FlowLog>,
    node_name: String,
    places: Places,
    /// Who enforces policies on the node, by the latest survey.
    engine: Engine,
    /// Whether connections were ever tracked here: netfilter does so from the first rule on that asks for it.
    tracking: bool,
    /// The latest survey.
    surveyed: Option<Surveyed>,
    /// What was counted in the last minutes, for `doctor`.
    history: History,
}

impl<S: Counting> Accounts<S> {
    /// `unreadable`: why drops come without the tuple that was dialled, if they do.
    pub(super) fn new(
        config: &Config,
        node: &Node,
        sources: &Arc<Sources>,
        source: S,
        names: DropNames,
        unreadable: Option<String>,
    ) -> (Self, Metrics) {
        let metrics = Metrics::new(config.metrics());
        metrics.set_build(VERSION, REVISION);
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let collect = CollectConfig {
            idle_ms: ms(config.idle_timeout),
            policy_grace_ms: ms(config.policy_grace),
            active_ms: ms(config.flow_active_timeout),
            ..CollectConfig::default()
        };
        let accounts = Self(Arc::new(Mutex::new(Inner {
            collector: Collector::new(collect, metrics.clone(), bpf::loader::random_seed()),
            names,
            source,
            conntrack_unreadable: unreadable,
            plan: node.plan.clone(),
            sources: sources.clone(),
            slow: None,
            report: SweepReport::default(),
            drops: Arc::default(),
            flows: Arc::default(),
            node_name: sources.node_name.clone(),
            places: Places::default(),
            engine: Engine::Kubernetes,
            tracking: false,
            surveyed: None,
            history: History::default(),
        })));
        (accounts, metrics)
    }

    pub(super) fn parts(
        self,
        datapath: Box<dyn Datapath>,
        metrics: Metrics,
        config: &Config,
    ) -> Parts {
        if !config.otlp_endpoint.is_empty() {
            let (log, node) = {
                let inner = self.lock();
                (inner.flows.clone(), inner.node_name.clone())
            };
            let endpoint = config.otlp_endpoint.clone();
            tracing::info!("sending flow records and metrics to {endpoint}");
            tokio::spawn(otlp::send::send(endpoint, node, log, metrics.clone()));
        }
        Parts {
            datapath,
            sweeper: Box::new(self.clone()),
            metrics: Arc::new(move || Ok(metrics.encode()?)),
            top: Arc::new(self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        // A sweep that panicked left counters that are still right: deltas are taken when they are added.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between two looks at what changes slowly and takes longer: ports in use, objects known.
const SLOW: Duration = Duration::from_secs(5);

impl<S: Counting> Inner<S> {
    /// Shows what the sources say by themselves, every few seconds.
    fn look_around(&mut self, last: bool) {
        let due = self.slow.is_none_or(|at| at.elapsed() >= SLOW);
        if !due && !last {
            return;
        }
        self.slow = Some(Instant::now());
        let (metrics, sources) = (self.collector.metrics(), &self.sources);
        let now = shared::now();
        sources.names.write().expire(now);
        sources.count_nodes();
        sources.names.show(metrics);
        metrics.set_conntrack(sources.conntrack.snapshot());
        let clients: Vec<(Addr, u64)> = sources
            .conntrack
            .with_table(|table| table.snat_connections().collect());
        let index = sources.names.read();
        let whois = Whois {
            plan: &self.plan,
            index: &index,
            translations: None,
        };
        metrics.count_snat_connections(&whois, now, clients);
        drop(index);
        self.remember();
    }

    /// Notes what `doctor` compares the present with.
    fn remember(&mut self) {
        let now = Instant::now();
        let kernel = self.sources.conntrack.snapshot().counters;
        if self.history.is_due(now) {
            let families = self.collector.metrics().registry().gather();
            self.history.add(now, Tally::take(&families), kernel);
        }
        self.history.note_kernel(kernel);
        let index = self.sources.names.read();
        if index.synced(Kind::Service) {
            let pending = index
                .services()
                .filter(|s| s.load_balancer && !s.has_ingress);
            self.history
                .note_pending(now, pending.map(gather::service_key));
        }
    }

    /// What a drop's cause depends on besides the drop.
    fn circumstances(&mut self) -> Circumstances {
        self.tracking = self.tracking || fullness::entries().is_some_and(|entries| entries > 0);
        Circumstances {
            engine: self.engine,
            tracking: self.tracking,
        }
    }

    /// Hands the sweep's drops to those who follow them, with the names of the kernel's functions.
    fn log_drops(&mut self) {
        let found = self.collector.take_records();
        if found.is_empty() {
            return;
        }
        let unnamed = |found: &&Found| found.record.location.is_empty();
        let asked: Vec<u64> = found.iter().filter(unnamed).map(|f| f.address).collect();
        let mut names = self.places.names(&asked, kernel::text_symbols).into_iter();
        let records = found.into_iter().map(|mut found| {
            if found.record.location.is_empty() {
                found.record.location = names.next().unwrap_or_default().into();
            }
            found.record
        });
        let records: Vec<_> = records.collect();
        self.drops.publish(records);
    }

    /// Hands on what ended, and what goes on for long.
    fn log_flows(&mut self) {
        let (records, missed) = self.collector.take_flows();
        if !records.is_empty() || missed > 0 {
            self.flows.publish(records, missed);
        }
    }

    fn sweep(&mut self, last: bool) -> anyhow::Result<()> {
        self.look_around(last);
        let recording = match self.flows.followers() {
            0 => Recording::Few,
            _ => Recording::All,
        };
        self.collector.record(recording, &self.node_name);
        let circumstances = self.circumstances();
        self.collector.set_circumstances(circumstances);
        let started = Instant::now();
        let now = now();
        let Self {
            collector,
            source,
            names,
            plan,
            sources,
            ..
        } = self;
        let index = sources.names.read();
        let whois = Whois {
            plan,
            index: &index,
            translations: Some(sources.conntrack.as_ref()),
        };
        let report = if last {
            collector.finish(source, now, whois, names)
        } else {
            collector.sweep(source, now, whois, names)
        };
        collector.metrics().observe_sweep(started.elapsed());
        drop(index);
        // The next sweep reads what is left in the cells that this one closed: by then no program may still be
        // adding to them, however long its CPU was taken away from this machine.
        if report.closed > 0 && !last {
            S::wait_for_programs();
        }
        self.log_drops();
        self.log_flows();
        self.report = report;
        match self.report.errors.as_slice() {
            [] => Ok(()),
            errors => Err(anyhow::anyhow!("{}", errors.join("; "))),
        }
    }
}

fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        monotonic_ns: shared::now(),
        unix_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
    }
}

/// A source whose writers can be waited for.
pub(super) trait Counting: collect::source::Source + Send + 'static {
    /// Packets are captured, and so have no NAT times.
    const IS_CAPTURE: bool;

    /// Returns when everybody has ended who was adding to a cell before.
    fn wait_for_programs();
}

impl Counting for MapSource {
    const IS_CAPTURE: bool = false;

    fn wait_for_programs() {
        bpf::maps::wait_for_programs();
    }
}

impl Counting for Shared {
    const IS_CAPTURE: bool = true;

    /// Whoever captures holds the table's lock while it counts.
    fn wait_for_programs() {}
}

impl<S: Counting> Sweeper for Accounts<S> {
    fn sweep(&mut self, _now: Instant) -> anyhow::Result<()> {
        self.lock().sweep(false)
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.lock().sweep(true)
    }

    fn set_plan(&mut self, plan: Arc<Plan>) {
        self.lock().plan = plan;
    }

    fn set_survey(&mut self, surveyed: &Surveyed) {
        let mut inner = self.lock();
        let engine = surveyed.found.policy_engine.value;
        inner.engine = engine.and_then(Engine::from_name).unwrap_or_default();
        let metrics = inner.collector.metrics();
        metrics.set_node(&inner.sources.node_name, &surveyed.found);
        metrics.set_pod_ips(&surveyed.pod_ips.accounts);
        inner.surveyed = Some(surveyed.clone());
    }

    fn tables(&self) -> Value {
        let inner = self.lock();
        json!({
            "flow_cells": { "used": inner.report.live, "of": inner.source.limit() },
            "last_sweep": {
                "changed": inner.report.changed,
                "new": inner.report.new,
                "closed": inner.report.closed,
                "freed": inner.report.freed,
                "spilled": inner.report.spilled,
                "drops": inner.report.drops,
            },
            "drops": {
                "dialled_known": inner.conntrack_unreadable.is_none(),
                "why_not": inner.conntrack_unreadable,
            },
        })
    }
}

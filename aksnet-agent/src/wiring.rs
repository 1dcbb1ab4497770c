//! Joins the kernel side and the accounts to the agent's life.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aksnet_common::flow::Addr;
use serde_json::{Value, json};

use crate::{
    agent::{Parts, Sweeper},
    bpf::{
        self, LoadOptions, MapSource,
        attach_error::AttachError,
        datapath::Datapath,
        kernel::{self, Kernel},
        status::ProgramStatus,
    },
    capture::{self, table::Shared},
    classify::Whois,
    cli::{self, REVISION, VERSION},
    collect::{
        self, Circumstances, CollectConfig, Collector, DropNames, Found, Now, Recording,
        SweepReport,
    },
    commands::top::json_lines,
    config::{BpfLog, Config},
    conntrack::fullness,
    doctor::{
        Evidence,
        gather::{self, Held},
        history::History,
        tally::Tally,
    },
    droplog::{DropLog, symbols::Places},
    exit::{Exit, Failure, OrExit},
    flowlog::{Filter, FlowLog, FlowRecord},
    identify::{object::Kind, shared},
    live::{self, LiveQuery},
    metrics::{Metrics, ProgramRuns},
    node::{Node, interface::Interface},
    otlp,
    plan::Plan,
    policy::engine::Engine,
    session,
    socket::protocol::{LiveSource, TopQuery, TopReader},
    sources::Sources,
    survey::Surveyed,
    top,
};

/// Loads the programs for this node and builds the accounts on their maps.
///
/// # Errors
/// When the kernel refuses the programs or maps.
pub fn load(config: &Config, node: &Node, sources: &Arc<Sources>) -> Result<Parts, Failure> {
    if config.capture {
        return Ok(capture(config, node, sources));
    }
    let mut loaded = bpf::load(&options(config))
        .map_err(|error| {
            error.context(
                "the programs cannot be loaded (--capture counts packets without them: dearer, without NAT times and drops)",
            )
        })
        .or_exit(Exit::Software)?;
    loaded.attacher.attach_drops();
    if let Some(why) = &loaded.kernel.conntrack_unreadable {
        tracing::warn!("drops come without the address that was dialled: {why}");
    }
    if config.bpf_log != BpfLog::Off {
        bpf::log::follow(&mut loaded.attacher);
    }
    let names = drop_names(&loaded.kernel);
    let (accounts, metrics) = Accounts::new(config, node, sources, loaded.source, names);
    accounts.lock().conntrack_unreadable = loaded.kernel.conntrack_unreadable;
    bpf::loader::give_back_memory();
    let datapath = Reported {
        attacher: loaded.attacher,
        metrics: metrics.clone(),
    };
    Ok(accounts.parts(Box::new(datapath), metrics, config))
}

/// Captures packets on the node's interfaces, and builds the accounts on what it counts.
fn capture(config: &Config, node: &Node, sources: &Arc<Sources>) -> Parts {
    tracing::warn!("{}", capture::live::WITHOUT);
    let (taps, table) = capture::live::start(config.flow_cells, config.spill_entries);
    let names = DropNames::new([], Vec::new());
    let (accounts, metrics) = Accounts::new(config, node, sources, table, names);
    let datapath = Tapped {
        taps,
        metrics: metrics.clone(),
    };
    accounts.parts(Box::new(datapath), metrics, config)
}

/// The taps, which also tell the metrics how they are.
struct Tapped {
    taps: capture::live::Taps,
    metrics: Metrics,
}

impl Datapath for Tapped {
    fn attach(&mut self, interface: &Interface) -> Result<(), AttachError> {
        self.taps.attach(interface)
    }

    fn detach(&mut self, ifindex: u32) {
        self.taps.detach(ifindex);
    }

    fn programs(&self) -> Vec<ProgramStatus> {
        let programs = self.taps.programs();
        for program in &programs {
            self.metrics
                .set_program_up(&program.program, &program.hook, program.up);
        }
        programs
    }
}

fn options(config: &Config) -> LoadOptions {
    LoadOptions {
        flow_cells: config.flow_cells,
        spill_entries: config.spill_entries,
        sample: config.sample,
        first_packets: config.first_packets,
        attach: config.attach,
        log_level: config.bpf_log as u8,
        ..LoadOptions::default()
    }
}

/// Reason names from BTF and function names from `/proc/kallsyms`.
fn drop_names(kernel: &Kernel) -> DropNames {
    let reasons = kernel
        .reasons
        .iter()
        .map(|(&number, name)| (number, name.clone()));
    DropNames::new(reasons, kernel::text_symbols())
}

/// The attacher, which also tells the metrics how the programs are.
struct Reported {
    attacher: bpf::Attacher,
    metrics: Metrics,
}

impl Datapath for Reported {
    fn attach(&mut self, interface: &Interface) -> Result<(), AttachError> {
        self.attacher.attach(interface)
    }

    fn detach(&mut self, ifindex: u32) {
        self.attacher.detach(ifindex);
    }

    fn programs(&self) -> Vec<ProgramStatus> {
        let programs = self.attacher.programs();
        for program in &programs {
            self.metrics
                .set_program_up(&program.program, &program.hook, program.up);
            let (runs, run_ns) = self.attacher.runs(&program.program);
            self.metrics
                .set_program_runs(&program.program, ProgramRuns { runs, run_ns });
        }
        programs
    }
}

/// The maps, and what was made of them. Sweeps and readers of `top` take turns.
struct Accounts<S>(Arc<Mutex<Inner<S>>>);

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
    fn new(
        config: &Config,
        node: &Node,
        sources: &Arc<Sources>,
        source: S,
        names: DropNames,
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
            conntrack_unreadable: None,
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

    fn parts(self, datapath: Box<dyn Datapath>, metrics: Metrics, config: &Config) -> Parts {
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
trait Counting: collect::source::Source + Send + 'static {
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

impl<S: Counting> LiveSource for Accounts<S> {
    fn drop_log(&self) -> Arc<DropLog> {
        self.lock().drops.clone()
    }

    fn flow_log(&self) -> Arc<FlowLog> {
        self.lock().flows.clone()
    }

    fn live_flows(&self, filter: &Filter, limit: usize) -> Vec<FlowRecord> {
        let inner = self.lock();
        let index = inner.sources.names.read();
        let whois = Whois {
            plan: &inner.plan,
            index: &index,
            translations: Some(inner.sources.conntrack.as_ref()),
        };
        // A filter goes by names, which only the records have.
        let most = if filter.is_empty() { limit } else { 0 };
        let mut flows = inner
            .collector
            .live_connections(&inner.source, &whois, &inner.names, most);
        flows.retain(|flow| filter.takes(flow));
        if limit > 0 {
            flows.truncate(limit);
        }
        flows
    }

    fn session(&self) -> Value {
        let inner = self.lock();
        let mut session = session::of_index(&inner.sources.names.read());
        session["node"] = json!(inner.node_name);
        session["engine"] = json!(inner.engine.name());
        session["capture"] = json!(S::IS_CAPTURE);
        session
    }

    fn open(&self) -> Box<dyn TopReader> {
        Box::new(self.clone())
    }

    fn evidence(&self) -> Evidence {
        let mut inner = self.lock();
        // What is counted at longer intervals is as old as that.
        inner.slow = None;
        inner.look_around(false);
        let families = inner.collector.metrics().registry().gather();
        let index = inner.sources.names.read();
        gather::gather(&Held {
            families: &families,
            history: &inner.history,
            now: Instant::now(),
            index: &index,
            moment: shared::now(),
            sources: &inner.sources.names.sources(),
            conntrack: &inner.sources.conntrack.snapshot(),
            surveyed: inner.surveyed.as_ref(),
            records: &inner.drops.recent(),
            node_name: &inner.sources.node_name,
        })
    }
}

impl<S: Counting> TopReader for Accounts<S> {
    fn rows(&mut self, query: &TopQuery) -> Vec<Value> {
        let sort = match query.sort {
            cli::Sort::Bytes => top::Sort::Bytes,
            cli::Sort::Packets => top::Sort::Packets,
            cli::Sort::NatTime => top::Sort::NatTime,
            cli::Sort::Drops => top::Sort::Drops,
        };
        let inner = self.lock();
        let query = top::Query {
            limit: query.limit,
            sort,
        };
        let index = inner.sources.names.read();
        let whois = Whois {
            plan: &inner.plan,
            index: &index,
            translations: Some(inner.sources.conntrack.as_ref()),
        };
        top::rows(&inner.collector, &inner.source, &whois, &inner.names, query)
            .iter()
            .filter_map(|row| serde_json::to_value(row).ok())
            .collect()
    }

    fn live(&mut self, query: &LiveQuery) -> Result<live::Snapshot, String> {
        // Before the accounts are locked: sweeps do not wait for this.
        let (sources, log) = {
            let inner = self.lock();
            (inner.sources.clone(), inner.drops.clone())
        };
        let outside = live::Outside {
            destinations: sources.conntrack.busiest(query.limit()),
            records: log.recent(),
        };
        let inner = self.lock();
        let index = sources.names.read();
        let whois = Whois {
            plan: &inner.plan,
            index: &index,
            translations: Some(sources.conntrack.as_ref()),
        };
        let view = live::View {
            collector: &inner.collector,
            source: &inner.source,
            whois: &whois,
            names: &inner.names,
            now: shared::now(),
        };
        view.look(query, &outside)
    }
}

/// Rows of `top` as aligned lines with a header. A row that this version does not know stays JSON.
#[must_use]
pub fn rows_text(rows: &[Value]) -> String {
    let known: Result<Vec<top::Row>, _> = rows
        .iter()
        .map(|row| serde_json::from_value(row.clone()))
        .collect();
    match known {
        Ok(rows) => top::raw::lines(&rows),
        Err(_) => json_lines(rows),
    }
}

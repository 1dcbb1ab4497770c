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
    classify::Whois,
    cli::{self, REVISION, VERSION},
    collect::{
        Circumstances, CollectConfig, Collector, DropNames, Found, Now, SweepReport,
        source::Source as _,
    },
    commands::top::json_lines,
    config::{BpfLog, Config},
    conntrack::fullness,
    droplog::{DropLog, symbols::Places},
    exit::{Exit, Failure, OrExit},
    identify::shared,
    live::{self, LiveQuery},
    metrics::{Metrics, ProgramRuns},
    node::{Node, interface::Interface},
    plan::Plan,
    policy::engine::Engine,
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
    let mut loaded = bpf::load(&options(config)).or_exit(Exit::Software)?;
    loaded.attacher.attach_drops();
    if let Some(why) = &loaded.kernel.conntrack_unreadable {
        tracing::warn!("drops come without the address that was dialled: {why}");
    }
    if config.bpf_log != BpfLog::Off {
        bpf::log::follow(&mut loaded.attacher);
    }
    let metrics = Metrics::new(config.metrics());
    metrics.set_build(VERSION, REVISION);
    let collect = CollectConfig {
        idle_ms: u32::try_from(config.idle_timeout.as_millis()).unwrap_or(u32::MAX),
        policy_grace_ms: u32::try_from(config.policy_grace.as_millis()).unwrap_or(u32::MAX),
        ..CollectConfig::default()
    };
    let accounts = Accounts(Arc::new(Mutex::new(Inner {
        collector: Collector::new(collect, metrics.clone(), bpf::loader::random_seed()),
        names: drop_names(&loaded.kernel),
        source: loaded.source,
        conntrack_unreadable: loaded.kernel.conntrack_unreadable,
        plan: node.plan.clone(),
        sources: sources.clone(),
        slow: None,
        report: SweepReport::default(),
        drops: Arc::default(),
        places: Places::default(),
        engine: Engine::Kubernetes,
        tracking: false,
    })));
    bpf::loader::give_back_memory();
    let text = metrics.clone();
    Ok(Parts {
        datapath: Box::new(Reported {
            attacher: loaded.attacher,
            metrics,
        }),
        sweeper: Box::new(accounts.clone()),
        metrics: Arc::new(move || Ok(text.encode()?)),
        top: Arc::new(accounts),
    })
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
#[derive(Clone)]
struct Accounts(Arc<Mutex<Inner>>);

struct Inner {
    collector: Collector,
    source: MapSource,
    names: DropNames,
    /// Why drops come without the tuple that was dialled.
    conntrack_unreadable: Option<String>,
    plan: Arc<Plan>,
    sources: Arc<Sources>,
    /// When what changes slowly was last looked at.
    slow: Option<Instant>,
    report: SweepReport,
    drops: Arc<DropLog>,
    places: Places,
    /// Who enforces policies on the node, by the latest survey.
    engine: Engine,
    /// Whether connections were ever tracked here: netfilter does so from the first rule on that asks for it.
    tracking: bool,
}

impl Accounts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A sweep that panicked left counters that are still right: deltas are taken when they are added.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between two looks at what changes slowly and takes longer: ports in use, objects known.
const SLOW: Duration = Duration::from_secs(5);

impl Inner {
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

    fn sweep(&mut self, last: bool) -> anyhow::Result<()> {
        self.look_around(last);
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
            bpf::maps::wait_for_programs();
        }
        self.log_drops();
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

impl Sweeper for Accounts {
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
    }

    fn tables(&self) -> Value {
        let inner = self.lock();
        json!({
            "flow_cells": { "used": inner.report.live, "of": inner.source.cells() },
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

impl LiveSource for Accounts {
    fn drop_log(&self) -> Arc<DropLog> {
        self.lock().drops.clone()
    }

    fn open(&self) -> Box<dyn TopReader> {
        Box::new(self.clone())
    }
}

impl TopReader for Accounts {
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
            records: log.kept(),
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

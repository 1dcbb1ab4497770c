//! Joins the kernel side and the accounts to the agent's life.

// What is counted, swept and shown.
mod accounts;

use std::sync::Arc;

use serde_json::Value;

use self::accounts::Accounts;
use crate::{
    agent::Parts,
    bpf::{
        self, LoadOptions,
        attach_error::AttachError,
        datapath::Datapath,
        kernel::{self, Kernel},
        status::ProgramStatus,
    },
    capture,
    collect::DropNames,
    commands::top::json_lines,
    config::{BpfLog, Config},
    exit::{Exit, Failure, OrExit},
    metrics::{Metrics, ProgramRuns},
    node::{Node, interface::Interface},
    sources::Sources,
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
    let unreadable = loaded.kernel.conntrack_unreadable;
    let (accounts, metrics) =
        Accounts::new(config, node, sources, loaded.source, names, unreadable);
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
    let (accounts, metrics) = Accounts::new(config, node, sources, table, names, None);
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
    let mut symbols = kernel::text_symbols().peekable();
    if symbols.peek().is_none() {
        tracing::warn!(
            "/proc/kallsyms tells no addresses (they need CAP_SYSLOG, and kernel.kptr_restrict below 2): which kernel \
             function dropped a packet is not known, and the cause of some drops will be 'other'"
        );
    }
    DropNames::new(reasons, symbols)
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

//! Families about the agent itself: its programs, its tables, its own work.

use std::collections::BTreeMap;

use aksnet_common::stats::{Event, Skip};
use prometheus::proto::MetricFamily;

use super::{
    describe::{self, Family},
    histogram::Durations,
};
use crate::collect::source::Totals;

/// Bounds of the sweep histogram in nanoseconds: 100 µs to 1 s.
const SWEEP_BOUNDS_NS: &[u64] = &[
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
];

/// The kernel's own account of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramRuns {
    /// How often it ran.
    pub runs: u64,
    /// For how many nanoseconds in all.
    pub run_ns: u64,
}

/// The agent's own series.
#[derive(Clone, Debug)]
pub(crate) struct AgentFamilies {
    pub(crate) programs: BTreeMap<(String, String), bool>,
    pub(super) runs: BTreeMap<String, ProgramRuns>,
    pub(super) build: Option<(String, String)>,
    pub(crate) entries: u64,
    pub(crate) limit: u64,
    pub(crate) totals: Totals,
    /// Flow records that were sent by OTLP, and that could not be.
    pub(super) otlp_records: [u64; 2],
    pub(super) otlp_failures: u64,
    sweeps: Durations,
}

impl Default for AgentFamilies {
    fn default() -> Self {
        Self {
            programs: BTreeMap::new(),
            runs: BTreeMap::new(),
            build: None,
            entries: 0,
            limit: 0,
            totals: Totals::default(),
            otlp_records: [0; 2],
            otlp_failures: 0,
            sweeps: Durations::new(SWEEP_BOUNDS_NS),
        }
    }
}

impl AgentFamilies {
    pub(super) fn sweep(&mut self, ns: u64) {
        self.sweeps.observe(ns);
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "exposition is in double precision"
    )]
    pub(super) fn collect(&self, folded: &[(&'static str, u64)], into: &mut Vec<MetricFamily>) {
        let mut families = Vec::new();
        let mut add = |description, fill: &dyn Fn(&mut Family)| {
            let mut family = Family::new(description);
            fill(&mut family);
            families.push(family.build());
        };
        add(describe::PROGRAM_UP, &|f| {
            for ((program, hook), up) in &self.programs {
                f.gauge(
                    vec![program.clone(), hook.clone()],
                    f64::from(u8::from(*up)),
                );
            }
        });
        add(describe::MAP_ENTRIES, &|f| {
            f.gauge(vec![], self.entries as f64);
        });
        add(describe::MAP_LIMIT, &|f| f.gauge(vec![], self.limit as f64));
        let overflow = &self.totals.overflow;
        add(describe::OVERFLOW_PACKETS, &|f| {
            f.count(
                vec![],
                overflow.iter().map(|o| o.skbs + o.gso_packets).sum(),
            );
        });
        add(describe::OVERFLOW_BYTES, &|f| {
            f.count(vec![], overflow.iter().map(|o| o.bytes + o.gso_bytes).sum());
        });
        add(describe::SKIPPED, &|f| {
            for skip in Skip::ALL {
                f.count(
                    vec![skip.name().to_owned()],
                    self.totals.skipped[skip as usize].skbs,
                );
            }
        });
        add(describe::EVENTS, &|f| {
            for event in Event::ALL {
                f.count(
                    vec![event.name().to_owned()],
                    self.totals.events[event as usize],
                );
            }
        });
        add(describe::FOLDED, &|f| {
            for (metric, n) in folded {
                f.count(vec![(*metric).to_owned()], *n);
            }
        });
        add(describe::OTLP_RECORDS, &|f| {
            for (outcome, n) in ["sent", "dropped"].into_iter().zip(self.otlp_records) {
                f.count(vec![outcome.to_owned()], n);
            }
        });
        add(describe::OTLP_FAILURES, &|f| {
            f.count(vec![], self.otlp_failures);
        });
        add(describe::SWEEP, &|f| {
            f.histogram(vec![], self.sweeps.to_proto());
        });
        add(describe::BPF_RUN_SECONDS, &|f| {
            for (program, runs) in &self.runs {
                f.counter(vec![program.clone()], runs.run_ns as f64 / 1e9);
            }
        });
        add(describe::BPF_RUNS, &|f| {
            for (program, runs) in &self.runs {
                f.count(vec![program.clone()], runs.runs);
            }
        });
        add(describe::BUILD_INFO, &|f| {
            if let Some((version, revision)) = &self.build {
                f.gauge(vec![version.clone(), revision.clone()], 1.0);
            }
        });
        into.append(&mut families);
    }
}

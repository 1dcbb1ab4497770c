//! TCP families: how long handshakes take, which fail and how, and what is sent again.

use std::collections::BTreeMap;

use aksnet_common::passage::NatKind;
use prometheus::proto::MetricFamily;

use super::{
    budget::SeriesTable,
    describe::{self, Family},
    histogram::Durations,
    labels::{FlowLabels, LabelSet, Party, Symbols, nat_name, push_parties},
};
use crate::classify::Class;

/// Bounds of the handshake histogram in nanoseconds: 100 µs (same rack) to 10 s (the fourth SYN).
const HANDSHAKE_BOUNDS_NS: &[u64] = &[
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
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// How a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The far end answered with RST.
    Refused,
    /// The SYN left the node through an uplink, and nothing came back.
    Unanswered,
    /// The SYN was handed to a pod of this node, and nothing came back.
    PodSilent,
}

impl Outcome {
    /// The value of the label `outcome`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::PodSilent => "pod_silent",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FailureLabels {
    class: Class,
    outcome: Outcome,
    src: Party,
    dst: Party,
}

impl LabelSet for FailureLabels {
    const NAMES: &'static [&'static str] = describe::FAILURE_LABELS;

    fn folded(self) -> Self {
        Self {
            src: Party::OTHER,
            dst: Party::OTHER,
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        let mut values = vec![self.class.name().to_owned(), self.outcome.name().to_owned()];
        push_parties(&mut values, symbols, self.src, self.dst);
        values
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct RetransmitLabels {
    class: Class,
    src: Party,
    dst: Party,
}

impl LabelSet for RetransmitLabels {
    const NAMES: &'static [&'static str] = describe::RETRANSMIT_LABELS;

    fn folded(self) -> Self {
        Self {
            src: Party::OTHER,
            dst: Party::OTHER,
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        let mut values = vec![self.class.name().to_owned()];
        push_parties(&mut values, symbols, self.src, self.dst);
        values
    }
}

/// The series of the TCP families.
#[derive(Clone, Debug)]
pub(crate) struct TcpFamilies {
    handshakes: BTreeMap<(Class, NatKind), Durations>,
    failures: SeriesTable<FailureLabels, u64>,
    retransmits: SeriesTable<RetransmitLabels, u64>,
}

impl TcpFamilies {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            handshakes: BTreeMap::new(),
            failures: SeriesTable::new(limit),
            retransmits: SeriesTable::new(limit),
        }
    }

    pub(crate) fn handshake(&mut self, class: Class, nat: NatKind, ns: u64) {
        self.handshakes
            .entry((class, nat))
            .or_insert_with(|| Durations::new(HANDSHAKE_BOUNDS_NS))
            .observe(ns);
    }

    /// A handshake of the flow that opened the connection failed.
    pub(crate) fn failure(&mut self, flow: FlowLabels, outcome: Outcome) {
        let FlowLabels {
            class, src, dst, ..
        } = flow;
        *self.failures.entry(FailureLabels {
            class,
            outcome,
            src,
            dst,
        }) += 1;
    }

    pub(crate) fn retransmits(&mut self, flow: FlowLabels, packets: u64) {
        let FlowLabels {
            class, src, dst, ..
        } = flow;
        *self.retransmits.entry(RetransmitLabels { class, src, dst }) += packets;
    }

    pub(super) fn folded(&self) -> [(&'static str, u64); 2] {
        [
            (describe::HANDSHAKE_FAILURES.name, self.failures.folded()),
            (describe::RETRANSMITS.name, self.retransmits.folded()),
        ]
    }

    pub(super) fn collect(&self, symbols: &Symbols, into: &mut Vec<MetricFamily>) {
        let mut handshakes = Family::new(describe::HANDSHAKE);
        for ((class, nat), durations) in &self.handshakes {
            let labels = vec![class.name().to_owned(), nat_name(*nat).to_owned()];
            handshakes.histogram(labels, durations.to_proto());
        }
        let mut failures = Family::new(describe::HANDSHAKE_FAILURES);
        for (labels, n) in self.failures.iter(symbols) {
            failures.count(labels, *n);
        }
        let mut retransmits = Family::new(describe::RETRANSMITS);
        for (labels, n) in self.retransmits.iter(symbols) {
            retransmits.count(labels, *n);
        }
        into.extend([handshakes, failures, retransmits].map(Family::build));
    }

    /// Handshakes, refusals, unanswered SYNs and retransmits so far.
    #[cfg(test)]
    pub(crate) fn totals(&self) -> (u64, u64, u64, u64) {
        let symbols = Symbols::default();
        let failed = |outcome: Outcome| {
            let all = self.failures.iter(&symbols);
            all.filter(|(labels, _)| labels[1] == outcome.name())
                .map(|(_, n)| *n)
                .sum()
        };
        (
            self.handshakes.values().map(Durations::count).sum(),
            failed(Outcome::Refused),
            failed(Outcome::Unanswered),
            self.retransmits.iter(&symbols).map(|(_, n)| *n).sum(),
        )
    }
}

//! Policy families: what network policies denied, and what they deny and the node forwarded all the same.

use prometheus::proto::MetricFamily;

use super::{
    budget::SeriesTable,
    describe::{self, Family},
    labels::{LabelSet, Party, Symbol, Symbols, push_parties},
};
use crate::policy::model::Side;

/// How sure the name of a policy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confidence {
    /// One policy isolates the pod in that direction: it is the one.
    Exact,
    /// Several isolate it and none allows it, or whether a rule allows it depends on labels that are not known.
    Candidates,
    /// The engine's own mark says that a policy denied it, but no policy that is known does.
    Unexplained,
}

impl Confidence {
    /// The value of the label `confidence`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Candidates => "candidates",
            Self::Unexplained => "unexplained",
        }
    }
}

/// The labels of the families of denied packets and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DeniedLabels {
    pub(crate) side: Side,
    /// `namespace/name` of each isolating policy, in name order.
    pub(crate) policy: Symbol,
    pub(crate) confidence: Confidence,
    pub(crate) engine: &'static str,
    pub(crate) src: Party,
    pub(crate) dst: Party,
}

impl LabelSet for DeniedLabels {
    const NAMES: &'static [&'static str] = describe::DENIED_LABELS;

    fn folded(self) -> Self {
        Self {
            policy: Symbol::OTHER,
            src: Party::OTHER,
            dst: Party::OTHER,
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        let mut values = vec![
            self.side.name().to_owned(),
            symbols.get(self.policy).to_owned(),
            self.confidence.name().to_owned(),
            self.engine.to_owned(),
        ];
        push_parties(&mut values, symbols, self.src, self.dst);
        values
    }
}

/// The labels of the families of what was forwarded although policies deny it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GapLabels {
    pub(crate) side: Side,
    /// As in [`DeniedLabels`].
    pub(crate) policy: Symbol,
    pub(crate) src: Party,
    pub(crate) dst: Party,
}

impl LabelSet for GapLabels {
    const NAMES: &'static [&'static str] = describe::GAP_LABELS;

    fn folded(self) -> Self {
        Self {
            policy: Symbol::OTHER,
            src: Party::OTHER,
            dst: Party::OTHER,
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        let mut values = vec![
            self.side.name().to_owned(),
            symbols.get(self.policy).to_owned(),
        ];
        push_parties(&mut values, symbols, self.src, self.dst);
        values
    }
}

/// Packets and connections of a series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    packets: u64,
    connections: u64,
}

/// The series of the policy families.
#[derive(Clone, Debug)]
pub(crate) struct PolicyFamilies {
    denied: SeriesTable<DeniedLabels, Counts>,
    gaps: SeriesTable<GapLabels, Counts>,
}

impl PolicyFamilies {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            denied: SeriesTable::new(limit),
            gaps: SeriesTable::new(limit),
        }
    }

    pub(crate) fn deny(&mut self, labels: DeniedLabels, packets: u64, connections: u64) {
        let counts = self.denied.entry(labels);
        counts.packets += packets;
        counts.connections += connections;
    }

    pub(crate) fn add_gap(&mut self, labels: GapLabels, packets: u64, connections: u64) {
        let counts = self.gaps.entry(labels);
        counts.packets += packets;
        counts.connections += connections;
    }

    pub(super) fn folded(&self) -> [(&'static str, u64); 2] {
        [
            (describe::DENIED_PACKETS.name, self.denied.folded()),
            (describe::GAP_PACKETS.name, self.gaps.folded()),
        ]
    }

    pub(super) fn collect(&self, symbols: &Symbols, into: &mut Vec<MetricFamily>) {
        let mut denied = [describe::DENIED_PACKETS, describe::DENIED_CONNECTIONS].map(Family::new);
        for (labels, counts) in self.denied.iter(symbols) {
            denied[0].count(labels.clone(), counts.packets);
            denied[1].count(labels, counts.connections);
        }
        let mut gaps = [describe::GAP_PACKETS, describe::GAP_CONNECTIONS].map(Family::new);
        for (labels, counts) in self.gaps.iter(symbols) {
            gaps[0].count(labels.clone(), counts.packets);
            gaps[1].count(labels, counts.connections);
        }
        into.extend(denied.into_iter().chain(gaps).map(Family::build));
    }
}

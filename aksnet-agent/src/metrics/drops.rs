//! Drop families: packets and bytes that the kernel dropped, by its reason, what that means, and who lost
//! them.

use prometheus::proto::MetricFamily;

use super::{
    budget::SeriesTable,
    describe::{self, Family},
    labels::{LabelSet, Party, Symbol, Symbols, push_parties},
};
use crate::collect::cause::{Cause, Direction};

/// The labels of the drop families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DropLabels {
    /// The kernel's own name, lower case. A kernel has about a hundred, so it survives folding.
    pub(crate) reason: Symbol,
    pub(crate) cause: Cause,
    pub(crate) direction: Direction,
    pub(crate) src: Party,
    pub(crate) dst: Party,
}

impl LabelSet for DropLabels {
    const NAMES: &'static [&'static str] = describe::DROP_LABELS;

    fn folded(self) -> Self {
        Self {
            src: Party::OTHER,
            dst: Party::OTHER,
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        let mut values: Vec<String> = vec![
            symbols.get(self.reason).to_owned(),
            self.cause.name().to_owned(),
            self.direction.name().to_owned(),
        ];
        push_parties(&mut values, symbols, self.src, self.dst);
        values
    }
}

/// The series of the drop families: packets and bytes.
#[derive(Clone, Debug)]
pub(crate) struct DropFamilies {
    drops: SeriesTable<DropLabels, (u64, u64)>,
}

impl DropFamilies {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            drops: SeriesTable::new(limit),
        }
    }

    pub(crate) fn add(&mut self, labels: DropLabels, packets: u64, bytes: u64) {
        let series = self.drops.entry(labels);
        series.0 += packets;
        series.1 += bytes;
    }

    pub(super) fn folded(&self) -> [(&'static str, u64); 1] {
        [(describe::DROP_PACKETS.name, self.drops.folded())]
    }

    pub(super) fn collect(&self, symbols: &Symbols, into: &mut Vec<MetricFamily>) {
        let mut packets = Family::new(describe::DROP_PACKETS);
        let mut bytes = Family::new(describe::DROP_BYTES);
        for (labels, counts) in self.drops.iter(symbols) {
            packets.count(labels.clone(), counts.0);
            bytes.count(labels, counts.1);
        }
        into.extend([packets, bytes].map(Family::build));
    }

    /// Everything that was ever added.
    #[cfg(test)]
    pub(crate) fn total(&self, symbols: &Symbols) -> (u64, u64) {
        let all = self.drops.iter(symbols);
        all.fold((0, 0), |sum, (_, n)| (sum.0 + n.0, sum.1 + n.1))
    }
}

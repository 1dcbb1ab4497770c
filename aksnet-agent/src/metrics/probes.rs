//! The family of the Azure load balancer's health probes: whether a service's port answers them. Azure itself shows a
//! backend as down without saying which of the two it was.

use prometheus::proto::MetricFamily;

use super::{
    budget::SeriesTable,
    describe::{self, Family},
    labels::{LabelSet, Party, Symbols},
    tcp::Outcome,
};

/// Whom a probe was for, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ProbeLabels {
    /// The service behind the port; who else is there, if no service is known.
    dst: Party,
    /// The port that the load balancer dialled.
    port: u16,
    /// `None`: answered.
    failure: Option<Outcome>,
}

impl LabelSet for ProbeLabels {
    const NAMES: &'static [&'static str] = describe::PROBE_LABELS;

    fn folded(self) -> Self {
        Self {
            dst: Party::OTHER,
            port: 0,
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        vec![
            symbols.get(self.dst.namespace).to_owned(),
            symbols.get(self.dst.workload).to_owned(),
            if self.port == 0 {
                super::labels::OTHER.to_owned()
            } else {
                self.port.to_string()
            },
            match self.failure {
                None => "answered",
                Some(Outcome::Refused) => "refused",
                Some(Outcome::Unanswered | Outcome::PodSilent) => "unanswered",
            }
            .to_owned(),
        ]
    }
}

/// The series of the probes.
#[derive(Clone, Debug)]
pub(crate) struct ProbeFamilies {
    probes: SeriesTable<ProbeLabels, u64>,
}

impl ProbeFamilies {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            probes: SeriesTable::new(limit),
        }
    }

    /// A probe's handshake has come to its end; `failure` is `None` where it was answered.
    pub(crate) fn add(&mut self, dst: Party, port: u16, failure: Option<Outcome>) {
        *self.probes.entry(ProbeLabels { dst, port, failure }) += 1;
    }

    pub(super) fn folded(&self) -> [(&'static str, u64); 1] {
        [(describe::PROBES.name, self.probes.folded())]
    }

    pub(super) fn collect(&self, symbols: &Symbols, into: &mut Vec<MetricFamily>) {
        let mut probes = Family::new(describe::PROBES);
        for (labels, n) in self.probes.iter(symbols) {
            probes.count(labels, *n);
        }
        into.push(probes.build());
    }
}

//! Flow families: packets, bytes and connections by kind of traffic and by who talks to whom, and the bytes
//! that NAT rewrites.

use aksnet_common::passage::NatKind;
use prometheus::proto::MetricFamily;

use super::{
    budget::{Handle, SeriesTable},
    describe::{self, Description, Family},
    labels::{FlowLabels, LabelSet, Party, Symbol, Symbols, nat_name, push_parties},
};
use crate::classify::{Anomaly, Scope};

/// What happened to a flow since it was last looked at, as it counts on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP length.
    pub bytes: u64,
    /// Connections opened.
    pub connections: u64,
}

/// The labels of [`describe::NAT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NatBytesLabels {
    pub(crate) nat: NatKind,
    pub(crate) src: Party,
}

impl LabelSet for NatBytesLabels {
    const NAMES: &'static [&'static str] = describe::NAT_BYTES.labels;

    fn folded(self) -> Self {
        Self {
            src: Party::OTHER,
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        vec![
            nat_name(self.nat).to_owned(),
            symbols.get(self.src.namespace).to_owned(),
            symbols.get(self.src.workload).to_owned(),
        ]
    }
}

/// The labels of [`describe::ANOMALIES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct AnomalyLabels {
    anomaly: Anomaly,
    src: Party,
    dst: Party,
}

impl LabelSet for AnomalyLabels {
    const NAMES: &'static [&'static str] = describe::ANOMALY_LABELS;

    fn folded(self) -> Self {
        Self {
            src: Party::OTHER,
            dst: Party::OTHER,
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        let mut values = vec![self.anomaly.name().to_owned()];
        push_parties(&mut values, symbols, self.src, self.dst);
        values
    }
}

/// The series of the flow families.
#[derive(Clone, Debug)]
pub(crate) struct FlowFamilies {
    flows: SeriesTable<FlowLabels, FlowCounts>,
    nat_bytes: SeriesTable<NatBytesLabels, u64>,
    anomalies: SeriesTable<AnomalyLabels, u64>,
    /// Whether series name pods.
    pods: bool,
}

/// The series a flow adds to, looked up once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowHandles {
    pub(crate) flow: Handle,
    /// [`NOT_NATED`] or a handle.
    pub(crate) nat_bytes: Handle,
}

/// NAT leaves the flow's bytes alone.
pub(crate) const NOT_NATED: Handle = Handle::MAX;

impl FlowFamilies {
    pub(super) fn new(limit: usize, pods: bool) -> Self {
        Self {
            flows: SeriesTable::new(limit),
            nat_bytes: SeriesTable::new(limit),
            anomalies: SeriesTable::new(limit),
            pods,
        }
    }

    /// Whether series name pods.
    pub(crate) fn pod_labels(&self) -> bool {
        self.pods
    }

    /// Connections that an anomaly was seen in.
    pub(crate) fn anomalous(&mut self, anomaly: Anomaly, flow: FlowLabels, connections: u64) {
        let FlowLabels { src, dst, .. } = flow;
        *self.anomalies.entry(AnomalyLabels { anomaly, src, dst }) += connections;
    }

    /// Who sends a flow's packets to whom, by its series.
    pub(crate) fn parties(&self, series: Handle) -> (Party, Party) {
        let labels = self.flows.key(series);
        labels.map_or((Party::OTHER, Party::OTHER), |l| (l.src, l.dst))
    }

    /// How far a flow reaches, by its series; the one beyond the budget does not tell.
    pub(crate) fn scope(&self, series: Handle) -> Scope {
        let labels = self.flows.key(series);
        labels.map_or(Scope::Unknown, |l| l.scope)
    }

    pub(crate) fn handles(&mut self, labels: FlowLabels) -> FlowHandles {
        let nat_bytes = match labels.nat {
            NatKind::None => NOT_NATED,
            nat => self.nat_bytes.handle(NatBytesLabels {
                nat,
                src: labels.src,
            }),
        };
        FlowHandles {
            flow: self.flows.handle(labels),
            nat_bytes,
        }
    }

    #[inline]
    pub(crate) fn add(&mut self, handles: FlowHandles, counts: FlowCounts) {
        let flow = self.flows.at(handles.flow);
        flow.packets += counts.packets;
        flow.bytes += counts.bytes;
        flow.connections += counts.connections;
        if handles.nat_bytes != NOT_NATED {
            *self.nat_bytes.at(handles.nat_bytes) += counts.bytes;
        }
    }

    pub(super) fn folded(&self) -> [(&'static str, u64); 3] {
        [
            // One table, so one budget, for the three flow families.
            (describe::FLOW_PACKETS.name, self.flows.folded()),
            (describe::NAT_BYTES.name, self.nat_bytes.folded()),
            (describe::ANOMALIES.name, self.anomalies.folded()),
        ]
    }

    pub(super) fn collect(&self, symbols: &Symbols, into: &mut Vec<MetricFamily>) {
        let family = |description: Description| {
            Family::new(Description {
                labels: if self.pods {
                    FlowLabels::WITH_PODS
                } else {
                    description.labels
                },
                ..description
            })
        };
        let mut packets = family(describe::FLOW_PACKETS);
        let mut bytes = family(describe::FLOW_BYTES);
        let mut connections = family(describe::FLOW_CONNECTIONS);
        for (key, counts) in self.flows.series() {
            let mut labels = SeriesTable::<FlowLabels, FlowCounts>::labels(key, symbols);
            if self.pods {
                let pods = key.map_or([Symbol::OTHER; 2], |key| [key.src_pod, key.dst_pod]);
                labels.extend(pods.map(|pod| symbols.get(pod).to_owned()));
            }
            packets.count(labels.clone(), counts.packets);
            bytes.count(labels.clone(), counts.bytes);
            connections.count(labels, counts.connections);
        }
        let mut nat_bytes = Family::new(describe::NAT_BYTES);
        for (labels, bytes) in self.nat_bytes.iter(symbols) {
            nat_bytes.count(labels, *bytes);
        }
        let mut anomalies = Family::new(describe::ANOMALIES);
        for (labels, connections) in self.anomalies.iter(symbols) {
            anomalies.count(labels, *connections);
        }
        into.extend([packets, bytes, connections, nat_bytes, anomalies].map(Family::build));
    }

    /// Everything that was ever added.
    #[cfg(test)]
    pub(crate) fn total(&self, symbols: &Symbols) -> FlowCounts {
        let mut total = FlowCounts::default();
        for (_, counts) in self.flows.iter(symbols) {
            total.packets += counts.packets;
            total.bytes += counts.bytes;
            total.connections += counts.connections;
        }
        total
    }
}

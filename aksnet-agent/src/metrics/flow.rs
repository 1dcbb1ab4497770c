//! Flow families: packets, bytes and connections by kind of traffic and by who talks to whom, and the bytes
//! that NAT rewrites.

use aksnet_common::passage::NatKind;
use prometheus::proto::MetricFamily;

use super::{
    budget::{Handle, SeriesTable},
    describe::{self, Family},
    labels::{FlowLabels, LabelSet, Party, Symbols, nat_name},
};

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

/// The series of the flow families.
#[derive(Clone, Debug)]
pub(crate) struct FlowFamilies {
    flows: SeriesTable<FlowLabels, FlowCounts>,
    nat_bytes: SeriesTable<NatBytesLabels, u64>,
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
    pub(super) fn new(limit: usize) -> Self {
        Self {
            flows: SeriesTable::new(limit),
            nat_bytes: SeriesTable::new(limit),
        }
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

    pub(super) fn folded(&self) -> [(&'static str, u64); 2] {
        [
            // One table, so one budget, for the three flow families.
            (describe::FLOW_PACKETS.name, self.flows.folded()),
            (describe::NAT_BYTES.name, self.nat_bytes.folded()),
        ]
    }

    pub(super) fn collect(&self, symbols: &Symbols, into: &mut Vec<MetricFamily>) {
        let mut packets = Family::new(describe::FLOW_PACKETS);
        let mut bytes = Family::new(describe::FLOW_BYTES);
        let mut connections = Family::new(describe::FLOW_CONNECTIONS);
        for (labels, counts) in self.flows.iter(symbols) {
            packets.count(labels.clone(), counts.packets);
            bytes.count(labels.clone(), counts.bytes);
            connections.count(labels, counts.connections);
        }
        let mut nat_bytes = Family::new(describe::NAT_BYTES);
        for (labels, bytes) in self.nat_bytes.iter(symbols) {
            nat_bytes.count(labels, *bytes);
        }
        into.extend([packets, bytes, connections, nat_bytes].map(Family::build));
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

//! Every family that the agent exports: its name, type, labels and meaning. `docs/metrics.md` is checked
//! against this list, and nothing is exposed that is not on it.

use prometheus::proto::{self, MetricType};

use super::labels::{FlowLabels, LabelSet};

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Name, with its unit and, for a counter, `_total`.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: Kind,
    /// Label names in the order of exposition.
    pub labels: &'static [&'static str],
    /// Meaning, in one line.
    pub help: &'static str,
}

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by bucket.
    Histogram,
}

impl Kind {
    /// As Prometheus writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Description {
    Description {
        name,
        kind: Kind::Counter,
        labels,
        help,
    }
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Description {
    Description {
        name,
        kind: Kind::Gauge,
        labels,
        help,
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Description {
    Description {
        name,
        kind: Kind::Histogram,
        labels,
        help,
    }
}

pub(super) const FLOW_PACKETS: Description = counter(
    "aksnet_flow_packets_total",
    FlowLabels::NAMES,
    "Packets on the wire that entered the node from pods and for pods, each counted once.",
);
pub(super) const FLOW_BYTES: Description = counter(
    "aksnet_flow_bytes_total",
    FlowLabels::NAMES,
    "Bytes (IP length) of the packets that entered the node, each counted once.",
);
pub(super) const FLOW_CONNECTIONS: Description = counter(
    "aksnet_flow_connections_total",
    FlowLabels::NAMES,
    "Connections opened (TCP: SYN seen; else the first packet of a tuple).",
);
pub(super) const NAT_PATH: Description = histogram(
    "aksnet_nat_path_seconds",
    &["class", "nat", "stage"],
    "Time from entering to leaving the node, of the packets that are timed.",
);
pub(super) const NAT_OVERHEAD: Description = gauge(
    "aksnet_nat_overhead_seconds",
    &["nat", "stage"],
    "Median NAT-path time of NATed packets minus that of un-NATed ones in the last minute; absent below 20 samples.",
);
pub(super) const NAT_FLAGGED: Description = gauge(
    "aksnet_nat_overhead_flagged",
    &["class", "nat"],
    "1 while the NAT overhead of the class is beyond the configured budget.",
);
pub(super) const NAT_BYTES: Description = counter(
    "aksnet_nat_bytes_total",
    &["nat", "src_namespace", "src_workload"],
    "Bytes (IP length) of NATed connections, by who sent them.",
);
pub(super) const ANOMALY_LABELS: &[&str] = &[
    "anomaly",
    "src_namespace",
    "src_workload",
    "dst_namespace",
    "dst_workload",
];
pub(super) const ANOMALIES: Description = counter(
    "aksnet_anomalous_connections_total",
    ANOMALY_LABELS,
    "Connections that the node translated as it should not, or that took a way they need not.",
);
pub(super) const DROP_LABELS: &[&str] = &[
    "reason",
    "cause",
    "direction",
    "src_namespace",
    "src_workload",
    "dst_namespace",
    "dst_workload",
];
pub(super) const DROP_PACKETS: Description = counter(
    "aksnet_drop_packets_total",
    DROP_LABELS,
    "Packets that the kernel dropped, by its own reason and by what that means here.",
);
pub(super) const DROP_BYTES: Description = counter(
    "aksnet_drop_bytes_total",
    DROP_LABELS,
    "Bytes (IP length) of dropped packets.",
);
pub(super) const DENIED_LABELS: &[&str] = &[
    "direction",
    "policy",
    "confidence",
    "engine",
    "src_namespace",
    "src_workload",
    "dst_namespace",
    "dst_workload",
];
pub(super) const DENIED_PACKETS: Description = counter(
    "aksnet_policy_denied_packets_total",
    DENIED_LABELS,
    "Packets that were dropped because network policies deny them, by the policies that isolate the pod.",
);
pub(super) const DENIED_CONNECTIONS: Description = counter(
    "aksnet_policy_denied_connections_total",
    DENIED_LABELS,
    "The same in connections: however often a SYN is sent again, it is one attempt.",
);
pub(super) const GAP_LABELS: &[&str] = &[
    "direction",
    "policy",
    "src_namespace",
    "src_workload",
    "dst_namespace",
    "dst_workload",
];
pub(super) const GAP_PACKETS: Description = counter(
    "aksnet_policy_gap_packets_total",
    GAP_LABELS,
    "Packets that the node forwarded although network policies deny them: nothing enforces these here.",
);
pub(super) const GAP_CONNECTIONS: Description = counter(
    "aksnet_policy_gap_connections_total",
    GAP_LABELS,
    "The same in connections.",
);
pub(super) const HANDSHAKE: Description = histogram(
    "aksnet_tcp_handshake_seconds",
    &["class", "nat"],
    "Time from SYN to SYN-ACK, as seen at the node.",
);
pub(super) const FAILURE_LABELS: &[&str] = &[
    "class",
    "outcome",
    "src_namespace",
    "src_workload",
    "dst_namespace",
    "dst_workload",
];
pub(super) const HANDSHAKE_FAILURES: Description = counter(
    "aksnet_tcp_handshake_failures_total",
    FAILURE_LABELS,
    "TCP connections that did not open: refused by the far end, or never answered though the SYN left the node, or reached a pod here.",
);
pub(super) const PROBE_LABELS: &[&str] = &["dst_namespace", "dst_workload", "port", "outcome"];
pub(super) const PROBES: Description = counter(
    "aksnet_lb_health_probes_total",
    PROBE_LABELS,
    "TCP handshakes of the Azure load balancer's health probes, by the service behind the port and how they ended.",
);
pub(super) const RETRANSMIT_LABELS: &[&str] = &[
    "class",
    "src_namespace",
    "src_workload",
    "dst_namespace",
    "dst_workload",
];
pub(super) const RETRANSMITS: Description = counter(
    "aksnet_tcp_retransmits_total",
    RETRANSMIT_LABELS,
    "TCP packets that were sent again.",
);
pub(super) const SNAT_PORTS_IN_USE: Description = gauge(
    "aksnet_snat_ports_in_use",
    &["protocol", "family"],
    "Ports of the node address that are in use by NAT; of several addresses, the one with most.",
);
pub(super) const SNAT_PORTS_LIMIT: Description = gauge(
    "aksnet_snat_ports_limit",
    &["protocol", "family"],
    "Ports that a node address has for NAT.",
);
pub(super) const SNAT_SATURATION: Description = gauge(
    "aksnet_snat_port_saturation_ratio",
    &["protocol", "family"],
    "Worst destination address and port: node ports in use towards it by those there are.",
);
pub(super) const AZURE_SATURATION: Description = gauge(
    "aksnet_azure_snat_port_saturation_ratio",
    &["protocol"],
    "Worst public destination: connections to it by the ports that Azure keeps for this node; an estimate.",
);
pub(super) const AZURE_LIMIT: Description = gauge(
    "aksnet_azure_snat_ports_limit",
    &[],
    "SNAT ports that Azure's load balancer keeps for this node; absent when not known.",
);
pub(super) const SNAT_CONNECTIONS: Description = gauge(
    "aksnet_snat_connections",
    &["src_namespace", "src_workload"],
    "Live connections of a workload whose source is translated.",
);
pub(super) const CONNTRACK_ENTRIES: Description = gauge(
    "aksnet_conntrack_entries",
    &[],
    "Entries in the node's conntrack table.",
);
pub(super) const CONNTRACK_LIMIT: Description = gauge(
    "aksnet_conntrack_entries_limit",
    &[],
    "Entries that the conntrack table may have.",
);
pub(super) const CONNTRACK_INSERT_FAILED: Description = counter(
    "aksnet_conntrack_insert_failed_total",
    &[],
    "Connections whose tuple another one took first, as in a clash of NAT ports; their packet is lost.",
);
pub(super) const CONNTRACK_DROP: Description = counter(
    "aksnet_conntrack_drop_total",
    &[],
    "Packets that conntrack dropped: no room, no memory, or a failed insert.",
);
pub(super) const CONNTRACK_EARLY_DROP: Description = counter(
    "aksnet_conntrack_early_drop_total",
    &[],
    "Conntrack entries evicted to make room for new ones.",
);
pub(super) const POD_IPS: Description = gauge(
    "aksnet_pod_ips_in_use",
    &["source"],
    "Pod addresses that the node has handed out, by whose account that is.",
);
pub(super) const POD_IPS_LIMIT: Description = gauge(
    "aksnet_pod_ips_limit",
    &["source"],
    "Pod addresses that the node can hand out in all, those in use included.",
);
pub(super) const NODE_INFO: Description = gauge(
    "aksnet_node_info",
    &[
        "node",
        "cni",
        "policy_engine",
        "proxy_mode",
        "kernel",
        "zone",
    ],
    "1; the labels say what the agent found on the node; an empty one is not known.",
);
pub(super) const PROGRAM_UP: Description = gauge(
    "aksnet_program_up",
    &["program", "hook"],
    "1 while the program is attached and runs: tells 'nothing seen' from 'cannot see'.",
);
pub(super) const MAP_ENTRIES: Description = gauge(
    "aksnet_agent_flow_map_entries",
    &[],
    "Flows in the flow table.",
);
pub(super) const MAP_LIMIT: Description = gauge(
    "aksnet_agent_flow_map_limit",
    &[],
    "Flows that the flow table has room for.",
);
pub(super) const OVERFLOW_PACKETS: Description = counter(
    "aksnet_agent_flow_overflow_packets_total",
    &[],
    "Packets counted without a flow of their own, as the flow table was full.",
);
pub(super) const OVERFLOW_BYTES: Description = counter(
    "aksnet_agent_flow_overflow_bytes_total",
    &[],
    "Bytes (IP length) counted without a flow of their own, as the flow table was full.",
);
pub(super) const SKIPPED: Description = counter(
    "aksnet_agent_skipped_packets_total",
    &["reason"],
    "Packets that were not accounted, and why.",
);
pub(super) const EVENTS: Description = counter(
    "aksnet_agent_datapath_events_total",
    &["event"],
    "What the programs did: passages left and found, cells claimed, packets spilled.",
);
pub(super) const FOLDED: Description = counter(
    "aksnet_agent_series_folded_total",
    &["metric"],
    "Label sets folded into 'other' by the series budget.",
);
pub(super) const OTLP_RECORDS: Description = counter(
    "aksnet_agent_otlp_records_total",
    &["outcome"],
    "Flow records by what became of them on their way to the OpenTelemetry collector: sent, or dropped as it was too slow or dead.",
);
pub(super) const OTLP_FAILURES: Description = counter(
    "aksnet_agent_otlp_failed_requests_total",
    &[],
    "Requests to the OpenTelemetry collector that failed, repeated ones included.",
);
pub(super) const SWEEP: Description = histogram(
    "aksnet_agent_sweep_seconds",
    &[],
    "Reading and folding the maps once.",
);
pub(super) const CONNTRACK_KNOWN: Description = gauge(
    "aksnet_agent_conntrack_known",
    &["source"],
    "1 while the conntrack table, or its statistics, can be relied on; tells 'none' from 'not known'.",
);
pub(super) const CONNTRACK_UNMIRRORED: Description = gauge(
    "aksnet_agent_conntrack_unmirrored_entries",
    &[],
    "Translated connections beyond --conntrack-limit; above 0, SNAT use is a lower bound.",
);
pub(super) const CONNTRACK_RESYNCS: Description = counter(
    "aksnet_agent_conntrack_resyncs_total",
    &["reason"],
    "Times that the conntrack table was read anew.",
);
pub(super) const BPF_RUN_SECONDS: Description = counter(
    "aksnet_agent_bpf_run_seconds_total",
    &["program"],
    "The kernel's own account of time in each program, while it is switched on.",
);
pub(super) const BPF_RUNS: Description = counter(
    "aksnet_agent_bpf_runs_total",
    &["program"],
    "The kernel's own account of each program's runs, while it is switched on.",
);
pub(super) const IDENTITY_OBJECTS: Description = gauge(
    "aksnet_agent_identity_objects",
    &["kind"],
    "Kubernetes objects that names are taken from, by kind.",
);
pub(super) const IDENTITY_SYNCED: Description = gauge(
    "aksnet_agent_identity_synced",
    &["source"],
    "1 while the source has told all it has and tells what changes; 0: names are those last known, or none.",
);
pub(super) const BUILD_INFO: Description = gauge(
    "aksnet_build_info",
    &["version", "revision"],
    "1; the labels say what was built.",
);

/// All families of the agent, in the order of `docs/metrics.md`. The `process_*` families come on top, from
/// the `prometheus` crate.
pub(super) const ALL: &[Description] = &[
    FLOW_PACKETS,
    FLOW_BYTES,
    FLOW_CONNECTIONS,
    NAT_PATH,
    NAT_OVERHEAD,
    NAT_FLAGGED,
    NAT_BYTES,
    ANOMALIES,
    DROP_PACKETS,
    DROP_BYTES,
    DENIED_PACKETS,
    DENIED_CONNECTIONS,
    GAP_PACKETS,
    GAP_CONNECTIONS,
    HANDSHAKE,
    HANDSHAKE_FAILURES,
    RETRANSMITS,
    PROBES,
    SNAT_PORTS_IN_USE,
    SNAT_PORTS_LIMIT,
    SNAT_SATURATION,
    AZURE_SATURATION,
    AZURE_LIMIT,
    SNAT_CONNECTIONS,
    CONNTRACK_ENTRIES,
    CONNTRACK_LIMIT,
    CONNTRACK_INSERT_FAILED,
    CONNTRACK_DROP,
    CONNTRACK_EARLY_DROP,
    POD_IPS,
    POD_IPS_LIMIT,
    NODE_INFO,
    PROGRAM_UP,
    MAP_ENTRIES,
    MAP_LIMIT,
    OVERFLOW_PACKETS,
    OVERFLOW_BYTES,
    SKIPPED,
    EVENTS,
    FOLDED,
    OTLP_RECORDS,
    OTLP_FAILURES,
    SWEEP,
    CONNTRACK_KNOWN,
    CONNTRACK_UNMIRRORED,
    CONNTRACK_RESYNCS,
    BPF_RUN_SECONDS,
    BPF_RUNS,
    IDENTITY_OBJECTS,
    IDENTITY_SYNCED,
    BUILD_INFO,
];

/// All families of the agent.
#[must_use]
pub fn describe() -> Vec<Description> {
    ALL.to_vec()
}

/// The families as rows of a Markdown table, as `docs/metrics.md` has them.
#[must_use]
pub fn markdown() -> String {
    let rows = ALL.iter().map(|d| {
        let labels: Vec<String> = d.labels.iter().map(|l| format!("`{l}`")).collect();
        let (name, kind, labels) = (d.name, d.kind.name(), labels.join(", "));
        format!("| `{name}` | {kind} | {labels} | {} |\n", d.help)
    });
    let head = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    std::iter::once(head).chain(rows).collect()
}

/// A family under construction.
pub(super) struct Family {
    description: Description,
    metrics: Vec<proto::Metric>,
}

impl Family {
    pub(super) fn new(description: Description) -> Self {
        Self {
            description,
            metrics: Vec::new(),
        }
    }

    fn push(&mut self, labels: Vec<String>, set: impl FnOnce(&mut proto::Metric)) {
        debug_assert_eq!(labels.len(), self.description.labels.len());
        let pairs = self.description.labels.iter().zip(labels);
        let pairs = pairs.map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        });
        let mut metric = proto::Metric::default();
        metric.set_label(pairs.collect());
        set(&mut metric);
        self.metrics.push(metric);
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "exposition is in double precision; counters stay exact inside"
    )]
    pub(super) fn count(&mut self, labels: Vec<String>, value: u64) {
        self.counter(labels, value as f64);
    }

    pub(super) fn counter(&mut self, labels: Vec<String>, value: f64) {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        self.push(labels, |metric| metric.set_counter(counter));
    }

    pub(super) fn gauge(&mut self, labels: Vec<String>, value: f64) {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        self.push(labels, |metric| metric.set_gauge(gauge));
    }

    pub(super) fn histogram(&mut self, labels: Vec<String>, histogram: proto::Histogram) {
        self.push(labels, |metric| metric.set_histogram(histogram));
    }

    pub(super) fn build(self) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.description.name.to_owned());
        family.set_help(self.description.help.to_owned());
        family.set_field_type(match self.description.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(self.metrics);
        family
    }
}

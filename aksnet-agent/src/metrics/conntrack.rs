//! Families about the conntrack table: SNAT ports, how full the table is, and the kernel's own counters.
//!
//! What is not known is absent. Counters stay once they were known, as a counter that goes away and comes back looks
//! like a restart.

use prometheus::proto::MetricFamily;

use super::{
    budget::{Handle, SeriesTable},
    describe::{self, Family},
    labels::{LabelSet, Party, Symbols, family_name, protocol_name},
};
use crate::conntrack::Snapshot;

impl LabelSet for Party {
    const NAMES: &'static [&'static str] = &["src_namespace", "src_workload"];

    fn folded(self) -> Self {
        Self::OTHER
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        [self.namespace, self.workload]
            .map(|symbol| symbols.get(symbol).to_owned())
            .into()
    }
}

/// The series.
#[derive(Clone, Debug)]
pub(crate) struct ConntrackFamilies {
    snapshot: Snapshot,
    connections: SeriesTable<Party, u64>,
}

impl ConntrackFamilies {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            snapshot: Snapshot::default(),
            connections: SeriesTable::new(limit),
        }
    }

    /// What was set last.
    pub(crate) const fn now(&self) -> &Snapshot {
        &self.snapshot
    }

    pub(super) fn set(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "handles are indices below the table's length, which fits one"
    )]
    pub(super) fn set_connections(&mut self, connections: impl Iterator<Item = (Party, u64)>) {
        for handle in 0..self.connections.len() {
            *self.connections.at(handle as Handle) = 0;
        }
        for (party, n) in connections {
            *self.connections.entry(party) += n;
        }
    }

    pub(super) fn folded(&self) -> [(&'static str, u64); 1] {
        [(describe::SNAT_CONNECTIONS.name, self.connections.folded())]
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "exposition is in double precision"
    )]
    pub(super) fn collect(&self, symbols: &Symbols, into: &mut Vec<MetricFamily>) {
        let mut families = Vec::new();
        let mut add = |description, fill: &dyn Fn(&mut Family)| {
            let mut family = Family::new(description);
            fill(&mut family);
            families.push(family.build());
        };
        let now = &self.snapshot;
        let ports = || {
            now.ports.iter().flatten().map(|u| {
                let protocol = protocol_name(u.protocol).into_owned();
                (vec![protocol, family_name(u.family).to_owned()], u)
            })
        };
        add(describe::SNAT_PORTS_IN_USE, &|f| {
            ports().for_each(|(labels, u)| f.gauge(labels, u.in_use as f64));
        });
        add(describe::SNAT_PORTS_LIMIT, &|f| {
            ports().for_each(|(labels, u)| f.gauge(labels, u.limit as f64));
        });
        add(describe::SNAT_SATURATION, &|f| {
            ports().for_each(|(labels, u)| f.gauge(labels, u.saturation));
        });
        add(describe::AZURE_SATURATION, &|f| {
            if let (Some(uses), Some(limit)) = (now.azure, now.azure_limit) {
                for u in uses {
                    let protocol = protocol_name(u.protocol).into_owned();
                    f.gauge(vec![protocol], u.in_use as f64 / f64::from(limit.max(1)));
                }
            }
        });
        add(describe::AZURE_LIMIT, &|f| {
            if let Some(limit) = now.azure_limit {
                f.gauge(vec![], f64::from(limit));
            }
        });
        add(describe::SNAT_CONNECTIONS, &|f| {
            for (labels, n) in self.connections.iter(symbols) {
                f.gauge(labels, *n as f64);
            }
        });
        for (description, value) in [
            (describe::CONNTRACK_ENTRIES, now.size.entries),
            (describe::CONNTRACK_LIMIT, now.size.limit),
        ] {
            add(description, &|f| {
                if let Some(value) = value {
                    f.gauge(vec![], value as f64);
                }
            });
        }
        for (description, value) in [
            (
                describe::CONNTRACK_INSERT_FAILED,
                now.counters.insert_failed,
            ),
            (describe::CONNTRACK_DROP, now.counters.drop),
            (describe::CONNTRACK_EARLY_DROP, now.counters.early_drop),
        ] {
            add(description, &|f| {
                if let Some(value) = value {
                    f.count(vec![], value);
                }
            });
        }
        add(describe::CONNTRACK_KNOWN, &|f| {
            if let Some(known) = now.table_known {
                f.gauge(vec!["table".to_owned()], f64::from(u8::from(known)));
            }
            let known = f64::from(u8::from(now.statistics_known));
            f.gauge(vec!["statistics".to_owned()], known);
        });
        add(describe::CONNTRACK_UNMIRRORED, &|f| {
            if now.ports.is_some() {
                f.gauge(vec![], now.unmirrored as f64);
            }
        });
        add(describe::CONNTRACK_RESYNCS, &|f| {
            for (reason, n) in &now.resyncs {
                f.count(vec![(*reason).to_owned()], *n);
            }
        });
        into.append(&mut families);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conntrack::{
            stats::{Counters, TableSize},
            table::{AzureUse, PortUse},
        },
        metrics::{Metrics, MetricsConfig},
    };

    fn metrics(series_limit: usize) -> Metrics {
        Metrics::new(MetricsConfig {
            series_limit,
            ..MetricsConfig::default()
        })
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let metrics = metrics(100);
        metrics.set_conntrack(Snapshot {
            table_known: Some(false),
            ..Snapshot::default()
        });
        let text = metrics.encode().expect("encodes");
        for absent in [
            "\naksnet_snat_",
            "\naksnet_azure_",
            "\naksnet_conntrack_",
            "unmirrored_entries ",
        ] {
            assert!(!text.contains(absent), "{absent} in:\n{text}");
        }
        for line in [
            "aksnet_agent_conntrack_known{source=\"table\"} 0",
            "aksnet_agent_conntrack_known{source=\"statistics\"} 0",
        ] {
            assert!(text.contains(line), "no {line} in:\n{text}");
        }
    }

    #[test]
    fn a_known_table_is_shown_in_full() {
        let metrics = metrics(100);
        metrics.set_conntrack(Snapshot {
            ports: Some(vec![PortUse {
                protocol: 6,
                family: 4,
                in_use: 2,
                limit: 2,
                saturation: 1.0,
            }]),
            azure: Some(
                [(6, 256), (17, 0)].map(|(protocol, in_use)| AzureUse { protocol, in_use }),
            ),
            azure_limit: Some(1024),
            size: TableSize {
                entries: Some(7),
                limit: Some(262_144),
            },
            counters: Counters {
                insert_failed: Some(3),
                drop: None,
                early_drop: Some(0),
            },
            table_known: Some(true),
            statistics_known: true,
            ..Snapshot::default()
        });
        let text = metrics.encode().expect("encodes");
        for line in [
            "aksnet_snat_ports_in_use{protocol=\"tcp\",family=\"ipv4\"} 2",
            "aksnet_snat_ports_limit{protocol=\"tcp\",family=\"ipv4\"} 2",
            "aksnet_snat_port_saturation_ratio{protocol=\"tcp\",family=\"ipv4\"} 1",
            "aksnet_azure_snat_port_saturation_ratio{protocol=\"tcp\"} 0.25",
            "aksnet_azure_snat_ports_limit 1024",
            "aksnet_conntrack_entries 7",
            "aksnet_conntrack_entries_limit 262144",
            "aksnet_conntrack_insert_failed_total 3",
            "aksnet_conntrack_early_drop_total 0",
            "aksnet_agent_conntrack_known{source=\"table\"} 1",
            "aksnet_agent_conntrack_unmirrored_entries 0",
        ] {
            assert!(text.contains(line), "no {line} in:\n{text}");
        }
        assert!(!text.contains("\naksnet_conntrack_drop_total"), "{text}");
    }

    #[test]
    fn connections_of_workloads_beyond_the_budget_are_others() {
        let metrics = metrics(10);
        let parties: Vec<Party> = {
            let mut families = metrics.lock();
            (0..20)
                .map(|n| Party {
                    namespace: families.symbols.intern("shop"),
                    workload: families.symbols.intern(&format!("w{n}")),
                })
                .collect()
        };
        let total = |text: &str| -> f64 {
            text.lines()
                .filter(|l| l.starts_with("aksnet_snat_connections{"))
                .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        metrics.set_snat_connections(parties.iter().map(|p| (*p, 3)));
        let text = metrics.encode().expect("encodes");
        assert!(text.contains("workload=\"other\"} 36"), "{text}");
        assert!((total(&text) - 60.0).abs() < f64::EPSILON);
        metrics.set_snat_connections(parties.iter().take(1).map(|p| (*p, 1)));
        let text = metrics.encode().expect("encodes");
        assert!(text.contains("workload=\"w0\"} 1"), "{text}");
        assert!(
            (total(&text) - 1.0).abs() < f64::EPSILON,
            "what is gone is 0"
        );
    }
}

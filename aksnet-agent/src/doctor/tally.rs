//! A *tally*: the counters that checks look at, taken from the metric families at one moment. Two of them tell what
//! happened in between. Pure.
//!
//! Families are the contract of `docs/metrics.md`. Of the flow families only sums are kept, so that a tally is small
//! however many flows there are.

use std::{collections::BTreeMap, sync::Arc};

use prometheus::proto::{Metric, MetricFamily};

use super::evidence::Count;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Denied packets: policy, direction, confidence, engine, from, to.
    DeniedPackets,
    /// Denied connections, likewise.
    DeniedConnections,
    /// Connections that policies deny and that were forwarded: policy, direction, from, to.
    Gaps,
    /// Dropped packets: cause, reason, from, to.
    Drops,
    /// Connections: anomaly, from, to.
    Anomalies,
    /// SYNs without an answer from outside the node: from, to.
    Unanswered,
    /// Health probes: to, port, outcome.
    Probes,
    /// Bytes by scope.
    Scope,
    /// Bytes between zones: from, to.
    CrossZone,
    /// Connections by class.
    Opened,
    /// Connections to outside the cluster, by where to.
    OpenedTo,
    /// Packets without a flow of their own.
    Overflow,
}

/// See the module's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<Key, u64>);

/// What is counted, and the labels' values. Tallies of one history share these, as there may be thousands.
type Key = (What, Arc<[String]>);

/// Somebody of whom no name is known, such as a pod of another node (`remote_pods`).
pub const UNNAMED: &str = "(unnamed)";

/// The metric families that a tally is taken from, each with the labels that are read.
pub const FAMILIES: &[(&str, &[&str])] = &[
    ("aksnet_policy_denied_packets_total", DENIED),
    ("aksnet_policy_denied_connections_total", DENIED),
    ("aksnet_policy_gap_connections_total", ENDS_OF_POLICY),
    ("aksnet_drop_packets_total", &["cause", "reason"]),
    ("aksnet_anomalous_connections_total", &["anomaly"]),
    ("aksnet_tcp_handshake_failures_total", &["outcome"]),
    (
        "aksnet_lb_health_probes_total",
        &["dst_namespace", "dst_workload", "port", "outcome"],
    ),
    ("aksnet_flow_bytes_total", &["scope"]),
    ("aksnet_flow_connections_total", &["class", "scope"]),
    ("aksnet_agent_flow_overflow_packets_total", &[]),
];
const DENIED: &[&str] = &["policy", "direction", "confidence", "engine"];
const ENDS_OF_POLICY: &[&str] = &["policy", "direction"];

impl Tally {
    /// Takes it.
    #[must_use]
    pub fn take(families: &[MetricFamily]) -> Self {
        let mut tally = Self::default();
        for family in families {
            for metric in family.get_metric() {
                tally.count(family.name(), metric);
            }
        }
        tally
    }

    fn count(&mut self, name: &str, metric: &Metric) {
        let of = |labels: &[&str]| -> Vec<String> {
            labels.iter().map(|label| label_of(metric, label)).collect()
        };
        let with_ends = |labels: &[&str]| {
            let mut key = of(labels);
            key.extend([src(metric), dst(metric)]);
            key
        };
        let key = match name {
            "aksnet_policy_denied_packets_total" => (What::DeniedPackets, with_ends(DENIED)),
            "aksnet_policy_denied_connections_total" => {
                (What::DeniedConnections, with_ends(DENIED))
            }
            "aksnet_policy_gap_connections_total" => (What::Gaps, with_ends(ENDS_OF_POLICY)),
            "aksnet_drop_packets_total" => (What::Drops, with_ends(&["cause", "reason"])),
            "aksnet_anomalous_connections_total" => (What::Anomalies, with_ends(&["anomaly"])),
            "aksnet_tcp_handshake_failures_total"
                if label_of(metric, "outcome") == "unanswered" =>
            {
                (What::Unanswered, with_ends(&[]))
            }
            "aksnet_lb_health_probes_total" => {
                let mut key = vec![dst(metric)];
                key.extend(of(&["port", "outcome"]));
                (What::Probes, key)
            }
            "aksnet_flow_bytes_total" => {
                if label_of(metric, "scope") == "cross_zone" {
                    self.add((What::CrossZone, with_ends(&[])), metric);
                }
                (What::Scope, of(&["scope"]))
            }
            "aksnet_flow_connections_total" => {
                if matches!(label_of(metric, "scope").as_str(), "external" | "vnet") {
                    self.add((What::OpenedTo, vec![dst(metric)]), metric);
                }
                (What::Opened, of(&["class"]))
            }
            "aksnet_agent_flow_overflow_packets_total" => (What::Overflow, Vec::new()),
            _ => return,
        };
        self.add(key, metric);
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter is a whole number and never negative"
    )]
    fn add(&mut self, (what, labels): (What, Vec<String>), metric: &Metric) {
        let value = metric.get_counter().get_value() as u64;
        if value > 0 {
            *self.0.entry((what, labels.into())).or_default() += value;
        }
    }

    /// The same, with the keys of another tally where it has them.
    #[must_use]
    pub fn sharing(self, other: &Self) -> Self {
        let shared = self.0.into_iter().map(|(key, value)| {
            let known = other.0.get_key_value(&key).map(|(known, _)| known.clone());
            (known.unwrap_or(key), value)
        });
        Self(shared.collect())
    }

    /// All of one kind: the labels' values, the sum so far, and what was added since the tally `before`.
    pub fn since<'a>(
        &'a self,
        what: What,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a [String], Count)> {
        let of_kind = self.0.iter().filter(move |((kind, _), _)| *kind == what);
        of_kind.map(|(key, total)| {
            let then = before.0.get(key).copied().unwrap_or(0);
            let count = Count {
                total: *total,
                recent: total.saturating_sub(then),
            };
            (&*key.1, count)
        })
    }
}

fn label_of(metric: &Metric, name: &str) -> String {
    let pair = metric.get_label().iter().find(|pair| pair.name() == name);
    pair.map_or_else(String::new, |pair| pair.value().to_owned())
}

fn src(metric: &Metric) -> String {
    who(
        &label_of(metric, "src_namespace"),
        &label_of(metric, "src_workload"),
    )
}

fn dst(metric: &Metric) -> String {
    who(
        &label_of(metric, "dst_namespace"),
        &label_of(metric, "dst_workload"),
    )
}

/// `namespace/workload` as far as there is one, else the bare name; [`UNNAMED`] for somebody without.
#[must_use]
pub fn who(namespace: &str, workload: &str) -> String {
    match (namespace, workload) {
        ("", "") => UNNAMED.to_owned(),
        ("", workload) => workload.to_owned(),
        (namespace, "") => format!("{namespace}/?"),
        (namespace, workload) => format!("{namespace}/{workload}"),
    }
}

/// The current values of a gauge, with the labels that are asked for.
pub fn gauges<'a>(
    families: &'a [MetricFamily],
    name: &'a str,
    labels: &'a [&'a str],
) -> impl Iterator<Item = (Vec<String>, f64)> + 'a {
    families
        .iter()
        .filter(move |family| family.name() == name)
        .flat_map(MetricFamily::get_metric)
        .map(move |metric| {
            let labels = labels.iter().map(|label| label_of(metric, label)).collect();
            (labels, metric.get_gauge().get_value())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, MetricsConfig, describe};

    #[test]
    fn every_family_and_label_that_is_read_exists() {
        let described = describe();
        for (name, labels) in FAMILIES {
            let family = described.iter().find(|family| family.name == *name);
            let family = family.unwrap_or_else(|| panic!("no family {name}"));
            for label in *labels {
                assert!(family.labels.contains(label), "{name} has no label {label}");
            }
        }
    }

    #[test]
    fn what_is_new_is_the_difference_of_two_tallies() {
        let metrics = Metrics::new(MetricsConfig::default());
        let key: Arc<[String]> = ["pod_to_pod".to_owned()].into();
        let mut before = Tally::take(&metrics.registry().gather());
        assert_eq!(before, Tally::default());
        before.0.insert((What::Opened, key.clone()), 5);
        let mut now = before.clone();
        now.0.insert((What::Opened, key), 7);
        now.0
            .insert((What::Opened, ["node_port".to_owned()].into()), 2);
        now.0.insert((What::Overflow, [].into()), 9);
        let opened: Vec<_> = now.since(What::Opened, &before).collect();
        assert_eq!(opened.len(), 2);
        assert_eq!(
            opened[0].1,
            Count {
                total: 2,
                recent: 2
            }
        );
        assert_eq!(opened[1].0, ["pod_to_pod"]);
        assert_eq!(
            opened[1].1,
            Count {
                total: 7,
                recent: 2
            }
        );
    }

    #[test]
    fn tallies_of_one_history_share_their_keys() {
        let one = |n| Tally([((What::Opened, ["node_port".to_owned()].into()), n)].into());
        let (first, second): (Tally, Tally) = (one(1), one(2));
        let shared = second.clone().sharing(&first);
        assert_eq!(shared, second);
        let labels = |tally: &Tally| tally.0.keys().map(|(_, labels)| labels.clone()).next();
        let (Some(a), Some(b)) = (labels(&first), labels(&shared)) else {
            panic!("both have a key")
        };
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn who_is_named_as_far_as_is_known() {
        assert_eq!(who("shop", "web"), "shop/web");
        assert_eq!(who("", "internet"), "internet");
        assert_eq!(who("shop", ""), "shop/?");
        assert_eq!(who("", ""), UNNAMED);
    }
}

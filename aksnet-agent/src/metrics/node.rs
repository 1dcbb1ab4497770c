//! Families about the node: what it is, and how many pod addresses it has.

use prometheus::proto::MetricFamily;

use super::describe::{self, Family};
use crate::node::{found::Found, pod_ips::PodIps};

/// The node's series.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeFamilies {
    /// The labels of the one series.
    info: Option<Vec<String>>,
    pub(crate) pod_ips: Vec<PodIps>,
}

impl NodeFamilies {
    /// Values of the labels of [`describe::NODE_INFO`], in their order; empty as long as nothing is known.
    pub(crate) fn info(&self) -> &[String] {
        self.info.as_deref().unwrap_or_default()
    }

    pub(super) fn set_info(&mut self, name: &str, found: &Found) {
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        self.info = Some(vec![
            name.to_owned(),
            text(found.cni.value),
            text(found.policy_engine.value),
            text(found.proxy_mode.value),
            found.kernel.clone(),
            text(found.zone.value.as_deref()),
        ]);
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "exposition is in double precision"
    )]
    pub(super) fn collect(&self, into: &mut Vec<MetricFamily>) {
        let mut in_use = Family::new(describe::POD_IPS);
        let mut limit = Family::new(describe::POD_IPS_LIMIT);
        for account in &self.pod_ips {
            let source = || vec![account.source.to_owned()];
            in_use.gauge(source(), account.in_use as f64);
            if let Some(most) = account.limit {
                limit.gauge(source(), most as f64);
            }
        }
        let mut node = Family::new(describe::NODE_INFO);
        if let Some(labels) = &self.info {
            node.gauge(labels.clone(), 1.0);
        }
        into.extend([in_use, limit, node].map(Family::build));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::{Metrics, MetricsConfig},
        node::found::{self, tests::evidence},
        node::tests::kubenet,
    };

    #[test]
    fn what_the_node_is_replaces_what_it_was() {
        let metrics = Metrics::new(MetricsConfig::default());
        let snapshot = kubenet();
        let mut evidence = evidence(&snapshot);
        metrics.set_node("aks-1", &found::conclude(&evidence));
        evidence.kernel = "6.8.0-1059-azure".to_owned();
        metrics.set_node("aks-1", &found::conclude(&evidence));
        let text = metrics.encode().unwrap();
        let lines: Vec<&str> = text
            .lines()
            .filter(|l| l.starts_with("aksnet_node_info"))
            .collect();
        assert_eq!(
            lines,
            [
                "aksnet_node_info{node=\"aks-1\",cni=\"kubenet\",policy_engine=\"none\",proxy_mode=\"none\",\
                 kernel=\"6.8.0-1059-azure\",zone=\"\"} 1"
            ]
        );
    }

    #[test]
    fn an_account_without_a_limit_has_no_series_for_it() {
        let metrics = Metrics::new(MetricsConfig::default());
        let account = |source, limit| PodIps {
            source,
            in_use: 3,
            limit,
            leaked: None,
        };
        metrics.set_pod_ips(&[account("host_local", None), account("azure_cns", Some(256))]);
        let text = metrics.encode().unwrap();
        assert!(text.contains("aksnet_pod_ips_in_use{source=\"host_local\"} 3"));
        assert!(!text.contains("aksnet_pod_ips_limit{source=\"host_local\"}"));
        assert!(text.contains("aksnet_pod_ips_limit{source=\"azure_cns\"} 256"));
    }
}

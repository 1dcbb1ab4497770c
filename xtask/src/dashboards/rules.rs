//! The *rules* are written once, as Prometheus reads them; the operator's object has the same text, indented.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

/// The file for Prometheus itself.
pub const PLAIN: &str = "deploy/prometheus/rules.yaml";

/// The same for Prometheus' operator.
pub const OBJECT: &str = "deploy/prometheus/prometheusrule.yaml";

const HEAD: &str = "\
# Made by `cargo xtask dashboards` from rules.yaml; change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: aksnet
  labels:
    app.kubernetes.io/name: aksnet
    # By which kube-prometheus-stack finds rules, if its release is named so; its ruleSelector says what it looks for.
    release: prometheus
spec:
";

/// The object with a rule file's groups.
///
/// # Errors
/// When the file has no groups.
pub fn object(plain: &str) -> Result<String> {
    let at = plain.find("groups:\n").context("no groups")?;
    let mut text = HEAD.to_owned();
    for line in plain[at..].lines() {
        if line.is_empty() {
            text.push('\n');
        } else {
            writeln!(text, "  {line}")?;
        }
    }
    Ok(text)
}

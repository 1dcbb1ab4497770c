//! Whether the API server would take an object as it is: unknown fields, wrong types and missing parts are errors.
//!
//! Kubernetes' own kinds are read into k8s-openapi's types and written back: a field that the type does not know is
//! lost on the way, and shows. Prometheus' kinds have no such types; the part of their CRDs that is used here is below.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Checks an object.
pub(crate) fn check(object: &Value) -> Result<()> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("v1", "Namespace") => same::<Namespace>(object),
        ("v1", "ServiceAccount") => same::<ServiceAccount>(object),
        ("v1", "Secret") => same::<Secret>(object),
        ("v1", "Service") => same::<Service>(object),
        ("apps/v1", "DaemonSet") => same::<DaemonSet>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => same::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            same::<ClusterRoleBinding>(object)
        }
        ("monitoring.coreos.com/v1" | "azmonitoring.coreos.com/v1", "PodMonitor") => {
            same::<PodMonitor>(object)
        }
        ("monitoring.coreos.com/v1", "ServiceMonitor") => same::<ServiceMonitor>(object),
        other => bail!("no schema of {other:?}"),
    }
}

fn same<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let kind = &object["kind"];
    let read: T = serde_json::from_value(object.clone()).with_context(|| kind.to_string())?;
    let written = serde_json::to_value(read)?;
    for (path, value) in leaves(object) {
        let kept = written.pointer(&path);
        ensure!(
            kept == Some(&value),
            "{kind}: {path} is {value}, and is not known there"
        );
    }
    Ok(())
}

/// Everything that has no parts, by its JSON pointer; an empty object or list is a leaf too.
pub(crate) fn leaves(value: &Value) -> Vec<(String, Value)> {
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(n, v)| (n.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    if parts.is_empty() {
        return vec![(String::new(), value.clone())];
    }
    parts
        .into_iter()
        .flat_map(|(key, value)| {
            leaves(value)
                .into_iter()
                .map(move |(path, leaf)| (format!("/{key}{path}"), leaf))
        })
        .collect()
}

/// `monitoring.coreos.com/v1`, and the same under Azure's group.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: PodMonitorSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitorSpec {
    selector: LabelSelector,
    pod_metrics_endpoints: Vec<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label_name_length_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label_value_length_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_target_labels: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<NamespaceSelector>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitor {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: ServiceMonitorSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitorSpec {
    selector: LabelSelector,
    endpoints: Vec<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<NamespaceSelector>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamespaceSelector {
    #[serde(skip_serializing_if = "Option::is_none")]
    any: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    match_names: Option<Vec<String>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    port: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scrape_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<BTreeMap<String, Vec<String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_config: Option<TlsConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization: Option<Authorization>,
    #[serde(skip_serializing_if = "Option::is_none")]
    relabelings: Option<Vec<Relabeling>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric_relabelings: Option<Vec<Relabeling>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    #[serde(skip_serializing_if = "Option::is_none")]
    source_labels: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    separator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
}

/// `SafeTLSConfig`, which both kinds of monitors take.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TlsConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    insecure_skip_verify: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<SecretOrConfigMap>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecretOrConfigMap {
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Selector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config_map: Option<Selector>,
}

/// `SafeAuthorization`.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Authorization {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    scheme: Option<String>,
    credentials: Selector,
}

/// A key of a Secret or a `ConfigMap` in the same namespace.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    name: String,
    key: String,
}

//! The chart renders what kustomize renders. Compared are whole objects, without exception: the chart adds no labels of
//! its own, and helm adds its label and annotations when it installs, not when it renders.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::deploy;

use super::objects::{Objects, in_order, of_chart, of_components, of_kustomize, of_values, one};
use super::schema;

/// Everything but the namespace, which is helm's to make.
fn without_namespace(objects: &Objects) -> Objects {
    let mut objects = in_order(objects);
    objects.retain(|(_, kind, _), _| kind != "Namespace");
    objects
}

fn equal(chart: &Objects, kustomize: &Objects) -> Result<()> {
    let (chart, kustomize) = (without_namespace(chart), without_namespace(kustomize));
    let keys = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    ensure!(
        keys(&chart) == keys(&kustomize),
        "{:?}\nnot\n{:?}",
        keys(&chart),
        keys(&kustomize)
    );
    for (key, object) in &chart {
        let other = &kustomize[key];
        let (ours, theirs) = (schema::leaves(object), schema::leaves(other));
        let beyond = |a: &[(String, Value)], b: &[(String, Value)]| {
            a.iter()
                .filter(|leaf| !b.contains(leaf))
                .cloned()
                .collect::<Vec<_>>()
        };
        let (more, less) = (beyond(&ours, &theirs), beyond(&theirs, &ours));
        ensure!(
            object == other,
            "{key:?}\nonly the chart: {more:#?}\nonly kustomize: {less:#?}"
        );
    }
    Ok(())
}

#[test]
fn its_defaults_are_the_base() -> Result<()> {
    let base = of_kustomize("base")?;
    equal(&of_chart(&[])?, &base)?;
    // With the namespace, which a rendering for other tools may want.
    let all = of_chart(&["--set", "createNamespace=true"])?;
    assert_eq!(one(&all, "Namespace")?, one(&base, "Namespace")?);
    equal(&all, &base)
}

#[test]
fn its_values_for_a_platform_are_that_platforms_overlay() -> Result<()> {
    equal(
        &of_values("values-aks.yaml", &[])?,
        &of_kustomize("overlays/aks")?,
    )?;
    equal(
        &of_values("values-kind.yaml", &[])?,
        &of_kustomize("overlays/kind")?,
    )?;
    let managed = ["--set", "scrape.azureMonitor=true,scrape.annotations=false"];
    equal(
        &of_values("values-aks.yaml", &managed)?,
        &of_kustomize("overlays/aks-managed-prometheus")?,
    )
}

#[test]
fn its_switches_are_the_components() -> Result<()> {
    for (switch, component) in [
        ("scrape.podMonitor", "podmonitor"),
        ("scrape.serviceMonitor", "servicemonitor"),
        ("scrape.azureMonitor", "azure-monitor"),
        ("sources.azureVnet", "host-run"),
        ("sources.containerd", "containerd-names"),
        ("nonRoot", "nonroot"),
        ("secureMetrics.enabled", "secure-metrics"),
    ] {
        let chart = of_chart(&["--set", &format!("{switch}=true")])?;
        equal(&chart, &of_components("base", &[component])?).context(switch)?;
    }
    Ok(())
}

#[test]
fn monitors_of_secure_metrics_are_the_same_too() -> Result<()> {
    let values = "scrape.podMonitor=true,scrape.serviceMonitor=true,scrape.azureMonitor=true,\
                  secureMetrics.enabled=true";
    let components = [
        "podmonitor",
        "servicemonitor",
        "azure-monitor",
        "secure-metrics",
    ];
    equal(
        &of_chart(&["--set", values])?,
        &of_components("base", &components)?,
    )
}

#[test]
fn helm_finds_nothing_to_complain_of() -> Result<()> {
    let chart = deploy::directory().join("helm/aksnet");
    for file in ["values.yaml", "values-aks.yaml", "values-kind.yaml"] {
        let values = chart.join(file);
        deploy::helm_lint(&["--values", values.to_str().context("a name of letters")?])?;
    }
    Ok(())
}

/// Everything switched on, and everything set that can be.
const ALL: &str = r#"{
    "image": {"repository": "example.azurecr.io/aksnet-agent", "tag": "1.2.3", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "createNamespace": true,
    "port": 9500,
    "settings": {"service_cidr": "10.0.0.0/16", "flow_cells": 1048576, "pod_labels": true, "named_cidr": ["a=10.1.0.0/16", "b=10.2.0.0/16"]},
    "sources": {"kindnet": true, "azureVnet": true, "containerd": true},
    "scrape": {"annotations": true, "podMonitor": true, "serviceMonitor": true, "azureMonitor": true, "interval": "1m", "labels": {"release": "prometheus"}},
    "secureMetrics": {"enabled": true, "secretName": "certificate", "serverName": "agents.example"},
    "rbac": {"create": true, "serviceAccountName": "watcher"},
    "priorityClassName": "",
    "updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "network"},
    "capabilities": ["BPF", "PERFMON", "NET_ADMIN"]
}"#;

/// The chart with values in JSON, which is YAML.
fn with(values: &str) -> Result<Objects> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("values.yaml");
    std::fs::write(&path, values)?;
    of_chart(&["--values", path.to_str().context("a name of letters")?])
}

#[test]
fn with_everything_set_it_still_renders_what_the_api_server_takes() -> Result<()> {
    let objects = with(ALL)?;
    for object in objects.values() {
        schema::check(object)?;
    }
    let endpoint = &one(&objects, "ServiceMonitor")?["spec"]["endpoints"][0];
    assert_eq!(endpoint["tlsConfig"]["serverName"], "agents.example");
    assert_eq!(endpoint["tlsConfig"]["ca"]["secret"]["name"], "certificate");
    let set = one(&objects, "DaemonSet")?;
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "example.azurecr.io/aksnet-agent:1.2.3");
    assert_eq!(pod["serviceAccountName"], "watcher");
    assert_eq!(pod["priorityClassName"], Value::Null);
    assert_eq!(container["ports"][0]["containerPort"], 9500);
    assert_eq!(
        set["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"],
        "9500"
    );
    let variable = |name: &str| {
        let all = container["env"].as_array().into_iter().flatten();
        let found = all.filter(|variable| variable["name"] == name);
        found
            .map(|variable| variable["value"].clone())
            .collect::<Vec<_>>()
    };
    for (name, value) in [
        ("AKSNET_LISTEN", "$(HOST_IP):9500"),
        ("AKSNET_SERVICE_CIDR", "10.0.0.0/16"),
        ("AKSNET_FLOW_CELLS", "1048576"),
        ("AKSNET_POD_LABELS", "true"),
        ("AKSNET_NAMED_CIDR", "a=10.1.0.0/16,b=10.2.0.0/16"),
    ] {
        assert_eq!(variable(name), [json!(value)], "{name}");
    }
    for kind in ["ServiceMonitor", "Service"] {
        let object = one(&objects, kind)?;
        let release = &object["metadata"]["labels"]["release"];
        assert_eq!(*release == "prometheus", kind == "ServiceMonitor");
    }
    Ok(())
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() -> Result<()> {
    for (values, word) in [
        (r#"{"imagee": {}}"#, "imagee"),
        (r#"{"scrape": {"podmonitor": true}}"#, "podmonitor"),
        (r#"{"secureMetrics": {"on": true}}"#, "on"),
        (r#"{"port": "9435"}"#, "port"),
        (r#"{"port": 70000}"#, "port"),
        (r#"{"image": {"pullPolicy": "Sometimes"}}"#, "pullPolicy"),
        (r#"{"capabilities": ["BPF", "ALL"]}"#, "capabilities"),
        (r#"{"capabilities": ["BPF"]}"#, "capabilities"),
        (r#"{"seccompProfile": {"type": "Off"}}"#, "seccompProfile"),
        (r#"{"settings": {"listen": "0.0.0.0:1"}}"#, "listen"),
        (r#"{"settings": {"POD_CIDR": "10.0.0.0/8"}}"#, "POD_CIDR"),
        (r#"{"scrape": {"interval": "often"}}"#, "interval"),
        (
            r#"{"updateStrategy": {"type": "Recreate"}}"#,
            "updateStrategy",
        ),
    ] {
        let error = with(values)
            .err()
            .with_context(|| format!("{values} is taken"))?
            .to_string();
        ensure!(error.contains(word), "{values}: {error}");
    }
    Ok(())
}

#[test]
fn an_account_that_is_there_already_gets_no_roles() -> Result<()> {
    let objects = of_chart(&["--set", "rbac.create=false,rbac.serviceAccountName=theirs"])?;
    let kinds: Vec<&str> = objects.keys().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["DaemonSet"]);
    Ok(())
}

#[test]
fn its_notes_say_what_to_do_next() -> Result<()> {
    let notes = deploy::helm_notes(&[])?;
    for word in [
        "kubectl label namespace aksnet pod-security.kubernetes.io/enforce=privileged",
        "kubectl -n aksnet rollout status ds/aksnet",
        "kubectl -n aksnet exec ds/aksnet -- agent top --raw --count 1",
        "Nothing scrapes them yet",
    ] {
        ensure!(notes.contains(word), "{word} is not in:\n{notes}");
    }
    let scraped = deploy::helm_notes(&["--set", "scrape.podMonitor=true"])?;
    ensure!(!scraped.contains("Nothing scrapes them"), "{scraped}");
    Ok(())
}

#[test]
fn its_versions_are_the_agents() -> Result<()> {
    let text = std::fs::read_to_string(deploy::directory().join("helm/aksnet/Chart.yaml"))?;
    let chart: Value = serde_saphyr::from_str(&text)?;
    for key in ["version", "appVersion"] {
        assert_eq!(chart[key], env!("CARGO_PKG_VERSION"), "{key}");
    }
    Ok(())
}

//! The component `secure-metrics`: what it adds to the agent's rights, and that its parts go together.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::objects::{Objects, of_components, of_kustomize, one};

fn named<'a>(objects: &'a Objects, kind: &str, name: &str) -> Result<&'a Value> {
    let found = objects
        .iter()
        .find(|(key, _)| key.1 == kind && key.2 == name);
    let (_, object) = found.with_context(|| format!("no {kind} {name}"))?;
    Ok(object)
}

#[test]
fn reviews_are_all_that_is_added_to_what_the_agent_may_do() -> Result<()> {
    let (base, secure) = (
        of_kustomize("base")?,
        of_components("base", &["secure-metrics"])?,
    );
    assert_eq!(
        named(&base, "ClusterRole", "aksnet")?,
        named(&secure, "ClusterRole", "aksnet")?
    );
    let rules = &named(&secure, "ClusterRole", "aksnet-reviews")?["rules"];
    assert_eq!(
        *rules,
        json!([
            {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
            {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        ])
    );
    let bound: Vec<(&Value, &Value)> = secure
        .values()
        .filter(|object| object["kind"] == "ClusterRoleBinding")
        .map(|object| (&object["subjects"][0]["name"], &object["roleRef"]["name"]))
        .collect();
    assert_eq!(
        bound,
        [
            (&json!("aksnet"), &json!("aksnet")),
            (&json!("aksnet"), &json!("aksnet-reviews")),
            (&json!("aksnet-scraper"), &json!("aksnet-metrics-reader")),
        ]
    );
    let rules = &named(&secure, "ClusterRole", "aksnet-metrics-reader")?["rules"];
    assert_eq!(
        *rules,
        json!([{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}])
    );
    Ok(())
}

#[test]
fn the_agent_finds_its_files_and_probes_and_monitors_speak_tls() -> Result<()> {
    let components = ["podmonitor", "servicemonitor", "secure-metrics"];
    let objects = of_components("base", &components)?;
    let pod = &one(&objects, "DaemonSet")?["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let variable = |name: &str| {
        let variables = container["env"].as_array().into_iter().flatten();
        let mut found = variables.filter(|variable| variable["name"] == name);
        found.next().and_then(|variable| variable["value"].as_str())
    };
    let list = |list: &Value, key: &str, value: &str| {
        let items = list.as_array().into_iter().flatten();
        items.into_iter().find(|item| item[key] == value).cloned()
    };
    let mount = list(&container["volumeMounts"], "name", "tls").context("a mount")?;
    let directory = mount["mountPath"].as_str().context("a path")?;
    ensure!(
        mount.get("subPath").is_none(),
        "kubelet does not renew it then"
    );
    for (name, file) in [
        ("AKSNET_TLS_CERT", "tls.crt"),
        ("AKSNET_TLS_KEY", "tls.key"),
    ] {
        assert_eq!(variable(name), Some(format!("{directory}/{file}").as_str()));
    }
    assert_eq!(variable("AKSNET_METRICS_AUTH"), Some("token"));
    let volume = list(&pod["volumes"], "name", "tls").context("a volume")?;
    let secret = &volume["secret"]["secretName"];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["scheme"], "HTTPS", "{probe}");
    }
    let token = named(&objects, "Secret", "aksnet-scraper")?;
    assert_eq!(token["type"], "kubernetes.io/service-account-token");
    for (kind, endpoints) in [
        ("PodMonitor", "podMetricsEndpoints"),
        ("ServiceMonitor", "endpoints"),
    ] {
        let endpoint = &one(&objects, kind)?["spec"][endpoints][0];
        assert_eq!(endpoint["scheme"], "https", "{kind}");
        assert_eq!(
            endpoint["tlsConfig"]["ca"]["secret"]["name"], *secret,
            "{kind}"
        );
        let credentials = &endpoint["authorization"]["credentials"];
        assert_eq!(credentials["name"], token["metadata"]["name"], "{kind}");
    }
    // Nothing of it without being asked for.
    let plain = of_components("base", &["podmonitor"])?;
    assert_eq!(
        one(&plain, "PodMonitor")?["spec"]["podMetricsEndpoints"][0]["scheme"],
        Value::Null
    );
    Ok(())
}

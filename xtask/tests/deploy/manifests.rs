//! The base, the overlays and the components.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::deploy;

use super::objects::{Objects, of_components, of_kustomize, one};
use super::schema;

/// What users apply.
const APPLIED: [&str; 4] = [
    "base",
    "overlays/aks",
    "overlays/aks-managed-prometheus",
    "overlays/kind",
];

/// Names of the directories in one of `deploy/`'s.
fn directories(of: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(deploy::directory().join(of))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// All that is rendered from `deploy/` without the chart, by what it is of.
fn renderings() -> Result<Vec<(String, Objects)>> {
    let mut all = Vec::new();
    for path in APPLIED {
        all.push((path.to_owned(), of_kustomize(path).context(path)?));
    }
    for component in directories("components")? {
        for base in ["base", "overlays/aks", "overlays/kind"] {
            let objects = of_components(base, &[&component]).with_context(|| component.clone())?;
            all.push((format!("{base} with {component}"), objects));
        }
    }
    Ok(all)
}

fn pod(objects: &Objects) -> Result<&Value> {
    Ok(&one(objects, "DaemonSet")?["spec"]["template"]["spec"])
}

#[test]
fn every_overlay_is_known_here() -> Result<()> {
    let overlays: BTreeSet<String> = directories("overlays")?
        .into_iter()
        .map(|n| format!("overlays/{n}"))
        .collect();
    let applied: BTreeSet<String> = APPLIED[1..].iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(overlays, applied);
    Ok(())
}

#[test]
fn everything_rendered_is_what_the_api_server_takes() -> Result<()> {
    let mut checked = 0;
    for (of, objects) in renderings()? {
        for object in objects.values() {
            schema::check(object).with_context(|| of.clone())?;
            checked += 1;
        }
        // What is namespaced is in the namespace.
        for ((_, kind, name), object) in &objects {
            let is_clusters =
                ["Namespace", "ClusterRole", "ClusterRoleBinding"].contains(&kind.as_str());
            let namespace = &object["metadata"]["namespace"];
            ensure!(
                is_clusters == namespace.is_null(),
                "{of}: {kind} {name} in {namespace}"
            );
        }
    }
    ensure!(checked > 100, "{checked} objects");
    Ok(())
}

#[test]
fn the_check_finds_what_the_api_server_would_refuse_or_ignore() -> Result<()> {
    let objects = of_components("base", &["podmonitor", "servicemonitor"])?;
    for (kind, at, key, value) in [
        (
            "DaemonSet",
            "/spec/template/spec",
            "hostNetwrok",
            json!(true),
        ),
        (
            "DaemonSet",
            "/spec/template/spec/containers/0/securityContext",
            "capabilites",
            json!({}),
        ),
        (
            "DaemonSet",
            "/spec/template/spec/containers/0/readinessProbe",
            "periodSeconds",
            json!("5s"),
        ),
        (
            "DaemonSet",
            "/spec/updateStrategy",
            "maxUnavailable",
            json!(1),
        ),
        ("ClusterRole", "/rules/0", "verb", json!("list")),
        ("ClusterRoleBinding", "/roleRef", "names", json!("x")),
        ("Service", "/spec/ports/0", "targetport", json!("metrics")),
        ("ServiceAccount", "", "automount", json!(false)),
        ("Namespace", "/metadata", "label", json!({"a": "b"})),
        ("PodMonitor", "/spec", "endpoints", json!([])),
        (
            "PodMonitor",
            "/spec/podMetricsEndpoints/0",
            "intervall",
            json!("30s"),
        ),
        (
            "ServiceMonitor",
            "/spec/endpoints/0/relabelings/0",
            "sourceLabel",
            json!("x"),
        ),
    ] {
        let mut object = one(&objects, kind)?.clone();
        schema::check(&object)?;
        let parent = object
            .pointer_mut(at)
            .with_context(|| format!("{kind} has no {at}"))?;
        parent[key] = value;
        let found = schema::check(&object);
        ensure!(found.is_err(), "{kind}{at}/{key} is taken");
    }
    let unknown = json!({"apiVersion": "apps/v1", "kind": "Daemonset"});
    ensure!(schema::check(&unknown).is_err(), "a kind that is not there");
    Ok(())
}

#[test]
fn the_agent_is_confined_in_every_rendering() -> Result<()> {
    for (of, objects) in renderings()? {
        let pod = pod(&objects)?;
        assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1), "{of}");
        assert_eq!(pod["initContainers"], Value::Null, "{of}");
        assert_eq!(pod["hostNetwork"], true, "{of}");
        for key in ["hostPID", "hostIPC"] {
            assert_eq!(pod[key], Value::Null, "{of}: {key}");
        }
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{of}"
        );
        let security = &pod["containers"][0]["securityContext"];
        for (key, value) in [
            ("privileged", json!(false)),
            ("allowPrivilegeEscalation", json!(false)),
            ("readOnlyRootFilesystem", json!(true)),
        ] {
            assert_eq!(security[key], value, "{of}: {key}");
        }
        assert_eq!(
            security["capabilities"],
            json!({"drop": ["ALL"], "add": ["BPF", "PERFMON", "NET_ADMIN", "SYSLOG"]}),
            "{of}"
        );
        // Only where the socket goes is writable.
        for mount in pod["containers"][0]["volumeMounts"]
            .as_array()
            .context("mounts")?
        {
            let writable = mount["readOnly"] != true;
            assert_eq!(
                writable,
                mount["mountPath"] == "/run/aksnet",
                "{of}: {mount}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_container_runtimes_socket_is_mounted_only_where_that_is_asked_for() -> Result<()> {
    for (of, objects) in renderings()? {
        let volumes = pod(&objects)?["volumes"].as_array().context("volumes")?;
        let reaches_it = volumes.iter().any(|volume| {
            let path = volume["hostPath"]["path"].as_str().unwrap_or_default();
            ["/", "/run", "/run/containerd", "/var/run"].contains(&path)
        });
        let is_asked_for = of.ends_with("host-run") || of.ends_with("containerd-names");
        assert_eq!(reaches_it, is_asked_for, "{of}");
    }
    Ok(())
}

#[test]
fn a_node_full_tainted_or_in_a_rollout_has_its_agent() -> Result<()> {
    for (of, objects) in renderings()? {
        let set = one(&objects, "DaemonSet")?;
        assert_eq!(set["metadata"]["name"], "aksnet", "{of}");
        let update = &set["spec"]["updateStrategy"];
        assert_eq!(update["type"], "RollingUpdate", "{of}");
        assert!(
            update["rollingUpdate"]["maxUnavailable"].is_string(),
            "{of}"
        );
        let pod = pod(&objects)?;
        assert_eq!(pod["priorityClassName"], "system-node-critical", "{of}");
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]), "{of}");
        let container = &pod["containers"][0];
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(
                container[probe]["httpGet"]["port"], "metrics",
                "{of}: {probe}"
            );
        }
        let mebibytes = |at: &str| {
            let text = container["resources"][at]["memory"]
                .as_str()
                .unwrap_or_default();
            text.trim_end_matches("Mi").parse::<u32>()
        };
        assert!(mebibytes("requests")? <= mebibytes("limits")?, "{of}");
    }
    Ok(())
}

#[test]
fn the_port_is_the_same_wherever_it_is_named() -> Result<()> {
    for (of, objects) in renderings()? {
        let set = one(&objects, "DaemonSet")?;
        let container = &pod(&objects)?["containers"][0];
        let port = &container["ports"][0];
        assert_eq!(port["name"], "metrics", "{of}");
        let number = port["containerPort"].to_string();
        let variables = container["env"].as_array().context("variables")?;
        let listen = variables
            .iter()
            .find(|v| v["name"] == "AKSNET_LISTEN")
            .context("AKSNET_LISTEN")?;
        assert_eq!(listen["value"], format!("$(HOST_IP):{number}"), "{of}");
        let place = |name: &str| variables.iter().position(|v| v["name"] == name);
        assert!(
            place("HOST_IP") < place("AKSNET_LISTEN"),
            "{of}: only what stands before is replaced"
        );
        let annotation = &set["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"];
        assert!(
            annotation.is_null() || *annotation == number,
            "{of}: {annotation}"
        );
        for (key, object) in &objects {
            if key.1 == "Service" {
                assert_eq!(
                    object["spec"]["ports"][0]["port"].to_string(),
                    number,
                    "{of}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn monitors_find_the_agents_pods() -> Result<()> {
    let all = of_components(
        "overlays/aks-managed-prometheus",
        &["podmonitor", "servicemonitor"],
    )?;
    let set = one(&all, "DaemonSet")?;
    let pods = &set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(set["spec"]["selector"]["matchLabels"], *pods);
    let monitors: Vec<&Value> = all.values().filter(|o| o["kind"] == "PodMonitor").collect();
    assert_eq!(monitors.len(), 2, "the operator's and Azure Monitor's");
    for monitor in monitors {
        assert_eq!(monitor["spec"]["selector"]["matchLabels"], *pods);
        assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "metrics");
    }
    let service = one(&all, "Service")?;
    assert_eq!(service["spec"]["selector"], *pods);
    let monitor = one(&all, "ServiceMonitor")?;
    assert_eq!(
        monitor["spec"]["selector"]["matchLabels"],
        service["metadata"]["labels"]
    );
    assert_eq!(
        monitor["spec"]["endpoints"][0]["port"],
        service["spec"]["ports"][0]["name"]
    );
    // Not twice: by annotations as well as by Azure Monitor's PodMonitor.
    assert_eq!(
        set["spec"]["template"]["metadata"]["annotations"],
        Value::Null
    );
    let aks = of_kustomize("overlays/aks")?;
    let annotations = &one(&aks, "DaemonSet")?["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/scrape"], "true");
    Ok(())
}

#[test]
fn the_image_is_this_version_and_kind_pulls_none() -> Result<()> {
    for (of, objects) in renderings()? {
        let container = &pod(&objects)?["containers"][0];
        let image = format!("{}:{}", xtask::image::NAME, env!("CARGO_PKG_VERSION"));
        assert_eq!(container["image"], image, "{of}");
        let never = of.contains("kind");
        assert_eq!(container["imagePullPolicy"] == "Never", never, "{of}");
    }
    Ok(())
}

#[test]
fn the_images_file_is_permitted_what_the_container_is_granted() -> Result<()> {
    let base = of_kustomize("base")?;
    let added = &pod(&base)?["containers"][0]["securityContext"]["capabilities"]["add"];
    // linux/capability.h
    let mut numbers: Vec<u32> = added
        .as_array()
        .context("capabilities")?
        .iter()
        .map(|name| match name.as_str() {
            Some("NET_ADMIN") => Ok(12),
            Some("SYSLOG") => Ok(34),
            Some("PERFMON") => Ok(38),
            Some("BPF") => Ok(39),
            _ => anyhow::bail!("{name} is not known here"),
        })
        .collect::<Result<_>>()?;
    numbers.sort_unstable();
    assert_eq!(numbers, xtask::image::files::GRANTED);
    Ok(())
}

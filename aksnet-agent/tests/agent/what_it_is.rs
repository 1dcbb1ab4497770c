//! What the agent says that the node is, how it knows, and how many pod addresses there are.

use std::{collections::BTreeMap, net::IpAddr, path::Path, process::Command};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use xtask::testbed::{Backend, Builder, Engine, Family, Imds, Proxy, Testbed};

use crate::{
    cluster,
    life::{Agent, BINARY, Home, LISTEN, eventually, turn},
};

const LABELS: [&str; 6] = [
    "node",
    "cni",
    "policy_engine",
    "proxy_mode",
    "kernel",
    "zone",
];

/// The one label set of `aksnet_node_info`.
fn info(agent: &Agent<'_>) -> Result<[String; 6]> {
    let sets = agent.scrape()?.count_by("aksnet_node_info", LABELS);
    let [(labels, 1)] = &sets.into_iter().collect::<Vec<_>>()[..] else {
        anyhow::bail!("one series with the value 1")
    };
    Ok(labels.clone())
}

/// Flags for a node of which only its own files, rules and interfaces tell.
fn alone(bed: &Testbed) -> Vec<String> {
    vec![
        "--kubernetes=off".to_owned(),
        "--cri-socket=off".to_owned(),
        "--node-name=here".to_owned(),
        format!("--host-root={}", bed.node().root().display()),
    ]
}

fn kernel() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}

fn says(builder: Builder, cni: &str, engine: &str, proxy: &str) -> Result<()> {
    let bed = builder.build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, alone(&bed))?;
    let kernel = kernel()?;
    assert_eq!(info(&agent)?, ["here", cni, engine, proxy, &kernel, ""]);
    let status = agent.status()?;
    let found = &status["node"]["found"];
    for (key, value) in [
        ("cni", cni),
        ("policy_engine", engine),
        ("proxy_mode", proxy),
        ("zone", "not known"),
    ] {
        assert_eq!(found[key]["value"], value, "{found}");
        let evidence = found[key]["evidence"].as_array().context("a list")?;
        assert!(
            !evidence.is_empty() && evidence.iter().all(|e| e != ""),
            "{key}: {found}"
        );
    }
    let pods = if cni == "azure_node_subnet" {
        "10.224.0.0/16"
    } else {
        "10.244.0.0/16"
    };
    let spared = &found["masquerade"]["value"]["non_masquerade_cidrs"];
    assert_eq!(spared[0], pods, "{found}");
    assert_eq!(found["kernel"], kernel);
    let own = bed.node().ip().to_string();
    let addresses = found["addresses"]["value"].as_array().context("a list")?;
    assert!(addresses.iter().any(|a| *a == own), "{found}");
    let refused = status["node"]["metadata_service"].as_str();
    assert!(
        refused.is_some_and(|why| why.contains("not asked")),
        "{status}"
    );
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    let said = agent.stop(Signal::SIGTERM)?;
    let line = said.lines().filter(|l| l.contains("this node: "));
    let lines: Vec<&str> = line.collect();
    assert_eq!(lines.len(), 1, "{said}");
    for part in [
        format!("CNI {cni} ("),
        format!("kube-proxy {proxy} ("),
        format!("policy engine {engine} ("),
        format!("but not to {pods}"),
        "zone not known (".to_owned(),
    ] {
        assert!(lines[0].contains(&part), "{part}: {}", lines[0]);
    }
    Ok(())
}

#[test]
fn each_kind_of_node_is_named_with_evidence() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    says(Testbed::kubenet(), "kubenet", "none", "iptables")?;
    says(
        Testbed::kind().backend(Backend::Legacy),
        "kindnet",
        "none",
        "iptables",
    )?;
    let npm = Testbed::azure_overlay().engine(Engine::AzureNpm);
    says(npm, "azure_overlay", "azure_npm", "iptables")?;
    let nftables = Testbed::azure_node_subnet().proxy(Proxy::Nftables);
    says(nftables, "azure_node_subnet", "none", "nftables")
}

#[test]
fn the_zone_is_the_node_objects() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let agent = Agent::start(&bed, &home, cluster::flags(&bed, &home)?)?;
    let expected = [
        bed.node().name(),
        "azure_overlay",
        "none",
        "iptables",
        &kernel()?,
        cluster::ZONES[0],
    ];
    // From the start, and said once.
    assert_eq!(info(&agent)?, expected);
    let evidence = agent.status()?["node"]["found"]["zone"]["evidence"].to_string();
    assert!(
        evidence.contains("topology.kubernetes.io/zone=westeurope-1"),
        "{evidence}"
    );
    let said = agent.stop(Signal::SIGTERM)?;
    assert!(said.contains("zone westeurope-1 (node label"), "{said}");
    assert_eq!(said.matches("this node: ").count(), 1, "{said}");
    Ok(())
}

/// An agent on a machine whose firmware says that it is Azure's.
pub fn on_azure(bed: &Testbed, home: &Home) -> Command {
    const SCRIPT: &str = "mount -t tmpfs none /sys/class && mkdir -p /sys/class/dmi/id \
        && echo 7783-7084-3265-9085-8269-3286-77 > /sys/class/dmi/id/chassis_asset_tag && exec \"$@\"";
    // In a mount namespace of its own.
    let mut command = bed.node().netns().command_with_sysfs("sh");
    command
        .args(["-c", SCRIPT, "sh", BINARY, "run", "--listen", LISTEN])
        .args(["--interval", "100ms", "--socket"])
        .arg(home.socket());
    command
}

#[test]
fn without_a_node_object_the_metadata_service_tells_the_zone() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let service = Imds::start(bed.azure(), "2")?;
    // For the zone, and for the load balancer.
    for (flag, zone, answered) in [("--imds=auto", "westeurope-2", 2), ("--imds=off", "", 2)] {
        let mut command = on_azure(&bed, &home);
        command.args(alone(&bed)).arg(flag);
        let mut agent = Agent::spawn(&bed, &home, &mut command)?;
        agent.await_ready()?;
        assert_eq!(info(&agent)?[5], zone, "{flag}");
        assert_eq!(
            (service.answered(), service.refused()),
            (answered, 0),
            "{flag}"
        );
        agent.stop(Signal::SIGTERM)?;
    }
    Ok(())
}

#[test]
fn a_policy_engine_that_is_installed_later_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, alone(&bed))?;
    assert_eq!(info(&agent)?[2], "none");
    bed.node().restore(
        Family::V4,
        "*filter\n:AZURE-NPM - [0:0]\n-I FORWARD -j AZURE-NPM\nCOMMIT\n",
    )?;
    // Rules change without a trace, and are read again every minute; a new interface makes it at once.
    bed.add_pod("late")?;
    eventually("it is found", || Ok(info(&agent)?[2] == "azure_npm"))?;
    let lines = agent.said().matches("this node: ").count();
    assert_eq!(lines, 2, "{}", agent.said());
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// Makes paths that the testbed wrote into the node's configuration lead to the same place below its root.
fn mirror(root: &Path) -> Result<()> {
    let inside = root.join(root.strip_prefix("/")?);
    std::fs::create_dir_all(inside.parent().context("a root of its own")?)?;
    Ok(std::os::unix::fs::symlink(root, inside)?)
}

/// The files that host-local keeps, one for each address, wherever below the root they are.
fn address_files(directory: &Path) -> Result<u64> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count += address_files(&entry.path())?;
        } else if entry
            .file_name()
            .to_string_lossy()
            .parse::<IpAddr>()
            .is_ok()
        {
            count += 1;
        }
    }
    Ok(count)
}

#[test]
fn pod_addresses_in_use_are_the_files_of_host_local() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in [Testbed::kubenet(), Testbed::kind()] {
        let bed = builder.pods(3).build()?;
        mirror(bed.node().root())?;
        let files = || address_files(&bed.node().root().join("var/lib/cni"));
        let home = Home::new()?;
        let agent = Agent::start(&bed, &home, alone(&bed))?;
        let shown = |name| Ok::<_, anyhow::Error>(agent.scrape()?.count_by(name, ["source"]));
        let of = |count| BTreeMap::from([(["host_local".to_owned()], count)]);
        assert_eq!(files()?, 3);
        assert_eq!(shown("aksnet_pod_ips_in_use")?, of(3));
        assert_eq!(shown("aksnet_pod_ips_limit")?, of(253));
        bed.add_pod("late")?;
        assert_eq!(files()?, 4);
        eventually("it grows", || Ok(shown("aksnet_pod_ips_in_use")? == of(4)))?;
        bed.delete_pod("late")?;
        bed.delete_pod("web")?;
        assert_eq!(files()?, 2);
        eventually(
            "it shrinks",
            || Ok(shown("aksnet_pod_ips_in_use")? == of(2)),
        )?;
        assert_eq!(shown("aksnet_pod_ips_limit")?, of(253));
        let accounts = &agent.status()?["node"]["pod_ips"];
        assert_eq!(accounts["accounts"][0]["in_use"], 2, "{accounts}");
        agent.stop(Signal::SIGTERM)?;
    }
    Ok(())
}

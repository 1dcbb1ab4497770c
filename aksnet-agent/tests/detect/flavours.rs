//! Each kind of node is found to be what it is, with its rules in either backend.

use std::net::IpAddr;

use aksnet_agent::node::found::{Found, Labels, Masquerade};
use anyhow::Result;
use xtask::testbed::{Backend, Builder, Testbed};

use crate::rig::{detect, detect_node, turn};

const BACKENDS: [Backend; 2] = [Backend::Nft, Backend::Legacy];

fn find(builder: Builder, backend: Backend) -> Result<Found> {
    let bed = builder.dual_stack(true).backend(backend).build()?;
    let found = detect_node(&bed)?;
    println!("{}", found.line());
    assert_eq!(found.proxy_mode.value, Some("iptables"), "{found:?}");
    assert_eq!(found.policy_engine.value, Some("none"), "{found:?}");
    let addresses = found.addresses.value.as_ref().unwrap();
    for address in bed.node().address().iter() {
        assert!(addresses.contains(&address), "{addresses:?}");
    }
    let source = match backend {
        Backend::Nft => "nf_tables",
        Backend::Legacy => "x_tables",
    };
    assert!(found.proxy_mode.evidence[0].contains(source), "{found:?}");
    Ok(found)
}

fn masquerade(found: &Found) -> Masquerade {
    found
        .masquerade
        .value
        .clone()
        .flatten()
        .unwrap_or_else(|| panic!("{found:?}"))
}

fn spared(masquerade: &Masquerade) -> Vec<String> {
    masquerade.spared.iter().map(ToString::to_string).collect()
}

#[test]
fn kubenet_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in BACKENDS {
        let found = find(Testbed::kubenet(), backend)?;
        assert_eq!(found.cni.value, Some("kubenet"));
        assert!(found.cni.evidence[0].contains("10-containerd-net.conflist"));
        assert_eq!(found.cni.evidence[1], "bridge cbr0 10.244.0.0/24");
        let agent = masquerade(&found);
        assert_eq!(
            (agent.agent, agent.chain),
            ("ip-masq-agent", "IP-MASQ-AGENT")
        );
        assert_eq!(spared(&agent)[0], "10.244.0.0/16");
        assert_eq!(agent.spared.len(), 2, "one for each family: {agent:?}");
        assert_eq!((agent.link_local, agent.random_fully), (Some(true), false));
        // The bridge's own address is the node's.
        let bridge: IpAddr = "10.244.0.1".parse()?;
        assert!(found.addresses.value.unwrap().contains(&bridge));
    }
    Ok(())
}

#[test]
fn kind_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in BACKENDS {
        let found = find(Testbed::kind(), backend)?;
        assert_eq!(found.cni.value, Some("kindnet"));
        let agent = masquerade(&found);
        assert_eq!((agent.agent, agent.chain), ("kindnetd", "KIND-MASQ-AGENT"));
        assert_eq!(spared(&agent)[0], "10.244.0.0/16");
    }
    Ok(())
}

#[test]
fn azure_overlay_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in BACKENDS {
        let found = find(Testbed::azure_overlay(), backend)?;
        assert_eq!(found.cni.value, Some("azure_overlay"));
        assert_eq!(spared(&masquerade(&found))[0], "10.244.0.0/16");
    }
    Ok(())
}

#[test]
fn azure_node_subnet_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in BACKENDS {
        let found = find(Testbed::azure_node_subnet(), backend)?;
        assert_eq!(found.cni.value, Some("azure_node_subnet"));
        assert_eq!(spared(&masquerade(&found))[0], "10.224.0.0/16");
    }
    Ok(())
}

#[test]
fn without_the_hosts_files_interfaces_and_rules_still_tell() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let empty = tempfile::tempdir()?;
    for (builder, cni) in [
        (Testbed::kubenet(), "kubenet"),
        (Testbed::kind(), "kindnet"),
        (Testbed::azure_overlay(), "azure_overlay"),
        (Testbed::azure_node_subnet(), "azure_node_subnet"),
    ] {
        let bed = builder.build()?;
        let found = detect(bed.node().netns(), empty.path(), None)?;
        assert_eq!(found.cni.value, Some(cni), "{found:?}");
    }
    Ok(())
}

#[test]
fn labels_give_the_zone() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let labels = Labels::from([(
        "topology.kubernetes.io/zone".to_owned(),
        "eastus2-3".to_owned(),
    )]);
    let found = detect(bed.node().netns(), bed.node().root(), Some(&labels))?;
    assert_eq!(found.zone.value.as_deref(), Some("eastus2-3"));
    Ok(())
}

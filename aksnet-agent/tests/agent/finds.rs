//! What the agent finds by itself on a node of each kind, and how it shows it.

use std::{collections::BTreeSet, io::Read as _};

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use nix::sys::signal::Signal;
use serde_json::Value;
use xtask::testbed::{Builder, Family, Testbed};

use crate::{
    life::{Agent, Home, attached, has_tcx, turn},
    scrape::Scrape,
};

/// Starts an agent without a hint on a node, and checks what it found.
fn found_on(builder: Builder, because: &str) -> Result<()> {
    let bed = builder.pods(3).build()?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, [""; 0])?;
    let status = agent.status()?;
    assert_eq!(status["ready"], true);

    let mut roles = BTreeSet::new();
    for watched in status["interfaces"]["watched"]
        .as_array()
        .context("a list")?
    {
        let text = |key: &str| watched[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(text("attach"), "attached", "{watched}");
        if text("role") == "pod" {
            assert!(text("because").contains(because), "{watched}");
        }
        roles.insert((text("name"), text("role")));
    }
    let expected: BTreeSet<_> = bed
        .node()
        .pods()
        .iter()
        .map(|p| (p.veth().to_owned(), "pod".to_owned()))
        .chain([("eth0".to_owned(), "uplink".to_owned())])
        .collect();
    assert_eq!(roles, expected);
    for passed in status["interfaces"]["passed_over"]
        .as_array()
        .context("a list")?
    {
        assert!(passed["because"].is_string(), "{passed}");
    }

    let programs = status["programs"].as_array().context("a list")?;
    let names: BTreeSet<_> = programs
        .iter()
        .filter_map(|p| p["program"].as_str())
        .collect();
    assert_eq!(names, BTreeSet::from(["drop", "enter", "exit"]));
    for program in programs {
        assert_eq!(program["up"], true, "{program}");
        if program["program"] != "drop" {
            assert_eq!(program["interfaces"], 4, "{program}");
        }
    }
    assert_eq!(status["tables"]["flow_cells"]["of"], 65_536);
    assert!(status["tables"]["flow_cells"]["used"].is_u64());
    let drops = &status["tables"]["drops"];
    assert_eq!(
        drops["dialled_known"],
        drops["why_not"].is_null(),
        "{drops}"
    );
    knows_addresses(&bed, &status)?;

    // Exactly one program at each hook, and it goes when the agent goes.
    let kind = if has_tcx(bed.node().netns()) {
        "tcx"
    } else {
        "clsact"
    };
    let expected: BTreeSet<String> = expected
        .iter()
        .flat_map(|(name, _)| ["ingress", "egress"].map(|side| format!("{name} {kind} {side}: 1")))
        .collect();
    assert_eq!(BTreeSet::from_iter(attached(&bed)?), expected);

    served(&agent)?;
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    let said = agent.stop(Signal::SIGTERM)?;
    assert!(
        said.contains("config: "),
        "the effective config is logged:\n{said}"
    );
    Ok(())
}

/// The address plan names where each fact is from, and has this node, its pods and the outside right.
fn knows_addresses(bed: &Testbed, status: &Value) -> Result<()> {
    let plan = status["plan"].as_array().context("a list")?;
    assert!(
        plan.iter()
            .all(|f| f["source"].as_str().is_some_and(|s| !s.is_empty()))
    );
    let nets_of = |is: &str| -> Vec<ipnet::IpNet> {
        plan.iter()
            .filter(|f| f["is"] == is)
            .filter_map(|f| f["net"].as_str()?.parse().ok())
            .collect()
    };
    for family in bed.families() {
        let node = bed.node().address().of(family).context("an address")?;
        ensure!(
            nets_of("node_address")
                .iter()
                .any(|n| n.addr() == node && n.prefix_len() == n.max_prefix_len()),
            "the node's own address {node} is known: {plan:#?}"
        );
        // Each by its range, or all by a route of their own: then how many is shown.
        let counted = plan
            .iter()
            .find(|f| f["is"] == "local_pod")
            .and_then(|f| f["addresses"][if family == Family::V4 { "v4" } else { "v6" }].as_u64());
        let pods = bed.node().pods();
        for pod in &pods {
            let pod = pod.ip_of(family);
            ensure!(
                nets_of("local_pod_cidr").iter().any(|n| n.contains(&pod))
                    || counted == Some(pods.len() as u64),
                "{pod} is known to be a pod here: {plan:#?}"
            );
        }
    }
    Ok(())
}

/// What the admin server gives.
fn served(agent: &Agent) -> Result<()> {
    for path in ["/", "/live", "/ready", "/status", "/metrics"] {
        let response = agent.get(path, "")?;
        assert_eq!(response.status, 200, "{path}");
        assert!(!response.headers.contains("content-encoding"), "{path}");
        assert!(!response.body.is_empty(), "{path}");
    }
    assert_eq!(agent.get("/nothing", "")?.status, 404);
    let plain = agent.get("/metrics", "")?;
    assert!(
        plain
            .headers
            .contains("content-type: text/plain; version=0.0.4")
    );
    let scrape = Scrape::parse(plain.text()?)?;
    for program in ["enter", "exit", "drop"] {
        assert!(
            scrape.sum("aksnet_program_up", &[("program", program)]) >= 1.0,
            "{program}"
        );
    }
    assert_eq!(scrape.count("aksnet_agent_flow_map_limit", &[]), 65_536);
    assert_eq!(
        scrape.count(
            "aksnet_build_info",
            &[("version", env!("CARGO_PKG_VERSION"))]
        ),
        1
    );

    for asked in [
        "Accept-Encoding: gzip",
        "Accept-Encoding: deflate, GZIP;q=0.5, br",
    ] {
        let zipped = agent.get("/metrics", asked)?;
        assert!(zipped.headers.contains("content-encoding: gzip"), "{asked}");
        let mut text = String::new();
        GzDecoder::new(zipped.body.as_slice()).read_to_string(&mut text)?;
        Scrape::parse(&text)?;
    }
    for asked in ["Accept-Encoding: identity", "Accept-Encoding: gzip;q=0"] {
        let plain = agent.get("/metrics", asked)?;
        assert!(!plain.headers.contains("content-encoding"), "{asked}");
        Scrape::parse(plain.text()?)?;
    }
    Ok(())
}

#[test]
fn kubenet_is_found_by_its_bridge() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    found_on(Testbed::kubenet(), "port of cbr0")?;
    found_on(Testbed::kubenet().dual_stack(true), "port of cbr0")
}

#[test]
fn kind_is_found_without_names() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    found_on(Testbed::kind(), "")?;
    found_on(Testbed::kind().dual_stack(true), "")
}

#[test]
fn azure_cni_is_found_in_both_modes() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    found_on(Testbed::azure_overlay(), "")?;
    found_on(Testbed::azure_overlay().dual_stack(true), "")?;
    found_on(Testbed::azure_node_subnet(), "")
}

#[test]
fn named_interfaces_are_taken_and_no_others() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let home = Home::new()?;
    let veth = bed.pod(1).veth().to_owned();
    let agent = Agent::start(&bed, &home, ["--uplink", "eth0", "--pod-interface", &veth])?;
    assert_eq!(
        BTreeSet::from_iter(agent.attached()?),
        BTreeSet::from(["eth0".to_owned(), veth])
    );
    assert!(bed.node().address().of(Family::V4).is_some());
    agent.stop(Signal::SIGINT)?;
    Ok(())
}

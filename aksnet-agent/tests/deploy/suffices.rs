//! What the manifest gives suffices: the agent starts, is ready, counts, names and explains, and is asked by `exec`.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::testbed::{Engine, Testbed};

use crate::{
    manifest::Manifest,
    node::{Node, can_run},
    scrape::Scrape,
    shop::{ALLOWED, Shop},
};

/// Waits until something holds; what it says when it does not is shown.
pub fn eventually(mut holds: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match holds() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// What was counted of the shop's trade is what happened, by the engine's own count.
pub fn counts_are_right(
    scrape: impl Fn() -> Result<Scrape>,
    shop: &Shop,
    cause: &str,
) -> Result<()> {
    eventually(|| {
        let scrape = scrape()?;
        let pair = [("src_workload", "frontend"), ("dst_workload", "web")];
        let opened = scrape.count("aksnet_flow_connections_total", &pair);
        ensure!(opened == ALLOWED, "{opened} of {ALLOWED} connections");
        let denied = shop.denied()?;
        ensure!(denied > 0, "nothing was denied");
        let dropped = scrape.count("aksnet_drop_packets_total", &[("cause", cause)]);
        let all = scrape.count("aksnet_drop_packets_total", &[]);
        ensure!(
            dropped == denied && all == denied,
            "{dropped} of {denied}, {all} in all"
        );
        let labels = [("policy", "shop/web-policy"), ("src_workload", "cache")];
        let named = scrape.count("aksnet_policy_denied_packets_total", &labels);
        let expected = if cause == "policy" { denied } else { 0 };
        ensure!(
            named == expected,
            "{named} of {expected} with the policy's name"
        );
        Ok(())
    })
}

/// What the runtime made of the manifest is what the manifest says.
fn confined_as_asked(info: &Value, manifest: &Manifest) -> Result<()> {
    let spec = &info["runtimeSpec"];
    let process = &spec["process"];
    ensure!(process["noNewPrivileges"] == true, "{process}");
    ensure!(spec["root"]["readonly"] == true, "{spec}");
    let seccomp = &spec["linux"]["seccomp"];
    ensure!(seccomp["defaultAction"] == "SCMP_ACT_ERRNO", "{seccomp}");
    let asked: BTreeSet<String> = manifest
        .capabilities()?
        .add
        .iter()
        .flatten()
        .map(|name| format!("CAP_{name}"))
        .collect();
    for set in ["bounding", "permitted", "effective"] {
        let given: BTreeSet<String> = serde_json::from_value(process["capabilities"][set].clone())?;
        ensure!(given == asked, "{set}: {given:?}");
    }
    for mount in spec["mounts"].as_array().context("mounts")? {
        let to = mount["destination"].as_str().unwrap_or_default();
        let options = mount["options"].as_array().cloned().unwrap_or_default();
        // Of what the manifest mounts, only where the socket goes is written to.
        if to.starts_with("/host") || to == "/sys/kernel/btf" {
            ensure!(options.contains(&json!("ro")), "{mount}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rendered_manifest_suffices_in_a_real_container() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    for (overlay, components) in [
        ("overlays/kind", &[][..]),
        ("overlays/aks", &[]),
        ("overlays/kind", &["nonroot"]),
    ] {
        let shop = Shop::open(Testbed::kind().engine(Engine::Kindnet))?;
        let mut node = Node::new(&shop.bed).await?;
        let manifest = Manifest::with(overlay, components)?;
        let agent = node
            .run(&manifest, &Shop::settings(), Some(shop.files()))
            .await?;
        node.ready(&manifest, &agent).await?;
        let container = manifest.container();
        for probe in [&container.startup_probe, &container.liveness_probe] {
            let action = probe.as_ref().and_then(|p| p.http_get.as_ref());
            assert_eq!(node.probe(&agent, action.context("a probe")?)?, 200);
        }
        let (_, info) = node.cri.status(&agent.id).await?;
        confined_as_asked(&info, &manifest)?;

        shop.trade()?;
        counts_are_right(|| node.scrape(&agent), &shop, "policy")?;
        let said = agent.said();
        let complaints: Vec<&str> = said
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains("ERROR "))
            .collect();
        ensure!(complaints.is_empty(), "{complaints:#?}");

        // As the docs have it, by its short name.
        let rows = node
            .exec(&agent, &["agent", "top", "--raw", "--json", "--count", "1"])
            .await?;
        ensure!(
            rows.lines()
                .any(|row| row.contains("frontend") && row.contains("web")),
            "{rows}"
        );
        let words = ["agent", "drops", "--recent", "--json", "--count", "1"];
        let record: Value = serde_json::from_str(&node.exec(&agent, &words).await?)?;
        assert_eq!(record["policies"], json!(["shop/web-policy"]));

        // Every process of it is the user that the manifest names, and has what it grants.
        let status = node.process_status(&agent)?;
        let user = manifest.security()?.run_as_user.context("a user")?;
        for line in [
            format!("Uid:\t{user}\t{user}\t{user}\t{user}"),
            "CapEff:\t000000c400001000".to_owned(),
            "CapAmb:\t0000000000000000".to_owned(),
            "NoNewPrivs:\t1".to_owned(),
            "Seccomp:\t2".to_owned(),
        ] {
            ensure!(
                status.lines().any(|found| found == line),
                "no {line} in {status}"
            );
        }

        if user != 0 {
            println!("{overlay} with {components:?}: {}", node.memory(&agent)?);
            assert_eq!(node.stop(&manifest, &agent).await?, 0, "{}", agent.said());
            continue;
        }
        // The binary on the node finds the socket where the manifest puts it.
        let socket = shop.bed.node().root().join("run/aksnet/agent.sock");
        let output = Command::new(env!("CARGO_BIN_EXE_aksnet-agent"))
            .args(["top", "--raw", "--count", "1", "--socket"])
            .arg(&socket)
            .output()?;
        ensure!(output.status.success(), "{output:?}");

        println!("{overlay}: {}", node.memory(&agent)?);
        assert_eq!(node.stop(&manifest, &agent).await?, 0, "{}", agent.said());
        ensure!(!socket.exists(), "its socket is gone");
    }
    Ok(())
}

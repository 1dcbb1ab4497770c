//! Which policy drops my packets: the real agent's answer, against what the engine's own counters say.

use std::{io::BufRead as _, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use xtask::testbed::{
    Engine, PolicyRule, Service, Testbed, Verdict,
    api::objects,
    traffic::{Connect, TcpServer, connect},
};

use crate::{
    cluster,
    life::{Agent, Home, turn},
    scrape::Scrape,
};

const SOON: Duration = Duration::from_millis(300);
const ONE_RETRANSMIT: Duration = Duration::from_millis(2_500);

/// `web` takes what comes from `frontend`.
fn web_policy() -> Value {
    let from = json!([{"podSelector": {"matchLabels": {"app": "frontend"}}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": from}],
    });
    objects::policy("shop", "web-policy", &spec)
}

fn denied(scrape: &Scrape, labels: &[(&str, &str)]) -> (f64, f64) {
    (
        scrape.sum("aksnet_policy_denied_packets_total", labels),
        scrape.sum("aksnet_policy_denied_connections_total", labels),
    )
}

fn dropped(scrape: &Scrape, cause: &str) -> f64 {
    scrape.sum("aksnet_drop_packets_total", &[("cause", cause)])
}

#[test]
fn a_packet_that_npm_drops_has_its_policys_name() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay()
        .engine(Engine::AzureNpm)
        .pods(4)
        .build()?;
    let (frontend, web, batch) = (bed.pod(0), bed.pod(1), bed.pod(3));
    let api = cluster::start(&bed)?;
    api.apply(web_policy());
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let service = Service::cluster_ip("shop", "web", 80).endpoints([server.address()]);
    let service = bed.add_service(service)?;
    cluster::tell_service(&api, &bed, "web", &service, &[&web]);
    let rule = PolicyRule::new("web-policy", Verdict::NpmIngress);
    bed.add_policy(rule.from(batch.ip()).to(web.ip()))?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, cluster::flags(&bed, &home)?)?;

    assert_eq!(
        connect(batch.netns(), service.address(), ONE_RETRANSMIT)?,
        Connect::TimedOut
    );
    assert_eq!(
        connect(frontend.netns(), service.address(), SOON)?,
        Connect::Connected
    );
    let scrape = agent.settled()?;
    let packets = bed.node().rule_packets("DROP-INGRESS-web-policy")?;
    assert!(packets > 1, "the SYN was sent again");
    let labels = [
        ("direction", "ingress"),
        ("policy", "shop/web-policy"),
        ("confidence", "exact"),
        ("engine", "azure_npm"),
        ("src_namespace", "shop"),
        ("src_workload", "batch"),
        ("dst_namespace", "shop"),
        ("dst_workload", "web"),
    ];
    #[expect(clippy::cast_precision_loss, reason = "a few packets")]
    let expected = packets as f64;
    assert_eq!(denied(&scrape, &labels), (expected, 1.0));
    assert_eq!(denied(&scrape, &[]), (expected, 1.0), "and no other");
    assert_eq!(dropped(&scrape, "policy"), expected);

    let records = recent_drops(
        &bed,
        &home,
        &["--cause=policy", "--namespace=shop"],
        packets,
    )?;
    let sum = |key: &str| records.iter().filter_map(|r| r[key].as_u64()).sum::<u64>();
    assert_eq!((sum("packets"), sum("connections")), (packets, 1));
    let record = &records[0];
    assert_eq!(record["policies"], json!(["shop/web-policy"]));
    assert_eq!(record["src"]["workload"], "batch");
    assert_eq!(record["dst"]["workload"], "web");
    assert_eq!(record["dst"]["port"], 8080);
    let dialled = json!([service.address().ip(), service.address().port()]);
    assert_eq!(record["dialled"], dialled);
    assert_eq!(
        record["why"],
        format!(
            "policy shop/web-policy isolates shop/{} ingress; from: app=frontend did not match app=batch",
            cluster::pod_name(&web)
        )
    );
    Ok(())
}

/// What `aksnet-agent drops` says of so many packets, as JSON.
fn recent_drops(bed: &Testbed, home: &Home, args: &[&str], packets: u64) -> Result<Vec<Value>> {
    let mut command = home.command(bed, "drops");
    command.args(["--json", "--recent"]).args(args);
    command.stdout(std::process::Stdio::piped());
    let mut child = bed.node().netns().spawn(&mut command)?;
    let mut records = Vec::new();
    let mut seen = 0;
    let lines = std::io::BufReader::new(child.stdout.take().context("a pipe")?).lines();
    for line in lines {
        let record: Value = serde_json::from_str(&line?)?;
        seen += record["packets"].as_u64().context("a count")?;
        records.push(record);
        if seen >= packets {
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    Ok(records)
}

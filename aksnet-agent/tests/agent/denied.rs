//! Which policy drops my packets: the real agent's answer, against what the engine's own counters say.

use std::time::Duration;

use anyhow::Result;
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
    Ok(())
}

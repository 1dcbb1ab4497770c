//! Is it policy at all: every other way in which a node loses packets has its own cause, to the packet, also where
//! policies deny the same traffic and an engine stands ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use xtask::testbed::{
    Backend, Builder, Engine, Proxy, Testbed,
    api::objects,
    counters,
    enforce::{Allow, Isolation, Side},
    frame::{Frame, Packet},
    mishap::{self, handshake, handshake::Outcome},
    traffic::FrameSocket,
};

use crate::{
    cluster,
    denied::recent_drops,
    life::{Agent, Home, eventually, turn},
    scrape::Scrape,
};

const PACKETS: u16 = 12;

/// A few sweeps.
const MOMENT: Duration = Duration::from_millis(350);

/// Dropped packets by cause.
type Causes = BTreeMap<[String; 1], u64>;

fn by_cause(scrape: &Scrape) -> Causes {
    scrape.count_by("aksnet_drop_packets_total", ["cause"])
}

/// Plays every mishap that is possible; each must be counted under its cause, and nothing under another.
fn each_has_its_cause(builder: Builder, engine: Engine, except: &[&str]) -> Result<()> {
    let bed = builder.engine(engine).build()?;
    if engine != Engine::None {
        // It judges the packets, and lets pass what else will be lost.
        let open = |pod, side| {
            Isolation::new("shop", "open", side)
                .select(&bed.pod(pod))
                .allow(Allow::all())
        };
        bed.enforce(&[open(0, Side::Egress), open(1, Side::Ingress)])?;
    }
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    // The policies, as the API has them, deny whatever the first pod sends.
    let spec =
        json!({"podSelector": {"matchLabels": {"app": "frontend"}}, "policyTypes": ["Egress"]});
    api.apply(objects::policy("shop", "deny-all", &spec));
    // The services of the mishaps are not the API's.
    let mut flags = cluster::flags(&bed, &home)?;
    flags.push(format!("--service-cidr={}", bed.plan().services.v4));
    let agent = Agent::start(&bed, &home, flags)?;
    let mut wrong = Vec::new();
    let mut expected = Causes::new();
    let mut losses = BTreeSet::new();
    let mut before = by_cause(&agent.settled()?);
    for family in bed.families() {
        for mishap in mishap::all() {
            if !mishap.is_possible(&bed, family) || except.contains(&mishap.name) {
                continue;
            }
            let loss = mishap.play(&bed, family, PACKETS)?;
            // Drops of a flow whose other end has no name yet wait for it for three seconds.
            let known = || -> Result<bool> {
                let sum = |causes: &Causes| causes.values().sum::<u64>();
                Ok(sum(&by_cause(&agent.scrape()?)) >= sum(&before) + loss.packets)
            };
            let waited = eventually("all are counted", known);
            // What should not be counted, or not there, would be by now; what comes later is in the sum below.
            std::thread::sleep(MOMENT);
            let after = by_cause(&agent.scrape()?);
            losses.insert([
                mishap.cause.to_owned(),
                loss.transport.to_string(),
                loss.source.ip().to_string(),
                loss.destination.to_string(),
                loss.interface.clone(),
            ]);
            *expected.entry([mishap.cause.to_owned()]).or_default() += loss.packets;
            let risen: Vec<(String, u64)> = after
                .iter()
                .map(|(cause, n)| (n - before.get(cause).copied().unwrap_or(0), cause))
                .filter(|(n, _)| *n > 0)
                .map(|(n, [cause])| (cause.clone(), n))
                .collect();
            before = after;
            if waited.is_err() || risen != [(mishap.cause.to_owned(), loss.packets)] {
                let expected = (mishap.cause, loss.packets);
                wrong.push(format!(
                    "{mishap:?} ({family:?}): {risen:?}, not {expected:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(by_cause(&agent.settled()?), expected);
    // The log has the same, with who sent what to whom, as it was dialled, and where it came in.
    let packets = expected.values().sum();
    let records = recent_drops(&bed, &home, &[], packets)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // On kubenet, what falls in PREROUTING falls before the bridge has passed it up: it came in by the port.
    let bridge = counters::link(bed.node().netns(), "cbr0").is_ok();
    let interface = |record: &Value| match text(&record["in_interface"]) {
        port if bridge && port == bed.pod(0).veth() => "cbr0".to_owned(),
        other => other,
    };
    let to = |record: &Value| -> Result<String> {
        let dst = json!([record["dst"]["address"], record["dst"]["port"]]);
        let dialled = match &record["dialled"] {
            Value::Null => dst,
            dialled => dialled.clone(),
        };
        let (ip, port) = serde_json::from_value(dialled)?;
        Ok(SocketAddr::new(ip, port).to_string())
    };
    let logged: BTreeSet<[String; 5]> = records
        .iter()
        .map(|record| {
            Ok([
                text(&record["cause"]),
                text(&record["protocol"]),
                text(&record["src"]["address"]),
                to(record)?,
                interface(record),
            ])
        })
        .collect::<Result<_>>()?;
    assert_eq!(logged, losses);
    Ok(())
}

#[test]
fn each_has_its_cause_on_a_node_without_an_engine() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    each_has_its_cause(Testbed::azure_overlay().dual_stack(true), Engine::None, &[])
}

#[test]
fn each_has_its_cause_with_rules_in_legacy_iptables_and_services_in_nftables() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    each_has_its_cause(
        Testbed::kubenet().backend(Backend::Legacy),
        Engine::None,
        &[],
    )?;
    each_has_its_cause(
        Testbed::azure_overlay().proxy(Proxy::Nftables),
        Engine::None,
        &[],
    )
}

#[test]
fn each_has_its_cause_where_azure_npm_enforces_policies() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    each_has_its_cause(Testbed::azure_overlay(), Engine::AzureNpm, &[])
}

#[test]
fn each_has_its_cause_where_calico_enforces_policies() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    // A rule of somebody else's that drops what the policies deny as well cannot be told from Calico's.
    let except = ["administrator's rule"];
    each_has_its_cause(Testbed::azure_overlay(), Engine::Calico, &except)
}

#[test]
fn each_has_its_cause_where_kindnet_enforces_policies() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    each_has_its_cause(Testbed::kind().dual_stack(true), Engine::Kindnet, &[])
}

#[test]
fn a_drop_that_nothing_explains_says_where_in_the_kernel_it_happened() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let agent = Agent::start(&bed, &home, cluster::flags(&bed, &home)?)?;
    let (pod, web) = (bed.pod(0), bed.pod(1));
    let datagram = Packet::udp(
        (pod.ip(), 40_000).into(),
        (web.ip(), 9_000).into(),
        b"whatever",
    );
    let gateway = counters::mac(bed.node().netns(), pod.veth())?;
    let mut octets = Frame::new(counters::mac(pod.netns(), "eth0")?, gateway, datagram).build();
    // The IP header's checksum: the node throws such a packet away before it looks any further.
    octets[24] ^= 0xff;
    let socket = FrameSocket::open(pod.netns(), "eth0")?;
    for _ in 0..PACKETS {
        socket.send(&octets)?;
    }
    let scrape = agent.settled()?;
    let packets = u64::from(PACKETS);
    assert_eq!(
        by_cause(&scrape),
        Causes::from([(["other".to_owned()], packets)])
    );
    let records = recent_drops(&bed, &home, &["--cause=other"], packets)?;
    let record = &records[0];
    assert_eq!(record["reason"], "ip_csum");
    let location = record["location"].as_str().unwrap_or_default();
    assert!(location.starts_with("ip_rcv_core"), "{record}");
    assert_eq!(record["in_interface"], pod.veth());
    Ok(())
}

fn outcomes(scrape: &Scrape) -> [u64; 3] {
    ["refused", "unanswered", "pod_silent"].map(|outcome| {
        let labels = [("outcome", outcome)];
        scrape.count("aksnet_tcp_handshake_failures_total", &labels)
    })
}

#[test]
fn silence_from_outside_is_told_from_a_refusal_and_from_a_silent_pod() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().dual_stack(true).build()?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let agent = Agent::start(&bed, &home, cluster::flags(&bed, &home)?)?;
    let mut expected = [0, 0, 0];
    for family in bed.families() {
        handshake::to_outside(&bed, family, Outcome::Answered, 2)?;
        handshake::to_pod(&bed, family, Outcome::Answered, 2)?;
        expected[0] += handshake::to_outside(&bed, family, Outcome::Refused, 3)?.made;
        expected[0] += handshake::to_pod(&bed, family, Outcome::Refused, 2)?.made;
        expected[1] += handshake::to_outside(&bed, family, Outcome::Unanswered, 4)?.made;
        expected[2] += handshake::to_pod(&bed, family, Outcome::Unanswered, 5)?.made;
    }
    // A SYN is given up after ten seconds.
    std::thread::sleep(Duration::from_secs(11));
    let scrape = agent.settled()?;
    assert_eq!(outcomes(&scrape), expected);
    let silent = [("outcome", "unanswered"), ("dst_workload", "internet")];
    let silent = scrape.count("aksnet_tcp_handshake_failures_total", &silent);
    assert_eq!(silent, expected[1]);
    assert_eq!(by_cause(&scrape), Causes::new());
    Ok(())
}

#[test]
fn a_load_balancers_probes_are_answered_refused_or_met_with_silence() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    let mut service = objects::service("shop", "probed", "10.0.77.7");
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(30_123);
    api.apply(service);
    let agent = Agent::start(&bed, &home, cluster::flags(&bed, &home)?)?;
    for (outcome, count) in [
        (Outcome::Answered, 2),
        (Outcome::Refused, 3),
        (Outcome::Unanswered, 4),
    ] {
        handshake::probes(&bed, outcome, 30_123, count)?;
    }
    std::thread::sleep(Duration::from_secs(11));
    let scrape = agent.settled()?;
    let probes = |outcome| {
        let labels = [
            ("outcome", outcome),
            ("dst_namespace", "shop"),
            ("dst_workload", "service/probed"),
            ("port", "30123"),
        ];
        scrape.count("aksnet_lb_health_probes_total", &labels)
    };
    let counted = ["answered", "refused", "unanswered"].map(probes);
    assert_eq!(counted, [2, 3, 4]);
    assert_eq!(scrape.count("aksnet_lb_health_probes_total", &[]), 9);
    Ok(())
}

//! *Trouble*: a node on which everything happens that dashboards and alerts are there for. What a policy denies and an
//! engine drops or lets through, packets lost in other ways, silence from outside and from a pod, probes that fail, and
//! plain traffic of many kinds beside it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use xtask::testbed::{
    Engine, Family, Isolation, Side, Stage, Testbed,
    api::{ApiServer, objects},
    enforce::Allow,
    mishap::{self, handshake, handshake::Outcome},
    traffic::{Connect, connect},
};

use crate::{
    cluster,
    denied::web_policy,
    life::{Agent, Home},
};

/// The SYN is sent a second time.
const ONE_RETRANSMIT: Duration = Duration::from_millis(1_300);

const PROBED: u16 = 30_123;

/// What is played in every round, of the stage's scenes. `web` is isolated: what comes by a load balancer is let
/// through by Azure NPM, and is a gap.
const SCENES: &[&str] = &[
    "pod to pod, same node",
    "pod to pod, another node",
    "service, endpoint here",
    "service, endpoint elsewhere",
    "service, UDP",
    "egress to the internet",
    "load balancer, endpoint here",
    "load balancer, second hop",
    "probe of a node port",
];

/// A node of AKS with pods, a cluster's API, and policies that Azure NPM enforces.
pub fn bed() -> Result<Testbed> {
    let bed = Testbed::azure_overlay()
        .engine(Engine::AzureNpm)
        .pods(5)
        .build()?;
    Stage::prepare(&bed)?;
    Ok(bed)
}

/// What the API knows, and what the engine enforces.
pub fn cluster(bed: &Testbed) -> Result<ApiServer> {
    let api = cluster::start(bed)?;
    let [frontend, web, db, batch] = [0, 1, 2, 3].map(|n| bed.pod(n));
    let to = json!([{"podSelector": {"matchLabels": {"app": "db"}}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "batch"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": to}],
    });
    api.apply_all([web_policy(), objects::policy("shop", "batch-policy", &spec)]);
    let mut probed = objects::service("shop", "probed", "10.0.77.7");
    probed["spec"]["type"] = json!("NodePort");
    probed["spec"]["ports"][0]["nodePort"] = json!(PROBED);
    api.apply(probed);
    bed.enforce(&[
        Isolation::new("shop", "web-policy", Side::Ingress)
            .select(&web)
            .allow(Allow::all().pod(&frontend)),
        Isolation::new("shop", "batch-policy", Side::Egress)
            .select(&batch)
            .allow(Allow::all().pod(&db)),
    ])?;
    Ok(api)
}

/// An agent that has every family, and flags NAT whatever it costs.
pub fn agent<'a>(bed: &'a Testbed, home: &Home) -> Result<Agent<'a>> {
    let mut flags = cluster::flags(bed, home)?;
    flags.push(format!("--service-cidr={}", bed.plan().services.v4));
    let more = [
        "--policy-grace=0s",
        "--conntrack-interval=1s",
        "--azure-snat-ports=8000",
        "--bpf-stats",
        "--sample=1",
        "--nat-budget=0s",
        "--nat-budget-first=0s",
    ];
    flags.extend(more.map(str::to_owned));
    Agent::start(bed, home, flags)
}

/// One round of everything.
pub fn round(stage: &Stage<'_>, first: bool) -> Result<()> {
    let bed = stage.bed;
    let scenes = stage.scenes();
    for name in SCENES {
        let scene = scenes.iter().find(|scene| scene.name == *name);
        let scene = scene.with_context(|| format!("no scene {name}"))?;
        scene.play(25, 20_000)?;
    }
    let [frontend, web, batch] = [0, 1, 3].map(|n| bed.pod(n));
    for (from, to) in [
        (&batch, (web.ip(), 8080).into()),
        (&batch, (bed.outside_ip(), 443).into()),
        (&batch, (frontend.ip(), 8080).into()),
    ] {
        let ended = connect(from.netns(), to, ONE_RETRANSMIT)?;
        ensure!(
            ended == Connect::TimedOut,
            "{} to {to}: {ended:?}",
            from.name()
        );
    }
    let family = Family::V4;
    for (name, packets) in [
        ("no route", 500),
        ("reverse path filter", 40),
        ("TTL expired", 60),
        ("SNAT clash", 40),
        ("conntrack table full", 20),
    ] {
        // Filling the table takes its time.
        if name != "conntrack table full" || first {
            let mishap = mishap::named(name).with_context(|| format!("no mishap {name}"))?;
            mishap.play(bed, family, packets)?;
        }
    }
    handshake::to_outside(bed, family, Outcome::Refused, 2)?;
    handshake::to_outside(bed, family, Outcome::Unanswered, 21)?;
    handshake::to_pod(bed, family, Outcome::Unanswered, 21)?;
    handshake::probes(bed, Outcome::Answered, PROBED, 1)?;
    handshake::probes(bed, Outcome::Unanswered, PROBED, 4)?;
    // So that something is going on now.
    for scene in scenes.iter().filter(|s| SCENES.contains(&s.name)) {
        scene.play(25, 2_000)?;
    }
    Ok(())
}

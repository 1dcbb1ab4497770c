//! Scenarios: a web, frontend and database example with two network policies, on a node that enforces them and on one
//! that does not; and what the agent says of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::agent::Agent;
use super::cluster::API;
use super::scrape::Scrape;
use super::{LISTEN, NodeKind, SETTLE, is};
use crate::say;
use crate::testbed::api::{ApiServer, objects};
use crate::testbed::enforce::{Allow, Isolation, Side};
use crate::testbed::traffic::{Connect, TcpServer, connect};
use crate::testbed::{Engine, Pod, Testbed};

/// A policy counts for the gap so soon: a person does not want to wait for the default of 10 s.
const GRACE: Duration = Duration::from_secs(1);

/// Connections of each pair.
const ATTEMPTS: u64 = 5;

/// What the demo shows in place of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Policies, an engine that enforces them, and a pair that they deny
    Policy,
    /// The same policies where nothing enforces them
    Gap,
}

/// Who dials whom, at which port, and whether the policies allow it.
const PAIRS: [(&str, &str, u16, bool); 3] = [
    ("frontend", "web", 8080, true),
    ("web", "db", 5432, true),
    ("frontend", "db", 5432, false),
];

/// The policies: name, whom they select, whom they let in, and by which port.
const POLICIES: [(&str, &str, &str, u16); 2] = [
    ("web-policy", "web", "frontend", 8080),
    ("db-policy", "db", "web", 5432),
];

/// The example on a testbed.
struct Example<'a> {
    bed: &'a Testbed,
    pods: Vec<Arc<Pod>>,
    _servers: [TcpServer; 2],
    _api: ApiServer,
    kubeconfig: PathBuf,
}

/// Shows a scenario.
pub(super) fn show(binary: &Path, node: NodeKind, scenario: Scenario, keep: bool) -> Result<()> {
    let engine = match (scenario, node) {
        (Scenario::Gap, _) => Engine::None,
        (Scenario::Policy, NodeKind::Kind) => Engine::Kindnet,
        (Scenario::Policy, NodeKind::AzureCni) => Engine::Calico,
        (Scenario::Policy, NodeKind::Overlay) => Engine::AzureNpm,
        (Scenario::Policy, NodeKind::Kubenet) => bail!(
            "--scenario policy has no engine for kubenet, as Calico there wires the pods itself: choose \
             --node overlay (Azure NPM), azure-cni (Calico) or kind (kindnet)"
        ),
    };
    let start = Instant::now();
    let bed = Testbed::of(node.flavour())
        .engine(engine)
        .pods(3)
        .remote_pods(0)
        .build()?;
    say::step(&format!(
        "{}, emulated in {:.1} s",
        node.title(),
        start.elapsed().as_secs_f64()
    ));
    let example = Example::open(&bed)?;
    if engine != Engine::None {
        bed.enforce(&example.isolations()?)?;
    }
    let flags = example.flags();
    let agent = Agent::start(
        Some(bed.node().netns()),
        binary,
        bed.node().root(),
        LISTEN,
        &flags,
    )?;
    say::step(&agent.watches()?);
    example.policies()?;
    Example::node(&agent.scrape()?);
    if scenario == Scenario::Gap {
        std::thread::sleep(GRACE * 2);
    }
    example.traffic()?;
    match scenario {
        Scenario::Policy => example.denials(&agent)?,
        Scenario::Gap => Example::gap(&agent)?,
    }
    example.reasons(&agent)?;
    if keep {
        super::where_to_look(&bed, &agent, binary, keep);
        while !say::is_interrupted() {
            example.traffic_once()?;
            super::pause(Duration::from_secs(1));
        }
    }
    agent.stop()?;
    say::step(&format!(
        "the end, after {} s; everything is removed",
        start.elapsed().as_secs()
    ));
    Ok(())
}

impl<'a> Example<'a> {
    fn open(bed: &'a Testbed) -> Result<Self> {
        let pods = bed.node().pods();
        let find = |name: &str| -> Result<Arc<Pod>> {
            let pod = pods.iter().find(|pod| pod.name() == name);
            Ok(Arc::clone(pod.with_context(|| format!("no pod {name}"))?))
        };
        let serve = |name: &str, port| -> Result<TcpServer> {
            let pod = find(name)?;
            TcpServer::echo(pod.netns(), (pod.ip(), port))
        };
        let servers = [serve("web", 8080)?, serve("db", 5432)?];
        let node = bed.node();
        let api = ApiServer::start_in(node.netns(), API.into())?;
        api.apply_all(["default", "shop"].map(objects::namespace));
        let (address, range) = (node.ip().to_string(), node.plan().pods.v4.to_string());
        api.apply(objects::node(node.name(), &address, &range, "eastus2-1"));
        api.apply_all(pods.iter().map(|pod| {
            let (name, address) = (object_name(pod.name()), pod.ip().to_string());
            objects::pod("shop", &name, pod.name(), node.name(), &address)
        }));
        api.apply_all(POLICIES.map(|(name, select, from, port)| {
            objects::policy("shop", name, &spec(select, from, port))
        }));
        let kubeconfig = node.root().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig())?;
        Ok(Self {
            bed,
            pods,
            _servers: servers,
            _api: api,
            kubeconfig,
        })
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        let pod = self.pods.iter().find(|pod| pod.name() == name);
        Ok(pod.with_context(|| format!("no pod {name}"))?)
    }

    /// What the policies are to an engine.
    fn isolations(&self) -> Result<Vec<Isolation>> {
        let of = |(name, select, from, port): (&str, &str, &str, u16)| -> Result<Isolation> {
            let allow = Allow::all().pod(self.pod(from)?).tcp(port);
            let isolation = Isolation::new("shop", name, Side::Ingress);
            Ok(isolation.select(self.pod(select)?).allow(allow))
        };
        POLICIES.into_iter().map(of).collect()
    }

    fn flags(&self) -> Vec<String> {
        let node = self.bed.node();
        vec![
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--node-name={}", node.name()),
            format!("--host-root={}", node.root().display()),
            "--cri-socket=off".to_owned(),
            format!("--policy-grace={}s", GRACE.as_secs()),
        ]
    }

    fn policies(&self) -> Result<()> {
        say::heading("The policies, as the API server has them");
        for (name, select, from, port) in POLICIES {
            println!(
                "  shop/{name:<11} isolates app={select} ingress; from app={from}, port {port}/TCP"
            );
        }
        for pod in &self.pods {
            println!(
                "  {}",
                say::dim(&format!(
                    "shop/{:<11} {}",
                    pod.name(),
                    self.pod(pod.name())?.ip()
                ))
            );
        }
        Ok(())
    }

    fn node(scrape: &Scrape) {
        let infos = scrape.sums_by("aksnet_node_info", ["cni", "policy_engine"]);
        for ([cni, engine], _) in infos {
            say::step(&format!(
                "the agent found CNI {cni}, policy engine {engine}"
            ));
        }
    }

    fn traffic_once(&self) -> Result<Vec<Connect>> {
        PAIRS
            .into_iter()
            .map(|(from, to, port, _)| {
                let to = SocketAddr::new(self.pod(to)?.ip(), port);
                connect(self.pod(from)?.netns(), to, Duration::from_millis(100))
            })
            .collect()
    }

    fn traffic(&self) -> Result<()> {
        say::heading("Who reaches whom");
        let mut ended = Vec::new();
        for _ in 0..ATTEMPTS {
            say::check()?;
            ended = self.traffic_once()?;
        }
        for ((from, to, port, allowed), ended) in PAIRS.into_iter().zip(ended) {
            let said = if allowed { "allowed" } else { "denied" };
            let ended = match ended {
                Connect::Connected => "connected",
                Connect::Refused => "refused",
                Connect::TimedOut => "no answer",
                Connect::Unreachable => "unreachable",
            };
            let arrow = format!("{from} → {to}:{port}");
            println!("  {arrow:<22} by the policies {said:<8} and it is: {ended}");
        }
        Ok(())
    }

    /// A metric once it has this value, or what it has by the time it should.
    fn settled(agent: &Agent<'_>, name: &str, expected: u64) -> Result<Scrape> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let scrape = agent.scrape()?;
            if is(scrape.sum(name, &[]), expected) || Instant::now() > deadline {
                return Ok(scrape);
            }
            say::check()?;
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn denials(&self, agent: &Agent<'_>) -> Result<()> {
        const DENIED: &str = "aksnet_policy_denied_packets_total";
        let counted = self.bed.denied_packets("shop/db-policy", Side::Ingress)?;
        ensure!(
            counted >= ATTEMPTS,
            "the engine denied {counted} packets of {ATTEMPTS} attempts"
        );
        let scrape = Self::settled(agent, DENIED, counted)?;
        say::heading("What was dropped, and why: `aksnet-agent drops --recent`");
        let count = ATTEMPTS.to_string();
        let args = ["drops", "--recent", "--cause", "policy", "--count", &count];
        for line in agent.output(&args, &[0])?.lines() {
            println!("  {line}");
        }
        say::heading("The same for Prometheus");
        by_pair(&scrape, "aksnet_policy_denied_connections_total");
        let seen = scrape.sum(DENIED, &[("policy", "shop/db-policy")]);
        println!(
            "\n  {:<66} {counted:>4}",
            "packets that the engine's own counter has denied"
        );
        println!(
            "  {:<66} {seen:>4}",
            format!("{DENIED}{{policy=\"shop/db-policy\"}}")
        );
        ensure!(
            is(seen, counted),
            "the agent's count of denied packets is not the engine's"
        );
        println!("  Equal.");
        Ok(())
    }

    fn gap(agent: &Agent<'_>) -> Result<()> {
        const GAP: &str = "aksnet_policy_gap_connections_total";
        let scrape = Self::settled(agent, GAP, ATTEMPTS)?;
        say::heading("What the policies deny and the node forwards");
        by_pair(&scrape, GAP);
        by_pair(&scrape, "aksnet_policy_gap_packets_total");
        let seen = scrape.sum(GAP, &[("policy", "shop/db-policy")]);
        ensure!(
            is(seen, ATTEMPTS),
            "{ATTEMPTS} connections went through the gap, and the agent counted {seen}"
        );
        println!(
            "\n  Nothing on this node enforces network policies: {ATTEMPTS} of {ATTEMPTS} connections got through."
        );
        Ok(())
    }

    fn reasons(&self, agent: &Agent<'_>) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig.display());
        for (from, to, port, allowed) in [PAIRS[2], PAIRS[1]] {
            let ends = [from, to].map(|name| format!("shop/{}", object_name(name)));
            let port = port.to_string();
            say::heading(&format!(
                "`aksnet-agent explain {} {} {port}`",
                ends[0], ends[1]
            ));
            let args = ["explain", &ends[0], &ends[1], &port, &kubeconfig];
            let code = i32::from(!allowed);
            for line in agent.output(&args, &[code])?.lines() {
                println!("  {line}");
            }
            println!("  {}", say::dim(&format!("exit code {code}")));
        }
        Ok(())
    }
}

/// A metric's samples by policy and by who talks to whom.
fn by_pair(scrape: &Scrape, name: &str) {
    println!("  {name}");
    let labels = [
        "direction",
        "policy",
        "src_namespace",
        "src_workload",
        "dst_namespace",
        "dst_workload",
    ];
    for (values, count) in scrape.sums_by(name, labels) {
        let pairs = labels.iter().zip(&values);
        let pairs: Vec<String> = pairs.map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let (first, second) = pairs.split_at(2);
        println!(
            "    {{{},\n     {}}} {count}",
            first.join(","),
            second.join(",")
        );
    }
}

/// The name of a deployment's pod.
fn object_name(app: &str) -> String {
    format!("{app}-7d4b9c6f5d-x2k9p")
}

fn spec(select: &str, from: &str, port: u16) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": select}},
        "policyTypes": ["Ingress"],
        "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": from}}}],
            "ports": [{"protocol": "TCP", "port": port}],
        }],
    })
}

//! Which policy drops my packets: the real agent's answer, against what the engine's own counters say.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use xtask::testbed::{
    Backend, Builder, Engine, Family, Pod, PolicyRule, Service, Testbed, Verdict,
    api::{ApiServer, objects},
    enforce::{Allow, DenyAction, Isolation, Side},
    traffic::{Connect, TcpServer, connect},
};

use crate::{
    cluster,
    life::{Agent, Home, PATIENCE, attached, eventually, stretched, turn, wait},
    scrape::Scrape,
};

const SOON: Duration = Duration::from_millis(300);
const ONE_RETRANSMIT: Duration = Duration::from_millis(2_500);

/// `web` takes what comes from `frontend`.
pub fn web_policy() -> Value {
    let from = json!([{"podSelector": {"matchLabels": {"app": "frontend"}}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": from}],
    });
    objects::policy("shop", "web-policy", &spec)
}

/// The same, as an engine has it.
fn web_isolation(bed: &Testbed) -> Isolation {
    Isolation::new("shop", "web-policy", Side::Ingress)
        .select(&bed.pod(1))
        .allow(Allow::all().pod(&bed.pod(0)))
}

/// A node on which an engine enforces [`web_policy`], and the API that tells of it.
pub fn enforced(engine: Engine) -> Result<(Testbed, ApiServer)> {
    let bed = Testbed::azure_overlay().engine(engine).pods(4).build()?;
    let api = cluster::start(&bed)?;
    api.apply(web_policy());
    bed.enforce(&[web_isolation(&bed)])?;
    Ok((bed, api))
}

/// `batch` may speak to `db` alone.
fn batch_policy() -> Value {
    let to = json!([{"podSelector": {"matchLabels": {"app": "db"}}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "batch"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": to}],
    });
    objects::policy("shop", "batch-policy", &spec)
}

/// Denied packets and connections.
fn denied(scrape: &Scrape, labels: &[(&str, &str)]) -> (u64, u64) {
    (
        scrape.count("aksnet_policy_denied_packets_total", labels),
        scrape.count("aksnet_policy_denied_connections_total", labels),
    )
}

fn dropped(scrape: &Scrape, cause: &str) -> u64 {
    scrape.count("aksnet_drop_packets_total", &[("cause", cause)])
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
    assert_eq!(denied(&scrape, &labels), (packets, 1));
    assert_eq!(denied(&scrape, &[]), (packets, 1), "and no other");
    assert_eq!(dropped(&scrape, "policy"), packets);

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

/// A node with an engine that enforces both policies, as the API has them.
struct Enforced {
    bed: Testbed,
    api: ApiServer,
    home: Home,
}

impl Enforced {
    fn new(builder: Builder) -> Result<Self> {
        let bed = builder.pods(5).build()?;
        let api = cluster::start(&bed)?;
        api.apply_all([web_policy(), batch_policy()]);
        let enforced = Self {
            bed,
            api,
            home: Home::new()?,
        };
        enforced.bed.enforce(&enforced.isolations())?;
        Ok(enforced)
    }

    /// What the policies are to an engine.
    fn isolations(&self) -> [Isolation; 2] {
        let (db, batch) = (self.bed.pod(2), self.bed.pod(3));
        [
            web_isolation(&self.bed),
            Isolation::new("shop", "batch-policy", Side::Egress)
                .select(&batch)
                .allow(Allow::all().pod(&db)),
        ]
    }

    /// Denied connections of each kind in a family, and allowed ones beside them.
    fn traffic(&self, family: Family) -> Result<u64> {
        let bed = &self.bed;
        let [frontend, web, db, batch, cache] = [0, 1, 2, 3, 4].map(|n| bed.pod(n));
        let at = |pod: &Pod| SocketAddr::new(pod.ip_of(family), 8080);
        let _web = TcpServer::echo(web.netns(), at(&web))?;
        let _db = TcpServer::echo(db.netns(), at(&db))?;
        let _frontend = TcpServer::echo(frontend.netns(), at(&frontend))?;
        let name = format!("web-{family:?}").to_lowercase();
        let service = Service::cluster_ip("shop", &name, 80).endpoints([at(&web)]);
        let service = bed.add_service(if family == Family::V6 {
            service.v6()
        } else {
            service
        })?;
        let mut denied = 0;
        for (from, to, time) in [
            (&cache, at(&web), SOON),
            (&cache, service.address(), ONE_RETRANSMIT),
            (&batch, at(&frontend), SOON),
            // Both sides deny it: one of them drops it.
            (&batch, at(&web), SOON),
        ] {
            let ended = connect(from.netns(), to, time)?;
            assert_ne!(ended, Connect::Connected, "{} to {to}", from.name());
            denied += 1;
        }
        for (from, to) in [
            (&frontend, at(&web)),
            (&frontend, service.address()),
            (&batch, at(&db)),
            (&cache, at(&frontend)),
        ] {
            let ended = connect(from.netns(), to, ONE_RETRANSMIT)?;
            assert_eq!(ended, Connect::Connected, "{} to {to}", from.name());
        }
        Ok(denied)
    }

    /// An agent that takes the policies to be settled, as they were there before it came: with a grace period nothing
    /// that is denied and forwarded would be a gap.
    fn agent(&self) -> Result<Agent<'_>> {
        let mut flags = cluster::flags(&self.bed, &self.home)?;
        flags.push("--policy-grace=0s".to_owned());
        Agent::start(&self.bed, &self.home, flags)
    }
}

/// What the engine's own counters say is what the metrics say: for each policy, side and packet.
fn engine_and_metrics_agree(builder: Builder, engine: Engine, name: &str) -> Result<()> {
    let enforced = Enforced::new(builder.engine(engine))?;
    let agent = enforced.agent()?;
    let families = enforced.bed.families();
    let mut connections = 0;
    for family in families.into_iter().filter(|family| engine.has(*family)) {
        connections += enforced.traffic(family)?;
    }
    let scrape = agent.settled()?;
    let mut all = 0;
    for (policy, side) in [
        ("shop/web-policy", Side::Ingress),
        ("shop/batch-policy", Side::Egress),
    ] {
        let packets = enforced.bed.denied_packets(policy, side)?;
        assert!(packets > 0, "{name}: {policy}");
        all += packets;
        let labels = [
            ("direction", &*side.to_string()),
            ("policy", policy),
            ("confidence", "exact"),
            ("engine", name),
        ];
        let (counted, _) = denied(&scrape, &labels);
        let all = scrape.samples_of("aksnet_drop_packets_total");
        assert_eq!(counted, packets, "{name}: {policy}: {all:#?}");
    }
    let (packets, attempts) = denied(&scrape, &[]);
    assert_eq!((packets, attempts), (all, connections), "{name}");
    assert_eq!(dropped(&scrape, "policy"), all, "{name}");
    assert_eq!(dropped(&scrape, "firewall"), 0, "{name}");
    let gap = scrape.count("aksnet_policy_gap_packets_total", &[]);
    assert_eq!(gap, 0, "{name}: all is enforced");
    Ok(())
}

#[test]
fn azure_npms_denials_are_counted_by_policy_as_its_own_rules_count_them() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        // On the bridge, pods of one node meet netfilter without being routed.
        for builder in [Testbed::azure_overlay(), Testbed::kubenet()] {
            let builder = builder.backend(backend);
            engine_and_metrics_agree(builder, Engine::AzureNpm, "azure_npm")?;
        }
    }
    Ok(())
}

#[test]
fn calicos_denials_are_counted_by_policy_as_its_own_rules_count_them() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for (backend, deny, builder) in [
        (Backend::Nft, DenyAction::Drop, Testbed::kind()),
        (Backend::Legacy, DenyAction::Drop, Testbed::azure_overlay()),
        (Backend::Nft, DenyAction::Reject, Testbed::azure_overlay()),
        (
            Backend::Legacy,
            DenyAction::Reject,
            Testbed::azure_node_subnet(),
        ),
    ] {
        let builder = builder.backend(backend).deny_action(deny).dual_stack(true);
        engine_and_metrics_agree(builder, Engine::Calico, "calico")?;
    }
    Ok(())
}

#[test]
fn kindnets_denials_are_counted_by_policy_as_its_own_program_counts_them() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for (engine, name) in [
        (Engine::Kindnet, "kindnet"),
        (Engine::KubeNetworkPolicies, "kube_network_policies"),
    ] {
        let builder = Testbed::kind().dual_stack(true);
        engine_and_metrics_agree(builder, engine, name)?;
    }
    Ok(())
}

#[test]
fn without_an_agent_drops_loads_its_own_programs_and_leaves_nothing() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let enforced = Enforced::new(Testbed::azure_overlay().engine(Engine::AzureNpm))?;
    let bed = &enforced.bed;
    let mut command = enforced.home.command(bed, "drops");
    command.args(["--json", "--count=1", "--cause=policy"]);
    command.stdout(std::process::Stdio::piped());
    let mut child = bed.node().netns().spawn(&mut command)?;
    let all = 1 + bed.node().pods().len();
    // Two programs on each, by tcx or clsact.
    eventually("it watches", || Ok(attached(bed)?.len() >= 2 * all))?;
    let to = SocketAddr::new(bed.pod(1).ip(), 8080);
    assert_eq!(
        connect(bed.pod(4).netns(), to, ONE_RETRANSMIT)?,
        Connect::TimedOut
    );
    let status = wait(&mut child, Duration::from_secs(10))?;
    assert_eq!(status.code(), Some(0));
    let mut text = String::new();
    child
        .stdout
        .take()
        .context("a pipe")?
        .read_to_string(&mut text)?;
    let record: Value = serde_json::from_str(&text)?;
    // Nobody has told it of policies: the engine's mark alone says that it was one.
    assert_eq!(
        (&record["cause"], &record["confidence"]),
        (&json!("policy"), &json!("unexplained"))
    );
    assert_eq!(attached(bed)?, Vec::<String>::new());
    assert!(!enforced.home.socket().exists());
    Ok(())
}

/// From outside to a pod, and from a pod to the outside, with the node's translations in between. Azure NPM does not
/// judge what comes by a load balancer or node port with `externalTrafficPolicy: Cluster`, as kube-proxy's rule for such
/// packets accepts them first: what policies deny there is a gap.
fn denied_at_the_edge(builder: Builder, engine: Engine, name: &str) -> Result<()> {
    let enforced = Enforced::new(builder.engine(engine))?;
    let bed = &enforced.bed;
    let (web, batch) = (bed.pod(1), bed.pod(3));
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let balanced = Service::load_balancer("shop", "balanced", 80, 30_080, bed.frontend_ip());
    let balanced = bed.add_service(balanced.endpoints([server.address()]))?;
    let internet = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
    let agent = enforced.agent()?;
    let node_port = SocketAddr::new(bed.node().ip(), 30_080);
    let frontend = balanced.frontend();
    let by_port = if engine == Engine::AzureNpm {
        Connect::Connected
    } else {
        Connect::TimedOut
    };
    for (from, to, ended) in [
        (bed.outside(), frontend, by_port),
        (bed.outside(), node_port, by_port),
        (batch.netns(), internet.address(), Connect::TimedOut),
    ] {
        assert_eq!(connect(from, to, SOON)?, ended, "{name}: {to}");
    }
    let scrape = agent.settled()?;
    let judged = u64::from(engine != Engine::AzureNpm);
    let ingress = [
        ("policy", "shop/web-policy"),
        ("src_workload", "internet"),
        ("dst_workload", "web"),
    ];
    let egress = [
        ("policy", "shop/batch-policy"),
        ("src_workload", "batch"),
        ("dst_workload", "internet"),
    ];
    assert_eq!(denied(&scrape, &egress), (1, 1), "{name}");
    assert_eq!(
        denied(&scrape, &ingress),
        (2 * judged, 2 * judged),
        "{name}"
    );
    let exact = [("confidence", "exact")];
    assert_eq!(denied(&scrape, &exact), denied(&scrape, &[]), "{name}");
    let gap = |labels| scrape.count("aksnet_policy_gap_connections_total", labels);
    assert_eq!(gap(&ingress), 2 - 2 * judged, "{name}");
    assert_eq!(gap(&[]), gap(&ingress), "{name}");

    let policy = ["--cause=policy"];
    let records = recent_drops(bed, &enforced.home, &policy, 1 + 2 * judged)?;
    let dialled: Vec<&Value> = records.iter().map(|record| &record["dialled"]).collect();
    let address = |to: SocketAddr| json!([to.ip(), to.port()]);
    let (frontend, node_port) = (address(frontend), address(node_port));
    let expected = [&frontend, &node_port, &Value::Null];
    let skipped = usize::try_from(2 - 2 * judged)?;
    assert_eq!(dialled, expected[skipped..], "{name}");
    Ok(())
}

#[test]
fn clients_from_outside_and_ways_out_are_denied_by_name() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    denied_at_the_edge(Testbed::azure_overlay(), Engine::AzureNpm, "azure_npm")?;
    denied_at_the_edge(Testbed::azure_overlay(), Engine::Calico, "calico")?;
    denied_at_the_edge(Testbed::kind(), Engine::Kindnet, "kindnet")
}

#[test]
fn odd_policies_and_a_deletion_under_way_disturb_no_other() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let enforced = Enforced::new(Testbed::azure_overlay().engine(Engine::AzureNpm))?;
    let (bed, api) = (&enforced.bed, &enforced.api);
    let web = json!({"matchLabels": {"app": "web"}});
    let block = |cidr: &str| json!({"ipBlock": {"cidr": cidr}});
    let many: Vec<Value> = (0..5_000)
        .map(|n| json!({"from": [block(&format!("198.18.{}.{}/32", n / 250, n % 250))]}))
        .collect();
    // None of them isolates a pod of the shop beside those that the engine enforces, or all of their parts are no good.
    for (namespace, name, spec) in [
        ("nowhere", "web-policy", json!({"podSelector": web})),
        ("shop", "spec-is-a-list", json!([1, 2, 3])),
        (
            "shop",
            "types-are-odd",
            json!({"podSelector": 7, "policyTypes": {"a": null}}),
        ),
        (
            "default",
            "many-rules",
            json!({"podSelector": {}, "ingress": many}),
        ),
        (
            "default",
            "no-cidr",
            json!({"podSelector": {}, "ingress": [{"from": [block("10.0.0.0/99")]}]}),
        ),
    ] {
        api.apply(objects::policy(namespace, name, &spec));
    }
    let agent = enforced.agent()?;
    let (cache, to) = (bed.pod(4), SocketAddr::new(bed.pod(1).ip(), 8080));
    assert_eq!(connect(cache.netns(), to, SOON)?, Connect::TimedOut);
    // The engine lags behind: what it drops just after the deletion is still that policy's.
    api.delete("NetworkPolicy", "shop", "web-policy");
    assert_eq!(connect(cache.netns(), to, SOON)?, Connect::TimedOut);
    let scrape = agent.settled()?;
    let packets = bed.denied_packets("shop/web-policy", Side::Ingress)?;
    let labels = [("policy", "shop/web-policy"), ("confidence", "exact")];
    assert_eq!(denied(&scrape, &labels), (packets, 2));
    assert_eq!(denied(&scrape, &[]), (packets, 2));
    let records = recent_drops(bed, &enforced.home, &["--cause=policy"], packets)?;
    let last = records.last().context("a record")?["why"].to_string();
    assert!(last.contains("a moment ago"), "{last}");
    Ok(())
}

#[test]
fn a_peer_whose_labels_are_not_known_leaves_a_candidate_and_remote_pods_make_it_exact() -> Result<()>
{
    let Some(_turn) = turn() else { return Ok(()) };
    let enforced = Enforced::new(Testbed::azure_overlay().engine(Engine::Calico))?;
    let bed = &enforced.bed;
    let (far, web) = (bed.remote_pod(0), bed.pod(1));
    let mut flags = cluster::flags(bed, &enforced.home)?;
    for (remote, confidence, src) in [(false, "candidates", ""), (true, "exact", "far-frontend")] {
        if remote {
            flags.push("--remote-pods".to_owned());
        }
        bed.enforce(&enforced.isolations())?;
        let agent = Agent::start(bed, &enforced.home, &flags)?;
        let ended = connect(far.netns(), (web.ip(), 8080).into(), SOON)?;
        assert_eq!(ended, Connect::TimedOut);
        let scrape = agent.settled()?;
        let labels = [
            ("policy", "shop/web-policy"),
            ("confidence", confidence),
            ("src_workload", src),
            ("dst_workload", "web"),
        ];
        let packets = bed.denied_packets("shop/web-policy", Side::Ingress)?;
        assert_eq!(denied(&scrape, &[]), (packets, 1), "{confidence}");
        let all = scrape.samples_of("aksnet_policy_denied_packets_total");
        assert_eq!(
            denied(&scrape, &labels),
            (packets, 1),
            "{confidence}: {all:#?}"
        );
    }
    Ok(())
}

/// What `aksnet-agent drops` says of so many packets, as JSON; an error if it does not in time.
pub fn recent_drops(bed: &Testbed, home: &Home, args: &[&str], packets: u64) -> Result<Vec<Value>> {
    let mut command = home.command(bed, "drops");
    command.args(["--json", "--recent"]).args(args);
    command.stdout(std::process::Stdio::piped());
    let mut child = bed.node().netns().spawn(&mut command)?;
    let output = BufReader::new(child.stdout.take().context("a pipe")?);
    let (sender, lines) = std::sync::mpsc::channel();
    // It ends with the pipe, and so with the process.
    std::thread::spawn(move || output.lines().try_for_each(|line| sender.send(line)));
    let records = take_records(&lines, packets);
    child.kill()?;
    child.wait()?;
    records
}

/// The records of so many packets.
fn take_records(lines: &Receiver<std::io::Result<String>>, packets: u64) -> Result<Vec<Value>> {
    let deadline = Instant::now() + stretched(PATIENCE);
    let (mut records, mut seen) = (Vec::new(), 0);
    while seen < packets {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = lines.recv_timeout(left).with_context(|| {
            format!("records of {seen} packets in place of {packets}: {records:#?}")
        })?;
        let record: Value = serde_json::from_str(&line?)?;
        seen += record["packets"].as_u64().context("a count")?;
        records.push(record);
    }
    Ok(records)
}

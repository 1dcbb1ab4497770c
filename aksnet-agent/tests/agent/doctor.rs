//! What is wrong with my node: every check of `aksnet-agent doctor` finds its fault, produced for real, by the running
//! agent's evidence; and a node without a fault has no finding that anybody has to act on.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, TcpStream, UdpSocket},
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xtask::testbed::{
    Builder, Engine, Family, Hairpin, Imds, Service, Testbed,
    api::{Fault, Verb, objects},
    counters,
    fill::fill,
    mishap::{self, handshake, handshake::Outcome},
    traffic::{Connect, Tcp, TcpServer, connect},
};

use crate::{
    cluster,
    denied::{enforced, web_policy},
    life::{Agent, BINARY, Home, attached, eventually, plan_flags, turn},
    what_it_is::on_azure,
};

const SOON: Duration = Duration::from_millis(300);

/// What the doctor said.
#[derive(Debug)]
struct Said {
    code: i32,
    report: Value,
    error: String,
}

impl Said {
    /// Severity and title of a check's findings.
    fn of(&self, check: &str) -> Vec<(&str, &str)> {
        let findings = self.report["findings"].as_array();
        let of = findings
            .into_iter()
            .flatten()
            .filter(|f| f["check"] == check);
        of.map(|f| {
            let text = |key: &str| f[key].as_str().unwrap_or_default();
            (text("severity"), text("title"))
        })
        .collect()
    }

    /// Whether a finding of a check has all of these words in its title.
    fn titles(&self, check: &str, words: &[&str]) -> bool {
        let findings = self.of(check);
        findings
            .iter()
            .any(|(_, title)| words.iter().all(|word| title.contains(word)))
    }

    fn finding(&self, check: &str, severity: &str) -> Option<&Value> {
        let findings = self.report["findings"].as_array()?;
        findings
            .iter()
            .find(|f| f["check"] == check && f["severity"] == severity)
    }

    /// All that a finding says.
    fn text(&self, check: &str, severity: &str) -> String {
        self.finding(check, severity)
            .map_or_else(String::new, ToString::to_string)
    }
}

fn ask(bed: &Testbed, home: &Home, args: &[&str]) -> Result<Said> {
    let mut command = home.command(bed, "doctor");
    command
        .arg("--json")
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = bed.node().netns().spawn(&mut command)?.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Said {
        code: output.status.code().context("it ended by itself")?,
        report: serde_json::from_slice(&output.stdout)
            .with_context(|| format!("a report, not: {error}"))?,
        error,
    })
}

/// Asks until a check has a finding of a severity that says all of these.
fn finds(bed: &Testbed, home: &Home, check: &str, severity: &str, words: &[&str]) -> Result<Said> {
    let mut last = None;
    let found = eventually(&format!("{check} is {severity} with {words:?}"), || {
        let said = ask(bed, home, &[])?;
        let text = said.text(check, severity);
        let found = !text.is_empty() && words.iter().all(|word| text.contains(word));
        last = Some(said);
        Ok(found)
    });
    let said = last.context("it was asked")?;
    found.with_context(|| {
        let findings = said.report["findings"].as_array();
        let of: Vec<_> = findings
            .into_iter()
            .flatten()
            .filter(|f| f["check"] == check)
            .collect();
        format!("{of:#?}")
    })?;
    Ok(said)
}

/// Flags with which the agent knows the cluster and reads the node's own files.
fn flags(bed: &Testbed, home: &Home) -> Result<Vec<String>> {
    let root = bed.node().root();
    // Paths that the testbed wrote into the node's configuration lead to the same place below its root.
    let inside = root.join(root.strip_prefix("/")?);
    if !inside.exists() {
        fs::create_dir_all(inside.parent().context("a root of its own")?)?;
        std::os::unix::fs::symlink(root, inside)?;
    }
    let mut flags = cluster::flags(bed, home)?;
    flags.push(format!("--host-root={}", root.display()));
    Ok(flags)
}

/// A load balancer's probe of a service of the cluster.
fn probed(api: &xtask::testbed::api::ApiServer, bed: &Testbed) {
    let mut service = objects::service("shop", "probed", "10.0.77.7");
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["ports"][0]["nodePort"] = json!(30_123);
    service["status"]["loadBalancer"]["ingress"] = json!([{"ip": bed.frontend_ip()}]);
    api.apply(service);
}

fn healthy(builder: Builder, cni: &str, on_azure: bool) -> Result<()> {
    let bed = builder.pods(3).build()?;
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    if on_azure {
        probed(&api, &bed);
    }
    let mut flags = flags(&bed, &home)?;
    flags.push("--remote-pods".to_owned());
    let agent = Agent::start(&bed, &home, flags)?;
    let (client, web, far) = (bed.pod(0), bed.pod(1), bed.remote_pod(0));
    for (netns, address) in [
        (web.netns(), (web.ip(), 8080)),
        (far.netns(), (far.ip(), 8080)),
        (bed.outside(), (bed.outside_ip(), 443)),
    ] {
        let server = TcpServer::echo(netns, address)?;
        Tcp::to(server.address())
            .connections(5)
            .run(client.netns())?;
        server.settle()?;
    }
    if on_azure {
        handshake::probes(&bed, Outcome::Answered, 30_123, 3)?;
    }
    agent.settled()?;
    let said = ask(&bed, &home, &[])?;
    let findings = said.report["findings"].as_array().context("a list")?;
    let bad: Vec<&Value> = findings
        .iter()
        .filter(|f| f["severity"] == "warning" || f["severity"] == "critical")
        // How near an end date is depends on the day.
        .filter(|f| f["check"] != "end-dates")
        .collect();
    assert!(bad.is_empty(), "{cni}: {bad:#?}");
    // It was looked at, and not only not known.
    let mut expected = vec![
        "agent",
        "lb-pending",
        "policy-unenforced",
        "policy-denials",
        "conntrack",
        "snat-ports",
        "snat-clash",
        "pod-to-pod-snat",
        "egress-snat",
        "drops",
    ];
    if on_azure {
        expected.push("lb-probes");
    }
    for check in expected {
        let severities: Vec<&str> = said
            .of(check)
            .into_iter()
            .map(|(severity, _)| severity)
            .collect();
        assert_eq!(severities, ["ok"], "{cni}: {check}: {:?}", said.of(check));
    }
    assert!(
        said.text("pod-ips", "ok").contains("pod_cidr: 3 of"),
        "{:?}",
        said.of("pod-ips")
    );
    assert!(
        !said.text("cross-zone", "info").is_empty(),
        "{:?}",
        said.of("cross-zone")
    );
    if said.text("end-dates", "warning").is_empty() {
        assert_eq!((said.code, said.error.as_str()), (0, ""), "{cni}");
    }
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_node_as_it_should_be_has_nothing_to_act_on() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    healthy(Testbed::kubenet().hairpin(Hairpin::Veth), "kubenet", true)?;
    healthy(Testbed::kind(), "kindnet", false)?;
    healthy(Testbed::azure_overlay(), "azure_overlay", true)?;
    healthy(Testbed::azure_node_subnet(), "azure_node_subnet", true)
}

/// The directory in which host-local keeps a node's addresses.
fn store(root: &Path) -> Result<std::path::PathBuf> {
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.is_symlink() || !path.is_dir() {
            continue;
        }
        let holds_addresses = fs::read_dir(&path)?
            .flatten()
            .any(|file| file.file_name().to_string_lossy().parse::<IpAddr>().is_ok());
        if holds_addresses {
            return Ok(path);
        }
        if let Ok(found) = store(&path) {
            return Ok(found);
        }
    }
    anyhow::bail!("no file named by an address below {}", root.display())
}

#[test]
fn a_range_without_an_address_left_and_leaked_addresses_are_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let home = Home::new()?;
    let flags = flags(&bed, &home)?;
    let store = store(bed.node().root())?;
    // A plugin whose DEL was never called, an hour ago; and all others, a moment ago.
    for n in 2..=254 {
        let file = store.join(format!("10.244.0.{n}"));
        if !file.exists() {
            fs::write(&file, format!("container-{n:03}\r\neth0"))?;
            let hour = Duration::from_hours(1);
            let age = if n < 10 { hour } else { Duration::ZERO };
            File::options()
                .write(true)
                .open(&file)?
                .set_modified(SystemTime::now() - age)?;
        }
    }
    let _api = cluster::start(&bed)?;
    let _agent = Agent::start(&bed, &home, &flags)?;
    let said = finds(
        &bed,
        &home,
        "pod-ips",
        "critical",
        &["host_local: 253 of 253 in use (100 %)"],
    )?;
    assert_eq!(said.code, 2);
    // Two of 2 to 9 are the pods'.
    let said = finds(
        &bed,
        &home,
        "pod-ips",
        "warning",
        &["6 pod addresses are held by nobody"],
    )?;
    let text = said.text("pod-ips", "warning");
    assert!(
        text.contains("held for 60 min by container container-00"),
        "{text}"
    );
    assert!(
        text.contains("10.244.0.4 held") && !text.contains("10.244.0.10"),
        "{text}"
    );
    // What the fix says to remove is where the node has it.
    let fix = said
        .finding("pod-ips", "warning")
        .map(|f| f["fix"].to_string());
    let fix = fix.unwrap_or_default();
    assert!(
        fix.contains("rm /") && !fix.contains(&bed.node().root().display().to_string()),
        "{fix}"
    );
    Ok(())
}

#[test]
fn a_service_that_waits_for_its_load_balancer_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    let mut service = objects::service("shop", "front", "10.0.77.8");
    service["spec"]["type"] = json!("LoadBalancer");
    api.apply(service.clone());
    let _agent = Agent::start(&bed, &home, flags(&bed, &home)?)?;
    let words = [
        "shop/front: pending for at least",
        "kubectl -n shop describe service front",
    ];
    let said = finds(&bed, &home, "lb-pending", "warning", &words)?;
    assert_eq!(said.code, 1);
    // One that came a moment ago has its time.
    let mut young = objects::service("shop", "young", "10.0.77.9");
    young["spec"]["type"] = json!("LoadBalancer");
    api.apply(young);
    service["status"]["loadBalancer"]["ingress"] = json!([{"hostname": "front.example"}]);
    api.apply(service);
    finds(
        &bed,
        &home,
        "lb-pending",
        "info",
        &["shop/young: pending for"],
    )?;
    api.delete("Service", "shop", "young");
    finds(
        &bed,
        &home,
        "lb-pending",
        "ok",
        &["1 load-balanced service has a frontend"],
    )?;
    Ok(())
}

#[test]
fn probes_that_fail_and_probes_that_fail_now_and_then_are_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    probed(&api, &bed);
    let _agent = Agent::start(&bed, &home, flags(&bed, &home)?)?;
    handshake::probes(&bed, Outcome::Refused, 30_123, 3)?;
    let words = [
        "shop/service/probed at node port 30123: 0 answered, 3 refused",
        "Refused: nothing listens",
    ];
    let said = finds(&bed, &home, "lb-probes", "critical", &words)?;
    assert_eq!(said.code, 2);
    handshake::probes(&bed, Outcome::Answered, 30_123, 2)?;
    finds(
        &bed,
        &home,
        "lb-probes",
        "warning",
        &["2 answered, 3 refused"],
    )?;
    Ok(())
}

#[test]
fn policies_that_nothing_enforces_are_found_before_and_after_traffic() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().pods(4).build()?;
    let (web, batch) = (bed.pod(1), bed.pod(3));
    let api = cluster::start(&bed)?;
    api.apply(web_policy());
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let home = Home::new()?;
    let mut flags = flags(&bed, &home)?;
    flags.push("--policy-grace=0s".to_owned());
    let agent = Agent::start(&bed, &home, flags)?;
    let words = [
        "1 network policy selects pods here, and nothing enforces network policies",
        "shop/web-policy selects 1 pod here",
    ];
    let said = finds(&bed, &home, "policy-unenforced", "critical", &words)?;
    assert_eq!(said.code, 2);
    Tcp::to(server.address())
        .connections(5)
        .run(batch.netns())?;
    agent.settled()?;
    let words = [
        "forwarded against shop/web-policy (ingress): 5 connections",
        "shop/batch → shop/web",
    ];
    finds(&bed, &home, "policy-unenforced", "critical", &words)?;
    Ok(())
}

#[test]
fn what_an_engine_denies_and_what_it_lets_through_when_it_has_stopped_are_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let (bed, _api) = enforced(Engine::AzureNpm)?;
    let (web, batch) = (bed.pod(1), bed.pod(3));
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let home = Home::new()?;
    let mut flags = flags(&bed, &home)?;
    flags.push("--policy-grace=0s".to_owned());
    let _agent = Agent::start(&bed, &home, flags)?;
    let said = finds(
        &bed,
        &home,
        "policy-unenforced",
        "ok",
        &["azure_npm enforces"],
    )?;
    assert_eq!(said.of("policy-denials")[0].0, "ok");

    let dial = || connect(batch.netns(), server.address(), SOON);
    assert_eq!(dial()?, Connect::TimedOut);
    let words = [
        "shop/web-policy denied 1 connection (1 packet)",
        "shop/web-policy ingress: shop/batch → shop/web, 1 packet (1 connection)",
        "aksnet-agent explain shop/batch shop/web PORT",
        "docs/runbooks/policy.md",
    ];
    let said = finds(&bed, &home, "policy-denials", "warning", &words)?;
    assert_eq!(said.code, 1);

    bed.stop_enforcing()?;
    assert_eq!(dial()?, Connect::Connected);
    let words = [
        "azure_npm lets through what network policies deny: 1 connection",
        "shop/batch → shop/web",
    ];
    let said = finds(&bed, &home, "policy-unenforced", "critical", &words)?;
    assert_eq!(said.code, 2);
    // NPM itself has an end date.
    let words = ["Azure NPM", "30 September 2028"];
    assert!(
        said.titles("end-dates", &words),
        "{:?}",
        said.of("end-dates")
    );
    Ok(())
}

/// More entries than this would take too much memory: about 100 MB.
const MOST: u32 = 300_000;

#[test]
fn a_full_conntrack_table_and_what_it_drops_are_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().pods(1).build()?;
    let node = bed.node().netns();
    let limit = node.read("/proc/sys/net/netfilter/nf_conntrack_max")?;
    let limit: u32 = limit.trim().parse()?;
    if limit > MOST {
        println!("skipped: nf_conntrack_max is {limit}, which takes too much memory to fill");
        return Ok(());
    }
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let _agent = Agent::start(&bed, &home, flags(&bed, &home)?)?;
    fill(node, limit / 100 * 85, true)?;
    finds(
        &bed,
        &home,
        "conntrack",
        "warning",
        &["(85 %)", "is getting full"],
    )?;
    counters::flush_conntrack(node)?;
    fill(node, limit, true)?;
    bed.pod(0).netns().run(|| {
        for _ in 0..5 {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"x", (bed.outside_ip(), 53))?;
        }
        Ok(())
    })?;
    let words = [
        "the conntrack table is full: 5 packets of new connections were dropped",
        "(100 %)",
    ];
    let said = finds(&bed, &home, "conntrack", "critical", &words);
    counters::flush_conntrack(node)?;
    assert_eq!(said?.code, 2);
    Ok(())
}

#[test]
fn ports_that_are_used_up_and_clashes_without_random_ports_are_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let mut flags = flags(&bed, &home)?;
    flags.extend(["--snat-ports=2", "--conntrack-interval=1s"].map(str::to_owned));
    let agent = Agent::start(&bed, &home, flags)?;
    let clash = mishap::named("SNAT clash").context("there is one")?;
    let said = finds(
        &bed,
        &home,
        "snat-clash",
        "ok",
        &["keeps source ports (no --random-fully), and none clashed"],
    )?;
    assert_eq!(said.of("conntrack")[0].0, "ok");
    let loss = clash.play(&bed, Family::V4, 12)?;
    let failed = loss.counted.context("a counter")?.1;
    agent.settled()?;
    let words = [
        &format!("{failed} connections were lost to clashes of NAT ports"),
        "chain IP-MASQ-AGENT of ip-masq-agent: MASQUERADE without --random-fully",
        "docs/runbooks/nat.md",
    ];
    finds(&bed, &home, "snat-clash", "warning", &words)?;
    let words = [
        &format!("{failed} connections lost their first packet"),
        "insert_failed",
    ];
    finds(&bed, &home, "conntrack", "warning", &words)?;
    finds(
        &bed,
        &home,
        "drops",
        "warning",
        &["cause nat", "docs/runbooks/nat.md"],
    )?;

    bed.node().restore(
        Family::V4,
        "*nat\n-I POSTROUTING -p tcp --dport 7778 -j MASQUERADE --to-ports 40000-40001\nCOMMIT\n",
    )?;
    let server = TcpServer::echo(bed.outside(), (bed.outside_ip(), 7778))?;
    let open: Vec<TcpStream> = bed.pod(0).netns().run(|| {
        let dialled = (0..2).map(|_| TcpStream::connect(server.address()));
        Ok(dialled.collect::<Result<_, _>>()?)
    })?;
    let words = [
        "TCP ports of the node's address are used up towards one destination",
        "100 % of 2 towards the busiest destination",
        "shop/frontend: ",
    ];
    let said = finds(&bed, &home, "snat-ports", "critical", &words)?;
    assert_eq!(said.code, 2);
    drop(open);
    Ok(())
}

#[test]
fn azures_ports_that_are_used_up_are_found_as_an_estimate() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().pods(1).build()?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let mut flags = flags(&bed, &home)?;
    flags.extend(["--azure-snat-ports=8", "--conntrack-interval=1s"].map(str::to_owned));
    let _agent = Agent::start(&bed, &home, flags)?;
    let server = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
    let open: Vec<TcpStream> = bed.pod(0).netns().run(|| {
        let dialled = (0..7).map(|_| TcpStream::connect(server.address()));
        Ok(dialled.collect::<Result<_, _>>()?)
    })?;
    let words = [
        "ports that Azure's load balancer keeps for this node (an estimate)",
        "88 % of 8",
    ];
    finds(&bed, &home, "snat-ports", "warning", &words)?;
    drop(open);
    Ok(())
}

#[test]
fn pods_that_are_masqueraded_to_pods_are_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet()
        .hairpin(Hairpin::Veth)
        .spared([])
        .build()?;
    let (client, far) = (bed.pod(0), bed.remote_pod(0));
    let server = TcpServer::echo(far.netns(), (far.ip(), 8080))?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let _agent = Agent::start(&bed, &home, flags(&bed, &home)?)?;
    let said = ask(&bed, &home, &["--check", "pod-to-pod-snat"])?;
    assert_eq!(
        said.of("pod-to-pod-snat"),
        [("unknown", "no connection between pods was seen yet")]
    );
    assert_eq!(said.code, 0, "what is not known fails nothing");
    Tcp::to(server.address())
        .connections(3)
        .run(client.netns())?;
    let words = [
        "3 connections between pods had the node's address",
        "shop/frontend → ",
        "spares: none",
    ];
    let said = finds(&bed, &home, "pod-to-pod-snat", "warning", &words)?;
    let words = ["kubenet", "31 March 2028"];
    assert!(
        said.titles("end-dates", &words),
        "{:?}",
        said.of("end-dates")
    );
    Ok(())
}

#[test]
fn egress_with_a_pods_own_address_and_a_missing_masquerade_agent_are_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet()
        .hairpin(Hairpin::Veth)
        .spared(["10.0.0.0/8".parse()?])
        .build()?;
    let vm = TcpServer::echo(bed.vm(), (bed.vm_ip(), 8080))?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let mut flags = flags(&bed, &home)?;
    flags.push("--remote-pods".to_owned());
    let agent = Agent::start(&bed, &home, &flags)?;
    Tcp::to(vm.address())
        .connections(4)
        .run(bed.pod(0).netns())?;
    // The fabric knows the way back to pods, which an Azure network would not.
    let words = [
        "4 connections left with a pod's own address",
        "shop/frontend → vnet: 4 connections",
        "not masqueraded: 10.0.0.0/8",
    ];
    finds(&bed, &home, "egress-snat", "warning", &words)?;
    agent.stop(Signal::SIGTERM)?;
    bed.node()
        .restore(Family::V4, "*nat\n-F IP-MASQ-AGENT\nCOMMIT\n")?;
    let _agent = Agent::start(&bed, &home, &flags)?;
    let words = [
        "nothing masquerades pods on this kubenet node: they cannot reach anything outside",
        "azure-ip-masq-agent",
    ];
    let said = finds(&bed, &home, "egress-snat", "critical", &words)?;
    assert_eq!(said.code, 2);
    Ok(())
}

#[test]
fn traffic_that_crosses_zones_is_found_and_too_much_of_it_is_a_warning() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let (client, far) = (bed.pod(0), bed.remote_pod(0));
    let server = TcpServer::echo(far.netns(), (far.ip(), 8080))?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let mut flags = flags(&bed, &home)?;
    flags.push("--remote-pods".to_owned());
    let _agent = Agent::start(&bed, &home, flags)?;
    Tcp::to(server.address())
        .connections(3)
        .run(client.netns())?;
    let words = [
        "100 % of the bytes between pods cross zones",
        "shop/frontend → shop/far-frontend: ",
    ];
    let said = finds(&bed, &home, "cross-zone", "info", &words)?;
    assert_eq!(said.code, 0, "{:#}", said.report);
    Tcp::to(server.address())
        .bytes(8 << 20)
        .run(client.netns())?;
    finds(
        &bed,
        &home,
        "cross-zone",
        "warning",
        &["100 %", "MiB", "trafficDistribution"],
    )?;
    Ok(())
}

#[test]
fn silence_from_outside_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let _agent = Agent::start(&bed, &home, flags(&bed, &home)?)?;
    handshake::to_outside(&bed, Family::V4, Outcome::Unanswered, 4)?;
    let words = [
        "4 connections left the node and got no answer",
        "shop/frontend → internet: 4 without an answer",
        "az network watcher",
    ];
    let said = finds(&bed, &home, "unanswered", "warning", &words)?;
    assert_eq!(said.code, 1);
    assert_eq!(
        said.of("drops")[0].0,
        "ok",
        "nothing was dropped on the node"
    );
    Ok(())
}

#[test]
fn what_a_firewall_rule_drops_is_found_with_its_runbook() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let _agent = Agent::start(&bed, &home, flags(&bed, &home)?)?;
    let rule = mishap::named("administrator's rule").context("there is one")?;
    rule.play(&bed, Family::V4, 12)?;
    let words = [
        "12 packets were dropped",
        "cause firewall",
        "docs/runbooks/firewall.md",
        "shop/frontend → internet",
    ];
    finds(&bed, &home, "drops", "warning", &words)?;
    // AKS keeps pods from the wireserver on every node: nobody's fault.
    let block = mishap::named("wireserver").context("there is one")?;
    block.play(&bed, Family::V4, 20)?;
    let words = ["20 packets were dropped", "cause azure_platform_block"];
    finds(&bed, &home, "drops", "info", &words)?;
    Ok(())
}

#[test]
fn nat_beyond_its_budget_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let near = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let outside = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
    // What opens a connection to outside has a long way through the rules; nothing else has.
    let long = "-A LONG -d 192.0.2.1/32 -j RETURN\n".repeat(4000);
    let to = outside.address().ip();
    bed.node().restore(
        Family::V4,
        &format!("*nat\n:LONG - [0:0]\n{long}-I PREROUTING -d {to}/32 -j LONG\nCOMMIT\n"),
    )?;
    let home = Home::new()?;
    let _api = cluster::start(&bed)?;
    let mut flags = flags(&bed, &home)?;
    let said = {
        let _agent = Agent::start(&bed, &home, &flags)?;
        ask(&bed, &home, &["--check", "nat-time"])?
    };
    assert_eq!(said.of("nat-time")[0].0, "unknown");
    flags.extend(["--sample=1", "--nat-budget=0", "--nat-budget-first=0"].map(str::to_owned));
    let _agent = Agent::start(&bed, &home, flags)?;
    for server in [&near, &outside] {
        Tcp::to(server.address())
            .connections(30)
            .run(client.netns())?;
    }
    let words = [
        "NAT takes longer than its budget",
        "pod_to_external with snat",
    ];
    finds(&bed, &home, "nat-time", "warning", &words)?;
    Ok(())
}

#[test]
fn an_agent_that_knows_no_names_or_has_no_room_says_so() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    {
        let mut flags = plan_flags(&bed);
        flags.extend(["--kubernetes=off", "--cri-socket=off"].map(str::to_owned));
        let _agent = Agent::start(&bed, &home, flags)?;
        let said = finds(
            &bed,
            &home,
            "agent",
            "info",
            &["the Kubernetes API is not asked"],
        )?;
        for check in ["lb-pending", "policy-unenforced"] {
            assert_eq!(said.of(check)[0].0, "unknown", "{check}");
        }
        assert_eq!(said.code, 0, "{:#}", said.report);
    }
    let api = cluster::start(&bed)?;
    {
        let mut flags = flags(&bed, &home)?;
        flags.retain(|flag| !flag.starts_with("--node-name"));
        flags.push("--node-name=stranger".to_owned());
        let _agent = Agent::start(&bed, &home, flags)?;
        let words = ["Kubernetes has no node 'stranger'", "--node-name"];
        let said = finds(&bed, &home, "agent", "warning", &words)?;
        assert_eq!(said.code, 1);
    }
    api.fail(Verb::List, "networkpolicies", 1_000, Fault::Status(403));
    let mut flags = flags(&bed, &home)?;
    flags.extend(["--flow-cells=16", "--spill-entries=4"].map(str::to_owned));
    let _agent = Agent::start(&bed, &home, flags)?;
    let words = [
        "network_policies: not listed yet",
        "403",
        "deploy/base/rbac.yaml",
    ];
    let said = finds(&bed, &home, "agent", "warning", &words)?;
    assert!(
        said.text("policy-unenforced", "unknown").contains("403"),
        "{:?}",
        said.of("policy-unenforced")
    );
    // More flows than there is room for.
    let client = bed.pod(0);
    let to = (bed.pod(1).ip(), 9_000);
    client.netns().run(|| {
        for _ in 0..300 {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", to)?;
        }
        Ok(())
    })?;
    finds_any(&bed, &home, "agent", "the flow table is full")?;
    Ok(())
}

/// Asks until a check has a finding with this in its title, of whatever severity.
fn finds_any(bed: &Testbed, home: &Home, check: &str, title: &str) -> Result<()> {
    eventually(&format!("{check}: {title}"), || {
        Ok(ask(bed, home, &[])?.titles(check, &[title]))
    })
}

#[test]
fn without_an_agent_it_watches_for_a_while_and_leaves_nothing_behind() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().engine(Engine::AzureNpm).build()?;
    let home = Home::new()?;
    let said = ask(&bed, &home, &["--watch-for", "1s"])?;
    assert!(
        said.error
            .contains("no agent is running: watching this node for 1 s"),
        "{}",
        said.error
    );
    assert_eq!(said.of("agent")[0].0, "info", "{:#}", said.report);
    assert!(
        said.text("unanswered", "unknown").contains("after 10 s"),
        "{:?}",
        said.of("unanswered")
    );
    assert!(
        said.titles("end-dates", &["Azure NPM"]),
        "{:?}",
        said.of("end-dates")
    );
    assert_eq!(said.code, 0);
    assert!(!home.socket().exists());
    assert_eq!(attached(&bed)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn recorded_evidence_gives_the_same_report_elsewhere_and_without_a_privilege() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    api.apply(web_policy());
    let agent = Agent::start(&bed, &home, flags(&bed, &home)?)?;
    finds(&bed, &home, "policy-unenforced", "critical", &[])?;
    let file = home.path().join("evidence.json");
    let path = file.to_str().context("a plain path")?;
    let said = ask(&bed, &home, &["--record", path])?;
    assert!(said.error.contains("has addresses in it"), "{}", said.error);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file)?) & 0o777;
    assert_eq!(mode, 0o600);
    agent.stop(Signal::SIGTERM)?;

    // For somebody who is not root, and may not even see the home.
    let elsewhere = tempfile::tempdir()?;
    let binary = elsewhere.path().join("agent");
    fs::copy(BINARY, &binary)?;
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode;
    fs::set_permissions(elsewhere.path(), open(0o755))?;
    let judge = |evidence: &Value| -> Result<(Option<i32>, Value)> {
        let copy = elsewhere.path().join("evidence.json");
        fs::write(&copy, evidence.to_string())?;
        let mut command = std::process::Command::new(&binary);
        command.args(["doctor", "--json", "--evidence"]).arg(&copy);
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
        let output = command.stdin(Stdio::null()).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(error.is_empty(), "{error}");
        Ok((
            output.status.code(),
            serde_json::from_slice(&output.stdout)?,
        ))
    };
    let mut evidence: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let (code, report) = judge(&evidence)?;
    assert_eq!(code, Some(2));
    assert_eq!(report, said.report);

    // What cannot be had here: a kernel in which a program does not run.
    let programs = evidence["agent"]["programs"]
        .as_array_mut()
        .context("a list")?;
    assert_eq!(programs.len(), 3);
    for program in programs {
        if program["program"] == "drop" {
            program["up"] = json!(false);
            program["state"] = json!("not supported: no tp_btf");
        }
    }
    let (_, report) = judge(&evidence)?;
    let severities: BTreeMap<&str, &str> = report["findings"]
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(|f| Some((f["check"].as_str()?, f["severity"].as_str()?)))
        .collect();
    assert_eq!(severities["agent"], "warning");
    assert_eq!(severities["policy-denials"], "unknown");
    assert_eq!(severities["drops"], "unknown");
    Ok(())
}

#[test]
fn what_looks_like_a_basic_load_balancer_is_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().build()?;
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    probed(&api, &bed);
    // In no zone: the label has a fault domain's number.
    let (address, pods) = (
        bed.node().ip().to_string(),
        bed.node().plan().pods.v4.to_string(),
    );
    api.apply(objects::node(bed.node().name(), &address, &pods, "0"));
    for (basic, severity, words) in [
        (
            true,
            "warning",
            "what looks like Basic Load Balancer, which ended on 30 September 2025",
        ),
        (
            false,
            "ok",
            "a standard load balancer is in front of the node",
        ),
    ] {
        let _service = if basic {
            Imds::start_without_balancer(bed.azure())?
        } else {
            Imds::start(bed.azure(), "")?
        };
        let mut command = on_azure(&bed, &home);
        command.args(flags(&bed, &home)?);
        let mut agent = Agent::spawn(&bed, &home, &mut command)?;
        agent.await_ready()?;
        finds(&bed, &home, "end-dates", severity, &[words])?;
        agent.stop(Signal::SIGTERM)?;
    }
    Ok(())
}

#[test]
fn a_service_keeps_its_name_on_the_way_to_the_terminal() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet()
        .hairpin(Hairpin::Veth)
        .pods(4)
        .spared([])
        .build()?;
    let home = Home::new()?;
    let api = cluster::start(&bed)?;
    api.apply(web_policy());
    let mut front = objects::service("shop", "front", "10.0.77.8");
    front["spec"]["type"] = json!("LoadBalancer");
    api.apply(front);
    let web = bed.pod(1);
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let service =
        bed.add_service(Service::cluster_ip("shop", "web", 80).endpoints([server.address()]))?;
    cluster::tell_service(&api, &bed, "web", &service, &[&web]);
    let mut flags = flags(&bed, &home)?;
    flags.push("--policy-grace=0s".to_owned());
    let _agent = Agent::start(&bed, &home, flags)?;
    let far = bed.remote_pod(0);
    let away = TcpServer::echo(far.netns(), (far.ip(), 8080))?;
    for to in [service.address(), away.address()] {
        Tcp::to(to).connections(5).run(bed.pod(3).netns())?;
    }
    handshake::to_outside(&bed, Family::V4, Outcome::Unanswered, 4)?;
    finds(&bed, &home, "unanswered", "warning", &[])?;
    let mut command = home.command(&bed, "doctor");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = bed.node().netns().spawn(&mut command)?.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    println!("{text}");
    assert_eq!(output.status.code(), Some(2));
    let order = ["CRITICAL", "WARNING", "INFO", "NOT JUDGED", "\nOK\n"].map(|part| text.find(part));
    assert!(
        order.iter().all(Option::is_some) && order.is_sorted(),
        "{text}"
    );
    for part in [
        "1 network policy selects pods here, and nothing enforces network policies",
        "fix: ",
        "more: https://",
        "shop/front: pending for at least",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    Ok(())
}

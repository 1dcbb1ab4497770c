//! What the metrics say is what the kernel counted: every packet and byte once, every connection once, under the
//! class and NAT that its path has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use xtask::testbed::{
    Builder, Family, Flavour, Hairpin, Netns, PolicyRule, Service, Testbed,
    traffic::{Ping, Tcp, TcpServer, Udp, UdpServer},
};

use crate::{
    life::{Agent, Home, plan_flags, turn},
    scrape::Scrape,
    truth::{Truth, count_own, of_family},
};

/// Connections by class, NAT, protocol and family.
type Expected = BTreeMap<[String; 4], u64>;

const DROPPED: u64 = 10;

/// What ICMPv6 redirects of the node are counted as. Nobody asks for them, and no setting turns them off: the
/// node sends them for hairpins, as often as its rate limit lets it.
const REDIRECTS: [&str; 4] = ["node_to_pod", "none", "icmpv6", "ipv6"];

/// Traffic of every kind in one family, between servers that stand for a whole test.
struct Mix<'a> {
    bed: &'a Testbed,
    family: Family,
    servers: Vec<TcpServer>,
    udp: UdpServer,
    services: BTreeMap<&'static str, Service>,
}

/// Servers of [`Mix`] by place in the list.
const NEAR: usize = 0;
const FAR: usize = 1;
const OWN: usize = 2;
const OUTSIDE: usize = 3;
const NODE: usize = 4;

impl<'a> Mix<'a> {
    fn new(bed: &'a Testbed, family: Family) -> Result<Self> {
        let (client, web, far) = (bed.pod(0), bed.pod(1), bed.remote_pod(0));
        let outside = bed.plan().outside.of(family).context("an address")?;
        let node = bed.node().address().of(family).context("an address")?;
        let servers = vec![
            TcpServer::echo(web.netns(), (web.ip_of(family), 8080))?,
            TcpServer::echo(far.netns(), (far.ip_of(family), 8080))?,
            TcpServer::echo(client.netns(), (client.ip_of(family), 8080))?,
            TcpServer::echo(bed.outside(), (outside, 443))?,
            TcpServer::echo(bed.node().netns(), (node, 10_250))?,
        ];
        let udp = UdpServer::echo(web.netns(), (web.ip_of(family), 53))?;
        let ports = if family == Family::V6 { 31_000 } else { 30_000 };
        let frontend = bed.plan().load_balancer.of(family).context("a frontend")?;
        let named = |name: &str| {
            if family == Family::V6 {
                format!("{name}6")
            } else {
                name.to_owned()
            }
        };
        let cluster_ip = |name: &str| Service::cluster_ip("shop", &named(name), 80);
        let balanced = |name: &str, n: u16| {
            Service::load_balancer("shop", &named(name), 80 + n, ports + n, frontend)
        };
        let mut services = BTreeMap::new();
        for (key, service, server) in [
            ("near", cluster_ip("near"), NEAR),
            ("far", cluster_ip("far"), FAR),
            ("own", cluster_ip("own"), OWN),
            ("any", balanced("any", 0), NEAR),
            ("local", balanced("local", 1).local(), NEAR),
            ("hop", balanced("hop", 2), FAR),
        ] {
            let service = of_family(service, family).endpoints([servers[server].address()]);
            services.insert(key, bed.add_service(service)?);
        }
        let dns = Service::cluster_ip("shop", &named("dns"), 53).udp();
        let dns = of_family(dns, family).endpoints([udp.address()]);
        services.insert("dns", bed.add_service(dns)?);
        bed.add_policy(
            PolicyRule::drop("no-batch")
                .from(bed.pod(2).ip_of(family))
                .to(web.ip_of(family))
                .udp(53),
        )?;
        Ok(Self {
            bed,
            family,
            servers,
            udp,
            services,
        })
    }

    /// Runs all of it, and says which connections that were.
    fn run(&self) -> Result<Expected> {
        let Self { bed, udp, .. } = self;
        let (client, web, batch, far) = (bed.pod(0), bed.pod(1), bed.pod(2), bed.remote_pod(0));
        let (pod, outside) = (client.netns(), bed.outside());
        let node_ip = bed.node().address().of(self.family).context("an address")?;
        let node_port = if self.family == Family::V6 {
            31_000
        } else {
            30_000
        };
        let server = |at: usize| self.servers[at].address();
        let cluster = |name| self.services[name].address();
        let frontend = |name| self.services[name].frontend();
        let at_node = |port: u16| SocketAddr::new(node_ip, port);

        // With Azure CNI's node subnet nothing but Kubernetes tells a pod of another node from any other
        // address of the virtual network.
        let hidden = bed.plan().flavour == Flavour::AzureNodeSubnet;
        let (to_far, from_far) = if hidden {
            ("pod_to_external", "external_to_pod")
        } else {
            ("pod_to_pod", "pod_to_pod")
        };
        let tcp: [(&Netns, SocketAddr, u32, &str, &str); 16] = [
            (pod, server(NEAR), 3, "pod_to_pod", "none"),
            (pod, server(FAR), 2, to_far, "none"),
            (far.netns(), server(NEAR), 2, from_far, "none"),
            (pod, cluster("near"), 5, "pod_to_service", "dnat"),
            (pod, cluster("far"), 2, "pod_to_service", "dnat"),
            (pod, cluster("own"), 2, "pod_to_service", "both"),
            (pod, server(OUTSIDE), 4, "pod_to_external", "snat"),
            (outside, at_node(node_port), 3, "node_port", "both"),
            (outside, at_node(node_port + 1), 2, "node_port", "dnat"),
            (outside, frontend("any"), 2, "load_balancer", "both"),
            (outside, frontend("local"), 2, "load_balancer", "dnat"),
            (outside, frontend("hop"), 2, "load_balancer", "both"),
            (pod, server(NODE), 2, "pod_to_node", "none"),
            (bed.node().netns(), server(NEAR), 2, "node_to_pod", "none"),
            (outside, server(NODE), 2, "external_to_node", "none"),
            (
                bed.node().netns(),
                server(OUTSIDE),
                2,
                "node_to_external",
                "none",
            ),
        ];
        let mut expected = Expected::new();
        let family = if self.family == Family::V6 {
            "ipv6"
        } else {
            "ipv4"
        };
        let mut add = |class: &str, nat: &str, protocol: &str, connections: u32| {
            let key = [class, nat, protocol, family].map(str::to_owned);
            *expected.entry(key).or_insert(0) += u64::from(connections);
        };
        for (from, to, connections, class, nat) in tcp {
            Tcp::to(to)
                .connections(connections)
                .bytes(700)
                .run(from)
                .with_context(|| format!("{class} {nat}"))?;
            add(class, nat, "tcp", connections);
        }
        // So much that it takes many segments, each way.
        Tcp::to(cluster("near")).bytes(300_000).run(pod)?;
        add("pod_to_service", "dnat", "tcp", 1);

        Udp::to(udp.address()).datagrams(20).flight(4).run(pod)?;
        add("pod_to_pod", "none", "udp", 1);
        Udp::to(cluster("dns")).datagrams(7).run(pod)?;
        add("pod_to_service", "dnat", "udp", 1);
        let dropped = u32::try_from(DROPPED)?;
        Udp::to(udp.address())
            .datagrams(dropped)
            .unanswered()
            .run(batch.netns())?;
        add("pod_to_pod", "none", "udp", 1);

        let icmp = if self.family == Family::V6 {
            "icmpv6"
        } else {
            "icmp"
        };
        let outside_ip = bed.plan().outside.of(self.family).context("an address")?;
        Ping::to(web.ip_of(self.family)).count(5).run(pod)?;
        add("pod_to_pod", "none", icmp, 1);
        Ping::to(outside_ip).count(5).run(pod)?;
        add("pod_to_external", "snat", icmp, 1);
        for server in &self.servers {
            server.settle()?;
        }
        Ok(expected)
    }
}

/// Runs every kind of traffic on a node and holds all metrics against what the kernel counted.
fn equal(builder: Builder, flags: &[&str]) -> Result<()> {
    let bed = builder.pods(3).offloads(false).build()?;
    let mixes = bed
        .families()
        .into_iter()
        .map(|family| Mix::new(&bed, family))
        .collect::<Result<Vec<_>>>()?;
    count_own(&bed)?;
    for mix in &mixes {
        mix.run()?;
    }
    bed.settle()?;
    bed.pin_neighbours()?;
    bed.settle()?;

    let home = Home::new()?;
    let before = Truth::now(&bed)?;
    let dropped_before = bed.node().rule_packets("no-batch")?;
    let flags: Vec<String> = plan_flags(&bed)
        .into_iter()
        .chain(flags.iter().map(|f| (*f).to_owned()))
        .collect();
    let agent = Agent::start(&bed, &home, &flags)?;
    let ready = Truth::now(&bed)?;
    let mut expected = Expected::new();
    for mix in &mixes {
        expected.append(&mut mix.run()?);
    }
    bed.settle()?;
    let retransmits = Truth::now(&bed)?.since(ready).retransmits;
    let scrape = agent.settled()?;
    let truth = Truth {
        retransmits,
        ..Truth::now(&bed)?.since(before)
    };
    let dropped = bed.node().rule_packets("no-batch")? - dropped_before;

    assert_eq!(dropped, DROPPED * mixes.len() as u64);
    same_connections(&agent, &home, &scrape, &expected)?;
    held(&scrape, truth, &expected, dropped);
    if flags.contains(&"--sample=1".to_owned()) {
        every_packet_timed(&scrape, truth, dropped);
    }
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// Connections are as many as were made; else says which are not, and which flows those are.
fn same_connections(
    agent: &Agent,
    home: &Home,
    scrape: &Scrape,
    expected: &Expected,
) -> Result<()> {
    let labels = ["class", "nat", "protocol", "family"];
    let mut counted = scrape.count_by("aksnet_flow_connections_total", labels);
    counted.remove(&REDIRECTS.map(str::to_owned));
    let all: BTreeSet<_> = counted.keys().chain(expected.keys()).collect();
    let wrong: Vec<_> = all
        .into_iter()
        .filter(|k| counted.get(*k) != expected.get(*k))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let looks = [
        "--raw",
        "--json",
        "--count=1",
        "--interval=0.1",
        "--limit=1000",
    ];
    let rows = home.command(agent.bed, "top").args(looks).output()?;
    let rows = String::from_utf8(rows.stdout)?;
    for key in wrong {
        let flows: Vec<&str> = rows
            .lines()
            .filter(|l| key.iter().take(3).all(|v| l.contains(v.as_str())))
            .collect();
        println!(
            "{key:?}: counted {:?}, made {:?}: {flows:#?}",
            counted.get(key),
            expected.get(key)
        );
    }
    anyhow::bail!("connections differ, see above")
}

fn held(scrape: &Scrape, truth: Truth, expected: &Expected, dropped: u64) {
    let by = |name: &str| scrape.count_by(name, ["class", "nat", "protocol", "family"]);
    assert_eq!(
        scrape.count("aksnet_flow_packets_total", &[]),
        truth.packets,
        "{:#?}",
        by("aksnet_flow_packets_total")
    );
    assert_eq!(scrape.count("aksnet_flow_bytes_total", &[]), truth.bytes);
    let redirects = by("aksnet_flow_packets_total").remove(&REDIRECTS.map(str::to_owned));
    assert_eq!(redirects.unwrap_or(0), truth.redirects);
    for nothing in [
        "aksnet_agent_flow_overflow_packets_total",
        "aksnet_agent_skipped_packets_total",
        "aksnet_tcp_handshake_failures_total",
        "aksnet_agent_series_folded_total",
    ] {
        assert_eq!(scrape.count(nothing, &[]), 0, "{nothing}");
    }

    let drop = [("reason", "netfilter_drop")];
    assert_eq!(scrape.count("aksnet_drop_packets_total", &drop), dropped);
    assert!(scrape.count("aksnet_drop_bytes_total", &drop) > 100 * dropped);

    // One handshake per connection, under the same class and NAT.
    let mut handshakes = BTreeMap::new();
    for ([class, nat, protocol, _], connections) in expected {
        if protocol == "tcp" {
            *handshakes.entry([class.clone(), nat.clone()]).or_insert(0) += connections;
        }
    }
    assert_eq!(
        scrape.count_by("aksnet_tcp_handshake_seconds_count", ["class", "nat"]),
        handshakes
    );
    assert_eq!(
        scrape.count("aksnet_tcp_retransmits_total", &[]),
        truth.retransmits
    );

    for nat in ["none", "snat", "dnat", "both"] {
        for stage in ["first", "established"] {
            let labels = [("nat", nat), ("stage", stage)];
            let timed = scrape.count("aksnet_nat_path_seconds_count", &labels);
            assert!(timed > 0, "{nat} {stage}");
            let spent = scrape.sum("aksnet_nat_path_seconds_sum", &labels);
            assert!(spent > 0.0, "{nat} {stage}");
        }
        let translated = if nat == "none" {
            0
        } else {
            scrape.count("aksnet_flow_bytes_total", &[("nat", nat)])
        };
        assert_eq!(
            scrape.count("aksnet_nat_bytes_total", &[("nat", nat)]),
            translated,
            "{nat}"
        );
    }
}

/// Everything that entered and was neither delivered nor dropped was timed as it left.
fn every_packet_timed(scrape: &Scrape, truth: Truth, dropped: u64) {
    let event = |event| scrape.count("aksnet_agent_datapath_events_total", &[("event", event)]);
    let timed = scrape.count("aksnet_nat_path_seconds_count", &[]);
    assert_eq!(
        timed + event("exit_unmatched"),
        truth.entered - truth.delivered - dropped,
        "{truth:?}"
    );
    assert!(event("exit_unmatched") <= event("passage_replaced"));
}

#[test]
fn kubenet_counts_are_the_kernels() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    equal(
        Testbed::kubenet().hairpin(Hairpin::Veth).dual_stack(true),
        &[],
    )
}

#[test]
fn kind_counts_are_the_kernels_with_every_packet_timed() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    equal(Testbed::kind().dual_stack(true), &["--sample=1"])
}

#[test]
fn azure_overlay_counts_are_the_kernels() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    equal(Testbed::azure_overlay().dual_stack(true), &[])
}

#[test]
fn azure_node_subnet_counts_are_the_kernels_by_clsact_too() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    equal(
        Testbed::azure_node_subnet(),
        &["--attach=clsact", "--sample=1"],
    )
}

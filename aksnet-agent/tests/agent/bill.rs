//! What NAT costs, and who runs it up: ports, conntrack entries, bytes, time, and connections that are translated as
//! they should not be.

use std::{collections::BTreeMap, net::TcpStream, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use xtask::testbed::{
    Builder, Family, Hairpin, Pod, Service, Testbed,
    api::objects,
    counters,
    traffic::{Tcp, TcpServer},
};

use crate::{
    cluster,
    life::{Agent, Home, eventually, turn},
};

/// Scrapes and what is asked of the API go over the loopback: without this they would be conntrack entries.
const QUIET: &str = "*raw\n\
    -I PREROUTING -i lo -j CT --notrack\n\
    -I OUTPUT -o lo -j CT --notrack\n\
    COMMIT\n";

/// So many connections that stay open.
fn hold(pod: &Pod, to: std::net::SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    pod.netns().run(|| {
        Ok((0..count)
            .map(|_| TcpStream::connect(to))
            .collect::<Result<_, _>>()?)
    })
}

#[test]
fn ports_and_connections_are_those_that_conntrack_lists() -> Result<()> {
    const OPEN: [usize; 3] = [2, 3, 5];
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().pods(3).build()?;
    let node = bed.node();
    node.restore(Family::V4, QUIET)?;
    let outside = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
    let web = TcpServer::echo(bed.pod(1).netns(), (bed.pod(1).ip(), 8080))?;
    let api = cluster::start(&bed)?;
    api.apply(objects::node(
        "third",
        "10.224.0.6",
        "10.244.2.0/24",
        "westeurope-3",
    ));
    let home = Home::new()?;
    let mut flags = cluster::flags(&bed, &home)?;
    flags.extend(["--azure-snat-ports=0", "--conntrack-interval=1s"].map(str::to_owned));
    let agent = Agent::start(&bed, &home, flags)?;
    let mut open = Vec::new();
    for (at, count) in OPEN.into_iter().enumerate() {
        open.extend(hold(&bed.pod(at), outside.address(), count)?);
    }
    // Connections without NAT take no port of the node's.
    open.extend(hold(&bed.pod(0), web.address(), 4)?);
    let expected: BTreeMap<[String; 2], u64> = OPEN
        .iter()
        .enumerate()
        .map(|(at, count)| {
            let pod = bed.pod(at);
            (
                [pod.namespace().to_owned(), cluster::workload(&pod)],
                *count as u64,
            )
        })
        .collect();
    let whose = ["src_namespace", "src_workload"];
    let entries = || -> Result<u64> {
        let kernel = "/proc/sys/net/netfilter/nf_conntrack_count";
        Ok(node.netns().read(kernel)?.trim().parse()?)
    };
    eventually("all is counted", || {
        let scrape = agent.scrape()?;
        Ok(
            scrape.count_by("aksnet_snat_connections", whose) == expected
                && scrape.count("aksnet_conntrack_entries", &[]) == entries()?,
        )
    })?;
    let scrape = agent.scrape()?;
    let listed = node.conntrack()?;
    let snat = listed.iter().filter(|e| e.is_snat()).count();
    assert_eq!((listed.len(), snat), (14, 10), "{listed:?}");
    let tcp = [("protocol", "tcp"), ("family", "ipv4")];
    assert_eq!(scrape.count("aksnet_snat_ports_in_use", &tcp), 10);
    assert_eq!(scrape.count("aksnet_snat_ports_limit", &tcp), 64_512);
    let ratio = scrape.sum("aksnet_snat_port_saturation_ratio", &tcp);
    assert!((ratio - 10.0 / 64_512.0).abs() < 1e-9, "{ratio}");
    assert_eq!(scrape.count("aksnet_azure_snat_ports_limit", &[]), 1024);
    let azure = scrape.sum("aksnet_azure_snat_port_saturation_ratio", &tcp[..1]);
    assert!((azure - 10.0 / 1024.0).abs() < 1e-9, "{azure}");
    assert_eq!(scrape.count("aksnet_conntrack_entries", &[]), 14);
    let limit = node
        .netns()
        .read("/proc/sys/net/netfilter/nf_conntrack_max")?;
    assert_eq!(
        scrape.count("aksnet_conntrack_entries_limit", &[]),
        limit.trim().parse::<u64>()?
    );
    for source in ["table", "statistics"] {
        let known = scrape.count("aksnet_agent_conntrack_known", &[("source", source)]);
        assert_eq!(known, 1, "{source}");
    }

    // The cluster grows beyond 50 nodes, which halves what Azure keeps for each.
    for n in 4..=51 {
        let (address, pods) = (format!("10.224.0.{n}"), format!("10.244.{n}.0/24"));
        api.apply(objects::node(&format!("node-{n}"), &address, &pods, ""));
    }
    eventually("the limit follows the number of nodes", || {
        let scrape = agent.scrape()?;
        Ok(scrape.count("aksnet_azure_snat_ports_limit", &[]) == 512)
    })?;
    // Who has closed has no port any more, once conntrack has forgotten it.
    drop(open);
    counters::flush_conntrack(node.netns())?;
    eventually("nothing is left", || {
        let scrape = agent.scrape()?;
        Ok(scrape.count("aksnet_snat_connections", &[]) == 0
            && scrape.count("aksnet_snat_ports_in_use", &tcp) == 0)
    })?;
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn connections_that_find_no_port_are_counted_as_failed_inserts() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    bed.node().restore(
        Family::V4,
        "*nat\n-I POSTROUTING -p tcp --dport 7777 -j MASQUERADE --to-ports 40000-40001\nCOMMIT\n",
    )?;
    let server = TcpServer::echo(bed.outside(), (bed.outside_ip(), 7777))?;
    let home = Home::new()?;
    let flags = [
        "--snat-ports=2",
        "--conntrack-interval=1s",
        "--cri-socket=off",
    ];
    let agent = Agent::start(&bed, &home, flags)?;
    let failed = || -> Result<u64> {
        Ok(agent
            .scrape()?
            .count("aksnet_conntrack_insert_failed_total", &[]))
    };
    assert_eq!(failed()?, 0);
    let to = server.address();
    let open: Vec<TcpStream> = bed.pod(0).netns().run(|| {
        Ok((0..5)
            .filter_map(|_| TcpStream::connect_timeout(&to, Duration::from_millis(300)).ok())
            .collect())
    })?;
    assert_eq!(open.len(), 2);
    let tcp = [("protocol", "tcp"), ("family", "ipv4")];
    eventually("the clashes are counted", || {
        let scrape = agent.scrape()?;
        Ok(failed()? == 3 && scrape.count("aksnet_snat_ports_in_use", &tcp) == 2)
    })?;
    let scrape = agent.scrape()?;
    assert_eq!(scrape.count("aksnet_snat_ports_limit", &tcp), 2);
    assert_eq!(scrape.count("aksnet_snat_port_saturation_ratio", &tcp), 1);
    let truth = counters::conntrack_statistics(bed.node().netns())?;
    assert_eq!(truth.insert_failed, 3);
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// Connections of each kind of NAT: enough for a median.
const MANY: u32 = 25;

#[test]
fn bytes_and_times_of_nat_are_counted_to_the_packet() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().offloads(false).build()?;
    let (client, pod) = (bed.pod(0), bed.pod(1));
    let web = TcpServer::echo(pod.netns(), (pod.ip(), 8080))?;
    let outside = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
    let service = Service::cluster_ip("shop", "web", 80).endpoints([web.address()]);
    let service = bed.add_service(service)?;
    let node = bed.node();
    node.restore(Family::V4, QUIET)?;
    // What opens a connection to the service has a long way through the rules; nothing else has.
    let long = "-A LONG -d 192.0.2.1/32 -j RETURN\n".repeat(4000);
    let dialled = service.address().ip();
    node.restore(
        Family::V4,
        &format!("*nat\n:LONG - [0:0]\n{long}-I PREROUTING -d {dialled}/32 -j LONG\nCOMMIT\n"),
    )?;
    let api = cluster::start(&bed)?;
    cluster::tell_service(&api, &bed, "web", &service, &[&pod]);
    let home = Home::new()?;
    for (budget, flag) in [("0", 1), ("1s", 0)] {
        counters::flush_conntrack(node.netns())?;
        let mut flags = cluster::flags(&bed, &home)?;
        flags.extend([
            "--sample=1".to_owned(),
            format!("--nat-budget={budget}"),
            format!("--nat-budget-first={budget}"),
        ]);
        let agent = Agent::start(&bed, &home, flags)?;
        let kinds = [
            (web.address(), "pod_to_pod", "none"),
            (service.address(), "pod_to_service", "dnat"),
            (outside.address(), "pod_to_external", "snat"),
        ];
        for (to, _, _) in kinds {
            Tcp::to(to).connections(MANY).run(client.netns())?;
        }
        let scrape = agent.settled()?;
        let entries = node.conntrack()?;
        for (to, class, nat) in kinds {
            let of: Vec<_> = entries
                .iter()
                .filter(|e| {
                    (e.original.destination, e.original.destination_port) == (to.ip(), to.port())
                })
                .collect();
            assert_eq!(of.len(), MANY as usize, "{to}");
            let sent: u64 = of.iter().map(|e| e.original.bytes).sum();
            let back: u64 = of.iter().map(|e| e.reply.bytes).sum();
            let packets: u64 = of
                .iter()
                .map(|e| e.original.packets + e.reply.packets)
                .sum();
            let by = |workload| {
                let labels = [("nat", nat), ("src_workload", workload)];
                scrape.count("aksnet_nat_bytes_total", &labels)
            };
            match nat {
                "dnat" => assert_eq!((by("frontend"), by("web")), (sent, back)),
                "snat" => assert_eq!((by("frontend"), by("internet")), (sent, back)),
                _ => assert_eq!(scrape.count("aksnet_nat_bytes_total", &[("nat", nat)]), 0),
            }
            let timed = |stage| {
                let labels = [("class", class), ("nat", nat), ("stage", stage)];
                scrape.count("aksnet_nat_path_seconds_count", &labels)
            };
            let many = u64::from(MANY);
            assert_eq!(
                (timed("first"), timed("established")),
                (many, packets - many),
                "{class}"
            );
            let labels = [("class", class), ("nat", nat)];
            let handshakes = scrape.count("aksnet_tcp_handshake_seconds_count", &labels);
            assert_eq!(handshakes, many, "{class}");
        }
        let added = [("nat", "dnat"), ("stage", "first")];
        let added = scrape.sum("aksnet_nat_overhead_seconds", &added);
        assert!(added > 0.0, "{added}");
        let flagged = scrape.samples_of("aksnet_nat_overhead_flagged");
        let flagged = flagged
            .iter()
            .find(|s| s.labels["class"] == "pod_to_service");
        let flagged = flagged.context("judged with 25 samples on both sides")?;
        assert_eq!(flagged.labels["nat"], "dnat");
        assert!(
            (flagged.value - f64::from(flag)).abs() < f64::EPSILON,
            "{flagged:?}"
        );
        agent.stop(Signal::SIGTERM)?;
    }
    Ok(())
}

/// Anomalies by who talks to whom, after the traffic that shows each on a node where it can be: between pods of two
/// nodes (3 connections), to a host in the virtual network (4), through the load balancer to this node's pod (5) and
/// to the other's (6).
fn anomalies(builder: Builder, far_backend: bool) -> Result<BTreeMap<[String; 5], u64>> {
    let bed = builder.build()?;
    let (client, web, far) = (bed.pod(0), bed.pod(1), bed.remote_pod(0));
    let near = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let away = TcpServer::echo(far.netns(), (far.ip(), 8080))?;
    let vm = TcpServer::echo(bed.vm(), (bed.vm_ip(), 8080))?;
    let api = cluster::start(&bed)?;
    let mut fronts = Vec::new();
    for (n, name, pod, to) in [(0, "near", &web, &near), (1, "far", &far, &away)] {
        let ports = (80 + n, 30_080 + n);
        let front = Service::load_balancer("shop", name, ports.0, ports.1, bed.frontend_ip());
        let front = bed.add_service(front.endpoints([to.address()]))?;
        let mut object = cluster::tell_service(&api, &bed, name, &front, &[pod]);
        object["spec"]["type"] = "LoadBalancer".into();
        object["spec"]["ports"][0]["port"] = ports.0.into();
        object["status"]["loadBalancer"]["ingress"] =
            serde_json::json!([{"ip": bed.frontend_ip()}]);
        api.apply(object);
        fronts.push(front.frontend());
    }
    let home = Home::new()?;
    let mut flags = cluster::flags(&bed, &home)?;
    flags.push("--remote-pods".to_owned());
    let agent = Agent::start(&bed, &home, flags)?;
    let dial = |netns, to, count| Tcp::to(to).connections(count).run(netns);
    dial(client.netns(), away.address(), 3)?;
    // The fabric knows the way back to pods, which an Azure network would not.
    dial(client.netns(), vm.address(), 4)?;
    dial(bed.outside(), fronts[0], 5)?;
    if far_backend {
        dial(bed.outside(), fronts[1], 6)?;
    }
    let scrape = agent.settled()?;
    let labels = [
        "anomaly",
        "src_namespace",
        "src_workload",
        "dst_namespace",
        "dst_workload",
    ];
    let counted = scrape.count_by("aksnet_anomalous_connections_total", labels);
    agent.stop(Signal::SIGTERM)?;
    Ok(counted)
}

fn one(labels: [&str; 5], count: u64) -> BTreeMap<[String; 5], u64> {
    BTreeMap::from([(labels.map(str::to_owned), count)])
}

#[test]
fn a_node_as_it_should_be_has_no_anomaly() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let healthy = Testbed::kubenet().hairpin(Hairpin::Veth);
    assert_eq!(anomalies(healthy, false)?, BTreeMap::new());
    assert_eq!(
        anomalies(Testbed::azure_node_subnet(), false)?,
        BTreeMap::new()
    );
    Ok(())
}

#[test]
fn pods_that_are_masqueraded_to_pods_are_an_anomaly() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().hairpin(Hairpin::Veth).spared([]);
    let ends = [
        "pod_to_pod_snat",
        "shop",
        "frontend",
        "shop",
        "far-frontend",
    ];
    assert_eq!(anomalies(bed, false)?, one(ends, 3));
    Ok(())
}

#[test]
fn egress_with_a_pods_own_address_is_an_anomaly() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().hairpin(Hairpin::Veth);
    let bed = bed.spared(["10.0.0.0/8".parse()?]);
    let ends = ["egress_without_snat", "shop", "frontend", "", "vnet"];
    assert_eq!(anomalies(bed, false)?, one(ends, 4));
    Ok(())
}

#[test]
fn a_balanced_connection_that_goes_on_to_another_node_is_an_anomaly() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let ends = ["extra_hop", "", "internet", "shop", "far-frontend"];
    assert_eq!(anomalies(Testbed::azure_overlay(), true)?, one(ends, 6));
    Ok(())
}

//! *IPVS*: services that are neither iptables rules nor nftables ones, but a table of the kernel's own.

use anyhow::Result;
use nix::sys::signal::Signal;
use xtask::testbed::{
    Testbed,
    traffic::{Tcp, TcpServer},
};

use super::can;
use crate::life::{Agent, Home, plan_flags, turn};

const CONNECTIONS: u32 = 5;

#[test]
fn a_service_by_ipvs_is_one_by_its_class_and_nat_and_the_node_says_its_mode() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    // Routed: between pods on one bridge the answer would not come by IPVS.
    let bed = Testbed::azure_overlay().build()?;
    let node = bed.node().netns();
    if !can("IPVS", node.output("ipvsadm", ["--list"]).is_ok()) {
        return Ok(());
    }
    // As kube-proxy does it: the address on a dummy, so that packets to it are the node's own.
    let service = "10.0.77.7:80";
    node.ip([
        "link add kube-ipvs0 type dummy",
        "addr add 10.0.77.7/32 dev kube-ipvs0",
    ])?;
    node.sysctl("net.ipv4.vs.conntrack", "1")?;
    let web = bed.pod(1);
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let backend = server.address().to_string();
    let words = [
        "--add-service",
        "--tcp-service",
        service,
        "--scheduler",
        "rr",
    ];
    node.output("ipvsadm", words)?;
    node.output(
        "ipvsadm",
        [
            "--add-server",
            "--tcp-service",
            service,
            "--real-server",
            &backend,
            "--masquerading",
        ],
    )?;

    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    Tcp::to(service.parse::<std::net::SocketAddr>()?)
        .connections(CONNECTIONS)
        .run(bed.pod(0).netns())?;
    let scrape = agent.settled()?;
    let modes = scrape.count_by("aksnet_node_info", ["proxy_mode"]);
    assert_eq!(modes.keys().collect::<Vec<_>>(), [&["ipvs".to_owned()]]);
    let all = scrape.count_by("aksnet_flow_connections_total", ["class", "nat"]);
    let labels = ["pod_to_service".to_owned(), "dnat".to_owned()];
    assert_eq!(all.get(&labels), Some(&u64::from(CONNECTIONS)), "{all:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

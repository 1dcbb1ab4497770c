//! Every way in which an end of a connection gets its name from Kubernetes' objects, all at once: each with a number of
//! connections of its own.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::json;
use xtask::testbed::{
    Hairpin, Pod, Service, Testbed,
    api::{ApiServer, objects},
    traffic::{Tcp, TcpServer},
};

use crate::{
    cluster::{self, connections, equal, row},
    life::{Agent, Home, turn},
};

/// What can be dialled.
struct Servers {
    near: TcpServer,
    far: TcpServer,
    /// In a pod of the other node that is nobody's endpoint.
    alone: TcpServer,
    control: TcpServer,
    outside: TcpServer,
}

impl Servers {
    fn start(bed: &Testbed) -> Result<Self> {
        let in_pod = |pod: &Pod| TcpServer::echo(pod.netns(), (pod.ip(), 8080));
        Ok(Self {
            near: in_pod(&bed.pod(1))?,
            far: in_pod(&bed.remote_pod(0))?,
            alone: in_pod(&bed.remote_pod(1))?,
            control: TcpServer::echo(bed.vm(), (bed.plan().api_server.v4, 443))?,
            outside: TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?,
        })
    }
}

/// The services, as the node translates them and as the API tells of them.
struct Services {
    here: SocketAddr,
    there: SocketAddr,
    front: SocketAddr,
    kubernetes: SocketAddr,
    _api: ApiServer,
}

impl Services {
    fn add(bed: &Testbed, servers: &Servers) -> Result<Self> {
        let (web, far) = (bed.pod(1), bed.remote_pod(0));
        let api = cluster::start(bed)?;
        let service = |name: &str, endpoint: &TcpServer, pod: &Pod| {
            let service = Service::cluster_ip("shop", name, 80).endpoints([endpoint.address()]);
            let service = bed.add_service(service)?;
            cluster::tell_service(&api, bed, name, &service, &[pod]);
            anyhow::Ok(service.address())
        };
        let here = service("here", &servers.near, &web)?;
        let there = service("there", &servers.far, &far)?;

        let front = Service::load_balancer("shop", "front", 80, 30_080, bed.frontend_ip());
        let front = bed.add_service(front.endpoints([servers.near.address()]))?;
        let mut object = cluster::tell_service(&api, bed, "front", &front, &[&web]);
        object["spec"]["type"] = json!("LoadBalancer");
        object["status"]["loadBalancer"]["ingress"] = json!([{"ip": bed.frontend_ip()}]);
        api.apply(object);

        let kubernetes = Service::cluster_ip("default", "kubernetes", 443)
            .at(std::net::Ipv4Addr::new(10, 0, 0, 1))
            .endpoints([servers.control.address()]);
        let kubernetes = bed.add_service(kubernetes)?;
        let mut object = objects::service("default", "kubernetes", "10.0.0.1");
        object["spec"]["ports"] = json!([{"name": "https", "port": 443, "targetPort": 443}]);
        api.apply(object);
        let mut slice = objects::slice("default", "kubernetes", &[]);
        slice["endpoints"] = json!([{"addresses": [bed.plan().api_server.v4]}]);
        slice["ports"] = json!([{"name": "https", "protocol": "TCP", "port": 443}]);
        api.apply(slice);
        Ok(Self {
            here,
            there,
            front: front.frontend(),
            kubernetes: kubernetes.address(),
            _api: api,
        })
    }
}

fn every_way(remote_pods: bool) -> Result<()> {
    let bed = Testbed::azure_overlay().remote_pods(2).build()?;
    let servers = Servers::start(&bed)?;
    let services = Services::add(&bed, &servers)?;
    let home = Home::new()?;
    let mut flags = cluster::flags(&bed, &home)?;
    flags.extend(remote_pods.then(|| "--remote-pods".to_owned()));
    let agent = Agent::start(&bed, &home, flags)?;
    let (pod, far, node) = (bed.pod(0), bed.remote_pod(0), bed.node().netns());
    for (from, to, count) in [
        (pod.netns(), servers.near.address(), 2),
        (pod.netns(), services.here, 3),
        (pod.netns(), services.there, 4),
        (pod.netns(), servers.far.address(), 5),
        (pod.netns(), servers.alone.address(), 6),
        (node, servers.near.address(), 7),
        (bed.node2().netns(), servers.near.address(), 8),
        (bed.outside(), services.front, 9),
        (pod.netns(), services.kubernetes, 10),
        (pod.netns(), servers.control.address(), 11),
        (node, services.here, 12),
        (far.netns(), servers.near.address(), 13),
        (pod.netns(), servers.outside.address(), 14),
    ] {
        Tcp::to(to).connections(count).run(from)?;
    }
    let scrape = agent.settled()?;
    // A pod that is nobody's endpoint is known by its node's range alone, which has no zone.
    let (far, alone, apart) = if remote_pods {
        ("shop/far-frontend", "shop/far-web", "cross_zone")
    } else {
        ("shop/service/there", "/", "cross_node")
    };
    let (this, other) = (bed.node().name(), bed.node2().name());
    let expected = BTreeMap::from([
        row("pod_to_pod same_node shop/frontend shop/web", 2),
        row("pod_to_service same_node shop/frontend shop/web", 3),
        row(&format!("pod_to_service cross_zone shop/frontend {far}"), 4),
        row(&format!("pod_to_pod cross_zone shop/frontend {far}"), 5),
        row(&format!("pod_to_pod {apart} shop/frontend {alone}"), 6),
        row(&format!("node_to_pod same_node /node/{this} shop/web"), 7),
        row(&format!("node_to_pod cross_zone /node/{other} shop/web"), 8),
        row("load_balancer external /internet shop/web", 9),
        row("api_server vnet shop/frontend /api_server", 10 + 11),
        row(
            &format!("node_to_service same_node /node/{this} shop/web"),
            12,
        ),
        row(&format!("pod_to_pod cross_zone {far} shop/web"), 13),
        row("pod_to_external external shop/frontend /internet", 14),
    ]);
    equal(&connections(&scrape), &expected);
    let synced = scrape.count_by("aksnet_agent_identity_synced", ["source"]);
    assert_eq!(synced.len(), if remote_pods { 7 } else { 6 });
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn every_connection_has_the_names_that_kubernetes_tells() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    every_way(false)
}

#[test]
fn pods_of_other_nodes_have_their_workloads_if_they_are_watched() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    every_way(true)
}

#[test]
fn a_pod_that_no_object_names_is_one_by_its_nodes_range_from_the_start() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    // No masquerading rule tells where pods are, and none of their routes.
    let bed = Testbed::kubenet()
        .hairpin(Hairpin::Veth)
        .spared([])
        .build()?;
    let far = bed.remote_pod(0);
    let server = TcpServer::echo(far.netns(), (far.ip(), 8080))?;
    let _api = cluster::start(&bed)?;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, cluster::flags(&bed, &home)?)?;
    Tcp::to(server.address())
        .connections(5)
        .run(bed.pod(0).netns())?;
    let ends = "pod_to_pod cross_node shop/frontend /";
    let expected = BTreeMap::from([row(ends, 5)]);
    equal(&connections(&agent.settled()?), &expected);
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

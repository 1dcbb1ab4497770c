//! A *stage* is a testbed with everything that traffic of every kind needs: a server behind each address, a service
//! of each type, the node's DNS cache. What is played on it are [`super::scene`]s.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::bed::Testbed;
use super::cni::HostPort;
use super::local_dns::{Cache, LocalDns};
use super::plan::{Addresses, Family, Flavour, IMDS, WIRESERVER};
use super::pod::Pod;
use super::proxy::Proxy;
use super::service::Service;
use super::traffic::{TcpServer, UdpServer};

/// The pod that takes traffic at a port of its node, as an ingress controller may.
pub const INGRESS: &str = "ingress";

/// Its port of the node.
pub const HOST_PORT: u16 = 8443;

/// Where kubelet serves.
pub const KUBELET: u16 = 10_250;

/// Where kube-proxy answers the load balancer's probes for a service with the local policy.
pub const HEALTH_CHECK_NODE_PORT: u16 = 32_700;

/// Where AKS answers the load balancer's probes for all other services, in its shared mode.
pub const SHARED_PROBE: u16 = 10_356;

/// Servers and services in one family.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The testbed.
    pub bed: &'a Testbed,
    /// IPv4 or IPv6.
    pub family: Family,
    pub(super) near: TcpServer,
    pub(super) far: TcpServer,
    pub(super) outside: TcpServer,
    pub(super) private_endpoint: TcpServer,
    pub(super) vm: TcpServer,
    pub(super) near_udp: UdpServer,
    pub(super) cluster_ips: ClusterIps,
    pub(super) balanced: Balanced,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) far_pod: Arc<Pod>,
    /// Servers that are reached through services, or at addresses of their host.
    _others: (Vec<TcpServer>, Vec<UdpServer>, Vec<LocalDns>),
}

/// Services within the cluster.
#[derive(Debug)]
pub(super) struct ClusterIps {
    pub(super) near: Service,
    pub(super) far: Service,
    pub(super) udp: Service,
    pub(super) own: Service,
    pub(super) outside: Service,
    pub(super) api_server: Service,
}

/// Services with a frontend.
#[derive(Debug)]
pub(super) struct Balanced {
    pub(super) near: Service,
    pub(super) far: Service,
    pub(super) local: Service,
    pub(super) elsewhere: Service,
    pub(super) plain: Service,
    pub(super) ingress: Option<Service>,
    pub(super) internal: Service,
    pub(super) internal_local: Service,
}

impl<'a> Stage<'a> {
    /// Adds the ingress pod. To be called before anything watches the node's interfaces; again, it does nothing.
    ///
    /// # Errors
    /// When the pod cannot be wired.
    pub fn prepare(bed: &Testbed) -> Result<()> {
        // On kubenet portmap marks what it maps by a chain that only iptables mode has.
        let possible =
            bed.plan().flavour != Flavour::Kubenet || bed.node().proxy() == Proxy::Iptables;
        if possible && bed.node().pod(INGRESS).is_none() {
            let port = HostPort {
                host: HOST_PORT,
                container: 8080,
                udp: false,
            };
            bed.add_pod_with_ports(INGRESS, &[port])?;
        }
        Ok(())
    }

    /// Starts the servers and writes the services' rules: on a testbed with two pods, and one on the other node.
    ///
    /// # Errors
    /// When a server or rule cannot be had.
    pub fn set(bed: &'a Testbed, family: Family) -> Result<Self> {
        Self::prepare(bed)?;
        let (client, web, far) = (bed.pod(0), bed.pod(1), bed.remote_pod(0));
        let plan = bed.plan();
        let of = |addresses: Addresses| addresses.of(family).context("an address of the family");
        let echo = |pod: &Pod| TcpServer::echo(pod.netns(), (pod.ip_of(family), 8080));
        let (near, away, own) = (echo(&web)?, echo(&far)?, echo(&client)?);
        let near_udp = UdpServer::echo(web.netns(), (web.ip_of(family), 53))?;
        let outside = TcpServer::echo(bed.outside(), (of(plan.outside)?, 443))?;
        let in_vnet = |host, port| TcpServer::echo(bed.vm(), (of(host)?, port));
        let (vm, private_endpoint) = (
            in_vnet(plan.vm, 8080)?,
            in_vnet(plan.private_endpoint, 443)?,
        );
        let api_server = in_vnet(plan.api_server, 443)?;
        let mut tcp = vec![own, api_server];
        for node in [bed.node(), bed.node2()] {
            for port in [KUBELET, HEALTH_CHECK_NODE_PORT, SHARED_PROBE] {
                tcp.push(TcpServer::echo(node.netns(), (of(node.address())?, port))?);
            }
        }
        let mut ingress = None;
        if let Some(pod) = bed.node().pod(INGRESS) {
            let server = echo(&pod)?;
            ingress = Some(server.address());
            tcp.push(server);
        }
        let (mut udp, mut caches) = (Vec::new(), Vec::new());
        if family == Family::V4 && has_azure(bed) {
            tcp.push(TcpServer::echo(bed.azure(), (IpAddr::from(IMDS), 80))?);
            udp.push(UdpServer::echo(
                bed.azure(),
                (IpAddr::from(WIRESERVER), 53),
            )?);
            caches.push(LocalDns::start(bed.node(), Cache::LocalDns)?);
        }
        if family == Family::V4 {
            caches.push(LocalDns::start(bed.node(), Cache::NodeLocal)?);
        }
        let cluster_ip = |name: &str, port, endpoint| {
            let name = format!("{name}{}", suffix(family));
            let service = Service::cluster_ip("shop", &name, port).endpoints([endpoint]);
            match family {
                Family::V4 => service,
                Family::V6 => service.v6(),
            }
        };
        let cluster_ips = ClusterIps {
            near: bed.add_service(cluster_ip("near", 80, near.address()))?,
            far: bed.add_service(cluster_ip("far", 80, away.address()))?,
            udp: bed.add_service(cluster_ip("dns", 53, near_udp.address()).udp())?,
            own: bed.add_service(cluster_ip("own", 80, tcp[0].address()))?,
            outside: bed.add_service(cluster_ip("outside", 443, outside.address()))?,
            api_server: bed.add_service(cluster_ip("kubernetes", 443, tcp[1].address()))?,
        };
        let balanced = |name: &str, n: u16, frontend, endpoint: SocketAddr| {
            let node_port = if family == Family::V4 { 30_080 } else { 31_080 } + n;
            let name = format!("{name}{}", suffix(family));
            Service::load_balancer("shop", &name, 80 + n, node_port, frontend).endpoints([endpoint])
        };
        let (front, inner) = (of(plan.load_balancer)?, of(plan.internal_balancer)?);
        let (here, there) = (near.address(), away.address());
        let balanced = Balanced {
            near: bed.add_service(balanced("lb-near", 0, front, here))?,
            far: bed.add_service(balanced("lb-far", 1, front, there))?,
            local: bed.add_service(balanced("lb-local", 2, front, here).local())?,
            elsewhere: bed.add_service(balanced("lb-elsewhere", 3, front, there).local())?,
            plain: bed.add_service(balanced("lb-plain", 4, front, here).without_floating_ip())?,
            ingress: ingress
                .map(|at| bed.add_service(balanced("ingress", 5, front, at)))
                .transpose()?,
            internal: bed.add_service(balanced("internal", 6, inner, here))?,
            internal_local: bed.add_service(balanced("internal-local", 7, inner, here).local())?,
        };
        Ok(Self {
            bed,
            family,
            near,
            far: away,
            outside,
            private_endpoint,
            vm,
            near_udp,
            cluster_ips,
            balanced,
            pods: bed.node().pods(),
            far_pod: far,
            _others: (tcp, udp, caches),
        })
    }

    /// Stops the servers and removes the services and the ingress pod; the DNS cache's link and rules stay.
    ///
    /// # Errors
    /// When a rule or the pod cannot be removed.
    pub fn strike(self) -> Result<()> {
        let (inner, outer) = (&self.cluster_ips, &self.balanced);
        let services = [
            &inner.near,
            &inner.far,
            &inner.udp,
            &inner.own,
            &inner.outside,
            &inner.api_server,
            &outer.near,
            &outer.far,
            &outer.local,
            &outer.elsewhere,
            &outer.plain,
            &outer.internal,
            &outer.internal_local,
        ];
        for service in services.into_iter().chain(&outer.ingress) {
            self.bed.remove_service(&service.namespace, &service.name)?;
        }
        if self.bed.node().pod(INGRESS).is_some() {
            self.bed.delete_pod(INGRESS)?;
        }
        Ok(())
    }

    /// An address of the plan in the stage's family.
    pub(super) fn of(&self, addresses: Addresses) -> IpAddr {
        addresses
            .of(self.family)
            .expect("the stage was set in a family that the plan has")
    }
}

/// Whether Azure's platform is around the node.
pub(super) fn has_azure(bed: &Testbed) -> bool {
    bed.plan().flavour != Flavour::Kind
}

fn suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "-6",
    }
}

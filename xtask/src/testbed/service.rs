//! A *service* as kube-proxy sees one port of it: addresses that clients dial, and endpoints behind them.
//!
//! Chain names are derived here, by the same hashes as kube-proxy's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::hash::chain_suffix;
use super::plan::Family;

/// Transport protocol of a service port or rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any endpoint may serve; the client's address is lost.
    Cluster,
    /// Only the node's own endpoints serve; the client's address is kept.
    Local,
}

/// Where a service sends its traffic.
pub type Endpoint = SocketAddr;

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port_name: String,
    pub(super) transport: Transport,
    pub(super) family: Family,
    pub(super) cluster_ip: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
    pub(super) frontends: Vec<IpAddr>,
    pub(super) policy: TrafficPolicy,
    pub(super) source_ranges: Vec<IpNet>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) floating_ip: bool,
}

impl Service {
    /// A ClusterIP service over TCP and IPv4. The testbed gives it an address unless [`Self::at`] does.
    #[must_use]
    pub fn cluster_ip(namespace: &str, name: &str, port: u16) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port_name: String::new(),
            transport: Transport::Tcp,
            family: Family::V4,
            cluster_ip: None,
            port,
            node_port: None,
            frontends: Vec::new(),
            policy: TrafficPolicy::Cluster,
            source_ranges: Vec::new(),
            endpoints: Vec::new(),
            floating_ip: true,
        }
    }

    /// A service with a port on every node.
    #[must_use]
    pub fn node_port(namespace: &str, name: &str, port: u16, node_port: u16) -> Self {
        Self {
            node_port: Some(node_port),
            ..Self::cluster_ip(namespace, name, port)
        }
    }

    /// A service with a load balancer's frontend address (and a node port, as all of them have).
    #[must_use]
    pub fn load_balancer(
        namespace: &str,
        name: &str,
        port: u16,
        node_port: u16,
        frontend: impl Into<IpAddr>,
    ) -> Self {
        let frontend = frontend.into();
        Self {
            frontends: vec![frontend],
            family: Family::of(frontend),
            ..Self::node_port(namespace, name, port, node_port)
        }
    }

    /// Names the port, which is part of what the chain names are hashed from.
    #[must_use]
    pub fn port_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.port_name);
        self
    }

    /// Over UDP.
    #[must_use]
    pub fn udp(mut self) -> Self {
        self.transport = Transport::Udp;
        self
    }

    /// Over SCTP.
    #[must_use]
    pub fn sctp(mut self) -> Self {
        self.transport = Transport::Sctp;
        self
    }

    /// In IPv6.
    #[must_use]
    pub fn v6(mut self) -> Self {
        self.family = Family::V6;
        self
    }

    /// With this ClusterIP.
    #[must_use]
    pub fn at(mut self, cluster_ip: impl Into<IpAddr>) -> Self {
        let cluster_ip = cluster_ip.into();
        self.family = Family::of(cluster_ip);
        self.cluster_ip = Some(cluster_ip);
        self
    }

    /// With `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn local(mut self) -> Self {
        self.policy = TrafficPolicy::Local;
        self
    }

    /// With the annotation `azure-disable-load-balancer-floating-ip`: the load balancer, in the fabric, translates
    /// its frontend to the node's address and node port, and the node sees nothing else.
    #[must_use]
    pub fn without_floating_ip(mut self) -> Self {
        self.floating_ip = false;
        self
    }

    /// With `loadBalancerSourceRanges`.
    #[must_use]
    pub fn source_ranges(mut self, ranges: impl IntoIterator<Item = IpNet>) -> Self {
        self.source_ranges.extend(ranges);
        self
    }

    /// With these endpoints; none makes it a service that rejects.
    #[must_use]
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        self.endpoints.extend(endpoints);
        self
    }

    /// What clients in the cluster dial.
    ///
    /// # Panics
    /// Before the testbed has given it a ClusterIP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(
            self.cluster_ip
                .expect("Testbed::add_service gives the address"),
            self.port,
        )
    }

    /// What clients of the load balancer dial.
    ///
    /// # Panics
    /// When it is no load balancer's.
    #[must_use]
    pub fn frontend(&self) -> SocketAddr {
        SocketAddr::new(
            *self
                .frontends
                .first()
                .expect("made by Service::load_balancer"),
            self.port,
        )
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A load balancer's frontends; none of another service.
    #[must_use]
    pub fn frontends(&self) -> &[IpAddr] {
        &self.frontends
    }

    /// Where it sends its traffic.
    #[must_use]
    pub fn backends(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// `namespace/name:port`, as kube-proxy names a service port.
    #[must_use]
    pub fn port_id(&self) -> String {
        let Self {
            namespace,
            name,
            port_name,
            ..
        } = self;
        if port_name.is_empty() {
            format!("{namespace}/{name}")
        } else {
            format!("{namespace}/{name}:{port_name}")
        }
    }

    /// The chain that picks among all endpoints.
    #[must_use]
    pub fn svc_chain(&self) -> String {
        self.chain("KUBE-SVC-")
    }

    /// The chain that picks among the node's own endpoints.
    #[must_use]
    pub fn svl_chain(&self) -> String {
        self.chain("KUBE-SVL-")
    }

    /// The chain that traffic from outside enters by.
    #[must_use]
    pub fn ext_chain(&self) -> String {
        self.chain("KUBE-EXT-")
    }

    /// The chain that judges the client by `loadBalancerSourceRanges`.
    #[must_use]
    pub fn fw_chain(&self) -> String {
        self.chain("KUBE-FW-")
    }

    /// The chain of one endpoint.
    #[must_use]
    pub fn sep_chain(&self, endpoint: Endpoint) -> String {
        format!(
            "KUBE-SEP-{}",
            chain_suffix(&format!("{}{}{endpoint}", self.port_id(), self.transport))
        )
    }

    fn chain(&self, prefix: &str) -> String {
        format!(
            "{prefix}{}",
            chain_suffix(&format!("{}{}", self.port_id(), self.transport))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_of_the_api_server_is_the_well_known_one() {
        let service = Service::cluster_ip("default", "kubernetes", 443).port_name("https");
        assert_eq!(service.svc_chain(), "KUBE-SVC-NPX46M4PTMTKRN6Y");
        assert_eq!(service.port_id(), "default/kubernetes:https");
    }

    #[test]
    fn family_follows_the_address_given() {
        assert_eq!(
            Service::cluster_ip("a", "b", 1)
                .at("fd00:10::a".parse::<IpAddr>().unwrap())
                .family,
            Family::V6
        );
    }
}

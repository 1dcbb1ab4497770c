//! A *testbed* is one whole emulated cluster: two nodes with pods, the fabric between them, and the world outside.
//!
//! ```no_run
//! use xtask::testbed::traffic::{Tcp, TcpServer};
//! use xtask::testbed::{Service, Testbed};
//!
//! # fn main() -> anyhow::Result<()> {
//! let bed = Testbed::kubenet().dual_stack(true).pods(3).build()?;
//! let (frontend, web) = (bed.pod(0), bed.pod(1));
//! let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
//! let service = bed.add_service(Service::cluster_ip("shop", "web", 80).endpoints([server.address()]))?;
//! let report = Tcp::to(service.address()).connections(10).bytes(1_000).run(frontend.netns())?;
//! assert_eq!((report.connections, server.connections()), (10, 10));
//! # Ok(())
//! # }
//! ```

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::builder::Builder;
use super::cni::HostPort;
use super::counters::{self, LinkCounters};
use super::enforce::{Isolation, Side};
use super::fabric::{self, Fabric};
use super::lock;
use super::netns::Netns;
use super::node::Node;
use super::offload;
use super::plan::{Family, Flavour, Plan, nth};
use super::pod::Pod;
use super::policy::PolicyRule;
use super::record::Record;
use super::service::Service;

/// The Kubernetes namespace of pods that are added without one.
pub const NAMESPACE: &str = "shop";

/// Whether this process may make namespaces.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// An emulated cluster. All methods take `&self`, so that pods come and go while other threads make traffic.
/// Dropping it removes everything that it made.
#[derive(Debug)]
pub struct Testbed {
    pub(super) plan: Plan,
    // Fields are dropped in this order: namespaces first, what is left by the record last.
    pub(super) nodes: [Node; 2],
    pub(super) fabric: Fabric,
    pub(super) offloads: bool,
    pub(super) services: Mutex<Vec<Service>>,
    /// Services that are only there to be many.
    pub(super) fillers: Mutex<Vec<Service>>,
    /// Whether the fabric translates frontends.
    pub(super) balancer: Mutex<bool>,
    pub(super) policies: Mutex<Vec<PolicyRule>>,
    pub(super) record: Arc<Record>,
}

impl Testbed {
    /// A cluster of this flavour.
    #[must_use]
    pub fn of(flavour: Flavour) -> Builder {
        Builder::new(flavour)
    }

    /// AKS with kubenet.
    #[must_use]
    pub fn kubenet() -> Builder {
        Self::of(Flavour::Kubenet)
    }

    /// kind.
    #[must_use]
    pub fn kind() -> Builder {
        Self::of(Flavour::Kind)
    }

    /// AKS with Azure CNI Overlay.
    #[must_use]
    pub fn azure_overlay() -> Builder {
        Self::of(Flavour::AzureOverlay)
    }

    /// AKS with Azure CNI node subnet.
    #[must_use]
    pub fn azure_node_subnet() -> Builder {
        Self::of(Flavour::AzureNodeSubnet)
    }

    /// What all names of this testbed begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.record.prefix()
    }

    /// The cluster on paper.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The node under test.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.nodes[0]
    }

    /// The second node.
    #[must_use]
    pub fn node2(&self) -> &Node {
        &self.nodes[1]
    }

    /// The `n`th pod of the node under test.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn pod(&self, n: usize) -> Arc<Pod> {
        Arc::clone(&self.nodes[0].pods()[n])
    }

    /// The `n`th pod of the second node.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn remote_pod(&self, n: usize) -> Arc<Pod> {
        Arc::clone(&self.nodes[1].pods()[n])
    }

    /// The router between all hosts.
    #[must_use]
    pub fn fabric(&self) -> &Netns {
        &self.fabric.router
    }

    /// The fabric's interface to a host: `node`, `node2`, `vm`, `azure` or `outside`.
    #[must_use]
    pub fn fabric_link(&self, host: &str) -> String {
        fabric::link(host)
    }

    /// A VNet host that is no node.
    #[must_use]
    pub fn vm(&self) -> &Netns {
        &self.fabric.vm
    }

    /// Azure's platform services.
    #[must_use]
    pub fn azure(&self) -> &Netns {
        &self.fabric.azure
    }

    /// An internet host.
    #[must_use]
    pub fn outside(&self) -> &Netns {
        &self.fabric.outside
    }

    /// The internet host's IPv4 address.
    #[must_use]
    pub fn outside_ip(&self) -> IpAddr {
        self.plan.outside.v4.into()
    }

    /// The VNet host's IPv4 address.
    #[must_use]
    pub fn vm_ip(&self) -> IpAddr {
        self.plan.vm.v4.into()
    }

    /// The load balancer's IPv4 frontend.
    #[must_use]
    pub fn frontend_ip(&self) -> IpAddr {
        self.plan.load_balancer.v4.into()
    }

    /// Every namespace by its role, for a look from outside.
    #[must_use]
    pub fn namespaces(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = [
            ("node", self.nodes[0].netns()),
            ("node2", self.nodes[1].netns()),
            ("fabric", &self.fabric.router),
            ("vm", &self.fabric.vm),
            ("azure", &self.fabric.azure),
            ("outside", &self.fabric.outside),
        ]
        .map(|(role, netns)| (role.to_owned(), netns.name().to_owned()))
        .into();
        for pod in self.nodes.iter().flat_map(Node::pods) {
            all.push((
                format!("{}/{}", pod.namespace(), pod.name()),
                pod.netns().name().to_owned(),
            ));
        }
        all
    }

    /// Adds a pod to the node under test.
    ///
    /// # Errors
    /// When it cannot be wired.
    pub fn add_pod(&self, name: &str) -> Result<Arc<Pod>> {
        self.add_pod_to(0, name, &[])
    }

    /// Adds a pod to the second node.
    ///
    /// # Errors
    /// When it cannot be wired.
    pub fn add_remote_pod(&self, name: &str) -> Result<Arc<Pod>> {
        self.add_pod_to(1, name, &[])
    }

    /// Adds a pod with host ports to the node under test.
    ///
    /// # Errors
    /// When it cannot be wired.
    pub fn add_pod_with_ports(&self, name: &str, ports: &[HostPort]) -> Result<Arc<Pod>> {
        self.add_pod_to(0, name, ports)
    }

    fn add_pod_to(&self, node: usize, name: &str, ports: &[HostPort]) -> Result<Arc<Pod>> {
        let node = &self.nodes[node];
        ensure!(
            node.pod(name).is_none(),
            "{} has a pod {name} already",
            node.name()
        );
        let pod = node
            .add_pod(&self.record, NAMESPACE, name, ports)
            .with_context(|| format!("cannot add pod {name}"))?;
        if !self.offloads {
            offload::set(pod.netns(), "eth0", false)?;
            offload::set(node.netns(), pod.veth(), false)?;
        }
        Ok(pod)
    }

    /// Deletes a pod of the node under test. Its veth is gone when this returns.
    ///
    /// # Errors
    /// When there is no such pod, or it cannot be unwired.
    pub fn delete_pod(&self, name: &str) -> Result<()> {
        self.nodes[0].delete_pod(name)
    }

    /// Adds a service on both nodes, with a ClusterIP if it has none yet, and routes its frontends to the node that
    /// the load balancer picks.
    ///
    /// # Errors
    /// When its rules cannot be written.
    pub fn add_service(&self, mut service: Service) -> Result<Service> {
        let mut services = self
            .services
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if service.cluster_ip.is_none() {
            let taken = u16::try_from(services.len())?;
            service.cluster_ip = self.plan.cluster_ip(service.family, taken);
            ensure!(
                service.cluster_ip.is_some(),
                "the cluster has no such family, or no free ClusterIP"
            );
        }
        services.push(service.clone());
        self.sync_services(&services)?;
        Ok(service)
    }

    /// So many ClusterIP services more on the node under test, with an endpoint each that nobody dials, in place of
    /// those that earlier calls made; all in one transaction. They stand ahead of all other services.
    ///
    /// # Errors
    /// When there are not so many addresses, or the rules cannot be written.
    pub fn filler_services(&self, count: u16) -> Result<()> {
        let services = lock(&self.services);
        let endpoints = self
            .plan
            .pods
            .of(Family::V4)
            .context("every cluster has IPv4")?;
        let filler = |n: u16| {
            // Beyond the addresses that other services and pods get.
            let ip = self
                .plan
                .cluster_ip(Family::V4, 0x4000_u16.checked_add(n)?)?;
            let endpoint = nth(endpoints, 0x8000 + u32::from(n))?;
            let service = Service::cluster_ip("filler", &format!("svc-{n}"), 80).at(ip);
            Some(service.endpoints([(endpoint, 8080).into()]))
        };
        *lock(&self.fillers) = (0..count)
            .map(filler)
            .collect::<Option<_>>()
            .context("the cluster has not so many addresses")?;
        self.sync_services(&services)
    }

    fn sync_services(&self, services: &[Service]) -> Result<()> {
        let fillers = lock(&self.fillers);
        let all: Vec<Service> = fillers.iter().chain(services).cloned().collect();
        self.nodes[0].sync_services(&all)?;
        self.nodes[1].sync_services(services)?;
        self.fabric.translate(
            &mut lock(&self.balancer),
            services,
            self.plan.nodes[0].address,
        )
    }

    /// Replaces a service of the same namespace, name, port name and protocol, for example with other endpoints.
    ///
    /// # Errors
    /// When there is none, or its rules cannot be written.
    pub fn update_service(&self, service: &Service) -> Result<()> {
        let mut services = self
            .services
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let same = |other: &&mut Service| {
            other.port_id() == service.port_id() && other.transport == service.transport
        };
        let old = services
            .iter_mut()
            .find(same)
            .with_context(|| format!("no service {}", service.port_id()))?;
        old.clone_from(service);
        self.sync_services(&services)
    }

    /// Removes all services of this namespace and name.
    ///
    /// # Errors
    /// When the rules cannot be written.
    pub fn remove_service(&self, namespace: &str, name: &str) -> Result<()> {
        let mut services = self
            .services
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        services.retain(|service| {
            (service.namespace.as_str(), service.name.as_str()) != (namespace, name)
        });
        self.sync_services(&services)
    }

    /// Sends the load balancers' frontends to a node: 0 is the node under test, 1 the second one.
    ///
    /// # Errors
    /// When the route cannot be set.
    pub fn balance_to(&self, node: usize) -> Result<()> {
        let host = ["node", "node2"][node];
        for balancer in [self.plan.load_balancer, self.plan.internal_balancer] {
            let frontends = balancer.iter().zip(self.plan.nodes[node].address.iter());
            for (frontend, address) in frontends {
                self.fabric.route(&frontend.to_string(), host, address)?;
            }
        }
        Ok(())
    }

    /// Routes ClusterIPs of VNet hosts to the node under test, as a VNet route table could.
    ///
    /// # Errors
    /// When the route cannot be set.
    pub fn route_services_to_node(&self) -> Result<()> {
        for (range, address) in self
            .plan
            .services
            .iter()
            .zip(self.plan.nodes[0].address.iter())
        {
            self.fabric.route(&range.to_string(), "node", address)?;
        }
        Ok(())
    }

    /// Adds a policy rule on both nodes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_policy(&self, rule: PolicyRule) -> Result<()> {
        self.change_policies(|rules| rules.push(rule))
    }

    /// Removes the policy rules of this name on both nodes.
    ///
    /// # Errors
    /// When the rules cannot be written.
    pub fn remove_policy(&self, name: &str) -> Result<()> {
        self.change_policies(|rules| rules.retain(|rule| rule.name() != name))
    }

    fn change_policies(&self, change: impl FnOnce(&mut Vec<PolicyRule>)) -> Result<()> {
        let mut rules = self
            .policies
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut rules);
        self.nodes
            .iter()
            .try_for_each(|node| node.sync_policies(&rules))
    }

    /// Has the policy engine of both nodes enforce these policies in place of those before. All counters of denied
    /// packets begin anew. Not to be mixed with [`Self::add_policy`] of Azure NPM's rules.
    ///
    /// # Errors
    /// When the testbed was built without an engine, or the rules cannot be written.
    pub fn enforce(&self, isolations: &[Isolation]) -> Result<()> {
        self.nodes
            .iter()
            .try_for_each(|node| node.enforce(isolations))
    }

    /// Has the policy engine of both nodes enforce nothing any more, as when it is gone or knows of no policy.
    ///
    /// # Errors
    /// When the rules cannot be written.
    pub fn stop_enforcing(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::stop_enforcing)
    }

    /// The packets that the node under test has denied on a side since [`Self::enforce`]: of pods that this policy
    /// (`namespace/policy`) selects. (Of several policies that select one pod see [`super::enforce::Engaged::denied`].)
    ///
    /// # Errors
    /// When nothing is enforced, or the counters cannot be read.
    pub fn denied_packets(&self, policy: &str, side: Side) -> Result<u64> {
        self.node().denied_packets(Some(policy), side)
    }

    /// Switches the offloads of every interface: pods' both ends, uplinks' both ends, the fabric's.
    ///
    /// # Errors
    /// When an interface refuses.
    pub fn set_offloads(&self, on: bool) -> Result<()> {
        for netns in self.all_netns() {
            for link in counters::links(netns)?
                .iter()
                .filter(|link| link.name != "lo" && link.name != "cbr0")
            {
                offload::set(netns, &link.name, on)?;
            }
        }
        for pod in self.nodes.iter().flat_map(Node::pods) {
            offload::set(pod.netns(), "eth0", on)?;
        }
        Ok(())
    }

    fn all_netns(&self) -> [&Netns; 6] {
        let Fabric {
            router,
            vm,
            azure,
            outside,
        } = &self.fabric;
        [
            self.nodes[0].netns(),
            self.nodes[1].netns(),
            router,
            vm,
            azure,
            outside,
        ]
    }

    /// Waits until no interface of any host moves a packet for a while, so that counters may be compared.
    ///
    /// # Errors
    /// When traffic goes on for more than twenty seconds: a connection attempt that nobody answers any more does for some.
    pub fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let counters = || -> Result<Vec<Vec<LinkCounters>>> {
            self.all_netns().into_iter().map(counters::links).collect()
        };
        let mut before = counters()?;
        loop {
            std::thread::sleep(Duration::from_millis(30));
            let now = counters()?;
            if now == before {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "traffic goes on");
            before = now;
        }
    }

    /// Makes every neighbour that is known by now permanent, so that no ARP or neighbour discovery disturbs counts
    /// of packets. Warm the paths up first.
    ///
    /// # Errors
    /// When the neighbours cannot be read or set.
    pub fn pin_neighbours(&self) -> Result<()> {
        self.all_netns().into_iter().try_for_each(pin_neighbours)?;
        self.nodes
            .iter()
            .flat_map(Node::pods)
            .try_for_each(|pod| pin_neighbours(pod.netns()))
    }

    /// The families the cluster has, IPv4 first.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        self.plan.families().collect()
    }
}

fn pin_neighbours(netns: &Netns) -> Result<()> {
    let neighbours: Vec<serde_json::Value> =
        serde_json::from_str(&netns.output("ip", ["-j", "neigh", "show"])?)?;
    let lines: Vec<String> = neighbours
        .iter()
        .filter_map(|entry| {
            let [ip, mac, device] = ["dst", "lladdr", "dev"].map(|key| entry[key].as_str());
            Some(format!(
                "neigh replace {} lladdr {} dev {} nud permanent",
                ip?, mac?, device?
            ))
        })
        .collect();
    if lines.is_empty() {
        Ok(())
    } else {
        netns.ip(lines)
    }
}

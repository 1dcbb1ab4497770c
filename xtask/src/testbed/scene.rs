//! A *scene* is one kind of traffic as a node sees it, with what the agent has to say of it: class, NAT and scope.
//!
//! The scenes are the rows of the truth table of a node's packet paths, in its order. The demo plays them for people;
//! tests play them and hold the agent, and the programs by themselves, to them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use super::netns::Netns;
use super::plan::{Family, Flavour, IMDS, WIRESERVER};
use super::stage::{
    self, HEALTH_CHECK_NODE_PORT, HOST_PORT, INGRESS, KUBELET, SHARED_PROBE, Stage,
};
use super::traffic::{Tcp, Udp, connect};

/// How long a client waits for an answer that never comes: less than until the first segment is sent again.
const UNANSWERED: Duration = Duration::from_millis(20);

/// Where the node's own hooks see a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It crosses the node: in by one interface, out by another.
    Crossing,
    /// It ends at the node itself.
    Ending,
    /// The node itself opens it: what was dialled is gone when its packets leave.
    Starting,
    /// It ends at the node itself, past connection tracking.
    Untracked,
    /// Nothing of it leaves the node: a rule drops it.
    Dropped,
}

/// What only somebody else can tell the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// That an address is a frontend of the load balancer.
    LoadBalancer,
    /// That an address is the API server's.
    ApiServer,
    /// What a connection of the node's own was before NAT: connection tracking's to tell.
    Conntrack,
}

/// One kind of traffic.
pub struct Scene<'a> {
    /// What it is, in words.
    pub name: &'static str,
    /// Who connects.
    pub from: String,
    /// What it dials.
    pub to: String,
    /// The agent's label `class`.
    pub class: &'static str,
    /// The agent's label `nat`.
    pub nat: &'static str,
    /// The agent's label `scope`.
    pub scope: &'static str,
    /// The agent's label `protocol`.
    pub protocol: &'static str,
    /// Where the node's hooks see it.
    pub seen: Seen,
    /// What the agent has to be told for that, beyond the ranges of its address plan.
    pub needs: Option<Needs>,
    play: Box<dyn Fn(u32, usize) -> Result<()> + Send + Sync + 'a>,
}

impl fmt::Debug for Scene<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Scene<'_> {
    /// Plays it: so many connections, so many bytes each way in each (one datagram, with UDP).
    ///
    /// # Errors
    /// When one fails.
    pub fn play(&self, connections: u32, bytes: usize) -> Result<()> {
        (self.play)(connections, bytes)
    }

    fn seen(self, seen: Seen) -> Self {
        Self { seen, ..self }
    }

    fn needs(self, needs: Needs) -> Self {
        Self {
            needs: Some(needs),
            ..self
        }
    }
}

/// Who connects: by name, in which namespace, from which address if not from any.
struct Client<'a> {
    name: &'static str,
    netns: &'a Netns,
    source: Option<IpAddr>,
}

fn scene<'a>(
    name: &'static str,
    from: &Client<'_>,
    to: impl Into<SocketAddr>,
    [class, nat, scope]: [&'static str; 3],
    play: impl Fn(SocketAddr, u32, usize) -> Result<()> + Send + Sync + 'a,
) -> Scene<'a> {
    let to = to.into();
    Scene {
        name,
        from: from.name.to_owned(),
        to: to.to_string(),
        class,
        nat,
        scope,
        protocol: "tcp",
        seen: Seen::Crossing,
        needs: None,
        play: Box::new(move |connections, bytes| play(to, connections, bytes)),
    }
}

fn tcp<'a>(
    name: &'static str,
    client: &Client<'a>,
    to: impl Into<SocketAddr>,
    labels: [&'static str; 3],
) -> Scene<'a> {
    let (netns, source) = (client.netns, client.source);
    scene(name, client, to, labels, move |to, connections, bytes| {
        let mut tcp = Tcp::to(to).connections(connections).bytes(bytes);
        if let Some(ip) = source {
            tcp = tcp.from(ip, 0);
        }
        tcp.run(netns).map(drop)
    })
}

fn udp<'a>(
    name: &'static str,
    client: &Client<'a>,
    to: impl Into<SocketAddr>,
    labels: [&'static str; 3],
) -> Scene<'a> {
    let netns = client.netns;
    let mut scene = scene(name, client, to, labels, move |to, connections, _| {
        // A socket of its own for each: a connection is what has ports of its own.
        (0..connections).try_for_each(|_| Udp::to(to).datagrams(1).run(netns).map(drop))
    });
    scene.protocol = "udp";
    scene
}

/// Attempts that nothing answers.
fn attempts<'a>(
    name: &'static str,
    client: &Client<'a>,
    to: impl Into<SocketAddr>,
    labels: [&'static str; 3],
) -> Scene<'a> {
    let netns = client.netns;
    scene(name, client, to, labels, move |to, connections, _| {
        (0..connections).try_for_each(|_| connect(netns, to, UNANSWERED).map(drop))
    })
    .seen(Seen::Dropped)
}

impl Stage<'_> {
    /// Every scene of the flavour and family, in the order of the truth table.
    #[must_use]
    pub fn scenes(&self) -> Vec<Scene<'_>> {
        let mut scenes = self.in_the_cluster();
        scenes.extend(self.to_the_outside());
        scenes.extend(self.from_the_outside());
        scenes.extend(self.at_the_node());
        scenes
    }

    /// What this stage cannot play, and why.
    #[must_use]
    pub fn absent(&self) -> Vec<(&'static str, &'static str)> {
        let mut absent = vec![(
            "pod to pod with SNAT, egress without it",
            "the masquerade agent is right",
        )];
        if !stage::has_azure(self.bed) {
            absent.push((
                "metadata service, Azure DNS, wireserver",
                "no Azure around kind",
            ));
            absent.push(("probes of Azure's load balancer", "no Azure around kind"));
            absent.push(("AKS's LocalDNS", "no AKS around kind"));
        } else if self.family == Family::V6 {
            absent.push(("Azure's platform, LocalDNS", "IPv4 only"));
        }
        if self.balanced.ingress.is_none() {
            absent.push((
                "host port, ingress",
                "portmap needs kube-proxy's iptables chains",
            ));
        }
        absent
    }

    fn client(&self) -> Client<'_> {
        Client {
            name: "frontend",
            netns: self.pods[0].netns(),
            source: None,
        }
    }

    /// NAT towards addresses in the VNet that are no pods': none where pods have its addresses themselves.
    fn nat_in_vnet(&self) -> &'static str {
        match self.bed.plan().flavour {
            Flavour::AzureNodeSubnet => "none",
            _ => "snat",
        }
    }

    fn in_the_cluster(&self) -> Vec<Scene<'_>> {
        let (pod, services) = (self.client(), &self.cluster_ips);
        let far = Client {
            name: "web on node2",
            netns: self.far_pod.netns(),
            source: None,
        };
        let host = Client {
            name: "node",
            netns: self.bed.node().netns(),
            source: None,
        };
        // Where pods have the VNet's addresses the API server is not masqueraded to, and to kube-proxy the node's own
        // address is a pod's.
        let in_vnet = match self.nat_in_vnet() {
            "none" => "dnat",
            _ => "both",
        };
        vec![
            tcp(
                "pod to pod, same node",
                &pod,
                self.near.address(),
                ["pod_to_pod", "none", "same_node"],
            ),
            udp(
                "pod to pod, same node, UDP",
                &pod,
                self.near_udp.address(),
                ["pod_to_pod", "none", "same_node"],
            ),
            tcp(
                "pod to pod, another node",
                &pod,
                self.far.address(),
                ["pod_to_pod", "none", "cross_node"],
            ),
            tcp(
                "pod of another node to pod",
                &far,
                self.near.address(),
                ["pod_to_pod", "none", "cross_node"],
            ),
            tcp(
                "service, endpoint here",
                &pod,
                services.near.address(),
                ["pod_to_service", "dnat", "same_node"],
            ),
            tcp(
                "service, endpoint elsewhere",
                &pod,
                services.far.address(),
                ["pod_to_service", "dnat", "cross_node"],
            ),
            udp(
                "service, UDP",
                &pod,
                services.udp.address(),
                ["pod_to_service", "dnat", "same_node"],
            ),
            tcp(
                "service, hairpin",
                &pod,
                services.own.address(),
                ["pod_to_service", "both", "same_node"],
            ),
            tcp(
                "service, endpoint outside",
                &pod,
                services.outside.address(),
                ["pod_to_service", "both", "external"],
            ),
            tcp(
                "private API server",
                &pod,
                services.api_server.address(),
                ["api_server", in_vnet, "vnet"],
            )
            .needs(Needs::ApiServer),
            tcp(
                "host to service",
                &host,
                services.near.address(),
                ["node_to_service", in_vnet, "same_node"],
            )
            .seen(Seen::Starting)
            .needs(Needs::Conntrack),
        ]
    }

    fn to_the_outside(&self) -> Vec<Scene<'_>> {
        let (pod, in_vnet) = (self.client(), self.nat_in_vnet());
        let mut scenes = vec![
            tcp(
                "egress to the internet",
                &pod,
                self.outside.address(),
                ["pod_to_external", "snat", "external"],
            ),
            tcp(
                "pod to VNet host",
                &pod,
                self.vm.address(),
                ["pod_to_external", in_vnet, "vnet"],
            ),
            tcp(
                "pod to private endpoint",
                &pod,
                self.private_endpoint.address(),
                ["private_endpoint", in_vnet, "vnet"],
            ),
        ];
        if self.family == Family::V4 && stage::has_azure(self.bed) {
            let (imds, wire) = (IpAddr::from(IMDS), IpAddr::from(WIRESERVER));
            scenes.extend([
                tcp(
                    "pod to metadata service",
                    &pod,
                    (imds, 80),
                    ["azure_platform", "snat", "vnet"],
                ),
                udp(
                    "pod to Azure DNS",
                    &pod,
                    (wire, 53),
                    ["azure_platform", "snat", "vnet"],
                ),
                attempts(
                    "wireserver, blocked",
                    &pod,
                    (wire, 80),
                    ["azure_platform", "none", "vnet"],
                ),
                attempts(
                    "wireserver 32526, blocked",
                    &pod,
                    (wire, 32_526),
                    ["azure_platform", "none", "vnet"],
                ),
            ]);
        }
        scenes
    }

    fn from_the_outside(&self) -> Vec<Scene<'_>> {
        let (pod, services, plan) = (self.client(), &self.balanced, self.bed.plan());
        let client = Client {
            name: "internet",
            netns: self.bed.outside(),
            source: None,
        };
        let vm = Client {
            name: "vnet host",
            netns: self.bed.vm(),
            source: Some(self.of(plan.vm)),
        };
        let gateway = Client {
            name: "app gateway",
            netns: self.bed.vm(),
            source: Some(self.of(plan.app_gateway)),
        };
        let node_port = |service: &super::Service| {
            let port = service.node_port.unwrap_or_default();
            SocketAddr::new(self.of(self.bed.node().address()), port)
        };
        let mut by_node2 = tcp(
            "second hop of another node",
            &client,
            services.near.frontend(),
            ["node_to_pod", "none", "cross_node"],
        );
        let play = by_node2.play;
        by_node2.play = Box::new(move |connections, bytes| {
            self.bed.balance_to(1)?;
            let played = play(connections, bytes);
            self.bed.balance_to(0)?;
            played
        });
        "node2".clone_into(&mut by_node2.from);
        by_node2.to = self.near.address().to_string();
        let mut scenes = vec![
            tcp(
                "load balancer, endpoint here",
                &client,
                services.near.frontend(),
                ["load_balancer", "both", "external"],
            ),
            tcp(
                "load balancer, second hop",
                &client,
                services.far.frontend(),
                ["load_balancer", "both", "external"],
            ),
            by_node2,
            tcp(
                "load balancer, Local",
                &client,
                services.local.frontend(),
                ["load_balancer", "dnat", "external"],
            ),
            attempts(
                "load balancer, Local, none here",
                &client,
                services.elsewhere.frontend(),
                ["load_balancer", "none", "external"],
            )
            .needs(Needs::LoadBalancer),
            tcp(
                "load balancer, no floating IP",
                &client,
                services.plain.frontend(),
                ["node_port", "both", "external"],
            ),
            tcp(
                "internal load balancer",
                &vm,
                services.internal.frontend(),
                ["load_balancer", "both", "vnet"],
            ),
            tcp(
                "internal load balancer, Local",
                &vm,
                services.internal_local.frontend(),
                ["load_balancer", "dnat", "vnet"],
            ),
            tcp(
                "pod to own balancer",
                &pod,
                services.near.frontend(),
                ["load_balancer", "both", "same_node"],
            ),
            tcp(
                "pod to own balancer, Local",
                &pod,
                services.local.frontend(),
                ["load_balancer", "dnat", "same_node"],
            ),
            tcp(
                "pod to own balancer, none here",
                &pod,
                services.elsewhere.frontend(),
                ["load_balancer", "dnat", "cross_node"],
            ),
            tcp(
                "node port",
                &client,
                node_port(&services.near),
                ["node_port", "both", "external"],
            ),
            tcp(
                "node port, Local",
                &client,
                node_port(&services.local),
                ["node_port", "dnat", "external"],
            ),
            tcp(
                "Application Gateway to pod",
                &gateway,
                self.near.address(),
                ["external_to_pod", "none", "vnet"],
            ),
        ];
        let pod = self.pods.iter().find(|pod| pod.name() == INGRESS);
        if let (Some(service), Some(pod)) = (&services.ingress, pod) {
            let ingress = Client {
                name: "ingress",
                netns: pod.netns(),
                source: None,
            };
            let host_port = SocketAddr::new(self.of(self.bed.node().address()), HOST_PORT);
            scenes.extend([
                tcp(
                    "host port",
                    &client,
                    host_port,
                    ["node_port", "dnat", "external"],
                ),
                tcp(
                    "ingress, client's flow",
                    &client,
                    service.frontend(),
                    ["load_balancer", "both", "external"],
                ),
                tcp(
                    "ingress, its own flow",
                    &ingress,
                    self.near.address(),
                    ["pod_to_pod", "none", "same_node"],
                ),
            ]);
        }
        scenes
    }

    fn at_the_node(&self) -> Vec<Scene<'_>> {
        let (pod, bed) = (self.client(), self.bed);
        let (here, there) = (
            self.of(bed.node().address()),
            self.of(bed.node2().address()),
        );
        let host = |name, netns| Client {
            name,
            netns,
            source: None,
        };
        let (node, node2) = (
            host("node", bed.node().netns()),
            host("node2", bed.node2().netns()),
        );
        let mut scenes = vec![
            tcp(
                "kubelet's probe",
                &node,
                self.near.address(),
                ["node_to_pod", "none", "same_node"],
            )
            .seen(Seen::Starting),
            tcp(
                "another node to pod",
                &node2,
                self.near.address(),
                ["node_to_pod", "none", "cross_node"],
            ),
            tcp(
                "pod to node",
                &pod,
                (here, KUBELET),
                ["pod_to_node", "none", "same_node"],
            )
            .seen(Seen::Ending),
            tcp(
                "pod to another node",
                &pod,
                (there, KUBELET),
                ["pod_to_node", self.nat_in_vnet(), "cross_node"],
            ),
        ];
        if self.family == Family::V4 {
            let cache = |name, last, at: [u8; 2]| {
                let to = SocketAddr::from(([169, 254, at[0], at[1]], 53));
                let labels = ["local_dns", "none", "same_node"];
                let scene = if last {
                    tcp(name, &pod, to, labels)
                } else {
                    udp(name, &pod, to, labels)
                };
                scene.seen(Seen::Untracked)
            };
            scenes.push(cache("NodeLocal DNS cache", false, [20, 10]));
            if stage::has_azure(bed) {
                let probe = |name, port| {
                    let azure = Client {
                        name: "168.63.129.16",
                        netns: bed.azure(),
                        source: Some(WIRESERVER.into()),
                    };
                    tcp(
                        name,
                        &azure,
                        (here, port),
                        ["lb_health_probe", "none", "vnet"],
                    )
                };
                let port = self.balanced.near.node_port.unwrap_or_default();
                scenes.extend([
                    cache("LocalDNS", false, [10, 11]),
                    cache("LocalDNS over TCP", true, [10, 11]),
                    Scene {
                        nat: "both",
                        ..probe("probe of a node port", port)
                    },
                    probe("probe of a health check port", HEALTH_CHECK_NODE_PORT)
                        .seen(Seen::Ending),
                    probe("probe in shared mode", SHARED_PROBE).seen(Seen::Ending),
                ]);
            }
        }
        scenes
    }
}

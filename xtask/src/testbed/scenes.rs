//! All *scenes* of a stage, in the order of the truth table of a node's packet paths.

use std::net::{IpAddr, SocketAddr};

use super::plan::{Family, Flavour, IMDS, WIRESERVER};
use super::scene::{Client, Scene, Seen, attempts, tcp, udp};
use super::service::Service;
use super::stage::{
    self, HEALTH_CHECK_NODE_PORT, HOST_PORT, INGRESS, KUBELET, SHARED_PROBE, Stage,
};

impl Stage<'_> {
    /// Every scene of the flavour and family, in the order of the truth table.
    #[must_use]
    pub fn scenes(&self) -> Vec<Scene<'_>> {
        let mut scenes = self.in_the_cluster();
        scenes.extend(self.to_the_outside());
        scenes.extend(self.by_a_frontend());
        scenes.extend(self.by_an_own_address());
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
        Client::of("frontend", self.pods[0].netns())
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
        let far = Client::of("web on node2", self.far_pod.netns());
        let host = Client::of("node", self.bed.node().netns());
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
            ),
            tcp(
                "host to service",
                &host,
                services.near.address(),
                ["node_to_service", in_vnet, "same_node"],
            )
            .seen(Seen::Starting),
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

    fn by_a_frontend(&self) -> Vec<Scene<'_>> {
        let (pod, services, plan) = (self.client(), &self.balanced, self.bed.plan());
        let client = Client::of("internet", self.bed.outside());
        let vm = Client::at("vnet host", self.bed.vm(), self.of(plan.vm));
        let mut by_node2 = tcp(
            "second hop of another node",
            &client,
            services.near.frontend(),
            ["node_to_pod", "none", "cross_node"],
        );
        let as_here = by_node2.play;
        by_node2.play = Box::new(move |connections, bytes| {
            self.bed.balance_to(1)?;
            let played = as_here(connections, bytes);
            self.bed.balance_to(0)?;
            played
        });
        "node2".clone_into(&mut by_node2.from);
        by_node2.to = self.near.address().to_string();
        vec![
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
            ),
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
        ]
    }

    fn by_an_own_address(&self) -> Vec<Scene<'_>> {
        let (bed, services) = (self.bed, &self.balanced);
        let client = Client::of("internet", bed.outside());
        let app_gateway = self.of(bed.plan().app_gateway);
        let gateway = Client::at("app gateway", bed.vm(), app_gateway);
        let here = self.of(bed.node().address());
        let node_port = |service: &Service| (here, service.node_port.unwrap_or_default());
        let mut scenes = vec![
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
            let ingress = Client::of("ingress", pod.netns());
            scenes.extend([
                tcp(
                    "host port",
                    &client,
                    (here, HOST_PORT),
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
        let (node, node2) = (
            Client::of("node", bed.node().netns()),
            Client::of("node2", bed.node2().netns()),
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
                    let azure = Client::at("168.63.129.16", bed.azure(), WIRESERVER);
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

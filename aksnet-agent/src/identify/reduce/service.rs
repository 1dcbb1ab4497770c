//! Services.

use super::{About, Context, Field, Metadata, Pairs, Raw, shape};
use crate::identify::object::{Kind, Object, Service, ServicePort};

shape! {
    RawService {
        metadata: Metadata = "metadata",
        spec: Spec = "spec",
        status: Status = "status",
    }
}

shape! {
    Spec {
        kind: String = "type",
        cluster: String = "clusterIP",
        clusters: Vec<Field<String>> = "clusterIPs",
        external: Vec<Field<String>> = "externalIPs",
        ports: Vec<Field<Port>> = "ports",
        policy: String = "externalTrafficPolicy",
        health_check: u64 = "healthCheckNodePort",
        source_ranges: Vec<Field<String>> = "loadBalancerSourceRanges",
        selector: Pairs = "selector",
    }
}

shape! {
    Port {
        name: String = "name",
        protocol: String = "protocol",
        number: u64 = "port",
        on_node: u64 = "nodePort",
    }
}

shape! {
    Status {
        load_balancer: LoadBalancer = "loadBalancer",
    }
}

shape! {
    LoadBalancer {
        ingress: Vec<Field<Ingress>> = "ingress",
    }
}

shape! {
    Ingress {
        address: String = "ip",
    }
}

impl Raw for RawService {
    fn metadata(&mut self) -> Field<Metadata> {
        std::mem::take(&mut self.metadata)
    }

    fn reduce(self, _: Kind, about: About, context: &mut Context<'_>) -> Object {
        let spec = self.spec.take("spec", context.odd).unwrap_or_default();
        let status = self.status.take("status", context.odd).unwrap_or_default();
        let raw_ports: Vec<Port> = spec.ports.items("spec.ports", context.odd).collect();
        let mut ports = Vec::new();
        for port in raw_ports {
            let protocol = context.protocol(port.protocol, "spec.ports.protocol");
            let number = context.port(port.number, "spec.ports.port");
            let name = context.text(port.name, "spec.ports.name");
            let node_port = context.number(port.on_node, "spec.ports.nodePort");
            if let (Some(protocol), Some(port)) = (protocol, number) {
                ports.push(ServicePort {
                    name,
                    protocol,
                    port,
                    node_port,
                });
            }
        }
        let mut clusters: Vec<String> = spec
            .clusters
            .items("spec.clusterIPs", context.odd)
            .collect();
        if clusters.is_empty() {
            clusters.extend(spec.cluster.take("spec.clusterIP", context.odd));
        }
        // "None" is a headless service; an ExternalName service has no address, or an empty one.
        let clusters = clusters
            .into_iter()
            .filter(|text| text != "None" && !text.is_empty());
        let cluster = context.addresses(clusters, "spec.clusterIPs");
        let external: Vec<String> = spec
            .external
            .items("spec.externalIPs", context.odd)
            .collect();
        let balancer = status
            .load_balancer
            .take("status.loadBalancer", context.odd)
            .unwrap_or_default();
        let name = "status.loadBalancer.ingress";
        let ingress: Vec<Ingress> = balancer.ingress.items(name, context.odd).collect();
        let has_ingress = !ingress.is_empty();
        // An ingress may have a host name instead.
        let frontends: Vec<String> = ingress
            .into_iter()
            .filter_map(|ingress| ingress.address.take(name, context.odd))
            .filter(|text| !text.is_empty())
            .collect();
        let name_of_ranges = "spec.loadBalancerSourceRanges";
        let ranges: Vec<String> = spec
            .source_ranges
            .items(name_of_ranges, context.odd)
            .collect();
        let source_ranges = context.ranges(&ranges, name_of_ranges);
        let policy = spec.policy.take("spec.externalTrafficPolicy", context.odd);
        let kind = spec.kind.take("spec.type", context.odd);
        Object::Service(Service {
            namespace: about.namespace,
            name: about.name,
            cluster,
            frontends: context.addresses(frontends.into_iter(), name),
            external: context.addresses(external.into_iter(), "spec.externalIPs"),
            ports,
            local: policy.as_deref() == Some("Local"),
            load_balancer: kind.as_deref() == Some("LoadBalancer"),
            has_ingress,
            health_check_port: context.number(spec.health_check, "spec.healthCheckNodePort"),
            source_ranges,
            selector: context.labels(spec.selector, "spec.selector"),
        })
    }
}

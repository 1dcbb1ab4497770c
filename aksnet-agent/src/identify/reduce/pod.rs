//! Pods.

use super::{About, Context, Field, Metadata, Raw, shape};
use crate::identify::{
    object::{Kind, Object, Pod},
    workload::{self, Owner},
};

shape! {
    RawPod {
        metadata: Metadata = "metadata",
        spec: Spec = "spec",
        status: Status = "status",
    }
}

shape! {
    Spec {
        node: String = "nodeName",
        host_network: bool = "hostNetwork",
        containers: Vec<Field<Container>> = "containers",
        init_containers: Vec<Field<Container>> = "initContainers",
    }
}

shape! {
    Container {
        restart: String = "restartPolicy",
        ports: Vec<Field<Port>> = "ports",
    }
}

shape! {
    Port {
        name: String = "name",
        number: u64 = "containerPort",
        on_host: u64 = "hostPort",
        protocol: String = "protocol",
    }
}

shape! {
    Status {
        phase: String = "phase",
        address: String = "podIP",
        addresses: Vec<Field<PodAddress>> = "podIPs",
    }
}

shape! {
    PodAddress {
        address: String = "ip",
    }
}

/// A pod's containers that keep running: sidecars are init containers that restart always (KEP-753).
fn containers(spec: &mut Spec, odd: &mut Vec<&'static str>) -> Vec<Container> {
    let inits = std::mem::take(&mut spec.init_containers);
    let sidecars = inits
        .items("spec.initContainers", odd)
        .filter(|init| matches!(&init.restart, Field::Good(restart) if restart == "Always"));
    let sidecars: Vec<Container> = sidecars.collect();
    let containers = std::mem::take(&mut spec.containers);
    let all = containers.items("spec.containers", odd);
    all.chain(sidecars).collect()
}

impl Raw for RawPod {
    fn metadata(&mut self) -> Field<Metadata> {
        std::mem::take(&mut self.metadata)
    }

    fn reduce(self, kind: Kind, about: About, context: &mut Context<'_>) -> Object {
        let mut spec = self.spec.take("spec", context.odd).unwrap_or_default();
        let status = self.status.take("status", context.odd).unwrap_or_default();
        let mut named_ports = Vec::new();
        let mut host_ports = Vec::new();
        for container in containers(&mut spec, context.odd) {
            let ports: Vec<Port> = container
                .ports
                .items("spec.containers.ports", context.odd)
                .collect();
            for port in ports {
                let protocol = context.protocol(port.protocol, "spec.containers.ports.protocol");
                let number = context.port(port.number, "spec.containers.ports.containerPort");
                let host = context.port(port.on_host, "spec.containers.ports.hostPort");
                let name = context.text(port.name, "spec.containers.ports.name");
                let Some(protocol) = protocol else { continue };
                if let Some(number) = number
                    && !name.is_empty()
                {
                    named_ports.push((name, protocol, number));
                }
                host_ports.extend(host.map(|host| (host, protocol)));
            }
        }
        let many = status.addresses.items("status.podIPs", context.odd);
        let mut texts: Vec<String> = many
            .filter_map(|one| one.address.take("status.podIPs", &mut Vec::new()))
            .collect();
        if texts.is_empty() {
            texts.extend(status.address.take("status.podIP", context.odd));
        }
        // A pod that waits for its network has the empty string.
        let texts = texts.into_iter().filter(|text| !text.is_empty());
        let addresses = context.addresses(texts, "status.podIPs");
        let phase = status.phase.take("status.phase", context.odd);
        let node = context.text(spec.node, "spec.nodeName");
        let owner = about.owner.as_ref();
        let owner = owner.map(|(kind, name)| Owner { kind, name });
        let workload = workload::by_owner(owner, &about.name, &node, &about.labels);
        let workload = context.symbols.text(&workload);
        let host_network = spec
            .host_network
            .take("spec.hostNetwork", context.odd)
            .unwrap_or_default();
        Object::Pod(Pod {
            kind,
            key_name: about.name.clone(),
            namespace: about.namespace,
            uid: about.uid,
            addresses,
            workload,
            node,
            host_network,
            finished: matches!(phase.as_deref(), Some("Succeeded" | "Failed")),
            labels: about.labels,
            named_ports,
            host_ports,
            name: about.name,
        })
    }
}

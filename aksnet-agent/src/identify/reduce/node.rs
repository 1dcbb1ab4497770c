//! Nodes and namespaces.

use super::{About, Context, Field, Metadata, Raw, shape};
use crate::identify::object::{Kind, Namespace, Node, Object, Text};

const ZONE: &str = "topology.kubernetes.io/zone";

shape! {
    RawNode {
        metadata: Metadata = "metadata",
        spec: Spec = "spec",
        status: Status = "status",
    }
}

shape! {
    Spec {
        pod_cidr: String = "podCIDR",
        pod_cidrs: Vec<Field<String>> = "podCIDRs",
    }
}

shape! {
    Status {
        addresses: Vec<Field<NodeAddress>> = "addresses",
        capacity: Capacity = "capacity",
    }
}

shape! {
    NodeAddress {
        kind: String = "type",
        address: String = "address",
    }
}

shape! {
    /// Quantities; a count of pods is always written as a plain number in a string.
    Capacity {
        pods: String = "pods",
    }
}

shape! {
    RawNamespace {
        metadata: Metadata = "metadata",
    }
}

impl Raw for RawNode {
    fn metadata(&mut self) -> Field<Metadata> {
        std::mem::take(&mut self.metadata)
    }

    fn reduce(self, _: Kind, about: About, context: &mut Context<'_>) -> Object {
        let spec = self.spec.take("spec", context.odd).unwrap_or_default();
        let status = self.status.take("status", context.odd).unwrap_or_default();
        let name = "status.addresses";
        let raw: Vec<NodeAddress> = status.addresses.items(name, context.odd).collect();
        let mut texts = Vec::new();
        for address in raw {
            let kind = address.kind.take(name, context.odd);
            // The others are host names.
            if matches!(kind.as_deref(), Some("InternalIP" | "ExternalIP")) {
                texts.extend(address.address.take(name, context.odd));
            }
        }
        let mut cidrs: Vec<String> = spec.pod_cidrs.items("spec.podCIDRs", context.odd).collect();
        if cidrs.is_empty() {
            cidrs.extend(spec.pod_cidr.take("spec.podCIDR", context.odd));
        }
        cidrs.retain(|text| !text.is_empty());
        let pod_cidrs = context.ranges(&cidrs, "spec.podCIDRs");
        let capacity = status.capacity.take("status.capacity", context.odd);
        let pods = capacity.unwrap_or_default().pods;
        let pods = pods.take("status.capacity.pods", context.odd);
        let pod_capacity = pods.map_or(0, |text| {
            text.parse().unwrap_or_else(|_| {
                context.odd.push("status.capacity.pods");
                0
            })
        });
        let zone = about.labels.iter().find(|(key, _)| &**key == ZONE);
        let zone = zone.map(|(_, zone)| zone.clone());
        Object::Node(Node {
            name: about.name,
            addresses: context.addresses(texts.into_iter(), name),
            zone: zone
                .filter(|zone| is_zone(zone))
                .unwrap_or_else(Text::default),
            pod_cidrs,
            labels: about.labels,
            pod_capacity,
        })
    }
}

/// Azure labels nodes that are in no zone with their fault domain, a bare number.
fn is_zone(text: &str) -> bool {
    !text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Raw for RawNamespace {
    fn metadata(&mut self) -> Field<Metadata> {
        std::mem::take(&mut self.metadata)
    }

    fn reduce(self, _: Kind, about: About, _: &mut Context<'_>) -> Object {
        Object::Namespace(Namespace {
            name: about.name,
            labels: about.labels,
        })
    }
}

//! Endpoint slices.

use super::{About, Context, Field, Metadata, Raw, shape};
use crate::identify::object::{self, Kind, Object, Text};

/// Which service a slice belongs to (`discovery/v1/well_known_labels.go`).
const SERVICE: &str = "kubernetes.io/service-name";

shape! {
    RawSlice {
        metadata: Metadata = "metadata",
        address_type: String = "addressType",
        endpoints: Vec<Field<Endpoint>> = "endpoints",
        ports: Vec<Field<Port>> = "ports",
    }
}

shape! {
    Endpoint {
        addresses: Vec<Field<String>> = "addresses",
        target: Target = "targetRef",
        node: String = "nodeName",
        zone: String = "zone",
    }
}

shape! {
    Target {
        kind: String = "kind",
        name: String = "name",
    }
}

shape! {
    Port {
        protocol: String = "protocol",
        number: u64 = "port",
    }
}

impl Endpoint {
    fn reduce(self, context: &mut Context<'_>) -> Option<object::Endpoint> {
        let name = "endpoints.addresses";
        let first = self.addresses.items(name, context.odd).next()?;
        let address = context.address(&first, name)?;
        let target = self.target.take("endpoints.targetRef", context.odd);
        let target = target.unwrap_or_default();
        let is_pod = matches!(&target.kind, Field::Good(kind) if kind == "Pod");
        let pod = target.name.take("endpoints.targetRef", context.odd);
        Some(object::Endpoint {
            address,
            pod: pod
                .filter(|_| is_pod)
                .map_or_else(Text::default, Text::from),
            node: context.text(self.node, "endpoints.nodeName"),
            zone: context.text(self.zone, "endpoints.zone"),
        })
    }
}

impl Raw for RawSlice {
    fn metadata(&mut self) -> Field<Metadata> {
        std::mem::take(&mut self.metadata)
    }

    fn reduce(self, _: Kind, about: About, context: &mut Context<'_>) -> Object {
        let service = about.labels.iter().find(|(key, _)| &**key == SERVICE);
        let service = service.map_or_else(Text::default, |(_, name)| name.clone());
        let kind = self.address_type.take("addressType", context.odd);
        let raw: Vec<Endpoint> = self.endpoints.items("endpoints", context.odd).collect();
        // Of type FQDN: host names, which say nothing about addresses.
        let named = kind.as_deref() == Some("FQDN");
        let endpoints = raw
            .into_iter()
            .filter(|_| !named)
            .filter_map(|endpoint| endpoint.reduce(context))
            .collect();
        let raw: Vec<Port> = self.ports.items("ports", context.odd).collect();
        let mut ports = Vec::new();
        for port in raw {
            let protocol = context.protocol(port.protocol, "ports.protocol");
            // Without a number it stands for every port.
            if let (Some(protocol), Some(port)) =
                (protocol, context.port(port.number, "ports.port"))
            {
                ports.push((protocol, port));
            }
        }
        Object::Slice(object::Slice {
            namespace: about.namespace,
            name: about.name,
            service,
            endpoints,
            ports,
        })
    }
}

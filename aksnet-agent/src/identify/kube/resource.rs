//! What is watched: the one table that the requests are made from, and that the RBAC rules of `deploy/base/rbac.yaml`
//! are compared with.

use crate::identify::object::Kind;

/// What a watch may do with its resource; the same for all.
pub const VERBS: [&str; 2] = ["list", "watch"];

/// A resource of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// What its objects become.
    pub kind: Kind,
    /// API group; empty for the core.
    pub group: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// Its name in paths and in RBAC rules.
    pub plural: &'static str,
}

const fn core(kind: Kind, plural: &'static str) -> Resource {
    Resource {
        kind,
        group: "",
        version: "v1",
        plural,
    }
}

/// Everything that can be watched. Remote pods are only when asked for.
pub const RESOURCES: [Resource; 7] = [
    core(Kind::LocalPod, "pods"),
    core(Kind::RemotePod, "pods"),
    core(Kind::Service, "services"),
    Resource {
        kind: Kind::Slice,
        group: "discovery.k8s.io",
        version: "v1",
        plural: "endpointslices",
    },
    core(Kind::Node, "nodes"),
    core(Kind::Namespace, "namespaces"),
    Resource {
        kind: Kind::Policy,
        group: "networking.k8s.io",
        version: "v1",
        plural: "networkpolicies",
    },
];

impl Resource {
    /// The path of the collection, of all namespaces.
    #[must_use]
    pub fn path(&self) -> String {
        let (group, version, plural) = (self.group, self.version, self.plural);
        if group.is_empty() {
            format!("/api/{version}/{plural}")
        } else {
            format!("/apis/{group}/{version}/{plural}")
        }
    }

    /// Which of its objects are asked for, as a field selector. A pod without a node has no address.
    #[must_use]
    pub fn selector(&self, node: &str) -> Option<String> {
        match self.kind {
            Kind::LocalPod => Some(format!("spec.nodeName={node}")),
            Kind::RemotePod => Some(format!("spec.nodeName!={node},spec.nodeName!=")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let paths: Vec<String> = RESOURCES.iter().map(Resource::path).collect();
        assert_eq!(paths[0], "/api/v1/pods");
        assert_eq!(paths[3], "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(paths[6], "/apis/networking.k8s.io/v1/networkpolicies");
    }

    #[test]
    fn this_nodes_pods_and_the_others_are_apart() {
        assert_eq!(
            RESOURCES[0].selector("a").as_deref(),
            Some("spec.nodeName=a")
        );
        assert_eq!(
            RESOURCES[1].selector("a").as_deref(),
            Some("spec.nodeName!=a,spec.nodeName!=")
        );
        assert_eq!(RESOURCES[4].selector("a"), None);
    }
}

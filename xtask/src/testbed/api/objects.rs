//! Objects as an API server would show them, with all that agents have no use for: a pod is several kilobytes, of which
//! most is who manages which field.

use serde_json::{Value, json};

/// What `metadata.managedFields` holds besides a list of fields.
fn managed(manager: &str, fields: &[&str]) -> Value {
    let entries = fields.iter().map(|field| {
        (
            format!("f:{field}"),
            json!({".": {}, "f:name": {}, "f:value": {}}),
        )
    });
    let fields: serde_json::Map<String, Value> = entries.collect();
    json!({
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-03-01T10:20:30Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": fields}, "f:spec": fields, "f:status": fields},
    })
}

/// A namespace.
#[must_use]
pub fn namespace(name: &str) -> Value {
    json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"), "creationTimestamp": "2026-03-01T10:20:30Z",
            "labels": {"kubernetes.io/metadata.name": name},
            "managedFields": [managed("kubectl-create", &["kubernetes.io/metadata.name"])],
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

/// A running pod of the deployment `app`, with a container port `http`.
#[must_use]
pub fn pod(namespace: &str, name: &str, app: &str, node: &str, address: &str) -> Value {
    let hash = "7d4b9c6f5d";
    let fields = [
        "containers",
        "dnsPolicy",
        "conditions",
        "containerStatuses",
        "hostIP",
        "podIP",
        "podIPs",
        "phase",
    ];
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-03-01T10:20:30Z",
        })
    };
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": name, "namespace": namespace, "generateName": format!("{app}-{hash}-"),
            "uid": format!("uid-of-{namespace}-{name}"), "creationTimestamp": "2026-03-01T10:20:30Z",
            "labels": {"app": app, "app.kubernetes.io/part-of": "shop", "pod-template-hash": hash},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"),
                "uid": "0d3a5c39-6a5b-4b4f-8c5e-0a4f6f0e7a11", "controller": true, "blockOwnerDeletion": true,
            }],
            "managedFields": [managed("kube-controller-manager", &fields), managed("kubelet", &fields)],
        },
        "spec": {
            "nodeName": node, "serviceAccountName": "default", "serviceAccount": "default", "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "securityContext": {}, "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
            "containers": [{
                "name": "main", "image": format!("registry.example/shop/{app}:1.2.3"), "imagePullPolicy": "IfNotPresent",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": [{"name": "ONE", "value": "1"}, {"name": "TWO", "value": "2"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "livenessProbe": {"httpGet": {"path": "/live", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10},
                "volumeMounts": [{"name": "token", "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 300},
            ],
            "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ]}}],
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "10.224.0.4",
            "hostIPs": [{"ip": "10.224.0.4"}], "startTime": "2026-03-01T10:20:30Z", "qosClass": "Burstable",
            "conditions": [condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
                condition("ContainersReady"), condition("PodScheduled")],
            "containerStatuses": [{
                "name": "main", "ready": true, "started": true, "restartCount": 0,
                "state": {"running": {"startedAt": "2026-03-01T10:20:31Z"}}, "lastState": {},
                "image": format!("registry.example/shop/{app}:1.2.3"),
                "imageID": "registry.example/shop/app@sha256:9b2cf4f0a1d1f3d9c6b7f5e1a6d0c8e7b3a2918f7e6d5c4b3a29180f7e6d5c4b",
                "containerID": "containerd://5e1a6d0c8e7b3a2918f7e6d5c4b3a29180f7e6d5c4b9b2cf4f0a1d1f3d9c6b7f",
            }],
        },
    })
}

/// A ClusterIP service with one port `http`, 80 to 8080.
#[must_use]
pub fn service(namespace: &str, name: &str, address: &str) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {
            "name": name, "namespace": namespace, "uid": format!("uid-of-{namespace}-{name}"),
            "creationTimestamp": "2026-03-01T10:20:30Z", "labels": {"app": name},
            "managedFields": [managed("kubectl", &["internalTrafficPolicy", "ports", "selector", "type"])],
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// A network policy with this `spec`.
#[must_use]
pub fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": name, "namespace": namespace, "uid": format!("uid-of-policy-{namespace}-{name}"),
            "creationTimestamp": "2026-03-01T10:20:30Z", "generation": 1,
            "managedFields": [managed("kubectl-client-side-apply", &["podSelector", "policyTypes", "ingress"])],
        },
        "spec": spec,
    })
}

/// The slice of a service, with an endpoint for each pod: its name, node and address.
#[must_use]
pub fn slice(namespace: &str, service: &str, pods: &[(&str, &str, &str)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(name, node, address)| {
            json!({
                "addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": node, "zone": "westeurope-1",
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": name,
                    "uid": format!("uid-of-{namespace}-{name}")},
            })
        })
        .collect();
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-x7k2p"), "namespace": namespace, "generateName": format!("{service}-"),
            "uid": format!("uid-of-slice-{namespace}-{service}"), "creationTimestamp": "2026-03-01T10:20:30Z",
            "labels": {"kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": service, "uid": "of-the-service",
                "controller": true, "blockOwnerDeletion": true}],
            "managedFields": [managed("kube-controller-manager", &["endpoints", "ports", "addressType"])],
        },
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

/// A node of AKS, in a zone.
#[must_use]
pub fn node(name: &str, address: &str, pod_cidr: &str, zone: &str) -> Value {
    let fields = [
        "kubernetes.azure.com/cluster",
        "kubernetes.azure.com/mode",
        "conditions",
        "addresses",
        "images",
        "capacity",
        "allocatable",
        "nodeInfo",
        "volumesInUse",
    ];
    let images: Vec<Value> = (0..40)
        .map(|n| json!({"sizeBytes": 50_000_000 + n, "names": [
            format!("mcr.microsoft.com/oss/kubernetes/image-{n}@sha256:9b2cf4f0a1d1f3d9c6b7f5e1a6d0c8e7b3a2918f7e6d5c4b"),
            format!("mcr.microsoft.com/oss/kubernetes/image-{n}:v1.33.{n}"),
        ]}))
        .collect();
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"), "creationTimestamp": "2026-03-01T10:20:30Z",
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/region": "westeurope", "topology.kubernetes.io/zone": zone,
                "kubernetes.azure.com/mode": "user", "kubernetes.azure.com/podnetwork-type": "overlay",
                "node.kubernetes.io/instance-type": "Standard_D8s_v5",
            },
            "managedFields": [managed("kubelet", &fields), managed("cloud-node-manager", &fields)],
        },
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr], "providerID": format!("azure:///{name}")},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "capacity": {"cpu": "8", "memory": "32863244Ki", "pods": "250"},
            "allocatable": {"cpu": "7820m", "memory": "28341260Ki", "pods": "250"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "nodeInfo": {"kernelVersion": "5.15.0-1089-azure", "osImage": "Ubuntu 22.04.5 LTS"},
            "images": images,
        },
    })
}

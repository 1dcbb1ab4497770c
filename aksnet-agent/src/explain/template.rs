//! Workloads: what their template says is taken for a pod of the workload's name, so that a manifest can be asked about
//! before anything of it runs.

use serde_json::{Value, json};

/// The kinds of objects with a template for pods: API group, kind, where the template is.
const WORKLOADS: [(&str, &str, &str); 7] = [
    ("apps", "Deployment", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("apps", "ReplicaSet", "/spec/template"),
    ("", "ReplicationController", "/spec/template"),
    ("batch", "Job", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
];

/// The pod that a workload makes; `None` if it is none.
pub(super) fn pod(group: &str, kind: &str, object: &Value) -> Option<Value> {
    let (.., path) = WORKLOADS
        .iter()
        .find(|(of, name, _)| (*of, *name) == (group, kind))?;
    let template = object.pointer(path).unwrap_or(&Value::Null);
    let metadata = &object["metadata"];
    Some(json!({
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": template["metadata"]["labels"],
        },
        "spec": template["spec"],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_a_pod_of_its_name_with_its_templates_labels() {
        let template =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"hostNetwork": true}});
        let object = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "other"}},
            "spec": {"template": template},
        });
        let made = pod("apps", "Deployment", &object).unwrap();
        assert_eq!(made["metadata"]["name"], "web");
        assert_eq!(made["metadata"]["labels"]["app"], "web");
        assert_eq!(made["spec"]["hostNetwork"], true);
        let cron = json!({
            "metadata": {"name": "web"},
            "spec": {"jobTemplate": {"spec": {"template": template}}},
        });
        let made = pod("batch", "CronJob", &cron).unwrap();
        assert_eq!(made["metadata"]["labels"]["app"], "web");
        assert_eq!(pod("", "ConfigMap", &object), None);
        // Nothing is asked of an odd one.
        assert!(pod("apps", "Deployment", &json!({"spec": 7})).is_some());
    }
}

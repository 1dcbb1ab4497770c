//! The RBAC rules in `deploy/` against what the watches ask for.

use std::collections::BTreeSet;

use aksnet_agent::identify::kube::{RESOURCES, VERBS};
use serde_json::Value;

const RBAC: &str = include_str!("../../../deploy/base/rbac.yaml");
const DAEMONSET: &str = include_str!("../../../deploy/base/daemonset.yaml");
const KUSTOMIZATION: &str = include_str!("../../../deploy/base/kustomization.yaml");

fn documents(yaml: &str) -> Vec<Value> {
    let parts = yaml.split("\n---\n").filter(|part| !part.trim().is_empty());
    parts
        .map(|part| serde_saphyr::from_str(part).unwrap())
        .collect()
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let mut found = documents.iter().filter(|document| document["kind"] == kind);
    let one = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "two of kind {kind}");
    one
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().unwrap().iter();
    items
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_role_allows_exactly_what_the_watches_do() {
    let wanted: BTreeSet<(String, String, String)> = RESOURCES
        .iter()
        .flat_map(|r| VERBS.map(|verb| (r.group.to_owned(), r.plural.to_owned(), verb.to_owned())))
        .collect();
    let documents = documents(RBAC);
    let role = of_kind(&documents, "ClusterRole");
    let mut allowed = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        let keys: Vec<&String> = rule.as_object().unwrap().keys().collect();
        assert_eq!(
            keys.len(),
            3,
            "a rule is groups, resources and verbs: {keys:?}"
        );
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    allowed.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    assert_eq!(allowed, wanted);
}

#[test]
fn the_role_is_bound_to_the_account_that_the_pods_have() {
    let rbac = documents(RBAC);
    let role = of_kind(&rbac, "ClusterRole");
    let binding = of_kind(&rbac, "ClusterRoleBinding");
    let account = of_kind(&rbac, "ServiceAccount");
    assert_eq!(binding["roleRef"]["kind"], "ClusterRole");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let subjects = binding["subjects"].as_array().unwrap();
    assert_eq!(subjects.len(), 1);
    assert_eq!(subjects[0]["kind"], "ServiceAccount");
    assert_eq!(subjects[0]["name"], account["metadata"]["name"]);
    let kustomization = &documents(KUSTOMIZATION)[0];
    assert_eq!(subjects[0]["namespace"], kustomization["namespace"]);
    assert!(texts(&kustomization["resources"]).contains(&"rbac.yaml".to_owned()));
    let daemonset = documents(DAEMONSET);
    let pod = &of_kind(&daemonset, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(pod["automountServiceAccountToken"], true);
}

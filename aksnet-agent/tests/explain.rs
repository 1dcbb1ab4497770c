//! `aksnet-agent explain`: verdicts, reasons and exit codes, by the binary, from manifests and from an API server.
//! Nothing here needs root, and nothing has a capability.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;
use xtask::testbed::api::{ApiServer, Fault, Verb, objects};

mod privilege;

/// The shop: a frontend may talk to web, web to the database, and nobody else to either.
const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: frontend, namespace: shop}
spec:
  selector: {matchLabels: {app: frontend}}
  template:
    metadata: {labels: {app: frontend}}
    spec: {containers: [{name: c, image: i}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: i
        ports: [{name: http, containerPort: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: database, namespace: shop}
spec:
  template:
    metadata: {labels: {app: database}}
    spec: {containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: batch, namespace: shop}
spec:
  jobTemplate:
    spec:
      template:
        metadata: {labels: {app: batch}}
        spec: {containers: [{name: c}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-service, namespace: shop}
spec:
  clusterIP: 10.0.0.10
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
";

const POLICIES: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-policy, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: frontend}}}]
    ports: [{port: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: database-policy, namespace: shop}
spec:
  podSelector: {matchLabels: {app: database}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}]
  - from:
    - namespaceSelector: {matchLabels: {team: backup}}
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
";

struct Shop(TempDir);

impl Shop {
    fn new() -> Self {
        let shop = Self(tempfile::tempdir().unwrap());
        shop.write("shop.yaml", SHOP);
        shop.write("policies.yaml", POLICIES);
        shop
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn directory(&self) -> &Path {
        self.0.path()
    }

    /// Asks of all the files.
    fn ask(&self, args: &[&str]) -> Answer {
        let directory = self.directory().display().to_string();
        run(&[args, &["-f", &directory]].concat(), "")
    }
}

#[derive(Debug)]
struct Answer {
    code: i32,
    out: String,
    error: String,
}

fn run(args: &[&str], input: &str) -> Answer {
    let mut child = privilege::unprivileged()
        .arg("explain")
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One that fails before it reads is no failure of this.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    Answer {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        error: String::from_utf8(stderr).unwrap(),
    }
}

impl Answer {
    /// It fails with this code, in one line that says this, and says nothing else.
    fn fails(&self, code: i32, text: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.out.is_empty(), "{self:?}");
        assert_eq!(self.error.lines().count(), 1, "{self:?}");
        assert!(
            self.error.starts_with("aksnet-agent: ") && self.error.contains(text),
            "{self:?}"
        );
    }

    fn says(&self, code: i32, first: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.out.lines().next(), Some(first), "{self:?}");
        assert_eq!(self.error, "", "{self:?}");
    }
}

#[test]
fn the_allowed_pairs_of_the_shop_exit_with_0_and_name_the_rule() {
    let answer = Shop::new().ask(&["shop/frontend", "shop/web", "8080"]);
    answer.says(0, "allowed: shop/frontend -> shop/web, port 8080/TCP");
    assert_eq!(
        answer.out,
        "\
allowed: shop/frontend -> shop/web, port 8080/TCP

egress of shop/frontend: allowed: no policy isolates shop/frontend egress

ingress of shop/web: allowed: policy shop/web-policy, ingress rule 1, allows it: from: app=frontend; port 8080/TCP
  policy shop/web-policy isolates it
    rule 1 matches: from: app=frontend; port 8080/TCP
"
    );
    let answer = Shop::new().ask(&["shop/web", "shop/database", "sql"]);
    answer.says(0, "allowed: shop/web -> shop/database, port 5432/TCP");
}

#[test]
fn the_denied_pair_exits_with_1_and_says_what_failed_in_each_rule() {
    let shop = Shop::new();
    let answer = shop.ask(&["shop/batch", "shop/web", "8080"]);
    answer.says(1, "denied: shop/batch -> shop/web, port 8080/TCP");
    assert!(
        answer
            .out
            .contains("    rule 1 does not match: from: app=frontend did not match app=batch\n")
    );
    let answer = shop.ask(&["192.0.2.200", "shop/database", "5432/tcp"]);
    assert_eq!(answer.code, 1);
    assert_eq!(
        answer.out,
        "\
denied: 192.0.2.200 outside of the cluster -> shop/database, port 5432/TCP

egress of 192.0.2.200 outside of the cluster: allowed: no policy isolates what is outside of the cluster

ingress of shop/database: denied: a policy isolates it, and no rule matches
  policy shop/database-policy isolates it
    rule 1 does not match: from: a pod did not match 192.0.2.200 outside of the cluster
    rule 2 does not match: none of its 2 peers
      a pod did not match 192.0.2.200 outside of the cluster
      192.0.2.0/24 except 192.0.2.128/25 did not match 192.0.2.200
"
    );
    let answer = shop.ask(&["192.0.2.1", "shop/database", "5432"]);
    answer.says(
        0,
        "allowed: 192.0.2.1 outside of the cluster -> shop/database, port 5432/TCP",
    );
}

#[test]
fn a_port_that_no_rule_has_is_what_failed() {
    let shop = Shop::new();
    let answer = shop.ask(&["shop/frontend", "shop/web", "9090"]);
    answer.says(1, "denied: shop/frontend -> shop/web, port 9090/TCP");
    assert!(
        answer
            .out
            .contains("ports: port 8080/TCP did not match port 9090")
    );
    let answer = shop.ask(&["shop/frontend", "shop/web", "icmp"]);
    answer.says(1, "denied: shop/frontend -> shop/web, ICMP");
}

#[test]
fn what_is_not_known_exits_with_2_and_is_named() {
    let shop = Shop::new();
    // A template has no address yet.
    let answer = shop.ask(&["shop/frontend", "shop/database", "5432"]);
    answer.says(
        2,
        "undetermined: shop/frontend -> shop/database, port 5432/TCP",
    );
    assert!(
        answer
            .out
            .contains("rule 2 may match: the address of the other end is not known")
    );
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: ops}, status: {podIP: 10.244.0.9}}";
    shop.write("pod.yaml", pod);
    let answer = shop.ask(&["ops/x", "shop/database", "5432"]);
    answer.says(2, "undetermined: ops/x -> shop/database, port 5432/TCP");
    assert!(
        answer
            .out
            .contains("note: namespace ops is not among the objects")
    );
    // With its namespace it is determined.
    for (labels, code) in [("{team: backup}", 0), ("{team: web}", 1)] {
        let space = format!("{{kind: Namespace, metadata: {{name: ops, labels: {labels}}}}}");
        shop.write("ops.yaml", &space);
        let answer = shop.ask(&["10.244.0.9", "shop/database", "5432"]);
        assert_eq!(answer.code, code, "{answer:?}");
    }
}

#[test]
fn a_service_is_the_pods_behind_it_on_their_port() {
    let shop = Shop::new();
    for to in ["shop/web-service", "10.0.0.10"] {
        let answer = shop.ask(&["shop/frontend", to, "80"]);
        answer.says(0, "allowed: shop/frontend -> shop/web, port 8080/TCP");
        assert!(
            answer.out.contains(
                "note: shop/web-service is a service; shop/web is behind it, on port 8080"
            )
        );
    }
    let no_port = shop.ask(&["shop/frontend", "shop/web-service", "8080"]);
    no_port.fails(64, "is a service that has no such port; it has: 80/TCP");
    let source = shop.ask(&["shop/web-service", "shop/database", "80"]);
    source.fails(
        64,
        "is a service, which sends nothing; name one of its pods: shop/web",
    );
    shop.write(
        "other.yaml",
        "{kind: Pod, metadata: {name: web-2, namespace: shop, labels: {app: web, canary: x}}}",
    );
    let differ = shop.ask(&["shop/frontend", "shop/web-service", "80"]);
    differ.fails(66, "shop/web-2 has no TCP port named 'http'");
    shop.write(
        "bare.yaml",
        "{kind: Service, metadata: {name: bare, namespace: shop}}",
    );
    let bare = shop.ask(&["shop/frontend", "shop/bare", "80"]);
    bare.fails(
        64,
        "is a service without a selector; name a pod or an address",
    );
}

#[test]
fn a_service_of_its_workloads_name_is_told_apart_by_the_port() {
    let shop = Shop::new();
    shop.write(
        "service.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.0.0.11, \
         selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}",
    );
    let ask = |port: &str| {
        let answer = shop.ask(&["shop/frontend", "shop/web", port]);
        answer.says(0, "allowed: shop/frontend -> shop/web, port 8080/TCP");
        answer.out
    };
    assert!(
        ask("80").contains("note: shop/web is a service; shop/web is behind it, on port 8080\n")
    );
    // No port of the service has this number or name: nothing to tell.
    for port in ["8080", "http"] {
        let out = ask(port);
        assert!(!out.contains("note: "), "{out}");
    }
    // Both have it.
    shop.write(
        "service.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.0.0.11, \
         selector: {app: web}, ports: [{port: 8080, targetPort: 9090}]}}",
    );
    assert!(ask("8080").contains(
        "note: shop/web is also a service; the pod or workload is meant here, and the port is the pod's\n"
    ));
    // Neither has: pods may listen where no container says so.
    let answer = shop.ask(&["shop/frontend", "shop/web", "7070"]);
    answer.says(1, "denied: shop/frontend -> shop/web, port 7070/TCP");
}

/// Two pods of a `StatefulSet` as the API has them, and their headless service. Their labels are never equal.
const REPLICAS: &str = r"
{kind: Namespace, apiVersion: v1, metadata: {name: shop}}
---
apiVersion: v1
kind: Pod
metadata:
  name: db-0
  namespace: shop
  labels: {app: db, statefulset.kubernetes.io/pod-name: db-0, apps.kubernetes.io/pod-index: '0'}
  ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, controller: true}]
spec: {nodeName: n1, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIP: 10.244.1.5}
---
apiVersion: v1
kind: Pod
metadata:
  name: db-1
  namespace: shop
  labels: {app: db, statefulset.kubernetes.io/pod-name: db-1, apps.kubernetes.io/pod-index: '1'}
  ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, controller: true}]
spec: {nodeName: n2, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIP: 10.244.2.5}
---
apiVersion: v1
kind: Service
metadata: {name: db-service, namespace: shop}
spec: {clusterIP: 10.0.0.12, selector: {app: db}, ports: [{port: 3306, targetPort: sql}]}
---
apiVersion: v1
kind: Service
metadata: {name: db-headless, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql-port, port: 3306, targetPort: sql}]}
---
kind: Pod
apiVersion: v1
metadata: {name: client, namespace: shop, labels: {app: client}}
status: {podIP: 10.244.3.5}
---
";

/// The client may send to these addresses, and to port 5432 only.
fn egress_to(cidr: &str) -> String {
    format!(
        "{REPLICAS}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: client}}}}
  policyTypes: [Egress]
  egress: [{{to: [{{ipBlock: {{cidr: {cidr}}}}}], ports: [{{port: 5432}}]}}]
"
    )
}

#[test]
fn a_workload_of_running_pods_is_all_of_them() {
    let all = egress_to("10.244.0.0/16");
    let ask = |from: &str, to: &str, port: &str| run(&[from, to, port, "-f", "-"], &all);
    for (to, port) in [
        ("shop/db", "5432"),
        ("shop/db", "sql"),
        ("shop/db-service", "3306"),
    ] {
        let answer = ask("shop/client", to, port);
        answer.says(0, "allowed: shop/client -> shop/db-0, port 5432/TCP");
        assert!(
            answer.out.contains(&format!("note: {to} is a "))
                && answer.out.contains("; the verdict holds for all 2 pods")
                && answer.out.contains(": shop/db-0, shop/db-1\n"),
            "{answer:?}"
        );
    }
    let answer = ask("shop/db", "shop/client", "80");
    answer.says(0, "allowed: shop/db-0 -> shop/client, port 80/TCP");
    let answer = ask("shop/db", "shop/db", "80");
    answer.says(0, "allowed: shop/db-0 -> shop/db-1, port 80/TCP");
    assert!(
        answer
            .out
            .contains("note: what a pod sends to itself is left out")
    );
    ask("shop/client", "shop/dd", "80").fails(66, "no pod, workload or service is called shop/dd");
}

#[test]
fn pods_that_are_judged_differently_are_listed_by_verdict() {
    let some = egress_to("10.244.2.0/24");
    for (to, port) in [
        ("shop/db", "5432"),
        ("shop/db-service", "3306"),
        ("shop/db-headless", "5432"),
    ] {
        let answer = run(&["shop/client", to, port, "-f", "-"], &some);
        answer.fails(
            64,
            &format!(
                "{to} stands for several pods, and the verdict is not the same for all; denied: shop/db-0; \
                 allowed: shop/db-1; name one of them"
            ),
        );
    }
}

#[test]
fn a_headless_service_translates_no_port() {
    let all = egress_to("10.244.0.0/16");
    let ask = |port: &str| run(&["shop/client", "shop/db-headless", port, "-f", "-"], &all);
    ask("5432").says(0, "allowed: shop/client -> shop/db-0, port 5432/TCP");
    ask("3306").says(1, "denied: shop/client -> shop/db-0, port 3306/TCP");
    // Who asks DNS for the port by its name is told the pods'.
    ask("sql-port").says(0, "allowed: shop/client -> shop/db-0, port 5432/TCP");
}

#[test]
fn a_pod_in_its_nodes_network_has_its_named_ports_and_no_address_that_it_lacks() {
    let text = "
{kind: Pod, apiVersion: v1, metadata: {name: a}}
---
{kind: Pod, apiVersion: v1, metadata: {name: exporter}, spec: {hostNetwork: true, containers: [{name: c, ports: [{name: metrics, containerPort: 9100}]}]}}
";
    let answer = run(&["a", "exporter", "metrics", "-f", "-"], text);
    answer.says(0, "allowed: default/a -> a node, port 9100/TCP");
    assert!(
        answer.out.contains(
            "note: default/exporter uses its node's network, and which node is not known"
        ),
        "{answer:?}"
    );
    run(&["a", "exporter", "metric", "-f", "-"], text).fails(66, "named ports: metrics (9100/TCP)");
}

#[test]
fn json_has_the_verdict_and_each_failed_part() {
    let answer = Shop::new().ask(&["shop/batch", "shop/web", "8080", "--json"]);
    assert_eq!(answer.code, 1);
    let value: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(value["verdict"], "denied");
    assert_eq!(value["from"]["name"], "batch");
    assert_eq!(value["port"], 8080);
    assert_eq!(value["egress"]["judgement"], "not_isolated");
    let ingress = &value["ingress"];
    assert_eq!(ingress["judgement"], "denied");
    assert_eq!(
        ingress["text"],
        "policy shop/web-policy isolates shop/web ingress; from: app=frontend did not match app=batch"
    );
    let rule = &ingress["isolated_by"][0]["rules"][0];
    assert_eq!(rule["result"], "does_not_match");
    assert_eq!(rule["part"], "peers");
    assert_eq!(rule["failed"][0]["kind"], "peer_label");
    let answer = Shop::new().ask(&["shop/frontend", "shop/web", "http", "--json"]);
    let value: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(value["ingress"]["allowed_by"]["name"], "web-policy");
}

#[test]
fn files_lists_json_and_standard_input_are_read_alike() {
    let shop = Shop::new();
    let (objects, policies) = (shop.path("shop.yaml"), shop.path("policies.yaml"));
    let question = ["shop/batch", "shop/web", "8080"];
    let files = run(
        &[&question[..], &["-f", &objects, "-f", &policies]].concat(),
        "",
    );
    assert_eq!(files.code, 1);
    let piped = run(
        &[&question[..], &["-f", "-", "-f", &objects]].concat(),
        POLICIES,
    );
    assert_eq!(piped.out, files.out);
    let documents = |text: &str| -> Vec<Value> { serde_saphyr::from_multiple(text).unwrap() };
    let all = [documents(SHOP), documents(POLICIES)].concat();
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": all});
    let json = serde_json::to_string_pretty(&list)
        .unwrap()
        .replace("  ", "\t");
    let listed = run(&[&question[..], &["-f", "-"]].concat(), &json);
    assert_eq!(listed.out, files.out);
}

#[test]
fn what_has_no_namespace_is_of_the_one_that_is_given() {
    let text = "{kind: Pod, metadata: {name: a}}\n---\n{kind: Pod, metadata: {name: b}}\n";
    let answer = run(&["a", "b", "80", "-f", "-"], text);
    assert_eq!(answer.code, 0);
    assert!(
        answer
            .out
            .starts_with("allowed: default/a -> default/b, port 80/TCP\n")
    );
    assert!(
        answer
            .out
            .contains("note: there is no network policy among the objects\n")
    );
    let answer = run(&["a", "other/b", "80", "-n", "other", "-f", "-"], text);
    assert!(
        answer.out.starts_with("allowed: other/a -> other/b"),
        "{answer:?}"
    );
}

#[test]
fn engines_differ_where_they_do() {
    let text = "
{kind: Namespace, metadata: {name: default}}
---
{kind: Pod, metadata: {name: a}, status: {podIP: 10.244.0.1}}
---
{kind: Pod, metadata: {name: b}, spec: {nodeName: node-1}, status: {podIP: 10.244.0.2}}
---
{kind: Node, metadata: {name: node-1}, status: {addresses: [{type: InternalIP, address: 10.0.0.4}]}}
---
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: p}
spec:
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16}}]}]
  egress: [{to: [{ipBlock: {cidr: 10.244.0.0/16}}]}]
";
    let code = |from: &str, to: &str, engine: &str| {
        let args = [from, to, "80", "-f", "-", "--engine", engine];
        run(&args, text).code
    };
    assert_eq!(code("a", "b", "calico"), 0);
    assert_eq!(code("a", "b", "cilium"), 1);
    assert_eq!(code("b", "10.0.0.4", "calico"), 1);
    assert_eq!(code("b", "10.0.0.4", "azure_npm"), 0);
    assert_eq!(code("10.0.0.4", "b", "calico"), 0, "its own node");
    assert_eq!(code("10.0.0.4", "a", "calico"), 1, "another node");
    let by = ["192.0.2.1", "a", "80", "-f", "-", "--engine", "azure_npm"];
    assert_eq!(run(&by, text).code, 1);
    assert_eq!(run(&[&by[..], &["--by-node-port"]].concat(), text).code, 0);
}

#[test]
fn policies_of_other_kinds_are_told_and_not_evaluated() {
    let text = "
{kind: Pod, metadata: {name: a}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: c}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: c}, spec: {}}
";
    let answer = run(&["192.0.2.1", "a", "80", "-f", "-"], text);
    assert_eq!(answer.code, 0);
    assert!(
        answer
            .out
            .contains("note: 1 of kind CiliumNetworkPolicy (cilium.io): not evaluated")
    );
    assert!(
        answer
            .out
            .contains("note: 1 of kind NetworkPolicy (projectcalico.org): not evaluated")
    );
}

#[test]
fn what_comes_twice_is_a_warning_and_cluster_wide_kinds_have_no_namespace() {
    let text = "
{kind: Namespace, apiVersion: v1, metadata: {name: shop}}
---
{kind: Namespace, apiVersion: v1, metadata: {name: shop}}
---
{kind: Pod, apiVersion: v1, metadata: {name: a}}
---
{kind: Pod, apiVersion: v1, metadata: {name: a}}
";
    let answer = run(&["192.0.2.1", "a", "80", "-f", "-"], text);
    assert_eq!(answer.code, 0, "{answer:?}");
    let lines: Vec<&str> = answer.error.lines().collect();
    let [space, pod] = *lines else {
        panic!("{answer:?}")
    };
    assert!(
        space.contains(": Namespace shop: replaces an earlier one of that name"),
        "{answer:?}"
    );
    assert!(
        pod.contains(": Pod default/a: replaces an earlier one of that name"),
        "{answer:?}"
    );
}

#[test]
fn what_cannot_be_read_in_an_object_is_a_warning_and_the_reason() {
    let shop = Shop::new();
    let policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-policy, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}
";
    shop.write("policies.yaml", policy);
    let answer = shop.ask(&["shop/frontend", "shop/web", "8080"]);
    assert_eq!(answer.code, 1);
    assert!(answer.error.contains(
        "policies.yaml: document 1 (line 1): NetworkPolicy shop/web-policy: cannot be read and is left out: spec.ingress.from"
    ), "{answer:?}");
    assert!(
        answer
            .out
            .contains("its cidr '10.0.0.0/99' is no range of addresses")
    );
}

#[test]
fn bad_input_is_one_line_and_a_code_by_kind() {
    let shop = Shop::new();
    let ask = |args: &[&str]| shop.ask(args);
    ask(&["shop/frontend", "shop/web"]).fails(64, "<PORT[/PROTO]>");
    ask(&["shop/frontend", "shop/web", "0"]).fails(64, "a port is a number from 1 to 65535");
    ask(&["shop/frontend", "shop/web", "80/xtp"]).fails(64, "the protocol is tcp, udp or sctp");
    ask(&["shop/frontend", "shop/web", "80", "--engine", "cillium"])
        .fails(64, "did you mean 'cilium'?");
    ask(&["shop/frontent", "shop/web", "80"]).fails(66, "did you mean 'shop/frontend'?");
    ask(&["shop/frontend", "shop/web", "htp"]).fails(66, "named ports: http (8080/TCP)");
    let of = |file: &str| run(&["a", "b", "80", "-f", file], "");
    of(&shop.path("none.yaml")).fails(66, "none.yaml: cannot be read: No such file");
    let empty = tempfile::tempdir().unwrap();
    of(&empty.path().display().to_string()).fails(66, "has no .yaml, .yml or .json file");
    run(&["a", "b", "80"], "").fails(64, "give manifests with -f, or --kubeconfig FILE");
    let missing = shop.path("kubeconfig");
    run(&["a", "b", "80", "--kubeconfig", &missing], "").fails(66, "cannot be read");

    shop.write(
        "bad.yaml",
        "kind: Pod\nmetadata: {name: a}\n---\nkind: Pod\nspec: [1, 2\nx: y\n",
    );
    let bad = shop.path("bad.yaml");
    of(&bad).fails(65, "bad.yaml:");
    of(&bad).fails(65, ": document 2 is no YAML: ");
    shop.write("bad.yaml", "just a text\n");
    of(&bad).fails(
        65,
        "bad.yaml: document 1 (line 1): is no Kubernetes object: it has no kind",
    );
    shop.write("bad.yaml", "- kind: Pod\n");
    of(&bad).fails(65, "is no Kubernetes object");
}

#[test]
fn no_bytes_make_it_panic() {
    let shop = Shop::new();
    for bytes in [
        &b"\xff\xfe\x00kind"[..],
        b"kind: Pod\nmetadata: 7\nspec: x\n",
        b"kind: PodList\nitems: {}\n",
        b"kind: List\nitems: [1, null, []]\n",
        b"a: &a [x]\nkind: *a\n",
        b"kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nspec: []\n",
        b"---\n---\n...\n",
    ] {
        fs::write(shop.0.path().join("odd.yaml"), bytes).unwrap();
        let answer = shop.ask(&["shop/frontend", "shop/web", "8080"]);
        assert!([0, 65].contains(&answer.code), "{bytes:?}: {answer:?}");
    }
}

#[test]
fn the_api_is_asked_where_no_files_are_given() {
    let server = ApiServer::start().unwrap();
    let spec = serde_json::json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "frontend"}}}]}],
    });
    let fillers = (0..1_200).map(|n| objects::namespace(&format!("ns-{n}")));
    server.apply_all(fillers.chain([
        objects::namespace("shop"),
        objects::node("aks-a", "10.224.0.4", "10.244.0.0/24", "westeurope-1"),
        objects::pod("shop", "web-0", "web", "aks-a", "10.244.0.7"),
        objects::pod("shop", "batch-0", "batch", "aks-a", "10.244.0.8"),
        objects::service("shop", "web", "10.0.0.10"),
        objects::policy("shop", "web-policy", &spec),
    ]));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    fs::write(&path, server.kubeconfig()).unwrap();
    let path = path.display().to_string();
    let ask = |from: &str| run(&[from, "shop/web-0", "80", "--kubeconfig", &path], "");
    let answer = ask("10.244.0.8");
    answer.says(1, "denied: shop/batch-0 -> shop/web-0, port 80/TCP");
    assert!(answer.out.contains("app=frontend did not match app=batch"));
    // The workload's name, which no object of these kinds has, or which its service has as well.
    for port in ["8080", "80"] {
        let args = ["shop/batch", "shop/web", port, "--kubeconfig", &path];
        run(&args, "").says(1, "denied: shop/batch-0 -> shop/web-0, port 8080/TCP");
    }
    ask("10.224.0.4").says(0, "allowed: a node (10.224.0.4) -> shop/web-0, port 80/TCP");
    ask("10.244.0.9").says(
        2,
        "undetermined: an unknown pod at 10.244.0.9 -> shop/web-0, port 80/TCP",
    );
    drop(server);
    ask("10.244.0.8").fails(69, "Kubernetes API: cannot list pods: ");
}

#[test]
fn an_answer_of_the_api_that_lacks_something_is_no_verdict() {
    let server = ApiServer::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    fs::write(&path, server.kubeconfig()).unwrap();
    let path = path.display().to_string();
    let args = ["192.0.2.1", "192.0.2.2", "80", "--kubeconfig", &path];
    let fails = |body: String, text: &str| {
        server.fail(Verb::List, "networkpolicies", 1, Fault::Body(body));
        run(&args, "").fails(69, text);
    };
    let no_list =
        "Kubernetes API: cannot list networkpolicies: its answer is no list of objects; give";
    fails("{}".to_owned(), no_list);
    fails(r#"{"kind":"Status","metadata":{}}"#.to_owned(), no_list);
    let huge = "x".repeat(9 << 20);
    let body = format!(
        r#"{{"metadata":{{"resourceVersion":"7"}},"items":[{{"metadata":{{"name":"{huge}"}}}}]}}"#
    );
    fails(
        body,
        "Kubernetes API: cannot list networkpolicies: one of them is longer than 8 MiB; give",
    );
    run(&args, "").says(
        0,
        "allowed: 192.0.2.1 outside of the cluster -> 192.0.2.2 outside of the cluster, port 80/TCP",
    );
}

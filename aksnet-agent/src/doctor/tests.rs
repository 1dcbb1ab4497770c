//! Every check on values: a healthy node, each fault at its bounds, and what is not known.

use std::{collections::BTreeSet, path::Path};

use super::{
    CHECKS, Evidence, Report, Severity,
    evidence::{
        Account, Agent, Anomaly, Balanced, Conntrack, Count, Denial, Drop, Fact, Flagged, Gap,
        Leak, Masquerade, Node, Pair, PodIps, Policies, Ports, Probe, Program, SCHEMA, Source,
    },
    examine,
};

const fn count(total: u64, recent: u64) -> Count {
    Count { recent, total }
}

/// What is otherwise than on a healthy node.
type Change = fn(&mut Evidence);

fn fact(value: &str) -> Fact {
    Fact {
        value: Some(value.to_owned()),
        because: vec![format!("a trace of {value}")],
    }
}

/// A node of AKS with nothing wrong, of which everything is known.
fn healthy() -> Evidence {
    let program = |name: &str| Program {
        program: name.to_owned(),
        hook: "tcx_ingress".to_owned(),
        up: true,
        state: "attached".to_owned(),
    };
    let source = Source {
        synced: true,
        connected: true,
        last_error: None,
    };
    let sources = ["local_pods", "services", "nodes", "network_policies"];
    Evidence {
        schema: SCHEMA,
        // 26 November 2026.
        taken_unix_s: 1_795_651_200,
        window_s: 300.0,
        agent: Agent {
            version: "0.1.0".to_owned(),
            uptime_s: 900,
            ready: true,
            programs: ["enter", "exit", "drop"].map(program).into(),
            flow_cells: 100,
            flow_cells_limit: 65_536,
            asks_kubernetes: true,
            sources: sources.map(|name| (name.to_owned(), source.clone())).into(),
            known_node: Some(true),
            ..Agent::default()
        },
        node: Node {
            name: "aks-1".to_owned(),
            cni: fact("azure_overlay"),
            policy_engine: fact("cilium"),
            proxy_mode: fact("iptables"),
            zone: fact("westeurope-1"),
            masquerade: Masquerade {
                known: true,
                agent: Some("ip-masq-agent".to_owned()),
                chain: "IP-MASQ-AGENT".to_owned(),
                spared: vec!["10.244.0.0/16".to_owned()],
                random_fully: false,
                because: vec!["nat chain IP-MASQ-AGENT".to_owned()],
            },
            kernel: "6.8.0-1059-azure".to_owned(),
            standard_balancer: Some(true),
        },
        pod_ips: PodIps {
            known: true,
            accounts: vec![account(30, 250)],
            ..PodIps::default()
        },
        balanced: Some(vec![Balanced {
            service: "shop/front".to_owned(),
            ..Balanced::default()
        }]),
        policies: Some(Policies {
            known: 3,
            selecting: [("shop/web-policy".to_owned(), 1)].into(),
        }),
        conntrack: Conntrack {
            table_known: Some(true),
            statistics_known: true,
            entries: Some(1_000),
            limit: Some(262_144),
            insert_failed: Some(count(7, 0)),
            drop: Some(count(7, 0)),
            early_drop: Some(count(0, 0)),
        },
        snat_ports: Some(vec![ports("node", 0.1), ports("azure", 0.2)]),
        opened: [("pod_to_pod".to_owned(), count(50, 20))].into(),
        opened_to: [("internet".to_owned(), count(40, 10))].into(),
        scope_bytes: [("same_node".to_owned(), count(10_000, 1_000))].into(),
        probes: vec![probe(60, 0, 0)],
        nat_judged: 2,
        ..Evidence::default()
    }
}

fn account(in_use: u64, limit: u64) -> Account {
    Account {
        source: "azure_cns".to_owned(),
        in_use,
        limit: Some(limit),
        leaked: None,
    }
}

fn ports(of: &str, saturation: f64) -> Ports {
    Ports {
        of: of.to_owned(),
        protocol: "tcp".to_owned(),
        family: "ipv4".to_owned(),
        in_use: 1,
        limit: 1_024,
        saturation,
    }
}

fn probe(answered: u64, refused: u64, unanswered: u64) -> Probe {
    Probe {
        dst: "shop/service/front".to_owned(),
        port: "30080".to_owned(),
        answered: count(answered, answered),
        refused: count(refused, refused),
        unanswered: count(unanswered, unanswered),
    }
}

fn pair(src: &str, dst: &str, recent: u64) -> Pair {
    Pair {
        src: src.to_owned(),
        dst: dst.to_owned(),
        count: count(recent, recent),
    }
}

fn anomaly(anomaly: &str, total: u64, recent: u64) -> Anomaly {
    Anomaly {
        anomaly: anomaly.to_owned(),
        src: "shop/batch".to_owned(),
        dst: "vnet".to_owned(),
        connections: count(total, recent),
    }
}

/// What a check says of a node that is healthy but for this.
fn but(check: &str, change: impl FnOnce(&mut Evidence)) -> Report {
    let mut evidence = healthy();
    change(&mut evidence);
    examine(&evidence, &[check.to_owned()])
}

/// The worst that a check says of a node that is healthy but for this.
fn worst(check: &str, change: impl FnOnce(&mut Evidence)) -> Severity {
    but(check, change).worst
}

/// All that it says.
fn said(report: &Report) -> String {
    serde_json::to_string(report).unwrap()
}

#[test]
fn severities_are_ordered_by_how_bad_they_are() {
    assert!(Severity::ALL.is_sorted());
    let names = Severity::ALL.map(Severity::name);
    assert_eq!(names, ["ok", "unknown", "info", "warning", "critical"]);
    let report = examine(
        &{
            let mut evidence = healthy();
            evidence.pod_ips.accounts = vec![account(250, 250)];
            evidence.node.zone = Fact::default();
            evidence.probes = vec![probe(5, 1, 0)];
            evidence
        },
        &[],
    );
    let severities: Vec<Severity> = report.findings.iter().map(|f| f.severity).collect();
    assert!(severities.iter().rev().is_sorted(), "{severities:?}");
    assert_eq!(report.worst, Severity::Critical);
    assert_eq!(severities.first(), Some(&Severity::Critical));
    assert_eq!(report.count(Severity::Warning), 1);
}

#[test]
fn a_healthy_node_is_ok_in_every_respect() {
    let report = examine(&healthy(), &[]);
    for finding in &report.findings {
        assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
        assert!(finding.fix.is_empty(), "{finding:?}");
    }
    assert_eq!(report.findings.len(), CHECKS.len());
}

#[test]
fn nothing_is_ok_of_which_nothing_is_known() {
    let report = examine(&Evidence::default(), &[]);
    let checks: BTreeSet<&str> = report.findings.iter().map(|f| f.check.as_str()).collect();
    assert_eq!(checks.len(), CHECKS.len());
    for finding in &report.findings {
        let judged = finding.severity != Severity::Unknown;
        // That the API is not asked is known, and that the agent is not ready.
        assert!(!judged || finding.check == "agent", "{finding:?}");
    }
}

#[test]
fn the_checks_that_are_asked_for_run_and_no_others() {
    let names = ["conntrack".to_owned(), "agent".to_owned()];
    let report = examine(&healthy(), &names);
    let checks: Vec<&str> = report.findings.iter().map(|f| f.check.as_str()).collect();
    assert_eq!(checks, ["agent", "conntrack"]);
}

#[test]
fn every_check_is_a_file_has_a_row_in_the_docs_and_a_page_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/doctor.md")).unwrap();
    let files: BTreeSet<String> = std::fs::read_dir(root.join("aksnet-agent/src/doctor/checks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "mod.rs")
        .collect();
    let named = CHECKS
        .iter()
        .map(|check| format!("{}.rs", check.name.replace('-', "_")));
    assert_eq!(named.collect::<BTreeSet<_>>(), files);
    let rows: Vec<&str> = page.lines().filter(|l| l.starts_with("| `")).collect();
    for check in CHECKS {
        let row = format!("| `{}` | {} |", check.name, check.looks_at);
        let found = rows.iter().filter(|line| line.starts_with(&row)).count();
        assert_eq!(found, 1, "docs/doctor.md: rows that begin with {row}");
        let (file, anchor) = check.runbook.split_once('#').unwrap_or((check.runbook, ""));
        let text = std::fs::read_to_string(root.join(file));
        let text = text.unwrap_or_else(|error| panic!("{}: {file}: {error}", check.name));
        let heading = format!("\n### {anchor}\n");
        assert!(
            anchor.is_empty() || text.contains(&heading),
            "{file} has no {heading:?}"
        );
    }
}

#[test]
fn the_fields_of_report_and_evidence_are_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/doctor.md")).unwrap();
    let report = but("conntrack", |e| e.conntrack.entries = None);
    let report = serde_json::to_value(report).unwrap();
    let evidence = serde_json::to_value(healthy()).unwrap();
    for object in [&report, &report["findings"][0], &evidence] {
        for field in object.as_object().unwrap().keys() {
            assert!(
                page.contains(&format!("`{field}`")),
                "docs/doctor.md lacks {field}"
            );
        }
    }
}

#[test]
fn evidence_survives_a_file_and_an_older_one_reads_as_not_known() {
    let evidence = healthy();
    let text = serde_json::to_string(&evidence).unwrap();
    assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
    let older = r#"{"schema": 1, "node": {"name": "aks-1"}, "of_the_future": 3}"#;
    let older: Evidence = serde_json::from_str(older).unwrap();
    assert_eq!((older.node.name.as_str(), older.balanced), ("aks-1", None));
}

#[test]
fn every_finding_that_is_bad_has_evidence_and_a_fix() {
    let report = examine(&everything_is_wrong(), &[]);
    for finding in &report.findings {
        if finding.severity >= Severity::Info {
            assert!(!finding.fix.is_empty(), "{finding:?}");
            assert!(
                !finding.title.is_empty() && !finding.title.contains('\n'),
                "{finding:?}"
            );
        }
        assert!(finding.runbook.starts_with("docs/"), "{finding:?}");
    }
    let bad: BTreeSet<&str> = report
        .findings
        .iter()
        .filter(|f| f.severity >= Severity::Info)
        .map(|f| f.check.as_str())
        .collect();
    let all: BTreeSet<&str> = CHECKS.iter().map(|check| check.name).collect();
    assert_eq!(bad, all, "every check can find something");
}

fn everything_is_wrong() -> Evidence {
    let mut evidence = healthy();
    evidence.agent.ready = false;
    evidence.agent.not_ready_because = Some("veth1: no memory".to_owned());
    evidence.node.cni = fact("kubenet");
    evidence.node.policy_engine = fact("none");
    evidence.pod_ips.accounts = vec![account(250, 250)];
    evidence.balanced = Some(vec![Balanced {
        service: "shop/front".to_owned(),
        pending: true,
        pending_before: true,
        ..Balanced::default()
    }]);
    evidence.probes = vec![probe(0, 3, 0)];
    evidence.denials = vec![denial("exact", 4)];
    evidence.conntrack.entries = Some(262_144);
    evidence.conntrack.insert_failed = Some(count(20, 20));
    evidence.conntrack.drop = Some(count(50, 50));
    evidence.snat_ports = Some(vec![ports("node", 1.0), ports("azure", 0.9)]);
    evidence.anomalies = vec![
        anomaly("pod_to_pod_snat", 5, 5),
        anomaly("egress_without_snat", 5, 5),
    ];
    evidence.unanswered = vec![pair("shop/batch", "internet", 4)];
    evidence.drops = vec![drop("nat", 20)];
    evidence.scope_bytes = [("cross_zone".to_owned(), count(1 << 30, 1 << 30))].into();
    evidence.nat_flagged = vec![Flagged {
        class: "pod_to_service".to_owned(),
        nat: "dnat".to_owned(),
    }];
    evidence
}

#[test]
fn an_agent_that_is_blind_is_critical_and_one_without_drops_a_warning() {
    let down = |name: &'static str| {
        move |evidence: &mut Evidence| {
            let programs = evidence.agent.programs.iter_mut();
            for program in programs.filter(|p| p.program == name) {
                program.up = false;
                program.state = "failed: no room".to_owned();
            }
        }
    };
    assert_eq!(worst("agent", down("enter")), Severity::Critical);
    let report = but("agent", down("drop"));
    assert_eq!(report.worst, Severity::Warning);
    assert!(said(&report).contains("drops-not-visible.md"));
    // What it would have seen is not judged.
    for check in ["drops", "policy-denials"] {
        assert_eq!(worst(check, down("drop")), Severity::Unknown, "{check}");
    }
    for check in [
        "lb-probes",
        "pod-to-pod-snat",
        "egress-snat",
        "unanswered",
        "cross-zone",
        "nat-time",
    ] {
        assert_eq!(worst(check, down("exit")), Severity::Unknown, "{check}");
    }
}

#[test]
fn what_keeps_the_agent_from_seeing_is_told() {
    let warnings: [(&str, Change); 5] = [
        ("veth1: rejected", |e| {
            e.agent.unattached = vec!["veth1: rejected".to_owned()];
        }),
        ("9 packets were counted", |e| e.agent.overflow = count(9, 9)),
        ("100 %", |e| e.agent.flow_cells = 65_536),
        ("no node 'aks-1'", |e| e.agent.known_node = Some(false)),
        ("services: out of touch: 403", |e| {
            let services = e.agent.sources.get_mut("services").unwrap();
            services.connected = false;
            services.last_error = Some("403".to_owned());
        }),
    ];
    for (words, change) in warnings {
        let report = but("agent", change);
        assert_eq!(report.worst, Severity::Warning, "{words}");
        assert!(said(&report).contains(words), "{words}: {report:?}");
    }
    let broken = |e: &mut Evidence| e.agent.sweep_error = Some("no map".to_owned());
    assert_eq!(worst("agent", broken), Severity::Critical);
    let alone = |e: &mut Evidence| e.agent.asks_kubernetes = false;
    assert_eq!(worst("agent", alone), Severity::Info);
    // The container runtime only fills in.
    let no_runtime = |e: &mut Evidence| {
        e.agent
            .sources
            .insert("sandboxes".to_owned(), Source::default());
    };
    assert_eq!(worst("agent", no_runtime), Severity::Ok);
}

#[test]
fn pod_addresses_run_out_at_the_limit_and_near_it() {
    let with = |in_use| move |e: &mut Evidence| e.pod_ips.accounts = vec![account(in_use, 250)];
    for (in_use, severity) in [
        (224, Severity::Ok),
        (225, Severity::Warning),
        (249, Severity::Warning),
        (250, Severity::Critical),
        (251, Severity::Critical),
    ] {
        assert_eq!(worst("pod-ips", with(in_use)), severity, "{in_use}");
    }
    let leaked = but("pod-ips", |e| {
        e.pod_ips.leaks = vec![Leak {
            address: [10, 244, 0, 9].into(),
            file: "/var/lib/cni/networks/kubenet/10.244.0.9".to_owned(),
            container: "0123456789abcdef".to_owned(),
            since_unix_s: e.taken_unix_s - 7_200,
        }];
    });
    assert_eq!(leaked.worst, Severity::Warning);
    for words in [
        "10.244.0.9 held for 2 h by container 0123456789abc,",
        "rm /var/lib/cni",
    ] {
        assert!(said(&leaked).contains(words), "{leaked:?}");
    }
    let skipped = but("pod-ips", |e| {
        e.pod_ips.skipped = vec![("host_local".to_owned(), "permission denied".to_owned())];
    });
    assert_eq!(skipped.worst, Severity::Unknown);
    assert_eq!(
        worst("pod-ips", |e| e.pod_ips.accounts.clear()),
        Severity::Unknown
    );
    let unlimited = |e: &mut Evidence| e.pod_ips.accounts[0].limit = None;
    assert_eq!(worst("pod-ips", unlimited), Severity::Unknown);
}

#[test]
fn a_pending_service_gets_worse_with_time() {
    let waiting = |pending_s, pending_before| {
        move |e: &mut Evidence| {
            e.balanced = Some(vec![Balanced {
                service: "shop/front".to_owned(),
                pending: true,
                pending_s,
                pending_before,
                ..Balanced::default()
            }]);
        }
    };
    for (seconds, before, severity) in [
        (5, false, Severity::Info),
        (119, false, Severity::Info),
        (120, false, Severity::Warning),
        (5, true, Severity::Warning),
        (600, false, Severity::Critical),
    ] {
        assert_eq!(
            worst("lb-pending", waiting(seconds, before)),
            severity,
            "{seconds}"
        );
    }
    assert_eq!(
        worst("lb-pending", |e| e.balanced = None),
        Severity::Unknown
    );
    assert_eq!(
        worst("lb-pending", |e| e.balanced = Some(vec![])),
        Severity::Ok
    );
}

#[test]
fn probes_are_judged_by_port_and_only_where_there_are_some() {
    for (probes, severity) in [
        (vec![probe(9, 0, 0)], Severity::Ok),
        (vec![probe(9, 0, 1)], Severity::Warning),
        (vec![probe(0, 0, 4)], Severity::Critical),
        (vec![probe(9, 0, 0), probe(0, 4, 0)], Severity::Critical),
        // None was seen, though there is a frontend.
        (vec![], Severity::Info),
    ] {
        let shown = format!("{probes:?}");
        assert_eq!(
            worst("lb-probes", |e| e.probes = probes),
            severity,
            "{shown}"
        );
    }
    let none = |change: fn(&mut Evidence)| {
        worst("lb-probes", |e| {
            e.probes.clear();
            change(e);
        })
    };
    assert_eq!(none(|e| e.window_s = 15.0), Severity::Unknown);
    assert_eq!(none(|e| e.balanced = None), Severity::Unknown);
    assert_eq!(none(|e| e.balanced = Some(vec![])), Severity::Ok);
    let silent = but("lb-probes", |e| e.probes = vec![probe(0, 0, 4)]);
    assert!(said(&silent).contains("168.63.129.16"), "{silent:?}");
}

fn gap(total: u64, recent: u64) -> Gap {
    Gap {
        policy: "shop/web-policy".to_owned(),
        direction: "ingress".to_owned(),
        src: "shop/batch".to_owned(),
        dst: "shop/web".to_owned(),
        connections: count(total, recent),
    }
}

#[test]
fn a_policy_without_an_engine_is_critical_and_what_an_engine_lets_through_too() {
    let check = "policy-unenforced";
    let no_engine = |e: &mut Evidence| e.node.policy_engine = fact("none");
    let report = but(check, no_engine);
    assert_eq!(report.worst, Severity::Critical);
    assert!(said(&report).contains("shop/web-policy selects 1 pod here"));
    assert_eq!(
        worst(check, |e| e.gaps = vec![gap(3, 3)]),
        Severity::Critical
    );
    assert_eq!(worst(check, |e| e.gaps = vec![gap(3, 0)]), Severity::Info);
    let unread = |e: &mut Evidence| e.node.policy_engine = Fact::default();
    assert_eq!(worst(check, unread), Severity::Unknown);
    assert_eq!(worst(check, |e| e.policies = None), Severity::Unknown);
    let none_here = |e: &mut Evidence| {
        no_engine(e);
        e.policies = Some(Policies {
            known: 3,
            ..Policies::default()
        });
    };
    assert_eq!(worst(check, none_here), Severity::Ok);
}

fn denial(confidence: &str, recent: u64) -> Denial {
    Denial {
        policy: "shop/web-policy".to_owned(),
        direction: "ingress".to_owned(),
        confidence: confidence.to_owned(),
        engine: "cilium".to_owned(),
        src: "shop/batch".to_owned(),
        dst: "shop/web".to_owned(),
        packets: count(recent + 10, recent),
        connections: count(recent + 10, recent),
        why: "no rule allows it".to_owned(),
    }
}

#[test]
fn denials_are_named_while_they_are_recent() {
    let check = "policy-denials";
    let recent = but(check, |e| e.denials = vec![denial("exact", 4)]);
    assert_eq!(recent.worst, Severity::Warning);
    for words in [
        "shop/web-policy denied 4 connections (4 packets) in the last 5 min",
        "no rule allows it",
        "explain shop/batch shop/web PORT",
    ] {
        assert!(said(&recent).contains(words), "{recent:?}");
    }
    let unsure = but(check, |e| e.denials = vec![denial("candidates", 4)]);
    assert!(said(&unsure).contains("(one of these)"), "{unsure:?}");
    let long_ago = but(check, |e| e.denials = vec![denial("exact", 0)]);
    assert_eq!(long_ago.worst, Severity::Ok);
    assert!(said(&long_ago).contains("10 packets since the agent's start"));
}

#[test]
fn conntrack_is_judged_by_room_and_by_what_it_lost() {
    let with = |percent: u64, drop, failed, evicted| {
        worst("conntrack", |e| {
            e.conntrack.limit = Some(1_000);
            e.conntrack.entries = Some(percent * 10);
            e.conntrack.drop = Some(count(100, drop));
            e.conntrack.insert_failed = Some(count(100, failed));
            e.conntrack.early_drop = Some(count(100, evicted));
        })
    };
    assert_eq!(with(79, 0, 0, 0), Severity::Ok);
    assert_eq!(with(80, 0, 0, 0), Severity::Warning);
    assert_eq!(with(95, 0, 0, 0), Severity::Critical);
    assert_eq!(
        with(85, 9, 0, 0),
        Severity::Critical,
        "it dropped for want of room"
    );
    assert_eq!(with(10, 9, 0, 0), Severity::Warning);
    assert_eq!(with(10, 0, 0, 2), Severity::Warning);
    // A failed insert is a drop, too, and no want of room.
    assert_eq!(with(10, 2, 2, 0), Severity::Info);
    assert_eq!(with(10, 3, 3, 0), Severity::Warning);
    assert_eq!(
        worst("conntrack", |e| e.conntrack.entries = None),
        Severity::Unknown
    );
    let blind = |e: &mut Evidence| e.conntrack.statistics_known = false;
    assert_eq!(worst("conntrack", blind), Severity::Unknown);
}

#[test]
fn ports_are_judged_by_the_busiest_destination() {
    for (node, azure, severity) in [
        (0.79, 0.79, Severity::Ok),
        (0.8, 0.1, Severity::Warning),
        (0.1, 0.8, Severity::Warning),
        (0.95, 0.1, Severity::Critical),
        (0.1, 1.2, Severity::Critical),
    ] {
        let ports = vec![ports("node", node), ports("azure", azure)];
        let of = worst("snat-ports", |e| e.snat_ports = Some(ports));
        assert_eq!(of, severity, "{node} {azure}");
    }
    assert_eq!(
        worst("snat-ports", |e| e.snat_ports = None),
        Severity::Unknown
    );
    let no_azure = but("snat-ports", |e| {
        e.snat_ports = Some(vec![ports("node", 0.1)]);
    });
    assert!(
        said(&no_azure).contains("Azure's are not known"),
        "{no_azure:?}"
    );
}

#[test]
fn clashes_are_the_rules_fault_only_if_it_keeps_ports() {
    let clash = |failed, random_fully| {
        worst("snat-clash", |e| {
            e.conntrack.insert_failed = Some(count(100, failed));
            e.node.masquerade.random_fully = random_fully;
        })
    };
    assert_eq!(clash(0, false), Severity::Ok);
    assert_eq!(clash(2, false), Severity::Info);
    assert_eq!(clash(3, false), Severity::Warning);
    assert_eq!(clash(30, true), Severity::Ok);
    let unread = |e: &mut Evidence| e.node.masquerade = Masquerade::default();
    assert_eq!(worst("snat-clash", unread), Severity::Unknown);
    let blind = |e: &mut Evidence| e.conntrack.insert_failed = None;
    assert_eq!(worst("snat-clash", blind), Severity::Unknown);
}

#[test]
fn pods_with_a_nodes_address_are_found_and_no_pods_are_not_judged() {
    let check = "pod-to-pod-snat";
    let with = |total, recent| {
        worst(check, |e| {
            e.anomalies = vec![anomaly("pod_to_pod_snat", total, recent)];
        })
    };
    assert_eq!(with(5, 2), Severity::Warning);
    assert_eq!(with(5, 0), Severity::Info);
    assert_eq!(worst(check, |e| e.opened.clear()), Severity::Unknown);
    let other = |e: &mut Evidence| e.anomalies = vec![anomaly("extra_hop", 5, 5)];
    assert_eq!(worst(check, other), Severity::Ok);
}

#[test]
fn egress_without_nat_is_worse_if_nobody_answers_and_worst_without_an_agent() {
    let check = "egress-snat";
    let anomalous = |recent| vec![anomaly("egress_without_snat", 5, recent)];
    assert_eq!(
        worst(check, |e| e.anomalies = anomalous(2)),
        Severity::Warning
    );
    assert_eq!(worst(check, |e| e.anomalies = anomalous(0)), Severity::Info);
    let silent = |e: &mut Evidence| {
        e.anomalies = anomalous(2);
        e.unanswered = vec![pair("shop/batch", "vnet", 2)];
    };
    assert_eq!(worst(check, silent), Severity::Critical);
    let no_agent = |cni: &'static str| {
        worst(check, move |e| {
            e.node.cni = fact(cni);
            e.node.masquerade.agent = None;
        })
    };
    for (cni, severity) in [
        ("kubenet", Severity::Critical),
        ("azure_overlay", Severity::Critical),
        ("azure_node_subnet", Severity::Warning),
        ("azure_pod_subnet", Severity::Ok),
        ("azure_cilium", Severity::Ok),
    ] {
        assert_eq!(no_agent(cni), severity, "{cni}");
    }
    let unread = |e: &mut Evidence| e.node.masquerade = Masquerade::default();
    assert_eq!(worst(check, unread), Severity::Unknown);
    assert_eq!(worst(check, |e| e.opened_to.clear()), Severity::Unknown);
    assert_eq!(
        worst(check, |e| e.node.cni = Fact::default()),
        Severity::Unknown
    );
}

#[test]
fn more_than_chance_crosses_zones() {
    let with = |crossing: u64, within: u64| {
        worst("cross-zone", |e| {
            e.scope_bytes = [
                ("cross_zone".to_owned(), count(crossing, crossing)),
                ("same_node".to_owned(), count(within, within)),
            ]
            .into();
        })
    };
    let mib = 1 << 20;
    assert_eq!(with(mib, 30 * mib), Severity::Ok);
    assert_eq!(with(67 * mib, 33 * mib), Severity::Info);
    assert_eq!(with(81 * mib, 19 * mib), Severity::Warning);
    assert_eq!(with(9 * mib, 0), Severity::Info, "too little to say");
    assert_eq!(with(0, 0), Severity::Unknown);
    let elsewhere = |e: &mut Evidence| {
        let far = count(20_000, 20_000);
        e.scope_bytes.insert("cross_node".to_owned(), far);
    };
    assert_eq!(worst("cross-zone", elsewhere), Severity::Unknown);
    assert_eq!(
        worst("cross-zone", |e| e.node.zone = Fact::default()),
        Severity::Unknown
    );
    assert_eq!(
        worst("cross-zone", |e| e.node.zone = fact("")),
        Severity::Ok
    );
}

#[test]
fn silence_is_worse_the_more_there_is_of_it() {
    let with = |silent: u64, opened: u64| {
        worst("unanswered", |e| {
            e.unanswered = vec![pair("shop/batch", "internet", silent)];
            e.opened_to = [("internet".to_owned(), count(opened, opened))].into();
        })
    };
    assert_eq!(with(0, 9), Severity::Ok);
    assert_eq!(with(2, 9), Severity::Info);
    assert_eq!(with(3, 9), Severity::Warning);
    assert_eq!(with(20, 100), Severity::Warning);
    assert_eq!(with(20, 22), Severity::Critical);
    assert_eq!(worst("unanswered", |e| e.window_s = 5.0), Severity::Unknown);
    assert_eq!(
        worst("unanswered", |e| e.opened_to.clear()),
        Severity::Unknown
    );
}

fn drop(cause: &str, recent: u64) -> Drop {
    Drop {
        cause: cause.to_owned(),
        reason: "netfilter_drop".to_owned(),
        src: "shop/batch".to_owned(),
        dst: "internet".to_owned(),
        packets: count(recent, recent),
        why: String::new(),
    }
}

#[test]
fn drops_are_told_by_cause_and_policies_have_a_check_of_their_own() {
    let with = |drops: Vec<Drop>| but("drops", |e| e.drops = drops);
    assert_eq!(with(vec![drop("policy", 99)]).worst, Severity::Ok);
    assert_eq!(with(vec![drop("route", 9)]).worst, Severity::Info);
    let two = with(vec![drop("route", 10), drop("azure_platform_block", 99)]);
    let severities: Vec<_> = two.findings.iter().map(|f| f.severity).collect();
    assert_eq!(severities, [Severity::Warning, Severity::Info]);
    assert_eq!(
        two.findings[1].runbook,
        "docs/runbooks/azure-platform-block.md"
    );
}

#[test]
fn nat_time_is_judged_where_there_are_samples() {
    assert_eq!(worst("nat-time", |e| e.nat_judged = 0), Severity::Unknown);
    let flagged = Flagged {
        class: "pod_to_service".to_owned(),
        nat: "dnat".to_owned(),
    };
    assert_eq!(
        worst("nat-time", |e| e.nat_flagged = vec![flagged]),
        Severity::Warning
    );
}

#[test]
fn end_dates_come_nearer() {
    let check = "end-dates";
    let on = |change: fn(&mut Evidence), unix_s: u64| {
        but(check, |e| {
            change(e);
            e.taken_unix_s = unix_s;
        })
    };
    let kubenet = |e: &mut Evidence| e.node.cni = fact("kubenet");
    let npm = |e: &mut Evidence| e.node.policy_engine = fact("azure_npm");
    // 26 November 2026; 1 October 2027 and 1 April 2028, either side of half a year and of the end.
    let now = 1_795_651_200;
    let report = on(kubenet, now);
    assert_eq!(report.worst, Severity::Info);
    assert!(
        said(&report).contains("31 March 2028 (in 491 days)"),
        "{report:?}"
    );
    assert_eq!(on(kubenet, 1_822_348_800).worst, Severity::Warning);
    let ended = on(kubenet, 1_838_160_000);
    assert_eq!(ended.worst, Severity::Warning);
    assert!(said(&ended).contains("that was 24 h ago"), "{ended:?}");
    assert!(said(&on(npm, now)).contains("30 September 2028"));
    // Which load balancer it is shows from a zone, or from what Azure says.
    let balancer = |standard: Option<bool>, frontends: bool| {
        worst(check, |e| {
            e.node.zone = fact("");
            e.node.standard_balancer = standard;
            if frontends {
                let front = e.balanced.as_mut().unwrap().first_mut().unwrap();
                front.frontends = vec![[20, 50, 1, 1].into()];
            }
        })
    };
    assert_eq!(balancer(Some(true), true), Severity::Ok);
    assert_eq!(balancer(Some(false), true), Severity::Warning);
    assert_eq!(balancer(Some(false), false), Severity::Unknown);
    assert_eq!(balancer(None, true), Severity::Unknown);
    let kind = |e: &mut Evidence| {
        e.node.cni = fact("kindnet");
        e.node.zone = fact("");
    };
    assert_eq!(worst(check, kind), Severity::Ok);
}

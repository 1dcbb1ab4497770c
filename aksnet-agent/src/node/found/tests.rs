//! What follows from the evidence of each kind of node, and from none.

use super::*;
use crate::node::{
    link::Link,
    rules::{Chain, Family, NotKnown, Rule, Rules, Table, Verdict},
    tests::{address, azure_transparent, kind, kubenet, link, route, veth},
};
use conflist::Conflist;
use evidence::Evidence;

/// Evidence that shows nothing but the snapshot.
pub(crate) fn evidence(snapshot: &Snapshot) -> Evidence<'_> {
    Evidence {
        conflist: Ok(None),
        snapshot,
        rules: Rules {
            nft: Ok(vec![]),
            legacy: Ok(vec![]),
            legacy6: Ok(vec![]),
        },
        labels: None,
        compute: None,
        kernel: "6.8.0".to_owned(),
    }
}

fn conflist(file: &str, text: &str) -> Conflist {
    Conflist::parse(file, text.as_bytes()).unwrap()
}

fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.to_owned(),
        hook: None,
        rules,
    }
}

fn table(name: &str, chains: Vec<Chain>) -> Table {
    Table {
        family: Family::Ip,
        name: name.to_owned(),
        chains,
        sets: vec![],
    }
}

fn spare(net: &str) -> Rule {
    Rule {
        destination: Some((net.parse().unwrap(), false)),
        verdict: Verdict::Return,
        ..Rule::default()
    }
}

fn does(verdict: Verdict) -> Rule {
    Rule {
        verdict,
        ..Rule::default()
    }
}

fn refused() -> Reading {
    Err(NotKnown("not permitted".to_owned()))
}

type Reading = crate::node::rules::Reading<Vec<Table>>;

fn with(snapshot: &Snapshot, extra: &[Link]) -> Snapshot {
    let mut snapshot = snapshot.clone();
    snapshot.links.extend(extra.iter().cloned());
    snapshot
}

#[test]
fn each_configuration_names_its_cni() {
    let azure = |ipam: &str| {
        format!(r#"{{"name": "azure", "plugins": [{{"type": "azure-vnet", "ipam": {ipam}}}]}}"#)
    };
    let cases = [
        (
            r#"{"name":"kubenet","plugins":[{"type":"bridge","bridge":"cbr0"}]}"#.to_owned(),
            "kubenet",
        ),
        (azure(r#"{"type":"azure-vnet-ipam"}"#), "azure_node_subnet"),
        (azure(r#"{"type":"azure-cns"}"#), "azure_pod_subnet"),
        (
            azure(r#"{"type":"azure-cns","mode":"v4overlay"}"#),
            "azure_overlay",
        ),
        (
            azure(r#"{"type":"azure-cns","mode":"dualStackOverlay"}"#),
            "azure_overlay",
        ),
        (
            r#"{"name":"cilium","plugins":[{"type":"cilium-cni","ipam":{"type":"azure-ipam"}}]}"#
                .to_owned(),
            "azure_cilium",
        ),
        (
            r#"{"name":"cilium","plugins":[{"type":"cilium-cni"}]}"#.to_owned(),
            "cilium",
        ),
        (
            r#"{"name":"kindnet","plugins":[{"type":"ptp"}]}"#.to_owned(),
            "kindnet",
        ),
        (
            r#"{"name":"k8s-pod-network","plugins":[{"type":"calico"}]}"#.to_owned(),
            "calico",
        ),
        (
            r#"{"name":"cbr0","plugins":[{"type":"flannel"}]}"#.to_owned(),
            "flannel",
        ),
    ];
    let snapshot = Snapshot::default();
    for (text, cni) in cases {
        let evidence = Evidence {
            conflist: Ok(Some(conflist("10-x.conflist", &text))),
            ..evidence(&snapshot)
        };
        assert_eq!(cni::conclude(&evidence).value, Some(cni), "{text}");
    }
}

#[test]
fn without_a_configuration_interfaces_name_the_cni() {
    let cilium = with(
        &Snapshot::default(),
        &[link(2, "cilium_host", "veth"), veth(3, "lxc12ab")],
    );
    let calico = with(&Snapshot::default(), &[veth(3, "cali0123456789a")]);
    let mut overlay = azure_transparent();
    overlay.routes.retain(|r| !r.is_host());
    overlay.routes.push(route("10.244.0.10/32", "", 3));
    for (snapshot, cni) in [
        (&kubenet(), "kubenet"),
        (&azure_transparent(), "azure_node_subnet"),
        (&overlay, "azure_overlay"),
        (&cilium, "cilium"),
        (&calico, "calico"),
    ] {
        assert_eq!(cni::conclude(&evidence(snapshot)).value, Some(cni));
    }
}

#[test]
fn labels_tell_azures_modes_apart() {
    let snapshot = azure_transparent();
    let labels = Labels::from([(
        "kubernetes.azure.com/podnetwork-type".to_owned(),
        "overlay".to_owned(),
    )]);
    let labelled = Evidence {
        labels: Some(&labels),
        ..evidence(&snapshot)
    };
    assert_eq!(cni::conclude(&labelled).value, Some("azure_overlay"));
    let cilium = with(
        &Snapshot::default(),
        &[link(2, "cilium_host", "veth"), veth(3, "lxc12ab")],
    );
    let labels = Labels::from([(
        "kubernetes.azure.com/ebpf-dataplane".to_owned(),
        "cilium".to_owned(),
    )]);
    let labelled = Evidence {
        labels: Some(&labels),
        ..evidence(&cilium)
    };
    assert_eq!(cni::conclude(&labelled).value, Some("azure_cilium"));
}

#[test]
fn what_speaks_against_a_conclusion_is_listed() {
    let snapshot = kubenet();
    let evidence = Evidence {
        conflist: Ok(Some(conflist(
            "05-cilium.conflist",
            r#"{"plugins":[{"type":"cilium-cni"}]}"#,
        ))),
        ..evidence(&snapshot)
    };
    let cni = cni::conclude(&evidence);
    assert_eq!(cni.value, Some("cilium"));
    let last = cni.evidence.last().unwrap();
    assert_eq!(last, "against it: interfaces look like kubenet");
}

#[test]
fn a_configuration_that_cannot_be_read_leaves_the_cni_not_known() {
    let snapshot = kind();
    let evidence = Evidence {
        conflist: Err(NotKnown("permission denied".to_owned())),
        ..evidence(&snapshot)
    };
    let cni = cni::conclude(&evidence);
    assert_eq!(cni.value, None);
    assert!(cni.evidence[0].contains("permission denied"));
}

#[test]
fn each_proxy_mode_has_its_trace() {
    let services = || table("nat", vec![chain("KUBE-SERVICES", vec![])]);
    let mode = |links: &[Link], nft: Vec<Table>| {
        let snapshot = with(&Snapshot::default(), links);
        let mut evidence = evidence(&snapshot);
        evidence.rules.nft = Ok(nft);
        proxy::conclude(&evidence)
    };
    let ipvs = link(9, "kube-ipvs0", "dummy");
    let cilium = link(9, "cilium_host", "veth");
    assert_eq!(mode(&[], vec![services()]).value, Some("iptables"));
    assert_eq!(
        mode(std::slice::from_ref(&ipvs), vec![services()]).value,
        Some("ipvs")
    );
    let nft = table("kube-proxy", vec![]);
    let both = mode(&[ipvs], vec![nft]);
    assert_eq!(both.value, Some("nftables"));
    assert_eq!(both.evidence[1], "against it: interface kube-ipvs0");
    assert_eq!(
        mode(std::slice::from_ref(&cilium), vec![]).value,
        Some("ebpf")
    );
    assert_eq!(mode(&[cilium], vec![services()]).value, Some("iptables"));
    assert_eq!(mode(&[], vec![]).value, Some("none"));
}

#[test]
fn each_policy_engine_has_its_trace() {
    let engine = |tables: Vec<Table>| {
        let snapshot = Snapshot::default();
        let mut evidence = evidence(&snapshot);
        evidence.rules.nft = Ok(tables);
        policy::conclude(&evidence)
    };
    let filter = |name| vec![table("filter", vec![chain(name, vec![])])];
    let npm = engine(filter("AZURE-NPM"));
    assert_eq!(npm.value, Some("azure_npm"));
    assert_eq!(
        npm.evidence,
        ["filter chain AZURE-NPM (ip, nf_tables) with 0 rules"]
    );
    assert_eq!(engine(filter("cali-FORWARD")).value, Some("calico"));
    assert_eq!(engine(filter("CILIUM_FORWARD")).value, Some("cilium"));
    let kindnet = table("kindnet-network-policies", vec![]);
    assert_eq!(engine(vec![kindnet]).value, Some("kindnet"));
    let standalone = table("kube-network-policies", vec![]);
    assert_eq!(
        engine(vec![standalone]).value,
        Some("kube_network_policies")
    );
    assert_eq!(engine(vec![]).value, Some("none"));
}

#[test]
fn an_unreadable_source_is_not_known_and_never_none() {
    let snapshot = Snapshot::default();
    for source in 0..3 {
        let mut evidence = evidence(&snapshot);
        let rules = &mut evidence.rules;
        *[&mut rules.nft, &mut rules.legacy, &mut rules.legacy6][source] = refused();
        let found = conclude(&evidence);
        assert_eq!(found.proxy_mode.value, None);
        assert_eq!(found.policy_engine.value, None);
        assert_eq!(found.masquerade.value, None);
        assert!(found.proxy_mode.evidence[0].contains("not permitted"));
        assert_eq!(found.to_json()["policy_engine"]["value"], "not known");
    }
}

#[test]
fn what_one_backend_shows_is_known_though_the_other_is_unreadable() {
    let snapshot = Snapshot::default();
    let mut evidence = evidence(&snapshot);
    evidence.rules.nft = refused();
    evidence.rules.legacy = Ok(vec![table("filter", vec![chain("AZURE-NPM", vec![])])]);
    let policy = conclude(&evidence).policy_engine;
    assert_eq!(policy.value, Some("azure_npm"));
    assert_eq!(
        policy.evidence[1],
        "nf_tables cannot be read: not permitted"
    );
}

#[test]
fn rules_in_the_backend_that_kubelet_does_not_use_are_marked() {
    let snapshot = Snapshot::default();
    let mut evidence = evidence(&snapshot);
    evidence.rules.nft = Ok(vec![table(
        "mangle",
        vec![chain("KUBE-IPTABLES-HINT", vec![])],
    )]);
    evidence.rules.legacy = Ok(vec![table("filter", vec![chain("AZURE-NPM", vec![])])]);
    let policy = conclude(&evidence).policy_engine;
    assert_eq!(
        policy.evidence[0],
        "filter chain AZURE-NPM (ip, x_tables for IPv4, which kubelet does not use) with 0 rules"
    );
}

#[test]
fn the_masquerade_agent_has_its_ranges_and_ways() {
    let agent = |rules: Vec<Rule>| {
        let snapshot = Snapshot::default();
        let mut evidence = evidence(&snapshot);
        let jump = does(Verdict::Jump("IP-MASQ-AGENT".to_owned()));
        evidence.rules.nft = Ok(vec![table(
            "nat",
            vec![
                chain("POSTROUTING", vec![jump]),
                chain("IP-MASQ-AGENT", rules),
            ],
        )]);
        masquerade::conclude(&evidence)
    };
    let masquerade = |random_fully| does(Verdict::Masquerade { random_fully });
    let found = agent(vec![
        spare("169.254.0.0/16"),
        spare("10.244.0.0/16"),
        masquerade(false),
    ]);
    assert_eq!(found.evidence, ["nat chain IP-MASQ-AGENT (ip, nf_tables)"]);
    let found = found.value.unwrap().unwrap();
    assert_eq!(found.agent, "ip-masq-agent");
    let spared: Vec<String> = found.spared.iter().map(ToString::to_string).collect();
    assert_eq!(spared, ["10.244.0.0/16", "169.254.0.0/16"]);
    assert_eq!(found.link_local, Some(false));
    assert!(!found.random_fully);
    let found = agent(vec![spare("10.244.0.0/16"), masquerade(true)]);
    let found = found.value.unwrap().unwrap();
    assert_eq!((found.link_local, found.random_fully), (Some(true), true));
    // What the agent leaves between two writes.
    assert_eq!(agent(vec![spare("10.0.0.0/8")]).value, Some(None));
}

#[test]
fn the_dns_cache_is_none_of_the_nodes_own_addresses() {
    let mut snapshot = kubenet();
    snapshot.links.push(link(9, "localdns", "dummy"));
    snapshot.links.push(link(10, "kube-ipvs0", "dummy"));
    snapshot.addresses.extend([
        address(9, "169.254.10.10/32"),
        address(9, "169.254.10.11/32"),
        address(10, "10.0.0.1/32"),
    ]);
    let found = conclude(&evidence(&snapshot));
    let text = |addresses: &Finding<Vec<IpAddr>>| -> Vec<String> {
        let addresses = addresses.value.as_ref().unwrap();
        addresses.iter().map(ToString::to_string).collect()
    };
    assert_eq!(text(&found.local_dns), ["169.254.10.10", "169.254.10.11"]);
    assert_eq!(
        text(&found.addresses),
        ["10.224.0.4", "fe80::1", "10.244.0.1"]
    );
}

#[test]
fn labels_win_over_instance_metadata() {
    let snapshot = kubenet();
    let zone = |label: Option<&str>, compute: Option<Compute>| {
        let labels = label.map(|zone| {
            Labels::from([("topology.kubernetes.io/zone".to_owned(), zone.to_owned())])
        });
        let evidence = Evidence {
            labels: labels.as_ref(),
            compute,
            ..evidence(&snapshot)
        };
        place::zone(&evidence)
    };
    let compute = Compute {
        location: "eastus2".to_owned(),
        zone: "2".to_owned(),
    };
    let both = zone(Some("eastus2-1"), Some(compute.clone()));
    assert_eq!(both.value.as_deref(), Some("eastus2-1"));
    assert!(both.evidence[1].contains("against it"), "{both:?}");
    assert_eq!(
        zone(None, Some(compute)).value.as_deref(),
        Some("eastus2-2")
    );
    // A fault domain.
    assert_eq!(zone(Some("0"), None).value.as_deref(), Some(""));
    assert_eq!(zone(None, None).value, None);
}

#[test]
fn the_line_tells_all_with_the_reason() {
    let snapshot = kubenet();
    let mut evidence = evidence(&snapshot);
    evidence.rules.nft = Ok(vec![table("nat", vec![chain("KUBE-SERVICES", vec![])])]);
    assert_eq!(
        conclude(&evidence).line(),
        "this node: CNI kubenet (bridge cbr0 10.244.0.0/24), kube-proxy iptables (nat chain KUBE-SERVICES \
         (ip, nf_tables)), policy engine none (no chain, table or device of a policy engine), masquerading none \
         (no chain of a masquerade agent), zone not known (the node's labels are not known, and no answer of \
         the instance metadata service)"
    );
}

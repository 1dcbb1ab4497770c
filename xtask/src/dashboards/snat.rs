//! Does a node run out of ports, conntrack entries or pod addresses, and when?

use super::panel::{Dashboard, Expect, Panel, Row, Unit};
use super::query::{among_top, from, of, rate, sum};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        uid: "aksnet-snat",
        title: "aksnet / SNAT and conntrack",
        description: "What of a node's ports, conntrack entries and pod addresses is used, by whom, and when they \
                      run out.",
        namespaces: true,
        rows: vec![
            Row::new("SNAT ports", ports()),
            Row::new("Conntrack", conntrack()),
            Row::new("Pod addresses", pod_ips()),
        ],
    }
}

/// Where a gauge will be in an hour, as it went in the last half.
fn in_an_hour(by: &str, what: &str) -> String {
    format!("topk(10, clamp_min(max by ({by}) (predict_linear({what}[30m], 3600)), 0))")
}

fn ports() -> Vec<Panel> {
    let node = "aksnet_snat_port_saturation_ratio";
    let azure = "aksnet_azure_snat_port_saturation_ratio";
    let worst = |metric, by: &str| format!("topk(10, max by ({by}) ({}))", of(metric, ""));
    vec![
        Panel::graph(
            "How near are nodes to running out of SNAT ports?",
            "Ports run out for one destination address and port: the ratio is that of the node's worst one. The \
             ten fullest.",
        )
        .ask(worst(node, "instance, protocol, family"), "{{instance}} {{protocol}} {{family}}")
        .unit(Unit::Ratio)
        .thresholds(0.6, 0.8)
        .runbook("snat-ports")
        .picture(),
        Panel::graph(
            "Where will they be in an hour?",
            "The last half hour drawn on as a straight line. Above 100 %: new connections to that destination \
             will fail within the hour.",
        )
        .ask(
            in_an_hour("instance, protocol", &of(node, "")),
            "{{instance}} {{protocol}}",
        )
        .unit(Unit::Ratio)
        .thresholds(0.8, 1.0)
        .runbook("snat-ports"),
        Panel::graph(
            "How near is Azure's load balancer to running out for a node?",
            "An estimate: connections to the worst public destination by the ports that Azure keeps for the node \
             (1,024 by default on small clusters). Absent without azure_snat_ports, and with a NAT gateway it \
             does not matter.",
        )
        .ask(worst(azure, "instance, protocol"), "{{instance}} {{protocol}}")
        .unit(Unit::Ratio)
        .thresholds(0.6, 0.8)
        .runbook("snat-ports"),
        Panel::graph(
            "How many ports does NAT hold?",
            "Ports of the node's address in use by NAT on the fullest node, how many there are, and how many \
             Azure keeps for a node. One port can serve many destinations at once.",
        )
        .ask(
            format!("max by (protocol, family) ({})", of("aksnet_snat_ports_in_use", "")),
            "{{protocol}} {{family}} in use",
        )
        .ask(
            format!("min by (protocol, family) ({})", of("aksnet_snat_ports_limit", "")),
            "{{protocol}} {{family}} there are",
        )
        .ask(format!("min({})", of("aksnet_azure_snat_ports_limit", "")), "kept by Azure")
        .runbook("snat-ports"),
        Panel::graph(
            "Who uses up the ports?",
            "Live connections with a translated source, of the ten workloads with most. One connection holds one \
             port towards its destination.",
        )
        .ask(
            format!(
                "topk(10, {})",
                sum("src_namespace, src_workload", &from("aksnet_snat_connections", ""))
            ),
            "{{src_namespace}} {{src_workload}}",
        )
        .runbook("snat-ports")
        .picture(),
        Panel::state(
            "Can these numbers be relied on?",
            "Whether the conntrack table is followed without loss, and its statistics are read, on all chosen \
             nodes. While down, ports and connections are absent or as they were.",
        )
        .ask(
            format!("min by (source) ({})", of("aksnet_agent_conntrack_known", "")),
            "{{source}}",
        )
        .at_least(1.0, 1.0)
        .runbook("agent"),
        Panel::graph(
            "How many connections are beyond the agent's limit?",
            "Translated connections beyond conntrack_limit: above 0, ports and connections are lower bounds. And \
             how often the table had to be read anew in a second, by reason.",
        )
        .ask(
            format!("max({})", of("aksnet_agent_conntrack_unmirrored_entries", "")),
            "not mirrored",
        )
        .expect(Expect::Zeros)
        .ask(
            sum("reason", &rate("aksnet_agent_conntrack_resyncs_total", "")),
            "read anew per second: {{reason}}",
        )
        .expect(Expect::Series)
        .runbook("agent"),
    ]
}

fn conntrack() -> Vec<Panel> {
    let ratio = "instance:aksnet_conntrack_entries:ratio";
    let used = format!(
        "{} / {}",
        of("aksnet_conntrack_entries", ""),
        of("aksnet_conntrack_entries_limit", "")
    );
    let lost = |metric| sum("instance", &rate(metric, ""));
    vec![
        Panel::graph(
            "How full is the conntrack table?",
            "Entries of those there may be, on the ten fullest nodes. A full table drops new connections of all \
             pods of the node.",
        )
        .ask(format!("topk(10, max by (instance) ({used}))"), "{{instance}}")
        .unit(Unit::Ratio)
        .thresholds(0.7, 0.9)
        .runbook("conntrack")
        .picture(),
        Panel::graph(
            "Where will it be in an hour?",
            "The last half hour drawn on as a straight line. Recorded (deploy/prometheus/rules.yaml).",
        )
        .ask(in_an_hour("instance", &of(ratio, "")), "{{instance}}")
        .unit(Unit::Ratio)
        .thresholds(0.9, 1.0)
        .runbook("conntrack"),
        Panel::graph(
            "Is conntrack losing connections?",
            "insert failed: two connections took one tuple (a SNAT clash), the packet is lost. dropped: no room \
             or memory. evicted early: an entry went to make room. All are 0 on a node that is well.",
        )
        .ask(lost("aksnet_conntrack_insert_failed_total"), "{{instance}} insert failed")
        .ask(lost("aksnet_conntrack_drop_total"), "{{instance}} dropped")
        .ask(lost("aksnet_conntrack_early_drop_total"), "{{instance}} evicted early")
        .expect(Expect::Series)
        .unit(Unit::PerSecond)
        .runbook("nat")
        .runbook("conntrack")
        .picture(),
        Panel::graph(
            "How many entries are there?",
            "Entries of the ten nodes with most, and the smallest limit of all nodes.",
        )
        .ask(
            format!("topk(10, max by (instance) ({}))", of("aksnet_conntrack_entries", "")),
            "{{instance}}",
        )
        .ask(format!("min({})", of("aksnet_conntrack_entries_limit", "")), "limit")
        .runbook("conntrack"),
    ]
}

fn pod_ips() -> Vec<Panel> {
    let (used, limit) = (
        of("aksnet_pod_ips_in_use", ""),
        of("aksnet_pod_ips_limit", ""),
    );
    let share = format!("{used} / {limit}");
    let by = |what: &str| format!("max by (cluster, instance, source) ({what})");
    vec![
        Panel::graph(
            "How many pod addresses are used?",
            "Share of the addresses that the node can hand out, on the ten fullest, by account. At 100 % new pods \
             stay in ContainerCreating.",
        )
        .ask(
            format!("topk(10, max by (instance, source) ({share}))"),
            "{{instance}} {{source}}",
        )
        .unit(Unit::Ratio)
        .thresholds(0.85, 0.95)
        .runbook("pod-ips"),
        Panel::table(
            "How many are left where?",
            "Share used, addresses in use and left, by node and account, the fullest first. In use without pods: \
             leaked.",
        )
        .ask(format!("topk(50, {})", by(&share)), "Used")
        .column(Unit::Ratio)
        .ask(among_top(50, &by(&used), &by(&share)), "In use")
        .ask(among_top(50, &by(&format!("{limit} - {used}")), &by(&share)), "Left")
        .size(12, 8)
        .runbook("pod-ips"),
    ]
}

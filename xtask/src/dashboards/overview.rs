//! Is the pods' network well, and if not, where does it hurt?

use super::panel::{Dashboard, Expect, Panel, Row, Unit};
use super::query::{PAIR, among_top, from, grown_of_either, of, rate_from, sum, top, total};

/// The moment of the numbers at the top.
const NOW: &str = "5m";

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        uid: "aksnet-overview",
        title: "aksnet / Overview",
        description: "Is the pods' network well, and if not, which dashboard tells more?",
        namespaces: true,
        rows: vec![
            Row::new("Does anybody suffer?", suffering()),
            Row::new("Does anything run out?", capacity()),
            Row::new("What traffic is there?", traffic()),
            Row::new("Who and where?", who()),
        ],
    }
}

fn suffering() -> Vec<Panel> {
    let failed = |matchers| {
        total(&grown_of_either(
            "aksnet_tcp_handshake_failures_total",
            matchers,
            NOW,
        ))
    };
    let denied = total(&grown_of_either(
        "aksnet_policy_denied_connections_total",
        "",
        NOW,
    ));
    let gap = total(&grown_of_either(
        "aksnet_policy_gap_connections_total",
        "",
        NOW,
    ));
    let lost = total(&grown_of_either(
        "aksnet_drop_packets_total",
        r#"cause!~"policy|azure_platform_block""#,
        NOW,
    ));
    let probes = of(
        "aksnet_lb_health_probes_total",
        r#"dst_namespace=~"$namespace", outcome!="answered""#,
    );
    let probes = total(&format!(
        "(({probes} unless {probes} offset {NOW}) or increase({probes}[{NOW}]))"
    ));
    vec![
        Panel::stat(
            "Do policies deny connections?",
            "Connections that network policies denied in the last 5 minutes. Denying is what policies are for: \
             look when the number has changed since a rollout.",
        )
        .ask(denied, "denied")
        .thresholds(1.0, 1000.0)
        .runbook("policy")
        .more("aksnet-drops"),
        Panel::stat(
            "Does denied traffic get through?",
            "Connections in the last 5 minutes that a policy denies and the node forwarded: nothing enforces it \
             there.",
        )
        .ask(gap, "forwarded")
        .thresholds(1.0, 1.0)
        .runbook("policy-gap")
        .more("aksnet-drops"),
        Panel::stat(
            "Are packets lost for other reasons?",
            "Packets that nodes dropped in the last 5 minutes, those of policies and of AKS's block of the \
             wireserver left out. A few are normal; hundreds on one node are not.",
        )
        .ask(lost, "lost")
        .thresholds(60.0, 600.0)
        .runbook("README")
        .more("aksnet-drops"),
        Panel::stat(
            "Does egress go unanswered?",
            "TCP connections in the last 5 minutes whose SYN left the node and got no answer: NSG, route table, \
             firewall, Azure's SNAT ports, or the far end.",
        )
        .ask(failed(r#"outcome="unanswered""#), "unanswered")
        .thresholds(5.0, 50.0)
        .runbook("unanswered-egress")
        .more("aksnet-drops"),
        Panel::stat(
            "Are pods silent?",
            "TCP connections in the last 5 minutes that were handed to a pod and got no answer from it.",
        )
        .ask(failed(r#"outcome="pod_silent""#), "silent")
        .thresholds(5.0, 50.0)
        .runbook("pod-silent")
        .more("aksnet-drops"),
        Panel::stat(
            "Do load balancer probes fail?",
            "Probes of Azure's load balancer in the last 5 minutes that were refused or met silence. A node \
             without a ready pod of a service with externalTrafficPolicy Local still takes the connection, and is \
             not counted.",
        )
        .ask(probes, "failed")
        .thresholds(1.0, 60.0)
        .runbook("lb-probes")
        .more("aksnet-drops"),
    ]
}

fn capacity() -> Vec<Panel> {
    let max = |metric| format!("max({})", of(metric, ""));
    let ratio = |used, limit| format!("max({} / {})", of(used, ""), of(limit, ""));
    let down = |metric| format!("count({} == 0) or vector(0)", of(metric, ""));
    vec![
        Panel::stat(
            "How full are SNAT ports?",
            "The fullest node: ports towards its worst destination address and port, of those there are.",
        )
        .ask(max("aksnet_snat_port_saturation_ratio"), "used")
        .unit(Unit::Ratio)
        .thresholds(0.6, 0.8)
        .runbook("snat-ports")
        .more("aksnet-snat"),
        Panel::stat(
            "How full is conntrack?",
            "The fullest node: entries of those that its table may have. A full table drops new connections of \
             all pods.",
        )
        .ask(
            ratio("aksnet_conntrack_entries", "aksnet_conntrack_entries_limit"),
            "used",
        )
        .unit(Unit::Ratio)
        .thresholds(0.7, 0.9)
        .runbook("conntrack")
        .more("aksnet-snat"),
        Panel::stat(
            "How full are pod addresses?",
            "The fullest node and account: addresses handed out, of those that the node can hand out. At 100 % \
             new pods stay in ContainerCreating.",
        )
        .ask(ratio("aksnet_pod_ips_in_use", "aksnet_pod_ips_limit"), "used")
        .unit(Unit::Ratio)
        .thresholds(0.85, 0.95)
        .runbook("pod-ips")
        .more("aksnet-snat"),
        Panel::stat(
            "Is NAT over its budget?",
            "On how many nodes and classes of traffic NAT costs more than nat_budget or nat_budget_first allows.",
        )
        .ask(
            format!(
                "sum(max by (cluster, instance, class, nat) ({})) or vector(0)",
                of("aksnet_nat_overhead_flagged", "")
            ),
            "over",
        )
        .thresholds(1.0, 5.0)
        .runbook("nat-overhead")
        .more("aksnet-nat"),
        Panel::stat(
            "Is any agent blind?",
            "Programs that are not attached. While one is down, what it counts stands still: 'no drops' then \
             means 'cannot see'.",
        )
        .ask(down("aksnet_program_up"), "down")
        .expect(Expect::Zeros)
        .thresholds(1.0, 1.0)
        .runbook("drops-not-visible")
        .more("aksnet-agent"),
        Panel::stat(
            "How many nodes are watched?",
            "Nodes whose agent was scraped. Compare with `kubectl get nodes`.",
        )
        .ask(
            format!(
                "count(count by (cluster, instance) ({}))",
                of("aksnet_build_info", "")
            ),
            "nodes",
        )
        .runbook("agent")
        .more("aksnet-agent"),
    ]
}

fn traffic() -> Vec<Panel> {
    let bytes = from("namespace:aksnet_flow_bytes:rate5m", "");
    let connections = from("namespace:aksnet_flow_connections:rate5m", "");
    vec![
        Panel::stack(
            "What kinds of traffic are there?",
            "Bytes in a second by class, each packet counted once where it enters a node. The classes: \
             docs/classes.md. Recorded every minute (deploy/prometheus/rules.yaml): without the rules this is \
             empty.",
        )
        .ask(sum("class", &bytes), "{{class}}")
        .unit(Unit::BytesPerSecond)
        .picture(),
        Panel::stack(
            "How much of it is NATed?",
            "Share of all bytes by what the node did to the connection: none, its source (snat), its destination \
             (dnat), or both. Recorded.",
        )
        .ask(
            format!("{} / scalar(sum({bytes}))", sum("nat", &bytes)),
            "{{nat}}",
        )
        .unit(Unit::Ratio)
        .more("aksnet-nat")
        .picture(),
        Panel::stack(
            "How many connections are opened?",
            "New connections in a second by class. NAT's cost is mostly that of the first packet, so this is what \
             it is multiplied with. Recorded.",
        )
        .ask(sum("class", &connections), "{{class}}")
        .unit(Unit::ConnectionsPerSecond)
        .picture(),
        Panel::stack(
            "How far does traffic go?",
            "Bytes in a second by distance. cross_zone is billed by Azure and slower; cross_node stands where \
             zones are not known; empty: the far end is not known. Recorded.",
        )
        .ask(sum("scope", &bytes), "{{scope}}")
        .unit(Unit::BytesPerSecond)
        .picture(),
    ]
}

fn who() -> Vec<Panel> {
    let packets = sum(
        "cluster, instance",
        &rate_from("aksnet_flow_packets_total", ""),
    );
    let pairs = |metric| sum(&format!("{PAIR}, class, nat"), &rate_from(metric, ""));
    vec![
        Panel::table(
            "Who talks most to whom?",
            "The 20 pairs of workloads that send most bytes, with class and NAT. Sender is who sends these bytes: \
             in answers the server. Choose a namespace in large clusters.",
        )
        .ask(
            format!("topk(20, {})", pairs("aksnet_flow_bytes_total")),
            "Bytes/s",
        )
        .column(Unit::BytesPerSecond)
        .size(24, 10),
        Panel::table(
            "What are the nodes?",
            "What each agent found on its node; an empty field is not known (docs/node.md).",
        )
        .ask(
            format!(
                "max by (cluster, instance, cni, policy_engine, proxy_mode, kernel, zone) ({})",
                of("aksnet_node_info", "")
            ),
            "Agents",
        )
        .size(24, 8),
        Panel::table(
            "Which nodes move most packets?",
            "The 20 busiest nodes. One that stands out among equals has a hot pod, or an ingress.",
        )
        .ask(
            top(20, &packets),
            "Packets/s",
        )
        .column(Unit::PacketsPerSecond)
        .ask(
            among_top(
                20,
                &sum(
                    "cluster, instance",
                    &from("namespace:aksnet_flow_bytes:rate5m", ""),
                ),
                &packets,
            ),
            "Bytes/s",
        )
        .column(Unit::BytesPerSecond)
        .size(24, 8),
    ]
}

//! What is dropped, by which policy or for what other reason, and which connections come to nothing?

use super::panel::{Dashboard, Panel, Row, Unit};
use super::query::{PAIR, grown_of_either, of, rate_of_either, sum, top};

/// The window of what happens now and then: a rate would hide a single event.
const RECENT: &str = "5m";

const DENIED: &str = "aksnet_policy_denied_connections_total";
const GAP: &str = "aksnet_policy_gap_connections_total";
const DROPPED: &str = "aksnet_drop_packets_total";
const FAILED: &str = "aksnet_tcp_handshake_failures_total";
const RESENT: &str = "aksnet_tcp_retransmits_total";
const NOT_POLICY: &str = r#"cause!="policy""#;

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        uid: "aksnet-drops",
        title: "aksnet / Drops and policies",
        description: "Which policy denies whom, what gets through nevertheless, what else is lost, and which \
                      connections come to nothing although nothing is dropped here.",
        namespaces: true,
        rows: vec![
            Row::new("Network policies", policies()),
            Row::new("Other drops", others()),
            Row::new("Connections that fail without a drop", handshakes()),
            Row::new("Load balancer probes", probes()),
        ],
    }
}

/// Sums over the dashboard's time.
fn over_range(by: &str, metric: &str, matchers: &str) -> String {
    sum(by, &grown_of_either(metric, matchers, "$__range"))
}

fn policies() -> Vec<Panel> {
    let recent = |metric| sum("policy, direction", &grown_of_either(metric, "", RECENT));
    let whom = format!("policy, direction, confidence, {PAIR}");
    let gap_whom = format!("policy, direction, {PAIR}");
    vec![
        Panel::stack(
            "Which policies deny connections?",
            "Connections denied in the 5 minutes before, by policy: egress policies isolate the sender, ingress \
             policies the receiver. Several names: each of them isolates the pod, and none allows it. However \
             often a SYN is sent again, it is one connection.",
        )
        .ask(recent(DENIED), "{{policy}} {{direction}}")
        .runbook("policy")
        .picture(),
        Panel::stack(
            "What gets through though a policy denies it?",
            "Connections in the 5 minutes before that a policy denies and the node forwarded: nothing enforces it \
             there, or the engine does not cover it. Should be empty.",
        )
        .ask(recent(GAP), "{{policy}} {{direction}}")
        .runbook("policy-gap")
        .picture(),
        Panel::table(
            "Who is denied by which policy?",
            "Denied connections and packets in the chosen time, most first. Confidence: exact is one policy, \
             candidates are several or an end whose labels are not known, unexplained is what the engine drops \
             and no known policy denies. For the reasoning: `aksnet-agent drops --recent`, or `aksnet-agent \
             explain FROM TO PORT`.",
        )
        .ask(top(50, &over_range(&whom, DENIED, "")), "Connections")
        .ask(
            top(50, &over_range(&whom, "aksnet_policy_denied_packets_total", "")),
            "Packets",
        )
        .runbook("policy"),
        Panel::table(
            "Between whom does denied traffic get through?",
            "The same for what is denied on paper only.",
        )
        .ask(top(50, &over_range(&gap_whom, GAP, "")), "Connections")
        .ask(
            top(50, &over_range(&gap_whom, "aksnet_policy_gap_packets_total", "")),
            "Packets",
        )
        .size(16, 8)
        .runbook("policy-gap"),
        Panel::table(
            "What enforces policies?",
            "Nodes by policy engine and CNI, as found. none: the cluster takes policies and enforces none. Empty: \
             not known.",
        )
        .ask(
            format!(
                "count by (policy_engine, cni) ({})",
                of("aksnet_node_info", "")
            ),
            "Nodes",
        )
        .size(8, 8)
        .runbook("policy-gap"),
    ]
}

fn others() -> Vec<Panel> {
    let rate = |metric| rate_of_either(metric, NOT_POLICY);
    vec![
        Panel::stack(
            "Why are packets dropped?",
            "Dropped packets in a second by cause, those of policies left out. Each cause has a runbook of its \
             name. azure_platform_block is AKS keeping pods from the wireserver.",
        )
        .ask(sum("cause", &rate(DROPPED)), "{{cause}}")
        .unit(Unit::PacketsPerSecond)
        .runbook("README")
        .picture(),
        Panel::graph(
            "Which nodes drop most?",
            "The ten nodes and causes with most drops in a second. One node: look there (queue, neighbour, \
             conntrack). All nodes: look at routes, rules or a client.",
        )
        .ask(
            format!("topk(10, {})", sum("instance, cause", &rate(DROPPED))),
            "{{instance}} {{cause}}",
        )
        .unit(Unit::PacketsPerSecond)
        .runbook("README"),
        Panel::table(
            "Whose packets are dropped, and for what?",
            "Dropped packets and bytes in the chosen time, by cause, the kernel's own reason, and who talks to \
             whom. Empty ends are not known, as with a packet that the node drops before it is a flow.",
        )
        .ask(
            top(
                50,
                &over_range(&format!("cause, reason, direction, {PAIR}"), DROPPED, NOT_POLICY),
            ),
            "Packets",
        )
        .ask(
            top(
                50,
                &over_range(
                    &format!("cause, reason, direction, {PAIR}"),
                    "aksnet_drop_bytes_total",
                    NOT_POLICY,
                ),
            ),
            "Bytes",
        )
        .column(Unit::Bytes)
        .runbook("README"),
    ]
}

fn handshakes() -> Vec<Panel> {
    vec![
        Panel::stack(
            "How do connections fail?",
            "TCP connections in the 5 minutes before that did not open. refused: the far end said no. unanswered: \
             the SYN left the node and nothing came back. pod_silent: it was handed to a pod here that does not \
             answer.",
        )
        .ask(sum("outcome", &grown_of_either(FAILED, "", RECENT)), "{{outcome}}")
        .runbook("unanswered-egress")
        .runbook("pod-silent")
        .picture(),
        Panel::graph(
            "Whose packets are sent again?",
            "TCP packets sent again in a second, by class, per packet of that class: a share of some per mille is \
             normal on the internet, in the cluster it is loss or a slow pod.",
        )
        .ask(
            format!(
                "{} / {}",
                sum("class", &rate_of_either(RESENT, "")),
                sum(
                    "class",
                    &rate_of_either("aksnet_flow_packets_total", r#"protocol="tcp""#)
                ),
            ),
            "{{class}}",
        )
        .unit(Unit::Ratio),
        Panel::table(
            "Who gets no answer, and from whom?",
            "Failed connections in the chosen time, by outcome and who called whom.",
        )
        .ask(
            top(
                50,
                &over_range(&format!("outcome, class, {PAIR}"), FAILED, ""),
            ),
            "Connections",
        )
        .runbook("unanswered-egress")
        .runbook("pod-silent"),
        Panel::table(
            "Between whom are packets sent again?",
            "TCP packets that were sent again in the chosen time, by class and who sent them to whom.",
        )
        .ask(
            top(20, &over_range(&format!("class, {PAIR}"), RESENT, "")),
            "Packets",
        ),
    ]
}

fn probes() -> Vec<Panel> {
    let probes = |matchers: &str, time: &str| {
        let namespace = r#"dst_namespace=~"$namespace""#;
        let comma = if matchers.is_empty() { "" } else { ", " };
        let series = of(
            "aksnet_lb_health_probes_total",
            &format!("{namespace}{comma}{matchers}"),
        );
        format!("(({series} unless {series} offset {time}) or increase({series}[{time}]))")
    };
    vec![
        Panel::stack(
            "How do load balancer probes end?",
            "Probes from 168.63.129.16 in the 5 minutes before. No probe at all where a service of type \
             LoadBalancer is: they are kept away by an NSG, or the node is not in the backend pool.",
        )
        .ask(sum("outcome", &probes("", RECENT)), "{{outcome}}")
        .runbook("lb-probes"),
        Panel::table(
            "Which service's probes fail, and where?",
            "Probes in the chosen time that were not answered, by service, port and node. All nodes: the service \
             is down. One node: Azure takes it out of the pool, and the others carry on.",
        )
        .ask(
            top(
                50,
                &sum(
                    "dst_namespace, dst_workload, port, instance, outcome",
                    &probes(r#"outcome!="answered""#, "$__range"),
                ),
            ),
            "Probes",
        )
        .size(12, 8)
        .runbook("lb-probes"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_events_are_counted_from_their_first_on() {
        for panel in dashboard().panels() {
            for query in &panel.queries {
                let rare = [DENIED, GAP, FAILED].iter().any(|m| query.expr.contains(m));
                assert!(!rare || query.expr.contains("unless"), "{}", panel.title);
            }
        }
    }
}

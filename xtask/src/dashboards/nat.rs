//! What does NAT cost, whom, and what of it is needless?

use super::panel::{Dashboard, Panel, Row, Unit};
use super::query::{
    PAIR, among_top, from, grown_of_either, of, quantile, rate, rate_from, rate_of_either, sum, top,
};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        uid: "aksnet-nat",
        title: "aksnet / NAT cost",
        description: "What NAT adds to packets and connections, which workloads pay it, and what is translated \
                      needlessly.",
        namespaces: true,
        rows: vec![
            Row::new("What does it cost?", cost()),
            Row::new("Who pays?", payers()),
            Row::new("What is needless?", needless()),
        ],
    }
}

fn cost() -> Vec<Panel> {
    let overhead = of("aksnet_nat_overhead_seconds", "");
    let path = |q, stage| quantile(q, "nat", "aksnet_nat_path_seconds", stage);
    let (first, later) = (r#"stage="first""#, r#"stage="established""#);
    vec![
        Panel::graph(
            "What does NAT add to a packet?",
            "Median time on the node of NATed packets minus that of others in the last minute: first opens a \
             connection and walks the rules, established follows. The typical node and the worst. No line: fewer \
             than 20 samples.",
        )
        .ask(
            format!("quantile by (nat, stage) (0.5, {overhead})"),
            "{{nat}} {{stage}}, typical",
        )
        .ask(format!("max by (nat, stage) ({overhead})"), "{{nat}} {{stage}}, worst node")
        .unit(Unit::Seconds)
        .runbook("nat-overhead")
        .picture(),
        Panel::state(
            "Which traffic is over its budget?",
            "Yes while, on some node, NAT costs packets of the class more than nat_budget (established) or \
             nat_budget_first.",
        )
        .ask(
            format!(
                "max by (class, nat) ({})",
                of("aksnet_nat_overhead_flagged", "")
            ),
            "{{class}} {{nat}}",
        )
        .thresholds(1.0, 2.0)
        .runbook("nat-overhead"),
        Panel::graph(
            "How long does a first packet stay on the node?",
            "From entering to leaving, of packets that open a connection, by NAT: half of them are below the \
             median, one in a hundred is above the 99 % line. Compare with none. Rises with the number of \
             services in iptables mode.",
        )
        .ask(path("0.5", first), "{{nat}}, median")
        .ask(path("0.99", first), "{{nat}}, 99 %")
        .unit(Unit::Seconds)
        .runbook("nat-overhead")
        .picture(),
        Panel::graph(
            "How long do later packets stay?",
            "The same of packets of connections that stand: NAT is then one look-up in the conntrack table.",
        )
        .ask(path("0.5", later), "{{nat}}, median")
        .ask(path("0.99", later), "{{nat}}, 99 %")
        .unit(Unit::Seconds)
        .runbook("nat-overhead"),
        Panel::graph(
            "How long do handshakes take?",
            "From SYN to SYN-ACK as the node sees it, the network beyond included: what a user waits for at \
             least. Nine of ten are faster.",
        )
        .ask(
            quantile("0.9", "class, nat", "aksnet_tcp_handshake_seconds", ""),
            "{{class}} {{nat}}",
        )
        .unit(Unit::Seconds)
        .picture(),
        Panel::graph(
            "Which class of traffic takes longest?",
            "Mean time on the node by class and NAT, first and later packets together.",
        )
        .ask(
            format!(
                "{} / {}",
                sum("class, nat", &rate("aksnet_nat_path_seconds_sum", "")),
                sum("class, nat", &rate("aksnet_nat_path_seconds_count", "")),
            ),
            "{{class}} {{nat}}",
        )
        .unit(Unit::Seconds),
    ]
}

fn payers() -> Vec<Panel> {
    let who = "src_namespace, src_workload";
    let opened = |matchers| rate_from("aksnet_flow_connections_total", matchers);
    let paid = format!(
        "sum by ({who}) ({} * on (cluster, instance, nat) group_left () {})",
        opened(r#"nat!="none""#),
        of("aksnet_nat_overhead_seconds", r#"stage="first""#),
    );
    let translated = sum(who, &rate_from("aksnet_nat_bytes_total", ""));
    let all = sum(who, &rate_from("aksnet_flow_bytes_total", ""));
    vec![
        Panel::table(
            "Which workload pays most for NAT?",
            "Time that NAT adds to all connections that the workload opens in a second, and to each of them: \
             connections by kind of NAT times what that kind adds on the node. Kinds with fewer than 20 samples \
             in a minute are left out.",
        )
        .ask(format!("topk(20, {paid})"), "Added per second")
        .column(Unit::Seconds)
        .ask(format!("{paid} / {}", sum(who, &opened(""))), "Added per connection")
        .column(Unit::Seconds)
        .runbook("nat-overhead"),
        Panel::table(
            "Whose traffic is NATed?",
            "NATed bytes of each workload, and their share of all that it sends.",
        )
        .ask(format!("topk(20, {translated})"), "NATed bytes/s")
        .column(Unit::BytesPerSecond)
        .ask(among_top(20, &format!("{translated} / {all}"), &translated), "Share")
        .column(Unit::Ratio),
        Panel::stack(
            "How are connections translated?",
            "New connections in a second by class and NAT. snat and both use ports of the node; dnat only \
             rewrites the service's address.",
        )
        .ask(sum("class, nat", &opened("")), "{{class}} {{nat}}")
        .unit(Unit::ConnectionsPerSecond)
        .picture(),
        Panel::table(
            "Who holds translated connections?",
            "Live connections whose source is translated, by workload: each holds a port and a conntrack entry.",
        )
        .ask(
            format!(
                "topk(20, {})",
                sum(who, &from("aksnet_snat_connections", ""))
            ),
            "Connections",
        )
        .size(12, 8)
        .runbook("snat-ports"),
    ]
}

fn needless() -> Vec<Panel> {
    let anomalies = "aksnet_anomalous_connections_total";
    vec![
        Panel::graph(
            "What is translated that need not be?",
            "pod_to_pod_snat: pods see the node's address. egress_without_snat: left with the pod's address, and \
             has no way back on kubenet and overlay. extra_hop: came in at a node without the pod.",
        )
        .ask(sum("anomaly", &rate_of_either(anomalies, "")), "{{anomaly}}")
        .unit(Unit::ConnectionsPerSecond)
        .runbook("needless-nat"),
        Panel::graph(
            "How many take the extra hop?",
            "Share of the connections by load balancers and node ports that come in at a node without the pod, as \
             externalTrafficPolicy Cluster has it: one more SNAT and, often, another zone.",
        )
        .ask(
            format!(
                "sum({}) / sum({})",
                rate(anomalies, r#"anomaly="extra_hop""#),
                rate(
                    "aksnet_flow_connections_total",
                    r#"class=~"load_balancer|node_port""#
                ),
            ),
            "extra hop",
        )
        .unit(Unit::Ratio)
        .runbook("needless-nat"),
        Panel::table(
            "Between whom?",
            "Such connections in the chosen time, by what is odd about them and who talks to whom.",
        )
        .ask(
            top(
                50,
                &sum(
                    &format!("anomaly, {PAIR}"),
                    &grown_of_either(anomalies, "", "$__range"),
                ),
            ),
            "Connections",
        )
        .runbook("needless-nat"),
    ]
}

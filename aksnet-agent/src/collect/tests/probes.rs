//! Handshakes that were not answered, by where their SYN went; and the load balancer's health probes.

use super::*;

const PROBER: &str = "168.63.129.16";
const NODE_PORT: u16 = 30_080;

fn failures(node: &Node, outcome: &str) -> f64 {
    let labels = [("outcome", outcome)];
    node.value("aksnet_tcp_handshake_failures_total", &labels)
}

fn probes(node: &Node, outcome: &str) -> f64 {
    let labels = [("outcome", outcome), ("port", "30080")];
    node.value("aksnet_lb_health_probes_total", &labels)
}

/// A SYN between two pods that left by this interface; 0: nothing was seen to leave.
fn syn_to_pod(exit: u32) -> Node {
    let mut node = Node::new();
    let t = tuple(POD, 40_000, POD2, 80);
    let flow = key(TCP, POD_IF, t);
    if exit == 0 {
        let packet = FakePacket {
            key: flow,
            bytes: 60,
            ns: node.ns,
            tcp: SYN,
            ..FakePacket::default()
        };
        node.source.play(&packet);
    } else {
        node.packet(flow, t, exit, SYN, STAGE_FIRST);
    }
    node.after(20).sweep();
    node.after(11_000).sweep();
    node
}

#[test]
fn silence_is_the_networks_or_the_pods_by_where_the_syn_went() {
    let outside = syn_to_pod(UPLINK);
    assert!(near(failures(&outside, "unanswered"), 1.0));
    assert!(near(failures(&outside, "pod_silent"), 0.0));
    let pod = syn_to_pod(POD_IF);
    assert!(near(failures(&pod, "unanswered"), 0.0));
    assert!(near(failures(&pod, "pod_silent"), 1.0));
    // Delivered on the node, or taken out of its way by a queue: nobody knows.
    let nowhere = syn_to_pod(0);
    assert_eq!(nowhere.tcp(), (0, 0, 0, 0));
    assert!(near(failures(&nowhere, "pod_silent"), 0.0));
}

/// A probe of a node port that a pod of this node serves; with what it is answered.
fn probe(answer: Option<u8>) -> Node {
    let mut node = Node::new();
    let there = tuple(PROBER, 50_000, NODE, NODE_PORT);
    let after = tuple(NODE, 6_000, POD, 8080);
    node.packet(key(TCP, UPLINK, there), after, POD_IF, SYN, STAGE_FIRST);
    if let Some(tcp) = answer {
        let back = tuple(POD, 8080, NODE, 6_000);
        let out = tuple(NODE, NODE_PORT, PROBER, 50_000);
        node.after(1);
        node.packet(key(TCP, POD_IF, back), out, UPLINK, tcp, STAGE_FIRST);
    }
    node.after(20).sweep();
    node.after(11_000).sweep();
    node
}

#[test]
fn a_probe_is_answered_refused_or_met_with_silence() {
    for (answer, outcome) in [
        (Some(SYN | ACK), "answered"),
        (Some(RST | ACK), "refused"),
        (None, "unanswered"),
    ] {
        let node = probe(answer);
        for other in ["answered", "refused", "unanswered"] {
            let expected = if other == outcome { 1.0 } else { 0.0 };
            assert!(near(probes(&node, other), expected), "{outcome}: {other}");
        }
    }
}

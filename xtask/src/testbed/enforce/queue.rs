//! What *kindnet* and *kube-network-policies* write for policies: one nftables table for both families, whose sets hold
//! the node's pods that a policy selects; what is to or from one of these goes to a queue, and a program says what
//! becomes of it ([`super::verdict`]). Without that program everything passes (`bypass`).
//!
//! Two generations of the same engine (`pkg/networkpolicy/controller.go`, later `pkg/dataplane/controller.go`).
//! kindnet's judges new connections only. The later one labels the connections that it has accepted (bit 100), so that
//! it can judge them again, and also judges what pods send to the node itself.

use std::fmt::Write as _;

use super::Isolation;
use crate::testbed::plan::Family;

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Its table.
    pub table: &'static str,
    /// Its queue's number.
    pub number: u16,
    /// The label bit of accepted connections, where it sets one.
    pub label: Option<u8>,
}

/// kindnet's.
pub const KINDNET: Queue = Queue {
    table: "kindnet-network-policies",
    number: 102,
    label: None,
};

/// That of kube-network-policies when it is installed by itself.
pub const STANDALONE: Queue = Queue {
    table: "kube-network-policies",
    number: 100,
    label: Some(100),
};

/// The table, in place of the one before, for the pods that these policies select; all of them are the node's own.
#[must_use]
pub fn render(queue: Queue, isolations: &[Isolation]) -> String {
    let Queue { table, label, .. } = queue;
    // Adding it first lets the deletion succeed where there is none.
    let mut text = format!(
        "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n    comment \"rules for kubernetes NetworkPolicy\"\n"
    );
    for (family, name, kind, version) in [
        (Family::V4, "podips-v4", "ipv4_addr", "V4"),
        (Family::V6, "podips-v6", "ipv6_addr", "V6"),
    ] {
        let mut pods: Vec<String> = isolations
            .iter()
            .flat_map(|isolation| isolation.addresses(family))
            .map(|ip| ip.to_string())
            .collect();
        pods.sort_unstable();
        pods.dedup();
        let elements = if pods.is_empty() {
            String::new()
        } else {
            format!(" elements = {{ {} }};", pods.join(", "))
        };
        let _ = writeln!(
            text,
            "    set {name} {{ type {kind}; comment \"Local {version} Pod IPs with Network Policies\";{elements} }}"
        );
    }
    let queues = divert(queue, "");
    text += "    chain postrouting {\n        type filter hook postrouting priority srcnat - 5; policy accept;\n        udp dport 53 accept\n";
    match label {
        None => {
            text += "        meta l4proto ipv6-icmp accept\n        meta skuid 0 accept\n        ct state established,related accept\n"
        }
        Some(bit) => {
            let _ = write!(
                text,
                "        icmpv6 type {{ 133, 134, 135, 136, 137 }} accept\n        meta skuid 0 counter accept\n        ct label {bit} ct state established,related counter accept\n"
            );
        }
    }
    text += &queues;
    if let Some(bit) = label {
        // What is met only where the queue is bypassed; it gives connections the room for labels.
        let _ = writeln!(text, "        ct label set {bit}");
    }
    text += "    }\n";
    if label.is_some() {
        text += "    chain input {\n        type filter hook input priority 101; policy accept;\n        iifname \"lo\" accept\n";
        for (ip, version) in [("ip", "v4"), ("ip6", "v6")] {
            let _ = writeln!(
                text,
                "        {ip} saddr @podips-{version} ct state new queue flags bypass to {}",
                queue.number
            );
        }
        text += "    }\n";
    }
    text += "    chain prerouting {\n        type filter hook prerouting priority dstnat + 5; policy accept;\n        meta l4proto != udp accept\n        udp dport != 53 accept\n";
    text += &queues;
    text + "    }\n}\n"
}

fn divert(queue: Queue, extra: &str) -> String {
    let mut text = String::new();
    for (ip, version) in [("ip", "v4"), ("ip6", "v6")] {
        for end in ["saddr", "daddr"] {
            let _ = writeln!(
                text,
                "        {ip} {end} @podips-{version}{extra} queue flags bypass to {}",
                queue.number
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::enforce::{Selected, Side};
    use crate::testbed::plan::Addresses;

    #[test]
    fn selected_pods_are_in_the_sets_once() {
        let pod = Selected {
            address: Addresses {
                v4: "10.244.0.3".parse().unwrap(),
                v6: Some("fd00::3".parse().unwrap()),
            },
            veth: "veth1".to_owned(),
            namespace: "shop".to_owned(),
        };
        let isolations = [Side::Ingress, Side::Egress].map(|side| Isolation {
            pods: vec![pod.clone()],
            ..Isolation::new("shop", "web", side)
        });
        let text = render(KINDNET, &isolations);
        assert!(
            text.contains("elements = { 10.244.0.3 };") && text.contains("elements = { fd00::3 };")
        );
        assert_eq!(text.matches("queue flags bypass to 102").count(), 8);
        assert!(!text.contains("chain input") && !text.contains("ct label"));
    }

    #[test]
    fn later_generation_labels_what_it_accepts_and_judges_what_goes_to_the_node() {
        let text = render(STANDALONE, &[]);
        assert!(text.contains("ct label 100 ct state established,related counter accept"));
        assert!(
            text.contains("chain input") && text.contains("ct state new queue flags bypass to 100")
        );
        assert!(!text.contains("elements"));
    }
}

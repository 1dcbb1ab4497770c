//! What *kindnet* and *kube-network-policies* write for policies: one nftables table for both families, whose sets hold
//! the node's pods that a policy selects. New connections to or from one of these go to a queue, and a program says
//! what becomes of them ([`super::verdict`]). Without that program everything passes (`bypass`).
//!
//! The rules are those of `pkg/networkpolicy/controller.go`. Later versions label connections that were accepted in
//! place of looking at their state, which a program can do only on kernels with `CONFIG_NETFILTER_NETLINK_GLUE_CT`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::apply::Rules;
use super::{Isolation, set};
use crate::testbed::plan::Family;

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Its table.
    pub table: &'static str,
    /// Its queue's number.
    pub number: u16,
}

/// kindnet's.
pub const KINDNET: Queue = Queue {
    table: "kindnet-network-policies",
    number: 102,
};

/// That of kube-network-policies when it is installed by itself.
pub const STANDALONE: Queue = Queue {
    table: "kube-network-policies",
    number: 100,
};

/// The chain of the mangle table that stands for nftables' `queue`.
pub const STAND_IN: &str = "POLICY-QUEUE";

/// The table, in place of the one before, for the pods that these policies select; all of them are the node's own.
#[must_use]
pub fn render(queue: Queue, isolations: &[Isolation]) -> String {
    let table = queue.table;
    // Adding it first lets the deletion succeed where there is none.
    let mut text = format!(
        "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n    comment \"rules for kubernetes NetworkPolicy\"\n"
    );
    for (family, name, kind, version) in [
        (Family::V4, "podips-v4", "ipv4_addr", "V4"),
        (Family::V6, "podips-v6", "ipv6_addr", "V6"),
    ] {
        let pods: Vec<String> = selected(isolations, family)
            .iter()
            .map(|pod| pod.addr().to_string())
            .collect();
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
    let mut queues = String::new();
    for (ip, version) in [("ip", "v4"), ("ip6", "v6")] {
        for end in ["saddr", "daddr"] {
            let _ = writeln!(
                queues,
                "        {ip} {end} @podips-{version} queue flags bypass to {}",
                queue.number
            );
        }
    }
    let _ = write!(
        text,
        "    chain postrouting {{\n        type filter hook postrouting priority srcnat - 5; policy accept;\n        \
         udp dport 53 accept\n        meta l4proto ipv6-icmp accept\n        meta skuid 0 accept\n        \
         ct state established,related accept\n{queues}    }}\n    \
         chain prerouting {{\n        type filter hook prerouting priority dstnat + 5; policy accept;\n        \
         meta l4proto != udp accept\n        udp dport != 53 accept\n{queues}    }}\n}}\n"
    );
    text
}

/// The table for kernels without `CONFIG_NFT_QUEUE`: what would be queued leaves it at once.
#[must_use]
pub fn without_queue(table: &str) -> String {
    let lines = table.lines().map(|line| {
        line.split_once("queue flags")
            .map_or(line.to_owned(), |(matches, _)| format!("{matches}accept"))
    });
    lines.map(|line| line + "\n").collect()
}

/// What queues in its place: iptables' NFQUEUE in POSTROUTING, likewise behind DNAT and before SNAT. DNS, which the
/// table judges in PREROUTING, is judged here with the rest.
#[must_use]
pub fn stand_in(queue: Queue, family: Family, isolations: &[Isolation]) -> Rules {
    let name = match family {
        Family::V4 => "podips-v4",
        Family::V6 => "podips-v6",
    };
    let mut rules = Rules {
        chains: BTreeSet::from([STAND_IN.to_owned()]),
        ..Rules::default()
    };
    rules.set(name, |name| set(name, family, selected(isolations, family)));
    rules.lines.extend([
        format!("-A {STAND_IN} -p ipv6-icmp -j RETURN"),
        format!("-A {STAND_IN} -m owner --uid-owner 0 -j RETURN"),
        format!("-A {STAND_IN} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"),
    ]);
    for way in ["src", "dst"] {
        rules.lines.push(format!(
            "-A {STAND_IN} -m set --match-set {name} {way} -j NFQUEUE --queue-num {} --queue-bypass",
            queue.number
        ));
    }
    rules
}

/// The pods that are selected at all.
fn selected(isolations: &[Isolation], family: Family) -> BTreeSet<IpNet> {
    isolations
        .iter()
        .flat_map(|isolation| isolation.addresses(family))
        .map(IpNet::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::enforce::{Selected, Side};
    use crate::testbed::plan::Addresses;

    fn isolations() -> [Isolation; 2] {
        let pod = Selected {
            address: Addresses {
                v4: "10.244.0.3".parse().unwrap(),
                v6: Some("fd00::3".parse().unwrap()),
            },
            veth: "veth1".to_owned(),
            namespace: "shop".to_owned(),
        };
        [Side::Ingress, Side::Egress].map(|side| Isolation {
            pods: vec![pod.clone()],
            ..Isolation::new("shop", "web", side)
        })
    }

    #[test]
    fn selected_pods_are_in_the_sets_once() {
        let text = render(KINDNET, &isolations());
        assert!(
            text.contains("elements = { 10.244.0.3 };") && text.contains("elements = { fd00::3 };")
        );
        assert_eq!(text.matches("queue flags bypass to 102").count(), 8);
        assert!(!render(STANDALONE, &[]).contains("elements"));
    }

    #[test]
    fn a_table_without_queue_is_otherwise_the_same() {
        let with = render(STANDALONE, &isolations());
        let without = without_queue(&with);
        assert!(with.contains("queue flags"));
        assert!(!without.contains("queue flags"));
        assert_eq!(with.lines().count(), without.lines().count());
    }

    #[test]
    fn the_stand_in_queues_new_connections_of_selected_pods() {
        let rules = stand_in(STANDALONE, Family::V6, &isolations());
        assert!(rules.set_text().ends_with("add podips-v6 fd00::3/128\n"));
        let queued = rules.lines.iter().filter(|line| line.contains("NFQUEUE"));
        assert_eq!(queued.count(), 2);
        assert!(rules.lines[2].contains("ESTABLISHED"));
    }
}

//! What *Azure NPM* (version 2) writes for policies, in IPv4 only: a set per selector, a chain per policy and side that
//! marks what it does not allow, and one drop per side of what is marked.
//!
//! Names, comments, marks and the order of rules are NPM's own (`npm/pkg/dataplane/policies`:
//! `chain-management_linux.go`, `policymanager_linux.go`, `iptables-comments_linux.go`). It selects by labels, which
//! are not known here: a set is called after its policy in place of a label.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::apply::{Counted, Rules};
use super::{Allow, Isolation, Ports, Side, set};
use crate::testbed::hash;
use crate::testbed::plan::Family;

/// Set on what an ingress policy does not allow.
pub const INGRESS_DROP: &str = "0x400/0x400";

/// Set on what an egress policy does not allow.
pub const EGRESS_DROP: &str = "0x800/0x800";

/// The chain of a policy's side.
#[must_use]
pub fn chain(isolation: &Isolation) -> String {
    let side = side(isolation.side);
    format!("AZURE-NPM-{side}-{}", hash::npm(&isolation.key()))
}

/// The name of an ipset whose readable name is this.
#[must_use]
pub fn set_name(readable: &str) -> String {
    format!("azure-npm-{}", hash::npm(readable))
}

/// All rules without a policy: the first one goes back at once.
#[must_use]
pub fn idle() -> Rules {
    let mut rules = render(&[]);
    let back = "-A AZURE-NPM -m comment --comment LET-TRAFFIC-THROUGH-SINCE-THERE-ARE-NO-POLICIES -j RETURN";
    rules.lines.insert(0, back.to_owned());
    rules
}

/// All rules for these policies; of none there is [`idle`].
#[must_use]
pub fn render(isolations: &[Isolation]) -> Rules {
    let mut rules = Rules::default();
    let mut namespaces: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
    for isolation in isolations {
        namespaces
            .entry(&isolation.namespace)
            .or_default()
            .extend(isolation.addresses(Family::V4).map(IpNet::from));
    }
    for (namespace, members) in namespaces {
        rules.set(&set_name(&format!("ns-{namespace}")), |name| {
            set(name, Family::V4, members)
        });
    }
    let (mut jumps, mut bodies) = (Jumps::default(), Vec::new());
    for isolation in isolations {
        policy(isolation, &mut rules, &mut jumps, &mut bodies);
    }
    rules.chains.extend(
        [
            "AZURE-NPM",
            "AZURE-NPM-INGRESS",
            "AZURE-NPM-INGRESS-ALLOW-MARK",
            "AZURE-NPM-EGRESS",
            "AZURE-NPM-ACCEPT",
        ]
        .map(str::to_owned),
    );
    rules.lines.extend(
        [
            "-A AZURE-NPM -j AZURE-NPM-INGRESS",
            "-A AZURE-NPM -j AZURE-NPM-EGRESS",
            "-A AZURE-NPM -j AZURE-NPM-ACCEPT",
        ]
        .map(str::to_owned),
    );
    rules.lines.extend(jumps.ingress);
    rules.lines.extend([
        format!("-A AZURE-NPM-INGRESS -m mark --mark {INGRESS_DROP} -m comment --comment DROP-ON-INGRESS-DROP-MARK-{INGRESS_DROP} -j DROP"),
        "-A AZURE-NPM-INGRESS-ALLOW-MARK -m comment --comment SET-INGRESS-ALLOW-MARK-0x200/0x200 -j MARK --set-xmark 0x200/0x200".to_owned(),
        "-A AZURE-NPM-INGRESS-ALLOW-MARK -j AZURE-NPM-EGRESS".to_owned(),
    ]);
    rules.lines.extend(jumps.egress);
    rules.lines.extend([
        format!("-A AZURE-NPM-EGRESS -m mark --mark {EGRESS_DROP} -m comment --comment DROP-ON-EGRESS-DROP-MARK-{EGRESS_DROP} -j DROP"),
        "-A AZURE-NPM-EGRESS -m mark --mark 0x200/0x200 -m comment --comment ACCEPT-ON-INGRESS-ALLOW-MARK-0x200/0x200 -j AZURE-NPM-ACCEPT".to_owned(),
        "-A AZURE-NPM-ACCEPT -m comment --comment ACCEPT -j ACCEPT".to_owned(),
    ]);
    rules.lines.extend(bodies);
    for side in [Side::Ingress, Side::Egress] {
        rules.counted.push(Counted {
            chain: format!("AZURE-NPM-{}", self::side(side)),
            contains: "-j DROP".to_owned(),
            side,
            policy: None,
        });
    }
    rules
}

#[derive(Default)]
struct Jumps {
    ingress: Vec<String>,
    egress: Vec<String>,
}

/// A policy's set of pods, the jump to its chain, and the chain.
fn policy(isolation: &Isolation, rules: &mut Rules, jumps: &mut Jumps, bodies: &mut Vec<String>) {
    let Isolation {
        namespace, policy, ..
    } = isolation;
    let chain = chain(isolation);
    let pods = format!("podlabel-policy:{policy}:{}", isolation.side);
    let pod_set = set_name(&format!("{pods}-in-ns-{namespace}"));
    rules.set(&pod_set, |name| {
        set(
            name,
            Family::V4,
            isolation.addresses(Family::V4).map(IpNet::from),
        )
    });
    let ns_set = set_name(&format!("ns-{namespace}"));
    let (side, way, towards, peer) = match isolation.side {
        Side::Ingress => ("INGRESS", "dst", "TO", "src"),
        Side::Egress => ("EGRESS", "src", "FROM", "dst"),
    };
    let jump = format!(
        "-A AZURE-NPM-{side} -m set --match-set {pod_set} {way} -m set --match-set {ns_set} {way} \
         -m comment --comment {side}-POLICY-{namespace}/{policy}-{towards}-{pods}-AND-ns-{namespace}-IN-ns-{namespace} -j {chain}"
    );
    match isolation.side {
        Side::Ingress => jumps.ingress.push(jump),
        Side::Egress => jumps.egress.push(jump),
    }
    for (at, allow) in isolation.allow.iter().enumerate() {
        bodies.extend(allowed(isolation, &chain, at, allow, peer, rules));
    }
    let mark = match isolation.side {
        Side::Ingress => INGRESS_DROP,
        Side::Egress => EGRESS_DROP,
    };
    bodies.push(format!(
        "-A {chain} -m comment --comment DROP-ALL -j MARK --set-xmark {mark}"
    ));
    rules.counted.push(Counted {
        chain: chain.clone(),
        contains: "DROP-ALL".to_owned(),
        side: isolation.side,
        policy: Some(isolation.key()),
    });
    rules.chains.insert(chain);
}

/// The rules for one thing that a policy allows: one for each run of ports.
fn allowed(
    isolation: &Isolation,
    chain: &str,
    at: usize,
    allow: &Allow,
    way: &str,
    rules: &mut Rules,
) -> Vec<String> {
    let Some(peers) = allow.peers_of(Family::V4) else {
        return Vec::new();
    };
    let (target, from, kind) = match isolation.side {
        Side::Ingress => ("AZURE-NPM-INGRESS-ALLOW-MARK", "FROM", "IN"),
        Side::Egress => ("AZURE-NPM-ACCEPT", "TO", "OUT"),
    };
    let (matched, whom) = if peers.is_empty() {
        (String::new(), "ALL".to_owned())
    } else {
        let readable = format!(
            "cidr-{}-in-ns-{}-{at}-0{kind}",
            isolation.policy, isolation.namespace
        );
        let name = set_name(&readable);
        rules.set(&name, |name| set(name, Family::V4, peers));
        (
            format!(" -m set --match-set {name} {way}"),
            format!("{from}-{readable}"),
        )
    };
    let line = |ports: &str, comment: &str| {
        format!("-A {chain}{ports}{matched} -m comment --comment ALLOW-{whom}{comment} -j {target}")
    };
    if allow.ports.is_empty() {
        return vec![line("", "")];
    }
    let ports = allow.ports.iter();
    ports
        .map(
            |Ports {
                 transport,
                 from,
                 to,
             }| {
                let range = if from == to {
                    from.to_string()
                } else {
                    format!("{from}:{to}")
                };
                let name = transport.to_string().to_uppercase();
                line(
                    &format!(" -p {transport} -m {transport} --dport {range}"),
                    &format!("-ON-{name}-TO-PORT-{range}"),
                )
            },
        )
        .collect()
}

fn side(side: Side) -> &'static str {
    match side {
        Side::Ingress => "INGRESS",
        Side::Egress => "EGRESS",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::enforce::Selected;
    use crate::testbed::plan::Addresses;

    fn isolation(side: Side) -> Isolation {
        let pod = Selected {
            address: Addresses {
                v4: "10.244.0.3".parse().unwrap(),
                v6: Some("fd00::3".parse().unwrap()),
            },
            veth: "azv1".to_owned(),
            namespace: "shop".to_owned(),
        };
        Isolation {
            pods: vec![pod],
            ..Isolation::new("shop", "web-policy", side)
        }
    }

    #[test]
    fn policy_marks_last_and_the_mark_is_dropped_behind_all_policies() {
        let peer: IpNet = "10.244.0.9/32".parse().unwrap();
        let rules = render(&[isolation(Side::Ingress).allow(Allow::all().range(peer).tcp(8080))]);
        let chain = chain(&isolation(Side::Ingress));
        let at = |part: &str| rules.lines.iter().position(|l| l.contains(part)).unwrap();
        assert!(at(&format!("-A {chain} -p tcp")) < at("DROP-ALL -j MARK --set-xmark 0x400/0x400"));
        assert!(at(&format!("-j {chain}")) < at("--mark 0x400/0x400"));
        assert!(rules.lines[at("-p tcp")].contains(
            "src -m comment --comment ALLOW-FROM-cidr-web-policy-in-ns-shop-0-0IN-ON-TCP-TO-PORT-8080 -j AZURE-NPM-INGRESS-ALLOW-MARK"
        ));
        assert!(rules.lines[at(&format!("-j {chain}"))].contains(
            "INGRESS-POLICY-shop/web-policy-TO-podlabel-policy:web-policy:ingress-AND-ns-shop-IN-ns-shop"
        ));
        // Three sets: the namespace's, the pods', the peers'.
        assert_eq!(rules.sets.len(), 3);
        assert!(!rules.set_text().contains("fd00"));
        assert!(rules.sets.keys().all(|name| name.len() <= 31));
        assert!(rules.chains.iter().all(|name| name.len() <= 28));
    }

    #[test]
    fn egress_is_allowed_at_once_and_ingress_goes_on_to_egress() {
        let rules = render(&[isolation(Side::Egress).allow(Allow::all())]);
        assert!(
            rules
                .lines
                .iter()
                .any(|l| l.ends_with("ALLOW-ALL -j AZURE-NPM-ACCEPT"))
        );
    }

    #[test]
    fn without_a_policy_nothing_is_judged() {
        let rules = idle();
        assert!(
            rules.lines[0].starts_with("-A AZURE-NPM ") && rules.lines[0].ends_with("-j RETURN")
        );
        assert!(rules.sets.is_empty());
    }

    #[test]
    fn peers_in_ipv6_alone_allow_nobody() {
        let allow = Allow::all().range("fd00::/8".parse().unwrap());
        let rules = render(&[isolation(Side::Ingress).allow(allow)]);
        assert!(
            rules
                .lines
                .iter()
                .all(|line| !line.contains("ALLOW-ALL") && !line.contains("ALLOW-FROM"))
        );
    }
}

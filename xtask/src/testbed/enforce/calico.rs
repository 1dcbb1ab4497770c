//! What *Calico's Felix* writes for policies with iptables: a chain to and one from each pod's interface, which accept
//! what is established, drop what is invalid, ask the policies' chains for a mark, and drop at the end of the tier.
//!
//! Chains, marks, comments and the order of rules are Felix's (`felix/rules/{dispatch,endpoints,policy}.go`, as of
//! 3.30 with the names that AKS's Calico shows for Kubernetes policies). It ends the dispatch chains with a drop for
//! interfaces that it does not know; that is left out, as pods may be added here that nobody tells it of.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::apply::{Counted, Rules};
use super::{Allow, DenyAction, Isolation, Selected, Side, set};
use crate::testbed::hash;
use crate::testbed::plan::Family;
use crate::testbed::service::Transport;

/// The mark of what a policy or profile accepts.
pub const ACCEPT: &str = "0x10000/0x10000";

/// The chain of a policy's side.
#[must_use]
pub fn policy_chain(isolation: &Isolation) -> String {
    let prefix = match isolation.side {
        Side::Ingress => "cali-pi-",
        Side::Egress => "cali-po-",
    };
    let id = format!(
        "default/{}/knp.default.{}",
        isolation.namespace, isolation.policy
    );
    // As Felix shortens a name that is too long.
    format!("{prefix}_{}", hash::felix(&id, 19))
}

/// The chain of traffic to or from an interface.
#[must_use]
pub fn pod_chain(side: Side, veth: &str) -> String {
    match side {
        Side::Ingress => format!("cali-tw-{veth}"),
        Side::Egress => format!("cali-fw-{veth}"),
    }
}

/// All rules of a family, for these pods of the node.
#[must_use]
pub fn render(
    family: Family,
    deny: DenyAction,
    pods: &[Selected],
    isolations: &[Isolation],
) -> Rules {
    let mut felix = Felix {
        family,
        deny,
        rules: Rules::default(),
    };
    for (chain, interface, side) in [
        ("cali-from-wl-dispatch", "-i", Side::Egress),
        ("cali-to-wl-dispatch", "-o", Side::Ingress),
    ] {
        felix.chain(chain);
        for pod in pods {
            let to = pod_chain(side, &pod.veth);
            felix.add(
                chain,
                &format!(" {interface} {}", pod.veth),
                &[],
                &format!(" -g {to}"),
            );
        }
    }
    for pod in pods {
        for side in [Side::Egress, Side::Ingress] {
            felix.endpoint(pod, side, isolations);
        }
    }
    let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
    for namespace in namespaces {
        for (side, chain) in [
            (Side::Ingress, profile_chain(Side::Ingress, namespace)),
            (Side::Egress, profile_chain(Side::Egress, namespace)),
        ] {
            felix.chain(&chain);
            let comment = format!("Profile kns.{namespace} {side}");
            felix.add(
                &chain,
                "",
                &[&comment],
                &format!(" -j MARK --set-xmark {ACCEPT}"),
            );
        }
    }
    let local = |isolation: &&Isolation| {
        let selected = &isolation.pods;
        selected
            .iter()
            .any(|pod| pods.iter().any(|local| local.address == pod.address))
    };
    for isolation in isolations.iter().filter(local) {
        felix.policy(isolation);
    }
    felix.rules
}

fn profile_chain(side: Side, namespace: &str) -> String {
    match side {
        Side::Ingress => format!("cali-pri-kns.{namespace}"),
        Side::Egress => format!("cali-pro-kns.{namespace}"),
    }
}

/// Rules that are being collected.
struct Felix {
    family: Family,
    deny: DenyAction,
    rules: Rules,
}

impl Felix {
    fn chain(&mut self, name: &str) {
        self.rules.chains.insert(name.to_owned());
    }

    /// One rule. Felix's first comment is a hash of the rule and those before it, by which it knows its own.
    fn add(&mut self, chain: &str, matches: &str, comments: &[&str], target: &str) {
        let place = format!("{chain} {} {matches} {target}", self.rules.lines.len());
        let mut line = format!("-A {chain}{matches}");
        let _ = write!(
            line,
            " -m comment --comment \"cali:{}\"",
            hash::felix(&place, 16)
        );
        for comment in comments {
            let _ = write!(line, " -m comment --comment \"{comment}\"");
        }
        line.push_str(target);
        self.rules.lines.push(line);
    }

    fn deny(&self) -> (&'static str, &'static str) {
        match self.deny {
            DenyAction::Drop => ("Drop", " -j DROP"),
            DenyAction::Reject => ("Reject", " -j REJECT"),
        }
    }

    /// A pod's chain for one side.
    fn endpoint(&mut self, pod: &Selected, side: Side, isolations: &[Isolation]) {
        let chain = pod_chain(side, &pod.veth);
        let (word, deny) = self.deny();
        self.chain(&chain);
        self.add(
            &chain,
            " -m conntrack --ctstate RELATED,ESTABLISHED",
            &[],
            " -j ACCEPT",
        );
        self.add(&chain, " -m conntrack --ctstate INVALID", &[], deny);
        self.add(&chain, "", &[], " -j MARK --set-xmark 0x0/0x30000");
        if side == Side::Egress {
            let vxlan = format!("{word} VXLAN encapped packets originating in workloads");
            let ipip = format!("{word} IPinIP encapped packets originating in workloads");
            self.add(
                &chain,
                " -p udp -m multiport --dports 4789",
                &[&vxlan],
                deny,
            );
            self.add(&chain, " -p ipencap", &[&ipip], deny);
        }
        let selecting: Vec<&Isolation> = isolations
            .iter()
            .filter(|isolation| isolation.side == side)
            .filter(|isolation| {
                isolation
                    .pods
                    .iter()
                    .any(|other| other.address == pod.address)
            })
            .collect();
        let unpassed = " -m mark --mark 0x0/0x20000";
        if !selecting.is_empty() {
            self.add(
                &chain,
                "",
                &["Start of tier default"],
                " -j MARK --set-xmark 0x0/0x20000",
            );
            for isolation in &selecting {
                let jump = format!(" -j {}", policy_chain(isolation));
                self.add(&chain, unpassed, &[], &jump);
                let accepted = format!(" -m mark --mark {ACCEPT}");
                self.add(
                    &chain,
                    &accepted,
                    &["Return if policy accepted"],
                    " -j RETURN",
                );
            }
            let end = format!("End of tier default. {word} if no policies passed packet");
            self.add(&chain, unpassed, &[&end], deny);
            for policy in selecting
                .iter()
                .map(|isolation| Some(isolation.key()))
                .chain([None])
            {
                self.rules.counted.push(Counted {
                    chain: chain.clone(),
                    contains: "End of tier default".to_owned(),
                    side,
                    policy,
                });
            }
        }
        let profile = format!(" -j {}", profile_chain(side, &pod.namespace));
        self.add(&chain, "", &[], &profile);
        let accepted = format!(" -m mark --mark {ACCEPT}");
        self.add(
            &chain,
            &accepted,
            &["Return if profile accepted"],
            " -j RETURN",
        );
        self.add(
            &chain,
            "",
            &[&format!("{word} if no profiles matched")],
            deny,
        );
    }

    /// A policy's chain: a mark for whatever it allows.
    fn policy(&mut self, isolation: &Isolation) {
        let chain = policy_chain(isolation);
        self.chain(&chain);
        let title = format!(
            "Policy {}/knp.default.{} {}",
            isolation.namespace, isolation.policy, isolation.side
        );
        let mut title = Some(title.as_str());
        let mark = format!(" -j MARK --set-xmark {ACCEPT}");
        let rules: Vec<String> = isolation
            .allow
            .iter()
            .enumerate()
            .flat_map(|(at, allow)| self.matches(isolation, at, allow))
            .collect();
        for (at, matches) in rules.iter().enumerate() {
            let comments: Vec<&str> = title.take().into_iter().collect();
            self.add(&chain, matches, &comments, &mark);
            // Felix leaves out a return that ends the chain anyway.
            if at + 1 < rules.len() {
                let accepted = format!(" -m mark --mark {ACCEPT}");
                self.add(&chain, &accepted, &[], " -j RETURN");
            }
        }
        if let Some(title) = title {
            self.add(&chain, "", &[title], "");
        }
    }

    /// What a rule matches, once for each protocol that has ports.
    fn matches(&mut self, isolation: &Isolation, at: usize, allow: &Allow) -> Vec<String> {
        let Some(peers) = allow.peers_of(self.family) else {
            return Vec::new();
        };
        let way = match isolation.side {
            Side::Ingress => "src",
            Side::Egress => "dst",
        };
        let from = if peers.is_empty() {
            String::new()
        } else {
            let name = self.peer_set(
                &format!("{} {} {at}", isolation.key(), isolation.side),
                peers,
            );
            format!(" -m set --match-set {name} {way}")
        };
        if allow.ports.is_empty() {
            return vec![from];
        }
        let mut matches = Vec::new();
        for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
            let ports: Vec<String> = allow
                .ports
                .iter()
                .filter(|ports| ports.transport == transport)
                .map(|ports| {
                    if ports.from == ports.to {
                        ports.from.to_string()
                    } else {
                        format!("{}:{}", ports.from, ports.to)
                    }
                })
                .collect();
            // multiport takes 15 at a time, a range counts twice.
            for some in ports.chunks(7) {
                matches.push(format!(
                    " -p {transport}{from} -m multiport --dports {}",
                    some.join(",")
                ));
            }
        }
        matches
    }

    fn peer_set(&mut self, of: &str, peers: Vec<IpNet>) -> String {
        let (prefix, family) = match self.family {
            Family::V4 => ("cali40s:", Family::V4),
            Family::V6 => ("cali60s:", Family::V6),
        };
        let name = format!("{prefix}{}", hash::felix(of, 23));
        self.rules.set(&name, |name| set(name, family, peers));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::plan::Addresses;

    fn pod() -> Selected {
        Selected {
            address: Addresses {
                v4: "10.244.0.3".parse().unwrap(),
                v6: Some("fd00::3".parse().unwrap()),
            },
            veth: "azv0123456789a".to_owned(),
            namespace: "shop".to_owned(),
        }
    }

    fn isolation() -> Isolation {
        Isolation {
            pods: vec![pod()],
            ..Isolation::new("shop", "web-policy", Side::Ingress)
        }
    }

    fn lines<'a>(rules: &'a Rules, chain: &str) -> Vec<&'a str> {
        let start = format!("-A {chain} ");
        rules
            .lines
            .iter()
            .map(String::as_str)
            .filter(|line| line.starts_with(&start))
            .collect()
    }

    #[test]
    fn isolated_pod_drops_at_the_end_of_the_tier_and_another_asks_its_profile() {
        let rules = render(Family::V4, DenyAction::Drop, &[pod()], &[isolation()]);
        let to = lines(&rules, "cali-tw-azv0123456789a");
        assert!(to[0].contains("RELATED,ESTABLISHED") && to[0].ends_with("-j ACCEPT"));
        assert!(to.iter().any(|line| {
            line.contains("\"End of tier default. Drop if no policies passed packet\" -j DROP")
        }));
        assert!(to.iter().any(
            |line| line.contains("-m mark --mark 0x0/0x20000") && line.contains("-j cali-pi-_")
        ));
        let from = lines(&rules, "cali-fw-azv0123456789a");
        assert!(from.iter().all(|line| !line.contains("End of tier")));
        assert!(
            from.iter()
                .any(|line| line.ends_with("-j cali-pro-kns.shop"))
        );
        assert!(rules.chains.iter().all(|name| name.len() <= 28));
    }

    #[test]
    fn policy_marks_what_it_allows_and_returns_between_rules() {
        let peer: IpNet = "fd00::9/128".parse().unwrap();
        let isolation = isolation()
            .allow(Allow::all().range(peer).tcp(80).tcp(443))
            .allow(Allow::all().udp(53));
        let rules = render(
            Family::V6,
            DenyAction::Drop,
            &[pod()],
            std::slice::from_ref(&isolation),
        );
        let chain = lines(&rules, &policy_chain(&isolation));
        assert_eq!(chain.len(), 3);
        assert!(
            chain[0].contains("\"Policy shop/knp.default.web-policy ingress\"")
                && chain[0].contains("--dports 80,443")
        );
        assert!(chain[1].ends_with("-j RETURN"));
        assert!(
            rules
                .sets
                .keys()
                .all(|name| name.starts_with("cali60s:") && name.len() == 31)
        );
        // In IPv4 only the second rule is left.
        let rules = render(
            Family::V4,
            DenyAction::Drop,
            &[pod()],
            std::slice::from_ref(&isolation),
        );
        assert_eq!(lines(&rules, &policy_chain(&isolation)).len(), 1);
    }

    #[test]
    fn policy_that_allows_nothing_is_a_comment() {
        let rules = render(Family::V4, DenyAction::Reject, &[pod()], &[isolation()]);
        let chain = lines(&rules, &policy_chain(&isolation()));
        assert!(chain.len() == 1 && !chain[0].contains("-j"));
        assert!(
            rules
                .lines
                .iter()
                .any(|line| line.contains("Reject if no policies passed packet\" -j REJECT"))
        );
    }
}

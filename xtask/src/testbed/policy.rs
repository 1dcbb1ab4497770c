//! *Policy rules*: drops and rejects in FORWARD as network policy engines write them, each with a comment of its own
//! so that its counter can be read.
//!
//! Two shapes. Plain: one rule in a chain that FORWARD visits first, for every packet. Azure NPM's: only new
//! connections are judged, a policy's chain sets a mark (0x400 ingress, 0x800 egress), and one rule per direction
//! drops what is marked. NPM selects pods by ipset; here their addresses stand in the rules.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::Family;
use super::service::Transport;

/// What a rule does to what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Drop, silently.
    Drop,
    /// Drop, and answer with an ICMP port unreachable.
    Reject,
    /// Drop, and answer with a TCP reset.
    RejectWithReset,
    /// Drop new connections by Azure NPM's ingress mark 0x400.
    NpmIngress,
    /// Drop new connections by Azure NPM's egress mark 0x800.
    NpmEgress,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    name: String,
    verdict: Verdict,
    from: Option<IpNet>,
    to: Option<IpNet>,
    transport: Option<Transport>,
    port: Option<u16>,
}

impl PolicyRule {
    /// A rule with a name, which becomes its comment; it matches everything until narrowed.
    #[must_use]
    pub fn new(name: &str, verdict: Verdict) -> Self {
        Self {
            name: name.to_owned(),
            verdict,
            from: None,
            to: None,
            transport: None,
            port: None,
        }
    }

    /// Drops, silently.
    #[must_use]
    pub fn drop(name: &str) -> Self {
        Self::new(name, Verdict::Drop)
    }

    /// Rejects with an ICMP message.
    #[must_use]
    pub fn reject(name: &str) -> Self {
        Self::new(name, Verdict::Reject)
    }

    /// Only from this address.
    #[must_use]
    pub fn from(mut self, ip: impl Into<IpAddr>) -> Self {
        self.from = Some(ip.into().into());
        self
    }

    /// Only to this address (after DNAT: policy judges the endpoint, not the service).
    #[must_use]
    pub fn to(mut self, ip: impl Into<IpAddr>) -> Self {
        self.to = Some(ip.into().into());
        self
    }

    /// Only to this range.
    #[must_use]
    pub fn to_range(mut self, range: IpNet) -> Self {
        self.to = Some(range);
        self
    }

    /// Only TCP to this port.
    #[must_use]
    pub fn tcp(mut self, port: u16) -> Self {
        (self.transport, self.port) = (Some(Transport::Tcp), Some(port));
        self
    }

    /// Only UDP to this port.
    #[must_use]
    pub fn udp(mut self, port: u16) -> Self {
        (self.transport, self.port) = (Some(Transport::Udp), Some(port));
        self
    }

    /// The rule's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_npm(&self) -> bool {
        matches!(self.verdict, Verdict::NpmIngress | Verdict::NpmEgress)
    }

    fn applies_to(&self, family: Family) -> bool {
        [self.from, self.to]
            .iter()
            .flatten()
            .all(|range| Family::of(range.network()) == family)
    }

    fn matches(&self) -> String {
        let mut text = String::new();
        if let Some(from) = self.from {
            let _ = write!(text, " -s {from}");
        }
        if let Some(to) = self.to {
            let _ = write!(text, " -d {to}");
        }
        if let Some(transport) = self.transport {
            let _ = write!(text, " -p {transport} -m {transport}");
        }
        if let Some(port) = self.port {
            let _ = write!(text, " --dport {port}");
        }
        text
    }
}

/// The chain of plain rules.
pub const PLAIN_CHAIN: &str = "CLUSTER-POLICY";

/// The jump into the plain rules' chain, written once; ahead of kube-proxy's.
#[must_use]
pub fn base() -> String {
    format!("*filter\n:{PLAIN_CHAIN} - [0:0]\n-I FORWARD -j {PLAIN_CHAIN}\nCOMMIT\n")
}

/// The jump into Azure NPM's chains, written once and behind kube-proxy's: where NPM is installed, or is about to
/// be by its first rule.
pub const NPM_JUMP: &str =
    "*filter\n:AZURE-NPM - [0:0]\n-A FORWARD -m conntrack --ctstate NEW -j AZURE-NPM\nCOMMIT\n";

/// All rules of a family. Counters of the rules' chains start anew; others keep theirs.
#[must_use]
pub fn render(family: Family, rules: &[PolicyRule]) -> String {
    let rules: Vec<&PolicyRule> = rules
        .iter()
        .filter(|rule| rule.applies_to(family))
        .collect();
    let mut lines = vec!["*filter".to_owned(), format!(":{PLAIN_CHAIN} - [0:0]")];
    for rule in rules.iter().filter(|rule| !rule.is_npm()) {
        let target = match (rule.verdict, family) {
            (Verdict::Reject, Family::V4) => "REJECT --reject-with icmp-port-unreachable",
            (Verdict::Reject, Family::V6) => "REJECT --reject-with icmp6-port-unreachable",
            (Verdict::RejectWithReset, _) => "REJECT --reject-with tcp-reset",
            _ => "DROP",
        };
        lines.push(format!(
            "-A {PLAIN_CHAIN}{} -m comment --comment \"{}\" -j {target}",
            rule.matches(),
            rule.name
        ));
    }
    if rules.iter().any(|rule| rule.is_npm()) {
        npm(&rules, &mut lines);
    }
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

fn npm(rules: &[&PolicyRule], lines: &mut Vec<String>) {
    let directions = [
        (Verdict::NpmIngress, "INGRESS", "0x400"),
        (Verdict::NpmEgress, "EGRESS", "0x800"),
    ];
    lines.extend(
        [
            "AZURE-NPM",
            "AZURE-NPM-INGRESS",
            "AZURE-NPM-EGRESS",
            "AZURE-NPM-ACCEPT",
        ]
        .map(|chain| format!(":{chain} - [0:0]")),
    );
    for (verdict, direction, mark) in directions {
        for (at, rule) in rules
            .iter()
            .filter(|rule| rule.verdict == verdict)
            .enumerate()
        {
            let chain = format!("AZURE-NPM-{direction}-{at}");
            lines.extend([
                format!(":{chain} - [0:0]"),
                format!("-A AZURE-NPM-{direction}{} -m comment --comment \"{direction}-POLICY-{}\" -j {chain}", rule.matches(), rule.name),
                format!("-A {chain} -m comment --comment \"DROP-{direction}-{}\" -j MARK --set-xmark {mark}/0xffffffff", rule.name),
            ]);
        }
        lines.push(format!(
            "-A AZURE-NPM-{direction} -m mark --mark {mark}/{mark} -m comment --comment \"DROP-ON-{direction}-DROP-MARK-{mark}/{mark}\" -j DROP"
        ));
    }
    lines.extend([
        "-A AZURE-NPM-ACCEPT -j RETURN".to_owned(),
        "-A AZURE-NPM -j AZURE-NPM-INGRESS".to_owned(),
        "-A AZURE-NPM -j AZURE-NPM-EGRESS".to_owned(),
        "-A AZURE-NPM -j AZURE-NPM-ACCEPT".to_owned(),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn plain_drop_has_its_name_as_comment() {
        let rule = PolicyRule::drop("batch-to-db")
            .from(ip("10.244.0.4"))
            .to(ip("10.244.0.3"))
            .tcp(5432);
        assert!(render(Family::V4, &[rule]).contains(
            "-A CLUSTER-POLICY -s 10.244.0.4/32 -d 10.244.0.3/32 -p tcp -m tcp --dport 5432 -m comment --comment \"batch-to-db\" -j DROP"
        ));
    }

    #[test]
    fn rule_with_ipv6_address_is_not_rendered_for_ipv4() {
        let rule = PolicyRule::reject("x").to(ip("fd00:244::3"));
        assert!(!render(Family::V4, std::slice::from_ref(&rule)).contains("REJECT"));
        assert!(render(Family::V6, &[rule]).contains("icmp6-port-unreachable"));
    }

    #[test]
    fn npm_marks_then_drops_once_per_direction() {
        let text = render(
            Family::V4,
            &[
                PolicyRule::new("a", Verdict::NpmIngress),
                PolicyRule::new("b", Verdict::NpmIngress),
            ],
        );
        assert_eq!(text.matches("--set-xmark 0x400/").count(), 2);
        assert_eq!(text.matches("-j DROP").count(), 2);
        assert!(!render(Family::V4, &[PolicyRule::drop("c")]).contains("-A AZURE-NPM "));
    }
}

//! Applies rules to a namespace and reads them back with their counters, through either iptables backend.

use anyhow::{Context as _, Result};

use super::netns::Netns;
use super::plan::Family;

/// Where iptables keeps its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `nf_tables`, by `iptables-nft`: Ubuntu 22.04 and later, Azure Linux.
    Nft,
    /// `x_tables`, by `iptables-legacy`.
    Legacy,
}

impl Backend {
    /// The command for a family and a purpose: empty, `restore` or `save`.
    #[must_use]
    pub fn command(self, family: Family, purpose: &str) -> String {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let backend = match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        };
        if purpose.is_empty() {
            format!("{program}-{backend}")
        } else {
            format!("{program}-{backend}-{purpose}")
        }
    }
}

/// Applies `iptables-restore` input without flushing chains that it does not name.
///
/// # Errors
/// When iptables refuses a line; the error says which.
pub fn restore(netns: &Netns, backend: Backend, family: Family, text: &str) -> Result<()> {
    netns
        .output_with_input(
            &backend.command(family, "restore"),
            ["--noflush", "--wait", "10"],
            text,
        )
        .with_context(|| format!("in these rules:\n{text}"))?;
    Ok(())
}

/// A rule as the kernel has it, with its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Everything after the chain's name.
    pub spec: String,
    /// Packets it matched.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
}

impl Rule {
    /// Its comment, if it has one.
    #[must_use]
    pub fn comment(&self) -> Option<&str> {
        let rest = self.spec.split_once("--comment ")?.1;
        match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => rest.split(' ').next(),
        }
    }

    /// Its target, such as `DROP` or another chain.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.spec.split_once("-j ")?.1.split(' ').next()
    }
}

/// All rules of a namespace with their counters.
///
/// # Errors
/// When they cannot be read.
pub fn rules(netns: &Netns, backend: Backend, family: Family) -> Result<Vec<Rule>> {
    Ok(parse(
        &netns.output(&backend.command(family, "save"), ["-c"])?,
    ))
}

/// Reads what `iptables-save -c` prints.
#[must_use]
pub fn parse(text: &str) -> Vec<Rule> {
    let mut table = String::new();
    let mut rules = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(mut rule) = line.strip_prefix('[').and_then(parse_rule) {
            rule.table.clone_from(&table);
            rules.push(rule);
        }
    }
    rules
}

/// `12:840] -A CHAIN SPEC`.
fn parse_rule(line: &str) -> Option<Rule> {
    let (counters, rest) = line.split_once("] -A ")?;
    let (packets, bytes) = counters.split_once(':')?;
    let (chain, spec) = rest.split_once(' ')?;
    Some(Rule {
        table: String::new(),
        chain: chain.to_owned(),
        spec: spec.to_owned(),
        packets: packets.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_rules_are_read_with_table_comment_target_and_counters() {
        let rules = parse(
            "# Generated\n*filter\n:FORWARD ACCEPT [5:400]\n[3:180] -A FORWARD -d 10.0.0.1/32 -m comment --comment \"a b\" -j DROP\n\
             [0:0] -A FORWARD -m comment --comment plain -j KUBE-FORWARD\nCOMMIT\n*nat\n[1:60] -A POSTROUTING -j MASQUERADE --random-fully\nCOMMIT\n",
        );
        assert_eq!(rules.len(), 3);
        assert_eq!((rules[0].packets, rules[0].bytes), (3, 180));
        assert_eq!(
            (rules[0].comment(), rules[0].target()),
            (Some("a b"), Some("DROP"))
        );
        assert_eq!(rules[1].comment(), Some("plain"));
        assert_eq!(
            (
                rules[2].table.as_str(),
                rules[2].comment(),
                rules[2].target()
            ),
            ("nat", None, Some("MASQUERADE"))
        );
    }
}

//! The kernel's *protocol counters* of a namespace, by name: what `nstat` shows.

use std::collections::BTreeMap;

use anyhow::Result;

use super::netns::Netns;
use super::plan::Family;

/// Counters as `Ip.ForwDatagrams`, `TcpExt.IPReversePathFilter` and, for IPv6, `Ip6InNoRoutes`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads all of a namespace.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of(netns: &Netns) -> Result<Self> {
        let mut counters = tables(&netns.read("/proc/net/snmp")?);
        counters.extend(tables(&netns.read("/proc/net/netstat")?));
        counters.extend(list(&netns.read("/proc/net/snmp6")?));
        Ok(Self(counters))
    }

    /// A counter; 0 where this kernel has none of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// The IP packets that came in, and were neither handed to a protocol of the node nor sent on.
    #[must_use]
    pub fn vanished(&self, family: Family) -> u64 {
        let [came, forwarded, delivered] = match family {
            Family::V4 => ["Ip.InReceives", "Ip.ForwDatagrams", "Ip.InDelivers"],
            Family::V6 => ["Ip6InReceives", "Ip6OutForwDatagrams", "Ip6InDelivers"],
        };
        self.get(came)
            .saturating_sub(self.get(forwarded) + self.get(delivered))
    }

    /// The ICMP 'destination unreachable' messages sent.
    #[must_use]
    pub fn unreachable_sent(&self, family: Family) -> u64 {
        self.get(match family {
            Family::V4 => "Icmp.OutDestUnreachs",
            Family::V6 => "Icmp6OutDestUnreachs",
        })
    }
}

/// `Ip: NAME NAME` above `Ip: 1 2`.
fn tables(text: &str) -> BTreeMap<String, u64> {
    let lines: Vec<&str> = text.lines().collect();
    let mut counters = BTreeMap::new();
    for pair in lines.chunks_exact(2) {
        let mut names = pair[0].split_ascii_whitespace();
        let values = pair[1].split_ascii_whitespace().skip(1);
        let group = names.next().unwrap_or_default().trim_end_matches(':');
        for (name, value) in names.zip(values) {
            // Some are signed, such as Tcp.MaxConn: none of these counts packets.
            if let Ok(value) = value.parse() {
                counters.insert(format!("{group}.{name}"), value);
            }
        }
    }
    counters
}

/// `NAME VALUE` in each line.
fn list(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let mut counters = tables(
            "Ip: Forwarding InReceives ForwDatagrams InDelivers\nIp: 1 10 4 3\nTcp: MaxConn OutRsts\nTcp: -1 7\n",
        );
        counters.extend(list("Ip6InReceives   \t5\nIp6OutForwDatagrams 5\n"));
        let counters = Counters(counters);
        assert_eq!(
            (counters.get("Tcp.OutRsts"), counters.get("Tcp.None")),
            (7, 0)
        );
        assert_eq!(
            (counters.vanished(Family::V4), counters.vanished(Family::V6)),
            (3, 0)
        );
    }
}

//! *Ground truth*: what the kernel itself counted, as typed values, read by other means than the agent's.
//!
//! Interface counters count an aggregated (GRO/GSO) frame as one packet on veths; with offloads off
//! ([`super::offload`]) they count packets as on the wire.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::frame::{Mac, parse_mac};
use super::netns::Netns;

/// An interface with its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkCounters {
    /// Name.
    pub name: String,
    /// Index.
    pub index: u32,
    /// Hardware address.
    pub mac: String,
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received, link-layer header included.
    pub rx_bytes: u64,
    /// Received frames that were dropped.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent, link-layer header included.
    pub tx_bytes: u64,
    /// Frames that were to be sent and were dropped.
    pub tx_dropped: u64,
}

/// All interfaces of a namespace.
///
/// # Errors
/// When they cannot be listed.
pub fn links(netns: &Netns) -> Result<Vec<LinkCounters>> {
    parse_links(&netns.output("ip", ["-s", "-j", "link", "show"])?)
}

/// One interface of a namespace.
///
/// # Errors
/// When there is no such interface.
pub fn link(netns: &Netns, name: &str) -> Result<LinkCounters> {
    parse_links(&netns.output("ip", ["-s", "-j", "link", "show", "dev", name])?)?
        .pop()
        .context("ip names the link")
}

/// An interface's hardware address.
///
/// # Errors
/// When there is no such interface, or it has none.
pub fn mac(netns: &Netns, name: &str) -> Result<Mac> {
    let text = link(netns, name)?.mac;
    parse_mac(&text).with_context(|| format!("{name} has no hardware address, but '{text}'"))
}

fn parse_links(json: &str) -> Result<Vec<LinkCounters>> {
    let links: Vec<Value> = serde_json::from_str(json).context("ip -j prints JSON")?;
    Ok(links
        .iter()
        .filter(|link| link["ifname"].is_string())
        .map(|link| {
            let stats = &link["stats64"];
            let number = |way: &str, what: &str| stats[way][what].as_u64().unwrap_or_default();
            LinkCounters {
                name: link["ifname"].as_str().unwrap_or_default().to_owned(),
                index: u32::try_from(link["ifindex"].as_u64().unwrap_or_default())
                    .unwrap_or_default(),
                mac: link["address"].as_str().unwrap_or_default().to_owned(),
                rx_packets: number("rx", "packets"),
                rx_bytes: number("rx", "bytes"),
                rx_dropped: number("rx", "dropped"),
                tx_packets: number("tx", "packets"),
                tx_bytes: number("tx", "bytes"),
                tx_dropped: number("tx", "dropped"),
            }
        })
        .collect())
}

/// One direction of a conntrack entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direction {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port; 0 for protocols without.
    pub source_port: u16,
    /// Destination port; 0 for protocols without.
    pub destination_port: u16,
    /// Packets (with `nf_conntrack_acct`).
    pub packets: u64,
    /// Bytes from the IP header on (with `nf_conntrack_acct`).
    pub bytes: u64,
}

/// One conntrack entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// Protocol name as conntrack prints it: `tcp`, `udp`, `icmp`, ...
    pub protocol: String,
    /// TCP state, if it has one.
    pub state: Option<String>,
    /// As the client sent it.
    pub original: Direction,
    /// As the answer is expected.
    pub reply: Direction,
    /// No answer was seen.
    pub unreplied: bool,
}

impl ConntrackEntry {
    /// Whether the source is translated.
    #[must_use]
    pub fn is_snat(&self) -> bool {
        (self.reply.destination, self.reply.destination_port)
            != (self.original.source, self.original.source_port)
    }

    /// Whether the destination is translated.
    #[must_use]
    pub fn is_dnat(&self) -> bool {
        (self.reply.source, self.reply.source_port)
            != (self.original.destination, self.original.destination_port)
    }
}

/// All conntrack entries of a namespace, of both families.
///
/// # Errors
/// When they cannot be listed.
pub fn conntrack(netns: &Netns) -> Result<Vec<ConntrackEntry>> {
    let mut entries = Vec::new();
    for family in ["ipv4", "ipv6"] {
        entries.extend(parse_conntrack(
            &netns.output("conntrack", ["-L", "-f", family, "-o", "extended"])?,
        ));
    }
    Ok(entries)
}

/// Forgets all conntrack entries of a namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn flush_conntrack(netns: &Netns) -> Result<()> {
    netns.output("conntrack", ["-F"]).map(drop)
}

/// Reads what `conntrack -L -o extended` prints; lines of another form are passed over.
#[must_use]
pub fn parse_conntrack(text: &str) -> Vec<ConntrackEntry> {
    text.lines().filter_map(parse_entry).collect()
}

fn parse_entry(line: &str) -> Option<ConntrackEntry> {
    let mut words = line.split_ascii_whitespace();
    let protocol = words.nth(2)?.to_owned();
    let state = words
        .clone()
        .take_while(|word| !word.contains('='))
        .find(|word| word.starts_with(char::is_uppercase));
    let fields: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
    let second = fields
        .iter()
        .enumerate()
        .filter(|(_, field)| field.0 == "src")
        .nth(1)?
        .0;
    Some(ConntrackEntry {
        protocol,
        state: state.map(str::to_owned),
        original: direction(&fields[..second])?,
        reply: direction(&fields[second..])?,
        unreplied: line.contains("[UNREPLIED]"),
    })
}

fn direction(fields: &[(&str, &str)]) -> Option<Direction> {
    let field = |name| {
        fields
            .iter()
            .find(|field| field.0 == name)
            .map(|field| field.1)
    };
    let port = |name| field(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let count = |name| field(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    Some(Direction {
        source: field("src")?.parse().ok()?,
        destination: field("dst")?.parse().ok()?,
        source_port: port("sport"),
        destination_port: port("dport"),
        packets: count("packets"),
        bytes: count("bytes"),
    })
}

/// Sums of the per-CPU columns of `/proc/net/stat/nf_conntrack`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConntrackStatistics {
    /// Entries now.
    pub entries: u64,
    /// Packets that no entry could be made for.
    pub invalid: u64,
    /// Entries whose tuple another one took first.
    pub insert_failed: u64,
    /// Packets dropped by conntrack.
    pub drop: u64,
    /// Entries evicted to make room.
    pub early_drop: u64,
}

/// The statistics of a namespace.
///
/// # Errors
/// When the kernel has no such file.
pub fn conntrack_statistics(netns: &Netns) -> Result<ConntrackStatistics> {
    parse_statistics(&netns.read("/proc/net/stat/nf_conntrack")?)
        .context("/proc/net/stat/nf_conntrack has a header")
}

fn parse_statistics(text: &str) -> Option<ConntrackStatistics> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next()?.split_ascii_whitespace().collect();
    let rows: Vec<Vec<u64>> = lines
        .map(|line| {
            line.split_ascii_whitespace()
                .map(|word| u64::from_str_radix(word, 16).unwrap_or(0))
                .collect()
        })
        .collect();
    let column = |name: &str| header.iter().position(|column| *column == name);
    let sum =
        |name: &str| column(name).map_or(0, |at| rows.iter().filter_map(|row| row.get(at)).sum());
    Some(ConntrackStatistics {
        // The same number in every row.
        entries: column("entries")
            .and_then(|at| rows.first()?.get(at).copied())
            .unwrap_or(0),
        invalid: sum("invalid"),
        insert_failed: sum("insert_failed"),
        drop: sum("drop"),
        early_drop: sum("early_drop"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translated_tcp_entry_is_read() {
        let entries = parse_conntrack(
            "ipv4     2 tcp      6 119 TIME_WAIT src=10.244.0.2 dst=10.0.0.10 sport=40000 dport=80 packets=6 bytes=400 \
             src=10.244.0.3 dst=10.244.0.2 sport=8080 dport=40000 packets=5 bytes=300 [ASSURED] mark=0 use=1\n",
        );
        let [entry] = entries.as_slice() else {
            panic!("one entry")
        };
        assert_eq!(
            (entry.protocol.as_str(), entry.state.as_deref()),
            ("tcp", Some("TIME_WAIT"))
        );
        assert_eq!(
            (
                entry.original.packets,
                entry.reply.bytes,
                entry.original.source_port
            ),
            (6, 300, 40000)
        );
        assert!(entry.is_dnat() && !entry.is_snat() && !entry.unreplied);
    }

    #[test]
    fn unreplied_icmpv6_entry_is_read() {
        let entries = parse_conntrack(
            "ipv6     10 icmpv6   58 29 src=fd00::1 dst=fd00::2 type=128 code=0 id=7 packets=1 bytes=104 [UNREPLIED] \
             src=fd00::2 dst=fd00::1 type=129 code=0 id=7 packets=0 bytes=0 mark=0 use=1",
        );
        assert_eq!(
            (
                entries[0].state.as_deref(),
                entries[0].unreplied,
                entries[0].original.packets
            ),
            (None, true, 1)
        );
        assert!(!entries[0].is_dnat() && !entries[0].is_snat());
    }

    #[test]
    fn statistics_are_summed_over_cpus_but_entries_are_not() {
        let text = "entries  clashres found new invalid insert_failed drop early_drop\n\
                    0000000a 00 00 00 00000001 00000002 3 0\n0000000a 00 00 00 0000000f 00000001 0 1\n";
        let statistics = parse_statistics(text).unwrap();
        assert_eq!(
            statistics,
            ConntrackStatistics {
                entries: 10,
                invalid: 16,
                insert_failed: 3,
                drop: 3,
                early_drop: 1
            }
        );
    }

    #[test]
    fn links_are_read() {
        let links = parse_links(
            r#"[{},{"ifindex":2,"ifname":"eth0","address":"aa:bb","stats64":{"rx":{"bytes":10,"packets":1,"dropped":0},"tx":{"bytes":20,"packets":2,"dropped":3}}}]"#,
        )
        .unwrap();
        assert_eq!(links.len(), 1);
        assert_eq!(
            (
                links[0].index,
                links[0].rx_bytes,
                links[0].tx_packets,
                links[0].tx_dropped
            ),
            (2, 10, 2, 3)
        );
    }
}

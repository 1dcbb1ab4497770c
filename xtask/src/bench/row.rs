//! Names of *rows* and columns that the benchmarks fill and the targets refer to.

/// What the machine's memory takes.
pub const TOUCH: &str = "floor: one atomic addition to a cell per flow";
/// ENTER of a known flow, IPv4 TCP.
pub const ENTER_TCP: &str = "ENTER, known flow, IPv4 TCP";
/// ENTER of a known flow, IPv6 UDP.
pub const ENTER_UDP: &str = "ENTER, known flow, IPv6 UDP";
/// ENTER where there are more flows than cells.
pub const ENTER_SMALL_TABLE: &str = "ENTER, IPv4 TCP, more flows than cells";
/// EXIT with nothing on its way.
pub const EXIT_IDLE: &str = "EXIT, nothing pending";
/// ENTER and EXIT of a timed packet, IPv4 TCP.
pub const TIMED_TCP: [&str; 2] = ["ENTER, timed, IPv4 TCP", "EXIT, timed, IPv4 TCP"];
/// ENTER and EXIT of a timed packet, IPv6 UDP.
pub const TIMED_UDP: [&str; 2] = ["ENTER, timed, IPv6 UDP", "EXIT, timed, IPv6 UDP"];
/// ENTER of a new flow.
pub const NEW_UDP: &str = "ENTER, new flow, IPv6 UDP";
/// ENTER of a SYN.
pub const NEW_SYN: &str = "ENTER, new flow, IPv4 SYN";
/// ENTER of a connection that was there before the agent.
pub const NEW_TCP: &str = "ENTER, new flow, IPv4 TCP, no SYN";

/// Real packets: ENTER over the empty program.
pub const RUN_ENTER: &str = "ENTER";
/// Real packets: EXIT over the empty program.
pub const RUN_EXIT: &str = "EXIT";
/// Real packets that a netfilter rule drops: DROP.
pub const RUN_DROP: &str = "DROP";

/// What is attached to the path under test: nothing, for what the comparison itself is worth.
pub const NOTHING: &str = "nothing (null check)";
/// What is attached: empty programs.
pub const EMPTY: &str = "empty tcx programs";
/// What is attached: the agent's programs, with a reader of its tables.
pub const AGENT: &str = "the agent's programs";
/// As [`AGENT`], with more flows than cells.
pub const AGENT_SMALL_TABLE: &str = "the agent's programs, more flows than cells";

/// [`AGENT`] as processor time: nanoseconds per packet times a million packets a second.
pub const AGENT_SHARE: &str = "the agent's programs, % of a core for a million packets a second";

/// How long a packet takes with nothing attached.
pub const BASE: &str = "a packet's whole time, nothing attached";
/// The column of what is measured with nothing attached.
pub const WITHOUT: &str = "without";

/// What the agent's programs add to each connection, datagram or exchange.
pub const AGENT_TIME: &str = "the agent's programs, ns each";

/// Bulk TCP.
pub const THROUGHPUT: &str = "TCP throughput, Gbit/s";
/// Connections opened and closed.
pub const CONNECTIONS: &str = "TCP connections/s";
/// Datagrams of 64 bytes.
pub const SMALL_PACKETS: &str = "64-byte UDP datagrams/s";
/// One byte there and back.
pub const REQUEST: &str = "request-response, µs";
/// A connection for one byte there and back.
pub const CONNECT_REQUEST: &str = "connect-request-response, µs";

/// One sweep of a full default table.
pub const SWEEP: &str = "sweep of 65,536 live flows, ms";
/// One sweep that meets 65,536 flows and names both ends of each.
pub const SWEEP_NAMED: &str = "sweep of 65,536 new flows with names, ms";
/// As [`SWEEP_NAMED`], where policies judge each as well.
pub const SWEEP_JUDGED: &str = "sweep of 65,536 new flows with names, judged by 5,000 policies, ms";
/// `/metrics` of 20,000 series.
pub const SCRAPE: &str = "scrape of 20,000 series, ms";
/// A pod's address, asked of an index of the largest cluster.
pub const LOOKUP: &str = "lookup among 150,000 pods, ns";
/// A change of a pod folded into such an index.
pub const POD_EVENT: &str = "a pod's change folded, µs";
/// A process with such an index.
pub const INDEX_MEMORY: &str =
    "RSS with 150,000 pods, 5,000 nodes, 10,000 services, 5,000 policies, MiB";
/// A flow judged that policies allow.
pub const POLICY_ALLOWED: &str = "a flow allowed by one of 10,000 policies, µs";
/// A flow judged that policies deny.
pub const POLICY_DENIED: &str = "a flow denied by one of 10,000 policies, µs";
/// The words for why it is denied.
pub const POLICY_EXPLAINED: &str = "why it is denied, in words, µs";
/// A policy with other content put into the index.
pub const POLICY_CHANGED: &str = "a policy's change among 10,000, ms";
/// Memory.
pub const RESIDENT: &str = "resident memory (RSS), MiB";

/// ENTER of a known flow among so many live ones.
pub const GROWTH_ENTER: &str = "ENTER, known flow, ns";
/// One sweep in which each of them has something new.
pub const GROWTH_SWEEP: &str = "a sweep, every flow changed, ms";
/// `/metrics` after that.
pub const GROWTH_SCRAPE: &str = "a scrape, ms";
/// The size of the flow table.
pub const GROWTH_CELLS: &str = "cells (`flow_cells`)";
/// What found no cell near its place, and is in the spill map.
pub const GROWTH_SPILLED: &str = "flows in the spill map, %";
/// What the kernel holds for all maps.
pub const GROWTH_TABLES: &str = "all maps, MiB";
/// What the process holds for the flows besides.
pub const GROWTH_MEMORY: &str = "the agent's own account of them, MiB";

/// From the agent's start until the last of the pods is watched.
pub const PODS_WATCHED: &str = "all pods are watched after, s";
/// Processor time while there are no packets.
pub const PODS_IDLE: &str = "processor time while nobody talks, % of a core";
/// Processor time while all pods open connections.
pub const PODS_BUSY: &str = "processor time while all talk, % of a core";
/// How many they open.
pub const PODS_CONNECTIONS: &str = "connections a second, of all pods, each counted";
/// `/metrics` after that.
pub const PODS_SCRAPE: &str = "a scrape over HTTP, ms";
/// What such a scrape holds.
pub const PODS_SERIES: &str = "series";
/// The agent's memory after all of that.
pub const PODS_RESIDENT: &str = "RSS after that, MiB";
/// From SIGTERM until the agent has ended.
pub const PODS_ENDED: &str = "it has detached from all and ended after, s";

/// First packets where kube-proxy writes iptables.
pub const FIRST_IPTABLES: &str = "first packet, kube-proxy in iptables mode, µs";
/// First packets where kube-proxy writes nftables.
pub const FIRST_NFTABLES: &str = "first packet, kube-proxy in nftables mode, µs";

/// A number of services as a column's title.
#[must_use]
pub fn services(services: u16) -> String {
    if services >= 1_000 {
        format!("{},{:03} services", services / 1_000, services % 1_000)
    } else {
        format!("{services} services")
    }
}

/// A number of flows as a column's title.
#[must_use]
pub fn flows(flows: u32) -> String {
    let thousands = flows / 1_000;
    if thousands >= 1_000 {
        let (millions, rest) = (thousands / 1_000, thousands % 1_000);
        format!("{millions},{rest:03},{:03} flows", flows % 1_000)
    } else if thousands > 0 {
        format!("{thousands},{:03} flows", flows % 1_000)
    } else if flows == 1 {
        "1 flow".to_owned()
    } else {
        format!("{flows} flows")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_flows_are_written_in_groups() {
        let written = [1, 999, 1_000, 65_536, 1_000_000].map(flows);
        let expected = [
            "1 flow",
            "999 flows",
            "1,000 flows",
            "65,536 flows",
            "1,000,000 flows",
        ];
        assert_eq!(written, expected);
    }
}

//! The cause of a drop: what the kernel's reason and the place in its code mean on a node.
//!
//! Reasons come as names, as their numbers move between kernels. The symbol of the code that dropped the
//! packet is the second witness, and the only one where the kernel says no more than `NOT_SPECIFIED`. What a
//! firewall's drop means is for [`attribute`](super::attribute) to tell from further evidence.

use std::collections::HashMap;

use crate::plan::Place;

/// What a drop means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// A network policy denies it.
    Policy,
    /// AKS's standing block of Azure's wireserver or metadata service.
    AzurePlatformBlock,
    /// Connection tracking: invalid, table full.
    Conntrack,
    /// Address translation failed.
    Nat,
    /// No route, or a route that says no.
    Route,
    /// The next hop's link address is not known.
    Neighbour,
    /// Reverse-path filter: the source could not have come in there.
    RpFilter,
    /// No socket wants it, or its buffer is full, or TCP refuses it.
    Socket,
    /// A queue in front of a device or CPU is full.
    Queue,
    /// Its time to live was over: too many hops, or a loop.
    Ttl,
    /// Larger than the way out takes, and not to be fragmented.
    Mtu,
    /// A netfilter rule that no policy explains.
    Firewall,
    /// Anything else.
    Other,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 13] = [
        Self::Policy,
        Self::AzurePlatformBlock,
        Self::Conntrack,
        Self::Nat,
        Self::Route,
        Self::Neighbour,
        Self::RpFilter,
        Self::Socket,
        Self::Queue,
        Self::Ttl,
        Self::Mtu,
        Self::Firewall,
        Self::Other,
    ];

    /// The cause of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }

    /// The value of the label `cause`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::AzurePlatformBlock => "azure_platform_block",
            Self::Conntrack => "conntrack",
            Self::Nat => "nat",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::RpFilter => "rp_filter",
            Self::Socket => "socket",
            Self::Queue => "queue",
            Self::Ttl => "ttl",
            Self::Mtu => "mtu",
            Self::Firewall => "firewall",
            Self::Other => "other",
        }
    }
}

/// Which way a dropped packet went, as a network policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From a pod of this node.
    Egress,
    /// To a pod of this node, from elsewhere.
    Ingress,
    /// Neither.
    None,
}

impl Direction {
    /// Of a packet between two places.
    #[must_use]
    pub fn between(src: Place, dst: Place) -> Self {
        match (src, dst) {
            (Place::LocalPod, _) => Self::Egress,
            (_, Place::LocalPod) => Self::Ingress,
            _ => Self::None,
        }
    }

    /// The value of the label `direction`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::None => "",
        }
    }
}

/// The names behind the numbers in a drop, as the running kernel has them.
///
/// Of a kernel's 200,000 functions only those are kept that [`cause`] tells something by.
#[derive(Clone, Debug, Default)]
pub struct DropNames {
    reasons: HashMap<u32, Box<str>>,
    /// Start and end addresses and names of functions, ascending.
    symbols: Vec<(u64, u64, Box<str>)>,
}

impl DropNames {
    /// Names of reasons by number (`SKB_DROP_REASON_` is taken off, and case does not matter), and of all
    /// functions by start address, in any order: a function ends where the next one starts.
    pub fn new(
        reasons: impl IntoIterator<Item = (u32, String)>,
        symbols: impl IntoIterator<Item = (u64, String)>,
    ) -> Self {
        let reasons = reasons.into_iter().map(|(number, name)| {
            let name = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(&name);
            (number, name.to_ascii_lowercase().into())
        });
        let mut all: Vec<(u64, Option<Box<str>>)> = symbols
            .into_iter()
            .map(|(start, name)| {
                let telling = cause("", &name) != Cause::Other;
                (start, telling.then(|| name.into()))
            })
            .collect();
        all.sort_unstable();
        let ends: Vec<u64> = all.iter().map(|(start, _)| *start).skip(1).collect();
        let symbols = all.into_iter().zip(ends.into_iter().chain([u64::MAX]));
        let symbols = symbols.filter_map(|((start, name), end)| Some((start, end, name?)));
        Self {
            reasons: reasons.collect(),
            symbols: symbols.collect(),
        }
    }

    /// The name of a reason in lower case; its number where the kernel's list has none.
    #[must_use]
    pub fn reason(&self, number: u32) -> String {
        match self.reasons.get(&number) {
            Some(name) => name.to_string(),
            None => number.to_string(),
        }
    }

    /// The function that an address lies in; empty where it tells nothing about the cause.
    #[must_use]
    pub fn symbol(&self, address: u64) -> &str {
        let after = self
            .symbols
            .partition_point(|(start, ..)| *start <= address);
        match after.checked_sub(1).and_then(|at| self.symbols.get(at)) {
            Some((_, end, name)) if address < *end => name,
            _ => "",
        }
    }
}

/// NFQUEUE: the program that judges packets in user space said no, or the packet did not come to it.
pub(super) fn is_queue(symbol: &str) -> bool {
    ["nfqnl_", "nf_reinject", "nf_queue", "__nf_queue"]
        .iter()
        .any(|prefix| symbol.starts_with(prefix))
}

/// Where packets for somebody else are passed on.
pub(super) fn is_forwarding(symbol: &str) -> bool {
    symbol.starts_with("ip_forward") || symbol.starts_with("ip6_forward")
}

/// What a reason (in lower case) at a place in the kernel's code means.
#[must_use]
pub fn cause(reason: &str, symbol: &str) -> Cause {
    let at = |prefixes: &[&str]| prefixes.iter().any(|p| symbol.starts_with(p));
    let is = |prefixes: &[&str]| prefixes.iter().any(|p| reason.starts_with(p));

    // The code that dropped it says more than the reason, where it belongs to one subsystem alone.
    if at(&["nf_conntrack", "__nf_conntrack", "nf_ct_"]) {
        return Cause::Conntrack;
    }
    if at(&["nf_nat", "__nf_nat", "nf_xfrm_me_harder"]) {
        return Cause::Nat;
    }
    if is_queue(symbol) {
        return Cause::Firewall;
    }
    if is(&["ip_rpfilter"]) {
        return Cause::RpFilter;
    }
    if is(&["pkt_too_big"]) {
        return Cause::Mtu;
    }
    // Elsewhere a bad header is really bad (net/ipv4/ip_forward.c, net/ipv6/ip6_output.c, since 5.19).
    if is(&["ip_inhdr"]) && is_forwarding(symbol) {
        return Cause::Ttl;
    }
    if is(&["netfilter_drop"]) || at(&["nf_hook_slow", "nft_do_chain", "ipt_do_table"]) {
        return Cause::Firewall;
    }
    if is(&[
        "ip_innoroutes",
        "ip_outnoroutes",
        "ip_local_source",
        "ip_invalid_source",
        "ip_invalid_dest",
        "ip_localnet",
        "lwtunnel",
    ]) {
        return Cause::Route;
    }
    if is(&["neigh_"]) {
        return Cause::Neighbour;
    }
    if is(&["no_socket", "socket_", "tcp_", "udp_", "proto_mem", "unix_"]) {
        return Cause::Socket;
    }
    if is(&["qdisc_", "cpu_backlog", "full_ring", "queue_purge"]) {
        return Cause::Queue;
    }
    // Older kernels, and code that gives no reason.
    if at(&["neigh_", "__neigh", "arp_", "ndisc_"]) {
        Cause::Neighbour
    } else if at(&[
        "ip_error",
        "ip_route_",
        "ip6_pkt_d",
        "ip6_route_",
        "ip_forward",
        "ip6_forward",
        "dst_discard",
    ]) {
        Cause::Route
    } else if at(&[
        "tcp_", "udp_", "__udp", "udp6_", "udpv6_", "raw_", "rawv6_", "sock_", "__tcp", "sk_",
    ]) {
        Cause::Socket
    } else if at(&[
        "__dev_queue",
        "__dev_xmit",
        "enqueue_to_backlog",
        "netif_rx",
    ]) && !is(&["tc_"])
    {
        Cause::Queue
    } else {
        Cause::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_and_location_name_the_cause() {
        for (reason, symbol, expected) in [
            ("netfilter_drop", "nf_hook_slow", Cause::Firewall),
            ("netfilter_drop", "nft_do_chain", Cause::Firewall),
            ("not_specified", "nfqnl_reinject", Cause::Firewall),
            ("not_specified", "nf_queue", Cause::Firewall),
            ("not_specified", "nf_hook_slow", Cause::Firewall),
            ("netfilter_drop", "nf_conntrack_confirm", Cause::Conntrack),
            ("ip_innoroutes", "ip_error", Cause::Route),
            ("not_specified", "ip_error", Cause::Route),
            ("not_specified", "ip6_pkt_drop", Cause::Route),
            ("ip_outnoroutes", "ip6_pkt_drop", Cause::Route),
            ("ip_rpfilter", "ip_rcv_finish_core", Cause::RpFilter),
            ("neigh_failed", "neigh_invalidate", Cause::Neighbour),
            ("not_specified", "arp_error_report", Cause::Neighbour),
            ("no_socket", "tcp_v4_rcv", Cause::Socket),
            ("socket_rcvbuff", "sock_queue_rcv_skb", Cause::Socket),
            (
                "tcp_invalid_sequence",
                "tcp_validate_incoming",
                Cause::Socket,
            ),
            ("qdisc_drop", "__dev_queue_xmit", Cause::Queue),
            ("cpu_backlog", "enqueue_to_backlog", Cause::Queue),
            ("tc_ingress", "__netif_receive_skb_core", Cause::Other),
            ("tc_egress", "__dev_queue_xmit", Cause::Other),
            ("ip_inhdr", "ip_rcv_core", Cause::Other),
            ("ip_inhdr", "ip_forward", Cause::Ttl),
            ("ip_inhdr", "ip6_forward", Cause::Ttl),
            ("pkt_too_big", "ip_forward", Cause::Mtu),
            ("pkt_too_big", "ip6_pkt_too_big", Cause::Mtu),
        ] {
            assert_eq!(cause(reason, symbol), expected, "{reason} at {symbol}");
        }
    }

    #[test]
    fn names_are_the_running_kernels() {
        let names = DropNames::new(
            [(12, "SKB_DROP_REASON_NETFILTER_DROP".to_owned())],
            [
                (0x2000, "nf_hook_slow".to_owned()),
                (0x3000, "kfree".to_owned()),
                (0x1000, "ip_error".to_owned()),
            ],
        );
        assert_eq!(names.reason(12), "netfilter_drop");
        assert_eq!(names.reason(13), "13");
        assert_eq!(names.symbol(0x0fff), "");
        assert_eq!(names.symbol(0x1000), "ip_error");
        assert_eq!(names.symbol(0x20a0), "nf_hook_slow");
        assert_eq!(names.symbol(0x3001), "");
    }
}

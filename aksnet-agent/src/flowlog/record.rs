//! A *record*: what one connection did, both its directions, from its begin or from the record before.

use std::{fmt::Write as _, net::SocketAddr};

use aksnet_common::packet::{ACK, FIN, RST, SYN};
use serde::{Deserialize, Serialize};

use crate::{
    droplog::record::time_of_day,
    top::model::{Ends, Timing, Who},
};

/// Why a record was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It was not: the connection goes on, and somebody asked.
    Live,
    /// The connection goes on, and the active timeout has passed since its begin or the record before.
    Active,
    /// TCP has closed it, by FIN both ways or by RST.
    Closed,
    /// No packet for as long as `idle_timeout` says.
    Idle,
    /// The agent, or the capture, has ended.
    AgentEnd,
    /// The table was full: the counts of one direction within one sweep, without times or translation.
    Spilled,
}

impl End {
    /// As JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Active => "active",
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::AgentEnd => "agent_end",
            Self::Spilled => "spilled",
        }
    }
}

/// What one direction did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Packets on the wire since the record before.
    pub packets: u64,
    /// Their bytes, IP length.
    pub bytes: u64,
    /// Packets since the connection began.
    pub total_packets: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Packets of them that the node dropped.
    pub drops: u64,
    /// TCP packets that were sent again.
    pub retransmits: u64,
    /// TCP flags seen, of `FSRPAUEC`; empty for other protocols.
    pub tcp_flags: String,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// When its first packet was seen; wall time, milliseconds since 1970.
    pub start_ms: u64,
    /// When the sweep ran that saw its latest packet.
    pub end_ms: u64,
    /// Why this record was made.
    pub end: End,
    /// The node's name.
    pub node: String,
    /// The values of the labels of the same names.
    pub class: String,
    /// See [`Self::class`].
    pub nat: String,
    /// See [`Self::class`].
    pub scope: String,
    /// `tcp`, `udp`, …, or the number.
    pub protocol: String,
    /// Where the client's packets enter; empty: the node itself sends them, or not seen.
    pub in_interface: String,
    /// Where they leave; empty: delivered on the node, or not seen.
    pub out_interface: String,
    /// Who opened it.
    pub from: Who,
    /// Who answers.
    pub to: Who,
    /// The client's packets before any translation: its own address, and what it dialled.
    pub before: Ends,
    /// The same packets as they leave the node; `None` if none was seen to.
    pub after: Option<Ends>,
    /// The client's packets.
    pub forward: Counts,
    /// The answers; `None` if none was seen.
    pub reply: Option<Counts>,
    /// Connections with these addresses and ports: a port may be used again before the flow is idle.
    pub connections: u64,
    /// What became of it; see docs/records.md.
    pub outcome: String,
    /// Time on the NAT path of packets that open connections, since the connection began.
    pub first: Option<Timing>,
    /// The same of all others, both ways.
    pub established: Option<Timing>,
    /// The kernel's reason of the latest drop, lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<String>,
    /// What that means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_cause: Option<String>,
    /// Policies that isolate the pod where it is denied, `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// What the policies given to `replay` say of it: `allowed`, `denied`, `undetermined`, or that they say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
}

/// What the outcome follows from.
#[expect(
    clippy::struct_excessive_bools,
    reason = "signs that are there or not, in any combination"
)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Signs {
    pub(crate) tcp: bool,
    /// Whether this kind of packet is answered at all.
    pub(crate) has_replies: bool,
    /// A SYN was seen.
    pub(crate) opened: bool,
    /// A SYN-ACK was.
    pub(crate) accepted: bool,
    pub(crate) forward_flags: u8,
    pub(crate) reply_flags: u8,
    pub(crate) answered: bool,
    pub(crate) dropped: bool,
}

impl Signs {
    /// The word for it.
    pub(crate) const fn outcome(self) -> &'static str {
        let either = self.forward_flags | self.reply_flags;
        if self.tcp {
            if self.accepted || (!self.opened && self.answered) {
                return if either & RST != 0 {
                    "reset"
                } else if self.forward_flags & self.reply_flags & FIN != 0 {
                    "finished"
                } else {
                    "established"
                };
            }
            if self.opened && self.reply_flags & RST != 0 {
                return "refused";
            }
        }
        if self.dropped && !self.answered {
            "dropped"
        } else if self.answered {
            "answered"
        } else if self.tcp && !self.opened {
            "one_way"
        } else if self.has_replies {
            "unanswered"
        } else {
            "one_way"
        }
    }
}

/// TCP flags as letters, in the order of their bits.
#[must_use]
pub fn flag_letters(flags: u8) -> String {
    const LETTERS: [(u8, char); 8] = [
        (FIN, 'F'),
        (SYN, 'S'),
        (RST, 'R'),
        (0x08, 'P'),
        (ACK, 'A'),
        (0x20, 'U'),
        (0x40, 'E'),
        (0x80, 'C'),
    ];
    let set = LETTERS.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, letter)| *letter).collect()
}

impl FlowRecord {
    /// Packets since the record before, both ways.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.forward.packets + self.reply.as_ref().map_or(0, |reply| reply.packets)
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.forward.bytes + self.reply.as_ref().map_or(0, |reply| reply.bytes)
    }

    /// Packets of it that were dropped, both ways.
    #[must_use]
    pub fn drops(&self) -> u64 {
        self.forward.drops + self.reply.as_ref().map_or(0, |reply| reply.drops)
    }

    /// One line for people: when, what, who to whom and how translated, how much each way, and what became of it.
    #[must_use]
    pub fn line(&self) -> String {
        let port = |address, port| match self.protocol.as_str() {
            "icmp" | "icmpv6" => format!("{address}"),
            _ => SocketAddr::new(address, port).to_string(),
        };
        let mut line = format!(
            "{} {} {} {} {} {} {} → {} {}",
            time_of_day(self.end_ms),
            self.end.name(),
            self.class,
            self.nat,
            self.protocol,
            who(&self.from),
            port(self.before.src, self.before.src_port),
            who(&self.to),
            port(self.before.dst, self.before.dst_port),
        );
        if let Some(after) = self.after.filter(|after| *after != self.before) {
            let _ = write!(
                line,
                " (as {} → {})",
                port(after.src, after.src_port),
                port(after.dst, after.dst_port)
            );
        }
        let _ = write!(
            line,
            ", {}/{} out",
            self.forward.packets, self.forward.bytes
        );
        if let Some(reply) = &self.reply {
            let _ = write!(line, " {}/{} back", reply.packets, reply.bytes);
        }
        let seconds = self.end_ms.saturating_sub(self.start_ms) / 1_000;
        let _ = write!(line, " in {seconds}s, {}", self.outcome);
        let flags = self.reply.as_ref().map(|reply| reply.tcp_flags.as_str());
        if !self.forward.tcp_flags.is_empty() || flags.is_some_and(|flags| !flags.is_empty()) {
            let _ = write!(
                line,
                " {}/{}",
                self.forward.tcp_flags,
                flags.unwrap_or_default()
            );
        }
        for (name, times) in [("first", self.first), ("later", self.established)] {
            if let Some(times) = times {
                let _ = write!(
                    line,
                    ", {name} p50 {:.1}us p99 {:.1}us",
                    times.p50_ns / 1e3,
                    times.p99_ns / 1e3
                );
            }
        }
        if self.drops() > 0 {
            let _ = write!(line, ", {} dropped", self.drops());
        }
        if let Some(cause) = &self.drop_cause {
            let _ = write!(line, " ({cause})");
        }
        if !self.policies.is_empty() {
            let _ = write!(line, ", policy {}", self.policies.join(","));
        }
        if let Some(verdict) = &self.verdict {
            let _ = write!(line, ", policies: {verdict}");
        }
        line
    }
}

fn who(who: &Who) -> String {
    match (who.namespace.is_empty(), who.workload.is_empty()) {
        (false, _) => format!("{}/{}", who.namespace, who.workload),
        (true, false) => who.workload.clone(),
        (true, true) => "?".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record() -> FlowRecord {
        let ends = |src: &str, src_port, dst: &str, dst_port| Ends {
            src: src.parse().unwrap(),
            src_port,
            dst: dst.parse().unwrap(),
            dst_port,
        };
        let who = |namespace: &str, workload: &str, pod: &str| Who {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            pod: pod.to_owned(),
        };
        FlowRecord {
            start_ms: 3_721_000,
            end_ms: 3_723_004,
            end: End::Closed,
            node: "node-1".to_owned(),
            class: "pod_to_service".to_owned(),
            nat: "dnat".to_owned(),
            scope: "same_node".to_owned(),
            protocol: "tcp".to_owned(),
            in_interface: "veth0".to_owned(),
            out_interface: "veth1".to_owned(),
            from: who("shop", "frontend", "frontend-1"),
            to: who("shop", "web", "web-0"),
            before: ends("10.244.0.5", 40_000, "10.0.0.10", 80),
            after: Some(ends("10.244.0.5", 40_000, "10.244.0.3", 8080)),
            forward: Counts {
                packets: 6,
                bytes: 600,
                total_packets: 6,
                total_bytes: 600,
                tcp_flags: "FSPA".to_owned(),
                ..Counts::default()
            },
            reply: Some(Counts {
                packets: 4,
                bytes: 900,
                total_packets: 4,
                total_bytes: 900,
                tcp_flags: "FSPA".to_owned(),
                ..Counts::default()
            }),
            connections: 1,
            outcome: "finished".to_owned(),
            first: Some(Timing {
                samples: 1,
                p50_ns: 98_000.0,
                p99_ns: 98_000.0,
            }),
            established: None,
            drop_reason: None,
            drop_cause: None,
            policies: Vec::new(),
            verdict: None,
        }
    }

    #[test]
    fn a_line_says_who_how_translated_how_much_and_what_became_of_it() {
        assert_eq!(
            record().line(),
            "01:02:03.004Z closed pod_to_service dnat tcp shop/frontend 10.244.0.5:40000 → shop/web 10.0.0.10:80 \
             (as 10.244.0.5:40000 → 10.244.0.3:8080), 6/600 out 4/900 back in 2s, finished FSPA/FSPA, \
             first p50 98.0us p99 98.0us"
        );
    }

    #[test]
    fn a_record_reads_back_from_json() {
        let json = serde_json::to_string(&record()).unwrap();
        assert_eq!(serde_json::from_str::<FlowRecord>(&json).unwrap(), record());
        assert!(
            !json.contains("verdict") && !json.contains("policies"),
            "{json}"
        );
    }

    #[test]
    fn an_outcome_is_what_the_packets_show() {
        let tcp = Signs {
            tcp: true,
            has_replies: true,
            opened: true,
            forward_flags: SYN,
            ..Signs::default()
        };
        let accepted = Signs {
            accepted: true,
            answered: true,
            forward_flags: SYN | ACK,
            reply_flags: SYN | ACK,
            ..tcp
        };
        let ask = Signs {
            has_replies: true,
            ..Signs::default()
        };
        for (signs, outcome) in [
            (tcp, "unanswered"),
            (
                Signs {
                    dropped: true,
                    ..tcp
                },
                "dropped",
            ),
            (
                Signs {
                    answered: true,
                    reply_flags: RST | ACK,
                    ..tcp
                },
                "refused",
            ),
            (accepted, "established"),
            (
                Signs {
                    forward_flags: FIN | SYN,
                    ..accepted
                },
                "established",
            ),
            (
                Signs {
                    forward_flags: FIN,
                    reply_flags: FIN,
                    ..accepted
                },
                "finished",
            ),
            (
                Signs {
                    reply_flags: RST,
                    ..accepted
                },
                "reset",
            ),
            (
                Signs {
                    opened: false,
                    ..tcp
                },
                "one_way",
            ),
            (
                Signs {
                    opened: false,
                    answered: true,
                    ..tcp
                },
                "established",
            ),
            (ask, "unanswered"),
            (
                Signs {
                    answered: true,
                    ..ask
                },
                "answered",
            ),
            (
                Signs {
                    dropped: true,
                    ..ask
                },
                "dropped",
            ),
            (Signs::default(), "one_way"),
        ] {
            assert_eq!(signs.outcome(), outcome, "{signs:?}");
        }
    }

    #[test]
    fn flags_are_letters() {
        assert_eq!(flag_letters(0x1b), "FSPA");
        assert_eq!(flag_letters(0xff), "FSRPAUEC");
        assert_eq!(flag_letters(0), "");
    }
}

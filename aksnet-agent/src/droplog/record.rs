//! A *record*: packets of one tuple that were dropped for one reason at one place since the sweep before, with all that
//! is known of why.

use std::{fmt::Write as _, net::IpAddr};

use serde::{Deserialize, Serialize};

/// One end of dropped packets, by the packets' own headers as they were when they were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 where the protocol has none.
    pub port: u16,
    /// Kubernetes namespace; empty: none, or not known.
    pub namespace: String,
    /// Owning controller, `service/<name>`, `node/<name>`, or what the address plan calls the place.
    pub workload: String,
    /// The pod's own name; empty: no pod, or not known.
    pub pod: String,
}

/// What was dropped, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRecord {
    /// When the latest of them was dropped; wall time, milliseconds since 1970.
    pub unix_ms: u64,
    /// Packets on the wire.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Attempts to open a connection among them: a SYN that is sent again is none. For protocols without SYN 1 when the
    /// tuple was not seen dropped for a minute or two.
    pub connections: u64,
    /// The value of the label `cause`.
    pub cause: String,
    /// The kernel's own name of the reason, lower case.
    pub reason: String,
    /// The function of the kernel that dropped them; its address where that has no name.
    pub location: String,
    /// `egress`, `ingress` or empty.
    pub direction: String,
    /// `tcp`, `udp`, …, or the number.
    pub protocol: String,
    /// Who sent them, before the node translated the source, if it did.
    pub src: End,
    /// To whom, after the node translated the destination, if it did.
    pub dst: End,
    /// What the client had dialled, where the node has replaced that.
    pub dialled: Option<(IpAddr, u16)>,
    /// Interfaces by name: where they came in (empty: the node sent them), and where they were to leave (empty: not
    /// known yet, or delivered on the node).
    pub in_interface: String,
    /// See [`Self::in_interface`].
    pub out_interface: String,
    /// `skb->mark`.
    pub mark: u32,
    /// The node's policy engine; empty: not known.
    pub engine: String,
    /// `namespace/name` of each policy that isolates the pod, in order; empty unless the cause is `policy`.
    pub policies: Vec<String>,
    /// `exact`, `candidates` or `unexplained`; empty unless the cause is `policy`.
    pub confidence: String,
    /// The reasoning in words.
    pub why: String,
}

impl End {
    /// `namespace/workload` as far as there is one, else the bare name; `?` for nobody.
    fn who(&self) -> String {
        match (self.namespace.is_empty(), self.workload.is_empty()) {
            (false, _) => format!("{}/{}", self.namespace, self.workload),
            (true, false) => self.workload.clone(),
            (true, true) => "?".to_owned(),
        }
    }

    fn socket(&self) -> String {
        socket(self.address, self.port)
    }
}

fn socket(address: IpAddr, port: u16) -> String {
    if port == 0 {
        address.to_string()
    } else {
        std::net::SocketAddr::new(address, port).to_string()
    }
}

impl DropRecord {
    /// One line for people: time, cause, reason and place, who to whom, how many, and why.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!(
            "{} {} {}@{} {} {} {} → {} {}",
            time_of_day(self.unix_ms),
            self.cause,
            self.reason,
            self.location,
            self.protocol,
            self.src.who(),
            self.src.socket(),
            self.dst.who(),
            self.dst.socket(),
        );
        if let Some((address, port)) = self.dialled {
            let _ = write!(line, " (dialled {})", socket(address, port));
        }
        let plural = if self.packets == 1 { "" } else { "s" };
        let _ = write!(line, ", {} packet{plural}", self.packets);
        // The reasoning names the policies, unless there is none.
        if !self.policies.is_empty() && self.why.is_empty() {
            let _ = write!(line, ", policy {}", self.policies.join(","));
        }
        if !matches!(self.confidence.as_str(), "" | "exact") {
            let _ = write!(line, " ({})", self.confidence);
        }
        if !self.why.is_empty() {
            let _ = write!(line, ": {}", self.why);
        }
        line
    }
}

/// UTC, as log collectors have it.
fn time_of_day(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn end(address: [u8; 4], port: u16, names: [&str; 3]) -> End {
        End {
            address: address.into(),
            port,
            namespace: names[0].to_owned(),
            workload: names[1].to_owned(),
            pod: names[2].to_owned(),
        }
    }

    pub(crate) fn record() -> DropRecord {
        DropRecord {
            unix_ms: 86_400_000 * 3 + 3_723_004,
            packets: 3,
            bytes: 180,
            connections: 1,
            cause: "policy".to_owned(),
            reason: "netfilter_drop".to_owned(),
            location: "nft_do_chain".to_owned(),
            direction: "ingress".to_owned(),
            protocol: "tcp".to_owned(),
            src: end([10, 244, 0, 5], 40_000, ["shop", "batch", "batch-0"]),
            dst: end([10, 244, 0, 3], 8080, ["shop", "web", "web-0"]),
            dialled: Some(([10, 0, 0, 10].into(), 80)),
            in_interface: "veth1".to_owned(),
            out_interface: "veth2".to_owned(),
            mark: 0x400,
            engine: "azure_npm".to_owned(),
            policies: vec!["shop/web-policy".to_owned()],
            confidence: "exact".to_owned(),
            why: "policy shop/web-policy isolates shop/web-0 ingress; from: app=frontend did not match app=batch"
                .to_owned(),
        }
    }

    #[test]
    fn a_line_has_who_to_whom_the_policy_and_the_failing_part() {
        assert_eq!(
            record().line(),
            "01:02:03.004Z policy netfilter_drop@nft_do_chain tcp shop/batch 10.244.0.5:40000 → shop/web \
             10.244.0.3:8080 (dialled 10.0.0.10:80), 3 packets: policy shop/web-policy isolates shop/web-0 ingress; \
             from: app=frontend did not match app=batch"
        );
        let unsure = DropRecord {
            confidence: "candidates".to_owned(),
            ..record()
        };
        assert!(unsure.line().contains(", 3 packets (candidates): policy "));
        let bare = DropRecord {
            packets: 1,
            protocol: "icmpv6".to_owned(),
            dialled: None,
            policies: Vec::new(),
            confidence: String::new(),
            why: String::new(),
            cause: "other".to_owned(),
            src: end([10, 0, 0, 1], 0, ["", "", ""]),
            dst: end([10, 0, 0, 2], 0, ["", "internet", ""]),
            ..record()
        };
        assert_eq!(
            bare.line(),
            "01:02:03.004Z other netfilter_drop@nft_do_chain icmpv6 ? 10.0.0.1 → internet 10.0.0.2, 1 packet"
        );
    }

    #[test]
    fn a_record_reads_back_from_json() {
        let json = serde_json::to_string(&record()).unwrap();
        assert_eq!(serde_json::from_str::<DropRecord>(&json).unwrap(), record());
    }
}

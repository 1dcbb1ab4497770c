//! How single things read: ends, rates, times, shares.

use std::net::{IpAddr, SocketAddr};

use super::super::app::Names;
use crate::{
    droplog::End,
    top::{
        model::{Ends, Row, Timing, Who},
        units,
    },
};

/// How somebody wants to see things.
pub(super) struct Look {
    pub(super) bits: bool,
    pub(super) names: Names,
}

impl Look {
    pub(super) const fn of(app: &super::App) -> Self {
        Self {
            bits: app.bits,
            names: app.names,
        }
    }

    /// Bytes per second, in bits or bytes; nothing for nothing, so that what happens stands out.
    pub(super) fn rate(&self, bytes: f64) -> String {
        if bytes <= 0.0 {
            "-".to_owned()
        } else if self.bits {
            format!("{}bit", units::count(bytes * 8.0))
        } else {
            units::bytes(bytes)
        }
    }
}

/// A count; nothing for 0.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(super) fn count(n: u64) -> String {
    if n == 0 {
        "-".to_owned()
    } else {
        units::count(n as f64)
    }
}

/// Bytes; nothing for 0.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(super) fn bytes(n: u64) -> String {
    if n == 0 {
        "-".to_owned()
    } else {
        units::bytes(n as f64)
    }
}

/// Dropped packets, with their mark; nothing for 0.
pub(super) fn dropped(n: u64) -> String {
    if n == 0 {
        "-".to_owned()
    } else {
        format!("✗{}", count(n))
    }
}

/// Packets per second; nothing for none.
pub(super) fn per_second(n: f64) -> String {
    if n <= 0.0 {
        "-".to_owned()
    } else {
        units::count(n)
    }
}

/// `1 packet`, `1,234 packets`.
pub(super) fn some(n: u64, what: &str) -> String {
    format!("{} {what}{}", exact(n), if n == 1 { "" } else { "s" })
}

/// `12,345`.
pub(super) fn exact(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Half.
pub(super) fn median(timing: Option<Timing>) -> String {
    timing.map_or_else(|| "-".to_owned(), |t| units::nanoseconds(t.p50_ns))
}

/// A part of all: `45%`; `<1%` for what is little but not nothing.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(super) fn share(part: u64, all: u64) -> String {
    if all == 0 || part == 0 {
        return "-".to_owned();
    }
    let percent = 100.0 * part as f64 / all as f64;
    if percent < 1.0 {
        "<1%".to_owned()
    } else {
        format!("{percent:.0}%")
    }
}

/// `namespace/workload`.
pub(super) fn who(who: &Who) -> String {
    joined(&who.namespace, &who.workload, "?")
}

fn joined(namespace: &str, name: &str, nobody: &str) -> String {
    match (namespace, name) {
        ("", "") => nobody.to_owned(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

/// An address, and a port if there is one.
pub(super) fn socket(address: IpAddr, port: u16) -> String {
    if port == 0 {
        address.to_string()
    } else {
        SocketAddr::new(address, port).to_string()
    }
}

/// Places of the network, which stand for many addresses: the address says more.
const PLACES: [&str; 9] = [
    "internet",
    "vnet",
    "private",
    "pod",
    "local_pod",
    "remote_pod",
    "node",
    "link",
    "other",
];

/// The end of a flow from which its packets come.
pub(super) fn from(row: &Row, look: &Look) -> String {
    end(
        &row.from,
        row.before.src,
        port(row, row.before.src_port),
        look,
    )
}

/// The end to which they go, as it was dialled.
pub(super) fn to(row: &Row, look: &Look) -> String {
    end(
        &row.to,
        row.before.dst,
        port(row, row.before.dst_port),
        look,
    )
}

fn end(who: &Who, address: IpAddr, port: u16, look: &Look) -> String {
    let name = match look.names {
        Names::Pods if !who.pod.is_empty() => &who.pod,
        _ => &who.workload,
    };
    let name = joined(&who.namespace, name, "");
    if look.names == Names::Addresses || name.is_empty() {
        return socket(address, port);
    }
    if PLACES.contains(&name.as_str()) {
        return format!("{name} {}", socket(address, port));
    }
    if port == 0 {
        name
    } else {
        format!("{name}:{port}")
    }
}

fn port(row: &Row, port: u16) -> u16 {
    // ICMP's identifier is no port.
    if row.protocol.starts_with("icmp") {
        0
    } else {
        port
    }
}

/// The end of a drop.
pub(super) fn drop_end(of: &End, look: &Look) -> String {
    let who = Who {
        namespace: of.namespace.clone(),
        workload: of.workload.clone(),
        pod: of.pod.clone(),
    };
    end(&who, of.address, of.port, look)
}

/// A flow's NAT; that of a connection seen from its replies has a mark.
pub(super) fn nat(row: &Row) -> String {
    let nat = if row.nat == "none" { "-" } else { &row.nat };
    format!("{nat}{}", if row.reply { "↩" } else { "" })
}

/// What of a flow's ends is rewritten, before → after: `dst 10.0.0.10:80 → 10.244.0.3:8080`.
pub(super) fn translation(row: &Row) -> String {
    let Some(after) = &row.after else {
        return String::new();
    };
    let before = &row.before;
    let end = |of: &Ends, dst: bool| {
        if dst {
            socket(of.dst, port(row, of.dst_port))
        } else {
            socket(of.src, port(row, of.src_port))
        }
    };
    let mut parts = Vec::new();
    for (word, dst) in [("src", false), ("dst", true)] {
        let (old, new) = (end(before, dst), end(after, dst));
        if old != new {
            parts.push(format!("{word} {old} → {new}"));
        }
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(
            [exact(0), exact(999), exact(262_144)],
            ["0", "999", "262,144"]
        );
        assert_eq!(
            [share(0, 9), share(1, 1_000), share(9, 20)],
            ["-", "<1%", "45%"]
        );
        let look = Look {
            bits: true,
            names: Names::Workloads,
        };
        assert_eq!(look.rate(0.0), "-");
        assert_eq!(look.rate(1_500_000.0), "12Mbit");
        let look = Look {
            bits: false,
            names: Names::Workloads,
        };
        assert_eq!(look.rate(1_500_000.0), "1.5MB");
    }
}

//! Whether the connection table is *full*, at the moment in which a drop has to be explained: a packet that found no
//! room in it looks like one that a rule of table raw has dropped.

use std::{fs, path::Path};

use super::stats::{number, parse_proc};

/// Remembers the kernel's count of packets that conntrack dropped.
#[derive(Debug, Default)]
pub struct Fullness {
    /// At the mark before the last one, and at the last.
    marks: [Option<u64>; 2],
}

/// What the kernel says at one moment; `None`: it does not.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    /// Packets that conntrack dropped, on all CPUs.
    dropped: Option<u64>,
    entries: Option<u64>,
    limit: Option<u64>,
}

impl Fullness {
    /// Begins a stretch of time: drops that are explained from now on happened after the mark before.
    pub fn mark(&mut self) {
        self.marks = [self.marks[1], dropped()];
    }

    /// Whether the table is full, or was since the mark before the last one. `None`: the kernel does not tell.
    #[must_use]
    pub fn is_full(&self) -> Option<bool> {
        judge(self.marks[0], Reading::now())
    }
}

fn judge(before: Option<u64>, now: Reading) -> Option<bool> {
    let rose = before.zip(now.dropped).map(|(before, now)| now > before);
    // New connections evict old ones before the table is quite full.
    let close = now
        .entries
        .zip(now.limit)
        .map(|(entries, limit)| entries >= limit - limit / 20);
    match (rose, close) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (None, None) => None,
        _ => Some(false),
    }
}

impl Reading {
    /// As the kernel has it for this thread's network namespace.
    fn now() -> Self {
        Self {
            dropped: dropped(),
            entries: entries(),
            limit: number(Path::new("/proc/sys/net/netfilter/nf_conntrack_max")),
        }
    }
}

/// Packets that conntrack dropped, on all CPUs. Not known where the kernel was built without
/// `CONFIG_NF_CONNTRACK_PROCFS`, as Azure Linux 3 for arm64.
fn dropped() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").ok()?;
    let (cpus, _) = parse_proc(&text)?;
    cpus.iter().map(|cpu| cpu.drop.map(u64::from)).sum()
}

/// Entries in the table of this thread's network namespace; `None`: the kernel does not tell.
#[must_use]
pub fn entries() -> Option<u64> {
    number(Path::new("/proc/sys/net/netfilter/nf_conntrack_count"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(dropped: Option<u64>, table: Option<(u64, u64)>) -> Reading {
        Reading {
            dropped,
            entries: table.map(|(entries, _)| entries),
            limit: table.map(|(_, limit)| limit),
        }
    }

    #[test]
    fn a_table_is_full_while_it_is_and_shortly_after_it_has_dropped_packets() {
        let (full, empty) = (Some((999, 1_000)), Some((1, 1_000)));
        assert_eq!(judge(Some(5), reading(Some(5), full)), Some(true));
        assert_eq!(judge(Some(5), reading(Some(6), empty)), Some(true));
        assert_eq!(judge(Some(5), reading(Some(5), empty)), Some(false));
        assert_eq!(judge(None, reading(Some(5), empty)), Some(false));
        assert_eq!(judge(None, reading(None, full)), Some(true));
        assert_eq!(judge(None, reading(Some(5), None)), None);
        assert_eq!(judge(None, Reading::default()), None);
    }
}

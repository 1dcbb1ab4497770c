//! *Attempts*: how many connections were denied, which is fewer than packets. A client sends an unanswered SYN again and
//! again: that is one attempt. The datapath tells repetitions apart within a sweep, this does so from one sweep to the
//! next.

use std::collections::HashMap;

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::Addr,
    packet::TCP,
};

/// For how long a tuple is remembered, at least: the pauses between SYNs grow to 32 s (RFC 6298; Linux'
/// `tcp_syn_retries` of 6), and a datagram after a longer pause is a new attempt.
const REMEMBERED_NS: u64 = 60_000_000_000;

/// Tuples of one generation.
const MOST: usize = 16_384;

/// A tuple whose packets were dropped.
type Tuple = (Addr, Addr, u16, u16, u8);

/// Remembers what was dropped lately. Two generations: the older one is forgotten as a whole.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// The sequence number of each tuple's latest SYN; 0 for other protocols.
    young: HashMap<Tuple, u32>,
    old: HashMap<Tuple, u32>,
    /// When the young one was begun.
    since_ns: u64,
}

impl Attempts {
    /// How many attempts are new in these drops.
    pub(super) fn count(&mut self, key: &DropKey, stats: &DropStats, now_ns: u64) -> u64 {
        let tcp = key.key.protocol == TCP;
        if tcp && stats.attempts == 0 {
            return 0;
        }
        let age = now_ns.saturating_sub(self.since_ns);
        if age > REMEMBERED_NS || self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
            self.since_ns = now_ns;
        }
        if age > 2 * REMEMBERED_NS {
            self.old.clear();
        }
        let tuple = (
            key.key.src,
            key.key.dst,
            key.key.src_port,
            key.key.dst_port,
            key.key.protocol,
        );
        let latest = if tcp { stats.last_syn_seq } else { 0 };
        let known = self.young.insert(tuple, latest);
        let known = known.or_else(|| self.old.remove(&tuple));
        match known {
            None if tcp => stats.attempts,
            None => 1,
            Some(_) if !tcp => 0,
            Some(seq) => stats.attempts - u64::from(seq == stats.first_syn_seq),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop(protocol: u8, port: u16, attempts: u64, seqs: (u32, u32)) -> (DropKey, DropStats) {
        let mut key = DropKey::default();
        key.key.protocol = protocol;
        key.key.src_port = port;
        let stats = DropStats {
            skbs: 3,
            attempts,
            first_syn_seq: seqs.0,
            last_syn_seq: seqs.1,
            ..DropStats::default()
        };
        (key, stats)
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_syn_that_is_sent_again_in_a_later_sweep_is_no_attempt() {
        let mut attempts = Attempts::default();
        let mut count = |(key, stats): (DropKey, DropStats), at| attempts.count(&key, &stats, at);
        assert_eq!(count(drop(TCP, 1, 1, (7, 7)), SECOND), 1);
        assert_eq!(count(drop(TCP, 1, 1, (7, 7)), 2 * SECOND), 0);
        // The repetition, and a new attempt from the same port.
        assert_eq!(count(drop(TCP, 1, 2, (7, 9)), 5 * SECOND), 1);
        assert_eq!(count(drop(TCP, 1, 1, (9, 9)), 30 * SECOND), 0);
        // Another port is another attempt, and what is no SYN is none.
        assert_eq!(count(drop(TCP, 2, 1, (7, 7)), 30 * SECOND), 1);
        assert_eq!(count(drop(TCP, 3, 0, (0, 0)), 30 * SECOND), 0);
    }

    #[test]
    fn datagrams_of_a_tuple_are_one_attempt_until_they_pause() {
        let mut attempts = Attempts::default();
        let mut count = |at| {
            let (key, stats) = drop(17, 1, 0, (0, 0));
            attempts.count(&key, &stats, at)
        };
        assert_eq!(
            (count(SECOND), count(2 * SECOND), count(50 * SECOND)),
            (1, 0, 0)
        );
        assert_eq!(count(90 * SECOND), 0, "the pause was short");
        assert_eq!(count(300 * SECOND), 1, "that was a long one");
    }

    #[test]
    fn memory_is_bounded_under_a_flood_of_tuples() {
        let mut attempts = Attempts::default();
        for n in 0..4 * MOST {
            let (mut key, stats) = drop(TCP, 1, 1, (7, 7));
            key.key.src = Addr::v4(u32::try_from(n).unwrap().to_be_bytes());
            assert_eq!(attempts.count(&key, &stats, SECOND), 1);
        }
        assert!(attempts.young.len() + attempts.old.len() <= 2 * MOST);
    }
}

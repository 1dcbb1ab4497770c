//! A hash of addresses and names in a few instructions: a sweep looks up thousands of them.
//!
//! What the tables hold is the cluster's own, so nobody outside can fill one with collisions.

use std::hash::{BuildHasherDefault, Hasher};

/// Builds [`Mixer`]s.
pub(super) type Mixing = BuildHasherDefault<Mixer>;

/// Folds eight bytes at a time with one multiplication.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mixer(u64);

/// The golden ratio's fraction: odd, and its bits follow no pattern.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.0.rotate_left(23) ^ n ^ FACTOR) * u128::from(FACTOR);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    /// The length of a slice: ours have one length each.
    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher as _};

    use aksnet_common::flow::Addr;

    use super::*;

    #[test]
    fn addresses_of_a_cluster_spread_over_both_ends_of_the_hash() {
        let hashes: Vec<u64> = (0..65_536u32)
            .map(|n| {
                let [_, _, c, d] = n.to_be_bytes();
                Mixing::default().hash_one(Addr::v4([10, 244, c, d]))
            })
            .collect();
        let distinct = |bits: &dyn Fn(u64) -> u64| {
            hashes
                .iter()
                .map(|h| bits(*h))
                .collect::<HashSet<_>>()
                .len()
        };
        assert_eq!(distinct(&|h| h), 65_536);
        // 1 - 1/e of the slots is what chance would fill.
        assert!(distinct(&|h| h & 0xffff) > 38_000);
        assert_eq!(distinct(&|h| h >> 57), 128);
    }
}

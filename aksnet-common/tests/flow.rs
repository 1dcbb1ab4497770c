//! The flow hash over flows as clusters have them, the histogram's buckets, and the numbers and names of
//! what is counted.

use std::collections::HashSet;

use aksnet_common::{
    cell::first_way,
    flow::{
        Addr, FlowKey, ORIGIN_ENTER, ORIGIN_NODE, TIME_BUCKETS, WAYS, mix, time_bucket,
        time_bucket_bound,
    },
    packet::{TCP, UDP},
    stats::{Event, Role, Skip},
};
use proptest::prelude::*;

const BUCKETS: usize = 4096;

fn index(n: u64) -> usize {
    usize::try_from(n).expect("small")
}

/// The bucket as the programs choose it.
fn bucket(hash: u64) -> usize {
    index(hash >> 32) & (BUCKETS - 1)
}

/// Flows of a node: how many differ in the source, in the destination, in the source port, and the steps in
/// which they count up.
#[derive(Clone, Debug)]
struct Population {
    v6: bool,
    sources: u32,
    destinations: u32,
    ports: u32,
    port_step: u16,
    interface_per_source: bool,
    base: [u8; 8],
    protocol: u8,
    dst_port: u16,
    node: bool,
}

impl Population {
    fn address(&self, n: u32, side: u8) -> Addr {
        let b = self.base;
        let [_, high, mid, low] = n.to_be_bytes();
        if self.v6 {
            Addr([
                0xfd, b[0], b[1], b[2], b[3], b[4], 0, side, 0, 0, 0, 0, 0, high, mid, low,
            ])
        } else {
            Addr::v4([10, b[0] ^ side ^ high, mid, low])
        }
    }

    fn keys(&self) -> Vec<FlowKey> {
        let mut keys = vec![];
        for s in 0..self.sources {
            for d in 0..self.destinations {
                for p in 0..self.ports {
                    let port = u16::try_from(p).expect("few").wrapping_mul(self.port_step);
                    keys.push(FlowKey {
                        src: self.address(s, 0),
                        dst: self.address(d, 1),
                        src_port: port.wrapping_add(32768),
                        dst_port: self.dst_port,
                        ifindex: if self.interface_per_source { 10 + s } else { 2 },
                        protocol: self.protocol,
                        family: if self.v6 { 6 } else { 4 },
                        origin: if self.node { ORIGIN_NODE } else { ORIGIN_ENTER },
                        ..FlowKey::default()
                    });
                }
            }
        }
        keys
    }
}

prop_compose! {
    /// About 16 thousand flows: of few pods with many ports, of many pods with few, and between.
    fn any_population()(
        v6 in any::<bool>(),
        (sources, destinations, ports) in prop::sample::select(vec![
            (1, 1, 16384), (16384, 1, 1), (1, 16384, 1), (128, 128, 1), (25, 25, 26), (250, 1, 65), (1, 250, 65), (4, 4, 1024),
        ]),
        port_step in prop::sample::select(vec![1, 2, 3]),
        interface_per_source in any::<bool>(),
        base in any::<[u8; 8]>(),
        protocol in prop::sample::select(vec![TCP, UDP]),
        dst_port in any::<u16>(),
        node in any::<bool>(),
    ) -> Population {
        Population { v6, sources, destinations, ports, port_step, interface_per_source, base, protocol, dst_port, node }
    }
}

/// The chi-squared statistic against an even spread, as standard deviations from its mean.
fn unevenness(counts: &[u32]) -> f64 {
    let bins = f64::from(u32::try_from(counts.len()).expect("few"));
    let mean = f64::from(counts.iter().sum::<u32>()) / bins;
    let chi: f64 = counts
        .iter()
        .map(|&n| (f64::from(n) - mean).powi(2) / mean)
        .sum();
    (chi - (bins - 1.0)) / (2.0 * (bins - 1.0)).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flows_spread_evenly_and_have_tags_of_their_own(population in any_population(), seed in any::<u64>()) {
        let keys = population.keys();
        let mut buckets = vec![0; BUCKETS];
        let mut ways = [0; WAYS];
        let mut places = vec![0; 64 * WAYS];
        let mut tags = HashSet::new();
        for key in &keys {
            let hash = key.hash(seed);
            buckets[bucket(hash)] += 1;
            ways[first_way(hash)] += 1;
            places[bucket(hash) % 64 * WAYS + first_way(hash)] += 1;
            tags.insert(hash >> 2);
        }
        // Six deviations: one fair hash in hundreds of millions fails one of these.
        prop_assert!(unevenness(&buckets) < 6.0, "buckets: {}", unevenness(&buckets));
        prop_assert!(unevenness(&ways) < 8.0, "first ways: {ways:?}");
        prop_assert!(unevenness(&places) < 6.5, "first way by bucket: {}", unevenness(&places));
        prop_assert_eq!(tags.len(), keys.len(), "two flows with one tag");
    }

    #[test]
    fn another_seed_gives_another_spread(population in any_population(), seed in any::<u64>()) {
        let keys = population.keys();
        let same = keys.iter().filter(|k| bucket(k.hash(seed)) == bucket(k.hash(mix(seed + 1)))).count();
        // 4 of 16384 are expected to stay.
        prop_assert!(same < 30, "{same} of {} flows stay in their bucket", keys.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_bit_of_the_key_matters(words in any::<[u64; 6]>(), seed in any::<u64>(), bit in 0..320_usize) {
        let key = |w: [u64; 6]| {
            let [a, b, c, d, e, f] = w;
            let ports = e.to_le_bytes();
            let kinds = f.to_le_bytes();
            FlowKey {
                src: Addr::of_words(a, b),
                dst: Addr::of_words(c, d),
                src_port: u16::from_le_bytes([ports[0], ports[1]]),
                dst_port: u16::from_le_bytes([ports[2], ports[3]]),
                ifindex: u32::from_le_bytes([ports[4], ports[5], ports[6], ports[7]]),
                protocol: kinds[0],
                family: kinds[1],
                origin: kinds[2],
                flags: kinds[3],
                padding: 0,
            }
        };
        let mut other = words;
        other[bit / 64] ^= 1 << (bit % 64);
        prop_assert_eq!(key(words).words()[..5].to_vec(), words[..5].to_vec());
        prop_assert_ne!(key(words).hash(seed), key(other).hash(seed));
    }

    #[test]
    fn every_time_lies_within_its_bucket(ns in any::<u64>(), shift in 0..64_u32) {
        let ns = ns >> shift;
        let bucket = time_bucket(ns);
        prop_assert!(bucket < TIME_BUCKETS);
        if let Some(bound) = time_bucket_bound(bucket) {
            prop_assert!(ns < bound);
        }
        if bucket > 0 {
            let below = time_bucket_bound(bucket - 1).expect("not the last");
            prop_assert!(ns >= below);
        }
        prop_assert!(time_bucket(ns.saturating_add(1)) >= bucket);
    }
}

/// The multiplicative inverse of an odd number modulo 2^64.
fn inverse(k: u64) -> u64 {
    (0..6).fold(k, |x, _| {
        x.wrapping_mul(2_u64.wrapping_sub(k.wrapping_mul(x)))
    })
}

/// Who reads the source knows the hash's constants, and who has an IPv6 /64 chooses the lower half of its
/// addresses as well as its ports: a change of the ports could be made good in the address.
#[test]
fn ipv6_sources_made_for_one_bucket_scatter() {
    const ADDRESS: u64 = 0xbf58_476d_1ce4_e5b9;
    const PORTS: u64 = 0x94d0_49bb_1331_11eb;
    assert_eq!(inverse(ADDRESS).wrapping_mul(ADDRESS), 1);
    for seed in [0xdead_beef_cafe_f00d, mix(7), mix(8)] {
        let mut buckets = HashSet::new();
        for port in 0..256_u16 {
            let mut key = FlowKey {
                dst: Addr([0x20; 16]),
                src_port: port,
                dst_port: 443,
                ifindex: 2,
                protocol: UDP,
                family: 6,
                ..FlowKey::default()
            };
            let target = 0x1234_5678_9abc_def0;
            let lower =
                (target ^ key.words()[4].wrapping_mul(PORTS)).wrapping_mul(inverse(ADDRESS));
            key.src = Addr::of_words(0xfd, lower);
            buckets.insert(bucket(key.hash(seed)));
        }
        // 256 flows in 4096 buckets: 248 buckets are expected.
        assert!(
            buckets.len() > 220,
            "256 flows lie in {} buckets",
            buckets.len()
        );
    }
}

#[test]
fn numbers_are_places_in_the_lists_and_names_are_unique() {
    let mut names = HashSet::new();
    for (i, skip) in Skip::ALL.into_iter().enumerate() {
        assert_eq!(skip as usize, i);
        assert!(names.insert(skip.name()), "{} twice", skip.name());
    }
    for (i, event) in Event::ALL.into_iter().enumerate() {
        assert_eq!(event as usize, i);
        assert!(names.insert(event.name()), "{} twice", event.name());
    }
    for (i, role) in Role::ALL.into_iter().enumerate() {
        assert_eq!(role as usize, i);
        assert!(names.insert(role.name()), "{} twice", role.name());
    }
    assert!(
        names
            .iter()
            .all(|n| n.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_')))
    );
}

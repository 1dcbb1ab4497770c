//! Random policies, pods and flows: the evaluator says what the naive implementation says.

use std::collections::BTreeMap;

use crate::policy::random::{Dice, check};

/// Clusters, and flows of each.
const CLUSTERS: u64 = 2_000;
const FLOWS: usize = 50;

#[test]
fn a_hundred_thousand_random_flows_are_judged_alike() {
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..CLUSTERS {
        check(&mut Dice::Seed(seed), FLOWS, |what| {
            *seen.entry(what).or_default() += 1;
        });
    }
    eprintln!("{seen:?}");
    let flows = CLUSTERS * u64::try_from(FLOWS).unwrap();
    assert_eq!(flows, 100_000);
    // Nothing is compared well that hardly occurs.
    for what in [
        "not subject",
        "not isolated",
        "allowed by a rule",
        "denied",
        "undetermined",
    ] {
        assert!(seen[what] > 2 * flows * 2 / 100, "{what}: {seen:?}");
    }
    for what in ["flow allowed", "flow denied", "flow undetermined"] {
        assert!(seen[what] > flows * 2 / 100, "{what}: {seen:?}");
    }
}

/// As the fuzzer has it: a cluster of bytes, and when they are used up, of zeros.
#[test]
fn flows_in_a_cluster_made_of_bytes_are_judged_alike() {
    let mut judged = 0;
    for byte in 0..=255 {
        check(&mut Dice::Bytes(&[byte; 300]), 8, |what| {
            judged += u64::from(what.starts_with("flow "));
        });
    }
    assert_eq!(judged, 256 * 8);
}

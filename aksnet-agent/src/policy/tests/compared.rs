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

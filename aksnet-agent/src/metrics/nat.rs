//! NAT-path families: how long packets take through the node, and what NAT adds to that.
//!
//! *Overhead* is the difference of two medians over the last minute: packets with NAT minus those without, of
//! the same stage. Both see the same hooks, interfaces and load, so what they share cancels out.

use std::collections::VecDeque;

use aksnet_common::{
    flow::{STAGE_ESTABLISHED, STAGE_FIRST, TIME_BUCKETS},
    passage::NatKind,
};
use prometheus::proto::MetricFamily;

use super::{
    describe::{self, Family},
    histogram::PathTimes,
    labels::nat_name,
};
use crate::classify::Class;

/// Fewer samples than this make no median.
pub const MIN_SAMPLES: u64 = 20;
/// How long a sample counts for the overhead.
const WINDOW_NS: u64 = 60_000_000_000;
/// How finely samples age.
const SLOT_NS: u64 = 5_000_000_000;

/// What NAT may have done, in the order of its numbers.
pub(crate) const NATS: [NatKind; 4] = [NatKind::None, NatKind::Snat, NatKind::Dnat, NatKind::Both];
const STAGES: [(usize, &str); 2] = [(STAGE_FIRST, "first"), (STAGE_ESTABLISHED, "established")];
const SERIES: usize = Class::ALL.len() * NATS.len() * STAGES.len();

/// How much NAT may add before it is flagged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverheadBudget {
    /// To the packet that opens a connection, in nanoseconds.
    pub first_ns: u64,
    /// To any later packet, in nanoseconds.
    pub established_ns: u64,
}

impl Default for OverheadBudget {
    fn default() -> Self {
        Self {
            first_ns: 500_000,
            established_ns: 50_000,
        }
    }
}

/// The place of a series in the flat tables.
#[inline]
fn number(class: Class, nat: NatKind, stage: usize) -> usize {
    (class as usize * NATS.len() + nat as usize) * STAGES.len() + stage
}

/// Times of one slot of the window, by series.
type Slot = Box<[PathTimes]>;

fn empty() -> Slot {
    vec![PathTimes::default(); SERIES].into_boxed_slice()
}

/// The series of the NAT-path families.
#[derive(Clone, Debug)]
pub(crate) struct NatFamilies {
    total: Slot,
    window: VecDeque<(u64, Slot)>,
    budget: OverheadBudget,
}

impl NatFamilies {
    pub(super) fn new(budget: OverheadBudget) -> Self {
        Self {
            total: empty(),
            window: VecDeque::new(),
            budget,
        }
    }

    /// Forgets samples older than the window, and opens a slot for new ones.
    pub(crate) fn advance(&mut self, now_ns: u64) {
        let slot = now_ns / SLOT_NS;
        if self.window.back().is_none_or(|(at, _)| *at < slot) {
            let reused = match self.window.front() {
                Some((at, _)) if at + WINDOW_NS / SLOT_NS <= slot => self.window.pop_front(),
                _ => None,
            };
            let times = reused.map_or_else(empty, |(_, mut times)| {
                times.fill(PathTimes::default());
                times
            });
            self.window.push_back((slot, times));
        }
        while let Some((at, _)) = self.window.front()
            && at + WINDOW_NS / SLOT_NS <= slot
            && self.window.len() > 1
        {
            self.window.pop_front();
        }
    }

    /// Adds times of one stage.
    pub(crate) fn add(
        &mut self,
        class: Class,
        nat: NatKind,
        stage: usize,
        times: &[u32; TIME_BUCKETS],
        sum_ns: u64,
    ) {
        let number = number(class, nat, stage);
        let recent = self.window.back_mut().map(|(_, slot)| &mut slot[number]);
        for series in [Some(&mut self.total[number]), recent]
            .into_iter()
            .flatten()
        {
            for (bucket, n) in series.buckets.iter_mut().zip(times) {
                *bucket += u64::from(*n);
            }
            series.sum_ns += sum_ns;
        }
    }

    /// The last minute's times of one kind of traffic, NAT and stage.
    pub(crate) fn recent(&self, class: Class, nat: NatKind, stage: usize) -> PathTimes {
        let mut sum = PathTimes::default();
        for (_, slot) in &self.window {
            sum.add(&slot[number(class, nat, stage)]);
        }
        sum
    }

    /// The median in nanoseconds of the window's times that `wanted` selects.
    fn median(&self, wanted: impl Fn(Class) -> bool, nat: NatKind, stage: usize) -> Option<f64> {
        let mut sum = PathTimes::default();
        for (_, slot) in &self.window {
            for class in Class::ALL {
                if wanted(class) {
                    sum.add(&slot[number(class, nat, stage)]);
                }
            }
        }
        (sum.count() >= MIN_SAMPLES)
            .then(|| sum.quantile(0.5))
            .flatten()
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a budget is far below 2^52 nanoseconds"
    )]
    fn allowed(&self, stage: usize) -> f64 {
        (if stage == STAGE_FIRST {
            self.budget.first_ns
        } else {
            self.budget.established_ns
        }) as f64
    }

    pub(super) fn collect(&self, into: &mut Vec<MetricFamily>) {
        let mut path = Family::new(describe::NAT_PATH);
        let mut overhead = Family::new(describe::NAT_OVERHEAD);
        let mut flagged = Family::new(describe::NAT_FLAGGED);

        for class in Class::ALL {
            for nat in NATS {
                for (stage, stage_name) in STAGES {
                    let times = &self.total[number(class, nat, stage)];
                    if times.count() > 0 {
                        let labels = [class.name(), nat_name(nat), stage_name];
                        path.histogram(labels.map(str::to_owned).to_vec(), times.to_proto());
                    }
                }
            }
        }

        let base = STAGES.map(|(stage, _)| self.median(|_| true, NatKind::None, stage));
        for nat in &NATS[1..] {
            for (stage, stage_name) in STAGES {
                if let (Some(base), Some(median)) =
                    (base[stage], self.median(|_| true, *nat, stage))
                {
                    let labels = vec![nat_name(*nat).to_owned(), stage_name.to_owned()];
                    overhead.gauge(labels, (median - base) / 1e9);
                }
            }
            for class in Class::ALL {
                let over: Vec<bool> = STAGES
                    .iter()
                    .filter_map(|(stage, _)| {
                        let median = self.median(|c| c == class, *nat, *stage)?;
                        Some(median - base[*stage]? > self.allowed(*stage))
                    })
                    .collect();
                if !over.is_empty() {
                    let labels = vec![class.name().to_owned(), nat_name(*nat).to_owned()];
                    flagged.gauge(labels, f64::from(u8::from(over.contains(&true))));
                }
            }
        }
        into.extend([path, overhead, flagged].map(Family::build));
    }

    /// How many times were ever added.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.total.iter().map(PathTimes::count).sum()
    }

    /// The sum of all times, by class, NAT and stage.
    #[cfg(test)]
    pub(crate) fn times(&self, class: Class, nat: NatKind, stage: usize) -> PathTimes {
        self.total[number(class, nat, stage)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn add(families: &mut NatFamilies, nat: NatKind, bucket: usize, n: u32) {
        let mut times = [0; TIME_BUCKETS];
        times[bucket] = n;
        families.add(
            Class::PodToExternal,
            nat,
            STAGE_ESTABLISHED,
            &times,
            u64::from(n) * 1000,
        );
    }

    fn shown(families: &NatFamilies, name: &str) -> Vec<f64> {
        let mut all = Vec::new();
        families.collect(&mut all);
        let family = all.iter().find(|f| f.name() == name).expect("the family");
        let metrics = family.get_metric().iter();
        metrics.map(|m| m.get_gauge().get_value()).collect()
    }

    #[test]
    fn overhead_is_absent_below_twenty_samples_on_either_side() {
        let mut families = NatFamilies::new(OverheadBudget::default());
        families.advance(SECOND);
        add(&mut families, NatKind::None, 2, 19);
        add(&mut families, NatKind::Snat, 4, 100);
        assert!(shown(&families, describe::NAT_OVERHEAD.name).is_empty());
        assert!(shown(&families, describe::NAT_FLAGGED.name).is_empty());
        add(&mut families, NatKind::None, 2, 1);
        let overhead = shown(&families, describe::NAT_OVERHEAD.name);
        assert_eq!(overhead.len(), 1);
        // Medians 1536 ns and 6144 ns: the middle of their octaves.
        assert!((overhead[0] - 4.608e-6).abs() < 1e-9, "{overhead:?}");
        assert_eq!(shown(&families, describe::NAT_FLAGGED.name), [0.0]);
    }

    #[test]
    fn overhead_beyond_the_budget_is_flagged_until_the_samples_are_a_minute_old() {
        let mut families = NatFamilies::new(OverheadBudget {
            established_ns: 1_000,
            ..OverheadBudget::default()
        });
        families.advance(SECOND);
        add(&mut families, NatKind::None, 2, 100);
        add(&mut families, NatKind::Snat, 4, 100);
        assert_eq!(shown(&families, describe::NAT_FLAGGED.name), [1.0]);
        families.advance(59 * SECOND);
        assert_eq!(shown(&families, describe::NAT_FLAGGED.name), [1.0]);
        families.advance(66 * SECOND);
        assert!(shown(&families, describe::NAT_FLAGGED.name).is_empty());
        assert_eq!(families.count(), 200);
    }
}

//! Histograms that take counts, not single observations, and keep them as integers.

use aksnet_common::flow::{TIME_BUCKETS, time_bucket_bound};
use prometheus::proto;

/// Nanoseconds in a second.
const SECOND: f64 = 1e9;

/// Times on the NAT path, in the kernel's own buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathTimes {
    /// Times by the kernel's bucket.
    pub buckets: [u64; TIME_BUCKETS],
    /// Their exact sum in nanoseconds.
    pub sum_ns: u64,
}

impl PathTimes {
    /// How many times there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds others'.
    pub fn add(&mut self, other: &Self) {
        for (sum, n) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += n;
        }
        self.sum_ns += other.sum_ns;
    }

    /// The time in nanoseconds below which the share `q` of all lies, interpolated within its bucket; `None`
    /// without times.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "an estimate of counts far below 2^52"
    )]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = q * count as f64;
        let mut below = 0.0;
        let mut result = 0.0;
        for (bucket, &n) in self.buckets.iter().enumerate() {
            if n == 0 {
                continue;
            }
            // The first bucket reaches down to 0 and the last has no bound: both are taken as one octave.
            let low = (1u64 << (bucket + 8)) as f64;
            let share = ((wanted - below) / n as f64).clamp(0.0, 1.0);
            result = low * (1.0 + share);
            below += n as f64;
            if below >= wanted {
                break;
            }
        }
        Some(result)
    }

    /// As Prometheus shows it, in seconds.
    #[must_use]
    pub fn to_proto(&self) -> proto::Histogram {
        let bounds: Vec<f64> = (0..TIME_BUCKETS - 1)
            .filter_map(time_bucket_bound)
            .map(seconds)
            .collect();
        to_proto(&bounds, &self.buckets, self.sum_ns)
    }
}

/// Seconds of nanoseconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "exposition is in double precision"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND
}

/// A histogram of durations with bounds of its own, in nanoseconds, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durations {
    bounds_ns: &'static [u64],
    /// One per bound, and one for what lies beyond.
    buckets: Vec<u64>,
    sum_ns: u64,
}

impl Durations {
    /// An empty one.
    #[must_use]
    pub fn new(bounds_ns: &'static [u64]) -> Self {
        Self {
            bounds_ns,
            buckets: vec![0; bounds_ns.len() + 1],
            sum_ns: 0,
        }
    }

    /// Adds one duration.
    pub fn observe(&mut self, ns: u64) {
        let bucket = self.bounds_ns.partition_point(|bound| *bound < ns);
        self.buckets[bucket] += 1;
        self.sum_ns += ns;
    }

    /// How many durations there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// As Prometheus shows it, in seconds.
    #[must_use]
    pub fn to_proto(&self) -> proto::Histogram {
        let bounds: Vec<f64> = self.bounds_ns.iter().copied().map(seconds).collect();
        to_proto(&bounds, &self.buckets, self.sum_ns)
    }
}

fn to_proto(bounds: &[f64], buckets: &[u64], sum_ns: u64) -> proto::Histogram {
    let mut histogram = proto::Histogram::default();
    let mut cumulative = 0;
    let shown = bounds.iter().zip(buckets).map(|(bound, n)| {
        cumulative += n;
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    histogram.set_bucket(shown.collect());
    histogram.set_sample_count(buckets.iter().sum());
    histogram.set_sample_sum(seconds(sum_ns));
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_times_reach_from_512_ns_to_8_4_ms() {
        let mut times = PathTimes::default();
        times.buckets[0] = 1;
        times.buckets[15] = 2;
        times.sum_ns = 20_000_100;
        let shown = times.to_proto();
        let bounds: Vec<f64> = shown
            .get_bucket()
            .iter()
            .map(proto::Bucket::upper_bound)
            .collect();
        assert_eq!(bounds.len(), 15);
        assert!((bounds[0] - 512e-9).abs() < 1e-15);
        assert!((bounds[14] - 8.388_608e-3).abs() < 1e-12);
        assert_eq!(shown.get_bucket()[14].cumulative_count(), 1);
        assert_eq!(shown.get_sample_count(), 3);
        assert!((shown.get_sample_sum() - 0.020_000_1).abs() < 1e-12);
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let mut times = PathTimes::default();
        assert_eq!(times.quantile(0.5), None);
        times.buckets[4] = 99;
        times.buckets[9] = 1;
        let p50 = times.quantile(0.5).expect("has times");
        assert!((4096.0..8192.0).contains(&p50), "{p50}");
        let p999 = times.quantile(0.999).expect("has times");
        assert!((131_072.0..=262_144.0).contains(&p999), "{p999}");
    }

    #[test]
    fn durations_on_a_bound_belong_below_it() {
        let mut durations = Durations::new(&[10, 20]);
        for ns in [5, 10, 11, 20, 21] {
            durations.observe(ns);
        }
        assert_eq!(durations.buckets, [2, 2, 1]);
        assert_eq!(durations.sum_ns, 67);
    }
}

//! A *scrape* of `/metrics`, and what a person asks of it: what NAT costs, and how much was dropped.

use std::collections::BTreeMap;

use super::rows::nanoseconds;

/// Samples that are longer do not fit on a line.
const LONGEST: usize = 116;

/// One sample.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// What `/metrics` said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape {
    samples: Vec<Sample>,
    /// The lines as they were.
    lines: Vec<String>,
}

impl Scrape {
    /// Reads the text format; lines that are no samples are passed over.
    pub(super) fn parse(text: &str) -> Self {
        let lines = || text.lines().filter(|line| !line.starts_with('#'));
        Self {
            samples: lines().filter_map(sample).collect(),
            lines: lines().map(str::to_owned).collect(),
        }
    }

    /// How many samples there are.
    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// The sum of a metric's samples that have these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// A metric's samples added up by these labels.
    pub(super) fn sums_by<const N: usize>(
        &self,
        name: &str,
        labels: [&str; N],
    ) -> BTreeMap<[String; N], f64> {
        let mut sums = BTreeMap::new();
        for sample in self.with(name, &[]) {
            let key = labels.map(|label| sample.labels.get(label).cloned().unwrap_or_default());
            *sums.entry(key).or_insert(0.0) += sample.value;
        }
        sums
    }

    fn with(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        })
    }

    /// The bucket counts of a histogram, over all series with these labels.
    pub(crate) fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        let mut buckets: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for sample in self.with(&format!("{name}_bucket"), labels) {
            let bound = sample
                .labels
                .get("le")
                .and_then(|le| le.parse::<f64>().ok());
            let Some(bound) = bound else { continue };
            // Positive floats order as their bits do.
            let bucket = buckets.entry(bound.to_bits()).or_insert((bound, 0.0));
            bucket.1 += sample.value;
        }
        Histogram(buckets.into_values().collect())
    }

    /// A metric's greatest samples as they stand in the text, without labels that are empty; of those that fit.
    pub(super) fn greatest(&self, name: &str, count: usize) -> Vec<String> {
        let mut found: Vec<(f64, String)> = self
            .lines
            .iter()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|line| {
                let value = line.rsplit_once(' ')?.1.parse().ok()?;
                Some((value, without_empty_labels(line)))
            })
            .filter(|(_, line): &(f64, String)| line.chars().count() <= LONGEST)
            .collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.into_iter().take(count).map(|found| found.1).collect()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (head, value) = line.rsplit_once(' ')?;
    let (name, labels) = match head.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}')?),
        None => (head, ""),
    };
    let labels = labels
        .split("\",")
        .filter_map(|pair| pair.split_once("=\""))
        .map(|(label, value)| (label.to_owned(), value.trim_end_matches('"').to_owned()))
        .collect();
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().ok()?,
    })
}

fn without_empty_labels(line: &str) -> String {
    let Some((name, rest)) = line.split_once('{') else {
        return line.to_owned();
    };
    let Some((labels, value)) = rest.rsplit_once('}') else {
        return line.to_owned();
    };
    let labels: Vec<&str> = labels
        .split(',')
        .filter(|label| !label.ends_with("=\"\""))
        .collect();
    format!("{name}{{{}}}{value}", labels.join(","))
}

/// Upper bounds in seconds, ascending, with counts up to there.
pub(crate) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// What came in since an earlier look.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier = |bound: f64| {
            let same = before
                .0
                .iter()
                .find(|bucket| bucket.0.to_bits() == bound.to_bits());
            same.map_or(0.0, |bucket| bucket.1)
        };
        let buckets = self.0.iter();
        Self(
            buckets
                .map(|&(bound, count)| (bound, count - earlier(bound)))
                .collect(),
        )
    }

    pub(crate) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |bucket| bucket.1)
    }

    /// Seconds that a share of the samples did not exceed, by linear interpolation within a bucket, as Prometheus'
    /// `histogram_quantile` does it.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = self.count() * share;
        let at = self.0.iter().position(|bucket| bucket.1 >= wanted)?;
        let (upper, reached) = self.0[at];
        let (lower, before) = match at.checked_sub(1) {
            Some(at) => self.0[at],
            None => (0.0, 0.0),
        };
        if self.count() == 0.0 {
            None
        } else if upper.is_infinite() {
            Some(lower)
        } else {
            Some(lower + (upper - lower) * (wanted - before) / (reached - before))
        }
    }
}

/// The time from entering to leaving the node, by what NAT did.
pub(crate) const PATH: &str = "aksnet_nat_path_seconds";

/// What a connection's NAT is called, and what that means.
const KINDS: [(&str, &str); 4] = [
    ("none", "not translated"),
    ("dnat", "destination (a service)"),
    ("both", "both ends (hairpin, load balancer, node port)"),
    ("snat", "source (to the internet)"),
];

/// A table: per kind of NAT the median time on the NAT path of first and of later packets.
pub(super) fn cost(scrape: &Scrape) -> Vec<String> {
    let mut lines = vec![format!(
        "  {:<52} {:>24} {:>28}",
        "", "OPENS A CONNECTION", "ANY LATER PACKET"
    )];
    lines.push(format!(
        "  {:<5} {:<46} {:>8} {:>7} {:>7} {:>12} {:>7} {:>7}",
        "NAT", "WHAT IS REWRITTEN", "packets", "median", "p99", "packets", "median", "p99"
    ));
    for (nat, meaning) in KINDS {
        let cells = ["first", "established"].map(|stage| {
            let times = scrape.histogram(PATH, &[("nat", nat), ("stage", stage)]);
            let at = |share| {
                times
                    .quantile(share)
                    .map_or_else(|| "-".to_owned(), |seconds| nanoseconds(seconds * 1e9))
            };
            (times.count(), at(0.5), at(0.99))
        });
        let [first, later] = cells;
        lines.push(format!(
            "  {nat:<5} {meaning:<46} {:>8.0} {:>7} {:>7} {:>12.0} {:>7} {:>7}",
            first.0, first.1, first.2, later.0, later.1, later.2
        ));
    }
    lines
}

/// What the packet that opens a connection takes in comparison with a later one, in one sentence.
pub(super) fn moral(scrape: &Scrape) -> Option<String> {
    let median = |stage| {
        scrape
            .histogram(PATH, &[("stage", stage)])
            .quantile(0.5)
            .filter(|seconds| *seconds > 0.0)
    };
    let (first, later) = (median("first")?, median("established")?);
    Some(format!(
        "A packet that opens a connection walks the nat rules: {} against {} for a later one, {:.0} times as long.",
        nanoseconds(first * 1e9),
        nanoseconds(later * 1e9),
        first / later
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# TYPE aksnet_nat_path_seconds histogram
aksnet_nat_path_seconds_bucket{class=\"a\",nat=\"snat\",stage=\"first\",le=\"0.000001\"} 0
aksnet_nat_path_seconds_bucket{class=\"a\",nat=\"snat\",stage=\"first\",le=\"0.000002\"} 4
aksnet_nat_path_seconds_bucket{class=\"a\",nat=\"snat\",stage=\"first\",le=\"+Inf\"} 4
aksnet_nat_path_seconds_bucket{class=\"b\",nat=\"snat\",stage=\"first\",le=\"0.000001\"} 2
aksnet_nat_path_seconds_bucket{class=\"b\",nat=\"snat\",stage=\"first\",le=\"0.000002\"} 2
aksnet_nat_path_seconds_bucket{class=\"b\",nat=\"snat\",stage=\"first\",le=\"+Inf\"} 2
aksnet_drop_packets_total{reason=\"netfilter_drop\",cause=\"firewall\",src_workload=\"\"} 20
aksnet_drop_packets_total{reason=\"no_socket\",cause=\"socket\",src_workload=\"\"} 3
aksnet_up 1
";

    #[test]
    fn quantiles_are_over_all_classes() {
        let scrape = Scrape::parse(TEXT);
        let times = scrape.histogram(PATH, &[("nat", "snat")]);
        assert!((times.count() - 6.0).abs() < 1e-9);
        assert!((times.quantile(0.5).unwrap() - 1.25e-6).abs() < 1e-12);
        assert!(
            scrape
                .histogram(PATH, &[("nat", "none")])
                .quantile(0.5)
                .is_none()
        );
        assert!(cost(&scrape)[5].contains("1.2µs"), "{:?}", cost(&scrape));
    }

    #[test]
    fn samples_are_summed_by_label() {
        let scrape = Scrape::parse(TEXT);
        let drops = |labels: &[(&str, &str)]| scrape.sum("aksnet_drop_packets_total", labels);
        assert!((drops(&[("reason", "netfilter_drop")]) - 20.0).abs() < 1e-9);
        assert!((drops(&[]) - 23.0).abs() < 1e-9);
        assert_eq!(scrape.len(), 9);
    }

    #[test]
    fn greatest_samples_are_picked_without_empty_labels() {
        assert_eq!(
            Scrape::parse(TEXT).greatest("aksnet_drop_packets_total", 1),
            ["aksnet_drop_packets_total{reason=\"netfilter_drop\",cause=\"firewall\"} 20"]
        );
    }
}

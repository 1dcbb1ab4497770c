//! A *scrape*: `/metrics` read as strictly as Prometheus' text format is defined.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

pub type Labels = BTreeMap<String, String>;

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Labels,
    pub value: f64,
}

/// All samples of one answer.
#[derive(Clone, Debug)]
pub struct Scrape {
    samples: Vec<Sample>,
}

impl Scrape {
    /// Reads it; anything that is not exactly the format is an error.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.ends_with('\n'), "the last line has no end");
        let mut kinds = BTreeMap::new();
        let mut helped = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut samples = Vec::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, _) = help.split_once(' ').context("a help text")?;
                ensure!(helped.insert(name.to_owned()), "{name} has two help lines");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').context("a type")?;
                ensure!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                let twice = kinds.insert(name.to_owned(), kind.to_owned()).is_some();
                ensure!(!twice, "{name} has two types");
            } else {
                let sample = sample(line).with_context(|| line.to_owned())?;
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter_map(|s| sample.name.strip_suffix(s))
                    .find(|f| kinds.get(*f).is_some_and(|k| k == "histogram"))
                    .unwrap_or(&sample.name);
                let kind = kinds
                    .get(family)
                    .with_context(|| format!("{line}: no type"))?;
                ensure!(helped.contains(family), "{line}: no help");
                ensure!(
                    kind != "counter" || sample.value >= 0.0,
                    "{line}: a negative counter"
                );
                let key = (sample.name.clone(), sample.labels.clone());
                ensure!(seen.insert(key), "{line}: a second time");
                samples.push(sample);
            }
        }
        let scrape = Self { samples };
        scrape.check_histograms(&kinds)?;
        Ok(scrape)
    }

    /// Buckets grow and end in `+Inf`, which is the count.
    fn check_histograms(&self, kinds: &BTreeMap<String, String>) -> Result<()> {
        for (name, _) in kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for s in self.of(&format!("{name}_bucket")) {
                let mut labels = s.labels.clone();
                let bound = labels.remove("le").context("a bucket without le")?;
                let bound = if bound == "+Inf" {
                    f64::INFINITY
                } else {
                    bound.parse()?
                };
                series.entry(labels).or_default().push((bound, s.value));
            }
            for (labels, buckets) in series {
                ensure!(
                    buckets.is_sorted() && buckets.is_sorted_by(|a, b| a.1 <= b.1),
                    "{name}{labels:?}: {buckets:?}"
                );
                let last = buckets.last().context("no buckets")?;
                let count = self
                    .of(&format!("{name}_count"))
                    .find(|s| s.labels == labels)
                    .context("no count")?;
                ensure!(*last == (f64::INFINITY, count.value), "{name}{labels:?}");
            }
        }
        Ok(())
    }

    fn of<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Sample> {
        let name = name.to_owned();
        self.samples.iter().filter(move |s| s.name == name)
    }

    /// Samples whose name begins so.
    pub fn samples_of(&self, prefix: &str) -> Vec<&Sample> {
        self.samples
            .iter()
            .filter(|s| s.name.starts_with(prefix))
            .collect()
    }

    /// All samples of a name that have these labels, added up.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |s: &&Sample| {
            labels
                .iter()
                .all(|(k, v)| s.labels.get(*k).is_some_and(|x| x == v))
        };
        self.of(name).filter(fits).map(|s| s.value).sum()
    }

    /// The same as a whole number, which a counter of things is.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be whole and not negative, and far below 2^53"
    )]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum = self.sum(name, labels);
        assert!(sum >= 0.0 && sum.fract() == 0.0, "{name}: {sum}");
        sum as u64
    }

    /// A count by the values of these labels; what is 0 is left out.
    pub fn count_by<const N: usize>(
        &self,
        name: &str,
        labels: [&str; N],
    ) -> BTreeMap<[String; N], u64> {
        let mut sums = BTreeMap::new();
        for s in self.of(name) {
            let key = labels.map(|l| s.labels.get(l).cloned().unwrap_or_default());
            let set: Vec<(&str, &str)> = s
                .labels
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            *sums.entry(key).or_insert(0) += self.count(name, &set);
        }
        sums.retain(|_, sum| *sum != 0);
        sums
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn sample(line: &str) -> Result<Sample> {
    let (head, value) = line.rsplit_once(' ').context("no value")?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        other => other.parse()?,
    };
    let (name, mut rest) = match head.split_once('{') {
        None => (head, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').context("no brace")?),
    };
    ensure!(is_name(name), "bad name");
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (label, tail) = rest.split_once("=\"").context("no quote")?;
        ensure!(is_name(label), "bad label {label}");
        let mut text = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next().context("no end of a label")? {
                (at, '"') => break at,
                (_, '\\') => match chars.next().context("half an escape")?.1 {
                    'n' => text.push('\n'),
                    c @ ('\\' | '"') => text.push(c),
                    c => bail!("unknown escape \\{c}"),
                },
                (_, c) => text.push(c),
            }
        };
        ensure!(
            labels.insert(label.to_owned(), text).is_none(),
            "{label} twice"
        );
        rest = &tail[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

#[test]
fn a_scrape_is_read_strictly() {
    let text =
        "# HELP a_total things\n# TYPE a_total counter\na_total{x=\"1,\\\"\"} 2\na_total 3\n";
    let scrape = Scrape::parse(text).unwrap();
    assert_eq!(scrape.count("a_total", &[]), 5);
    assert_eq!(scrape.count("a_total", &[("x", "1,\"")]), 2);
    for bad in [
        "a_total 3\n",
        "# HELP a_total things\n# TYPE a_total counter\na_total 3\na_total 3\n",
        "# HELP a_total things\n# TYPE a_total counter\na_total{x=1} 3\n",
        "# HELP a_total things\n# TYPE a_total counter\na_total -3\n",
    ] {
        assert!(Scrape::parse(bad).is_err(), "{bad}");
    }
}

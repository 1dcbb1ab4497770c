//! The pieces of which *queries* are made. Grafana replaces `$cluster`, `$node` and `$namespace` by regular expressions
//! (`.*` for all), and `$__rate_interval` and `$__range` by times.

/// Who talks to whom.
pub const PAIR: &str = "src_namespace, src_workload, dst_namespace, dst_workload";

/// Series of a metric on the chosen nodes, with these further matchers (or none).
#[must_use]
pub fn of(metric: &str, matchers: &str) -> String {
    let comma = if matchers.is_empty() { "" } else { ", " };
    format!(r#"{metric}{{cluster=~"$cluster", instance=~"$node"{comma}{matchers}}}"#)
}

/// The same of the chosen namespaces' workloads as senders.
#[must_use]
pub fn from(metric: &str, matchers: &str) -> String {
    of(metric, &with(matchers, "src"))
}

/// How fast a counter grows.
#[must_use]
pub fn rate(metric: &str, matchers: &str) -> String {
    format!("rate({}[$__rate_interval])", of(metric, matchers))
}

/// How fast a counter grows, by senders in the chosen namespaces.
#[must_use]
pub fn rate_from(metric: &str, matchers: &str) -> String {
    format!("rate({}[$__rate_interval])", from(metric, matchers))
}

/// How fast a counter grows, where either end is in the chosen namespaces.
#[must_use]
pub fn rate_of_either(metric: &str, matchers: &str) -> String {
    let side = |side| rate(metric, &with(matchers, side));
    format!("({} or {})", side("src"), side("dst"))
}

/// By how much a counter has grown in a time. A series that was not there before counts in full: a counter with labels
/// begins with its first event, and `increase` would miss that.
#[must_use]
pub fn grown(metric: &str, matchers: &str, time: &str) -> String {
    let series = of(metric, matchers);
    format!("(({series} unless {series} offset {time}) or increase({series}[{time}]))")
}

/// The same where either end is in the chosen namespaces.
#[must_use]
pub fn grown_of_either(metric: &str, matchers: &str, time: &str) -> String {
    let side = |side| grown(metric, &with(matchers, side), time);
    format!("({} or {})", side("src"), side("dst"))
}

/// The sum by labels.
#[must_use]
pub fn sum(by: &str, what: &str) -> String {
    format!("sum by ({by}) ({what})")
}

/// The most of them, as of now.
#[must_use]
pub fn top(n: u32, what: &str) -> String {
    format!("topk({n}, {what} > 0)")
}

/// A further column of a table: of what is among the most of another.
#[must_use]
pub fn among_top(n: u32, what: &str, of: &str) -> String {
    format!("{what} and topk({n}, {of})")
}

/// One number, 0 where nothing is counted.
#[must_use]
pub fn total(what: &str) -> String {
    format!("sum({what}) or vector(0)")
}

/// A quantile of a histogram, by labels.
#[must_use]
pub fn quantile(q: &str, by: &str, metric: &str, matchers: &str) -> String {
    let comma = if by.is_empty() { "" } else { ", " };
    let buckets = rate(&format!("{metric}_bucket"), matchers);
    format!("histogram_quantile({q}, sum by (le{comma}{by}) ({buckets}))")
}

/// Series of a family that every process has, of agents only.
#[must_use]
pub fn of_agents(what: &str) -> String {
    let agents = of("aksnet_build_info", "");
    format!("{what} and on (cluster, job, instance) {agents}")
}

fn with(matchers: &str, side: &str) -> String {
    let comma = if matchers.is_empty() { "" } else { ", " };
    format!(r#"{side}_namespace=~"$namespace"{comma}{matchers}"#)
}

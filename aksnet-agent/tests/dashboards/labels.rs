//! Which *labels* the series of a query have: every metric is looked up, every label that a matcher, an
//! aggregation or a join names must be there.

use std::collections::{BTreeMap, BTreeSet};

use aksnet_agent::metrics::{Kind, describe};
use promql_parser::parser::{
    AggregateExpr, BinaryExpr, Call, Expr, LabelModifier, VectorMatchCardinality, VectorSelector,
    parse,
    token::{T_LAND, T_LOR, T_LUNLESS},
};

pub type Labels = BTreeSet<String>;

/// What Prometheus gives to every series of a target.
const TARGET: [&str; 3] = ["cluster", "job", "instance"];

/// What Prometheus and every process have, beside our families.
const OTHERS: [&str; 5] = [
    "up",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "scrape_samples_scraped",
];

/// All metrics that may be asked for, with their labels.
#[derive(Clone, Debug)]
pub struct Contract {
    metrics: BTreeMap<String, Labels>,
    /// Families that were asked for.
    pub asked: BTreeSet<String>,
}

impl Contract {
    /// The families of the agent, and what every target has.
    pub fn new() -> Self {
        let target = || TARGET.iter().map(|label| (*label).to_owned());
        let mut metrics = BTreeMap::new();
        for name in OTHERS {
            metrics.insert(name.to_owned(), target().collect());
        }
        for family in describe() {
            let own = family.labels.iter().map(|label| (*label).to_owned());
            let labels: Labels = target().chain(own).collect();
            if family.kind == Kind::Histogram {
                for part in ["_sum", "_count"] {
                    metrics.insert(format!("{}{part}", family.name), labels.clone());
                }
                let mut labels = labels;
                labels.insert("le".to_owned());
                metrics.insert(format!("{}_bucket", family.name), labels);
            } else {
                metrics.insert(family.name.to_owned(), labels);
            }
        }
        Self {
            metrics,
            asked: BTreeSet::new(),
        }
    }

    /// From now on there is this metric too.
    pub fn record(&mut self, name: &str, labels: Labels) {
        self.metrics.insert(name.to_owned(), labels);
    }

    /// The labels of an expression's series; `Err` says what is not there.
    pub fn labels(&mut self, expr: &str) -> Result<Labels, String> {
        let parsed = parse(expr).map_err(|error| format!("{expr}: {error}"))?;
        let labels = self
            .of(&parsed)
            .map_err(|error| format!("{error} in {expr}"))?;
        Ok(labels.unwrap_or_default())
    }

    /// `None` is a number, which fits any series.
    fn of(&mut self, expr: &Expr) -> Result<Option<Labels>, String> {
        match expr {
            Expr::Aggregate(aggregate) => self.aggregate(aggregate).map(Some),
            Expr::Unary(unary) => self.of(&unary.expr),
            Expr::Binary(binary) => self.binary(binary),
            Expr::Paren(paren) => self.of(&paren.expr),
            Expr::Subquery(subquery) => self.of(&subquery.expr),
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Ok(None),
            Expr::VectorSelector(selector) => self.selector(selector).map(Some),
            Expr::MatrixSelector(selector) => self.selector(&selector.vs).map(Some),
            Expr::Call(call) => self.call(call),
            Expr::Extension(_) => Err("an extension".to_owned()),
        }
    }

    fn selector(&mut self, selector: &VectorSelector) -> Result<Labels, String> {
        let name = selector
            .name
            .as_deref()
            .ok_or("a selector without a metric")?;
        let labels = self
            .metrics
            .get(name)
            .ok_or(format!("{name} is no metric"))?;
        let matchers = selector.matchers.matchers.iter();
        for matcher in matchers.chain(selector.matchers.or_matchers.iter().flatten()) {
            if !labels.contains(&matcher.name) {
                return Err(format!("{name} has no label {}", matcher.name));
            }
        }
        let parts = ["_bucket", "_sum", "_count"];
        let family = parts.iter().find_map(|part| name.strip_suffix(part));
        self.asked.extend(family.map(str::to_owned));
        self.asked.insert(name.to_owned());
        Ok(labels.clone())
    }

    fn aggregate(&mut self, aggregate: &AggregateExpr) -> Result<Labels, String> {
        let inner = self
            .of(&aggregate.expr)?
            .ok_or("an aggregation of a number")?;
        // topk and the like keep the series as they are.
        if aggregate.param.is_some() && aggregate.modifier.is_none() && keeps(aggregate) {
            return Ok(inner);
        }
        match &aggregate.modifier {
            Some(LabelModifier::Include(by)) => {
                let by: Labels = by.labels.iter().cloned().collect();
                lacking("aggregated", &by, &inner)?;
                Ok(if keeps(aggregate) { inner } else { by })
            }
            Some(LabelModifier::Exclude(without)) => {
                let without: Labels = without.labels.iter().cloned().collect();
                lacking("aggregated", &without, &inner)?;
                Ok(&inner - &without)
            }
            None => Ok(Labels::new()),
        }
    }

    fn binary(&mut self, binary: &BinaryExpr) -> Result<Option<Labels>, String> {
        let (left, right) = (self.of(&binary.lhs)?, self.of(&binary.rhs)?);
        let (left, right) = match (left, right) {
            (Some(left), Some(right)) => (left, right),
            (left, right) => return Ok(left.or(right)),
        };
        let modifier = binary.modifier.as_ref();
        let on = modifier.and_then(|modifier| modifier.matching.as_ref());
        let matched: Labels = match on {
            Some(LabelModifier::Include(on)) => {
                let on: Labels = on.labels.iter().cloned().collect();
                lacking("matched", &on, &left)?;
                lacking("matched", &on, &right)?;
                on
            }
            Some(LabelModifier::Exclude(ignored)) => {
                let ignored: Labels = ignored.labels.iter().cloned().collect();
                &(&left | &right) - &ignored
            }
            None => &left | &right,
        };
        let operator = binary.op.id();
        if operator == T_LOR {
            return Ok(Some(&left | &right));
        }
        if operator == T_LAND || operator == T_LUNLESS {
            lacking("matched", &matched, &left)?;
            lacking("matched", &matched, &right)?;
            return Ok(Some(left));
        }
        lacking("matched", &matched, &left)?;
        lacking("matched", &matched, &right)?;
        Ok(Some(match modifier.map(|modifier| &modifier.card) {
            Some(VectorMatchCardinality::ManyToOne(more)) => {
                let more: Labels = more.labels.iter().cloned().collect();
                lacking("joined", &more, &right)?;
                &left | &more
            }
            Some(VectorMatchCardinality::OneToMany(more)) => {
                let more: Labels = more.labels.iter().cloned().collect();
                lacking("joined", &more, &left)?;
                &right | &more
            }
            _ => matched,
        }))
    }

    fn call(&mut self, call: &Call) -> Result<Option<Labels>, String> {
        let mut all = Vec::new();
        for argument in &call.args.args {
            all.push(self.of(argument)?);
        }
        match call.func.name {
            "vector" | "absent" => Ok(Some(Labels::new())),
            "scalar" | "time" => Ok(None),
            "histogram_quantile" => {
                let mut labels = all.pop().flatten().ok_or("a quantile of a number")?;
                if !labels.remove("le") {
                    return Err("a quantile of what has no le".to_owned());
                }
                Ok(Some(labels))
            }
            "label_replace" | "label_join" => {
                Err("labels that are made are not followed".to_owned())
            }
            _ => Ok(all.into_iter().flatten().next()),
        }
    }
}

/// Whether an aggregation chooses among series, which stay as they are.
fn keeps(aggregate: &AggregateExpr) -> bool {
    ["topk", "bottomk"].contains(&aggregate.op.to_string().as_str())
}

fn lacking(how: &str, named: &Labels, there: &Labels) -> Result<(), String> {
    match named.difference(there).next() {
        Some(label) => Err(format!("{label} is {how}, and is not there")),
        None => Ok(()),
    }
}

#[test]
fn what_is_not_there_is_found_wherever_it_is_named() {
    let mut contract = Contract::new();
    for (bad, why) in [
        (
            "sum(aksnet_flow_byte_total)",
            "aksnet_flow_byte_total is no metric",
        ),
        ("aksnet_drop_packets_total{nat=\"x\"}", "has no label nat"),
        (
            "sum by (policy) (rate(aksnet_drop_packets_total[5m]))",
            "policy is aggregated",
        ),
        ("aksnet_nat_path_seconds", "is no metric"),
        (
            "histogram_quantile(0.5, sum(rate(aksnet_nat_path_seconds_bucket[5m])))",
            "no le",
        ),
        (
            "aksnet_pod_ips_in_use / aksnet_conntrack_entries",
            "source is matched",
        ),
        (
            "aksnet_pod_ips_in_use * on (class) aksnet_pod_ips_limit",
            "class is matched",
        ),
        (
            "aksnet_program_up unless on (source) aksnet_program_up",
            "source is matched",
        ),
        (
            "aksnet_program_up * on (instance) group_left (zone) aksnet_build_info",
            "zone is joined",
        ),
        (
            "rate(aksnet_flow_bytes_total[5m]",
            "aksnet_flow_bytes_total",
        ),
    ] {
        let error = contract.labels(bad).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let good = "topk(3, sum by (instance, nat) (rate(aksnet_nat_path_seconds_bucket{le=\"1\"}[5m]))) or vector(0)";
    let labels = contract.labels(good).unwrap();
    assert_eq!(labels, ["instance", "nat"].map(str::to_owned).into());
    assert!(contract.asked.contains("aksnet_nat_path_seconds"));
}

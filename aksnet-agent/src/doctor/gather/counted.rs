//! What was *counted*: the families of metrics, as rows of evidence.

use std::{collections::BTreeMap, sync::Arc};

use prometheus::proto::MetricFamily;

use super::{Held, whole};
use crate::{
    doctor::{
        evidence::{Anomaly, Denial, Drop, Flagged, Gap, Pair, Probe, User},
        tally::{Tally, What, gauges, who},
    },
    droplog::{DropRecord, End},
};

/// How many rows are kept of what is only listed, and how many have their reasoning looked up. Of what is summed up, all
/// rows are kept, as many as there are series: a cause that is rare must not be pushed out by one that is common.
const ROWS: usize = 100;

/// The reasoning of the latest record that fits.
fn why(records: &[Arc<DropRecord>], fits: impl Fn(&DropRecord) -> bool) -> String {
    let latest = records.iter().rev().find(|record| fits(record));
    latest.map_or_else(String::new, |record| record.why.clone())
}

fn of_ends(record: &DropRecord, src: &str, dst: &str) -> bool {
    let name = |end: &End| who(&end.namespace, &end.workload);
    name(&record.src) == src && name(&record.dst) == dst
}

pub(super) fn denials(held: &Held<'_>, tally: &Tally, before: &Tally) -> Vec<Denial> {
    let connections: BTreeMap<_, _> = tally.since(What::DeniedConnections, before).collect();
    let mut denials: Vec<Denial> = tally
        .since(What::DeniedPackets, before)
        .map(|(key, packets)| Denial {
            policy: key[0].clone(),
            direction: key[1].clone(),
            confidence: key[2].clone(),
            engine: key[3].clone(),
            src: key[4].clone(),
            dst: key[5].clone(),
            packets,
            connections: connections.get(key).copied().unwrap_or_default(),
            why: String::new(),
        })
        .collect();
    denials.sort_by_key(|denial| std::cmp::Reverse(denial.packets));
    for denial in denials.iter_mut().take(ROWS) {
        denial.why = why(held.records, |record| {
            record.cause == "policy"
                && record.policies.join(",") == denial.policy
                && of_ends(record, &denial.src, &denial.dst)
        });
    }
    denials
}

pub(super) fn drops(held: &Held<'_>, tally: &Tally, before: &Tally) -> Vec<Drop> {
    let mut drops: Vec<Drop> = tally
        .since(What::Drops, before)
        .map(|(key, packets)| Drop {
            cause: key[0].clone(),
            reason: key[1].clone(),
            src: key[2].clone(),
            dst: key[3].clone(),
            packets,
            why: String::new(),
        })
        .collect();
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.packets));
    for drop in drops.iter_mut().take(ROWS) {
        drop.why = why(held.records, |record| {
            (&record.cause, &record.reason) == (&drop.cause, &drop.reason)
                && of_ends(record, &drop.src, &drop.dst)
        });
    }
    drops
}

/// The first rows.
pub(super) fn first_rows<T>(mut rows: Vec<T>) -> Vec<T> {
    rows.truncate(ROWS);
    rows
}

pub(super) fn gaps(tally: &Tally, before: &Tally) -> Vec<Gap> {
    let gaps = tally.since(What::Gaps, before);
    gaps.map(|(key, connections)| Gap {
        policy: key[0].clone(),
        direction: key[1].clone(),
        src: key[2].clone(),
        dst: key[3].clone(),
        connections,
    })
    .collect()
}

pub(super) fn anomalies(tally: &Tally, before: &Tally) -> Vec<Anomaly> {
    let anomalies = tally.since(What::Anomalies, before);
    anomalies
        .map(|(key, connections)| Anomaly {
            anomaly: key[0].clone(),
            src: key[1].clone(),
            dst: key[2].clone(),
            connections,
        })
        .collect()
}

pub(super) fn users(families: &[MetricFamily]) -> Vec<User> {
    let labels = ["src_namespace", "src_workload"];
    let mut users: Vec<User> = gauges(families, "aksnet_snat_connections", &labels)
        .filter(|(_, value)| *value > 0.0)
        .map(|(labels, value)| User {
            who: who(&labels[0], &labels[1]),
            connections: whole(value),
        })
        .collect();
    users.sort_by_key(|user| std::cmp::Reverse(user.connections));
    first_rows(users)
}

pub(super) fn pairs(tally: &Tally, what: What, before: &Tally) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = tally
        .since(what, before)
        .map(|(key, count)| Pair {
            src: key[0].clone(),
            dst: key[1].clone(),
            count,
        })
        .collect();
    pairs.sort_by_key(|pair| std::cmp::Reverse((pair.count.recent, pair.count.total)));
    pairs
}

pub(super) fn probes(tally: &Tally, before: &Tally) -> Vec<Probe> {
    let mut probes: BTreeMap<(String, String), Probe> = BTreeMap::new();
    for (key, count) in tally.since(What::Probes, before) {
        let (dst, port) = (key[0].clone(), key[1].clone());
        let probe = probes.entry((dst.clone(), port.clone())).or_default();
        (probe.dst, probe.port) = (dst, port);
        match key[2].as_str() {
            "answered" => probe.answered = count,
            "refused" => probe.refused = count,
            _ => probe.unanswered = count,
        }
    }
    probes.into_values().collect()
}

pub(super) fn flagged(families: &[MetricFamily]) -> (Vec<Flagged>, u64) {
    let all = gauges(families, "aksnet_nat_overhead_flagged", &["class", "nat"]);
    let (mut flagged, mut judged) = (Vec::new(), 0);
    for (labels, value) in all {
        judged += 1;
        if value > 0.0
            && let [class, nat] = &labels[..]
        {
            flagged.push(Flagged {
                class: class.clone(),
                nat: nat.clone(),
            });
        }
    }
    (flagged, judged)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use prometheus::proto::{Counter, LabelPair, Metric};

    use super::*;
    use crate::{
        conntrack,
        doctor::{gather, history::History},
        identify::index::Index,
    };

    fn dropped(cause: &str, from: &str, packets: u32) -> Metric {
        let label = |(name, value): (&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        };
        let labels = [
            ("cause", cause),
            ("reason", "netfilter_drop"),
            ("src_namespace", "shop"),
            ("src_workload", from),
        ];
        let mut counter = Counter::default();
        counter.set_value(packets.into());
        let mut metric = Metric::from_label(labels.map(label).into());
        metric.set_counter(counter);
        metric
    }

    #[test]
    fn what_is_rare_is_not_pushed_out_by_what_is_common() {
        let common = (0..300).map(|n| dropped("firewall", &format!("scanner-{n}"), 1_000));
        let mut family = MetricFamily::default();
        family.set_name("aksnet_drop_packets_total".to_owned());
        family.set_metric(common.chain([dropped("nat", "web", 3)]).collect());
        let evidence = gather::gather(&Held {
            families: &[family],
            history: &History::default(),
            now: Instant::now(),
            index: &Index::new("aks-1"),
            moment: 0,
            sources: &BTreeMap::new(),
            conntrack: &conntrack::Snapshot::default(),
            surveyed: None,
            records: &[],
            node_name: "aks-1",
        });
        let of = |cause: &str| {
            let drops = evidence.drops.iter().filter(|drop| drop.cause == cause);
            drops.map(|drop| drop.packets.total).sum::<u64>()
        };
        assert_eq!((of("firewall"), of("nat")), (300_000, 3));
    }
}

//! Sums by pairs of workloads: the flows of one workload's connections to another, both directions together.

use std::collections::HashMap;

use super::{query::Sort, snapshot::Workload};
use crate::{
    classify::Class,
    collect::Glance,
    metrics::{
        budget::Handle,
        flow::FlowFamilies,
        histogram::PathTimes,
        labels::{Party, Symbols},
    },
    top::model::{Who, timing},
};

/// All pairs.
#[derive(Default)]
pub(super) struct Pairs {
    places: HashMap<(Party, Party), usize>,
    /// Where a series' pair is, by its number and whether it is of replies; one more than the place, 0: not known yet.
    by_series: Vec<[u32; 2]>,
    sums: Vec<Sum>,
}

/// What is summed of one pair.
struct Sum {
    from: Party,
    to: Party,
    classes: [u64; Class::ALL.len()],
    workload: Workload,
    first: PathTimes,
    established: PathTimes,
    idle_ms: u32,
}

impl Pairs {
    /// Adds a flow; its times are asked for only if it has any.
    pub(super) fn add(
        &mut self,
        flows: &FlowFamilies,
        flow: &Glance,
        times: Option<&[PathTimes; 2]>,
    ) {
        let sum = self.of_series(flows, flow.series, flow.reply);
        let w = &mut sum.workload;
        if flow.connection {
            sum.classes[flow.class as usize] += 1;
            w.connections += 1;
            w.open += u64::from(flow.open);
            w.nated += u64::from(flow.nat != aksnet_common::passage::NatKind::None);
        }
        let (packets, bytes) = flow.rates;
        if flow.reply {
            w.packets_in += packets;
            w.bytes_in += bytes;
        } else {
            w.packets_out += packets;
            w.bytes_out += bytes;
        }
        w.packets += flow.packets;
        w.bytes += flow.bytes;
        w.drops += flow.drops;
        sum.idle_ms = sum.idle_ms.min(flow.idle_ms);
        if let Some([first, established]) = times {
            // A reply flow's first packet opens nothing.
            let opens = if flow.reply {
                &mut sum.established
            } else {
                &mut sum.first
            };
            opens.add(first);
            sum.established.add(established);
        }
    }

    /// Adds drops that are no live flow's.
    pub(super) fn add_drops(&mut self, from: Party, to: Party, class: Class, packets: u64) {
        let sum = self.of(from, to);
        sum.workload.drops += packets;
        // So that the pair has a class even where no connection got through.
        if sum.classes.iter().all(|n| *n == 0) {
            sum.classes[class as usize] = 1;
        }
    }

    fn of(&mut self, from: Party, to: Party) -> &mut Sum {
        let at = *self.places.entry((from, to)).or_insert(self.sums.len());
        if at == self.sums.len() {
            self.sums.push(Sum {
                from,
                to,
                classes: [0; Class::ALL.len()],
                workload: Workload::default(),
                first: PathTimes::default(),
                established: PathTimes::default(),
                idle_ms: u32::MAX,
            });
        }
        &mut self.sums[at]
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "there are no more pairs than series, whose numbers have 32 bits"
    )]
    fn of_series(&mut self, flows: &FlowFamilies, series: Handle, reply: bool) -> &mut Sum {
        let number = series as usize;
        if self.by_series.len() <= number {
            self.by_series.resize(number + 1, [0; 2]);
        }
        let known = self.by_series[number][usize::from(reply)];
        if known > 0 {
            return &mut self.sums[known as usize - 1];
        }
        let (src, dst) = flows.parties(series);
        let (from, to) = if reply { (dst, src) } else { (src, dst) };
        self.of(from, to);
        let place = self.places[&(from, to)];
        self.by_series[number][usize::from(reply)] = place as u32 + 1;
        &mut self.sums[place]
    }

    /// Those that come first, at most `limit`, and how many there are.
    pub(super) fn ranked(
        self,
        symbols: &Symbols,
        (sort, reverse): (Sort, bool),
        limit: usize,
    ) -> (Vec<Workload>, u64) {
        let all = self.sums.len() as u64;
        let mut sums: Vec<(f64, Sum)> = self
            .sums
            .into_iter()
            .map(|sum| (score(&sum, sort, reverse), sum))
            .collect();
        let names = |sum: &Sum| {
            [
                sum.from.namespace,
                sum.from.workload,
                sum.to.namespace,
                sum.to.workload,
            ]
            .map(|symbol| symbols.get(symbol))
        };
        sums.sort_by(|(a, x), (b, y)| {
            let order = b.total_cmp(a);
            let order = if reverse { order.reverse() } else { order };
            order.then_with(|| names(x).cmp(&names(y)))
        });
        sums.truncate(limit);
        let made = sums.into_iter().map(|(_, sum)| finish(&sum, symbols));
        (made.collect(), all)
    }
}

fn finish(sum: &Sum, symbols: &Symbols) -> Workload {
    let who = |party: Party| Who {
        namespace: symbols.get(party.namespace).to_owned(),
        workload: symbols.get(party.workload).to_owned(),
        pod: String::new(),
    };
    let mut classes: Vec<(u64, Class)> = sum.classes.iter().copied().zip(Class::ALL).collect();
    classes.retain(|(n, _)| *n > 0);
    classes.sort_by_key(|(n, class)| (std::cmp::Reverse(*n), *class));
    Workload {
        from: who(sum.from),
        to: who(sum.to),
        classes: classes
            .into_iter()
            .map(|(_, class)| class.name().to_owned())
            .collect(),
        first: timing(&sum.first),
        established: timing(&sum.established),
        ..sum.workload.clone()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rank: equal beyond 2^52 is equal enough"
)]
fn score(sum: &Sum, sort: Sort, reverse: bool) -> f64 {
    let w = &sum.workload;
    match sort {
        Sort::ByteRate => w.bytes_in + w.bytes_out,
        Sort::PacketRate => w.packets_in + w.packets_out,
        Sort::Bytes => w.bytes as f64,
        Sort::Packets => w.packets as f64,
        Sort::First => time(&sum.first, reverse),
        Sort::Established => time(&sum.established, reverse),
        Sort::Drops => w.drops as f64,
        Sort::Recent => -f64::from(sum.idle_ms),
    }
}

/// The median; what has none comes last either way.
pub(super) fn time(times: &PathTimes, reverse: bool) -> f64 {
    times.quantile(0.5).unwrap_or(if reverse {
        f64::INFINITY
    } else {
        f64::NEG_INFINITY
    })
}

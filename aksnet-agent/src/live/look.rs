//! One look: a pass over what the last sweep left of every flow, then the rows that come first.
//!
//! The pass reads the collector's own memory, not the maps, and names nobody: who a flow's ends are is known by the series
//! it adds to. Only the rows that are answered are judged and named anew.

use std::{sync::Arc, time::Instant};

use aksnet_common::flow::HotCell;

use super::{
    choice::{Choice, Finder},
    pairs::{self, Pairs},
    parts::{self, Kinds},
    query::{FlowId, LiveQuery, Sort},
    snapshot::{Snapshot, Totals},
};
use crate::{
    classify::Whois,
    collect::{Collector, DropNames, Glance, source::Source},
    conntrack::table::DestinationUse,
    droplog::DropRecord,
    identify::object::Moment,
    metrics::{Families, labels::party},
    top::model::{Ends, Row, drop_row, flow_row},
};

/// Drops without a flow that one look classifies at the most: those with most packets.
const ORPHANS: usize = 1_000;

/// What is got before the accounts are locked.
#[derive(Default)]
pub struct Outside {
    /// The destinations that are nearest to running out of ports, and how many there are.
    pub destinations: Option<(Vec<DestinationUse>, usize)>,
    /// What the drop log keeps, the oldest first.
    pub records: Vec<Arc<DropRecord>>,
}

/// The agent's accounts, as somebody looks at them. Sweeps wait meanwhile.
pub struct View<'a, S> {
    /// All flows.
    pub collector: &'a Collector,
    /// Their cells.
    pub source: &'a S,
    /// Who is at an address.
    pub whois: &'a Whois<'a>,
    /// Names of reasons.
    pub names: &'a DropNames,
    /// Now, by the datapath's clock.
    pub now: Moment,
}

impl<S: Source> View<'_, S> {
    /// Looks.
    ///
    /// # Errors
    /// Says what of the filter is not understood.
    pub fn look(&self, query: &LiveQuery, outside: &Outside) -> Result<Snapshot, String> {
        let choice = Choice::of(&query.filter)?;
        let began = Instant::now();
        let metrics = self.collector.metrics().clone();
        let mut families = metrics.lock();
        // Names may have gone since the sweep that asked for them.
        families.symbols.forget_names();
        let mut pass = Pass::default();
        self.pass(query, &choice, &families, &mut pass);
        let mut nat = pass.kinds.cost(&families);
        let rows = self.rows(query, &choice, &mut families, &mut pass);
        let limit = query.limit();
        let order = (query.sort, query.reverse);
        let (workloads, pairs) = pass.pairs.ranked(&families.symbols, order, limit);
        let node = parts::node(&families);
        drop(families);
        if let Some((uses, all)) = &outside.destinations {
            nat.destinations = parts::destinations(uses, self.whois, self.now);
            nat.all_destinations = Some(*all as u64);
        }
        let (unix_ms, interval_ms) = self.collector.swept();
        let followed = query.follow.as_ref();
        let followed = followed.and_then(|id| self.followed(id, &pass.candidates));
        Ok(Snapshot {
            unix_ms,
            interval_ms: interval_ms.into(),
            totals: pass.totals,
            flows: rows,
            matching: pass.matching,
            followed,
            workloads,
            pairs,
            nat,
            drops: parts::drops(&outside.records, &choice, limit, unix_ms),
            node,
            health: None,
            took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// Looks at every flow once.
    fn pass(&self, query: &LiveQuery, choice: &Choice, families: &Families, pass: &mut Pass) {
        let mut finder = Finder::new(choice, self.whois, self.names, self.now);
        // By series: whether its namespaces are chosen, and which words are in its names and reach.
        let mut series: Vec<Option<(bool, u32)>> = Vec::new();
        let follows = query.follow.as_ref().map(|id| id.before);
        for flow in self.collector.glances() {
            pass.totals.add(&flow);
            pass.kinds.add(&flow);
            let hot =
                (follows.is_some() || !choice.has_no_words()).then(|| self.source.hot(flow.cell));
            if let (Some(hot), Some(wanted)) = (&hot, &follows)
                && Ends::from(hot.key.tuple()) == *wanted
            {
                pass.candidates.push(flow.cell);
            }
            if !choice.takes_kind(flow.class, flow.nat) {
                continue;
            }
            let number = flow.series as usize;
            if series.len() <= number {
                series.resize(number + 1, None);
            }
            let (chosen, found) = *series[number].get_or_insert_with(|| {
                let names = |p: crate::metrics::labels::Party| {
                    let text = |symbol| families.symbols.get(symbol);
                    (text(p.namespace), text(p.workload))
                };
                let (src, dst) = families.flow.parties(flow.series);
                let (src, dst) = (names(src), names(dst));
                let found = finder.in_series([src, dst], families.flow.scope(flow.series));
                (choice.takes_namespaces([src.0, dst.0]), found)
            });
            let takes = chosen
                && (choice.has_no_words()
                    || hot.is_some_and(|hot: HotCell| {
                        finder.finds(found, &flow, &hot, || self.source.cold(flow.cell))
                    }));
            if takes {
                let times = self
                    .collector
                    .timed(flow.cell)
                    .then(|| self.collector.times(flow.cell));
                pass.pairs.add(&families.flow, &flow, times.as_ref());
                pass.ranked.push((self.score(query, &flow), flow.cell));
            }
        }
        pass.matching = pass.ranked.len() as u64;
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a rank: equal beyond 2^52 is equal enough"
    )]
    fn score(&self, query: &LiveQuery, flow: &Glance) -> f64 {
        match query.sort {
            Sort::ByteRate => flow.rates.1,
            Sort::PacketRate => flow.rates.0,
            Sort::Bytes => flow.bytes as f64,
            Sort::Packets => flow.packets as f64,
            Sort::First | Sort::Established => {
                let [mut first, mut established] = self.collector.times(flow.cell);
                if flow.reply {
                    established.add(&first);
                    first = crate::metrics::histogram::PathTimes::default();
                }
                let wanted = if query.sort == Sort::First {
                    &first
                } else {
                    &established
                };
                pairs::time(wanted, query.reverse)
            }
            Sort::Drops => flow.drops as f64,
            Sort::Recent => -f64::from(flow.idle_ms),
        }
    }

    /// The rows that come first, drops without a flow among them, which are added to their pairs.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rank: equal beyond 2^52 is equal enough"
    )]
    fn rows(
        &self,
        query: &LiveQuery,
        choice: &Choice,
        families: &mut Families,
        pass: &mut Pass,
    ) -> Vec<Row> {
        let limit = query.limit();
        let way = |order: std::cmp::Ordering| {
            if query.reverse {
                order.reverse()
            } else {
                order
            }
        };
        let order = |a: &(f64, u32), b: &(f64, u32)| way(b.0.total_cmp(&a.0)).then(a.1.cmp(&b.1));
        let ranked = &mut pass.ranked;
        if limit > 0 && ranked.len() > limit {
            ranked.select_nth_unstable_by(limit - 1, order);
        }
        ranked.truncate(limit);
        ranked.sort_unstable_by(order);
        let flow = |(score, cell): &(f64, u32)| {
            let flow = self.collector.flow(self.source, self.whois, *cell)?;
            Some((*score, flow_row(&flow, self.whois, self.names)))
        };
        let mut rows: Vec<(f64, Row)> = ranked.iter().filter_map(flow).collect();

        let mut orphans: Vec<_> = self.collector.orphan_drops().collect();
        orphans.sort_unstable_by_key(|(key, stats, _)| {
            let tuple = key.key.tuple();
            (
                std::cmp::Reverse(stats.skbs),
                tuple.src.0,
                tuple.dst.0,
                tuple.src_port,
                tuple.dst_port,
            )
        });
        for orphan in orphans.into_iter().take(ORPHANS) {
            let last_ns = orphan.1.last_ns;
            let (row, verdict) = drop_row(self.collector, orphan, self.whois, self.names);
            if !choice.takes_row(&row) {
                continue;
            }
            let parties = [&verdict.client, &verdict.server]
                .map(|peer| party(&mut families.symbols, self.whois, peer));
            pass.pairs
                .add_drops(parties[0], parties[1], verdict.class, row.drops);
            pass.matching += 1;
            let score = match query.sort {
                Sort::Drops => row.drops as f64,
                Sort::Recent => -((self.now.saturating_sub(last_ns) / 1_000_000) as f64),
                Sort::First | Sort::Established if query.reverse => f64::INFINITY,
                Sort::First | Sort::Established => f64::NEG_INFINITY,
                _ => 0.0,
            };
            rows.push((score, row));
        }
        // Stable: equals keep their order from one look to the next.
        rows.sort_by(|a, b| way(b.0.total_cmp(&a.0)));
        rows.truncate(limit);
        rows.into_iter().map(|(_, row)| row).collect()
    }

    fn followed(&self, id: &FlowId, candidates: &[u32]) -> Option<Row> {
        candidates.iter().find_map(|cell| {
            let flow = self.collector.flow(self.source, self.whois, *cell)?;
            let row = flow_row(&flow, self.whois, self.names);
            (FlowId::of(&row) == *id).then_some(row)
        })
    }
}

/// What the pass finds.
struct Pass {
    totals: Totals,
    kinds: Kinds,
    pairs: Pairs,
    ranked: Vec<(f64, u32)>,
    matching: u64,
    /// Cells of flows that may be the one that is followed.
    candidates: Vec<u32>,
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            totals: Totals::default(),
            kinds: Kinds::new(),
            pairs: Pairs::default(),
            ranked: Vec::new(),
            matching: 0,
            candidates: Vec::new(),
        }
    }
}

impl Totals {
    fn add(&mut self, flow: &Glance) {
        self.flows += 1;
        self.connections += u64::from(flow.connection);
        self.open += u64::from(flow.connection && flow.open);
        let nated = flow.nat != aksnet_common::passage::NatKind::None;
        self.nated += u64::from(flow.connection && nated);
        self.packets_per_second += flow.rates.0;
        self.bytes_per_second += flow.rates.1;
    }
}

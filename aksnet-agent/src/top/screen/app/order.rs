//! What comes first. The agent has put rows in order, but perhaps for another question than the present one.

use super::App;
use crate::{
    live::{Sort, Workload},
    top::model::{Row, Timing},
};

impl App {
    /// Puts flows and pairs in order.
    pub(super) fn arrange(&mut self) {
        let (sort, reverse) = (self.sort, self.reverse);
        let Some(snapshot) = &mut self.snapshot else {
            return;
        };
        let way = |order: std::cmp::Ordering| {
            if reverse { order.reverse() } else { order }
        };
        snapshot
            .flows
            .sort_by(|a, b| way(rank(b, sort, reverse).total_cmp(&rank(a, sort, reverse))));
        snapshot.workloads.sort_by(|a, b| {
            way(rank_pair(b, sort, reverse).total_cmp(&rank_pair(a, sort, reverse)))
        });
    }
}

/// A median; what has none comes last either way.
fn median(times: Option<Timing>, reverse: bool) -> f64 {
    let last = if reverse {
        f64::INFINITY
    } else {
        f64::NEG_INFINITY
    };
    times.map_or(last, |times| times.p50_ns)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rank: equal beyond 2^52 is equal enough"
)]
fn rank(row: &Row, sort: Sort, reverse: bool) -> f64 {
    match sort {
        Sort::ByteRate => row.bytes_per_second,
        Sort::PacketRate => row.packets_per_second,
        Sort::Bytes => row.bytes as f64,
        Sort::Packets => row.packets as f64,
        Sort::First => median(row.first, reverse),
        Sort::Established => median(row.established, reverse),
        Sort::Drops => row.drops as f64,
        Sort::Recent => row.time_ms as f64,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rank: equal beyond 2^52 is equal enough"
)]
fn rank_pair(pair: &Workload, sort: Sort, reverse: bool) -> f64 {
    match sort {
        Sort::ByteRate => pair.bytes_in + pair.bytes_out,
        Sort::PacketRate => pair.packets_in + pair.packets_out,
        Sort::Bytes => pair.bytes as f64,
        Sort::Packets => pair.packets as f64,
        Sort::First => median(pair.first, reverse),
        Sort::Established => median(pair.established, reverse),
        Sort::Drops => pair.drops as f64,
        // The agent's order stays: a pair does not tell its time.
        Sort::Recent => 0.0,
    }
}

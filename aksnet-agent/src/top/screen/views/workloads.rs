//! Who talks to whom.

use ratatui::{Frame, layout::Rect};

use super::{
    super::{app::App, table::Column, theme::Theme},
    List,
    show::{self, Look},
};
use crate::{
    live::{Sort, Workload},
    top::units,
};

const COLUMNS: &[Column<Workload, Look>] = &[
    Column {
        title: "FROM",
        sort: None,
        width: (18, 44),
        right: false,
        rank: 0,
        cell: |w, _| show::who(&w.from),
    },
    Column {
        title: "TO",
        sort: None,
        width: (18, 44),
        right: false,
        rank: 0,
        cell: |w, _| show::who(&w.to),
    },
    Column {
        title: "CLASS",
        sort: None,
        width: (12, 32),
        right: false,
        rank: 8,
        cell: |w, _| w.classes.join(" "),
    },
    Column {
        title: "OUT",
        sort: Some(Sort::ByteRate),
        width: (8, 8),
        right: true,
        rank: 1,
        cell: |w, l| l.rate(w.bytes_out),
    },
    Column {
        title: "IN",
        sort: None,
        width: (8, 8),
        right: true,
        rank: 1,
        cell: |w, l| l.rate(w.bytes_in),
    },
    Column {
        title: "PKT/S",
        sort: Some(Sort::PacketRate),
        width: (6, 6),
        right: true,
        rank: 9,
        cell: |w, _| show::per_second(w.packets_out + w.packets_in),
    },
    Column {
        title: "BYTES",
        sort: Some(Sort::Bytes),
        width: (6, 6),
        right: true,
        rank: 10,
        cell: |w, _| bytes(w),
    },
    Column {
        title: "PKTS",
        sort: Some(Sort::Packets),
        width: (6, 6),
        right: true,
        rank: 11,
        cell: |w, _| show::count(w.packets),
    },
    Column {
        title: "OPEN",
        sort: None,
        width: (5, 5),
        right: true,
        rank: 6,
        cell: |w, _| show::count(w.open),
    },
    Column {
        title: "CONN",
        sort: None,
        width: (5, 5),
        right: true,
        rank: 7,
        cell: |w, _| show::count(w.connections),
    },
    Column {
        title: "NAT",
        sort: None,
        width: (4, 4),
        right: true,
        rank: 2,
        cell: |w, _| show::share(w.nated, w.connections),
    },
    Column {
        title: "FIRST50/99",
        sort: Some(Sort::First),
        width: (11, 11),
        right: true,
        rank: 5,
        cell: |w, _| show::times(w.first),
    },
    Column {
        title: "LATER50/99",
        sort: Some(Sort::Established),
        width: (11, 11),
        right: true,
        rank: 3,
        cell: |w, _| show::times(w.established),
    },
    Column {
        title: "DROPS",
        sort: Some(Sort::Drops),
        width: (6, 6),
        right: true,
        rank: 4,
        cell: |w, _| drops(w),
    },
];

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn bytes(pair: &Workload) -> String {
    if pair.bytes == 0 {
        "-".to_owned()
    } else {
        units::bytes(pair.bytes as f64)
    }
}

fn drops(pair: &Workload) -> String {
    if pair.drops == 0 {
        "-".to_owned()
    } else {
        format!("✗{}", show::count(pair.drops))
    }
}

pub(super) fn draw(app: &App, theme: Theme, frame: &mut Frame, area: Rect) -> usize {
    List {
        columns: COLUMNS,
        rows: app.workloads().collect(),
        context: &Look::of(app),
        cursor: Some(app.cursor()),
        sorted: true,
        empty: "no pair: nothing talks here, or the filter leaves none (Esc forgets it)",
        style: |pair, theme| {
            if pair.drops > 0 {
                theme.bad()
            } else {
                theme.plain()
            }
        },
    }
    .draw(app, theme, frame, area)
}

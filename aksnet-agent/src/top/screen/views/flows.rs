//! The flows, and the details of one.

use ratatui::{Frame, layout::Rect, style::Style};

use super::{
    super::{app::App, table::Column, theme::Theme},
    List, detail,
    show::{self, Look},
    split,
};
use crate::{live::Sort, top::model::Row};

pub(super) const COLUMNS: &[Column<Row, Look>] = &[
    Column {
        title: "FROM",
        sort: None,
        width: (22, 60),
        right: false,
        rank: 0,
        cell: show::from,
    },
    Column {
        title: "TO",
        sort: None,
        width: (22, 60),
        right: false,
        rank: 0,
        cell: show::to,
    },
    Column {
        title: "L4",
        sort: None,
        width: (4, 6),
        right: false,
        rank: 5,
        cell: |r, _| r.protocol.clone(),
    },
    Column {
        title: "NAT",
        sort: None,
        width: (5, 5),
        right: false,
        rank: 2,
        cell: |r, _| show::nat(r),
    },
    Column {
        title: "CLASS",
        sort: None,
        width: (10, 16),
        right: false,
        rank: 6,
        cell: |r, _| r.class.clone(),
    },
    Column {
        title: "REACH",
        sort: None,
        width: (8, 10),
        right: false,
        rank: 12,
        cell: |r, _| r.scope.clone(),
    },
    Column {
        title: "REWRITTEN",
        sort: None,
        width: (20, 90),
        right: false,
        rank: 9,
        cell: |r, _| show::translation(r),
    },
    Column {
        title: "RATE",
        sort: Some(Sort::ByteRate),
        width: (8, 8),
        right: true,
        rank: 1,
        cell: |r, l| l.rate(r.bytes_per_second),
    },
    Column {
        title: "PKT/S",
        sort: Some(Sort::PacketRate),
        width: (6, 6),
        right: true,
        rank: 7,
        cell: |r, _| show::per_second(r.packets_per_second),
    },
    Column {
        title: "BYTES",
        sort: Some(Sort::Bytes),
        width: (6, 6),
        right: true,
        rank: 10,
        cell: |r, _| bytes(r),
    },
    Column {
        title: "PKTS",
        sort: Some(Sort::Packets),
        width: (5, 5),
        right: true,
        rank: 11,
        cell: |r, _| show::count(r.packets),
    },
    Column {
        title: "FIRST50/99",
        sort: Some(Sort::First),
        width: (11, 11),
        right: true,
        rank: 8,
        cell: |r, _| show::times(r.first),
    },
    Column {
        title: "LATER50/99",
        sort: Some(Sort::Established),
        width: (11, 11),
        right: true,
        rank: 3,
        cell: |r, _| show::times(r.established),
    },
    Column {
        title: "DROPS",
        sort: Some(Sort::Drops),
        width: (6, 12),
        right: false,
        rank: 4,
        cell: |r, _| drops(r),
    },
    Column {
        title: "SEEN",
        sort: Some(Sort::Recent),
        width: (9, 9),
        right: false,
        rank: 13,
        cell: |r, _| format!("{}Z", crate::top::units::time_of_day(r.time_ms)),
    },
];

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn bytes(row: &Row) -> String {
    if row.bytes == 0 {
        "-".to_owned()
    } else {
        crate::top::units::bytes(row.bytes as f64)
    }
}

fn drops(row: &Row) -> String {
    if row.drops == 0 {
        return "-".to_owned();
    }
    let cause = row.drop_cause.as_deref().unwrap_or_default();
    format!("✗{} {cause}", show::count(row.drops))
}

/// A flow that loses packets stands out; its mark says so, too.
pub(super) fn style(row: &Row, theme: Theme) -> Style {
    if row.drops > 0 {
        theme.bad()
    } else {
        theme.plain()
    }
}

pub(super) fn draw(app: &App, theme: Theme, frame: &mut Frame, area: Rect) -> usize {
    let detail = if app.detail { detail::height(area) } else { 0 };
    let (list, below) = split(area, area.height - detail);
    let room = List {
        columns: COLUMNS,
        rows: app.flows().collect(),
        context: &Look::of(app),
        cursor: Some(app.cursor()),
        sorted: true,
        empty: "no flow: nothing talks here, or the filter leaves none (Esc forgets it)",
        style,
    }
    .draw(app, theme, frame, list);
    if app.detail {
        detail::flow(app, theme, frame, below);
    }
    room
}

//! The flows, and the details of one.

use ratatui::{Frame, layout::Rect, style::Style};

use super::{
    super::{app::App, table::Column, theme::Theme},
    List, detail,
    show::{self, Look},
    split,
};
use crate::{
    live::Sort,
    top::{model::Row, units},
};

type Shown = Column<Row, Look>;

const COLUMNS: &[Shown] = &[
    Shown::words("FROM", (22, 60), 0, show::from),
    Shown::words("TO", (22, 60), 0, show::to),
    Shown::words("L4", (4, 6), 5, |r, _| r.protocol.clone()),
    Shown::words("NAT", (5, 5), 2, |r, _| show::nat(r)),
    Shown::words("CLASS", (10, 16), 6, |r, _| r.class.clone()),
    Shown::words("REACH", (8, 10), 12, |r, _| r.scope.clone()),
    Shown::words("REWRITTEN", (20, 90), 9, |r, _| show::translation(r)),
    Shown::numbers("RATE", (8, 8), 1, |r, l| l.rate(r.bytes_per_second)).by(Sort::ByteRate),
    Shown::numbers("PKT/S", (6, 6), 7, |r, _| {
        show::per_second(r.packets_per_second)
    })
    .by(Sort::PacketRate),
    Shown::numbers("BYTES", (6, 6), 10, |r, _| show::bytes(r.bytes)).by(Sort::Bytes),
    Shown::numbers("PKTS", (5, 5), 11, |r, _| show::count(r.packets)).by(Sort::Packets),
    Shown::numbers("FIRST50/99", (11, 11), 8, |r, _| units::times(r.first)).by(Sort::First),
    Shown::numbers("LATER50/99", (11, 11), 3, |r, _| {
        units::times(r.established)
    })
    .by(Sort::Established),
    Shown::words("DROPS", (6, 12), 4, |r, _| drops(r)).by(Sort::Drops),
    Shown::words("SEEN", (9, 9), 13, |r, _| {
        format!("{}Z", units::time_of_day(r.time_ms))
    })
    .by(Sort::Recent),
];

fn drops(row: &Row) -> String {
    if row.drops == 0 {
        return "-".to_owned();
    }
    let cause = row.drop_cause.as_deref().unwrap_or_default();
    format!("{} {cause}", show::dropped(row.drops))
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

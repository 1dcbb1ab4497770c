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

type Shown = Column<Workload, Look>;

const COLUMNS: &[Shown] = &[
    Shown::words("FROM", (18, 44), 0, |w, _| show::who(&w.from)),
    Shown::words("TO", (18, 44), 0, |w, _| show::who(&w.to)),
    Shown::words("CLASS", (12, 32), 8, |w, _| w.classes.join(" ")),
    Shown::numbers("OUT", (8, 8), 1, |w, l| l.rate(w.bytes_out)).by(Sort::ByteRate),
    Shown::numbers("IN", (8, 8), 1, |w, l| l.rate(w.bytes_in)),
    Shown::numbers("PKT/S", (6, 6), 9, |w, _| {
        show::per_second(w.packets_out + w.packets_in)
    })
    .by(Sort::PacketRate),
    Shown::numbers("BYTES", (6, 6), 10, |w, _| show::bytes(w.bytes)).by(Sort::Bytes),
    Shown::numbers("PKTS", (6, 6), 11, |w, _| show::count(w.packets)).by(Sort::Packets),
    Shown::numbers("OPEN", (5, 5), 6, |w, _| show::count(w.open)),
    Shown::numbers("CONN", (5, 5), 7, |w, _| show::count(w.connections)),
    Shown::numbers("NAT", (4, 4), 2, |w, _| show::share(w.nated, w.connections)),
    Shown::numbers("FIRST50/99", (11, 11), 5, |w, _| units::times(w.first)).by(Sort::First),
    Shown::numbers("LATER50/99", (11, 11), 3, |w, _| {
        units::times(w.established)
    })
    .by(Sort::Established),
    Shown::numbers("DROPS", (6, 6), 4, |w, _| show::dropped(w.drops)).by(Sort::Drops),
];

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

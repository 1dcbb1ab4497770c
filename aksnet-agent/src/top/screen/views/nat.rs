//! What NAT costs, where ports are taken, what is rewritten into what.

use ratatui::{Frame, layout::Rect};

use super::{
    super::{app::App, table::Column, theme::Theme},
    List, detail, line_at,
    show::{self, Look},
    split,
};
use crate::{
    live::{ByDestination, NatCost, Sort},
    top::{model::Row, units},
};

type Cost = Column<NatCost, Look>;

const COST: &[Cost] = &[
    Cost::words("NAT", (5, 5), 0, |c, _| c.nat.clone()),
    Cost::words("CLASS", (12, 17), 1, |c, _| {
        if c.class.is_empty() {
            "(all)".to_owned()
        } else {
            c.class.clone()
        }
    }),
    Cost::numbers("CONN", (5, 6), 2, |c, _| show::count(c.connections)),
    Cost::numbers("RATE", (8, 8), 6, |c, l| l.rate(c.bytes_per_second)),
    Cost::numbers("PKT/S", (6, 6), 7, |c, _| {
        show::per_second(c.packets_per_second)
    }),
    Cost::numbers("FIRST50/99", (11, 11), 3, |c, _| units::times(c.first)),
    Cost::numbers("+NONE", (7, 7), 4, |c, _| over(c.first_overhead_ns)),
    Cost::numbers("LATER50/99", (11, 11), 3, |c, _| {
        units::times(c.established)
    }),
    Cost::numbers("+NONE", (7, 7), 4, |c, _| over(c.established_overhead_ns)),
];

/// What NAT adds to the median of packets without.
fn over(ns: Option<f64>) -> String {
    match ns {
        None => "-".to_owned(),
        Some(ns) if ns < 0.0 => format!("-{}", units::nanoseconds(-ns)),
        Some(ns) => format!("+{}", units::nanoseconds(ns)),
    }
}

type Taken = Column<ByDestination, Look>;

const PORTS: &[Taken] = &[
    Taken::words("SNAT PORTS TOWARDS", (20, 46), 0, |d, _| {
        show::socket(d.to, d.port)
    }),
    Taken::words("WHO", (8, 30), 4, |d, _| show::who(&d.who)),
    Taken::words("L4", (4, 5), 2, |d, _| d.protocol.clone()),
    Taken::words("NODE ADDRESS", (15, 40), 5, |d, _| d.node.to_string()),
    Taken::numbers("IN USE", (7, 7), 0, |d, _| show::exact(d.in_use)),
    Taken::numbers("OF", (7, 7), 1, |d, _| show::exact(d.limit)),
    Taken::numbers("USED", (5, 5), 1, |d, _| show::share(d.in_use, d.limit)),
];

type Rewritten = Column<Row, Look>;

const REWRITTEN: &[Rewritten] = &[
    Rewritten::words("REWRITTEN: BEFORE → AFTER", (40, 100), 0, |r, _| {
        show::translation(r)
    }),
    Rewritten::words("NAT", (5, 5), 1, |r, _| show::nat(r)),
    Rewritten::words("L4", (4, 6), 6, |r, _| r.protocol.clone()),
    Rewritten::words("FROM", (14, 40), 8, show::from),
    Rewritten::words("TO", (14, 40), 8, show::to),
    Rewritten::numbers("RATE", (8, 8), 3, |r, l| l.rate(r.bytes_per_second)).by(Sort::ByteRate),
    Rewritten::numbers("FIRST", (7, 7), 2, |r, _| show::median(r.first)).by(Sort::First),
    Rewritten::numbers("LATER", (7, 7), 2, |r, _| show::median(r.established))
        .by(Sort::Established),
];

pub(super) fn draw(app: &App, theme: Theme, frame: &mut Frame, area: Rect) -> usize {
    let Some(snapshot) = &app.snapshot else {
        return 1;
    };
    let look = Look::of(app);
    let nat = &snapshot.nat;
    // All four kinds in any case, then their classes as far as there is room.
    let mut costs: Vec<&NatCost> = nat.kinds.iter().collect();
    let detail = if app.detail { detail::height(area) } else { 0 };
    let (area, below) = split(area, area.height - detail);
    let third = usize::from(area.height) / 3;
    let spare = third.saturating_sub(costs.len() + 1);
    let mut classes: Vec<&NatCost> = nat.classes.iter().filter(|c| c.nat != "none").collect();
    classes.sort_by(|a, b| {
        b.connections
            .cmp(&a.connections)
            .then_with(|| a.class.cmp(&b.class))
    });
    costs.extend(classes.into_iter().take(spare));
    let heights = [
        costs.len() + 1,
        nat.destinations
            .len()
            .clamp(1, third.saturating_sub(1).max(1))
            + 1,
    ];
    let heights = heights.map(|height| u16::try_from(height).unwrap_or(u16::MAX));
    let (top, rest) = split(area, heights[0]);
    let (middle, bottom) = split(rest, heights[1]);
    List {
        columns: COST,
        rows: costs,
        context: &look,
        cursor: None,
        sorted: false,
        empty: "",
        style: |_, theme| theme.plain(),
    }
    .draw(app, theme, frame, top);
    if nat.all_destinations.is_none() {
        let words = " SNAT PORTS: the conntrack table is not known (see /status)";
        line_at(frame, middle, 0, words, theme.warning());
    } else {
        List {
            columns: PORTS,
            rows: nat.destinations.iter().collect(),
            context: &look,
            cursor: None,
            sorted: false,
            empty: "no port of the node is taken by SNAT",
            style: |d, theme| {
                if d.in_use.saturating_mul(5) >= d.limit.saturating_mul(4) {
                    theme.bad()
                } else {
                    theme.plain()
                }
            },
        }
        .draw(app, theme, frame, middle);
    }
    let room = List {
        columns: REWRITTEN,
        rows: app.flows().collect(),
        context: &look,
        cursor: Some(app.cursor()),
        sorted: true,
        empty: "nothing is rewritten, or the filter leaves none (Esc forgets it)",
        style: super::flows::style,
    }
    .draw(app, theme, frame, bottom);
    if app.detail {
        detail::flow(app, theme, frame, below);
    }
    room
}

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

const COST: &[Column<NatCost, Look>] = &[
    Column {
        title: "NAT",
        sort: None,
        width: (5, 5),
        right: false,
        rank: 0,
        cell: |c, _| c.nat.clone(),
    },
    Column {
        title: "CLASS",
        sort: None,
        width: (12, 17),
        right: false,
        rank: 1,
        cell: |c, _| {
            if c.class.is_empty() {
                "(all)".to_owned()
            } else {
                c.class.clone()
            }
        },
    },
    Column {
        title: "CONN",
        sort: None,
        width: (5, 6),
        right: true,
        rank: 2,
        cell: |c, _| show::count(c.connections),
    },
    Column {
        title: "RATE",
        sort: None,
        width: (8, 8),
        right: true,
        rank: 6,
        cell: |c, l| l.rate(c.bytes_per_second),
    },
    Column {
        title: "PKT/S",
        sort: None,
        width: (6, 6),
        right: true,
        rank: 7,
        cell: |c, _| show::per_second(c.packets_per_second),
    },
    Column {
        title: "FIRST50/99",
        sort: None,
        width: (11, 11),
        right: true,
        rank: 3,
        cell: |c, _| show::times(c.first),
    },
    Column {
        title: "+NONE",
        sort: None,
        width: (7, 7),
        right: true,
        rank: 4,
        cell: |c, _| over(c.first_overhead_ns),
    },
    Column {
        title: "LATER50/99",
        sort: None,
        width: (11, 11),
        right: true,
        rank: 3,
        cell: |c, _| show::times(c.established),
    },
    Column {
        title: "+NONE",
        sort: None,
        width: (7, 7),
        right: true,
        rank: 4,
        cell: |c, _| over(c.established_overhead_ns),
    },
];

/// What NAT adds to the median of packets without.
fn over(ns: Option<f64>) -> String {
    match ns {
        None => "-".to_owned(),
        Some(ns) if ns < 0.0 => format!("-{}", units::nanoseconds(-ns)),
        Some(ns) => format!("+{}", units::nanoseconds(ns)),
    }
}

const PORTS: &[Column<ByDestination, Look>] = &[
    Column {
        title: "SNAT PORTS TOWARDS",
        sort: None,
        width: (20, 46),
        right: false,
        rank: 0,
        cell: |d, _| show::socket(d.to, d.port),
    },
    Column {
        title: "WHO",
        sort: None,
        width: (8, 30),
        right: false,
        rank: 4,
        cell: |d, _| show::who(&d.who),
    },
    Column {
        title: "L4",
        sort: None,
        width: (4, 5),
        right: false,
        rank: 2,
        cell: |d, _| d.protocol.clone(),
    },
    Column {
        title: "NODE ADDRESS",
        sort: None,
        width: (15, 40),
        right: false,
        rank: 5,
        cell: |d, _| d.node.to_string(),
    },
    Column {
        title: "IN USE",
        sort: None,
        width: (7, 7),
        right: true,
        rank: 0,
        cell: |d, _| show::exact(d.in_use),
    },
    Column {
        title: "OF",
        sort: None,
        width: (7, 7),
        right: true,
        rank: 1,
        cell: |d, _| show::exact(d.limit),
    },
    Column {
        title: "USED",
        sort: None,
        width: (5, 5),
        right: true,
        rank: 1,
        cell: |d, _| show::share(d.in_use, d.limit),
    },
];

const REWRITTEN: &[Column<Row, Look>] = &[
    Column {
        title: "REWRITTEN: BEFORE → AFTER",
        sort: None,
        width: (40, 100),
        right: false,
        rank: 0,
        cell: |r, _| show::translation(r),
    },
    Column {
        title: "NAT",
        sort: None,
        width: (5, 5),
        right: false,
        rank: 1,
        cell: |r, _| show::nat(r),
    },
    Column {
        title: "L4",
        sort: None,
        width: (4, 6),
        right: false,
        rank: 6,
        cell: |r, _| r.protocol.clone(),
    },
    Column {
        title: "FROM",
        sort: None,
        width: (14, 40),
        right: false,
        rank: 8,
        cell: show::from,
    },
    Column {
        title: "TO",
        sort: None,
        width: (14, 40),
        right: false,
        rank: 8,
        cell: show::to,
    },
    Column {
        title: "RATE",
        sort: Some(Sort::ByteRate),
        width: (8, 8),
        right: true,
        rank: 3,
        cell: |r, l| l.rate(r.bytes_per_second),
    },
    Column {
        title: "FIRST",
        sort: Some(Sort::First),
        width: (7, 7),
        right: true,
        rank: 2,
        cell: |r, _| show::median(r.first),
    },
    Column {
        title: "LATER",
        sort: Some(Sort::Established),
        width: (7, 7),
        right: true,
        rank: 2,
        cell: |r, _| show::median(r.established),
    },
];

pub(super) fn draw(app: &App, theme: Theme, frame: &mut Frame, area: Rect) -> usize {
    let Some(snapshot) = &app.snapshot else {
        return 1;
    };
    let look = Look::of(app);
    let nat = &snapshot.nat;
    // All four kinds in any case, then their classes as far as there is room.
    let mut costs: Vec<&NatCost> = Vec::new();
    for kind in &nat.kinds {
        costs.push(kind);
    }
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

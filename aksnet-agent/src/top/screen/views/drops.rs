//! What is dropped: the last minute by cause, the latest records, and the words of the selected one.

use std::fmt::Write as _;

use ratatui::{Frame, layout::Rect};

use super::{
    super::{app::App, table::Column, text, theme::Theme},
    List, detail, line_at, lines,
    show::{self, Look},
    split,
};
use crate::{droplog::DropRecord, top::units};

type Shown = Column<DropRecord, Look>;

const COLUMNS: &[Shown] = &[
    Shown::words("TIME", (9, 9), 2, |r, _| {
        format!("{}Z", units::time_of_day(r.unix_ms))
    }),
    Shown::words("CAUSE", (8, 18), 0, |r, _| r.cause.clone()),
    Shown::words("POLICY", (16, 36), 3, |r, _| policy(r)),
    Shown::words("FROM", (18, 50), 1, |r, l| show::drop_end(&r.src, l)),
    Shown::words("TO", (18, 50), 1, |r, l| show::drop_end(&r.dst, l)),
    Shown::words("L4", (4, 6), 6, |r, _| r.protocol.clone()),
    Shown::numbers("PKTS", (5, 5), 4, |r, _| show::count(r.packets)),
    Shown::words("KERNEL SAYS", (14, 40), 8, |r, _| {
        format!("{}@{}", r.reason, r.location)
    }),
    Shown::words("WHY", (20, 90), 9, |r, _| r.why.clone()),
];

fn policy(record: &DropRecord) -> String {
    if record.policies.is_empty() {
        return "-".to_owned();
    }
    let unsure = if record.confidence == "exact" {
        ""
    } else {
        "?"
    };
    format!("{}{unsure}", record.policies.join(","))
}

pub(super) fn draw(app: &App, theme: Theme, frame: &mut Frame, area: Rect) -> usize {
    let Some(snapshot) = &app.snapshot else {
        return 1;
    };
    let causes = &snapshot.drops.causes;
    let most = usize::from(area.height / 4).max(1);
    let mut summary: Vec<String> = causes
        .iter()
        .take(most)
        .map(|c| {
            let policy = if c.policy.is_empty() {
                String::new()
            } else {
                format!(" {}", c.policy)
            };
            let opened = if c.connections > 0 {
                format!(", {}", show::some(c.connections, "new connection"))
            } else {
                String::new()
            };
            format!(
                " last minute: {}{policy}: ✗{}{opened}",
                c.cause,
                show::some(c.packets, "packet")
            )
        })
        .collect();
    if summary.is_empty() {
        summary.push(" last minute: nothing was dropped".to_owned());
    } else if causes.len() > most {
        let more = causes.len() - most;
        let _ = write!(summary[most - 1], "  (and {more} other causes)");
    }
    let height = u16::try_from(summary.len()).unwrap_or(u16::MAX);
    let (top, rest) = split(area, height);
    let style = if causes.is_empty() {
        theme.good()
    } else {
        theme.bad()
    };
    lines(frame, top, summary.into_iter().map(|line| (line, style)));

    let words = app
        .selected_drop()
        .map(|record| words(record, area.width.into()));
    let below = if app.detail {
        detail::height(area)
    } else {
        // The reasoning of the selected one is in sight without a key.
        let lines = words.as_ref().map_or(0, Vec::len).min(3);
        if rest.height > 8 {
            u16::try_from(lines).unwrap_or(0)
        } else {
            0
        }
    };
    let (list, below) = split(rest, rest.height.saturating_sub(below));
    let room = List {
        columns: COLUMNS,
        rows: app.records().collect(),
        context: &Look::of(app),
        cursor: Some(app.cursor()),
        sorted: false,
        empty: "nothing was dropped, or the filter leaves none (Esc forgets it)",
        style: |_, theme| theme.plain(),
    }
    .draw(app, theme, frame, list);
    if app.detail {
        detail::dropped(app, theme, frame, below);
    } else {
        for (at, line) in (0..).zip(words.unwrap_or_default()) {
            line_at(frame, below, at, &line, theme.warning());
        }
    }
    room
}

fn words(record: &DropRecord, width: usize) -> Vec<String> {
    let why = if record.why.is_empty() {
        format!("{} at {}", record.reason, record.location)
    } else {
        record.why.clone()
    };
    let lines = text::wrap(&format!("why: {why}"), width.saturating_sub(1));
    lines.into_iter().map(|line| format!(" {line}")).collect()
}

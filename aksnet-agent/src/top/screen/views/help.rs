//! The help: every key of the key table, and what marks mean.

use ratatui::{Frame, layout::Rect};

use super::{
    super::{app::App, keys::BINDINGS, text, theme::Theme},
    line_at,
};

/// What a column's or a mark's meaning is.
const MARKS: [(&str, &str); 7] = [
    ("↩", "the replies of a connection; NAT is the connection's"),
    ("✗", "dropped packets"),
    (
        "FIRST",
        "time on the NAT path of packets that open connections",
    ),
    ("LATER", "the same of all other packets"),
    ("50/99", "half took no longer / 99 in 100 took no longer"),
    (
        "+NONE",
        "what NAT adds to the median of packets without NAT",
    ),
    ("-", "none, or not known"),
];

pub(super) fn draw(app: &App, theme: Theme, frame: &mut Frame, area: Rect) {
    let keys = BINDINGS.iter().map(|b| (b.shown(), b.help));
    let marks = MARKS.iter().map(|(mark, what)| ((*mark).to_owned(), *what));
    let blank = std::iter::once((String::new(), ""));
    let all: Vec<(String, &str)> = keys.chain(blank).chain(marks).collect();
    let columns: u16 = if area.width >= 150 { 2 } else { 1 };
    let room = usize::from(area.height.saturating_sub(1));
    let shown = room * usize::from(columns);
    let first = app.help_at.min(all.len().saturating_sub(shown));
    let more = if all.len() > first + shown {
        "  (↓ for more)"
    } else {
        ""
    };
    let title = format!(" Keys{more}; ? or Esc closes; docs/top.md has the columns");
    line_at(frame, area, 0, &title, theme.title());
    let width = area.width / columns;
    for (at, (keys, help)) in all.iter().skip(first).take(shown).enumerate() {
        let (column, row) = (at / room.max(1), at % room.max(1));
        let place = Rect {
            x: area.x + u16::try_from(column).unwrap_or(0) * width,
            width: width.saturating_sub(1),
            ..area
        };
        let keys = text::pad(keys, 14, true);
        let row = u16::try_from(row + 1).unwrap_or(u16::MAX);
        line_at(frame, place, row, &format!("{keys}  {help}"), theme.plain());
    }
}

//! The *views*, put on a frame: a head with how it is with the agent, the view, a bottom line. None of them changes what
//! is shown, and none assumes that there is room.

mod show;

mod head;

mod flows;

mod workloads;

mod nat;

mod drops;

mod node;

mod detail;

mod help;

use ratatui::{Frame, layout::Rect, style::Style, text::Line};

use super::{
    app::{App, View},
    table::{self, Column},
    text,
    theme::Theme,
};

/// Puts everything on the frame. Returns how many rows of the list there is room for.
pub fn draw(app: &App, theme: Theme, frame: &mut Frame) -> usize {
    let area = frame.area();
    if area.width < 20 || area.height < 6 {
        let words = text::wrap("aksnet: make the terminal larger", area.width.into());
        lines(frame, area, words.into_iter().map(|l| (l, theme.plain())));
        return 1;
    }
    let top = head::draw(app, theme, frame);
    let bottom = 1;
    let body = Rect {
        y: top,
        height: area.height.saturating_sub(top + bottom),
        ..area
    };
    head::bottom(app, theme, frame, area.height - 1);
    if app.help {
        help::draw(app, theme, frame, body);
        return body.height.into();
    }
    if app.snapshot.is_none() {
        let words = match app.link {
            super::app::Link::Gone { .. } => "No agent answers. It is tried again and again.",
            _ => "Waiting for the first look…",
        };
        line_at(frame, body, 1, &format!(" {words}"), theme.plain());
        return 1;
    }
    match app.view {
        View::Flows => flows::draw(app, theme, frame, body),
        View::Workloads => workloads::draw(app, theme, frame, body),
        View::Nat => nat::draw(app, theme, frame, body),
        View::Drops => drops::draw(app, theme, frame, body),
        View::Node => node::draw(app, theme, frame, body),
    }
}

/// Lines from the top of an area on; what has no room is left out.
fn lines(frame: &mut Frame, area: Rect, lines: impl Iterator<Item = (String, Style)>) {
    for (at, (line, style)) in (0..area.height).zip(lines) {
        line_at(frame, area, at, &line, style);
    }
}

/// One line of an area, cut where that ends.
fn line_at(frame: &mut Frame, area: Rect, at: u16, text: &str, style: Style) {
    let row = Rect {
        y: area.y.saturating_add(at),
        height: 1,
        ..area
    };
    let row = row.intersection(frame.area());
    if at < area.height && !row.is_empty() {
        let text = text::cut(text, row.width.into());
        frame.render_widget(Line::styled(text, style), row);
    }
}

/// A list: heads, and the rows around the cursor. Returns how many rows there is room for.
struct List<'a, T: 'static, C: 'static> {
    columns: &'static [Column<T, C>],
    rows: Vec<&'a T>,
    context: &'a C,
    cursor: Option<usize>,
    sorted: bool,
    empty: &'a str,
    style: fn(&T, Theme) -> Style,
}

impl<T, C> List<'_, T, C> {
    fn draw(self, app: &App, theme: Theme, frame: &mut Frame, area: Rect) -> usize {
        let room = usize::from(area.height.saturating_sub(1));
        let first = first_shown(self.cursor.unwrap_or(0), self.rows.len(), room);
        let shown = || self.rows.iter().skip(first).take(room).copied();
        let wanted = table::wanted(self.columns, shown(), self.context);
        // The first column is the mark of what is selected.
        let width = usize::from(area.width).saturating_sub(1);
        let layout = table::layout(self.columns, &wanted, width);
        let sorted = self.sorted.then_some((app.sort, app.reverse));
        let heads = table::heads(self.columns, &layout, sorted);
        let heads = text::pad(&format!(" {heads}"), area.width.into(), false);
        line_at(frame, area, 0, &heads, theme.head());
        if self.rows.is_empty() {
            line_at(frame, area, 1, &format!(" {}", self.empty), theme.plain());
        }
        for (at, row) in (1..).zip(shown()) {
            let selected = self.cursor == Some(first + usize::from(at) - 1);
            let mark = if selected { ">" } else { " " };
            let line = table::line(self.columns, &layout, row, self.context);
            let line = text::pad(&format!("{mark}{line}"), area.width.into(), false);
            let mut style = (self.style)(row, theme);
            if app.is_old() {
                style = theme.dim();
            }
            if selected {
                style = style.patch(theme.selected());
            }
            line_at(frame, area, at, &line, style);
        }
        room.max(1)
    }
}

/// The first row shown, so that the cursor is in sight, in the middle where the list is long.
fn first_shown(cursor: usize, rows: usize, room: usize) -> usize {
    cursor
        .saturating_sub(room / 2)
        .min(rows.saturating_sub(room))
}

/// The upper and the lower part of an area.
fn split(area: Rect, upper: u16) -> (Rect, Rect) {
    let upper = upper.min(area.height);
    (
        Rect {
            height: upper,
            ..area
        },
        Rect {
            y: area.y + upper,
            height: area.height - upper,
            ..area
        },
    )
}

//! The head and the bottom line: which node, how it is with the agent, sums, the views' names; what is typed, or hints.

use ratatui::{
    Frame,
    layout::Rect,
    text::{Line, Span},
};

use super::{
    super::{
        app::{App, Link, View},
        keys::BINDINGS,
        text,
        theme::Theme,
    },
    line_at,
    show::{self, Look},
};
use crate::{live::Sort, top::units};

/// Draws the head and returns its height.
pub(super) fn draw(app: &App, theme: Theme, frame: &mut Frame) -> u16 {
    let area = frame.area();
    let width = usize::from(area.width);
    let (state, state_style) = state(app, theme);
    let state_width = text::width(&state);
    let node = app.snapshot.as_ref().map(|snapshot| &snapshot.node);
    let mut left = " aksnet top".to_owned();
    if let Some(node) = node {
        for part in [&node.name, &node.cni, &node.proxy_mode, &node.policy_engine] {
            if !part.is_empty() {
                left.push_str(" · ");
                left.push_str(part);
            }
        }
    }
    let room = width.saturating_sub(state_width + 2);
    let left = text::pad(&text::cut(&left, room), room, false);
    let line = Line::from(vec![
        Span::styled(left, theme.title()),
        Span::raw(" "),
        Span::styled(state, state_style),
    ]);
    frame.render_widget(line, Rect { height: 1, ..area });
    line_at(frame, area, 1, &sums(app), theme.plain());
    tabs(app, theme, frame, area);
    if area.height >= 12 { 4 } else { 3 }
}

/// How it is with the agent.
fn state(app: &App, theme: Theme) -> (String, ratatui::style::Style) {
    let time = app
        .snapshot
        .as_ref()
        .map(|snapshot| format!("{}Z", units::time_of_day(snapshot.unix_ms)))
        .unwrap_or_default();
    let age = app.now.saturating_sub(app.received) / 1_000;
    match app.link {
        Link::Gone { retry, .. } => {
            let wait = retry.saturating_sub(app.now).div_ceil(1_000);
            let old = if app.snapshot.is_some() {
                format!("data {age} s old, ")
            } else {
                String::new()
            };
            (format!("! NO AGENT: {old}retry in {wait} s"), theme.bad())
        }
        Link::Connecting => ("connecting…".to_owned(), theme.warning()),
        Link::Up { .. } if app.paused => (format!("PAUSED at {time} (p goes on)"), theme.warning()),
        Link::Up { .. } if app.is_old() => {
            (format!("! NO NEWS for {age} s, since {time}"), theme.bad())
        }
        Link::Up { own } => {
            let health = app.snapshot.as_ref().and_then(|s| s.health.as_ref());
            let ready = health.is_none_or(|health| health.ready);
            let who = if own { "own programs" } else { "agent" };
            if ready {
                (
                    format!("{who} live, {} s  {time}", app.interval),
                    theme.good(),
                )
            } else {
                (format!("! {who} NOT READY  {time}"), theme.bad())
            }
        }
    }
}

/// Sums over all flows.
fn sums(app: &App) -> String {
    let Some(snapshot) = &app.snapshot else {
        return String::new();
    };
    let totals = &snapshot.totals;
    let dropped: u64 = snapshot.drops.causes.iter().map(|c| c.packets).sum();
    let drops = if dropped > 0 {
        format!("✗{} dropped/min", show::count(dropped))
    } else {
        "no drops".to_owned()
    };
    format!(
        " {}/s  {} pkt/s  {} flows  {} conns, {} open, {} NATed  {drops}",
        Look::of(app).rate(totals.bytes_per_second),
        show::per_second(totals.packets_per_second),
        show::count(totals.flows),
        show::count(totals.connections),
        show::count(totals.open),
        show::share(totals.nated, totals.connections),
    )
}

fn tabs(app: &App, theme: Theme, frame: &mut Frame, area: Rect) {
    let mut spans = vec![Span::raw(" ")];
    let mut used = 1;
    for (number, view) in (1..).zip(View::ALL) {
        let here = view == app.view;
        let name = if here {
            format!("[{number} {}]", view.title())
        } else {
            format!(" {number} {} ", view.title())
        };
        used += text::width(&name);
        let style = if here {
            theme.selected()
        } else {
            theme.plain()
        };
        spans.push(Span::styled(name, style));
    }
    let right = chosen(app);
    let room = usize::from(area.width).saturating_sub(used + 2);
    let right = text::cut(&right, room);
    let blanks = room.saturating_sub(text::width(&right)) + 1;
    spans.push(Span::raw(" ".repeat(blanks)));
    let style = if app.filter_words().is_empty() {
        theme.plain()
    } else {
        theme.warning()
    };
    spans.push(Span::styled(right, style));
    let row = Rect {
        y: 2,
        height: 1,
        ..area
    };
    frame.render_widget(Line::from(spans), row.intersection(frame.area()));
}

/// How many of how many are shown, by which order and filter.
fn chosen(app: &App) -> String {
    let Some(snapshot) = &app.snapshot else {
        return app.filter_words();
    };
    let (shown, all) = match app.view {
        View::Flows | View::Nat => (app.flows().count(), snapshot.matching),
        View::Workloads => (app.workloads().count(), snapshot.pairs),
        View::Drops => (app.records().count(), snapshot.drops.matching),
        View::Node => return String::new(),
    };
    let shown = shown as u64;
    let count = if shown < all {
        format!("{} of {}", show::exact(shown), show::exact(all))
    } else {
        show::exact(shown)
    };
    let order = if app.view == View::Drops {
        "latest first".to_owned()
    } else {
        let arrow = if app.reverse { "▲" } else { "▼" };
        format!("by {}{arrow}", sort_name(app.sort))
    };
    let filter = app.filter_words();
    let blank = if filter.is_empty() { "" } else { "  " };
    format!("{filter}{blank}{count} {order}")
}

/// What the order is called.
pub(super) const fn sort_name(sort: Sort) -> &'static str {
    match sort {
        Sort::ByteRate => "rate",
        Sort::PacketRate => "packet rate",
        Sort::Bytes => "bytes",
        Sort::Packets => "packets",
        Sort::First => "first-packet time",
        Sort::Established => "later-packet time",
        Sort::Drops => "drops",
        Sort::Recent => "time",
    }
}

/// What is typed, what there is to say, or hints.
pub(super) fn bottom(app: &App, theme: Theme, frame: &mut Frame, at: u16) {
    let area = frame.area();
    if let Some(prompt) = &app.prompt {
        let ask = if prompt.words {
            "filter: "
        } else {
            "namespace: "
        };
        let hint = "  (Enter: take, Esc: leave)";
        // The end of what is typed is what matters.
        let room = usize::from(area.width).saturating_sub(text::width(ask) + 2);
        let mut typed = prompt.text.as_str();
        while text::width(typed) > room {
            let mut chars = typed.chars();
            chars.next();
            typed = chars.as_str();
        }
        line_at(
            frame,
            area,
            at,
            &format!("{ask}{typed}_{hint}"),
            theme.warning(),
        );
        return;
    }
    if let Some(notice) = &app.notice {
        line_at(frame, area, at, &format!("! {notice}"), theme.bad());
        return;
    }
    let hints: Vec<String> = BINDINGS
        .iter()
        .filter(|binding| !binding.hint.is_empty())
        .map(|binding| format!("{} {}", binding.first(), binding.hint))
        .collect();
    line_at(
        frame,
        area,
        at,
        &format!(" {}", hints.join("  ")),
        theme.dim(),
    );
}

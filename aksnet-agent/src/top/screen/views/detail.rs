//! All that is known of the selected row, with a small chart of what the flow did before.

use ratatui::{
    Frame,
    layout::Rect,
    style::Style,
    widgets::{Sparkline, SparklineBar},
};

use super::{
    super::{
        app::{App, Names},
        history::LOOKS,
        text,
        theme::Theme,
    },
    line_at,
    show::{self, Look},
};
use crate::{
    droplog::DropRecord,
    live::FlowId,
    top::{
        model::{Row, Timing},
        units,
    },
};

/// How much of an area it takes.
pub(super) fn height(area: Rect) -> u16 {
    (area.height * 3 / 5).clamp(area.height.min(6), 18)
}

/// A flow's.
pub(super) fn flow(app: &App, theme: Theme, frame: &mut Frame, area: Rect) {
    let Some(row) = app.selected_flow() else {
        rule(frame, area, "the flow has gone", theme);
        return;
    };
    // The latest of it, should it be no longer among those listed.
    let followed = app.snapshot.as_ref().and_then(|s| s.followed.as_ref());
    let row = followed
        .filter(|f| FlowId::of(f) == FlowId::of(row))
        .unwrap_or(row);
    rule(frame, area, "flow (Enter or Esc closes)", theme);
    let facts = facts(row, &Look::of(app));
    let past: Vec<f64> = app.history.of(&FlowId::of(row)).collect();
    // The chart has what the words leave, but it is worth the last of them.
    let words = u16::try_from(facts.len()).unwrap_or(u16::MAX);
    let chart = area
        .height
        .saturating_sub(1 + words)
        .clamp(area.height.min(3).min(2), 6);
    let room = area.height.saturating_sub(1 + chart);
    table(frame, area, room, &facts, theme);
    let below = Rect {
        y: area.y + area.height.saturating_sub(chart),
        height: chart,
        ..area
    };
    draw_chart(app, theme, frame, below, &past);
}

fn facts(row: &Row, look: &Look) -> Vec<(&'static str, String)> {
    let names = Look {
        names: Names::Pods,
        bits: look.bits,
    };
    let mut facts = vec![
        (
            "from",
            format!(
                "{}  {}",
                show::from(row, &names),
                show::socket(row.before.src, row.before.src_port)
            ),
        ),
        (
            "to",
            format!(
                "{}  {}",
                show::to(row, &names),
                show::socket(row.before.dst, row.before.dst_port)
            ),
        ),
        (
            "NAT",
            match show::translation(row) {
                text if text.is_empty() => "rewrites nothing of these packets".to_owned(),
                text => text,
            },
        ),
        (
            "is",
            format!(
                "{} {} ({} NAT), {}{}",
                row.protocol,
                row.class,
                row.nat,
                if row.scope.is_empty() {
                    "reach not known"
                } else {
                    &row.scope
                },
                if row.reply { ", replies" } else { "" },
            ),
        ),
        (
            "way",
            format!(
                "{} → {}",
                if row.in_interface.is_empty() {
                    "this node"
                } else {
                    &row.in_interface
                },
                if row.out_interface.is_empty() {
                    "not seen to leave"
                } else {
                    &row.out_interface
                },
            ),
        ),
        (
            "now",
            format!(
                "{}/s, {} packets/s",
                look.rate(row.bytes_per_second),
                show::per_second(row.packets_per_second)
            ),
        ),
        (
            "so far",
            format!(
                "{} bytes, {} packets, last seen {}Z",
                show::exact(row.bytes),
                show::exact(row.packets),
                units::time_of_day(row.time_ms)
            ),
        ),
        ("first", timing(row.first)),
        ("later", timing(row.established)),
    ];
    if row.drops > 0 {
        let cause = row.drop_cause.as_deref().unwrap_or("not known");
        let reason = row.drop_reason.as_deref().unwrap_or_default();
        facts.push((
            "drops",
            format!(
                "✗{} packets, the latest: {cause} ({reason})",
                show::exact(row.drops)
            ),
        ));
    }
    facts
}

fn timing(times: Option<Timing>) -> String {
    times.map_or_else(
        || "no packet was timed".to_owned(),
        |t| {
            format!(
                "half took at most {}, 99 in 100 at most {} ({} timed)",
                units::nanoseconds(t.p50_ns),
                units::nanoseconds(t.p99_ns),
                show::exact(t.samples)
            )
        },
    )
}

/// A drop's.
pub(super) fn dropped(app: &App, theme: Theme, frame: &mut Frame, area: Rect) {
    let Some(record) = app.selected_drop() else {
        rule(frame, area, "the record has gone", theme);
        return;
    };
    rule(frame, area, "drop (Enter or Esc closes)", theme);
    let width = usize::from(area.width).saturating_sub(11);
    let mut facts = Vec::new();
    for (name, fact) in drop_facts(record) {
        let mut name = name;
        for line in text::wrap(&fact, width) {
            facts.push((name, line));
            name = "";
        }
    }
    table(frame, area, area.height.saturating_sub(1), &facts, theme);
}

fn drop_facts(record: &DropRecord) -> Vec<(&'static str, String)> {
    let names = Look {
        names: Names::Pods,
        bits: true,
    };
    let end = |end| show::drop_end(end, &names);
    let mut facts = vec![("cause", record.cause.clone())];
    if !record.why.is_empty() {
        facts.push(("why", record.why.clone()));
    }
    if !record.policies.is_empty() {
        facts.push((
            "policy",
            format!(
                "{} ({}, {})",
                record.policies.join(", "),
                record.direction,
                record.confidence
            ),
        ));
    }
    facts.extend([
        (
            "from",
            format!(
                "{}  {}",
                end(&record.src),
                show::socket(record.src.address, record.src.port)
            ),
        ),
        (
            "to",
            format!(
                "{}  {}",
                end(&record.dst),
                show::socket(record.dst.address, record.dst.port)
            ),
        ),
    ]);
    if let Some((address, port)) = record.dialled {
        facts.push(("dialled", show::socket(address, port)));
    }
    facts.extend([
        (
            "kernel",
            format!("{} in {}", record.reason, record.location),
        ),
        (
            "what",
            format!(
                "{}: {} packets, {} bytes, {} new connections",
                record.protocol,
                show::exact(record.packets),
                show::exact(record.bytes),
                show::exact(record.connections)
            ),
        ),
        (
            "way",
            format!(
                "{} → {}, mark {:#x}",
                if record.in_interface.is_empty() {
                    "this node"
                } else {
                    &record.in_interface
                },
                if record.out_interface.is_empty() {
                    "?"
                } else {
                    &record.out_interface
                },
                record.mark,
            ),
        ),
    ]);
    if !record.engine.is_empty() {
        facts.push(("engine", record.engine.clone()));
    }
    facts
}

fn rule(frame: &mut Frame, area: Rect, title: &str, theme: Theme) {
    let dashes = usize::from(area.width).saturating_sub(text::width(title) + 4);
    line_at(
        frame,
        area,
        0,
        &format!("── {title} {}", "─".repeat(dashes)),
        theme.title(),
    );
}

fn table(frame: &mut Frame, area: Rect, room: u16, facts: &[(&str, String)], theme: Theme) {
    for (at, (name, fact)) in (1..=room).zip(facts) {
        let name = text::pad(name, 8, true);
        line_at(frame, area, at, &format!("{name}  {fact}"), theme.plain());
    }
}

/// The rate in the looks before, as bars: the newest at the right.
fn draw_chart(app: &App, theme: Theme, frame: &mut Frame, area: Rect, past: &[f64]) {
    if area.height == 0 {
        return;
    }
    let highest = past.iter().copied().fold(0.0, f64::max);
    let look = Look::of(app);
    let scale = format!(
        "rate, last {} looks; top {}/s",
        past.len().min(LOOKS),
        look.rate(highest)
    );
    line_at(frame, area, 0, &format!("    {scale}"), theme.dim());
    let bars = Rect {
        x: area.x + 4,
        y: area.y + 1,
        width: area.width.saturating_sub(5),
        height: area.height - 1,
    }
    .intersection(frame.area());
    if bars.is_empty() {
        return;
    }
    let newest = past.len().saturating_sub(bars.width.into());
    let bar = |rate: &f64| SparklineBar::from(Some(scaled(*rate, highest)));
    let chart = Sparkline::default()
        .max(1_000)
        .style(if app.is_old() {
            theme.dim()
        } else {
            Style::new()
        })
        .data(past[newest..].iter().map(bar));
    frame.render_widget(chart, bars);
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share between 0 and 1,000"
)]
fn scaled(rate: f64, highest: f64) -> u64 {
    if highest > 0.0 && rate.is_finite() {
        (rate / highest * 1_000.0).clamp(0.0, 1_000.0) as u64
    } else {
        0
    }
}

//! What the node is, and what of it is used up.

use ratatui::{Frame, layout::Rect, style::Style};

use super::{
    super::{app::App, text, theme::Theme},
    line_at, show,
};
use crate::live::{Ports, Snapshot};

/// From this width on there are two columns.
const WIDE: u16 = 130;

type Lines = Vec<(String, Style)>;

pub(super) fn draw(app: &App, theme: Theme, frame: &mut Frame, area: Rect) -> usize {
    let Some(snapshot) = &app.snapshot else {
        return 1;
    };
    let columns = if area.width >= WIDE { 2 } else { 1 };
    let width = area.width / columns;
    let left = used(snapshot, theme, width.into());
    let mut right = agent(snapshot, theme);
    let mut parts = vec![left];
    if columns == 1 {
        parts[0].push((String::new(), theme.plain()));
        parts[0].append(&mut right);
    } else {
        parts.push(right);
    }
    let longest = parts.iter().map(Vec::len).max().unwrap_or(0);
    let room = usize::from(area.height);
    let first = app.cursor().min(longest.saturating_sub(room));
    for (column, part) in (0..columns).zip(parts) {
        let area = Rect {
            x: area.x + column * width,
            width: width.saturating_sub(1),
            ..area
        };
        for (at, (line, style)) in (0..area.height).zip(part.into_iter().skip(first)) {
            let style = if app.is_old() { theme.dim() } else { style };
            line_at(frame, area, at, &line, style);
        }
    }
    if first + room < longest {
        let more = format!("{} more lines below (↓) ", longest - first - room);
        let at = area.height.saturating_sub(1);
        line_at(
            frame,
            area,
            at,
            &text::pad(&more, area.width.into(), true),
            theme.warning(),
        );
    }
    room.max(1)
}

fn used(snapshot: &Snapshot, theme: Theme, width: usize) -> Lines {
    let node = &snapshot.node;
    let mut lines: Lines = vec![(" Used up".to_owned(), theme.title())];
    let mut gauge = |name: &str, in_use: u64, limit: Option<u64>, ratio: Option<f64>| {
        lines.push(bar(name, in_use, limit, ratio, theme, width));
    };
    let track = &node.conntrack;
    if let Some(entries) = track.entries {
        gauge("conntrack entries", entries, track.limit, None);
    }
    for ports in node.snat_ports.iter().flatten() {
        if ports.in_use > 0 || ports.family == "ipv4" {
            gauge(
                &port_name("SNAT", ports),
                ports.in_use,
                Some(ports.limit),
                Some(ports.saturation),
            );
        }
    }
    for ports in &node.azure_snat_ports {
        let limit = (ports.limit > 0).then_some(ports.limit);
        gauge(&port_name("Azure", ports), ports.in_use, limit, None);
    }
    for pods in &node.pod_ips {
        gauge(
            &format!("pod IPs ({})", pods.source),
            pods.in_use,
            pods.limit,
            None,
        );
    }
    gauge(
        "flow table cells",
        node.flow_cells,
        Some(node.flow_cells_limit),
        None,
    );
    lines.push((String::new(), theme.plain()));
    lines.push((
        " SNAT ports: bar and % are of the busiest destination".to_owned(),
        theme.dim(),
    ));
    if node.snat_ports.is_none() {
        lines.push((
            " ! SNAT ports: the conntrack table is not known".to_owned(),
            theme.warning(),
        ));
    }
    for pods in &node.pod_ips {
        if let Some(leaked) = pods.leaked.filter(|n| *n > 0) {
            let words = format!(" ! {leaked} addresses of {} belong to no pod", pods.source);
            lines.push((words, theme.bad()));
        }
    }
    for (what, n) in [
        ("entries lost a clash (insert_failed)", track.insert_failed),
        ("packets conntrack dropped", track.drop),
        ("entries evicted early", track.early_drop),
    ] {
        let (text, style) = match n {
            None => (" not known".to_owned(), theme.dim()),
            Some(0) => (" 0".to_owned(), theme.plain()),
            Some(n) => (
                format!(" {} since the start", show::exact(n)),
                theme.warning(),
            ),
        };
        lines.push((format!(" {what}:{text}"), style));
    }
    lines
}

fn port_name(whose: &str, ports: &Ports) -> String {
    format!("{whose} ports {}/{}", ports.protocol, ports.family)
}

/// `conntrack entries       [####······] 554 of 262,144  <1%`; what is nearly full has a word for it.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a bar's columns"
)]
fn bar(
    name: &str,
    in_use: u64,
    limit: Option<u64>,
    ratio: Option<f64>,
    theme: Theme,
    width: usize,
) -> (String, Style) {
    let name = text::pad(&text::cut(name, 27), 27, false);
    let Some(limit) = limit.filter(|limit| *limit > 0) else {
        return (
            format!(" {name} {} (limit not known)", show::exact(in_use)),
            theme.plain(),
        );
    };
    let ratio = ratio.unwrap_or(in_use as f64 / limit as f64);
    let ratio = if ratio.is_finite() {
        ratio.max(0.0)
    } else {
        0.0
    };
    let (word, style) = match ratio {
        r if r >= 0.95 => ("  FULL", theme.bad()),
        r if r >= 0.8 => ("  nearly full", theme.warning()),
        _ => ("", theme.plain()),
    };
    let length = width.saturating_sub(27 + 38).clamp(4, 30);
    let filled = ((ratio * length as f64).ceil() as usize).min(length);
    let percent = match ratio * 100.0 {
        p if p > 0.0 && p < 1.0 => "<1%".to_owned(),
        p => format!("{p:.0}%"),
    };
    let bar = "█".repeat(filled) + &"·".repeat(length - filled);
    let line = format!(
        " {name} [{bar}] {percent:>4}  {} of {}{word}",
        show::exact(in_use),
        show::exact(limit)
    );
    (line, style)
}

fn agent(snapshot: &Snapshot, theme: Theme) -> Lines {
    let node = &snapshot.node;
    let mut lines: Lines = Vec::new();
    let known = |text: &str| {
        if text.is_empty() {
            "not known".to_owned()
        } else {
            text.to_owned()
        }
    };
    lines.push((" This node".to_owned(), theme.title()));
    for (name, value) in [
        ("name", &node.name),
        ("CNI", &node.cni),
        ("kube-proxy", &node.proxy_mode),
        ("policy engine", &node.policy_engine),
        ("zone", &node.zone),
        ("kernel", &node.kernel),
    ] {
        let name = text::pad(name, 14, false);
        lines.push((format!(" {name} {}", known(value)), theme.plain()));
    }
    lines.push((String::new(), theme.plain()));
    lines.push((" The agent".to_owned(), theme.title()));
    if let Some(health) = &snapshot.health {
        let (state, style) = if health.ready {
            ("ready".to_owned(), theme.good())
        } else {
            (
                format!("! NOT READY: {}", health.not_ready_because),
                theme.bad(),
            )
        };
        lines.push((format!(" state          {state}"), style));
        let up = health.uptime_seconds;
        let up = format!("{}:{:02}:{:02}", up / 3_600, up / 60 % 60, up % 60);
        lines.push((
            format!(
                " version        {} ({}), up {up}",
                health.version, health.revision
            ),
            theme.plain(),
        ));
        lines.push((
            format!(
                " sweeps         {}, each look costs them {} µs",
                show::exact(health.sweeps),
                show::exact(snapshot.took_us)
            ),
            theme.plain(),
        ));
        if !health.sweep_error.is_empty() {
            lines.push((
                format!(" ! last sweep   {}", health.sweep_error),
                theme.bad(),
            ));
        }
    }
    for program in &node.programs {
        let (word, style) = if program.up {
            ("up", theme.good())
        } else {
            ("! DOWN", theme.bad())
        };
        let name = text::pad(&program.program, 14, false);
        lines.push((format!(" {name} {word} ({})", program.hook), style));
    }
    let names = |synced: bool| -> String {
        let sources = node.sources.iter().filter(|s| s.synced == synced);
        let names: Vec<&str> = sources.map(|s| s.source.as_str()).collect();
        names.join(", ")
    };
    let (synced, late) = (names(true), names(false));
    if !synced.is_empty() {
        lines.push((format!(" synced         {synced}"), theme.plain()));
    }
    if !late.is_empty() {
        lines.push((format!(" ! NOT SYNCED   {late}"), theme.warning()));
    }
    lines
}

//! Rows as plain lines: a header and columns for people, or one JSON object per line for scripts.

use super::{
    model::{Ends, Row},
    units,
};

/// Stands for the end of a tuple that NAT left alone.
const UNCHANGED: &str = "=";

/// A column: its title, and whether it is right-aligned.
const COLUMNS: [(&str, bool); 11] = [
    ("TIME", false),
    ("CLASS", false),
    ("NAT", false),
    ("L4", false),
    ("BEFORE → AFTER", false),
    ("PKTS", true),
    ("BYTES", true),
    ("PKT/S", true),
    ("B/S", true),
    ("FIRST50/99", true),
    ("LATER50/99", true),
];

/// The header and the rows in aligned columns, each line with its end. Drops come last on a line, as most
/// flows have none.
#[must_use]
pub fn lines(rows: &[Row]) -> String {
    let cells: Vec<[String; COLUMNS.len()]> = rows.iter().map(cells).collect();
    let widths: Vec<usize> = COLUMNS
        .iter()
        .enumerate()
        .map(|(at, (title, _))| {
            let widest = cells.iter().map(|row| row[at].chars().count()).max();
            widest.unwrap_or(0).max(title.chars().count())
        })
        .collect();
    let mut text = String::new();
    push_line(
        &mut text,
        &widths,
        COLUMNS.iter().map(|(title, _)| *title),
        "DROPS",
    );
    for (row, cells) in rows.iter().zip(&cells) {
        push_line(
            &mut text,
            &widths,
            cells.iter().map(String::as_str),
            &drops(row),
        );
    }
    text
}

/// The rows as JSON, one object per line.
///
/// # Errors
/// None that is known: every field of a row has a JSON form.
pub fn json_lines(rows: &[Row]) -> serde_json::Result<String> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    Ok(text)
}

fn push_line<'a>(
    text: &mut String,
    widths: &[usize],
    cells: impl Iterator<Item = &'a str>,
    last: &str,
) {
    let start = text.len();
    for ((cell, width), (_, right)) in cells.zip(widths).zip(COLUMNS) {
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        if right {
            text.push_str(&padding);
            text.push_str(cell);
        } else {
            text.push_str(cell);
            text.push_str(&padding);
        }
        text.push(' ');
    }
    text.push_str(last);
    let end = start + text[start..].trim_end().len();
    text.truncate(end);
    text.push('\n');
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn cells(row: &Row) -> [String; COLUMNS.len()] {
    let mut nat = row.nat.clone();
    if row.reply {
        // The connection's NAT, seen from its replies.
        nat.push('↩');
    }
    [
        units::time_of_day(row.time_ms),
        row.class.clone(),
        nat,
        row.protocol.clone(),
        translation(row),
        units::count(row.packets as f64),
        units::bytes(row.bytes as f64),
        units::count(row.packets_per_second),
        units::bytes(row.bytes_per_second),
        units::times(row.first),
        units::times(row.established),
    ]
}

/// The tuple before, and what of it differs after.
fn translation(row: &Row) -> String {
    let icmp = row.protocol.starts_with("icmp");
    let before = ends(&row.before, icmp);
    match &row.after {
        Some(after) if *after != row.before => {
            let source = (after.src, after.src_port) != (row.before.src, row.before.src_port);
            let destination = (after.dst, after.dst_port) != (row.before.dst, row.before.dst_port);
            let after = ends(after, icmp);
            let (src, dst) = after.split_once('>').unwrap_or((&after, ""));
            format!(
                "{before} → {}>{}",
                if source { src } else { UNCHANGED },
                if destination { dst } else { UNCHANGED }
            )
        }
        _ => before,
    }
}

fn ends(ends: &Ends, icmp: bool) -> String {
    let end = |address: std::net::IpAddr, port: u16| match address {
        _ if port == 0 => address.to_string(),
        std::net::IpAddr::V4(a) => format!("{a}:{port}"),
        std::net::IpAddr::V6(a) => format!("[{a}]:{port}"),
    };
    // The identifier of an echo stands for its ports; its type is no port.
    let dst_port = if icmp { 0 } else { ends.dst_port };
    format!(
        "{}>{}",
        end(ends.src, ends.src_port),
        end(ends.dst, dst_port)
    )
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn drops(row: &Row) -> String {
    let mut text = if row.drops == 0 {
        String::new()
    } else {
        units::count(row.drops as f64)
    };
    if let Some(reason) = &row.drop_reason {
        text.push(' ');
        text.push_str(reason);
    }
    text
}

//! Draws panels as *pictures* for the documentation, from the same answers that are checked. They show what a panel
//! says, not Grafana's looks.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use xtask::{
    dashboards::{Dashboard, Kind, Panel},
    font,
};

use super::server::Series;

const WIDTH: u32 = 760;
const HEIGHT: u32 = 330;
const COLUMNS: u32 = 2;
/// Beneath the plot, for the legend.
const LEGEND: u32 = 22;

const GROUND: RGBColor = RGBColor(24, 27, 31);
const TEXT: RGBColor = RGBColor(204, 204, 220);
const GRID: RGBColor = RGBColor(52, 56, 64);

/// Told apart also by people who do not see all colours (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(240, 228, 66),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(170, 170, 170),
];

/// A line with its name.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// The pictured panels of a dashboard as one file, `DIRECTORY/UID.png`.
pub fn dashboard(
    dashboard: &Dashboard,
    directory: &Path,
    ask: impl Fn(&Panel) -> Result<Vec<Vec<Series>>>,
) -> Result<()> {
    let panels: Vec<&Panel> = dashboard.panels().filter(|panel| panel.picture).collect();
    if panels.is_empty() {
        return Ok(());
    }
    font::register()?;
    fs::create_dir_all(directory)?;
    let path = directory.join(format!("{}.png", dashboard.uid));
    let rows = u32::try_from(panels.len())?.div_ceil(COLUMNS);
    let root = BitMapBackend::new(&path, (COLUMNS * WIDTH, rows * HEIGHT)).into_drawing_area();
    root.fill(&GROUND).map_err(|e| anyhow!("{e}"))?;
    let areas = root.split_evenly((rows as usize, COLUMNS as usize));
    for (panel, area) in panels.into_iter().zip(&areas) {
        let lines = lines(panel, &ask(panel)?);
        draw(panel, &lines, area).map_err(|e| anyhow!("{}: {e}", panel.title))?;
    }
    root.present().map_err(|e| anyhow!("{e}"))
}

/// The largest eight, named by the legend.
fn lines(panel: &Panel, answers: &[Vec<Series>]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (query, answer) in panel.queries.iter().zip(answers) {
        for series in answer {
            let mut points = series.values.clone();
            points.retain(|(_, value)| value.is_finite());
            if points.iter().any(|(_, value)| *value != 0.0) {
                lines.push(Line {
                    name: named(query.legend, &series.labels),
                    points,
                });
            }
        }
    }
    let peak = |line: &Line| line.points.iter().map(|(_, v)| *v).fold(0.0, f64::max);
    lines.sort_by(|a, b| peak(b).total_cmp(&peak(a)));
    lines.truncate(COLOURS.len());
    lines
}

/// A label that a series has not is empty.
fn named(legend: &str, labels: &BTreeMap<String, String>) -> String {
    let mut parts = legend.split("{{");
    let mut name = parts.next().unwrap_or_default().to_owned();
    for (label, rest) in parts.filter_map(|part| part.split_once("}}")) {
        name.push_str(labels.get(label).map_or("", String::as_str));
        name.push_str(rest);
    }
    name.trim().to_owned()
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(panel: &Panel, lines: &[Line], area: &Area<'_>) -> Drawn {
    let heading = ("sans-serif", 17).into_font().color(&TEXT);
    let small = ("sans-serif", 13).into_font().color(&TEXT);
    let area = area.margin(6, 6, 10, 10).titled(panel.title, heading)?;
    let (_, height) = area.dim_in_pixel();
    let rows = u32::try_from(lines.len().div_ceil(2))?;
    let (plot, legend) = area.split_vertically(height - (rows * LEGEND).min(height / 2));

    let stacked = panel.kind == Kind::Stack;
    let sums = sums(lines);
    let all = || lines.iter().flat_map(|line| &line.points);
    let times = all().map(|(time, _)| *time);
    let from = times.clone().fold(f64::INFINITY, f64::min);
    let to = times.fold(f64::NEG_INFINITY, f64::max).max(from + 1.0);
    let top = if stacked {
        sums.values().copied().fold(0.0, f64::max)
    } else {
        all().map(|(_, value)| *value).fold(0.0, f64::max)
    };
    let bottom = if stacked {
        0.0
    } else {
        all().map(|(_, value)| *value).fold(0.0, f64::min)
    };
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(22)
        .y_label_area_size(84)
        .margin_right(12)
        .build_cartesian_2d(
            0.0..to - from,
            bottom..(top * 1.05).max(bottom + f64::MIN_POSITIVE),
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(small.clone())
        .y_labels(6)
        .x_labels(6)
        .x_label_formatter(&|second| format!("{second:.0} s"))
        .y_label_formatter(&|value| panel.unit.show(*value))
        .draw()?;
    let mut under: BTreeMap<u64, f64> = BTreeMap::new();
    for (line, colour) in lines.iter().zip(COLOURS) {
        let mut points = Vec::new();
        for (time, value) in &line.points {
            let floor = under.entry(time.to_bits()).or_default();
            let value = if stacked { *floor + value } else { *value };
            if stacked {
                points.push((time - from, *floor, value));
                *floor = value;
            } else {
                points.push((time - from, 0.0, value));
            }
        }
        let pieces = pieces(&points);
        for piece in pieces {
            if stacked {
                let there = piece.iter().map(|(time, _, value)| (*time, *value));
                let back = piece.iter().rev().map(|(time, floor, _)| (*time, *floor));
                let outline: Vec<(f64, f64)> = there.chain(back).collect();
                chart.draw_series([Polygon::new(outline, colour.mix(0.45))])?;
            }
            let line = piece.iter().map(|(time, _, value)| (*time, *value));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
        }
    }
    for ((line, colour), at) in lines.iter().zip(COLOURS).zip(0_i32..) {
        let (width, _) = legend.dim_in_pixel();
        let x = 84 + (at % 2) * (i32::try_from(width)? - 84) / 2;
        let y = (at / 2) * i32::try_from(LEGEND)? + 4;
        legend.draw(&Rectangle::new(
            [(x, y + 2), (x + 14, y + 12)],
            colour.filled(),
        ))?;
        let last = line.points.last().map_or(0.0, |(_, value)| *value);
        let text = format!("{}: {}", line.name, panel.unit.show(last));
        legend.draw(&Text::new(text, (x + 20, y), small.clone()))?;
    }
    Ok(())
}

/// The sum of all lines at each time.
fn sums(lines: &[Line]) -> BTreeMap<u64, f64> {
    let mut sums = BTreeMap::new();
    for (time, value) in lines.iter().flat_map(|line| &line.points) {
        *sums.entry(time.to_bits()).or_default() += value;
    }
    sums
}

/// Where a line has no values it is broken.
fn pieces(points: &[(f64, f64, f64)]) -> Vec<&[(f64, f64, f64)]> {
    points
        .chunk_by(|before, after| after.0 - before.0 < 1.5)
        .collect()
}

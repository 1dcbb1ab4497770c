//! *Plots* of what grows with the number of flows, as SVG for docs/overhead.md: one for each unit, both axes by powers of
//! ten.

use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::figure::{Figure, Table};
use super::row;
use crate::font;

const SIZE: (u32, u32) = (640, 320);

/// A picture: its name, its title, and the rows that it shows.
const PLOTS: [(&str, &str, &[&str]); 3] = [
    (
        "growth-packet",
        "ENTER on a packet of a known flow, ns, by live flows",
        &[row::GROWTH_ENTER],
    ),
    (
        "growth-sweep",
        "Once a second and at a scrape, ms, by live flows",
        &[row::GROWTH_SWEEP, row::GROWTH_SCRAPE],
    ),
    (
        "growth-memory",
        "Memory, MiB, by live flows",
        &[row::GROWTH_TABLES, row::GROWTH_MEMORY],
    ),
];

/// Told apart also by people who do not see all colours (Okabe and Ito).
const COLOURS: [RGBColor; 2] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0)];

/// Writes all of them into a directory; returns their names. None without figures of [`Table::Growth`].
///
/// # Errors
/// When the font is not there, or a file cannot be written.
pub fn write(figures: &[Figure], directory: &Path) -> Result<Vec<String>> {
    let lines: Vec<_> = PLOTS
        .iter()
        .map(|(name, title, rows)| (*name, *title, rows, series(figures, rows)))
        .filter(|(.., series)| series.iter().all(|points| points.len() > 1))
        .collect();
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    font::register()?;
    fs::create_dir_all(directory)?;
    let mut names = Vec::new();
    for (name, title, rows, series) in lines {
        let file = format!("{name}.svg");
        draw(&directory.join(&file), title, rows, &series).map_err(|e| anyhow!("{file}: {e}"))?;
        names.push(file);
    }
    Ok(names)
}

/// The points of each row: flows, and the median.
fn series(figures: &[Figure], rows: &[&str]) -> Vec<Vec<(f64, f64)>> {
    let of = |row: &&str| {
        let mut points: Vec<(f64, f64)> = figures
            .iter()
            .filter(|f| f.table == Table::Growth && f.row == **row && f.median > 0.0)
            .filter_map(|f| Some((flows(&f.column)?, f.median)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    rows.iter().map(of).collect()
}

/// The number in a column's title.
fn flows(column: &str) -> Option<f64> {
    let digits: String = column.chars().filter(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn draw(
    path: &Path,
    title: &str,
    rows: &[&str],
    series: &[Vec<(f64, f64)>],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || series.iter().flatten();
    let bounds = |value: fn(&(f64, f64)) -> f64| {
        let (low, high) = all()
            .map(value)
            .fold((f64::MAX, f64::MIN), |(low, high), v| {
                (low.min(v), high.max(v))
            });
        (low / 1.5)..(high * 1.5)
    };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(52)
        .build_cartesian_2d(bounds(|p| p.0).log_scale(), bounds(|p| p.1).log_scale())?;
    chart
        .configure_mesh()
        .x_label_formatter(&|x| super::figure::number(*x))
        .y_label_formatter(&|y| super::figure::number(*y))
        .light_line_style(WHITE)
        .draw()?;
    for ((row, points), colour) in rows.iter().zip(series).zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(2),
            ))?
            .label(*row)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour.filled())))?;
    }
    if rows.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE)
            .draw()?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_a_line_of_its_medians_by_flows() {
        let figure = |flows, ns| {
            Figure::range(
                Table::Growth,
                row::GROWTH_ENTER,
                row::flows(flows),
                vec![ns],
            )
        };
        let figures = [figure(1_000_000, 300.0), figure(1_000, 30.0)];
        let lines = series(&figures, &[row::GROWTH_ENTER]);
        assert_eq!(lines, [[(1_000.0, 30.0), (1_000_000.0, 300.0)]]);
        // Without figures there is nothing to draw, and nothing is written.
        assert!(write(&[], Path::new("/nowhere")).unwrap().is_empty());
    }

    #[test]
    fn a_plot_names_what_it_shows() {
        if !Path::new(font::PATH).exists() {
            println!("skipped: no {}", font::PATH);
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let figures: Vec<Figure> = [1_000, 10_000, 1_000_000]
            .into_iter()
            .flat_map(|flows| {
                [row::GROWTH_SWEEP, row::GROWTH_SCRAPE].map(|row| {
                    Figure::range(
                        Table::Growth,
                        row,
                        row::flows(flows),
                        vec![f64::from(flows) / 1e4],
                    )
                })
            })
            .collect();
        assert_eq!(
            write(&figures, directory.path()).unwrap(),
            ["growth-sweep.svg"]
        );
        let text = fs::read_to_string(directory.path().join("growth-sweep.svg")).unwrap();
        assert!(
            text.contains(row::GROWTH_SWEEP) && text.contains("by live flows"),
            "{text}"
        );
    }
}

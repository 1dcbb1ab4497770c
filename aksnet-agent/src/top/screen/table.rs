//! *Columns*: which of them there is room for, how wide each is, and what a row reads.

use super::text;
use crate::live::Sort;

/// One column of a list of `T`.
pub struct Column<T: ?Sized, C> {
    /// Its head.
    pub title: &'static str,
    /// The measure that it shows, if the list can be sorted by it.
    pub sort: Option<Sort>,
    /// It is not narrower than this, nor wider than that.
    pub width: (usize, usize),
    /// Numbers stand at the right.
    pub right: bool,
    /// Where room is short, those with the greatest rank go.
    pub rank: u8,
    /// Its text, given how it is looked at.
    pub cell: fn(&T, &C) -> String,
}

impl<T: ?Sized, C> Column<T, C> {
    /// A column of words.
    #[must_use]
    pub const fn words(
        title: &'static str,
        width: (usize, usize),
        rank: u8,
        cell: fn(&T, &C) -> String,
    ) -> Self {
        Self {
            title,
            sort: None,
            width,
            right: false,
            rank,
            cell,
        }
    }

    /// A column of numbers.
    #[must_use]
    pub const fn numbers(
        title: &'static str,
        width: (usize, usize),
        rank: u8,
        cell: fn(&T, &C) -> String,
    ) -> Self {
        Self {
            right: true,
            ..Self::words(title, width, rank, cell)
        }
    }

    /// The list can be sorted by it.
    #[must_use]
    pub const fn by(self, sort: Sort) -> Self {
        Self {
            sort: Some(sort),
            ..self
        }
    }
}

/// Between two columns.
const GAP: usize = 1;
/// Columns of this rank and above are extras: they never squeeze the others below what is comfortable.
pub const EXTRA: u8 = 6;
/// What is comfortable for a column that could use more.
const COMFORT: usize = 26;

/// Which columns are shown, and how wide. `wanted` is the width that each one's text takes.
#[must_use]
pub fn layout<T: ?Sized, C>(
    columns: &[Column<T, C>],
    wanted: &[usize],
    room: usize,
) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..columns.len()).collect();
    order.sort_by_key(|at| columns[*at].rank);
    let mut taken = Vec::new();
    let (mut used, mut comfortable) = (0, 0);
    for at in order {
        let gap = if taken.is_empty() { 0 } else { GAP };
        let (least, most) = columns[at].width;
        let before = if columns[at].rank >= EXTRA {
            comfortable
        } else {
            used
        };
        if before + least + gap <= room {
            used += least + gap;
            comfortable += most.min(COMFORT).max(least) + gap;
            taken.push((at, least));
        } else if taken.is_empty() {
            used = room;
            taken.push((at, room));
        } else {
            // None of less worth takes its place: what is shown would jump as the room changes by little.
            break;
        }
    }
    taken.sort_unstable();
    // What is left goes to those that want more, a column each time, so that all get about the same.
    while used < room {
        let mut grew = false;
        for (at, width) in &mut taken {
            let most = wanted
                .get(*at)
                .copied()
                .unwrap_or(0)
                .min(columns[*at].width.1);
            if *width < most && used < room {
                *width += 1;
                used += 1;
                grew = true;
            }
        }
        if !grew {
            break;
        }
    }
    taken
}

/// How wide each column wants to be for these rows.
#[must_use]
pub fn wanted<'a, T: ?Sized + 'a, C>(
    columns: &[Column<T, C>],
    rows: impl Iterator<Item = &'a T>,
    context: &C,
) -> Vec<usize> {
    let mut widest: Vec<usize> = columns.iter().map(|c| text::width(c.title) + 1).collect();
    for row in rows {
        for (widest, column) in widest.iter_mut().zip(columns) {
            if column.width.0 < column.width.1 {
                *widest = (*widest).max(text::width(&text::clean(&(column.cell)(row, context))));
            }
        }
    }
    widest
}

/// A row's line.
#[must_use]
pub fn line<T: ?Sized, C>(
    columns: &[Column<T, C>],
    layout: &[(usize, usize)],
    row: &T,
    context: &C,
) -> String {
    join(layout.iter().map(|(at, width)| {
        let column = &columns[*at];
        let text = text::squeeze(&(column.cell)(row, context), *width);
        text::pad(&text, *width, column.right)
    }))
}

/// The heads' line; the one that the list is sorted by has an arrow.
#[must_use]
pub fn heads<T: ?Sized, C>(
    columns: &[Column<T, C>],
    layout: &[(usize, usize)],
    sorted: Option<(Sort, bool)>,
) -> String {
    join(layout.iter().map(|(at, width)| {
        let column = &columns[*at];
        let arrow = match sorted {
            Some((sort, reverse)) if column.sort == Some(sort) => {
                if reverse {
                    "▲"
                } else {
                    "▼"
                }
            }
            _ => "",
        };
        let title = format!("{}{arrow}", column.title);
        text::pad(&text::cut(&title, *width), *width, column.right)
    }))
}

fn join(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.collect();
    cells.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(title: &'static str, width: (usize, usize), rank: u8) -> Column<str, ()> {
        Column::words(title, width, rank, |row: &str, ()| row.to_owned()).by(Sort::Bytes)
    }

    #[test]
    fn what_matters_least_goes_first_and_what_is_left_is_shared() {
        let columns = [
            column("A", (4, 10), 0),
            column("B", (4, 4), 2),
            column("C", (4, 30), 1),
        ];
        let all = |room| layout(&columns, &[10, 4, 12], room);
        assert_eq!(all(14), [(0, 4), (1, 4), (2, 4)]);
        assert_eq!(all(13), [(0, 6), (2, 6)]);
        assert_eq!(all(9), [(0, 4), (2, 4)]);
        assert_eq!(all(3), [(0, 3)]);
        assert_eq!(all(0), [(0, 0)]);
        // Nobody takes more than they want.
        assert_eq!(all(100), [(0, 10), (1, 4), (2, 12)]);
        let columns = [column("A", (4, 60), 0), column("B", (4, 4), EXTRA)];
        assert_eq!(layout(&columns, &[40, 4], 30), [(0, 30)]);
        assert_eq!(layout(&columns, &[40, 4], 31), [(0, 26), (1, 4)]);
    }

    #[test]
    fn heads_and_rows_are_aligned_whatever_is_in_them() {
        let columns = [column("A", (4, 8), 0), column("B", (4, 8), 0)];
        let layout = [(0, 8), (1, 8)];
        let heads = heads(&columns, &layout, Some((Sort::Bytes, false)));
        assert_eq!(heads, "A▼       B▼      ");
        for row in [
            "",
            "x",
            "日本語のポッド",
            "a\x1b[31mb",
            "a very long name of a pod",
        ] {
            assert_eq!(
                text::width(&line(&columns, &layout, row, &())),
                17,
                "{row:?}"
            );
        }
    }
}

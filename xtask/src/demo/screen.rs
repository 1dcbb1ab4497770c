//! A *screen*: lines that are drawn again in place on a terminal. Elsewhere only the last ones are printed, so that a
//! log does not fill with what a person would watch.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Result;

/// Where no terminal says how wide it is.
const WIDTH: usize = 120;

/// Lines that change in place.
pub(super) struct Screen {
    terminal: bool,
    shown: Vec<String>,
}

impl Screen {
    /// An empty one below what was printed so far.
    pub(super) fn new() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            shown: Vec::new(),
        }
    }

    /// Shows these lines in place of those before.
    pub(super) fn show(&mut self, lines: Vec<String>) -> Result<()> {
        if self.terminal {
            let mut text = String::new();
            if !self.shown.is_empty() {
                // Up to the first line, and clear from there on.
                text = format!("\u{1b}[{}A\u{1b}[J", self.shown.len());
            }
            let width = width();
            for line in &lines {
                // A line that wraps would be two.
                text.extend(line.chars().take(width));
                text.push('\n');
            }
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        self.shown = lines;
        Ok(())
    }

    /// Leaves the last lines as they are.
    pub(super) fn finish(self) {
        if !self.terminal {
            for line in self.shown {
                println!("{line}");
            }
        }
    }
}

/// The terminal's columns.
pub(super) fn width() -> usize {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call writes one `winsize`, or fails and leaves it as it is.
    unsafe {
        libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size);
    }
    match usize::from(size.ws_col) {
        0 => WIDTH,
        columns => columns,
    }
}

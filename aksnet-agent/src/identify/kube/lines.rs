//! Cuts a watch into its lines, one event each, while it arrives.

use super::pages::LONGEST;

/// Cuts one watch.
#[derive(Debug)]
pub(super) struct Lines {
    /// The part of the current line that came with earlier pieces.
    line: Vec<u8>,
    /// The current line is too long and is left out.
    skipping: bool,
    longest: usize,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self {
            line: Vec::new(),
            skipping: false,
            // An event is an object and a few words around it.
            longest: LONGEST,
        }
    }

    /// Takes the next piece and calls `found` with each line that is complete and not empty; with none for one that
    /// is too long. What a connection that breaks leaves behind is no line.
    pub(super) fn push(&mut self, piece: &[u8], mut found: impl FnMut(Option<&[u8]>)) {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (last, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if self.line.is_empty() && !self.skipping && last.len() <= self.longest {
                if !last.trim_ascii().is_empty() {
                    found(Some(last));
                }
                continue;
            }
            self.keep(last);
            if self.skipping || !self.line.trim_ascii().is_empty() {
                found((!self.skipping).then_some(&self.line[..]));
            }
            self.skipping = false;
            self.line.clear();
        }
        self.keep(rest);
    }

    fn keep(&mut self, part: &[u8]) {
        if self.skipping || self.line.len() + part.len() > self.longest {
            self.skipping = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &[u8], size: usize, longest: usize) -> Vec<Option<String>> {
        let mut lines = Lines {
            longest,
            ..Lines::new()
        };
        let mut found = Vec::new();
        for piece in text.chunks(size) {
            lines.push(piece, |line| {
                found.push(line.map(|line| String::from_utf8_lossy(line).into_owned()));
            });
        }
        found
    }

    #[test]
    fn lines_are_cut_wherever_the_pieces_end() {
        for size in 1..20 {
            let lines = cut(b"one\n\ntwo\r\n \nthree", size, 100);
            assert_eq!(lines, [Some("one".to_owned()), Some("two\r".to_owned())]);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_left_out_and_told() {
        for size in 1..20 {
            let lines = cut(b"one\n0123456789\ntwo\n", size, 5);
            assert_eq!(
                lines,
                [Some("one".to_owned()), None, Some("two".to_owned())]
            );
        }
    }
}

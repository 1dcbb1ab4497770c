//! Foreign text in a message of one line.

use std::fmt::{self, Display, Formatter, Write as _};

/// The text with its control characters as Rust writes them in a string: a line feed in what is quoted makes no second
/// line of a message, and an escape sequence does not steer the terminal.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_nothing_else() {
        let text = "it's \"ä\"\n\u{1b}[2J\u{9b}31m";
        assert_eq!(
            Escaped(text).to_string(),
            "it's \"ä\"\\n\\u{1b}[2J\\u{9b}31m"
        );
    }
}

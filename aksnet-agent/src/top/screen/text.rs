//! Text from outside, made fit to be shown: nothing in it moves the cursor or turns the writing round, and it is cut by
//! the columns that it takes, not by its characters.

use unicode_width::UnicodeWidthStr;

/// More than any column shows; what is longer is cut before it is measured.
const LONGEST: usize = 1_024;

/// Stands for what is not shown.
const HIDDEN: char = '\u{fffd}';

/// The same text without control characters, and without what changes the direction of writing or shows as nothing.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars()
        .take(LONGEST)
        .map(|c| if is_plain(c) { c } else { HIDDEN })
        .collect()
}

fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// How many columns it takes.
#[must_use]
pub fn width(text: &str) -> usize {
    text.width()
}

/// The beginning of it that takes at most so many columns.
fn head(text: &str, columns: usize) -> &str {
    let mut end = 0;
    for (at, c) in text.char_indices() {
        let next = at + c.len_utf8();
        if text[..next].width() > columns {
            break;
        }
        end = next;
    }
    &text[..end]
}

/// The end of it that takes at most so many columns.
fn tail(text: &str, columns: usize) -> &str {
    let mut start = text.len();
    for (at, _) in text.char_indices().rev() {
        if text[at..].width() > columns {
            break;
        }
        start = at;
    }
    let rest = &text[start..];
    // A mark without the letter that it belongs to would go to the cut.
    rest.trim_start_matches(|c: char| c.to_string().width() == 0)
}

/// Cuts the end off: `frontend-7d4b…`.
#[must_use]
pub fn cut(text: &str, columns: usize) -> String {
    let text = clean(text);
    if text.width() <= columns {
        return text;
    }
    match columns {
        0 => String::new(),
        _ => format!("{}…", head(&text, columns - 1)),
    }
}

/// Cuts the middle out, as the ends of pods' names and of addresses with ports tell them apart: `front…x2k9p:80`.
#[must_use]
pub fn squeeze(text: &str, columns: usize) -> String {
    let text = clean(text);
    if text.width() <= columns {
        return text;
    }
    if columns < 8 {
        return cut(&text, columns);
    }
    let end = (columns - 1) / 2;
    let rest = tail(&text, end);
    let start = head(&text, columns - 1 - rest.width());
    format!("{start}…{rest}")
}

/// The text and blanks, or blanks and the text, of exactly so many columns.
#[must_use]
pub fn pad(text: &str, columns: usize, right: bool) -> String {
    let blanks = " ".repeat(columns.saturating_sub(text.width()));
    if right {
        format!("{blanks}{text}")
    } else {
        format!("{text}{blanks}")
    }
}

/// Lines of at most so many columns, broken at blanks where there are any.
#[must_use]
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in clean(text).split_whitespace() {
        let mut word = word;
        if !line.is_empty() && line.width() + 1 + word.width() > columns {
            lines.push(std::mem::take(&mut line));
        }
        while word.width() > columns {
            let part = head(word, columns);
            if part.is_empty() {
                // A letter wider than the line.
                word = "";
                break;
            }
            lines.push(part.to_owned());
            word = &word[part.len()..];
        }
        if !word.is_empty() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(clean("a\x1b[2Jb\r\n\t\u{9b}c"), "a�[2Jb����c");
        assert_eq!(clean("\u{202e}gnp.exe\u{2066}"), "�gnp.exe�");
        assert_eq!(clean("web-é"), "web-é");
    }

    #[test]
    fn cuts_are_by_columns() {
        assert_eq!(cut("frontend", 8), "frontend");
        assert_eq!(cut("frontend", 6), "front…");
        // Each of these letters takes two.
        assert_eq!(cut("日本語のポッド", 7), "日本語…");
        assert_eq!(cut("日本語のポッド", 6), "日本…");
        // A letter and its mark are one.
        assert_eq!(
            cut("e\u{301}e\u{301}e\u{301}", 3),
            "e\u{301}e\u{301}e\u{301}"
        );
        assert_eq!(
            squeeze("shop/frontend-7d4b9c6f5d-x2k9p:40000", 20),
            "shop/front…k9p:40000"
        );
        assert_eq!(cut("x", 0), "");
    }

    #[test]
    fn long_words_are_broken_where_there_is_no_blank() {
        assert_eq!(
            wrap("policy shop/web isolates", 11),
            ["policy", "shop/web", "isolates"]
        );
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("", 3), [""; 0]);
    }

    proptest! {
        #[test]
        fn whatever_it_is_it_fits(text in any::<String>(), columns in 0usize..60) {
            prop_assert!(width(&cut(&text, columns)) <= columns);
            prop_assert!(width(&squeeze(&text, columns)) <= columns);
            for line in wrap(&text, columns.max(2)) {
                prop_assert!(width(&line) <= columns.max(2), "{line:?}");
            }
            prop_assert!(width(&pad(&cut(&text, columns), columns, false)) == columns);
        }
    }
}

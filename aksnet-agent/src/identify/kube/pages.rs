//! Cuts a list into its items while it arrives.
//!
//! The API server may answer with a whole collection at once, whatever page size was asked for (see `list`), and
//! 150,000 pods are more than a gigabyte of JSON. So no page is ever held: each object is handed on when its last byte
//! is there, and what is around the objects is kept to be read at the end. An object that is broken in itself does not
//! spoil its neighbours.

/// No object is longer: etcd takes 1.5 MiB by default, and JSON of what it holds is a few times as long at most.
pub(super) const LONGEST: usize = 8 << 20;
/// Nor is what stands around the objects.
const LONGEST_FRAME: usize = 64 << 10;

/// Why a list cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It ends in the middle.
    Truncated,
    /// It is no JSON list.
    Garbage,
}

/// Where in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Around the items.
    Frame,
    /// After the key `items` of the outermost object.
    Key,
    /// In the list of items, between them.
    Items,
    /// In an item.
    Item,
}

/// Where in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Outside,
    Inside,
    /// After a backslash.
    Escaped,
}

/// Cuts one page.
#[derive(Debug)]
pub(super) struct Pages {
    /// Everything but the items.
    frame: Vec<u8>,
    /// The part of the current item that came with earlier pieces.
    item: Vec<u8>,
    /// The current item is too long and is left out.
    skipping: bool,
    longest: usize,
    /// How many brackets are open.
    depth: u32,
    text: Text,
    place: Place,
    /// Where the string that was last seen begins in the frame.
    key: usize,
}

impl Pages {
    pub(super) fn new() -> Self {
        Self::with_longest(LONGEST)
    }

    fn with_longest(longest: usize) -> Self {
        Self {
            frame: Vec::new(),
            item: Vec::new(),
            skipping: false,
            longest,
            depth: 0,
            text: Text::Outside,
            place: Place::Frame,
            key: 0,
        }
    }

    /// Takes the next piece and calls `found` with each item that is complete; with none for one that is too long.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        mut found: impl FnMut(Option<&[u8]>),
    ) -> Result<(), Broken> {
        // Where the current item begins in this piece.
        let mut start = 0;
        for (at, &byte) in piece.iter().enumerate() {
            if self.text != Text::Outside {
                self.string(byte);
                continue;
            }
            if self.depth == 2 && self.place == Place::Item && matches!(byte, b',' | b']') {
                self.end_item(&piece[start..at], &mut found);
            }
            if self.depth == 2 && self.place == Place::Items {
                match byte {
                    b',' | b' ' | b'\t' | b'\r' | b'\n' => continue,
                    b']' => self.place = Place::Frame,
                    _ => {
                        self.place = Place::Item;
                        start = at;
                    }
                }
            }
            self.outside(byte)?;
        }
        if self.place == Place::Item {
            self.keep(&piece[start..]);
        }
        let over = self.depth == 0 && !is_blank(&self.frame) && !self.closed();
        if self.frame.len() > LONGEST_FRAME || over {
            return Err(Broken::Garbage);
        }
        Ok(())
    }

    /// A byte inside of a string.
    fn string(&mut self, byte: u8) {
        self.text = match (self.text, byte) {
            (Text::Inside, b'\\') => Text::Escaped,
            (Text::Inside, b'"') => Text::Outside,
            _ => Text::Inside,
        };
        if self.place == Place::Item {
            return;
        }
        self.frame.push(byte);
        if self.text == Text::Outside && self.depth == 1 {
            self.place = match self.frame.get(self.key..) {
                Some(b"\"items\"") => Place::Key,
                _ => Place::Frame,
            };
        }
    }

    /// A byte outside of strings.
    fn outside(&mut self, byte: u8) -> Result<(), Broken> {
        match byte {
            b'"' => {
                self.text = Text::Inside;
                self.key = self.frame.len();
            }
            b'{' | b'[' => {
                if self.depth == 1 && self.place == Place::Key {
                    self.place = if byte == b'[' {
                        Place::Items
                    } else {
                        Place::Frame
                    };
                }
                self.depth += 1;
            }
            b'}' | b']' => self.depth = self.depth.checked_sub(1).ok_or(Broken::Garbage)?,
            b',' if self.place == Place::Key => self.place = Place::Frame,
            _ => {}
        }
        if self.place != Place::Item {
            self.frame.push(byte);
        }
        Ok(())
    }

    fn keep(&mut self, part: &[u8]) {
        if self.skipping || self.item.len() + part.len() > self.longest {
            self.skipping = true;
            self.item = Vec::new();
        } else {
            self.item.extend_from_slice(part);
        }
    }

    fn end_item(&mut self, last: &[u8], found: &mut impl FnMut(Option<&[u8]>)) {
        self.place = Place::Items;
        if self.item.is_empty() && !self.skipping && last.len() <= self.longest {
            found(Some(last));
            return;
        }
        self.keep(last);
        found((!self.skipping).then_some(&self.item[..]));
        self.skipping = false;
        self.item.clear();
    }

    /// The outermost object is complete.
    fn closed(&self) -> bool {
        self.depth == 0 && self.frame.trim_ascii_end().ends_with(b"}")
    }

    /// What stood around the items: the list without them.
    pub(super) fn finish(self) -> Result<Vec<u8>, Broken> {
        if is_blank(&self.frame) || self.depth > 0 || self.text != Text::Outside {
            return Err(Broken::Truncated);
        }
        if self.closed() {
            Ok(self.frame)
        } else {
            Err(Broken::Garbage)
        }
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.trim_ascii().is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn cut(pieces: &[&[u8]], longest: usize) -> Result<(Vec<Option<String>>, String), Broken> {
        let mut pages = Pages::with_longest(longest);
        let mut items = Vec::new();
        for piece in pieces {
            pages.push(piece, |item| {
                items.push(item.map(|item| String::from_utf8_lossy(item).into_owned()));
            })?;
        }
        let frame = pages.finish()?;
        Ok((items, String::from_utf8_lossy(&frame).into_owned()))
    }

    const LIST: &str = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","items":[9]},"x":"items",
        "items": [ {"a":"]}\"items\":["},{"items":[1,[2]]} , 5,null,"a,\"b" ],"end":true}"#;

    #[test]
    fn items_are_cut_wherever_the_pieces_end() {
        let expected = [
            r#"{"a":"]}\"items\":["}"#,
            r#"{"items":[1,[2]]} "#,
            "5",
            "null",
            r#""a,\"b" "#,
        ];
        for size in 1..LIST.len() {
            let pieces: Vec<&[u8]> = LIST.as_bytes().chunks(size).collect();
            let (items, frame) = cut(&pieces, LONGEST).unwrap();
            let items: Vec<String> = items.into_iter().flatten().collect();
            assert_eq!(items, expected, "pieces of {size}");
            let frame: Value = serde_json::from_str(&frame).unwrap();
            assert_eq!(frame["items"], serde_json::json!([]));
            assert_eq!(frame["metadata"]["resourceVersion"], "7");
            assert_eq!(frame["end"], true);
        }
    }

    #[test]
    fn an_item_that_is_too_long_is_left_out_and_told() {
        for size in [1, 3, 1000] {
            let list = br#"{"items":[{"a":1},{"b":"0123456789"},{"c":2}]}"#;
            let pieces: Vec<&[u8]> = list.chunks(size).collect();
            let (items, _) = cut(&pieces, 10).unwrap();
            let short = |text: &str| Some(text.to_owned());
            assert_eq!(items, [short(r#"{"a":1}"#), None, short(r#"{"c":2}"#)]);
        }
    }

    #[test]
    fn what_ends_in_the_middle_is_truncated() {
        for end in 0..LIST.len() {
            let result = cut(&[&LIST.as_bytes()[..end]], LONGEST);
            assert_eq!(result, Err(Broken::Truncated), "cut at {end}");
        }
    }

    #[test]
    fn what_is_no_list_is_garbage() {
        for text in ["<html>gateway</html>", "null", "}", "{}}", "[1"] {
            assert!(cut(&[text.as_bytes()], LONGEST).is_err(), "{text}");
        }
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(LONGEST_FRAME));
        assert_eq!(cut(&[long.as_bytes()], LONGEST), Err(Broken::Garbage));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..8)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = cut(&pieces, 16);
        }

        #[test]
        fn any_brackets_are_survived(text in "[\\[\\]{}\",:items\\\\ 0]{0,200}", size in 1_usize..20) {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            if let Ok((items, _)) = cut(&pieces, 16) {
                prop_assert!(items.iter().flatten().all(|item| item.len() <= 16));
            }
        }
    }
}

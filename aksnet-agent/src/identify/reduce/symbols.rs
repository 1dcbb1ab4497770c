//! *Symbols*: strings and label sets that many objects share, kept once.

use std::{collections::HashSet, sync::Arc};

use crate::identify::object::{Labels, Text};

/// Below this many nothing is looked through for what nobody uses any more.
const FEW: usize = 4096;

/// The strings and label sets in use.
#[derive(Debug)]
pub(super) struct Symbols {
    texts: HashSet<Text>,
    labels: HashSet<Labels>,
    /// So many may there be before the unused ones are dropped.
    room: usize,
}

impl Default for Symbols {
    fn default() -> Self {
        Self {
            texts: HashSet::new(),
            labels: HashSet::new(),
            room: FEW,
        }
    }
}

impl Symbols {
    /// The shared string that reads so.
    pub(super) fn text(&mut self, text: &str) -> Text {
        if text.is_empty() {
            return Text::default();
        }
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        self.make_room();
        let new = Text::from(text);
        self.texts.insert(Arc::clone(&new));
        new
    }

    /// The shared label set with these labels, which are put in order.
    pub(super) fn labels(&mut self, mut labels: Vec<(Text, Text)>) -> Labels {
        labels.sort_unstable();
        // Of a key that stands there twice the last one counts, but which came last is not known any more.
        labels.dedup_by(|a, b| a.0 == b.0);
        if let Some(known) = self.labels.get(labels.as_slice()) {
            return Arc::clone(known);
        }
        self.make_room();
        let new = Labels::from(labels);
        self.labels.insert(Arc::clone(&new));
        new
    }

    /// Drops what only this table still holds, whenever it has doubled since the last time.
    fn make_room(&mut self) {
        if self.texts.len() + self.labels.len() < self.room {
            return;
        }
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.room = FEW.max(2 * (self.texts.len() + self.labels.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_and_label_sets_are_kept_once() {
        let mut symbols = Symbols::default();
        let (a, b) = (symbols.text("node-1"), symbols.text("node-1"));
        assert!(Arc::ptr_eq(&a, &b));
        let (k, v) = (symbols.text("k"), symbols.text("v"));
        let one = symbols.labels(vec![(k.clone(), v.clone()), (a.clone(), v.clone())]);
        let two = symbols.labels(vec![(a, v.clone()), (k, v)]);
        assert!(Arc::ptr_eq(&one, &two));
    }

    #[test]
    fn what_nobody_uses_goes() {
        let mut symbols = Symbols::default();
        let kept = symbols.text("kept");
        for n in 0..3 * FEW {
            let value = symbols.text(&n.to_string());
            symbols.labels(vec![(kept.clone(), value)]);
        }
        assert!(symbols.texts.len() + symbols.labels.len() <= FEW);
        assert!(Arc::ptr_eq(&kept, &symbols.text("kept")));
    }
}

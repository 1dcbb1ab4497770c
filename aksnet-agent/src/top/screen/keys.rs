//! The key table: every key, what it does, and how the help says it. Nothing else knows a key.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::app::View;

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Shows a view.
    Show(View),
    /// The view to the right, round at the end.
    NextView,
    /// The view to the left.
    PreviousView,
    /// So many rows down, or up.
    Move(isize),
    /// So many screens down, or up.
    Page(isize),
    /// The first row.
    First,
    /// The last row.
    Last,
    /// Details of the selected row, or its flows.
    Open,
    /// Closes what is open; else forgets the filter.
    Back,
    /// Asks for words to find.
    Words,
    /// Asks for a namespace.
    Namespace,
    /// The next class that there is.
    Class,
    /// The next kind of NAT.
    Nat,
    /// The next order.
    Sort,
    /// The order before.
    SortBack,
    /// Turns the order round.
    Reverse,
    /// Bits or bytes.
    Units,
    /// Workloads, pods or addresses.
    Names,
    /// Holds what is shown.
    Pause,
    /// Looks more often.
    Faster,
    /// Looks less often.
    Slower,
    /// Shows or hides the keys.
    Help,
    /// Ends.
    Quit,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// Any of these.
    pub keys: &'static [(KeyCode, bool)],
    /// What it does.
    pub action: Action,
    /// What the help says.
    pub help: &'static str,
    /// What the bottom line says; empty: nothing.
    pub hint: &'static str,
}

const fn key(c: char) -> (KeyCode, bool) {
    (KeyCode::Char(c), false)
}

const fn named(code: KeyCode) -> (KeyCode, bool) {
    (code, false)
}

const fn control(c: char) -> (KeyCode, bool) {
    (KeyCode::Char(c), true)
}

macro_rules! binding {
    ([$($key:expr),+], $action:expr, $help:literal) => {
        binding!([$($key),+], $action, $help, "")
    };
    ([$($key:expr),+], $action:expr, $help:literal, $hint:literal) => {
        Binding { keys: &[$($key),+], action: $action, help: $help, hint: $hint }
    };
}

/// The table.
pub const BINDINGS: &[Binding] = &[
    binding!(
        [key('?'), key('h'), named(KeyCode::F(1))],
        Action::Help,
        "show or hide this help",
        "help"
    ),
    binding!(
        [key('1')],
        Action::Show(View::Flows),
        "flows: every direction of every connection"
    ),
    binding!(
        [key('2')],
        Action::Show(View::Workloads),
        "workloads: who talks to whom"
    ),
    binding!(
        [key('3')],
        Action::Show(View::Nat),
        "NAT: what it costs, ports, translations"
    ),
    binding!(
        [key('4')],
        Action::Show(View::Drops),
        "drops: cause, policy, who to whom, why"
    ),
    binding!(
        [key('5')],
        Action::Show(View::Node),
        "node: what it is, what is used up"
    ),
    binding!(
        [named(KeyCode::Tab), named(KeyCode::Right)],
        Action::NextView,
        "next view",
        "view"
    ),
    binding!(
        [named(KeyCode::BackTab), named(KeyCode::Left)],
        Action::PreviousView,
        "previous view"
    ),
    binding!([named(KeyCode::Down), key('j')], Action::Move(1), "down"),
    binding!([named(KeyCode::Up), key('k')], Action::Move(-1), "up"),
    binding!(
        [named(KeyCode::PageDown), control('f')],
        Action::Page(1),
        "a screen down"
    ),
    binding!(
        [named(KeyCode::PageUp), control('b')],
        Action::Page(-1),
        "a screen up"
    ),
    binding!([named(KeyCode::Home), key('g')], Action::First, "first row"),
    binding!([named(KeyCode::End), key('G')], Action::Last, "last row"),
    binding!(
        [named(KeyCode::Enter)],
        Action::Open,
        "details of the row; a pair's flows",
        "open"
    ),
    binding!(
        [named(KeyCode::Esc)],
        Action::Back,
        "close; then forget the filter"
    ),
    binding!(
        [key('/')],
        Action::Words,
        "filter by words: name, address, port, protocol",
        "filter"
    ),
    binding!([key('n')], Action::Namespace, "filter by namespace"),
    binding!(
        [key('c')],
        Action::Class,
        "filter by class: the next one there is"
    ),
    binding!(
        [key('x')],
        Action::Nat,
        "filter by NAT: any, translated, snat, dnat, both, none"
    ),
    binding!([key('s')], Action::Sort, "sort by the next measure", "sort"),
    binding!([key('S')], Action::SortBack, "sort by the measure before"),
    binding!([key('r')], Action::Reverse, "turn the order round"),
    binding!([key('u')], Action::Units, "rates in bits or bytes"),
    binding!([key('a')], Action::Names, "workloads, pods or addresses"),
    binding!(
        [key('p'), key(' ')],
        Action::Pause,
        "hold what is shown, or go on",
        "pause"
    ),
    binding!([key('+')], Action::Faster, "look more often"),
    binding!([key('-')], Action::Slower, "look less often"),
    binding!([key('q'), control('c')], Action::Quit, "quit", "quit"),
];

/// What a pressed key does; `None`: nothing.
#[must_use]
pub fn action(event: &KeyEvent) -> Option<Action> {
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    if event.modifiers.contains(KeyModifiers::ALT) {
        return None;
    }
    let pressed = (event.code, control);
    BINDINGS
        .iter()
        .find(|binding| binding.keys.contains(&pressed))
        .map(|binding| binding.action)
}

impl Binding {
    /// The keys as people call them: `q Ctrl-C`.
    #[must_use]
    pub fn shown(&self) -> String {
        let names: Vec<String> = self.keys.iter().map(|key| name(*key)).collect();
        names.join(" ")
    }

    /// The first of them.
    #[must_use]
    pub fn first(&self) -> String {
        self.keys.first().map(|key| name(*key)).unwrap_or_default()
    }
}

fn name((code, control): (KeyCode, bool)) -> String {
    let name = match code {
        KeyCode::Char(' ') => "Space".to_owned(),
        KeyCode::Char(c) if control => c.to_ascii_uppercase().to_string(),
        KeyCode::Char(c) => c.to_string(),
        KeyCode::Down => "↓".to_owned(),
        KeyCode::Up => "↑".to_owned(),
        KeyCode::Left => "←".to_owned(),
        KeyCode::Right => "→".to_owned(),
        KeyCode::PageDown => "PgDn".to_owned(),
        KeyCode::PageUp => "PgUp".to_owned(),
        KeyCode::BackTab => "Shift-Tab".to_owned(),
        KeyCode::F(n) => format!("F{n}"),
        other => format!("{other:?}"),
    };
    if control {
        format!("Ctrl-{name}")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_does_two_things() {
        let all: Vec<_> = BINDINGS.iter().flat_map(|b| b.keys).collect();
        for (at, key) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(key), "{key:?}");
        }
    }

    #[test]
    fn keys_have_the_names_that_keyboards_have() {
        let shown = |action| {
            let binding = BINDINGS.iter().find(|b| b.action == action);
            binding.map(Binding::shown).unwrap_or_default()
        };
        assert_eq!(shown(Action::Quit), "q Ctrl-C");
        assert_eq!(shown(Action::Pause), "p Space");
        assert_eq!(shown(Action::Page(1)), "PgDn Ctrl-F");
        assert_eq!(shown(Action::PreviousView), "Shift-Tab ←");
        assert_eq!(shown(Action::Open), "Enter");
    }

    #[test]
    fn the_page_has_every_key() {
        let page = include_str!("../../../../docs/top.md");
        for binding in BINDINGS {
            let row = format!("| {} | {} |", binding.shown(), binding.help);
            assert!(page.contains(&row), "docs/top.md lacks: {row}");
        }
    }
}

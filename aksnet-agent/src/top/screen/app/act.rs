//! What a key makes of the state.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    super::{
        keys::{self, Action},
        text,
    },
    App, Names, Prompt, TRANSLATED, View,
};
use crate::{
    live::{Choice, Filter, Sort},
    top::model::Who,
};

/// Seconds between looks that there are keys for.
const INTERVALS: [f64; 7] = [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// No filter is longer.
const LONGEST_FILTER: usize = 200;

/// Choices of NAT, in the order of their key.
const NATS: [&[&str]; 6] = [&[], &TRANSLATED, &["snat"], &["dnat"], &["both"], &["none"]];

impl App {
    /// A key was pressed. True if it ends the program.
    pub(super) fn key(&mut self, key: &KeyEvent) -> bool {
        if self.prompt.is_some() {
            return self.prompted(key);
        }
        let Some(action) = keys::action(key) else {
            return false;
        };
        self.notice = None;
        if self.help && self.help_acts(action) {
            return false;
        }
        match action {
            Action::Quit => return true,
            Action::Show(view) => self.show(view),
            Action::NextView => self.show(View::ALL[(self.view as usize + 1) % View::ALL.len()]),
            Action::PreviousView => {
                let last = View::ALL.len() - 1;
                self.show(View::ALL[(self.view as usize + last) % View::ALL.len()]);
            }
            Action::Move(rows) => self.go(self.cursor().saturating_add_signed(rows)),
            Action::Page(pages) => {
                let rows = isize::try_from(self.page.max(1)).unwrap_or(1);
                self.go(self
                    .cursor()
                    .saturating_add_signed(pages.saturating_mul(rows)));
            }
            Action::First => {
                self.go(0);
                self.cursors[self.view as usize].id.clear();
            }
            Action::Last => self.go(usize::MAX),
            Action::Open => self.open(),
            Action::Back => self.back(),
            Action::Words => {
                let text = self.filter.text.clone();
                self.prompt = Some(Prompt { words: true, text });
            }
            Action::Namespace => {
                let text = self.filter.namespace.clone().unwrap_or_default();
                self.prompt = Some(Prompt { words: false, text });
            }
            Action::Class => self.next_class(),
            Action::Nat => self.next_nat(),
            Action::Sort => self.sort_by(1),
            Action::SortBack => self.sort_by(Sort::ALL.len() - 1),
            Action::Reverse => {
                self.reverse = !self.reverse;
                self.arrange();
                self.settle();
            }
            Action::Units => self.bits = !self.bits,
            Action::Names => {
                self.names = match self.names {
                    Names::Workloads => Names::Pods,
                    Names::Pods => Names::Addresses,
                    Names::Addresses => Names::Workloads,
                };
            }
            Action::Pause => self.paused = !self.paused,
            Action::Faster => self.look_every(|every, now| every < now, true),
            Action::Slower => self.look_every(|every, now| every > now, false),
            Action::Help => {
                self.help = !self.help;
                self.help_at = 0;
            }
        }
        false
    }

    /// While the help is open: true if that was all that the key does.
    fn help_acts(&mut self, action: Action) -> bool {
        let by = match action {
            Action::Move(rows) => rows,
            Action::Page(pages) => pages.saturating_mul(10),
            Action::Back | Action::Open => {
                self.help = false;
                return true;
            }
            Action::First => isize::MIN,
            Action::Help | Action::Quit => return false,
            _ => {
                self.help = false;
                return false;
            }
        };
        self.help_at = self
            .help_at
            .saturating_add_signed(by)
            .min(keys::BINDINGS.len());
        true
    }

    fn show(&mut self, view: View) {
        if view != self.view {
            self.view = view;
            self.detail = false;
            self.settle();
        }
    }

    fn open(&mut self) {
        match self.view {
            View::Flows | View::Nat | View::Drops => self.detail = !self.detail,
            View::Workloads => {
                let Some(pair) = self.workloads().nth(self.cursor()) else {
                    return;
                };
                let word = |who: &Who| match (&*who.namespace, &*who.workload) {
                    ("", "") => String::new(),
                    ("", workload) => workload.to_owned(),
                    (namespace, workload) => format!("{namespace}/{workload}"),
                };
                let words = [word(&pair.from), word(&pair.to)];
                words.join(" ").trim().clone_into(&mut self.filter.text);
                self.show(View::Flows);
                self.choose();
            }
            View::Node => {}
        }
    }

    fn back(&mut self) {
        if self.detail {
            self.detail = false;
        } else if self.filter != Filter::default() {
            self.filter = Filter::default();
            self.choose();
        }
    }

    /// The filter has changed.
    fn choose(&mut self) {
        match Choice::of(&self.filter) {
            Ok(choice) => self.choice = choice,
            Err(why) => {
                self.notice = Some(why);
                self.filter = Filter::default();
                self.choice = Choice::default();
            }
        }
        self.settle();
    }

    fn next_class(&mut self) {
        let nat = self.snapshot.as_ref().map(|snapshot| &snapshot.nat.classes);
        let mut classes: Vec<&str> = nat
            .into_iter()
            .flatten()
            .map(|c| c.class.as_str())
            .collect();
        classes.dedup();
        let next = match self.filter.class.first() {
            None => classes.first(),
            Some(now) => {
                let at = classes.iter().position(|class| class == now);
                at.and_then(|at| classes.get(at + 1))
            }
        };
        self.filter.class = next.map(|class| (*class).to_owned()).into_iter().collect();
        self.choose();
    }

    fn next_nat(&mut self) {
        let at = NATS.iter().position(|nat| self.filter.nat == *nat);
        let next = NATS[(at.unwrap_or(0) + 1) % NATS.len()];
        self.filter.nat = next.iter().map(|nat| (*nat).to_owned()).collect();
        self.choose();
    }

    fn sort_by(&mut self, by: usize) {
        let at = Sort::ALL.iter().position(|sort| *sort == self.sort);
        self.sort = Sort::ALL[(at.unwrap_or(0) + by) % Sort::ALL.len()];
        self.arrange();
        self.settle();
    }

    fn look_every(&mut self, fits: impl Fn(f64, f64) -> bool, last: bool) {
        let now = self.interval;
        let mut fitting = INTERVALS.into_iter().filter(|every| fits(*every, now));
        let next = if last { fitting.last() } else { fitting.next() };
        self.interval = next.unwrap_or(now);
    }

    fn prompted(&mut self, key: &KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return true,
            KeyCode::Char('u') if control => {
                if let Some(prompt) = &mut self.prompt {
                    prompt.text.clear();
                }
            }
            KeyCode::Char(c) if !control => self.typed(c),
            KeyCode::Backspace => {
                if let Some(prompt) = &mut self.prompt {
                    prompt.text.pop();
                }
            }
            KeyCode::Esc => self.prompt = None,
            KeyCode::Enter => {
                if let Some(prompt) = self.prompt.take() {
                    let text = prompt.text.trim().to_owned();
                    if prompt.words {
                        self.filter.text = text;
                    } else {
                        self.filter.namespace = (!text.is_empty()).then_some(text);
                    }
                    self.choose();
                }
            }
            _ => {}
        }
        false
    }

    /// A letter was typed, if somebody is asked for any.
    pub(super) fn typed(&mut self, c: char) {
        if let Some(prompt) = &mut self.prompt
            && prompt.text.len() < LONGEST_FILTER
            && text::clean(&c.to_string()) == c.to_string()
        {
            prompt.text.push(c);
        }
    }
}

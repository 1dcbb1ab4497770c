//! The state: what is shown, and what an event makes of it. Times are milliseconds of a clock that only goes forward.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    event::{Effect, Event},
    history::History,
    keys::{self, Action},
    text,
};
use crate::{
    droplog::DropRecord,
    live::{Choice, Filter, FlowId, LiveQuery, Snapshot, Sort, Workload},
    top::model::{Row, Timing},
};

/// One of the screens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Every direction of every connection.
    #[default]
    Flows,
    /// Who talks to whom.
    Workloads,
    /// What NAT does and costs.
    Nat,
    /// What is dropped.
    Drops,
    /// What the node is.
    Node,
}

impl View {
    /// All, in the order of their keys.
    pub const ALL: [Self; 5] = [
        Self::Flows,
        Self::Workloads,
        Self::Nat,
        Self::Drops,
        Self::Node,
    ];

    /// Its title.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Flows => "Flows",
            Self::Workloads => "Workloads",
            Self::Nat => "NAT",
            Self::Drops => "Drops",
            Self::Node => "Node",
        }
    }
}

/// How it is with the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Not there yet.
    Connecting,
    /// It answers.
    Up {
        /// It is our own, for as long as we look.
        own: bool,
    },
    /// It has gone.
    Gone {
        /// When it was lost.
        since: u64,
        /// When it is tried again.
        retry: u64,
    },
}

/// What stands for the end of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// `namespace/workload`.
    #[default]
    Workloads,
    /// `namespace/pod`.
    Pods,
    /// The address.
    Addresses,
}

/// What is being typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Words, or else a namespace.
    pub words: bool,
    /// So far.
    pub text: String,
}

/// Where somebody is in a list: the row stays selected wherever it goes.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    /// Its number.
    pub at: usize,
    /// What it is; empty: nothing was selected yet.
    id: String,
}

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seconds between looks.
    pub interval: f64,
    /// Rows per look.
    pub limit: usize,
    /// What comes first.
    pub sort: Sort,
    /// End after so many looks.
    pub count: Option<u64>,
}

/// The state.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is what one key switches on and off"
)]
#[derive(Clone, Debug)]
pub struct App {
    /// Which screen.
    pub view: View,
    /// How it is with the agent.
    pub link: Link,
    /// What came last, unless that is held.
    pub snapshot: Option<Box<Snapshot>>,
    /// When that was.
    pub received: u64,
    /// Now.
    pub now: u64,
    /// Whether it is held.
    pub paused: bool,
    /// What comes first.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
    /// What is chosen.
    pub filter: Filter,
    /// Rates are in bits.
    pub bits: bool,
    /// What stands for the end of a flow.
    pub names: Names,
    /// The details of the selected row are open.
    pub detail: bool,
    /// The help is open.
    pub help: bool,
    /// The first line of it that is shown.
    pub help_at: usize,
    /// What is being typed.
    pub prompt: Option<Prompt>,
    /// What the agent did not understand, or what there is to say.
    pub notice: Option<String>,
    /// What flows did before.
    pub history: History,
    /// Seconds between looks.
    pub interval: f64,
    /// Rows on a screen of the list, as drawn last.
    pub page: usize,
    choice: Choice,
    cursors: [Cursor; View::ALL.len()],
    limit: usize,
    left: Option<u64>,
}

/// Seconds between looks that there are keys for.
const INTERVALS: [f64; 7] = [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// No filter is longer.
const LONGEST_FILTER: usize = 200;

impl App {
    /// As it begins.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self {
            view: View::Flows,
            link: Link::Connecting,
            snapshot: None,
            received: 0,
            now: 0,
            paused: false,
            sort: options.sort,
            reverse: false,
            filter: Filter::default(),
            bits: true,
            names: Names::default(),
            detail: false,
            help: false,
            help_at: 0,
            prompt: None,
            notice: None,
            history: History::default(),
            interval: options.interval,
            page: 10,
            choice: Choice::default(),
            cursors: std::array::from_fn(|_| Cursor::default()),
            limit: options.limit,
            left: options.count,
        }
    }

    /// What to ask for this.
    #[must_use]
    pub fn query(&self) -> LiveQuery {
        let mut filter = self.filter.clone();
        if self.view == View::Nat && filter.nat.is_empty() {
            filter.nat = TRANSLATED.map(str::to_owned).into();
        }
        LiveQuery {
            interval: self.interval,
            limit: self.limit,
            sort: self.sort,
            reverse: self.reverse,
            filter,
            follow: self
                .detail
                .then(|| self.selected_flow().map(FlowId::of))
                .flatten(),
        }
    }

    /// Something happens at a time.
    pub fn on(&mut self, event: Event, now: u64) -> Vec<Effect> {
        self.now = self.now.max(now);
        let before = self.query();
        let mut effects = Vec::new();
        match event {
            Event::Key(key) if key.kind == KeyEventKind::Release => {}
            Event::Key(key) => {
                if self.key(&key) {
                    effects.push(Effect::Quit);
                }
            }
            Event::Paste(text) => {
                for c in text.chars().filter(|c| !c.is_control()) {
                    self.typed(c);
                }
            }
            Event::Resize | Event::Tick => {}
            Event::Snapshot(snapshot) => {
                self.take(snapshot);
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        effects.push(Effect::Quit);
                    }
                }
            }
            Event::Refused(why) => self.notice = Some(why),
            Event::Connected { own } => self.link = Link::Up { own },
            Event::Gone { retry_ms } => {
                let since = match self.link {
                    Link::Gone { since, .. } => since,
                    _ => self.now,
                };
                let retry = self.now + retry_ms;
                self.link = Link::Gone { since, retry };
            }
            Event::Stop => effects.push(Effect::Quit),
        }
        let after = self.query();
        if after != before {
            effects.push(Effect::Ask(Box::new(after)));
        }
        effects
    }

    fn take(&mut self, snapshot: Box<Snapshot>) {
        let rows = snapshot.flows.iter().chain(&snapshot.followed);
        self.history.add(rows);
        if self.paused && self.snapshot.is_some() {
            return;
        }
        self.snapshot = Some(snapshot);
        self.received = self.now;
        self.arrange();
        self.settle();
    }

    /// Puts the rows in order and leaves those that are chosen: the agent has done so, but perhaps for another question.
    fn arrange(&mut self) {
        let (sort, reverse) = (self.sort, self.reverse);
        let Some(snapshot) = &mut self.snapshot else {
            return;
        };
        let way = |order: std::cmp::Ordering| {
            if reverse { order.reverse() } else { order }
        };
        snapshot
            .flows
            .sort_by(|a, b| way(rank(b, sort, reverse).total_cmp(&rank(a, sort, reverse))));
        snapshot.workloads.sort_by(|a, b| {
            way(rank_pair(b, sort, reverse).total_cmp(&rank_pair(a, sort, reverse)))
        });
    }

    /// The cursor follows its row. A row that has gone leaves it where it is.
    fn settle(&mut self) {
        let ids = self.ids();
        let cursor = &mut self.cursors[self.view as usize];
        if let Some(at) = ids.iter().position(|id| *id == cursor.id) {
            cursor.at = at;
        } else {
            cursor.at = cursor.at.min(ids.len().saturating_sub(1));
            // At the top nothing was chosen on purpose: what comes first is what is looked at.
            cursor.id = match cursor.at {
                0 => String::new(),
                at => ids.get(at).cloned().unwrap_or_default(),
            };
        }
    }

    /// Where somebody is in this view.
    #[must_use]
    pub fn cursor(&self) -> usize {
        self.cursors[self.view as usize].at
    }

    fn go(&mut self, to: usize) {
        let ids = self.ids();
        let cursor = &mut self.cursors[self.view as usize];
        cursor.at = to.min(ids.len().saturating_sub(1));
        cursor.id = ids.get(cursor.at).cloned().unwrap_or_default();
    }

    /// What each row of this view is.
    fn ids(&self) -> Vec<String> {
        match self.view {
            View::Flows | View::Nat => self
                .flows()
                .map(|row| format!("{:?}", FlowId::of(row)))
                .collect(),
            View::Workloads => self
                .workloads()
                .map(|w| format!("{:?} {:?}", w.from, w.to))
                .collect(),
            View::Drops => self
                .records()
                .map(|r| {
                    let ends = [&r.src, &r.dst].map(|end| (end.address, end.port));
                    format!("{} {ends:?} {} {}", r.unix_ms, r.reason, r.location)
                })
                .collect(),
            // No row of the node's view is selected: the number is the first line shown.
            View::Node => (0..64).map(|line| line.to_string()).collect(),
        }
    }

    /// The flows that are chosen; in the view of NAT those that it translates.
    pub fn flows(&self) -> impl Iterator<Item = &Row> {
        let translated = self.view == View::Nat && self.filter.nat.is_empty();
        self.snapshot
            .iter()
            .flat_map(|snapshot| &snapshot.flows)
            .filter(move |row| self.choice.takes_row(row) && !(translated && row.nat == "none"))
    }

    /// The pairs that are chosen.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.snapshot
            .iter()
            .flat_map(|snapshot| &snapshot.workloads)
            .filter(|pair| self.choice.may_take_pair(pair))
    }

    /// The drops that are chosen, the latest first.
    pub fn records(&self) -> impl Iterator<Item = &DropRecord> {
        self.snapshot
            .iter()
            .flat_map(|snapshot| &snapshot.drops.records)
            .filter(|record| self.choice.takes_record(record))
    }

    /// The flow under the cursor, in the views that have flows.
    #[must_use]
    pub fn selected_flow(&self) -> Option<&Row> {
        matches!(self.view, View::Flows | View::Nat)
            .then(|| self.flows().nth(self.cursor()))
            .flatten()
    }

    /// The drop under the cursor.
    #[must_use]
    pub fn selected_drop(&self) -> Option<&DropRecord> {
        (self.view == View::Drops)
            .then(|| self.records().nth(self.cursor()))
            .flatten()
    }

    /// Whether what is shown is older than it should be.
    #[must_use]
    pub fn is_old(&self) -> bool {
        let late = self.now.saturating_sub(self.received) > self.patience();
        self.snapshot.is_some() && !self.paused && (matches!(self.link, Link::Gone { .. }) || late)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an interval is between 0.1 and 3600 seconds"
    )]
    fn patience(&self) -> u64 {
        (self.interval.clamp(0.1, 3600.0) * 2_000.0) as u64 + 4_000
    }

    fn key(&mut self, key: &KeyEvent) -> bool {
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
                let word = |who: &crate::top::model::Who| match (&*who.namespace, &*who.workload) {
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

    fn typed(&mut self, c: char) {
        if let Some(prompt) = &mut self.prompt
            && prompt.text.len() < LONGEST_FILTER
            && text::clean(&c.to_string()) == c.to_string()
        {
            prompt.text.push(c);
        }
    }

    /// What is chosen and how it is ordered, in words; empty: all.
    #[must_use]
    pub fn filter_words(&self) -> String {
        let filter = &self.filter;
        let mut words = Vec::new();
        if !filter.text.is_empty() {
            words.push(format!("/{}", filter.text));
        }
        if let Some(namespace) = &filter.namespace {
            words.push(format!("ns={namespace}"));
        }
        if !filter.class.is_empty() {
            words.push(format!("class={}", filter.class.join(",")));
        }
        if filter.nat.len() == TRANSLATED.len() {
            words.push("nat=translated".to_owned());
        } else if !filter.nat.is_empty() {
            words.push(format!("nat={}", filter.nat.join(",")));
        }
        words.join(" ")
    }
}

const TRANSLATED: [&str; 3] = ["snat", "dnat", "both"];
const NATS: [&[&str]; 6] = [&[], &TRANSLATED, &["snat"], &["dnat"], &["both"], &["none"]];

/// A median; what has none comes last either way.
fn median(times: Option<Timing>, reverse: bool) -> f64 {
    let last = if reverse {
        f64::INFINITY
    } else {
        f64::NEG_INFINITY
    };
    times.map_or(last, |times| times.p50_ns)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rank: equal beyond 2^52 is equal enough"
)]
fn rank(row: &Row, sort: Sort, reverse: bool) -> f64 {
    match sort {
        Sort::ByteRate => row.bytes_per_second,
        Sort::PacketRate => row.packets_per_second,
        Sort::Bytes => row.bytes as f64,
        Sort::Packets => row.packets as f64,
        Sort::First => median(row.first, reverse),
        Sort::Established => median(row.established, reverse),
        Sort::Drops => row.drops as f64,
        Sort::Recent => row.time_ms as f64,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rank: equal beyond 2^52 is equal enough"
)]
fn rank_pair(pair: &Workload, sort: Sort, reverse: bool) -> f64 {
    match sort {
        Sort::ByteRate => pair.bytes_in + pair.bytes_out,
        Sort::PacketRate => pair.packets_in + pair.packets_out,
        Sort::Bytes => pair.bytes as f64,
        Sort::Packets => pair.packets as f64,
        Sort::First => median(pair.first, reverse),
        Sort::Established => median(pair.established, reverse),
        Sort::Drops => pair.drops as f64,
        // The agent's order stays: a pair does not tell its time.
        Sort::Recent => 0.0,
    }
}

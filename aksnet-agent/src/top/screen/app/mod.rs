//! The state: what is shown, and what an event makes of it. Times are milliseconds of a clock that only goes forward.

// What a key makes of it.
mod act;

// What comes first.
mod order;

use ratatui::crossterm::event::KeyEventKind;

use super::{
    event::{Effect, Event},
    history::History,
};
use crate::{
    droplog::DropRecord,
    live::{Choice, Filter, FlowId, LiveQuery, Snapshot, Sort, Workload},
    top::model::Row,
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

/// Kinds of NAT that rewrite something.
const TRANSLATED: [&str; 3] = ["snat", "dnat", "both"];

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

    /// Milliseconds without news after which there should have been some.
    fn patience(&self) -> u64 {
        let interval = LiveQuery::every(self.interval).as_millis();
        u64::try_from(interval).map_or(u64::MAX, |ms| ms * 2 + 4_000)
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

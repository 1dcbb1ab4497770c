//! A *panel* answers one question, which is its title; its description says how to read the answer.

/// One dashboard.
#[derive(Clone, Debug)]
pub struct Dashboard {
    /// Its address in Grafana (`/d/UID`), and its file's name.
    pub uid: &'static str,
    /// Its name in lists.
    pub title: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// Whether a namespace can be chosen.
    pub namespaces: bool,
    /// From top to bottom.
    pub rows: Vec<Row>,
}

impl Dashboard {
    /// All panels, from top to bottom.
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| &row.panels)
    }
}

/// Panels under a heading.
#[derive(Clone, Debug)]
pub struct Row {
    /// The heading.
    pub title: &'static str,
    /// From left to right, and on.
    pub panels: Vec<Panel>,
}

impl Row {
    /// A row with these panels.
    #[must_use]
    pub const fn new(title: &'static str, panels: Vec<Panel>) -> Self {
        Self { title, panels }
    }
}

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One number, coloured by thresholds.
    Stat,
    /// Lines over time.
    Graph,
    /// Areas over time that add up.
    Stack,
    /// Up or down over time.
    State,
    /// Rows of labels and numbers, as of now.
    Table,
}

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A count of things.
    Count,
    /// Bytes.
    Bytes,
    /// Bytes in a second.
    BytesPerSecond,
    /// Packets in a second.
    PacketsPerSecond,
    /// Connections in a second.
    ConnectionsPerSecond,
    /// Anything else in a second.
    PerSecond,
    /// Seconds.
    Seconds,
    /// 0 to 1, shown as per cent.
    Ratio,
    /// Processors that are busy: 1 is one.
    Cores,
}

impl Unit {
    /// As Grafana calls it.
    #[must_use]
    pub const fn grafana(self) -> &'static str {
        match self {
            Self::Count => "short",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "Bps",
            Self::PacketsPerSecond => "pps",
            Self::ConnectionsPerSecond => "conn/s",
            Self::PerSecond => "ops",
            Self::Seconds => "s",
            Self::Ratio => "percentunit",
            Self::Cores => "suffix: cores",
        }
    }
}

/// What the emulated node of the tests answers to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Series, of which at least one has a value beside 0.
    Values,
    /// Series, all 0: what they count does not happen there.
    Zeros,
    /// Series of any value: it depends on how busy the machine is.
    Series,
}

/// One query of a panel.
#[derive(Clone, Debug)]
pub struct Query {
    /// In Prometheus' language, with Grafana's variables.
    pub expr: String,
    /// The series' name in the legend; in a table, the name of the column.
    pub legend: &'static str,
    /// What tests expect.
    pub expect: Expect,
    /// The unit of this column, if not the panel's.
    pub unit: Option<Unit>,
}

/// One panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// The question.
    pub title: &'static str,
    /// How to read the answer.
    pub description: &'static str,
    /// How it is shown.
    pub kind: Kind,
    /// What its numbers are.
    pub unit: Unit,
    /// Width of 24, height in rows of 30 pixels.
    pub size: (u32, u32),
    /// What it asks.
    pub queries: Vec<Query>,
    /// From which value on it is worth a look, and from which on it is bad.
    pub thresholds: Option<(f64, f64)>,
    /// Whether more is better: thresholds are then lower bounds.
    pub more_is_better: bool,
    /// The largest possible value.
    pub max: Option<f64>,
    /// Runbooks below `docs/runbooks/`, without `.md`.
    pub runbooks: Vec<&'static str>,
    /// Other dashboards that tell more, by uid.
    pub more: Vec<&'static str>,
    /// Whether the documentation has a picture of it.
    pub picture: bool,
}

impl Panel {
    fn new(kind: Kind, title: &'static str, description: &'static str) -> Self {
        let size = match kind {
            Kind::Stat => (4, 4),
            Kind::Table => (24, 9),
            Kind::Graph | Kind::Stack | Kind::State => (12, 8),
        };
        Self {
            title,
            description,
            kind,
            unit: Unit::Count,
            size,
            queries: Vec::new(),
            thresholds: None,
            more_is_better: false,
            max: None,
            runbooks: Vec::new(),
            more: Vec::new(),
            picture: false,
        }
    }

    /// One number.
    #[must_use]
    pub fn stat(title: &'static str, description: &'static str) -> Self {
        Self::new(Kind::Stat, title, description)
    }

    /// Lines.
    #[must_use]
    pub fn graph(title: &'static str, description: &'static str) -> Self {
        Self::new(Kind::Graph, title, description)
    }

    /// Areas.
    #[must_use]
    pub fn stack(title: &'static str, description: &'static str) -> Self {
        Self::new(Kind::Stack, title, description)
    }

    /// Up or down; 1 is up.
    #[must_use]
    pub fn state(title: &'static str, description: &'static str) -> Self {
        Self::new(Kind::State, title, description)
    }

    /// Rows.
    #[must_use]
    pub fn table(title: &'static str, description: &'static str) -> Self {
        Self::new(Kind::Table, title, description)
    }

    /// Asks this; the answer has values.
    #[must_use]
    pub fn ask(mut self, expr: impl Into<String>, legend: &'static str) -> Self {
        self.queries.push(Query {
            expr: expr.into(),
            legend,
            expect: Expect::Values,
            unit: None,
        });
        self
    }

    /// What tests expect of the last query.
    #[must_use]
    pub fn expect(mut self, expect: Expect) -> Self {
        if let Some(query) = self.queries.last_mut() {
            query.expect = expect;
        }
        self
    }

    /// The last query's own unit.
    #[must_use]
    pub fn column(mut self, unit: Unit) -> Self {
        if let Some(query) = self.queries.last_mut() {
            query.unit = Some(unit);
        }
        self
    }

    /// What its numbers are.
    #[must_use]
    pub fn unit(self, unit: Unit) -> Self {
        let max = (unit == Unit::Ratio).then_some(1.0).or(self.max);
        Self { unit, max, ..self }
    }

    /// Its width of 24 and its height.
    #[must_use]
    pub fn size(self, width: u32, height: u32) -> Self {
        Self {
            size: (width, height),
            ..self
        }
    }

    /// From which value on it is worth a look, and from which on it is bad.
    #[must_use]
    pub fn thresholds(self, look: f64, bad: f64) -> Self {
        Self {
            thresholds: Some((look, bad)),
            ..self
        }
    }

    /// Values below these are worth a look, or bad.
    #[must_use]
    pub fn at_least(self, good: f64, bearable: f64) -> Self {
        Self {
            thresholds: Some((bearable, good)),
            more_is_better: true,
            ..self
        }
    }

    /// Links to a runbook.
    #[must_use]
    pub fn runbook(mut self, page: &'static str) -> Self {
        self.runbooks.push(page);
        self
    }

    /// Links to another dashboard.
    #[must_use]
    pub fn more(mut self, uid: &'static str) -> Self {
        self.more.push(uid);
        self
    }

    /// The documentation shows it.
    #[must_use]
    pub fn picture(self) -> Self {
        Self {
            picture: true,
            ..self
        }
    }
}

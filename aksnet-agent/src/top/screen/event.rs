//! What happens to the screen, and what comes of it.

use ratatui::crossterm::event::KeyEvent;

use crate::live::{LiveQuery, Snapshot};

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// Text was pasted.
    Paste(String),
    /// The terminal has another size. The next frame has it, too: this only says that one is due.
    Resize,
    /// A snapshot came.
    Snapshot(Box<Snapshot>),
    /// The agent did not understand the last question.
    Refused(String),
    /// An agent answers; true if it is one of our own that lives as long as somebody looks.
    Connected {
        /// Our own.
        own: bool,
    },
    /// The agent has gone, and is tried again after so many milliseconds.
    Gone {
        /// Until the next attempt.
        retry_ms: u64,
    },
    /// Time passes.
    Tick,
    /// A signal asks to end.
    Stop,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask this from now on.
    Ask(Box<LiveQuery>),
    /// End.
    Quit,
}

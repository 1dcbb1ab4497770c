//! The busiest, slowest or most dropped flows of this moment, for the terminal.

// Which flows, and what about them.
pub mod model;

// Rows as lines.
pub mod raw;

// All views, on a terminal.
pub mod screen;

// Numbers as people read them.
pub mod units;

pub use self::model::{Query, Row, Sort, rows};

#[cfg(test)]
pub(crate) mod tests;

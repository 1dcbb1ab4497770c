//! The *screen* of `top`: what of the live view is on it, and what keys do. It has no terminal, no socket and no clock in
//! it but for `terminal`: [`App`] takes events and says what to ask, [`draw`] puts it on a frame.

// What happens.
pub mod event;

// What keys do: the one table.
pub mod keys;

// What is shown, and what an event makes of that.
pub mod app;

// What a flow did before.
pub mod history;

// Text from outside, made to fit.
pub mod text;

// Bold, reversed, coloured.
pub mod theme;

// Columns.
pub mod table;

// The views.
mod views;

// The real terminal, taken and given back.
pub mod terminal;

pub use self::{
    app::{App, Options},
    event::{Effect, Event},
    theme::Theme,
    views::draw,
};

#[cfg(test)]
mod tests;

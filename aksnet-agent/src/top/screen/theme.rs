//! How things stand out. Colours only underline what marks, words or signs say already, so that nothing is lost without.

use ratatui::style::{Color, Modifier, Style};

/// Whether there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    colour: bool,
}

impl Theme {
    /// With colours, or with bold and reversed letters alone.
    #[must_use]
    pub const fn new(colour: bool) -> Self {
        Self { colour }
    }

    /// As `NO_COLOR` (<https://no-color.org>: set, and not empty) has it.
    #[must_use]
    pub fn from_env(get: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        Self::new(get("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    fn coloured(self, style: Style, colour: Color) -> Style {
        if self.colour { style.fg(colour) } else { style }
    }

    /// Plain text.
    #[must_use]
    pub fn plain(self) -> Style {
        Style::new()
    }

    /// Titles.
    #[must_use]
    pub fn title(self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Cyan)
    }

    /// Heads of columns.
    #[must_use]
    pub fn head(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
    }

    /// What matters less.
    #[must_use]
    pub fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// What is selected.
    #[must_use]
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// What is as it should be.
    #[must_use]
    pub fn good(self) -> Style {
        self.coloured(Style::new(), Color::Green)
    }

    /// What deserves a look.
    #[must_use]
    pub fn warning(self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Yellow)
    }

    /// What is wrong.
    #[must_use]
    pub fn bad(self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Red)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_is_honoured_if_it_is_not_empty() {
        let theme = |value: Option<&str>| Theme::from_env(|_| value.map(Into::into));
        assert_eq!(theme(None), Theme::new(true));
        assert_eq!(theme(Some("")), Theme::new(true));
        assert_eq!(theme(Some("1")), Theme::new(false));
        let plain = Theme::new(false);
        for style in [plain.title(), plain.good(), plain.warning(), plain.bad()] {
            assert_eq!(style.fg, None);
        }
    }
}

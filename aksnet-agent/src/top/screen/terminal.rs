//! The *terminal*, taken for the screen and given back: on drop, on panic, whatever ends the program in an orderly way.

use std::{
    io::{self, Stdout, stdout},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        event::{DisableBracketedPaste, EnableBracketedPaste},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};

use super::{App, Theme, draw};

/// Whether the terminal is ours.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// The terminal, as long as this lives.
pub struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Takes it: no echo, keys one by one, a screen of its own, so that what was there comes back.
    ///
    /// # Errors
    /// When there is no terminal.
    pub fn take() -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                // First, so that the words are seen.
                give_back();
                before(info);
            }));
        });
        enable_raw_mode()?;
        TAKEN.store(true, Ordering::SeqCst);
        // From here on dropping it gives back what was taken.
        let taken = Terminal::new(CrosstermBackend::new(stdout())).map(Self);
        match taken {
            Ok(mut screen) => {
                execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste)?;
                screen.0.hide_cursor()?;
                screen.0.clear()?;
                Ok(screen)
            }
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Shows the state.
    ///
    /// # Errors
    /// When the terminal has gone.
    pub fn show(&mut self, app: &mut App, theme: Theme) -> io::Result<()> {
        let mut page = app.page;
        self.0.draw(|frame| page = draw(app, theme, frame))?;
        app.page = page;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// As it was. Does nothing if it is not ours.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // If the terminal has gone there is nothing to give back.
        let _gone = execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
        let _gone = disable_raw_mode();
    }
}

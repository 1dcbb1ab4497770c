//! What a task tells the person who started it, and how it runs other programs in plain sight.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Set once the person wants it to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on Ctrl-C, SIGTERM and a closed terminal do not end the process, but what [`check`] says: so that clean-up always runs.
///
/// # Errors
/// When the kernel refuses.
pub fn catch_interrupts() -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(on_interrupt),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("cannot catch signals")?;
    }
    Ok(())
}

/// Whether the person wants it to end.
#[must_use]
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails once the person wants it to end.
///
/// # Errors
/// After Ctrl-C or SIGTERM.
pub fn check() -> Result<()> {
    if is_interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// A line about what happens now.
pub fn step(text: &str) {
    println!("{} {text}", bold("▸"));
}

/// A heading, set off by an empty line.
pub fn heading(text: &str) {
    println!("\n{}", bold(text));
}

/// Bold on a terminal.
#[must_use]
pub fn bold(text: &str) -> String {
    paint("1", text)
}

/// Less visible on a terminal.
#[must_use]
pub fn dim(text: &str) -> String {
    paint("2", text)
}

/// As a warning on a terminal.
#[must_use]
pub fn red(text: &str) -> String {
    paint("31", text)
}

fn paint(code: &str, text: &str) -> String {
    use std::io::IsTerminal as _;
    if std::io::stdout().is_terminal() {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// Runs a command with its output in plain sight.
///
/// # Errors
/// When it cannot be started or fails; the error says which it was.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("{}", dim(&format!("$ {line}")));
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    check()?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// The command as one would type it.
#[must_use]
pub fn line(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), value?.display())));
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.display().to_string());
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

/// A command line as one would type it on lines of at most 116 columns.
#[must_use]
pub fn folded(line: &str) -> String {
    let mut text = "$".to_owned();
    let mut column = 1;
    for word in line.split(' ') {
        let length = word.chars().count();
        if column + 1 + length > 114 {
            text.push_str(" \\\n   ");
            column = 3;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + length;
    }
    text
}

/// Removes what crashed runs of the emulated node left behind, and says so.
///
/// # Errors
/// When their records cannot be read.
pub fn clean_up() -> Result<()> {
    let removed = crate::testbed::record::clean()?;
    if !removed.is_empty() {
        step(&format!(
            "removed what a crashed run left behind: {}",
            removed.join(", ")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_command_lines_are_folded_between_words() {
        assert_eq!(folded("a b"), "$ a b");
        let long = folded(&format!("{} {}", "x".repeat(100), "y".repeat(30)));
        let lines: Vec<&str> = long.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("x \\"), "{long}");
        assert_eq!(lines[1].trim(), "y".repeat(30));
    }
}

//! How the process ends: an exit code per kind of failure, after `sysexits.h`, so that a script or a
//! supervisor can tell "fix the command line" from "try again". The table is in `docs/exit-codes.md`.

use std::fmt::Display;

/// The exit codes, by kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A flag or an environment variable is unknown or has a bad value.
    Usage = 64,
    /// A manifest is no YAML, or no Kubernetes object; a capture is damaged.
    Data = 65,
    /// A file or an interface that was named does not exist.
    NoInput = 66,
    /// No agent is running, or it went away.
    Unavailable = 69,
    /// The kernel refuses the programs.
    Software = 70,
    /// A system call failed that should not.
    Os = 71,
    /// The kernel lacks what the agent stands on: BTF.
    OsFile = 72,
    /// The listen address or the socket cannot be taken, or a file cannot be made.
    CantCreate = 73,
    /// Writing a file failed: the disc is full, or broken.
    Io = 74,
    /// Not root, or without a capability that is needed.
    NoPermission = 77,
    /// The config file has an unknown key or a bad value.
    Config = 78,
}

/// The policies deny what `explain` was asked about.
pub const DENIED: u8 = 1;
/// Whether they do depends on what is not known.
pub const UNDETERMINED: u8 = 2;

/// `doctor` found something that loses packets or will, and nothing worse.
pub const WARNING: u8 = 1;
/// `doctor` found pods that are cut off, or not protected as they should be.
pub const CRITICAL: u8 = 2;

impl Exit {
    /// All, for the documentation's test.
    pub const ALL: [Self; 11] = [
        Self::Usage,
        Self::Data,
        Self::NoInput,
        Self::Unavailable,
        Self::Software,
        Self::Os,
        Self::OsFile,
        Self::CantCreate,
        Self::Io,
        Self::NoPermission,
        Self::Config,
    ];

    /// The process's exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// Why the process ends, and with which code.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct Failure {
    /// The kind.
    pub exit: Exit,
    /// What happened and what to do about it.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure that is described by its message alone.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self {
            exit,
            error: anyhow::anyhow!("{message}"),
        }
    }
}

/// Gives a fallible step its exit code.
pub trait OrExit<T> {
    /// An error becomes a failure of this kind.
    ///
    /// # Errors
    /// When `self` is one.
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            exit,
            error: error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_chain_is_printed_in_one_line() {
        let failure = Err::<(), _>(std::io::Error::other("no space"))
            .context("writing x")
            .or_exit(Exit::Os)
            .unwrap_err();
        assert_eq!(failure.to_string(), "writing x: no space");
        assert_eq!(failure.exit.code(), 71);
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../docs/exit-codes.md");
        let failures = Exit::ALL.map(Exit::code);
        for code in failures
            .into_iter()
            .chain([DENIED, UNDETERMINED, WARNING, CRITICAL])
        {
            assert!(
                page.contains(&format!("| {code} |")),
                "{code} has no row in docs/exit-codes.md"
            );
        }
    }
}

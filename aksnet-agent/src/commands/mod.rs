//! What the commands do, apart from the command line that asks for it.

pub mod run;

pub mod top;

pub mod screen;

pub mod drops;

pub mod explain;

pub mod flows;

pub mod record;

pub mod replay;

pub mod manual;

pub mod doctor;

mod alone;

mod reader;

use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Failure, OrExit};

/// Resolves to the name of the first signal that asks the agent to stop.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn stop_signal() -> Result<impl Future<Output = &'static str>, Failure> {
    let mut term = signal(SignalKind::terminate()).or_exit(Exit::Os)?;
    let mut int = signal(SignalKind::interrupt()).or_exit(Exit::Os)?;
    // The terminal was closed: by default that would kill the agent before it has detached.
    let mut hup = signal(SignalKind::hangup()).or_exit(Exit::Os)?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
            _ = hup.recv() => "SIGHUP",
        }
    })
}

/// A small runtime: the life runs on the calling thread, the servers on two workers.
///
/// # Errors
/// When threads cannot be started.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .or_exit(Exit::Os)
}

/// Prints all that a command has to say. Nobody who reads any more is no failure (`doctor | head -1`): what was found is
/// still the exit code.
///
/// # Errors
/// When the terminal is gone, or the disc is full that standard output is on.
pub fn print(text: &[u8]) -> Result<(), Failure> {
    reader::print(text).map(drop)
}

//! The *reader*: whoever has the other end of standard output, a terminal or a pipe. What prints for as long as somebody
//! reads has to end when the reader goes, also while there is nothing to print: no signal says so where a pipe is closed,
//! nor where a terminal hangs up that is not the session's own.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::exit::{Exit, Failure, OrExit};

/// Prints a text, all of it now. `None` when nobody reads any more (`drops | head`).
///
/// # Errors
/// When it cannot be written for another reason.
pub(super) fn print(text: &[u8]) -> Result<Option<()>, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe || has_gone() => Ok(None),
        Err(error) => Err(error).or_exit(Exit::Os),
    }
}

/// Whether nobody reads any more.
pub(super) fn has_gone() -> bool {
    look(PollTimeout::ZERO)
}

/// Waits for so long at the most. A file never goes.
fn look(wait: PollTimeout) -> bool {
    let out = io::stdout();
    // What ends is told whatever is asked for.
    let mut out = [PollFd::new(out.as_fd(), PollFlags::empty())];
    loop {
        match poll(&mut out, wait) {
            Ok(_) => return out[0].any().unwrap_or(false),
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Calls `gone` when nobody reads any more, from a thread that nobody waits for.
fn when_gone(gone: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let wait = || {
        if look(PollTimeout::NONE) {
            gone();
        }
    };
    let thread = std::thread::Builder::new().name("reader".into());
    thread.spawn(wait).map(drop).or_exit(Exit::Os)
}

/// Has the process end, with 0, when nobody reads any more. For whoever has nothing to put away.
///
/// # Errors
/// When there can be no thread.
pub(super) fn end_when_gone() -> Result<(), Failure> {
    when_gone(|| std::process::exit(0))
}

/// Does something for as long as somebody reads.
///
/// # Errors
/// As that does, and when there can be no thread.
pub(super) async fn until_gone(
    doing: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let (tell, gone) = tokio::sync::oneshot::channel();
    when_gone(|| {
        let _done = tell.send(());
    })?;
    tokio::select! {
        done = doing => done,
        Ok(()) = gone => Ok(()),
    }
}

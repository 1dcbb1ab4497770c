//! The agent's *resident* memory: the real binary, started as on a node, looked at once it has settled.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// MiB that a command's process holds once it has settled, has been given its `work`, and has settled again; it is
/// ended then.
///
/// # Errors
/// When it cannot be started, or ends by itself before.
pub fn of(
    command: &mut Command,
    settle: Duration,
    work: impl FnOnce() -> Result<()>,
) -> Result<f64> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the agent")?;
    std::thread::sleep(settle);
    let worked = work();
    std::thread::sleep(settle);
    let mib = now(child.id());
    let ended = child.try_wait()?;
    if ended.is_none() {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        child.wait()?;
    }
    worked?;
    if let Some(status) = ended {
        bail!("it ended by itself ({status})");
    }
    mib
}

/// MiB that a process holds now.
///
/// # Errors
/// When there is no such process.
pub fn now(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    resident(&status).context("no VmRSS of the process")
}

fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_looked_at_and_ended() {
        let mib = of(
            Command::new("sleep").arg("60"),
            Duration::from_millis(100),
            || Ok(()),
        )
        .unwrap();
        assert!(mib > 0.0 && mib < 64.0, "{mib}");
    }

    #[test]
    fn one_that_ends_by_itself_is_an_error() {
        let true_ = &mut Command::new("true");
        assert!(of(true_, Duration::from_millis(100), || Ok(())).is_err());
    }

    #[test]
    fn kibibytes_become_mebibytes() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t   2048 kB\n"), Some(2.0));
        assert_eq!(resident("Name:\tx\n"), None);
    }
}

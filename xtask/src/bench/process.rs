//! What a *process* needs: memory and processor time.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// MiB that a command's process holds once it has settled, has been given its `work`, and has settled again; it is
/// ended then.
///
/// # Errors
/// When it cannot be started, or ends by itself before.
pub fn resident_after(
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
    let mib = resident(child.id());
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
pub fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    resident_of(&status).context("no VmRSS of the process")
}

/// What a process has spent in user space and in the kernel, to 10 ms (`proc_pid_stat(5)`, fields 14 and 15; `USER_HZ` is
/// 100 wherever Linux runs an agent).
///
/// # Errors
/// When there is no such process.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = ticks_of(&stat).context("no times in the process's stat")?;
    Ok(Duration::from_millis(ticks * 10))
}

fn ticks_of(stat: &str) -> Option<u64> {
    // The name in parentheses may hold blanks; the field after it is the third.
    let rest = stat.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace().skip(14 - 3);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn resident_of(status: &str) -> Option<f64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_looked_at_and_ended() {
        let mib = resident_after(
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
        assert!(resident_after(true_, Duration::from_millis(100), || Ok(())).is_err());
    }

    #[test]
    fn kibibytes_become_mebibytes() {
        assert_eq!(resident_of("Name:\tx\nVmRSS:\t   2048 kB\n"), Some(2.0));
        assert_eq!(resident_of("Name:\tx\n"), None);
    }

    #[test]
    fn times_stand_after_a_name_of_any_kind() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 40 0 0 20";
        assert_eq!(ticks_of(stat), Some(290));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }
}

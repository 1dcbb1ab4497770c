//! A *machine* here is QEMU: it boots a kernel, and what its guest says is heard until it ends, or is ended.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::guest;
use crate::say;

/// The program, and the package that it is in.
const QEMU: &str = "qemu-system-x86_64";

/// What boots.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The kernel's image.
    pub kernel: &'a Path,
    /// Its first root.
    pub initramfs: &'a Path,
    /// Where its log goes, the first serial line.
    pub log: &'a Path,
    /// Directories that the guest can read, in the order of [`guest::tag`]; `/` besides, as `root`.
    pub shares: &'a [PathBuf],
}

/// How long a guest may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From power on to power off.
    pub whole: Duration,
    /// Between two lines.
    pub silence: Duration,
}

/// How a run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest powered it off, or its kernel panicked: the verdict tells which.
    Off,
    /// It said nothing for so long, and was ended.
    Silent(Duration),
    /// It was not done in this time, and was ended.
    Late(Duration),
}

/// A QEMU that is killed when nobody hears it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots it, and gives every line that the guest says to `hear`.
    ///
    /// # Errors
    /// When QEMU cannot be started or says why it does not, or the person interrupts.
    pub fn run(&self, patience: Patience, hear: impl FnMut(&str)) -> Result<End> {
        listen(self.command(), patience, hear)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(QEMU);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            // Instructions are translated even where there is a /dev/kvm: in a virtual machine it may be one that cannot run
            // these kernels, and a guest takes as long everywhere. Tables of five levels are not for translation (7.2).
            .args(["-machine", "pc", "-accel", "tcg,thread=multi"])
            .args(["-cpu", "max,la57=off"])
            .args(["-smp", "2", "-m", "3G", "-no-reboot"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            // A panic ends it at once, as `-no-reboot` takes a reboot for an end. Errors and worse are logged.
            .args([
                "-append",
                "console=ttyS0 loglevel=4 panic=-1 mitigations=off",
            ])
            .arg("-serial")
            .arg(format!("file:{}", self.log.display()))
            .args(["-serial", "stdio"])
            .args(virtfs("root", Path::new("/")));
        for (n, path) in self.shares.iter().enumerate() {
            command.args(virtfs(&guest::tag(n), path));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }
}

/// Starts a command and gives each line that it prints to `hear`, until it ends or its time is over.
fn listen(mut command: Command, patience: Patience, mut hear: impl FnMut(&str)) -> Result<End> {
    let program = command.get_program().display().to_string();
    let mut child =
        Running(command.spawn().with_context(|| {
            format!("cannot start {program} (`cargo xtask setup` installs it)")
        })?);
    let output = child.0.stdout.take().context("a pipe")?;
    let lines = lines_of(BufReader::new(output));
    let began = Instant::now();
    let mut heard = began;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                heard = Instant::now();
                hear(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Off),
            Err(RecvTimeoutError::Timeout) => {}
        }
        say::check()?;
        if began.elapsed() > patience.whole {
            return Ok(End::Late(patience.whole));
        }
        if heard.elapsed() > patience.silence {
            return Ok(End::Silent(patience.silence));
        }
    }
}

/// A directory that the guest can read and never write.
fn virtfs(tag: &str, path: &Path) -> [String; 2] {
    // QEMU's options are separated by commas; one in a value is written twice.
    let path = path.display().to_string().replace(',', ",,");
    let options = "security_model=none,readonly=on,multidevs=remap";
    [
        "-virtfs".to_owned(),
        format!("local,path={path},mount_tag={tag},{options}"),
    ]
}

/// Lines as they come, from a thread of its own; not all that a guest says need be text.
fn lines_of<R: std::io::Read + Send + 'static>(mut from: BufReader<R>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        while from.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let line = String::from_utf8_lossy(&bytes).into_owned();
            if sender.send(line).is_err() {
                break;
            }
            bytes.clear();
        }
    });
    receiver
}

/// The last lines of the kernel's log.
///
/// # Errors
/// When it cannot be read.
pub fn last_lines(log: &Path, count: usize) -> Result<Vec<String>> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut File::open(log)?, &mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let from = lines.len().saturating_sub(count);
    Ok(lines[from..].iter().map(|&line| line.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_with_a_comma_in_its_name_is_one_share_and_read_only() {
        let [_, options] = virtfs("work", Path::new("/a,b"));
        assert!(options.starts_with("local,path=/a,,b,mount_tag=work,"));
        assert!(options.contains("readonly=on"));
    }

    fn shell(script: &str, patience: Patience) -> (End, Vec<String>) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        let mut said = Vec::new();
        let end = listen(command, patience, |line| said.push(line.to_owned())).unwrap();
        (end, said)
    }

    #[test]
    fn what_says_nothing_any_more_is_ended() {
        let silence = Duration::from_secs(1);
        let patience = Patience {
            whole: Duration::from_mins(5),
            silence,
        };
        let (end, said) = shell("echo one; exec sleep 600", patience);
        assert_eq!(
            (end, said),
            (End::Silent(silence), vec!["one\n".to_owned()])
        );
    }

    #[test]
    fn what_talks_on_without_an_end_is_ended() {
        let whole = Duration::from_secs(1);
        let patience = Patience {
            whole,
            silence: Duration::from_mins(5),
        };
        let (end, _) = shell("while :; do echo on; sleep 0.05; done", patience);
        assert_eq!(end, End::Late(whole));
    }

    #[test]
    fn the_logs_end_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, b"one\r\ntwo\xff\r\nthree\r\n").unwrap();
        assert_eq!(last_lines(&log, 2).unwrap(), ["two\u{fffd}", "three"]);
    }
}

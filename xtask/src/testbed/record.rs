//! A *record* says what one testbed made: its namespaces, directories and child processes, by exact name.
//!
//! It is written before each thing is made, so that whatever happens afterwards, `cargo xtask clean` finds it.
//! Cleaning acts on these names only, never on a pattern, and only once the process that owns the record is
//! gone. A record is not a description of the cluster: see [`super::plan`] for that.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::netns;

/// Where the records of all testbeds of this machine lie.
const RECORDS: &str = "/run/aksnet-testbed";

/// Numbers the testbeds of this process.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A process, told apart from a later one that was given the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// Start time in clock ticks since boot, field 22 of `/proc/PID/stat`.
    start: u64,
}

impl Process {
    /// The process that now has this number, or `None` if there is none.
    #[must_use]
    pub fn now(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start: start_time(&stat)?,
        })
    }

    /// Whether this very process still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::now(self.pid) == Some(self)
    }
}

/// Field 22 of `/proc/PID/stat`. The second field, the command, may hold spaces and brackets of its own.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    owner: Process,
    namespaces: Vec<String>,
    directories: Vec<PathBuf>,
    children: Vec<Process>,
}

impl Contents {
    /// Removes everything listed, going on past failures, and says what it removed.
    fn remove(&self) -> Vec<String> {
        let mut removed = Vec::new();
        for child in self.children.iter().filter(|child| child.is_alive()) {
            if kill(Pid::from_raw(child.pid), Signal::SIGKILL).is_ok() {
                removed.push(format!("process {}", child.pid));
            }
        }
        for name in &self.namespaces {
            if netns::remove(name) {
                removed.push(format!("namespace {name}"));
            }
        }
        for directory in &self.directories {
            if fs::remove_dir_all(directory).is_ok() {
                removed.push(format!("directory {}", directory.display()));
            }
        }
        removed
    }
}

/// What one testbed of this process made. Dropping it removes all of it.
#[derive(Debug)]
pub struct Record {
    prefix: String,
    path: PathBuf,
    contents: Mutex<Contents>,
}

impl Record {
    /// Opens a record with a prefix that no other testbed on this machine has.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn create() -> Result<Self> {
        let pid = std::process::id().cast_signed();
        let prefix = format!("aksnet-{pid}-{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        fs::create_dir_all(RECORDS)
            .with_context(|| format!("cannot make {RECORDS} (root is needed)"))?;
        let record = Self {
            path: Path::new(RECORDS).join(format!("{prefix}.json")),
            prefix,
            contents: Mutex::new(Contents {
                owner: Process::now(pid).context("this process is not in /proc")?,
                namespaces: Vec::new(),
                directories: Vec::new(),
                children: Vec::new(),
            }),
        };
        record.change(|_| ())?;
        Ok(record)
    }

    /// What the names of this testbed begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Notes a namespace that is about to be made.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn add_namespace(&self, name: &str) -> Result<()> {
        self.change(|contents| contents.namespaces.push(name.to_owned()))
    }

    /// Forgets a namespace that has been removed.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn forget_namespace(&self, name: &str) -> Result<()> {
        self.change(|contents| contents.namespaces.retain(|known| known != name))
    }

    /// Makes a directory of this testbed's own.
    ///
    /// # Errors
    /// When the record or the directory cannot be written.
    pub fn make_directory(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(RECORDS).join(format!("{}-{name}", self.prefix));
        self.change(|contents| contents.directories.push(path.clone()))?;
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Notes a child that was spawned, to be killed at the latest when the testbed goes.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn add_child(&self, pid: u32) -> Result<()> {
        match Process::now(pid.cast_signed()) {
            Some(process) => self.change(|contents| contents.children.push(process)),
            None => Ok(()),
        }
    }

    /// Changes the contents and writes them, whole or not at all: a reader never sees half a record.
    fn change(&self, change: impl FnOnce(&mut Contents)) -> Result<()> {
        let mut contents = self
            .contents
            .lock()
            .expect("no thread panics with a record in its hand");
        change(&mut contents);
        let draft = self.path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec_pretty(&*contents)?)
            .and_then(|()| fs::rename(&draft, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Ok(contents) = self.contents.get_mut() {
            contents.remove();
        }
        let _ = fs::remove_file(&self.path);
        // The directory itself stays while other testbeds have records in it.
        let _ = fs::remove_dir(RECORDS);
    }
}

/// Removes what testbeds of processes that are gone left behind, and says what that was.
///
/// # Errors
/// When the records cannot be read.
pub fn clean() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let entries = match fs::read_dir(RECORDS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(error).with_context(|| format!("cannot read {RECORDS}")),
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Ok(text) = fs::read(&path) else { continue };
        let contents: Contents = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a testbed's record", path.display()))?;
        if contents.owner.is_alive() {
            continue;
        }
        removed.extend(contents.remove());
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let _ = fs::remove_dir(RECORDS);
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_a_command_with_brackets_and_spaces() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("42 (a ) b (c) {}", fields.join(" "));
        assert_eq!(start_time(&stat), Some(22));
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not() {
        let me = Process::now(std::process::id().cast_signed()).unwrap();
        assert!(me.is_alive());
        assert!(
            !Process {
                start: me.start + 1,
                ..me
            }
            .is_alive()
        );
    }
}

//! A *namespace* here is a named network namespace, bound under `/run/netns` so that CNI plugins and
//! `ip netns exec` can use it too.
//!
//! Work inside one is done in two ways: [`Netns::run`] calls a closure on a thread of its own that has entered
//! the namespace (sockets made there stay there, wherever they are used later), and [`Netns::command`] gives a
//! command whose process enters it before it starts. The calling thread never changes its own namespace.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::record::Record;

/// Where named namespaces are bound, as iproute2 does.
const NETNS: &str = "/run/netns";

/// A network namespace of a testbed. Dropping it removes it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
    record: Arc<Record>,
}

impl Netns {
    /// Makes the namespace `<prefix>-<role>` with its loopback up.
    ///
    /// # Errors
    /// When the caller is not root, or the kernel refuses.
    ///
    /// # Panics
    /// Never: the thread that binds it does not.
    pub fn create(record: &Arc<Record>, role: &str) -> Result<Self> {
        let name = format!("{}-{role}", record.prefix());
        let path = path_of(&name);
        record.add_namespace(&name)?;
        fs::create_dir_all(NETNS)
            .with_context(|| format!("cannot make {NETNS} (root is needed)"))?;
        share_directory()?;
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // A thread of its own, as it becomes a member of the new namespace for the rest of its life.
        std::thread::scope(|scope| {
            let bind = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)
                    .context("cannot make a network namespace (root is needed)")?;
                mount(
                    Some("/proc/thread-self/ns/net"),
                    &path,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
                .with_context(|| format!("cannot bind {}", path.display()))
            });
            bind.join().expect("binding a namespace does not panic")
        })?;
        let netns = Self {
            handle: File::open(&path)?,
            name,
            record: Arc::clone(record),
        };
        netns.ip(["link set lo up"])?;
        Ok(netns)
    }

    /// Its name, as in `ip netns exec NAME`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is bound.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// The number by which the kernel shows it, as in `/proc/PID/ns/net` and the `netnsid` of links.
    ///
    /// # Errors
    /// When the namespace cannot be looked at any more.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.handle.metadata()?.ino())
    }

    /// Calls `work` on a thread inside this namespace and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` fails.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter namespace {}", self.name))?;
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside this namespace. The namespace must outlive its start.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = self.handle.as_raw_fd();
        // SAFETY: between fork and exec only setns is called, which is async-signal-safe and allocates nothing;
        // the descriptor is owned by `self`, and the child has its own copy of the table.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(fd, libc::CLONE_NEWNET) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        command
    }

    /// A command with a view of the machine as a node's agent has it: inside this namespace, and with a `/sys` that
    /// shows this namespace's interfaces. It costs the command what else was mounted below `/sys`.
    #[must_use]
    pub fn command_with_sysfs(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command(program);
        // SAFETY: only unshare and mount are called between fork and exec: both are async-signal-safe and take
        // constant strings that live as long as the program.
        unsafe {
            command.pre_exec(|| {
                let steps = libc::unshare(libc::CLONE_NEWNS) == 0
                    && libc::mount(
                        std::ptr::null(),
                        c"/".as_ptr(),
                        std::ptr::null(),
                        libc::MS_REC | libc::MS_PRIVATE,
                        std::ptr::null(),
                    ) == 0
                    && libc::mount(
                        c"sysfs".as_ptr(),
                        c"/sys".as_ptr(),
                        c"sysfs".as_ptr(),
                        0,
                        std::ptr::null(),
                    ) == 0;
                if steps {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        command
    }

    /// Spawns a command made by [`Self::command`], to be killed at the latest when the testbed goes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let child = command.spawn().with_context(|| {
            format!(
                "cannot start {} in {}",
                command.get_program().display(),
                self.name
            )
        })?;
        self.record.add_child(child.id())?;
        Ok(child)
    }

    /// Runs a program here to its end and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error carries what it said.
    pub fn output<'a>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<String> {
        self.output_of(self.command(program).args(arguments), None)
    }

    /// Runs a program here to its end with `input` on its standard input, and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error carries what it said.
    pub fn output_with_input<'a>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = &'a str>,
        input: &str,
    ) -> Result<String> {
        self.output_of(self.command(program).args(arguments), Some(input))
    }

    /// Runs a command made by [`Self::command`] to its end and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error carries what it said.
    pub fn output_of(&self, command: &mut Command, input: Option<&str>) -> Result<String> {
        let program = command.get_program().display().to_string();
        let mut child = command
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!("cannot start {program} (is it installed? `cargo xtask setup`)")
            })?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A program that fails early closes its input: its own message tells more than the broken pipe.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{program} in {} failed ({}): {}{}",
                self.name,
                output.status,
                stderr.trim(),
                stdout.trim()
            );
        }
        Ok(stdout)
    }

    /// Runs `ip` with these lines in one batch, all or up to the first that fails.
    ///
    /// # Errors
    /// When a line fails; the error names it.
    pub fn ip<L: AsRef<str>>(&self, lines: impl IntoIterator<Item = L>) -> Result<()> {
        let batch = lines
            .into_iter()
            .fold(String::new(), |batch, line| batch + line.as_ref() + "\n");
        self.output_with_input("ip", ["-batch", "-"], &batch)
            .with_context(|| format!("in this batch:\n{batch}"))?;
        Ok(())
    }

    /// Sets a sysctl of this namespace, written with dots or slashes (`net/ipv4/conf/eth0.5/rp_filter`).
    ///
    /// # Errors
    /// When the kernel has no such setting or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key);
        self.run(|| fs::write(&path, value).with_context(|| format!("cannot set {key}={value}")))
    }

    /// Whether this kernel has the setting in this namespace.
    #[must_use]
    pub fn has_sysctl(&self, key: &str) -> bool {
        let path = sysctl_path(key);
        self.run(|| Ok(path.exists())).unwrap_or(false)
    }

    /// Reads a file as seen from inside, such as `/proc/net/stat/nf_conntrack`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, path: &str) -> Result<String> {
        // /proc/net is a link to the process's own main thread; this thread is the one inside.
        let path = path
            .strip_prefix("/proc/net/")
            .map_or(path.to_owned(), |rest| {
                format!("/proc/thread-self/net/{rest}")
            });
        self.run(|| {
            fs::read_to_string(&path)
                .with_context(|| format!("cannot read {path} in {}", self.name))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
        let _ = self.record.forget_namespace(&self.name);
    }
}

/// Makes the directory a shared mount of its own, as the first `ip netns` on a machine does. Done by that one while
/// namespaces are bound here, it would cover them, and they could not be unbound any more.
fn share_directory() -> Result<()> {
    let share = || {
        mount(
            None::<&str>,
            NETNS,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    if share().is_err() {
        mount(
            Some(NETNS),
            NETNS,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )
        .and_then(|()| share())
        .with_context(|| format!("cannot make {NETNS} a shared mount"))?;
    }
    Ok(())
}

/// Unbinds a named namespace. The kernel frees it when no socket, thread or process is left in it. False when there
/// was none.
pub(super) fn remove(name: &str) -> bool {
    let path = path_of(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    fs::remove_file(&path).is_ok()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS).join(name)
}

fn sysctl_path(key: &str) -> PathBuf {
    let slashed = if key.contains('/') {
        key.to_owned()
    } else {
        key.replace('.', "/")
    };
    Path::new("/proc/sys").join(slashed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_keys_may_hold_dots_when_written_with_slashes() {
        assert_eq!(
            sysctl_path("net.ipv4.ip_forward"),
            Path::new("/proc/sys/net/ipv4/ip_forward")
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.5/mtu"),
            Path::new("/proc/sys/net/ipv4/conf/eth0.5/mtu")
        );
    }
}

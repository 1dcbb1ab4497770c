//! The demo's *agent*: the real binary as a child, told what to do by its real command line, asked by HTTP.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::rows::{self, Row};
use super::scrape::Scrape;
use crate::say;
use crate::testbed::Netns;

/// How long the agent may take to be ready.
const START: Duration = Duration::from_secs(10);

/// How long it may take to end, and to detach from each pod; it promises two seconds and 50 ms for each interface.
const END: Duration = Duration::from_secs(3);
const DETACHING: Duration = Duration::from_millis(50);

/// More flows than a demo has.
const ALL_FLOWS: &str = "10000";

/// A running agent. Dropping it ends it.
pub(crate) struct Agent<'a> {
    netns: Option<&'a Netns>,
    binary: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    address: SocketAddr,
    child: Mutex<Child>,
}

impl<'a> Agent<'a> {
    /// Starts it in a namespace, or on this machine itself, and waits until it is ready.
    pub(crate) fn start(
        netns: Option<&'a Netns>,
        binary: &Path,
        directory: &Path,
        listen: &str,
        flags: &[String],
    ) -> Result<Self> {
        let (socket, log) = (directory.join("agent.sock"), directory.join("agent.log"));
        let mut command = netns.map_or_else(
            || Command::new(binary),
            |netns| netns.command_with_sysfs(binary),
        );
        command
            .args(["run", "--listen", listen, "--socket"])
            .arg(&socket)
            .args(flags);
        let file = std::fs::File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        println!("{}", say::dim(&say::folded(&say::line(&command))));
        let child = match netns {
            Some(netns) => netns.spawn(&mut command)?,
            None => command.spawn().context("cannot start the agent")?,
        };
        let agent = Self {
            netns,
            binary: binary.to_owned(),
            socket,
            log,
            address: listen.parse()?,
            child: child.into(),
        };
        agent.await_ready()?;
        Ok(agent)
    }

    fn await_ready(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            say::check()?;
            if let Some(status) = self.child().try_wait()? {
                bail!(
                    "the agent ended at once ({status}) and said:\n{}",
                    self.last_words()
                );
            }
            if self.get("/ready").is_ok() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the agent is not ready after {START:?}; it said:\n{}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// The socket that `top` reads.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its live rows over the next second: every flow that it has.
    pub(super) fn rows(&self) -> Result<Vec<Row>> {
        let args = [
            "top",
            "--raw",
            "--json",
            "--interval",
            "1",
            "--count",
            "1",
            "--limit",
            ALL_FLOWS,
        ];
        rows::parse(&self.output(&args, &[0])?)
    }

    /// Gives the terminal to `top`, until the person leaves it.
    pub(super) fn top(&self) -> Result<()> {
        let mut command = self.netns.map_or_else(
            || Command::new(&self.binary),
            |netns| netns.command_with_sysfs(&self.binary),
        );
        command.arg("top").arg("--socket").arg(&self.socket);
        let status = command
            .status()
            .with_context(|| format!("cannot start `{}`", say::line(&command)))?;
        ensure!(status.success(), "`{}`: {status}", say::line(&command));
        Ok(())
    }

    /// What another command of the agent prints, which ends with one of these exit codes. Commands that ask the running
    /// agent are told where.
    pub(super) fn output(&self, args: &[&str], codes: &[i32]) -> Result<String> {
        let mut command = self.netns.map_or_else(
            || Command::new(&self.binary),
            |netns| netns.command_with_sysfs(&self.binary),
        );
        command.args(args);
        if args.first() != Some(&"explain") {
            command.arg("--socket").arg(&self.socket);
        }
        let output = command
            .output()
            .with_context(|| format!("cannot start `{}`", say::line(&command)))?;
        say::check()?;
        ensure!(
            output
                .status
                .code()
                .is_some_and(|code| codes.contains(&code)),
            "`{}` failed: {}",
            say::line(&command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What it says in `/metrics`.
    pub(crate) fn scrape(&self) -> Result<Scrape> {
        Ok(Scrape::parse(&self.get("/metrics")?))
    }

    /// The interfaces that it watches, by role: `eth0 (uplink)`, `4 pods`.
    pub(super) fn watches(&self) -> Result<String> {
        let status: serde_json::Value = serde_json::from_str(&self.get("/status")?)?;
        let watched = status["interfaces"]["watched"].as_array();
        let named = |role: &str| -> Vec<&str> {
            watched
                .into_iter()
                .flatten()
                .filter(|interface| interface["role"] == role)
                .filter_map(|interface| interface["name"].as_str())
                .collect()
        };
        let programs = || status["programs"].as_array().into_iter().flatten();
        let hooks: Vec<&str> = programs()
            .filter(|program| program["up"] == true)
            .filter_map(|program| program["hook"].as_str())
            .collect();
        let mut text = format!(
            "it watches the uplink {} and {} pods' interfaces, by {}",
            named("uplink").join(", "),
            named("pod").len(),
            hooks.join(", ")
        );
        for program in programs().filter(|program| program["up"] != true) {
            let _ = write!(text, "\n  {} is not up: {program}", program["program"]);
        }
        Ok(text)
    }

    /// How many pods' interfaces it watches.
    pub(crate) fn pods_watched(&self) -> Result<usize> {
        let status: serde_json::Value = serde_json::from_str(&self.get("/status")?)?;
        let watched = status["interfaces"]["watched"].as_array();
        let pods = watched.into_iter().flatten();
        Ok(pods.filter(|interface| interface["role"] == "pod").count())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child().id()
    }

    /// What it answers at a path.
    fn get(&self, path: &str) -> Result<String> {
        let ask = || -> Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (head, body) = answer
                .split_once("\r\n\r\n")
                .context("the agent does not speak HTTP")?;
            let status = head.lines().next().unwrap_or_default();
            ensure!(status.contains(" 200"), "{path}: {status}");
            Ok(body.to_owned())
        };
        match self.netns {
            Some(netns) => netns.run(ask),
            None => ask(),
        }
    }

    /// Ends it as Kubernetes would, and checks that it ends well.
    pub(crate) fn stop(&self) -> Result<()> {
        let pods = u32::try_from(self.pods_watched().unwrap_or_default())?;
        let most = END + DETACHING * pods;
        let mut child = self.child();
        let start = Instant::now();
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        while start.elapsed() < most {
            if let Some(status) = child.try_wait()? {
                ensure!(
                    status.success(),
                    "the agent ended with {status} and said:\n{}",
                    self.last_words()
                );
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill()?;
        bail!("the agent did not end within {most:?} of SIGTERM")
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if matches!(self.child().try_wait(), Ok(None)) {
            let _ = self.stop();
        }
    }
}

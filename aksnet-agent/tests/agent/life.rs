//! A *life* of the agent: its process in the emulated node's namespace, asked over HTTP and its socket, and how
//! it ended.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use xtask::testbed::{Netns, Testbed, counters};

use crate::scrape::Scrape;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_aksnet-agent");

/// Where it listens: each testbed's node has a loopback of its own.
pub const LISTEN: &str = "127.0.0.1:9435";

/// From the signal to the end, at the most. The agent's own limit is two seconds and 50 ms for each interface, on a machine
/// that has time for it; what the DaemonSet gives it (`terminationGracePeriodSeconds`) is for a node full of pods.
pub const END: Duration = Duration::from_secs(5);

/// As much more for each interface, as the agent allows itself.
const DETACHING: Duration = Duration::from_millis(50);

/// How long anything else may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// As much longer as things take on a machine whose instructions are translated: `cargo xtask vm` says how many times.
pub fn stretched(patience: Duration) -> Duration {
    let times = std::env::var("AKSNET_TEST_PATIENCE").ok();
    patience * times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Two cores: one testbed at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The right to use the machine, or `None` where these tests cannot run, having said why.
pub fn turn() -> Option<MutexGuard<'static, ()>> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces and BPF programs need root");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Whether the kernel has tcx; without it the agent falls back to clsact.
pub fn has_tcx(netns: &Netns) -> bool {
    netns
        .run(|| Ok(SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()))
        .unwrap_or(false)
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let patience = stretched(PATIENCE);
    let deadline = Instant::now() + patience;
    while !holds()? {
        ensure!(Instant::now() < deadline, "not in {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits for a process to end; kills it when it does not.
pub fn wait(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    let patience = stretched(patience);
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("the process did not end within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where an agent keeps its socket and its logs; outlives its lives.
pub struct Home(tempfile::TempDir);

impl Home {
    pub fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.path().join("agent.sock")
    }

    /// A command of the agent's as it runs on a node.
    pub fn command(&self, bed: &Testbed, name: &str) -> Command {
        let mut command = bed.node().netns().command_with_sysfs(BINARY);
        command
            .arg(name)
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null());
        command
    }

    /// A file for what a process says.
    pub fn log(&self, name: &str) -> Result<(PathBuf, File)> {
        let path = self.path().join(name);
        let file = File::create(&path)?;
        Ok((path, file))
    }
}

/// An answer over HTTP.
pub struct Response {
    pub status: u16,
    pub headers: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> Result<&str> {
        Ok(std::str::from_utf8(&self.body)?)
    }
}

/// A running agent. Dropping it kills it.
pub struct Agent<'a> {
    pub bed: &'a Testbed,
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl<'a> Agent<'a> {
    /// Starts it with these further arguments, and waits until it is ready.
    pub fn start<S: AsRef<OsStr>>(
        bed: &'a Testbed,
        home: &Home,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let mut command = home.command(bed, "run");
        command
            .args(["--listen", LISTEN, "--interval", "100ms"])
            .args(args);
        let mut agent = Self::spawn(bed, home, &mut command)?;
        agent.await_ready()?;
        Ok(agent)
    }

    /// Starts a command made by [`Home::command`].
    pub fn spawn(bed: &'a Testbed, home: &Home, command: &mut Command) -> Result<Self> {
        let name = format!("agent-{}.log", fs::read_dir(home.path())?.count());
        let (log, file) = home.log(&name)?;
        command.stdout(file.try_clone()?).stderr(file);
        Ok(Self {
            bed,
            child: bed.node().netns().spawn(command)?,
            socket: home.socket(),
            log,
        })
    }

    pub fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + stretched(PATIENCE);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended ({status}):\n{}", self.said());
            }
            if self.get("/ready", "").is_ok_and(|r| r.status == 200) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not ready:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it said so far, log and error.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Log lines of warnings and errors.
    pub fn complaints(&self) -> Vec<String> {
        let complains = |l: &&str| l.contains(" WARN ") || l.contains("ERROR ");
        let text = self.said();
        text.lines().filter(complains).map(str::to_owned).collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit code of an agent that ends by itself.
    pub fn code(&mut self) -> Result<Option<i32>> {
        Ok(wait(&mut self.child, PATIENCE)?.code())
    }

    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// A connection to where it listens.
    pub fn dial(&self) -> Result<TcpStream> {
        let address: SocketAddr = LISTEN.parse()?;
        self.bed.node().netns().run(|| {
            let stream = TcpStream::connect_timeout(&address, stretched(Duration::from_secs(2)))?;
            stream.set_read_timeout(Some(stretched(PATIENCE)))?;
            Ok(stream)
        })
    }

    /// Asks for a path, with a further header line.
    pub fn get(&self, path: &str, header: &str) -> Result<Response> {
        let mut stream = self.dial()?;
        let header = if header.is_empty() {
            String::new()
        } else {
            format!("{header}\r\n")
        };
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{header}\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .context("no HTTP answer")?;
        let headers = String::from_utf8(answer[..end].to_vec())?.to_lowercase();
        let status = headers.split(' ').nth(1).context("no status")?.parse()?;
        Ok(Response {
            status,
            headers,
            body: answer[end + 4..].to_vec(),
        })
    }

    pub fn scrape(&self) -> Result<Scrape> {
        let response = self.get("/metrics", "")?;
        ensure!(response.status == 200, "{}", response.headers);
        Scrape::parse(response.text()?)
    }

    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.get("/status", "")?.body)?)
    }

    /// Names of watched interfaces that are attached.
    pub fn attached(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let watched = status["interfaces"]["watched"]
            .as_array()
            .context("a list")?;
        Ok(watched
            .iter()
            .filter(|w| w["attach"] == "attached")
            .filter_map(|w| Some(w["name"].as_str()?.to_owned()))
            .collect())
    }

    /// The metrics once all traffic is over and nothing changes any more.
    pub fn settled(&self) -> Result<Scrape> {
        self.bed.settle()?;
        // A flow is judged when it is a quarter of a second old or so: several sweeps without news.
        let sweeps = |s: &Scrape| s.sum("aksnet_agent_sweep_seconds_count", &[]);
        let mut before = self.scrape()?;
        let mut from = sweeps(&before);
        let deadline = Instant::now() + stretched(PATIENCE);
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.scrape()?;
            if now.samples_of("aksnet_flow_") != before.samples_of("aksnet_flow_")
                || now.samples_of("aksnet_tcp_") != before.samples_of("aksnet_tcp_")
            {
                from = sweeps(&now);
            } else if sweeps(&now) >= from + 10.0 {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "the metrics do not settle");
            before = now;
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Kills it on the spot.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it by a signal; checks that it ends as promised, and returns what it said.
    pub fn stop(mut self, signal: Signal) -> Result<String> {
        let interfaces = u32::try_from(attached(self.bed)?.len() / 2)?;
        let most = stretched(END) + stretched(DETACHING * interfaces);
        let sent = Instant::now();
        self.signal(signal)?;
        let status = wait(&mut self.child, most + PATIENCE)?;
        let took = sent.elapsed();
        let said = self.said();
        // Where instructions are translated the agent may run out of the time that it gives itself, and says so.
        let slow = stretched(END) > END && status.code() == Some(71);
        ensure!(
            status.code() == Some(0) || slow,
            "{signal}: {status}\n{said}"
        );
        ensure!(took < most, "{signal}: took {took:?}\n{said}");
        ensure!(!self.socket.exists(), "{signal}: the socket stays");
        let left = attached(self.bed)?;
        ensure!(left.is_empty(), "{signal}: still attached: {left:?}");
        Ok(said)
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
        if std::thread::panicking() {
            println!("the agent said:\n{}", self.said());
        }
    }
}

/// Every program on a hook of the node's interfaces: `interface hook: how many`.
pub fn attached(bed: &Testbed) -> Result<Vec<String>> {
    let netns = bed.node().netns();
    let mut found = Vec::new();
    for link in counters::links(netns)? {
        let name = link.name.as_str();
        for (at, side) in [
            (TcAttachType::Ingress, "ingress"),
            (TcAttachType::Egress, "egress"),
        ] {
            // Kernels without tcx have nothing attached there; nor has an interface that is gone.
            let tcx = netns.run(|| {
                Ok(SchedClassifier::query_tcx(name, at).map_or(0, |(_, programs)| programs.len()))
            })?;
            if tcx > 0 {
                found.push(format!("{name} tcx {side}: {tcx}"));
            }
            let shown = netns
                .output("tc", ["filter", "show", "dev", name, side])
                .unwrap_or_default();
            let filters = shown.matches("direct-action").count();
            if filters > 0 {
                found.push(format!("{name} clsact {side}: {filters}"));
            }
        }
    }
    Ok(found)
}

/// Flags that tell the agent what it cannot see without Kubernetes.
pub fn plan_flags(bed: &Testbed) -> Vec<String> {
    let plan = bed.plan();
    let list = |ranges: xtask::testbed::plan::Ranges| {
        ranges
            .iter()
            .map(|r| r.to_string())
            .collect::<Vec<_>>()
            .join(",")
    };
    let nodes: Vec<String> = plan
        .nodes
        .iter()
        .flat_map(|n| n.address.iter())
        .map(|a| {
            if a.is_ipv4() {
                format!("{a}/32")
            } else {
                format!("{a}/128")
            }
        })
        .collect();
    [
        format!("--service-cidr={}", list(plan.services)),
        format!("--node-cidr={}", nodes.join(",")),
        format!("--vnet-cidr={}", list(plan.vnet)),
    ]
    .into_iter()
    // With Azure CNI's node subnet, pods and everything else share the virtual network.
    .chain((plan.pods != plan.vnet).then(|| format!("--pod-cidr={}", list(plan.pods))))
    .collect()
}

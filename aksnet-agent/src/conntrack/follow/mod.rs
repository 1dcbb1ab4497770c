//! The *follower*: a thread that keeps the mirror and the statistics up to date.
//!
//! It sleeps, reads what has come, and sleeps again: nobody waits on the socket, so an event costs no wake-up. In mode
//! `events` the table follows the kernel within a tenth of a second; in mode `dump` it is read anew each
//! `conntrack_interval`; both read anew when something was lost. Events alone do not suffice: with
//! `nf_conntrack_events=2`, the default since Linux 5.19, the kernel reports no end of an entry that was made while
//! nobody listened (`nf_ct_ecache_ext_add` in `net/netfilter/nf_conntrack_ecache.c`), so mode `events` reads all anew
//! each minute as well.
//!
//! Whatever fails is a state in [`Status`], said once in the log, and tried again.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use aksnet_common::passage::Tuple;
use serde::Serialize;
use tracing::{info, warn};

use super::{
    message::Body,
    netlink::{Drained, Events, Requests},
    schedule::{Reason, Schedule},
    snat::Limits,
    stats::{self, Counters, CpuReading, Summing, TableSize},
    table::{AzureUse, DestinationUse, PortUse, Table},
};
use crate::config::ConntrackMode;

/// How the table is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowConfig {
    /// By events, by dumps, or not at all. Statistics are read in any mode.
    pub mode: ConntrackMode,
    /// Time between dumps in mode `dump`, and between readings of the statistics.
    pub interval: Duration,
    /// Time between dumps in mode `events`.
    pub reconcile: Duration,
    /// The most entries that are mirrored.
    pub limit: usize,
    /// How many ports there are.
    pub limits: Limits,
    /// Bytes for events that wait to be read.
    pub receive_buffer: usize,
    /// Where `/proc` is, for what ctnetlink does not say.
    pub proc: PathBuf,
}

impl FollowConfig {
    /// The most bytes of events that may wait: about ten thousand events.
    pub const RECEIVE_BUFFER: usize = 8 << 20;
    /// Time between readings of the events.
    pub const TICK: Duration = Duration::from_millis(100);
    /// Time between dumps in mode `events`, unless told otherwise.
    pub const RECONCILE: Duration = Duration::from_mins(1);
}

impl Default for FollowConfig {
    fn default() -> Self {
        let config = crate::config::Config::default();
        config.conntrack()
    }
}

/// How far the table can be relied on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum TableState {
    /// Not followed, as configured.
    Off,
    /// Not read yet.
    Starting,
    /// As the kernel's, or as it was at the last dump.
    Known,
    /// Some events were lost, and the table is about to be read anew.
    Stale,
    /// The kernel does not give it.
    Unknown(String),
}

/// How the follower is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// `events`, `dump` or `off`.
    pub mode: &'static str,
    /// How far the table can be relied on.
    pub table: TableState,
    /// Where the statistics come from: `ctnetlink`, `proc`, or nowhere.
    pub statistics: Option<&'static str>,
    /// Entries that are mirrored.
    pub mirrored: usize,
    /// Entries that should be, and are not, as the mirror is full.
    pub unmirrored: u64,
    /// Events read.
    pub events: u64,
    /// Dumps read to their end.
    pub dumps: u64,
    /// Milliseconds that the last dump took.
    pub last_dump_ms: Option<u64>,
    /// How often the table was read anew, by reason.
    pub resyncs: BTreeMap<&'static str, u64>,
}

/// What the follower knows at one time. What is `None` is not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Use of the node's ports.
    pub ports: Option<Vec<PortUse>>,
    /// Use of Azure's ports.
    pub azure: Option<[AzureUse; 2]>,
    /// Azure's ports of this node.
    pub azure_limit: Option<u32>,
    /// Entries in the kernel's table.
    pub size: TableSize,
    /// The kernel's counters.
    pub counters: Counters,
    /// By how much `insert_failed` grew between the last two readings: clashes that are going on.
    pub clashes: Option<u64>,
    /// Whether the table is known; `None` if it is not followed.
    pub table_known: Option<bool>,
    /// Whether the statistics are.
    pub statistics_known: bool,
    /// Entries that should be mirrored and are not.
    pub unmirrored: u64,
    /// How often the table was read anew, by reason.
    pub resyncs: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Shared {
    table: Table,
    status: Status,
    limits: Limits,
    size: TableSize,
    counters: Counters,
    clashes: Option<u64>,
}

/// A running follower; stops when dropped.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Mutex<Shared>>,
    /// For single questions, in the namespace where the follower was started.
    asking: Mutex<Option<Requests>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts following the network namespace of the calling thread.
    ///
    /// # Errors
    /// When no thread can be started. What the kernel refuses is no error but a [`Status`].
    pub fn start(config: FollowConfig) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared {
            table: Table::new(config.limit),
            status: Status {
                mode: config.mode.name(),
                table: match config.mode {
                    ConntrackMode::Off => TableState::Off,
                    _ => TableState::Starting,
                },
                statistics: None,
                mirrored: 0,
                unmirrored: 0,
                events: 0,
                dumps: 0,
                last_dump_ms: None,
                resyncs: Reason::RESYNCS.map(|r| (r.name(), 0)).into(),
            },
            limits: config.limits,
            size: TableSize::default(),
            counters: Counters::default(),
            clashes: None,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let mut worker = Worker::new(config, Arc::clone(&shared));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("conntrack".into())
            .spawn(move || {
                while !stopping.load(Ordering::Acquire) {
                    worker.step();
                    std::thread::park_timeout(worker.tick());
                }
            })?;
        Ok(Self {
            shared,
            asking: Mutex::new(Requests::open().ok()),
            stop,
            thread: Some(thread),
        })
    }

    /// What is known now. Takes as long as there are different destinations: about a millisecond for 10,000.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let shared = self.lock();
        let known = match shared.status.table {
            TableState::Off => None,
            ref state => Some(*state == TableState::Known),
        };
        // Stale is better than nothing; what was never read is nothing.
        let readable =
            shared.status.dumps > 0 && !matches!(shared.status.table, TableState::Unknown(_));
        Snapshot {
            ports: readable.then(|| shared.table.port_use(shared.limits)),
            azure: readable.then(|| shared.table.azure_use()),
            azure_limit: shared.limits.azure,
            size: shared.size,
            counters: shared.counters,
            clashes: shared.clashes,
            table_known: known,
            statistics_known: shared.status.statistics.is_some(),
            unmirrored: shared.table.unmirrored(),
            resyncs: shared.status.resyncs.clone(),
        }
    }

    /// The destinations that are nearest to running out of the node's ports, and how many there are; `None`: not known.
    #[must_use]
    pub fn busiest(&self, most: usize) -> Option<(Vec<DestinationUse>, usize)> {
        let shared = self.lock();
        let known =
            shared.status.dumps > 0 && !matches!(shared.status.table, TableState::Unknown(_));
        known.then(|| shared.table.busiest(shared.limits, most))
    }

    /// Looks into the table. The follower waits meanwhile, so look briefly.
    pub fn with_table<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(&self.lock().table)
    }

    /// What a process of the node had dialled whose packets leave it with this tuple: the destination before DNAT in
    /// OUTPUT, which is before any program sees the packet. `None` when it was not redirected, or that is not known.
    /// What the mirror does not have is asked of the kernel, at two system calls.
    #[must_use]
    pub fn dialled(&self, protocol: u8, after: &Tuple) -> Option<Tuple> {
        {
            let shared = self.lock();
            if let Some(dialled) = shared.table.dialled(protocol, after) {
                return Some(dialled);
            }
            if matches!(
                shared.status.table,
                TableState::Off | TableState::Unknown(_)
            ) {
                return None;
            }
        }
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = asking.as_mut()?.entry(protocol, after).ok().flatten()?;
        (entry.after == *after && entry.is_dnat()).then_some(entry.original)
    }

    /// Tells how many ports there are from now on: Azure's allocation changes with the number of nodes.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = self.lock();
        Status {
            mirrored: shared.table.len(),
            unmirrored: shared.table.unmirrored(),
            ..shared.status.clone()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // If it panicked, that is on record already.
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A panic in the middle of a change may leave counts that are off; the next dump does not mend those, but the
    // follower has ended then, and the status says how old all is.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What runs on the thread.
struct Worker {
    config: FollowConfig,
    shared: Arc<Mutex<Shared>>,
    began: Instant,
    requests: Option<Requests>,
    events: Option<Events>,
    schedule: Schedule,
    statistics_due: Duration,
    summing: Summing,
    /// What was last said of the table in the log.
    said: Option<String>,
}

impl Worker {
    fn new(config: FollowConfig, shared: Arc<Mutex<Shared>>) -> Self {
        let between = match config.mode {
            ConntrackMode::Events => config.reconcile,
            _ => config.interval,
        };
        Self {
            config,
            shared,
            began: Instant::now(),
            requests: None,
            events: None,
            schedule: Schedule::new(between),
            statistics_due: Duration::ZERO,
            summing: Summing::default(),
            said: None,
        }
    }

    fn tick(&self) -> Duration {
        match self.config.mode {
            ConntrackMode::Events => FollowConfig::TICK,
            _ => self.config.interval.min(Duration::from_secs(1)),
        }
    }

    fn step(&mut self) {
        let now = self.began.elapsed();
        if now >= self.statistics_due {
            self.statistics();
            self.statistics_due = now + self.config.interval;
        }
        if self.config.mode == ConntrackMode::Off {
            return;
        }
        if let Err(error) = self.follow(now) {
            // Sockets are cheap; a new one has no half-read answer in it.
            self.requests = None;
            self.events = None;
            self.schedule.failed(now, Reason::Lost);
            let why = explain(&error);
            if self.said.as_ref() != Some(&why) {
                warn!("the conntrack table cannot be read: {why}; SNAT ports are not known");
                self.said = Some(why.clone());
            }
            let mut shared = lock(&self.shared);
            shared.table.clear();
            shared.status.table = TableState::Unknown(why);
        }
    }

    /// Reads events, and dumps if it is time.
    fn follow(&mut self, now: Duration) -> io::Result<()> {
        if let Some(events) = &mut self.events
            && read(events, &self.shared)? == Drained::Lost
        {
            lock(&self.shared).status.table = TableState::Stale;
            self.schedule.want(Reason::Overflow);
        }
        let Some(reason) = self.schedule.due(now) else {
            return Ok(());
        };
        // Listen first: what changes during the dump is then told as well.
        if self.events.is_none() && self.config.mode == ConntrackMode::Events {
            self.events = Some(Events::open(self.config.receive_buffer)?);
        }
        let requests = open(&mut self.requests)?;
        let began = Instant::now();
        lock(&self.shared).table.begin_dump();
        let consistent = requests.entries(|messages| {
            let mut shared = lock(&self.shared);
            for message in messages {
                if let Body::New(entry) = message.body {
                    shared.table.add(&entry);
                }
            }
        })?;
        if !consistent {
            self.schedule.failed(now, Reason::Interrupted);
            return Ok(());
        }
        let mut shared = lock(&self.shared);
        shared.table.end_dump();
        let status = &mut shared.status;
        status.dumps += 1;
        status.last_dump_ms = u64::try_from(began.elapsed().as_millis()).ok();
        status.table = TableState::Known;
        if let Some(count) = status.resyncs.get_mut(reason.name()) {
            *count += 1;
        }
        drop(shared);
        self.schedule.done(self.began.elapsed(), reason);
        if self.said.take().is_some() {
            info!("the conntrack table can be read again");
        }
        Ok(())
    }

    fn statistics(&mut self) {
        let netlink = open(&mut self.requests).and_then(|r| Ok((r.cpus()?, r.table()?)));
        let netlink = match netlink {
            Ok((readings, size)) if !readings.is_empty() => Some((readings, size)),
            Ok(_) => None,
            Err(_) => {
                self.requests = None;
                None
            }
        };
        let source = if netlink.is_some() {
            "ctnetlink"
        } else {
            "proc"
        };
        let known = netlink.or_else(|| self.proc_statistics());
        let mut shared = lock(&self.shared);
        let Some((readings, mut size)) = known else {
            // Counters stay as they were, as counters do; what is now is not known.
            shared.status.statistics = None;
            shared.size = TableSize::default();
            shared.clashes = None;
            return;
        };
        let sysctl = |name| stats::number(&self.config.proc.join("sys/net/netfilter").join(name));
        size.entries = size.entries.or_else(|| sysctl("nf_conntrack_count"));
        size.limit = size.limit.or_else(|| sysctl("nf_conntrack_max"));
        let first = shared.counters.insert_failed.is_none();
        let before = shared.counters.insert_failed.unwrap_or(0);
        shared.counters = self.summing.add(&readings);
        let clashes = shared.counters.insert_failed.map(|now| now - before);
        shared.clashes = clashes.filter(|_| !first);
        shared.size = size;
        shared.status.statistics = Some(source);
    }

    fn proc_statistics(&self) -> Option<(Vec<CpuReading>, TableSize)> {
        // /proc/net is the main thread's; this thread's own is the one of its namespace.
        let path = self.config.proc.join("thread-self/net/stat/nf_conntrack");
        let (readings, entries) = stats::parse_proc(&std::fs::read_to_string(path).ok()?)?;
        let size = TableSize {
            entries,
            limit: None,
        };
        (!readings.is_empty()).then_some((readings, size))
    }
}

/// Reads what waits into the table.
fn read(events: &mut Events, shared: &Mutex<Shared>) -> io::Result<Drained> {
    /// Enough for the whole receive buffer; what comes meanwhile can wait.
    const MOST: usize = 1 << 16;
    /// Others get a turn in between.
    const TURN: usize = 64;
    let mut lost = Drained::Empty;
    for _ in 0..MOST / TURN {
        let mut guard = lock(shared);
        let Shared { table, status, .. } = &mut *guard;
        let mut seen = 0;
        let drained = events.drain(TURN, |messages| {
            seen += 1;
            for message in messages {
                match message.body {
                    Body::New(entry) => table.add(&entry),
                    Body::Destroyed(entry) => table.destroy(&entry),
                    _ => continue,
                }
                status.events += 1;
            }
        })?;
        if drained == Drained::Lost {
            lost = Drained::Lost;
        } else if seen < TURN {
            break;
        }
    }
    Ok(lost)
}

fn open(requests: &mut Option<Requests>) -> io::Result<&mut Requests> {
    match requests {
        Some(requests) => Ok(requests),
        None => Ok(requests.insert(Requests::open()?)),
    }
}

/// What an error of ctnetlink means.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "it needs CAP_NET_ADMIN".to_owned(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT) => {
            format!("this kernel has no ctnetlink, or has not loaded it ({error})")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;

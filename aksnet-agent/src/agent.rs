//! The agent's life: look at the node, load, attach, be ready; sweep and follow the node until a signal;
//! detach, sweep a last time, end.
//!
//! Everything that touches the kernel's BPF side or the accounts stands behind [`Parts`], so that the life
//! itself is tested with fakes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    admin::Metrics,
    attachments::Attachments,
    board::{Board, Readiness},
    bpf::datapath::Datapath,
    config::{Config, Effective},
    exit::{Exit, Failure, OrExit},
    identify::object::Kind,
    node::{Context, Node, Snapshot, found::Found, roles, watch::Watch},
    plan::Plan,
    socket::protocol::LiveSource,
    sources::Sources,
    survey::{Survey, Surveyed},
};

/// Reads the maps and folds what they say into the accounts.
pub trait Sweeper: Send {
    /// One sweep.
    ///
    /// # Errors
    /// When a map cannot be read; the next sweep may succeed.
    fn sweep(&mut self, now: Instant) -> anyhow::Result<()>;

    /// The last sweep, after the programs are detached: nothing stays unaccounted.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn finish(&mut self) -> anyhow::Result<()>;

    /// Addresses mean something else from now on.
    fn set_plan(&mut self, plan: Arc<Plan>);

    /// A survey of the node says this.
    fn set_survey(&mut self, surveyed: &Surveyed);

    /// How full the tables are, for `/status`.
    fn tables(&self) -> Value;
}

/// How long the first sweep waits for names and for the first survey: what is counted meanwhile stays in the maps.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the life is wired to.
pub struct Parts {
    /// The loaded programs.
    pub datapath: Box<dyn Datapath>,
    /// What reads their maps.
    pub sweeper: Box<dyn Sweeper>,
    /// What `/metrics` gives.
    pub metrics: Metrics,
    /// Where `top` and `drops` get what they show.
    pub top: Arc<dyn LiveSource>,
}

/// Loads the programs and builds the accounts for this node.
pub trait Load: FnOnce(&Config, &Node, &Arc<Sources>) -> Result<Parts, Failure> {}
impl<F: FnOnce(&Config, &Node, &Arc<Sources>) -> Result<Parts, Failure>> Load for F {}

/// A living agent.
pub struct Agent {
    config: Config,
    host_name: String,
    watch: Watch,
    snapshot: Snapshot,
    node: Node,
    sources: Arc<Sources>,
    survey: Survey,
    /// The latest survey, as far as the plan rests on it.
    context: Context,
    told_of_stranger: bool,
    attachments: Attachments,
    parts: Parts,
    board: Arc<Board>,
    sweep_failing: bool,
    /// While this is open the kernel accounts the run time of BPF programs.
    _bpf_stats: Option<std::os::fd::OwnedFd>,
}

impl Agent {
    /// Looks at the node, loads and attaches.
    ///
    /// # Errors
    /// When an interface that the config names is not there, netlink fails, or the programs are refused.
    pub async fn start(
        effective: &Effective,
        board: Arc<Board>,
        load: impl Load,
    ) -> Result<Self, Failure> {
        let config = effective.config.clone();
        let (snapshot, watch) = Watch::start()
            .await
            .map_err(|e| e.context("cannot read this node's interfaces over netlink"))
            .or_exit(Exit::Os)?;
        roles::check_named(&snapshot, &config)?;
        cross_check(&snapshot);
        let host_name = nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let context = Context::default();
        let node = Node::describe(&snapshot, &config, &host_name, &context);
        log_found(&node);
        let node_name = if config.node_name.is_empty() {
            &host_name
        } else {
            &config.node_name
        };
        let sources = Arc::new(Sources::start(&config, node_name).await?);
        let survey = Survey::start(&config, &snapshot, sources.clone());
        let parts = load(&config, &node, &sources)?;
        let mut agent = Self {
            _bpf_stats: bpf_stats(&config),
            config,
            host_name,
            watch,
            snapshot,
            node,
            sources,
            survey,
            context,
            told_of_stranger: false,
            attachments: Attachments::default(),
            parts,
            board,
            sweep_failing: false,
        };
        agent.parts.sweeper.set_plan(agent.node.plan.clone());
        agent.attach();
        for program in agent.parts.datapath.programs() {
            if program.up {
                tracing::info!("program {}", program.summary());
            } else {
                tracing::warn!("program {}", program.summary());
            }
        }
        Ok(agent)
    }

    /// Where `top` and `drops` get what they show.
    #[must_use]
    pub fn top(&self) -> Arc<dyn LiveSource> {
        self.parts.top.clone()
    }

    /// What `/metrics` gives.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.parts.metrics.clone()
    }

    /// Sweeps and follows the node until `stop`.
    ///
    /// # Errors
    /// When the node can no longer be followed.
    pub async fn live<T>(&mut self, stop: impl Future<Output = T>) -> Result<T, Failure> {
        let mut stop = std::pin::pin!(stop);
        // A signal does not wait for names.
        tokio::select! {
            stopped = &mut stop => return Ok(stopped),
            () = self.wait_for_sources() => self.sweep(),
        }
        let mut sweeps = tokio::time::interval(self.config.interval);
        sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first is done.
        sweeps.tick().await;
        loop {
            self.board.beat();
            let retry = self.attachments.next_retry();
            let retry_at = retry.unwrap_or_else(Instant::now).into();
            tokio::select! {
                stopped = &mut stop => return Ok(stopped),
                _ = sweeps.tick() => self.sweep(),
                snapshot = self.watch.next() => {
                    let Some(snapshot) = snapshot else {
                        return Err(Failure::new(Exit::Os, "following this node's interfaces has ended"));
                    };
                    self.follow(snapshot);
                }
                surveyed = self.survey.next() => self.learn(&surveyed),
                () = tokio::time::sleep_until(retry_at), if retry.is_some() => {
                    self.attachments.retry(self.parts.datapath.as_mut(), Instant::now());
                    self.post_node();
                }
            }
        }
    }

    /// How many interfaces it is attached to, or is trying to be.
    #[must_use]
    pub fn watched(&self) -> u32 {
        u32::try_from(self.attachments.states().count()).unwrap_or(u32::MAX)
    }

    /// Detaches everything, and sweeps what was counted until then.
    pub fn end(mut self) {
        let stopping = Readiness::Waiting("stopping".to_owned());
        self.board.post_readiness(stopping);
        self.attachments.detach_all(self.parts.datapath.as_mut());
        // The tracepoint, too: what the last sweep reads does not change any more.
        drop(self.parts.datapath);
        if let Err(error) = self.parts.sweeper.finish() {
            tracing::warn!("the last sweep failed: {error:#}");
        }
        tracing::info!("detached, and swept a last time");
    }

    /// Flows that are judged before names are known would be counted without. What cannot be had in time is not
    /// waited for.
    async fn wait_for_sources(&mut self) {
        let until = tokio::time::Instant::now() + PATIENCE;
        if let Ok(surveyed) = tokio::time::timeout_at(until, self.survey.next()).await {
            self.learn(&surveyed);
        }
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        if !self.sources.settle(left).await && self.sources.asks_kubernetes() {
            tracing::warn!(
                "Kubernetes has not told everything within {PATIENCE:?}: going on, with names as they come"
            );
        }
        self.meet_stranger();
    }

    /// Says once that Kubernetes does not know this node, as no pod of it is named then.
    fn meet_stranger(&mut self) {
        let index = self.sources.names.read();
        let known = index.this_node().is_some() || !index.synced(Kind::Node);
        if !known && !self.told_of_stranger {
            self.told_of_stranger = true;
            tracing::warn!(
                "Kubernetes has no node '{}': this node's pods have no names; set --node-name to its name there",
                self.sources.node_name
            );
        }
    }

    fn follow(&mut self, snapshot: Snapshot) {
        self.sources.hint();
        self.survey.look(&snapshot);
        self.snapshot = snapshot;
        self.describe();
    }

    /// A survey has news.
    fn learn(&mut self, surveyed: &Surveyed) {
        if self.context.found.as_ref().map(Found::line) != Some(surveyed.found.line()) {
            tracing::info!("{}", surveyed.found.line());
        }
        self.context = surveyed.context();
        self.parts.sweeper.set_survey(surveyed);
        self.board.post_survey(surveyed.to_json());
        self.meet_stranger();
        // The deletions that the snapshot told of are done.
        self.snapshot.deleted.clear();
        self.describe();
    }

    /// Draws the conclusions anew.
    fn describe(&mut self) {
        let node = Node::describe(&self.snapshot, &self.config, &self.host_name, &self.context);
        if node.plan.id() != self.node.plan.id() {
            self.parts.sweeper.set_plan(node.plan.clone());
        }
        self.node = node;
        self.attach();
    }

    fn attach(&mut self) {
        self.attachments.reconcile(
            self.parts.datapath.as_mut(),
            self.node.interfaces(),
            &self.snapshot.deleted,
            Instant::now(),
        );
        self.post_node();
    }

    fn post_node(&self) {
        let programs = self.parts.datapath.programs();
        self.board
            .post_node(&self.node, &self.attachments, programs);
    }

    fn sweep(&mut self) {
        // So that the metrics have the programs' own account of this moment.
        self.board.post_programs(self.parts.datapath.programs());
        let swept = self.parts.sweeper.sweep(Instant::now());
        self.board.post_sources(self.sources.to_json());
        let failing = swept.is_err();
        let outcome = match swept {
            Ok(()) => Ok(self.parts.sweeper.tables()),
            Err(error) => {
                // Once, not every second; /status has the latest.
                if !self.sweep_failing {
                    tracing::error!("a sweep failed, trying again each interval: {error:#}");
                }
                Err(format!("{error:#}"))
            }
        };
        if self.sweep_failing && !failing {
            tracing::info!("sweeps succeed again");
        }
        self.sweep_failing = failing;
        let readiness = match (&outcome, self.attachments.trouble()) {
            (Err(error), _) => Readiness::Waiting(format!("the latest sweep failed: {error}")),
            (_, Some(trouble)) => Readiness::Waiting(trouble),
            _ => Readiness::Ready,
        };
        self.board.post_sweep(outcome);
        match &readiness {
            Readiness::Ready if self.board.post_readiness(readiness.clone()) => {
                tracing::info!("ready");
            }
            Readiness::Waiting(why) if self.board.post_readiness(readiness.clone()) => {
                tracing::warn!("not ready: {why}");
            }
            _ => {}
        }
    }
}

fn bpf_stats(config: &Config) -> Option<std::os::fd::OwnedFd> {
    if !config.bpf_stats {
        return None;
    }
    match aya::sys::enable_stats(aya::sys::Stats::RunTime) {
        Ok(fd) => Some(fd),
        Err(error) => {
            tracing::warn!("bpf_stats: the kernel does not account programs' run time: {error}");
            None
        }
    }
}

/// A second witness for the list of interfaces, read by other means (`getifaddrs`): a link that the dump
/// lacks would silently not be watched. Indexes only grow: one beyond the dump's is newer, and will be heard of.
fn cross_check(snapshot: &Snapshot) {
    let newest = snapshot.links.iter().map(|l| l.index).max().unwrap_or(0);
    for interface in pnet::datalink::interfaces() {
        if interface.index <= newest && snapshot.link(interface.index).is_none() {
            let (name, index) = (&interface.name, interface.index);
            tracing::warn!("netlink does not list interface {name} ({index}); it is not watched");
        }
    }
}

fn log_found(node: &Node) {
    for w in &node.watched {
        let i = &w.interface;
        tracing::info!(
            "found {} ({}): {}, {}",
            i.name,
            i.index,
            i.role.name(),
            w.why
        );
    }
    for p in &node.passed_over {
        tracing::debug!("passing over {}: {}", p.name, p.why);
    }
    if !node
        .watched
        .iter()
        .any(|w| w.interface.role == aksnet_common::stats::Role::Uplink)
    {
        tracing::warn!("found no uplink, as there is no default route; name one with --uplink");
    }
    for fact in &node.facts {
        let single = fact.net.prefix_len() == fact.net.max_prefix_len();
        if single {
            tracing::debug!(
                "plan: {} is {} ({})",
                fact.net.addr(),
                fact.what.name(),
                fact.source
            );
        } else {
            tracing::info!(
                "plan: {} is {} ({})",
                fact.net,
                fact.what.name(),
                fact.source
            );
        }
    }
}

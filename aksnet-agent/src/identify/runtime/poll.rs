//! The *poll*: asks the runtime again and again, and tells the sink what changed.
//!
//! CRI has an event stream (`GetContainerEvents`), but containerd has it only since 1.7, and it may lose events;
//! a list is right by itself. What is known outlives the connection: after a restart of the runtime only what
//! changed meanwhile is told.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    client::{Client, Failure},
    pace::Pace,
    place::Place,
    sandbox::{self, Changes, fold},
};
use crate::identify::{
    object::{Kind, Object, Pod, Text},
    sink::{self, Change, Sink},
};

/// How the runtime is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// The sockets to try, in order; the first that answers is asked.
    pub paths: Vec<PathBuf>,
    /// This node's name, which its pods get.
    pub node: Text,
    /// Time between lists while nothing hints at a change.
    pub every: Duration,
}

impl Options {
    /// The usual ones: a list every 5 s.
    #[must_use]
    pub fn new(place: &Place, node: &str) -> Self {
        Self {
            paths: place.paths(),
            node: node.into(),
            every: Duration::from_secs(5),
        }
    }
}

/// How the source does, for `/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The socket that answered last.
    pub path: Option<PathBuf>,
    /// Who answered there, and its version, e.g. `containerd 1.7.27`.
    pub runtime: Option<String>,
    /// It answers, and all it has was told.
    pub synced: bool,
    /// What went wrong last; cleared when all is well.
    pub last_error: Option<String>,
    /// Sandboxes known now, those of finished pods included.
    pub sandboxes: usize,
}

/// The running source. Ends when it is dropped.
pub struct Runtime {
    task: JoinHandle<()>,
    status: watch::Receiver<Status>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Runtime {
    /// Starts asking. `hint` is notified when something suggests that pods came or went, such as a new
    /// interface. `None` when there is no socket to try ([`Place::Off`]). Must be called within a tokio runtime.
    #[must_use]
    pub fn start(options: Options, sink: Arc<dyn Sink>, hint: Arc<Notify>) -> Option<Self> {
        if options.paths.is_empty() {
            return None;
        }
        let (sender, status) = watch::channel(Status::default());
        sink.status(Kind::Sandbox, &sink::Status::default());
        let poll = Poll {
            options,
            sink,
            status: sender,
            client: None,
            known: BTreeMap::new(),
            told: false,
            in_touch: None,
            state: sink::Status::default(),
        };
        let task = tokio::spawn(poll.run(hint));
        Some(Self { task, status })
    }

    /// How it does now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

struct Poll {
    options: Options,
    sink: Arc<dyn Sink>,
    status: watch::Sender<Status>,
    client: Option<Client>,
    /// By id; `None`: the runtime told nothing of it that could be a pod.
    known: BTreeMap<Text, Option<Pod>>,
    /// Whether the sink was told everything once.
    told: bool,
    /// Whether the last round went well; `None` before the first. What changes it is logged, once.
    in_touch: Option<bool>,
    /// What the sink was last told of how this source does.
    state: sink::Status,
}

impl Poll {
    async fn run(mut self, hint: Arc<Notify>) {
        let mut pace = Pace::new(self.options.every);
        loop {
            let pause = match self.round().await {
                Ok(refused) => {
                    self.well(refused);
                    pace.after_success()
                }
                Err(why) => {
                    self.client = None;
                    self.failed(&why);
                    pace.after_failure()
                }
            };
            let mut due = Instant::now() + pause;
            loop {
                tokio::select! {
                    () = sleep_until(due) => break,
                    () = hint.notified() => due = due.min(Instant::now() + pace.hinted()),
                }
            }
        }
    }

    /// Lists, asks for what is new, tells. Gives the last refusal that concerned a single sandbox.
    async fn round(&mut self) -> Result<Option<String>, String> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        let at =
            |path: &std::path::Path, failure: Failure| format!("{}: {failure}", path.display());
        let listed = client.list().await.map_err(|f| at(client.path(), f))?;
        let changes = fold(&self.known, &listed);
        let refused = self
            .follow(&mut client, changes)
            .await
            .map_err(|f| at(client.path(), f))?;
        if !self.told {
            self.told = true;
            let pods = self.known.values().flatten().cloned();
            let mut changes = vec![Change::Begin(Kind::Sandbox)];
            changes.extend(pods.map(|pod| Change::Apply(Object::Pod(pod))));
            changes.push(Change::Settle(Kind::Sandbox));
            self.sink.fold(&mut changes);
        }
        self.client = Some(client);
        Ok(refused)
    }

    /// The first of the paths that answers.
    async fn connect(&self) -> Result<Client, String> {
        let mut reasons = Vec::new();
        for path in &self.options.paths {
            match Client::connect(path).await {
                Ok(client) => {
                    self.status.send_modify(|status| {
                        status.path = Some(path.clone());
                        status.runtime = Some(client.runtime().to_owned());
                    });
                    return Ok(client);
                }
                Err(failure) => reasons.push(format!("{}: {failure}", path.display())),
            }
        }
        Err(reasons.join("; "))
    }

    async fn follow(
        &mut self,
        client: &mut Client,
        changes: Changes,
    ) -> Result<Option<String>, Failure> {
        for id in changes.gone {
            if let Some(Some(pod)) = self.known.remove(&id) {
                self.tell_gone(pod);
            }
        }
        for id in changes.finished {
            if let Some(Some(pod)) = self.known.get_mut(&id) {
                pod.finished = true;
                let pod = pod.clone();
                self.tell(pod);
            }
        }
        let mut refused = None;
        for id in changes.ask {
            match client.status(&id).await {
                Ok(status) => self.learn(&id, sandbox::pod(&id, status, &self.options.node)),
                // Removed since it was listed; the next list tells.
                Err(Failure::NotFound) => {}
                Err(Failure::Refused(why)) => refused = Some(format!("sandbox {id}: {why}")),
                Err(lost @ Failure::Lost(_)) => return Err(lost),
            }
        }
        Ok(refused)
    }

    fn learn(&mut self, id: &Text, pod: Option<Pod>) {
        let before = self.known.insert(id.clone(), pod.clone());
        match (before.flatten(), pod) {
            (before, Some(pod)) if before.as_ref() != Some(&pod) => self.tell(pod),
            (Some(before), None) => self.tell_gone(before),
            _ => {}
        }
    }

    fn tell(&self, pod: Pod) {
        if self.told {
            self.sink.fold(&mut vec![Change::Apply(Object::Pod(pod))]);
        }
    }

    fn tell_gone(&self, pod: Pod) {
        if self.told {
            let key = Object::Pod(pod).key();
            self.sink.fold(&mut vec![Change::Delete(key)]);
        }
    }

    /// Tells the sink how this source does, when that is news.
    fn report(&mut self, connected: bool, error: Option<String>) {
        let state = sink::Status {
            synced: self.told,
            connected,
            last_error: error.or_else(|| self.state.last_error.clone()),
            since: if connected == self.state.connected && self.state.since != 0 {
                self.state.since
            } else {
                sink::unix_seconds()
            },
            retries: self.state.retries + u64::from(!connected),
            lists: u64::from(self.told),
            odd: 0,
        };
        if state != self.state {
            self.sink.status(Kind::Sandbox, &state);
            self.state = state;
        }
    }

    fn well(&mut self, refused: Option<String>) {
        self.report(true, refused.clone());
        let sandboxes = self.known.len();
        self.status.send_modify(|status| {
            status.synced = true;
            status.last_error = refused;
            status.sandboxes = sandboxes;
        });
        if self.in_touch.replace(true) != Some(true) {
            let status = self.status.borrow();
            tracing::info!(
                "pod names come from {} at {}: {sandboxes} sandboxes",
                status.runtime.as_deref().unwrap_or_default(),
                status
                    .path
                    .as_deref()
                    .unwrap_or(std::path::Path::new(""))
                    .display(),
            );
        }
    }

    fn failed(&mut self, why: &str) {
        self.report(false, Some(why.to_owned()));
        let sandboxes = self.known.len();
        self.status.send_modify(|status| {
            status.synced = false;
            status.last_error = Some(why.to_owned());
            status.sandboxes = sandboxes;
        });
        match self.in_touch.replace(false) {
            Some(false) => {}
            Some(true) => {
                tracing::warn!("lost touch with the container runtime, trying again: {why}");
            }
            // Nobody said that there is one, and where.
            None if self.options.paths.len() > 1 => {
                tracing::info!("no pod names from a container runtime: {why}");
            }
            None => tracing::warn!("no pod names from the container runtime, trying again: {why}"),
        }
    }
}

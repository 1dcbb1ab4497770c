//! What the source *told*: a sink that keeps everything, in order.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aksnet_agent::identify::{
    object::{Kind, Object, Pod},
    runtime::{Options, Place, Runtime},
    sink::{Change, Sink, Status},
};
use tokio::sync::Notify;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// One thing that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tale {
    Begin,
    Apply(String),
    Delete(String),
    Settle,
    Status(State),
}

/// How the source does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Starting,
    Synced,
    Failed(String),
}

/// Everything that was told.
#[derive(Default)]
pub struct Told {
    tales: Mutex<Vec<Tale>>,
    pods: Mutex<BTreeMap<String, Pod>>,
}

impl Sink for Told {
    fn fold(&self, changes: &mut Vec<Change>) {
        for change in changes.drain(..) {
            let tale = match change {
                Change::Begin(kind) => {
                    assert_eq!(kind, Kind::Sandbox);
                    Tale::Begin
                }
                Change::Apply(Object::Pod(pod)) => {
                    assert_eq!(pod.kind, Kind::Sandbox);
                    let id = pod.key_name.to_string();
                    self.pods.lock().unwrap().insert(id.clone(), pod);
                    Tale::Apply(id)
                }
                Change::Apply(object) => panic!("no pod: {object:?}"),
                Change::Delete(key) => {
                    let id = key.name.to_string();
                    let pod = self.pods.lock().unwrap().remove(&id);
                    assert_eq!(pod.map(|pod| Object::Pod(pod).key()), Some(key));
                    Tale::Delete(id)
                }
                Change::Settle(_) => Tale::Settle,
            };
            self.tales.lock().unwrap().push(tale);
        }
    }

    fn status(&self, _: Kind, status: &Status) {
        let state = match (&status.last_error, status.connected) {
            (_, true) => State::Synced,
            (None, false) => State::Starting,
            (Some(why), false) => State::Failed(why.clone()),
        };
        let mut tales = self.tales.lock().unwrap();
        // A failure that goes on is told with each retry.
        let goes_on = matches!(
            (tales.last(), &state),
            (Some(Tale::Status(State::Failed(_))), State::Failed(_))
        );
        if !goes_on && tales.last() != Some(&Tale::Status(state.clone())) {
            tales.push(Tale::Status(state));
        }
    }
}

impl Told {
    /// All of it.
    pub fn tales(&self) -> Vec<Tale> {
        self.tales.lock().unwrap().clone()
    }

    /// The pods as they are now, by id.
    pub fn pods(&self) -> BTreeMap<String, Pod> {
        self.pods.lock().unwrap().clone()
    }

    /// How often a pod was told of.
    pub fn applied(&self, id: &str) -> usize {
        let tale = Tale::Apply(id.to_owned());
        self.tales().iter().filter(|&told| *told == tale).count()
    }
}

/// A source that is asked every `every`.
pub struct Source {
    pub told: Arc<Told>,
    pub hint: Arc<Notify>,
    pub runtime: Runtime,
}

impl Source {
    /// One at this path.
    pub fn start(path: &Path, every: Duration) -> Self {
        Self::start_with(&[path], every)
    }

    /// One at the first of these paths that answers.
    pub fn start_with(paths: &[&Path], every: Duration) -> Self {
        let (told, hint) = (Arc::new(Told::default()), Arc::new(Notify::new()));
        let options = Options {
            paths: paths.iter().map(|&path| path.to_owned()).collect(),
            every,
            ..Options::new(&Place::Off, "node-0")
        };
        let runtime = Runtime::start(options, told.clone(), hint.clone()).expect("it is not off");
        Self {
            told,
            hint,
            runtime,
        }
    }

    /// What went wrong last, once something did.
    pub async fn error(&self) -> String {
        eventually("an error", || self.runtime.status().last_error.is_some()).await;
        self.runtime.status().last_error.unwrap()
    }

    /// Waits until all was told.
    pub async fn synced(&self) {
        eventually("in sync", || self.runtime.status().synced).await;
    }
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

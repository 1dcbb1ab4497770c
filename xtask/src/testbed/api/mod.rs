//! A stand-in for the Kubernetes API server: lists and watches as the real one answers them, and every way in which it
//! can fail, on demand.
//!
//! It speaks HTTP without TLS, to whoever asks, and holds what it was given. It stores no YAML, checks nothing, and
//! knows no verbs but list and watch, and reviews of tokens. Semantics are those of
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/>.

// What it holds.
mod store;

pub mod objects;

// How it answers, or fails to.
mod http;

pub mod fault;

// Whose a token is.
mod grants;

mod serve;

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

pub use self::fault::{Fault, Verb};
use self::{fault::Faults, grants::Grants, store::Store};
use super::Netns;

/// A request that was answered, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// List, watch or review.
    pub verb: Verb,
    /// Without its query.
    pub path: String,
    /// Its query, decoded.
    pub query: BTreeMap<String, String>,
    /// The authorization header; empty if there was none.
    pub authorization: String,
    /// Bytes of the answer's body so far.
    pub bytes: u64,
}

#[derive(Default)]
struct State {
    store: Store,
    grants: Grants,
    faults: Faults,
    seen: Vec<Seen>,
    connections: BTreeMap<u64, TcpStream>,
    next_connection: u64,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server. Dropping it ends it, with all its connections.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiServer({})", self.address)
    }
}

impl ApiServer {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the port cannot be taken.
    pub fn start() -> Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts one at this address.
    ///
    /// # Errors
    /// When the address cannot be taken.
    pub fn start_at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address);
        Self::on(listener.with_context(|| format!("cannot listen on {address}"))?)
    }

    /// Starts one inside of a namespace, at an address that is there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the address cannot be taken.
    pub fn start_in(netns: &Netns, address: SocketAddr) -> Result<Self> {
        // A socket stays in the namespace it was made in, and so do the connections it accepts.
        let listener = netns.run(|| {
            TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
        })?;
        Self::on(listener)
    }

    fn on(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let server = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &server));
        Ok(Self { shared, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for it.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&self.url())
    }

    /// Creates or replaces an object. It gets the next resource version.
    ///
    /// # Panics
    /// When it is of a kind that the server does not know, or has no name.
    pub fn apply(&self, object: Value) {
        self.shared.lock().store.apply(object);
        self.shared.changed.notify_all();
    }

    /// Creates or replaces many objects.
    pub fn apply_all(&self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            self.apply(object);
        }
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.shared.lock().store.delete(kind, namespace, name);
        self.shared.changed.notify_all();
    }

    /// Has a kind consist of so many more objects that are made when they are asked for, so that a large cluster needs
    /// no memory. They never change, and only selectors with `!=` find them.
    pub fn generate(
        &self,
        kind: &str,
        count: usize,
        make: impl Fn(usize) -> String + Send + Sync + 'static,
    ) {
        let mut state = self.shared.lock();
        state.store.generate(kind, count, Arc::new(make));
    }

    /// Puts this line into all watches of a kind, as it is.
    pub fn inject(&self, kind: &str, line: &str) {
        self.shared.lock().store.inject(kind, line);
        self.shared.changed.notify_all();
    }

    /// Sends a bookmark to all watches that asked for bookmarks.
    pub fn bookmark(&self) {
        self.shared.lock().store.bookmark();
        self.shared.changed.notify_all();
    }

    /// Forgets all versions but the latest: watches that run end with an `ERROR` event 410, older versions and
    /// tokens of pages are answered with 410.
    pub fn gone(&self) {
        self.shared.lock().store.forget(true);
        self.shared.changed.notify_all();
    }

    /// Forgets all versions but the latest, and lets watches that run go on.
    pub fn compact(&self) {
        self.shared.lock().store.forget(false);
    }

    /// Whether lists are cut into pages also when they ask for version 0, which real servers answer whole.
    pub fn page_always(&self, always: bool) {
        self.shared.lock().store.page_always = always;
    }

    /// Makes a token known as this user's, who may `get` these paths.
    pub fn grant(&self, token: &str, user: &str, paths: &[&str]) {
        self.shared.lock().grants.add(token, user, paths);
    }

    /// Forgets a token.
    pub fn revoke(&self, token: &str) {
        self.shared.lock().grants.remove(token);
    }

    /// Fails the next so many requests of this kind; `path` is a part of their path, empty for any.
    pub fn fail(&self, verb: Verb, path: &str, times: usize, fault: Fault) {
        self.shared.lock().faults.plan(verb, path, times, fault);
    }

    /// Closes all connections, whatever is on its way in them.
    pub fn break_connections(&self) {
        for connection in self.shared.lock().connections.values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// All requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// Waits until as many watches of this path were begun.
    ///
    /// # Errors
    /// When they were not in 10 s.
    pub fn wait_for_watches(&self, path: &str, count: usize) -> Result<()> {
        for _ in 0..1000 {
            let seen = self.seen();
            let begun = seen
                .iter()
                .filter(|seen| seen.verb == Verb::Watch && seen.path.contains(path));
            if begun.count() >= count {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("fewer than {count} watches of {path}")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        self.break_connections();
    }
}

/// A kubeconfig for a server at this URL that asks for no credentials.
#[must_use]
pub fn kubeconfig(url: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: stand-in
  cluster:
    server: {url}
contexts:
- name: stand-in
  context:
    cluster: stand-in
    user: nobody
users:
- name: nobody
  user: {{}}
current-context: stand-in
"
    )
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_nodelay(true);
                let Ok(copy) = stream.try_clone() else {
                    continue;
                };
                let mut state = shared.lock();
                let number = state.next_connection;
                state.next_connection += 1;
                state.connections.insert(number, copy);
                drop(state);
                let shared = Arc::clone(shared);
                std::thread::spawn(move || {
                    // However it ended, the connection is done with.
                    let _ = serve::connection(&shared, &stream);
                    let _ = stream.shutdown(Shutdown::Both);
                    shared.lock().connections.remove(&number);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(_) => return,
        }
    }
}

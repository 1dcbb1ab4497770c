//! One watch: a list, then the changes since, for as long as the agent runs.
//!
//! What is asked for is what client-go's reflector asks for (client-go `tools/cache/reflector.go`), as API servers are
//! built for that:
//!
//! - The first list asks for `resourceVersion=0`: any state that the server has at hand. It answers from memory and does
//!   not bother etcd, and then ignores the page size (kubernetes pull request 70735); see `pages` for what that means
//!   here. A state that is a moment old is no harm: the watch goes on from just there.
//! - A later list, as the watch cannot go on from where it was, asks for nothing older than what was seen, without a
//!   page size, which is again served from memory.
//! - Only if the server refuses that too, pages of the latest state are asked for; and if the pages take so long that
//!   the server forgets them, the whole of it.
//!
//! A watch that ends or breaks goes on from the last version seen, without a list. Bookmarks keep that version young.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use backon::ExponentialBackoff;
use kube::Client;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::{
    lines::Lines,
    pages::{Broken, Pages},
    request::{self, Class, Failure},
    resource::Resource,
    status::Health,
    timing::Timing,
};
use crate::identify::{
    object::Kind,
    reduce::{self, Event, PageEnd, Reduced, Reducer},
    sink::{self, Change, Sink, Status},
};

/// Which state a list asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ask {
    /// Any, in pages if the server likes.
    Any,
    /// Not older than this version, at once.
    NotOlder(String),
    /// The latest, in pages.
    Latest,
    /// The latest, at once.
    LatestWhole,
}

impl Ask {
    /// What to ask after this one failed so. `late` is whether a page was there already.
    fn after(self, class: Class, late: bool) -> Self {
        match class {
            Class::Expired if late => Self::LatestWhole,
            Class::Expired | Class::TooNew => Self::Latest,
            _ => self,
        }
    }
}

/// How a watch ended that was answered at all.
#[derive(Debug)]
enum End {
    /// By the server, as it was asked to.
    Over,
    /// In the middle.
    Broken(Failure),
}

/// A watch of one kind.
pub(super) struct Watch {
    client: Client,
    resource: Resource,
    selector: Option<String>,
    timing: Timing,
    sink: Arc<dyn Sink>,
    health: Arc<Health>,
    reducer: Reducer,
    status: Status,
    changes: Vec<Change>,
    /// When the last line about odd objects was logged.
    warned: Option<Instant>,
}

/// Odd objects get a line so often, per kind.
const WARN_EVERY: Duration = Duration::from_mins(10);
/// A watch that was shorter, and empty, is no success.
const SHORTEST: Duration = Duration::from_secs(1);

impl Watch {
    pub(super) fn new(
        client: Client,
        resource: Resource,
        node: &str,
        timing: Timing,
        sink: Arc<dyn Sink>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            client,
            resource,
            selector: resource.selector(node),
            timing,
            sink,
            health,
            reducer: Reducer::default(),
            status: Status {
                since: sink::unix_seconds(),
                ..Status::default()
            },
            changes: Vec::new(),
            warned: None,
        }
    }

    const fn kind(&self) -> Kind {
        self.resource.kind
    }

    /// Lists and watches until it is dropped.
    pub(super) async fn run(mut self) {
        let mut pauses = self.timing.pauses();
        let mut ask = Ask::Any;
        self.post();
        loop {
            let mut late = false;
            let mut version = match self.list(&ask, &mut late).await {
                Ok(version) => version,
                Err(failure) => {
                    ask = ask.after(failure.class, late);
                    self.pause(&failure, &mut pauses).await;
                    continue;
                }
            };
            pauses = self.timing.pauses();
            loop {
                let began = Instant::now();
                let mut events = 0_u64;
                let failure = match self.watch(&mut version, &mut events).await {
                    Err(failure) | Ok(End::Broken(failure)) => Some(failure),
                    Ok(End::Over) if events > 0 || began.elapsed() > SHORTEST => None,
                    Ok(End::Over) => Some(Failure::new(Class::Broken, "a watch ended as it began")),
                };
                if events > 0 || began.elapsed() > self.timing.answer {
                    pauses = self.timing.pauses();
                }
                let Some(failure) = failure else { continue };
                match failure.class {
                    Class::Expired => {
                        debug!(kind = self.kind().name(), version, "listing again");
                        ask = Ask::NotOlder(version);
                    }
                    Class::TooNew => ask = Ask::Latest,
                    // A connection that breaks is everyday; it is a loss only when it cannot be made again.
                    _ if events > 0 => {
                        debug!(kind = self.kind().name(), "going on: {}", failure.message);
                        sleep(pauses.next().unwrap_or(self.timing.longest_pause)).await;
                        continue;
                    }
                    _ => {
                        self.pause(&failure, &mut pauses).await;
                        continue;
                    }
                }
                // Even so not all nodes at once, should all watches have expired together.
                sleep(pauses.next().unwrap_or(self.timing.longest_pause)).await;
                break;
            }
        }
    }

    /// Tells a failure and waits.
    async fn pause(&mut self, failure: &Failure, pauses: &mut ExponentialBackoff) {
        self.health.lost(self.kind(), failure);
        debug!(kind = self.kind().name(), "failed: {}", failure.message);
        if self.status.connected {
            self.status.since = sink::unix_seconds();
        }
        self.status.connected = false;
        self.status.retries += 1;
        self.status.last_error = Some(failure.message.clone());
        self.post();
        let pause = pauses.next().unwrap_or(self.timing.longest_pause);
        sleep(failure.wait.map_or(pause, |wait| wait + pause / 2)).await;
    }

    /// Lists everything and gives the version to watch from. `late` tells that a page was complete.
    async fn list(&mut self, ask: &Ask, late: &mut bool) -> Result<String, Failure> {
        self.status.lists += 1;
        self.changes.push(Change::Begin(self.kind()));
        let mut next = String::new();
        loop {
            let end = self.page(ask, &next).await?;
            if end.next.is_empty() {
                self.changes.push(Change::Settle(self.kind()));
                self.fold();
                self.status.synced = true;
                self.post();
                return Ok(end.version);
            }
            *late = true;
            next = end.next;
        }
    }

    async fn page(&mut self, ask: &Ask, next: &str) -> Result<PageEnd, Failure> {
        let size = self.timing.page_size.to_string();
        let mut query = Vec::new();
        if let Some(selector) = &self.selector {
            query.push(("fieldSelector", selector.as_str()));
        }
        if next.is_empty() {
            match ask {
                Ask::Any => query.push(("resourceVersion", "0")),
                Ask::NotOlder(version) => {
                    query.push(("resourceVersion", version));
                    query.push(("resourceVersionMatch", "NotOlderThan"));
                }
                Ask::Latest | Ask::LatestWhole => {}
            }
        } else {
            query.push(("continue", next));
        }
        if matches!(ask, Ask::Any | Ask::Latest) {
            query.push(("limit", &size));
        }
        let target = request::target(&self.resource.path(), &query);
        let patience = self.timing.page;
        tokio::time::timeout(patience, self.read_page(&target))
            .await
            .unwrap_or_else(|_| {
                let text = format!(
                    "a list was not complete within {} s",
                    patience.as_secs_f32()
                );
                Err(Failure::new(Class::Silent, text))
            })
    }

    async fn read_page(&mut self, target: &str) -> Result<PageEnd, Failure> {
        let mut body = request::open(&self.client, target, self.timing.answer).await?;
        let mut pages = Pages::new();
        while let Some(piece) = request::piece(&mut body, self.timing.answer).await? {
            let mut items = |item: Option<&[u8]>| self.item(item);
            pages.push(&piece, &mut items).map_err(unreadable)?;
            self.fold();
        }
        let frame = pages.finish().map_err(unreadable)?;
        let end = reduce::page_end(&frame).map_err(|_| unreadable(Broken::Garbage))?;
        if end.version.is_empty() {
            // An answer of some other kind must not pass for an empty list.
            return Err(unreadable(Broken::Garbage));
        }
        Ok(end)
    }

    /// An item of a list.
    fn item(&mut self, item: Option<&[u8]>) {
        let kind = self.kind();
        let Some(item) = item else {
            return self.odd("", &["object: too long"]);
        };
        match self.reducer.object(kind, item) {
            Ok(reduced) => self.apply(reduced),
            Err(error) => self.odd("", &[&format!("object: {error}")]),
        }
    }

    fn apply(&mut self, reduced: Reduced) {
        self.odd(&reduced.label, &reduced.odd);
        self.changes.extend(reduced.object.map(Change::Apply));
    }

    /// Watches from this version on, and moves it. An error is a watch that was not answered.
    async fn watch(&mut self, version: &mut String, events: &mut u64) -> Result<End, Failure> {
        let longest = self.timing.watch.as_secs().max(1);
        let seconds = longest - RandomState::new().hash_one(()) % (longest / 5).max(1);
        let seconds = seconds.to_string();
        let mut query = vec![
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version.as_str()),
            ("timeoutSeconds", &seconds),
        ];
        if let Some(selector) = &self.selector {
            query.push(("fieldSelector", selector));
        }
        let target = request::target(&self.resource.path(), &query);
        let mut body = request::open(&self.client, &target, self.timing.answer).await?;
        self.connected();
        let mut lines = Lines::new();
        loop {
            let piece = match request::piece(&mut body, self.timing.silence).await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(End::Over),
                Err(failure) => return Ok(End::Broken(failure)),
            };
            let mut end = None;
            lines.push(&piece, |line| {
                if end.is_none() {
                    *events += 1;
                    end = self.line(line, version);
                }
            });
            self.fold();
            if let Some(failure) = end {
                return Ok(End::Broken(failure));
            }
        }
    }

    /// An event of a watch; gives a failure if it says that the watch ends.
    fn line(&mut self, line: Option<&[u8]>, version: &mut String) -> Option<Failure> {
        let kind = self.kind();
        let Some(line) = line else {
            self.odd("", &["event: too long"]);
            return None;
        };
        let mut seen = |new: &mut String| {
            if !new.is_empty() {
                *version = std::mem::take(new);
            }
        };
        match self.reducer.event(kind, line) {
            Ok(Event::Applied(mut reduced)) => {
                seen(&mut reduced.version);
                self.apply(reduced);
            }
            Ok(Event::Deleted(mut reduced)) => {
                seen(&mut reduced.version);
                // Oddities of what is gone are none.
                match reduced.object {
                    Some(object) => self.changes.push(Change::Delete(object.key())),
                    None => self.odd(&reduced.label, &reduced.odd),
                }
            }
            Ok(Event::Bookmark(mut new)) => seen(&mut new),
            Ok(Event::Error(problem)) => return Some(Failure::of(&problem)),
            Ok(Event::Unknown(name)) => {
                let name: String = name.chars().take(40).collect();
                self.odd("", &[&format!("event type '{name}'")]);
            }
            Err(error) => self.odd("", &[&format!("event: {error}")]),
        }
        None
    }

    fn connected(&mut self) {
        self.health.back(self.kind());
        if !self.status.connected {
            self.status.connected = true;
            self.status.since = sink::unix_seconds();
            self.post();
        }
    }

    /// Counts an object of which something was left out, and says so now and then.
    fn odd(&mut self, label: &str, fields: &[&str]) {
        if fields.is_empty() {
            return;
        }
        self.status.odd += 1;
        let due = self.warned.is_none_or(|at| at.elapsed() > WARN_EVERY);
        if due {
            self.warned = Some(Instant::now());
            warn!(
                kind = self.kind().name(),
                object = label,
                fields = fields.join(", "),
                odd = self.status.odd,
                "an object from the API is not as it should be; what is odd is left out"
            );
        }
        self.post();
    }

    fn fold(&mut self) {
        if !self.changes.is_empty() {
            self.sink.fold(&mut self.changes);
            self.changes.clear();
        }
    }

    fn post(&self) {
        self.sink.status(self.kind(), &self.status);
    }
}

fn unreadable(broken: Broken) -> Failure {
    let text = match broken {
        Broken::Truncated => "a list ended in the middle",
        Broken::Garbage => "the answer is no list of the API",
    };
    Failure::new(Class::Broken, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_expired_asks_for_the_latest() {
        let expired = |ask: Ask, late| ask.after(Class::Expired, late);
        assert_eq!(expired(Ask::NotOlder("7".to_owned()), false), Ask::Latest);
        assert_eq!(expired(Ask::Any, true), Ask::LatestWhole);
        assert_eq!(Ask::Any.after(Class::TooNew, false), Ask::Latest);
        assert_eq!(Ask::Any.after(Class::Unreachable, true), Ask::Any);
    }
}

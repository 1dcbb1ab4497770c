//! One connection: requests in, lists and watches out.

use std::io::{self, BufReader};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{self, Answer, Request};
use super::store::{Entry, Store, selects};
use super::{Fault, Seen, Shared, Verb};

/// A list is written in parts of about this size.
const PART: usize = 64 << 10;

pub(super) fn connection(shared: &Shared, stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = http::read(&mut reader)? {
        let verb = if request.is_post {
            Verb::Review
        } else if request.query.contains_key("watch") {
            Verb::Watch
        } else {
            Verb::List
        };
        let (number, fault) = {
            let mut state = shared.lock();
            state.seen.push(Seen {
                verb,
                path: request.path.clone(),
                query: request.query.clone(),
                authorization: request.authorization.clone(),
                bytes: 0,
            });
            (state.seen.len() - 1, state.faults.next(verb, &request.path))
        };
        let mut call = Call {
            shared,
            stream,
            number,
            left: None,
            dribble: None,
        };
        match fault {
            Some(Fault::Status(code)) => call.refuse(code, "", "as the test wants")?,
            Some(Fault::RetryAfter(code, seconds)) => {
                call.refuse(code, &format!("Retry-After: {seconds}\r\n"), "too many")?;
            }
            Some(Fault::Body(body)) => {
                let mut answer = call.begin(200, "")?;
                answer.write(body.as_bytes())?;
                answer.end()?;
            }
            Some(Fault::Silence) => {
                while !shared.stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                return Ok(());
            }
            other => {
                match other {
                    Some(Fault::Cut(left)) => call.left = Some(left),
                    Some(Fault::Dribble(size, pause)) => call.dribble = Some((size, pause)),
                    _ => {}
                }
                if verb == Verb::Review {
                    call.review(&request)?;
                } else if !Store::serves(&request.path) {
                    call.refuse(404, "", "the server could not find the requested resource")?;
                } else if verb == Verb::List {
                    call.list(&request)?;
                } else {
                    call.watch(&request)?;
                }
            }
        }
    }
    Ok(())
}

/// A request that is being answered.
struct Call<'a> {
    shared: &'a Shared,
    stream: &'a TcpStream,
    number: usize,
    left: Option<usize>,
    dribble: Option<(usize, Duration)>,
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        429 => "TooManyRequests",
        504 => "Timeout",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

impl Call<'_> {
    fn begin(&self, code: u16, headers: &str) -> io::Result<Answer<'_>> {
        let mut answer = Answer::begin(self.stream, code, headers)?;
        answer.left = self.left;
        answer.dribble = self.dribble;
        Ok(answer)
    }

    fn refuse(&self, code: u16, headers: &str, message: &str) -> io::Result<()> {
        let mut answer = self.begin(code, headers)?;
        answer.write(status(code, message).to_string().as_bytes())?;
        answer.end()
    }

    fn review(&self, request: &Request) -> io::Result<()> {
        let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let answered = self.shared.lock().grants.review(&request.path, asked);
        let Some(review) = answered else {
            return self.refuse(404, "", "the server could not find the requested resource");
        };
        let mut answer = self.begin(201, "")?;
        answer.write(review.to_string().as_bytes())?;
        answer.end()
    }

    fn count(&self, answer: &Answer<'_>) {
        self.shared.lock().seen[self.number].bytes = answer.bytes;
    }

    fn list(&self, request: &Request) -> io::Result<()> {
        let given = |key: &str| request.query.get(key).map_or("", String::as_str);
        let selector = given("fieldSelector");
        let (mut place, mut version) = (0, None);
        {
            let state = self.shared.lock();
            let store = &state.store;
            if let Some((at, place_of)) = given("continue").split_once('.') {
                let at: u64 = at.parse().unwrap_or_default();
                if at < store.oldest {
                    drop(state);
                    let text = "The provided continue parameter is too old";
                    return self.refuse(410, "", text);
                }
                (place, version) = (place_of.parse().unwrap_or_default(), Some(at));
            }
            let wanted: u64 = given("resourceVersion").parse().unwrap_or_default();
            if wanted > store.version {
                let text = format!(
                    "Timeout: Too large resource version: {wanted}, current: {}",
                    store.version
                );
                drop(state);
                return self.refuse(504, "", &text);
            }
            // From memory, whole; see kubernetes pull request 70735.
            if given("resourceVersion") == "0" && !store.page_always {
                version = Some(store.version);
                place = 0;
            }
        }
        let whole = given("continue").is_empty()
            && given("resourceVersion") == "0"
            && !self.shared.lock().store.page_always;
        let limit = given("limit")
            .parse()
            .ok()
            .filter(|limit| *limit > 0 && !whole);
        self.page(&request.path, selector, place, version, limit)
    }

    fn page(
        &self,
        path: &str,
        selector: &str,
        place: usize,
        version: Option<u64>,
        limit: Option<usize>,
    ) -> io::Result<()> {
        // What is to be written is gathered under the lock, and made and written outside of it.
        let (items, next, version) = {
            let mut state = self.shared.lock();
            let version = version.unwrap_or(state.store.version);
            let Some(collection) = state.store.collection(path) else {
                return Ok(());
            };
            let end = limit.unwrap_or(collection.len());
            let mut items: Vec<_> = collection.from(place, selector).take(end + 1).collect();
            let more = items.len() > end;
            items.truncate(end);
            let next = items.last().filter(|_| more).map(|(after, _)| *after);
            (items, next, version)
        };
        let mut answer = self.begin(200, "")?;
        let mut part = String::from("{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":");
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if let Some(next) = next {
            metadata["continue"] = json!(format!("{version}.{next}"));
        }
        part.push_str(&metadata.to_string());
        part.push_str(",\"items\":[");
        for (at, (_, item)) in items.iter().enumerate() {
            if at > 0 {
                part.push(',');
            }
            part.push_str(&item.json());
            if part.len() > PART {
                answer.write(part.as_bytes())?;
                part.clear();
            }
        }
        part.push_str("]}\n");
        answer.write(part.as_bytes())?;
        self.count(&answer);
        answer.end()
    }

    fn watch(&self, request: &Request) -> io::Result<()> {
        let given = |key: &str| request.query.get(key).map_or("", String::as_str);
        let selector = given("fieldSelector");
        let bookmarks = given("allowWatchBookmarks") == "true";
        let seconds = given("timeoutSeconds").parse().unwrap_or(300);
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut version: u64 = given("resourceVersion").parse().unwrap_or_default();
        let era = self.shared.lock().store.era;
        let mut answer = self.begin(200, "")?;
        let mut fresh = true;
        loop {
            let mut lines = String::new();
            let mut state = self.shared.lock();
            let store = &mut state.store;
            let gone = version < store.oldest && (fresh || store.era > era);
            fresh = false;
            if gone {
                let status = status(410, &format!("too old resource version: {version}"));
                lines = format!("{}\n", json!({"type": "ERROR", "object": status}));
            } else if let Some(collection) = store.collection(&request.path) {
                let new = collection.history.partition_point(|(at, _)| *at <= version);
                for (at, entry) in &collection.history[new..] {
                    version = *at;
                    lines.push_str(&line(*at, entry, selector, bookmarks));
                }
            }
            if lines.is_empty() {
                if self.shared.stop.load(Ordering::Relaxed) || Instant::now() > deadline {
                    drop(state);
                    return answer.end();
                }
                let pause = Duration::from_millis(50);
                drop(self.shared.changed.wait_timeout(state, pause));
                continue;
            }
            drop(state);
            answer.write(lines.as_bytes())?;
            self.count(&answer);
            if gone {
                return answer.end();
            }
        }
    }
}

/// What a watch with this selector hears of an entry.
fn line(version: u64, entry: &Entry, selector: &str, bookmarks: bool) -> String {
    let selected = |object: &&std::sync::Arc<Value>| selects(selector, object);
    let event = match entry {
        Entry::Line(line) => return format!("{line}\n"),
        Entry::Bookmark if bookmarks => json!({
            "type": "BOOKMARK",
            "object": {"metadata": {"resourceVersion": version.to_string()}},
        }),
        Entry::Bookmark => return String::new(),
        Entry::Changed(before, after) => {
            let before = before.as_ref().filter(selected);
            let after = after.as_ref().filter(selected);
            match (before, after) {
                (None, None) => return String::new(),
                (None, Some(after)) => json!({"type": "ADDED", "object": **after}),
                (Some(_), Some(after)) => json!({"type": "MODIFIED", "object": **after}),
                (Some(before), None) => {
                    let mut event = json!({"type": "DELETED", "object": **before});
                    event["object"]["metadata"]["resourceVersion"] = json!(version.to_string());
                    event
                }
            }
        }
    };
    format!("{event}\n")
}

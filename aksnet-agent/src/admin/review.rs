//! *Review* of tokens: the API server says whose a token is (`TokenReview`) and whether that one may `get` a path
//! (`SubjectAccessReview`), as kube-rbac-proxy and controller-runtime ask it.
//!
//! What it said is kept for a while, so that a scrape costs the API server nothing most of the time. Who cannot be
//! reviewed is not let in.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use http::{Request, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Client, client::Body};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    exit::{Exit, Failure},
    identify::kube::{
        Access,
        request::{Failure as Refused, body, chain},
    },
};

const TOKENS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// No token is longer: the API server's own take a kilobyte.
const LONGEST: usize = 16 << 10;
/// No answer is longer.
const LONGEST_ANSWER: usize = 256 << 10;
/// So many are asked about at once; others wait.
const AT_ONCE: usize = 4;
/// So many verdicts are kept.
const KEPT: usize = 64;

/// How long to wait, and how long what was said holds.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For both reviews together, the wait for others included.
    pub answer: Duration,
    /// A token that was let in is not asked about again for so long.
    pub allowed: Duration,
    /// One that was not.
    pub denied: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // A scrape takes no longer by default.
            answer: Duration::from_secs(8),
            // As long as controller-runtime keeps what a TokenReview said.
            allowed: Duration::from_mins(1),
            denied: Duration::from_secs(10),
        }
    }
}

/// What the API server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it in.
    Allowed,
    /// It is nobody's token.
    Unknown,
    /// It is this one's, who may not.
    Forbidden(String),
    /// It said nothing, and why.
    Unreviewable(String),
}

/// Asks, and remembers.
pub struct Reviewer {
    client: Client,
    patience: Patience,
    asking: Semaphore,
    kept: Mutex<Kept>,
}

impl Reviewer {
    /// One that asks the API server.
    ///
    /// # Errors
    /// When there is no way to it, or a kubeconfig that cannot be used.
    pub async fn connect(access: &Access) -> Result<Self, Failure> {
        Self::with(access, Patience::default()).await
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn with(access: &Access, patience: Patience) -> Result<Self, Failure> {
        let client = access.client().await?.map_err(|why| {
            Failure::new(
                Exit::Config,
                format_args!(
                    "--metrics-auth token: no API server that could review tokens: {why}; name one with --kubeconfig"
                ),
            )
        })?;
        Ok(Self {
            client,
            patience,
            asking: Semaphore::new(AT_ONCE),
            kept: Mutex::default(),
        })
    }

    /// Whether this token may `get` this path.
    pub async fn review(&self, token: &str, path: &str) -> Verdict {
        if token.len() > LONGEST {
            return Verdict::Unknown;
        }
        if let Some(verdict) = self.kept().get(token, path, Instant::now()) {
            return verdict;
        }
        let asked = timeout(self.patience.answer, self.ask(token, path)).await;
        let verdict = match asked {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(refused)) => Verdict::Unreviewable(refused.message),
            Err(_late) => {
                let text = format!("no answer within {} s", self.patience.answer.as_secs_f32());
                Verdict::Unreviewable(text)
            }
        };
        let holds = match &verdict {
            Verdict::Allowed => self.patience.allowed,
            Verdict::Unknown | Verdict::Forbidden(_) => self.patience.denied,
            Verdict::Unreviewable(why) => {
                tracing::debug!("a token cannot be reviewed: {why}");
                return verdict;
            }
        };
        let now = Instant::now();
        self.kept()
            .put(token, path, verdict.clone(), now, now + holds);
        verdict
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Entries are put in and taken out whole.
        self.kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn ask(&self, token: &str, path: &str) -> Result<Verdict, Refused> {
        // Never closed.
        let _turn = self.asking.acquire().await;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let status = self.post(TOKENS, &review).await?.status.unwrap_or_default();
        let user = match status.user {
            Some(user) if status.authenticated == Some(true) => user,
            _ => return Ok(Verdict::Unknown),
        };
        let name = user.username.clone().unwrap_or_default();
        let review = SubjectAccessReview {
            spec: may_get(user, path),
            ..SubjectAccessReview::default()
        };
        let status = self.post(ACCESS, &review).await?.status.unwrap_or_default();
        Ok(if status.allowed && status.denied != Some(true) {
            Verdict::Allowed
        } else {
            Verdict::Forbidden(name)
        })
    }

    async fn post<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        review: &T,
    ) -> Result<T, Refused> {
        let broken = |why: String| Refused::broken(format!("{path}: {why}"));
        let text = serde_json::to_vec(review).map_err(|error| broken(error.to_string()))?;
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Body::from(text))
            .map_err(|error| broken(chain(&error)))?;
        let text = body(&self.client, request, self.patience.answer, LONGEST_ANSWER).await?;
        serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))
    }
}

fn may_get(user: UserInfo, path: &str) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec {
        user: user.username,
        uid: user.uid,
        groups: user.groups,
        extra: user.extra,
        non_resource_attributes: Some(NonResourceAttributes {
            path: Some(path.to_owned()),
            verb: Some("get".to_owned()),
        }),
        resource_attributes: None,
    }
}

/// One that is kept.
struct Entry {
    token: String,
    path: String,
    verdict: Verdict,
    until: Instant,
}

/// The verdicts that are kept: few, so a list.
#[derive(Default)]
struct Kept(Vec<Entry>);

impl Kept {
    fn get(&mut self, token: &str, path: &str, now: Instant) -> Option<Verdict> {
        self.0.retain(|entry| entry.until > now);
        let found = self.0.iter().find(|e| e.token == token && e.path == path);
        found.map(|entry| entry.verdict.clone())
    }

    fn put(&mut self, token: &str, path: &str, verdict: Verdict, now: Instant, until: Instant) {
        self.0
            .retain(|e| e.until > now && !(e.token == token && e.path == path));
        if self.0.len() >= KEPT {
            // Whoever sends rubbish is not to have the good ones asked about again.
            let last = |(_, e): &(usize, &Entry)| (e.verdict == Verdict::Allowed, e.until);
            let out = self.0.iter().enumerate().min_by_key(last);
            if let Some(at) = out.map(|(at, _)| at) {
                self.0.remove(at);
            }
        }
        self.0.push(Entry {
            token: token.to_owned(),
            path: path.to_owned(),
            verdict,
            until,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_hold_for_a_while_each_for_its_token_and_path() {
        let mut kept = Kept::default();
        let now = Instant::now();
        let until = now + Duration::from_secs(10);
        kept.put("a", "/metrics", Verdict::Allowed, now, until);
        assert_eq!(kept.get("a", "/metrics", now), Some(Verdict::Allowed));
        assert_eq!(kept.get("a", "/status", now), None);
        assert_eq!(kept.get("b", "/metrics", now), None);
        kept.put("a", "/metrics", Verdict::Unknown, now, until);
        assert_eq!(kept.get("a", "/metrics", now), Some(Verdict::Unknown));
        assert_eq!(kept.get("a", "/metrics", until), None);
        assert!(kept.0.is_empty(), "what is over is not kept");
    }

    #[test]
    fn rubbish_takes_no_more_than_its_room_and_not_the_place_of_who_is_let_in() {
        let mut kept = Kept::default();
        let now = Instant::now();
        let until = now + Duration::from_secs(10);
        kept.put("prometheus", "/metrics", Verdict::Allowed, now, until);
        for n in 0..10_000 {
            kept.put(
                &format!("{n}"),
                "/metrics",
                Verdict::Unknown,
                now,
                until + Duration::from_nanos(n),
            );
        }
        assert_eq!(kept.0.len(), KEPT);
        assert_eq!(
            kept.get("prometheus", "/metrics", now),
            Some(Verdict::Allowed)
        );
        assert_eq!(kept.get("9999", "/metrics", now), Some(Verdict::Unknown));
        assert_eq!(kept.get("0", "/metrics", now), None);
    }
}

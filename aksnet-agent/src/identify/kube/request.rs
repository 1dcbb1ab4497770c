//! Requests to the API server, and what can go wrong with them.

use std::{error::Error, fmt::Write as _, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use tokio::time::timeout;

use crate::identify::reduce::{self, Problem};

/// No answer that is an error is read further.
const LONGEST_ERROR: usize = 64 << 10;
/// A server may ask to be left alone for no longer.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The version that was asked for is no longer kept, or the token for the next page.
    Expired,
    /// The version that was asked for is newer than what the server has: it was restored, or lags behind.
    TooNew,
    /// No connection.
    Unreachable,
    /// A connection, but no answer, or none that goes on.
    Silent,
    /// An answer with this HTTP status.
    Status(u16),
    /// An answer that cannot be read.
    Broken,
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) class: Class,
    pub(crate) message: String,
    /// The server asks not to be asked again for so long.
    pub(crate) wait: Option<Duration>,
}

impl Failure {
    pub(super) fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            wait: None,
        }
    }

    /// An answer, or a request, that makes no sense.
    pub(crate) fn broken(message: impl Into<String>) -> Self {
        Self::new(Class::Broken, message)
    }

    /// What a `Status` means, whether it is an answer's body or an event.
    pub(super) fn of(problem: &Problem) -> Self {
        let code = u16::try_from(problem.code).unwrap_or(500);
        let class = if code == 410 || matches!(problem.reason.as_str(), "Expired" | "Gone") {
            Class::Expired
        } else if problem.message.contains("Too large resource version") {
            // Reason is Timeout, and older servers give no cause (client-go, reflector.go).
            Class::TooNew
        } else {
            Class::Status(code)
        };
        let mut message = match StatusCode::from_u16(code) {
            Ok(status) => status.to_string(),
            Err(_) => code.to_string(),
        };
        if !problem.message.is_empty() {
            let text: String = problem.message.chars().take(300).collect();
            let _ = write!(message, ": {text}");
        }
        message.push_str(match code {
            401 => "; the token or certificate is not accepted",
            403 => "; deploy/base/rbac.yaml has the rules that are needed",
            _ => "",
        });
        let wait = Duration::from_secs(problem.retry_after).min(LONGEST_WAIT);
        Self {
            class,
            message,
            wait: (!wait.is_zero()).then_some(wait),
        }
    }
}

/// An error and what it comes from, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            let _ = write!(text, ": {part}");
        }
        source = error.source();
    }
    text
}

/// Asks, and gives the answer once it is known to be a good one.
pub(super) async fn open(
    client: &Client,
    target: &str,
    patience: Duration,
) -> Result<Body, Failure> {
    let request = Request::get(target)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty());
    let request = request.map_err(|error| Failure::new(Class::Broken, chain(&error)))?;
    send(client, request, patience).await
}

/// Asks for something short, and gives all of the answer.
pub(crate) async fn body(
    client: &Client,
    request: Request<Body>,
    patience: Duration,
    longest: usize,
) -> Result<Vec<u8>, Failure> {
    let mut body = send(client, request, patience).await?;
    let mut text = Vec::new();
    while let Some(piece) = piece(&mut body, patience).await? {
        if text.len() + piece.len() > longest {
            return Err(Failure::broken("the answer is too long"));
        }
        text.extend_from_slice(&piece);
    }
    Ok(text)
}

async fn send(
    client: &Client,
    request: Request<Body>,
    patience: Duration,
) -> Result<Body, Failure> {
    let answer = match timeout(patience, client.send(request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(Failure::new(Class::Unreachable, chain(&error))),
        Err(_) => {
            let text = format!("no answer within {} s", patience.as_secs_f32());
            return Err(Failure::new(Class::Silent, text));
        }
    };
    if answer.status().is_success() {
        return Ok(answer.into_body());
    }
    Err(refused(answer, patience).await)
}

async fn refused(answer: Response<Body>, patience: Duration) -> Failure {
    let status = answer.status();
    let retry_after = answer.headers().get(header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while text.len() < LONGEST_ERROR
        && let Ok(Some(piece)) = piece(&mut body, patience).await
    {
        text.extend_from_slice(&piece);
    }
    let mut problem = reduce::problem(&text);
    problem.code = u64::from(status.as_u16());
    problem.retry_after = retry_after.unwrap_or(problem.retry_after);
    Failure::of(&problem)
}

/// The next piece of an answer; none after its end.
pub(super) async fn piece(body: &mut Body, patience: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        match timeout(patience, body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => {
                // Trailers say nothing.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Ok(Some(Err(error))) => return Err(Failure::new(Class::Unreachable, chain(&error))),
            Err(_) => {
                let text = format!("the answer stopped for {} s", patience.as_secs_f32());
                return Err(Failure::new(Class::Silent, text));
            }
        }
    }
}

/// A path with a query.
pub(super) fn target(path: &str, query: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (at, (key, value)) in query.iter().enumerate() {
        target.push(if at == 0 { '?' } else { '&' });
        target.push_str(key);
        target.push('=');
        for byte in value.bytes() {
            // The unreserved ones (RFC 3986).
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                target.push(char::from(byte));
            } else {
                let _ = write!(target, "%{byte:02X}");
            }
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: u64, reason: &str, message: &str) -> Failure {
        Failure::of(&Problem {
            code,
            reason: reason.to_owned(),
            message: message.to_owned(),
            retry_after: 0,
        })
    }

    #[test]
    fn a_version_that_is_not_kept_is_told_from_other_refusals() {
        assert_eq!(problem(410, "Gone", "").class, Class::Expired);
        assert_eq!(problem(0, "Expired", "").class, Class::Expired);
        let text = "Timeout: Too large resource version: 9, current: 7";
        assert_eq!(problem(504, "Timeout", text).class, Class::TooNew);
        assert_eq!(problem(500, "", "").class, Class::Status(500));
    }

    #[test]
    fn a_denial_names_the_file_that_helps() {
        let failure = problem(403, "Forbidden", "pods is forbidden");
        assert_eq!(
            failure.message,
            "403 Forbidden: pods is forbidden; deploy/base/rbac.yaml has the rules that are needed"
        );
    }

    #[test]
    fn no_server_is_obeyed_for_hours() {
        let failure = Failure::of(&Problem {
            code: 429,
            retry_after: u64::MAX,
            ..Problem::default()
        });
        assert_eq!(failure.wait, Some(LONGEST_WAIT));
    }

    #[test]
    fn a_query_is_encoded() {
        let query = [("fieldSelector", "spec.nodeName!=a b&c"), ("limit", "5")];
        assert_eq!(
            target("/api/v1/pods", &query),
            "/api/v1/pods?fieldSelector=spec.nodeName%21%3Da%20b%26c&limit=5"
        );
    }
}

//! The page over HTTP: its files, and `/api/live`.

use std::{io::Write as _, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{RawQuery, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use tokio::sync::Mutex;

use super::{answers::Answers, files::FILES, host::Hosts, question};
use crate::{
    admin::{gzip, wants_gzip},
    board::Board,
    live::{LiveQuery, Snapshot},
};

/// Nothing but the page's own files runs, is shown or is asked; nobody frames it; no text becomes markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
    trusted-types 'none'";

/// With every answer, whatever it is.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // What the node says is not kept on anybody's disk.
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// Gives all views of the node; the error says what of the question is not understood.
pub type Look = Arc<dyn Fn(&LiveQuery) -> Result<Snapshot, String> + Send + Sync>;

/// What the page shows.
pub struct Shown {
    board: Arc<Board>,
    look: Look,
    /// Locked while one is made, whether or not somebody still waits for it: there is one look at a time, and whoever
    /// asks the same meanwhile gets that.
    answers: Arc<Mutex<Answers>>,
}

impl Shown {
    /// The agent's accounts, and how it is doing.
    #[must_use]
    pub fn new(board: Arc<Board>, look: Look) -> Self {
        Self {
            board,
            look,
            answers: Arc::default(),
        }
    }

    /// The answer to a question as JSON, zipped or not. The error says what of it is not understood.
    async fn answer(&self, query: LiveQuery, zipped: bool) -> Result<Bytes, Refusal> {
        let question = serde_json::to_string(&(&query, zipped))?;
        let mut answers = self.answers.clone().lock_owned().await;
        let sweep = *self.board.sweeps().borrow();
        if let Some(answer) = answers.get(sweep, &question) {
            return Ok(answer);
        }
        let (look, board) = (self.look.clone(), self.board.clone());
        // A look takes milliseconds, and waits for a sweep that is under way. It has the lock: a browser that hangs up
        // ends this future, but not the look.
        let made = tokio::task::spawn_blocking(move || {
            let snapshot = look(&query).map_err(Refusal::Question)?;
            let health = Some(board.health());
            let answer = write(&Snapshot { health, ..snapshot }, zipped)?;
            answers.keep(question, answer.clone());
            Ok(answer)
        });
        made.await
            .map_err(|error| Refusal::Agent(error.to_string()))?
    }
}

fn write(snapshot: &Snapshot, zipped: bool) -> Result<Bytes, Refusal> {
    if !zipped {
        return Ok(serde_json::to_vec(snapshot)?.into());
    }
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let mut writer = std::io::BufWriter::new(encoder);
    serde_json::to_writer(&mut writer, snapshot)?;
    let agents = |error: std::io::Error| Refusal::Agent(error.to_string());
    writer.flush().map_err(agents)?;
    let encoder = writer.into_inner().map_err(|e| agents(e.into_error()))?;
    Ok(encoder.finish().map_err(agents)?.into())
}

/// Why there is no answer.
enum Refusal {
    /// It was not understood.
    Question(String),
    /// Something is wrong with the agent.
    Agent(String),
}

impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Self {
        Self::Agent(error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, why) = match self {
            Self::Question(why) => (StatusCode::BAD_REQUEST, why),
            Self::Agent(why) => (StatusCode::INTERNAL_SERVER_ERROR, why),
        };
        (status, JSON, format!("{}\n", json!({"error": why}))).into_response()
    }
}

const JSON: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];

/// The page's routes. Nothing but GET and HEAD is answered, and nobody who calls it by another name.
pub fn router(shown: Arc<Shown>, hosts: Hosts) -> Router {
    let mut router = Router::new().route("/api/live", get(live));
    for file in &FILES {
        let serve = async |headers: HeaderMap| {
            let kind = (header::CONTENT_TYPE, file.kind);
            if wants_gzip(&headers)
                && let Ok(zipped) = gzip(file.text)
            {
                return ([kind, (header::CONTENT_ENCODING, "gzip")], zipped).into_response();
            }
            ([kind], file.text).into_response()
        };
        router = router.route(file.path, get(serve));
    }
    router
        .with_state(shown)
        .layer(middleware::from_fn_with_state(hosts, guard))
}

async fn live(
    State(shown): State<Arc<Shown>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = match question::read(query.as_deref().unwrap_or_default()) {
        Ok(query) => query,
        Err(why) => return Refusal::Question(why).into_response(),
    };
    let zipped = wants_gzip(&headers);
    match shown.answer(query, zipped).await {
        Ok(answer) if zipped => (
            [JSON[0].clone(), (header::CONTENT_ENCODING, "gzip")],
            answer,
        )
            .into_response(),
        Ok(answer) => (JSON, answer).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// Refuses strangers' names, and has every answer say what a browser may do with it.
async fn guard(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut response = if hosts.allow(host) {
        next.run(request).await
    } else {
        let why = "this page answers to localhost and to the address it listens at, and to no other name: a web site \
                   could have given its own name this address\n";
        (StatusCode::FORBIDDEN, why).into_response()
    };
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

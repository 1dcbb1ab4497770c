//! The *server*: HTTP over connections that cannot cost more than so much, whoever dials.
//!
//! One request a connection, so that a connection has an end: a scrape each half minute gains nothing by keeping one
//! open. Everything a stranger can make the agent hold is bounded: connections ([`Seats`]), the head of a request, the
//! time for each step, and the answers that are being read at once.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, response::IntoResponse};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt as _;

use super::{
    door::Door,
    seats::{Phase, Seat, Seats},
};

/// What is held in memory of a request's head, and of an answer that is on its way.
const BUFFER: usize = 32 << 10;
/// More headers than this are no scrape's.
const HEADERS: usize = 64;
/// A piece of an answer.
const PIECE: usize = 16 << 10;
/// What needs no seat among the answers, and no credentials: kubelet's probes have none, and must not wait.
const PROBES: [&str; 2] = ["/live", "/ready"];

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Answers at once that are being made or read.
    pub answers: usize,
    /// For a TLS handshake, and for the head of a request.
    pub head: Duration,
    /// For a place among the answers.
    pub wait: Duration,
    /// Whoever reads for longer has to go when somebody waits.
    pub slow: Duration,
    /// For everything, from the first packet to the last.
    pub whole: Duration,
    /// Between looks at the files of certificates.
    pub look: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            answers: 8,
            head: Duration::from_secs(10),
            wait: Duration::from_secs(10),
            slow: Duration::from_secs(2),
            whole: Duration::from_mins(1),
            look: Duration::from_secs(10),
        }
    }
}

/// Serves until `stop`, then lets those who are being answered have their answer.
///
/// # Errors
/// Never yet: a listener that fails is tried again.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    door: Door,
    limits: Limits,
    stop: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    let mut stop = std::pin::pin!(stop);
    let (close, closing) = watch::channel(());
    let shared = Arc::new(Shared {
        router,
        door,
        limits,
        seats: Seats::new(limits.connections),
        answers: Arc::new(Semaphore::new(limits.answers)),
    });
    let mut connections = JoinSet::new();
    let mut look = tokio::time::interval(limits.look);
    let mut failing = false;
    // Accepted, and without a seat yet.
    let mut waiting = None;
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept(), if waiting.is_none() => match accepted {
                Ok(client) => {
                    failing = false;
                    waiting = Some(client);
                }
                Err(error) if gone_already(&error) => {}
                Err(error) => {
                    // As many files as may be open, most likely.
                    if !failing {
                        tracing::warn!("no connection can be accepted: {error}");
                    }
                    failing = true;
                    sleep(Duration::from_millis(100)).await;
                }
            },
            seat = shared.seats.take(), if waiting.is_some() => {
                if let Some((stream, peer)) = waiting.take() {
                    connections.spawn(connection(shared.clone(), stream, peer, seat, closing.clone()));
                }
            }
            _ = look.tick() => shared.door.look(),
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    drop(close);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// The client went away before it was accepted (accept(2)).
fn gone_already(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

struct Shared {
    router: Router,
    door: Door,
    limits: Limits,
    seats: Arc<Seats>,
    answers: Arc<Semaphore>,
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    seat: Seat,
    closing: watch::Receiver<()>,
) {
    let ended = tokio::select! {
        ended = converse(&shared, stream, &seat, closing) => ended,
        () = seat.taken_away() => Err("somebody else needs its place".to_owned()),
        () = sleep(shared.limits.whole) => Err("it took too long".to_owned()),
    };
    if let Err(why) = ended {
        tracing::debug!("the connection of {peer} is closed: {why}");
    }
}

async fn converse(
    shared: &Arc<Shared>,
    stream: TcpStream,
    seat: &Seat,
    closing: watch::Receiver<()>,
) -> Result<(), String> {
    let Some(acceptor) = shared.door.acceptor() else {
        return talk(shared, stream, false, seat, closing).await;
    };
    let handshake = timeout(shared.limits.head, acceptor.accept(stream));
    let stream = handshake
        .await
        .map_err(|_late| "no TLS handshake in time".to_owned())?
        .map_err(|error| format!("TLS: {error}"))?;
    // Whoever shows a certificate was asked to prove it, or did not get here.
    let certified = stream.get_ref().1.peer_certificates().is_some();
    talk(shared, stream, certified, seat, closing).await
}

/// One request, and its answer.
async fn talk(
    shared: &Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    certified: bool,
    seat: &Seat,
    mut closing: watch::Receiver<()>,
) -> Result<(), String> {
    let service = service_fn(|request: Request<Incoming>| async move {
        seat.at(Phase::Working);
        let answer = answer(shared, request, certified).await;
        seat.at(Phase::Reading(Instant::now()));
        Ok::<_, Infallible>(answer)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(shared.limits.head)
        .keep_alive(false)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER);
    let mut talk = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = talk.as_mut() => return ended.map_err(|error| error.to_string()),
        // An error: the server is closing.
        _ = closing.changed() => talk.as_mut().graceful_shutdown(),
    }
    talk.await.map_err(|error| error.to_string())
}

async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    certified: bool,
) -> Response<Answer> {
    let path = request.uri().path();
    if PROBES.contains(&path) {
        return whole(shared, request, None).await;
    }
    if let Err(refusal) = shared.door.admits(path, request.headers(), certified).await {
        return small(refusal.into_response()).await;
    }
    if let Some(place) = place(shared).await {
        return whole(shared, request, Some(place)).await;
    }
    let busy = (
        StatusCode::SERVICE_UNAVAILABLE,
        [(http::header::RETRY_AFTER, "10")],
        "too many are being answered; try again\n",
    );
    small(busy.into_response()).await
}

/// A place among the answers; whoever reads slowly makes room.
async fn place(shared: &Arc<Shared>) -> Option<OwnedSemaphorePermit> {
    let limits = &shared.limits;
    let until = tokio::time::Instant::now() + limits.wait;
    let permit = shared.answers.clone().acquire_owned();
    let mut permit = std::pin::pin!(permit);
    loop {
        tokio::select! {
            permit = permit.as_mut() => return permit.ok(),
            () = tokio::time::sleep_until(until) => return None,
            () = sleep(limits.slow / 2) => shared.seats.hurry(limits.slow),
        }
    }
}

async fn whole(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    place: Option<OwnedSemaphorePermit>,
) -> Response<Answer> {
    let Ok(answer) = shared.router.clone().oneshot(request.map(Body::new)).await;
    held(answer, place).await
}

async fn small(answer: Response<Body>) -> Response<Answer> {
    held(answer, None).await
}

/// The answer in pieces, with its place for as long as it is not handed over.
async fn held(answer: Response<Body>, place: Option<OwnedSemaphorePermit>) -> Response<Answer> {
    let (head, body) = answer.into_parts();
    // Our own: whole already, and without an end that could fail.
    match axum::body::to_bytes(body, usize::MAX).await {
        Ok(rest) => Response::from_parts(
            head,
            Answer {
                rest,
                _place: place,
            },
        ),
        Err(error) => {
            tracing::warn!("an answer failed: {error}");
            let mut failed = Response::new(Answer {
                rest: Bytes::new(),
                _place: None,
            });
            *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            *failed.headers_mut() = HeaderMap::new();
            failed
        }
    }
}

/// An answer's body.
struct Answer {
    rest: Bytes,
    _place: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = PIECE.min(self.rest.len());
        let piece = self.rest.split_to(piece);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

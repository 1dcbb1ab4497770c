//! One request to a server on or beside the node, with a bound on the answer's length and on the time.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{Request, body::Body};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Sends the request over a connection of its own and gives the body of a successful answer.
///
/// # Errors
/// Says what went wrong: refused, too slow, too long, another status than 200.
pub(crate) async fn exchange<B>(
    server: SocketAddr,
    request: Request<B>,
    most: usize,
    patience: Duration,
) -> Result<Bytes, String>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match answer(server, request, most, patience).await? {
        (hyper::StatusCode::OK, body) => Ok(body),
        (status, _) => Err(format!("{server} answered {status}")),
    }
}

/// The same, for a server whose refusals mean something: gives the status, too, whatever it is.
///
/// # Errors
/// Says what went wrong: refused, too slow, too long.
pub(crate) async fn answer<B>(
    server: SocketAddr,
    request: Request<B>,
    most: usize,
    patience: Duration,
) -> Result<(hyper::StatusCode, Bytes), String>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    tokio::time::timeout(patience, talk(server, request, most))
        .await
        .unwrap_or_else(|_| Err(format!("{server} has not answered in {patience:?}")))
}

async fn talk<B>(
    server: SocketAddr,
    request: Request<B>,
    most: usize,
) -> Result<(hyper::StatusCode, Bytes), String>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(server)
        .await
        .map_err(|e| format!("cannot connect to {server}: {e}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(told)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), most);
        let body = body.collect().await.map_err(|e| e.to_string())?;
        Ok((status, body.to_bytes()))
    };
    // The connection is driven while the answer is awaited; when one ends, so does the other.
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // What has arrived by then is still to be read.
            Ok(()) => answer.await,
            Err(e) => Err(told(e)),
        },
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as the argument of map_err")]
fn told(error: hyper::Error) -> String {
    use std::error::Error as _;
    error
        .source()
        .map_or_else(|| error.to_string(), |e| format!("{error}: {e}"))
}

//! A *client* of the runtime: three calls over its socket, each with a deadline. A socket that accepts and never
//! answers costs a call its deadline and nothing else.

use std::{
    error::Error,
    marker::PhantomData,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder},
    transport::{Channel, Endpoint},
};
use tonic_prost::{ProstCodec, ProstEncoder};

use super::{
    place,
    sandbox::Listed,
    wire::{
        self, ListPodSandboxRequest, PodSandboxStatus, PodSandboxStatusRequest,
        PodSandboxStatusResponse, VersionRequest, VersionResponse,
    },
};

/// The longest that a call takes, connecting included.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// The longest list: what kubelet takes (`pkg/kubelet/cri/remote/utils.go`, `maxMsgSize`).
const LONGEST_LIST: usize = 16 << 20;
/// The longest answer about one sandbox. Kubernetes allows a pod 256 KiB of annotations.
const LONGEST_STATUS: usize = 2 << 20;
/// What is kept of a message that somebody else wrote.
const LONGEST_REASON: usize = 300;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It concerns the whole connection.
    #[error("{0}")]
    Lost(String),
    /// It concerns what was asked for.
    #[error("{0}")]
    Refused(String),
    /// There is no such sandbox (any more).
    #[error("there is no such sandbox")]
    NotFound,
}

/// A connection to a runtime that answers.
pub(super) struct Client {
    grpc: Grpc<Channel>,
    path: PathBuf,
    runtime: String,
}

impl Client {
    /// Connects, and has the runtime tell its name and version.
    pub(super) async fn connect(path: &Path) -> Result<Self, Failure> {
        if let Some(why) = place::obstacle(path) {
            return Err(Failure::Lost(why));
        }
        let owned = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = owned.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address goes into the header `:authority`, which gRPC servers want to be a host.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = timeout(DEADLINE, endpoint.connect_with_connector(connector))
            .await
            .map_err(|_| late("connecting"))?
            .map_err(|error| Failure::Lost(reason(&error)))?;
        let mut client = Self {
            grpc: Grpc::new(channel).max_decoding_message_size(LONGEST_STATUS),
            path: path.to_owned(),
            runtime: String::new(),
        };
        client.runtime = client.version().await?;
        Ok(client)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its name and version, e.g. `containerd 1.7.27`.
    pub(super) fn runtime(&self) -> &str {
        &self.runtime
    }

    async fn version(&mut self) -> Result<String, Failure> {
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/Version");
        let request = VersionRequest {
            version: "0.1.0".to_owned(),
        };
        let answer: VersionResponse =
            call(&mut self.grpc, path, request, ProstCodec::default()).await?;
        let words = format!("{} {}", answer.runtime_name, answer.runtime_version);
        Ok(shortened(words.trim()))
    }

    /// All sandboxes, ready or not.
    pub(super) async fn list(&mut self) -> Result<Vec<Listed>, Failure> {
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/ListPodSandbox");
        let mut grpc = self.grpc.clone().max_decoding_message_size(LONGEST_LIST);
        let answer: Bytes = call(&mut grpc, path, ListPodSandboxRequest {}, Raw::new()).await?;
        wire::listed(&answer).map_err(|error| Failure::Lost(error.to_string()))
    }

    /// What there is to know of a sandbox.
    pub(super) async fn status(&mut self, id: &str) -> Result<PodSandboxStatus, Failure> {
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/PodSandboxStatus");
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer: PodSandboxStatusResponse =
            call(&mut self.grpc, path, request, ProstCodec::default()).await?;
        answer.status.ok_or(Failure::NotFound)
    }
}

async fn call<Q, A, C>(
    grpc: &mut Grpc<Channel>,
    path: PathAndQuery,
    request: Q,
    codec: C,
) -> Result<A, Failure>
where
    Q: Send + Sync + 'static,
    A: Send + Sync + 'static,
    C: Codec<Encode = Q, Decode = A>,
{
    let what = path
        .path()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let answer = async {
        grpc.ready()
            .await
            .map_err(|error| Failure::Lost(reason(&error)))?;
        grpc.unary(Request::new(request), path, codec)
            .await
            .map_err(|status| failure(&what, &status))
    };
    match timeout(DEADLINE, answer).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(late(&what)),
    }
}

fn late(what: &str) -> Failure {
    Failure::Lost(format!("{what}: no answer within {DEADLINE:?}"))
}

/// A status that the server sent has no source; one that tonic made of a broken connection has.
fn failure(what: &str, status: &Status) -> Failure {
    let said = match status.source() {
        Some(source) => reason(source),
        None => format!("{}: {}", status.code(), shortened(status.message())),
    };
    let said = format!("{what}: {said}");
    match status.code() {
        _ if status.source().is_some() => Failure::Lost(said),
        Code::NotFound => Failure::NotFound,
        // Unimplemented: no CRI, or only its v1alpha2, on this socket.
        Code::Unavailable | Code::Unimplemented => Failure::Lost(said),
        _ => Failure::Refused(said),
    }
}

/// An error with its causes, in one line.
fn reason(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    shortened(&words)
}

fn shortened(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_REASON)
        .collect()
}

/// Encodes a message, and takes the answer as bytes, for a reader with bounds of its own.
struct Raw<Q>(PhantomData<Q>);

impl<Q> Raw<Q> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message + 'static> Codec for Raw<Q> {
    type Encode = Q;
    type Decode = Bytes;
    type Encoder = ProstEncoder<Q>;
    type Decoder = RawDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        RawDecoder
    }
}

struct RawDecoder;

impl Decoder for RawDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

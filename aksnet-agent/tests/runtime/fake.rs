//! A *fake* runtime: answers gRPC on a socket of the test's own as it is told to, and counts what it was asked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

/// How a call is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// With this message.
    Message(Vec<u8>),
    /// With this gRPC status (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>).
    Status(u32),
    /// Not at all, and the connection is closed.
    Close,
    /// Not at all, and the connection stays.
    Silence,
}

/// A sandbox of the fake's.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub name: &'static str,
    pub ready: bool,
    pub addresses: Vec<&'static str>,
}

impl Sandbox {
    /// A ready one.
    pub fn new(name: &'static str, addresses: &[&'static str]) -> Self {
        Self {
            name,
            ready: true,
            addresses: addresses.to_vec(),
        }
    }
}

/// What the fake has and does.
#[derive(Default)]
pub struct Script {
    /// By id.
    pub sandboxes: BTreeMap<&'static str, Sandbox>,
    /// Answers that differ, by method, or by method and id (`PodSandboxStatus/ID`).
    pub replies: BTreeMap<String, Reply>,
    /// What was asked, written likewise.
    pub asked: Vec<String>,
}

/// The running fake. Dropping it closes the socket and every connection.
pub struct Fake {
    pub script: Arc<Mutex<Script>>,
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
        let _gone = std::fs::remove_file(&self.path);
    }
}

impl Fake {
    /// Listens at this path.
    pub fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = script.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Self {
            script,
            path: path.to_owned(),
            task,
        }
    }

    /// Puts a sandbox there, or changes it.
    pub fn put(&self, id: &'static str, sandbox: Sandbox) {
        self.script.lock().unwrap().sandboxes.insert(id, sandbox);
    }

    /// Has a call answered differently.
    pub fn reply(&self, call: &str, reply: Reply) {
        let mut script = self.script.lock().unwrap();
        script.replies.insert(call.to_owned(), reply);
    }

    /// Has a call answered as usual again.
    pub fn relent(&self, call: &str) {
        self.script.lock().unwrap().replies.remove(call);
    }

    /// How often a call was made.
    pub fn asked(&self, call: &str) -> usize {
        let script = self.script.lock().unwrap();
        script.asked.iter().filter(|asked| *asked == call).count()
    }
}

async fn serve(stream: UnixStream, script: Arc<Mutex<Script>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let mut silent = Vec::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (call, body) = read(request, &mut connection).await;
        let reply = answer(&mut script.lock().unwrap(), call, &body);
        match reply {
            Reply::Message(message) => send(respond, Some(message), 0),
            Reply::Status(code) => send(respond, None, code),
            Reply::Close => return,
            Reply::Silence => silent.push(respond),
        }
    }
}

/// The method, and the request's message.
async fn read(
    request: Request<RecvStream>,
    connection: &mut h2::server::Connection<UnixStream, Bytes>,
) -> (String, Vec<u8>) {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let mut stream = request.into_body();
    let mut body = Vec::new();
    loop {
        // The connection must be driven for its streams to move.
        tokio::select! {
            data = stream.data() => match data {
                Some(Ok(data)) => {
                    let _sent = stream.flow_control().release_capacity(data.len());
                    body.extend_from_slice(&data);
                }
                _ => break,
            },
            _ = std::future::poll_fn(|context| connection.poll_closed(context)) => break,
        }
    }
    (method, body.split_off(body.len().min(5)))
}

fn answer(script: &mut Script, method: String, request: &[u8]) -> Reply {
    let id = Id::decode(request).map(|id| id.id).unwrap_or_default();
    let call = if method == "PodSandboxStatus" {
        format!("{method}/{id}")
    } else {
        method
    };
    script.asked.push(call.clone());
    if let Some(reply) = script.replies.get(&call) {
        return reply.clone();
    }
    match &*call {
        "Version" => Reply::Message(
            Version {
                name: "fake".to_owned(),
                version: "1.2.3".to_owned(),
            }
            .encode_to_vec(),
        ),
        "ListPodSandbox" => {
            let items = script.sandboxes.iter().map(|(id, sandbox)| Item {
                id: (*id).to_owned(),
                state: i32::from(!sandbox.ready),
            });
            let list = List {
                items: items.collect(),
            };
            Reply::Message(list.encode_to_vec())
        }
        _ => match script.sandboxes.get(&*id) {
            None => Reply::Status(5),
            Some(sandbox) => Reply::Message(sandbox.answer().encode_to_vec()),
        },
    }
}

impl Sandbox {
    fn answer(&self) -> StatusAnswer {
        let mut addresses = self.addresses.iter().map(|a| (*a).to_owned());
        StatusAnswer {
            status: Some(Detail {
                metadata: Some(Metadata {
                    name: self.name.to_owned(),
                    uid: format!("uid-{}", self.name),
                    namespace: "shop".to_owned(),
                }),
                state: i32::from(!self.ready),
                network: Some(Network {
                    ip: addresses.next().unwrap_or_default(),
                    more: addresses.map(|ip| Ip { ip }).collect(),
                }),
            }),
        }
    }
}

fn send(mut respond: SendResponse<Bytes>, message: Option<Vec<u8>>, code: u32) {
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let Ok(mut stream) = respond.send_response(head, false) else {
        return;
    };
    if let Some(message) = message {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).unwrap());
        frame.put_slice(&message);
        let _sent = stream.send_data(frame.freeze(), false);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    trailers.insert("grpc-message", "as scripted".parse().unwrap());
    let _sent = stream.send_trailers(trailers);
}

// The messages by the numbers of cri-api's api.proto, from the server's side.

#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int32, tag = "3")]
    state: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<Detail>,
}

#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    more: Vec<Ip>,
}

#[derive(Clone, PartialEq, Message)]
struct Ip {
    #[prost(string, tag = "1")]
    ip: String,
}

//! A *kubelet*: has pods' sandboxes made and removed, over the same socket that the agent reads from. Messages by
//! the numbers of cri-api's api.proto.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::bed::IMAGE;

/// A pod to be.
pub struct Wanted {
    pub name: &'static str,
    pub labels: &'static [(&'static str, &'static str)],
    pub host_network: bool,
}

/// All pods are in this namespace.
pub const NAMESPACE: &str = "shop";

/// The kubelet.
pub struct Kubelet {
    grpc: Grpc<Channel>,
    group: String,
}

impl Kubelet {
    /// Connects, and waits until the runtime knows the image: it learns of imports by events.
    pub async fn connect(socket: &Path, group: &str) -> Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        let mut kubelet = Self {
            grpc: Grpc::new(channel),
            group: format!("/{group}"),
        };
        for _ in 0..100 {
            let request = ImageRequest {
                image: Some(Image {
                    image: IMAGE.to_owned(),
                }),
            };
            let path = PathAndQuery::from_static("/runtime.v1.ImageService/ImageStatus");
            let answer: Result<ImageAnswer> = kubelet.call(path, request).await;
            if answer.is_ok_and(|answer| answer.image.is_some()) {
                return Ok(kubelet);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("the runtime does not know the image {IMAGE}")
    }

    /// Makes a pod's sandbox, as `generatePodSandboxConfig` of `pkg/kubelet/kuberuntime` asks for it; gives its id.
    pub async fn run(&mut self, wanted: &Wanted) -> Result<String> {
        let uid = uid(wanted.name);
        let kubelet_labels = [
            ("io.kubernetes.pod.name", wanted.name),
            ("io.kubernetes.pod.namespace", NAMESPACE),
            ("io.kubernetes.pod.uid", &uid),
        ];
        let all = kubelet_labels.iter().chain(wanted.labels);
        let labels = all.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let config = SandboxConfig {
            metadata: Some(Metadata {
                name: wanted.name.to_owned(),
                uid: uid.clone(),
                namespace: NAMESPACE.to_owned(),
            }),
            hostname: if wanted.host_network {
                String::new()
            } else {
                wanted.name.to_owned()
            },
            labels: labels.collect(),
            annotations: BTreeMap::from([(
                "kubernetes.io/config.source".to_owned(),
                "api".to_owned(),
            )]),
            linux: Some(Linux {
                cgroup_parent: self.group.clone(),
                security: Some(Security {
                    namespaces: Some(Namespaces {
                        network: if wanted.host_network { 2 } else { 0 },
                        pid: 1,
                    }),
                }),
            }),
        };
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/RunPodSandbox");
        let request = RunRequest {
            config: Some(config),
        };
        let answer: Id = self.call(path, request).await?;
        Ok(answer.id)
    }

    /// Stops a sandbox: its processes end, its network goes.
    pub async fn stop(&mut self, id: &str) -> Result<()> {
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/StopPodSandbox");
        let _empty: Empty = self.call(path, Id { id: id.to_owned() }).await?;
        Ok(())
    }

    /// Removes a stopped sandbox.
    pub async fn remove(&mut self, id: &str) -> Result<()> {
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/RemovePodSandbox");
        let _empty: Empty = self.call(path, Id { id: id.to_owned() }).await?;
        Ok(())
    }

    async fn call<Q, A>(&mut self, path: PathAndQuery, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let what = path.path().to_owned();
        self.grpc.ready().await?;
        let answer = self
            .grpc
            .unary(Request::new(request), path, ProstCodec::<Q, A>::default());
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
        Ok(answer.context(what.clone())?.context(what)?.into_inner())
    }
}

/// The uid of a pod of this name.
pub fn uid(name: &str) -> String {
    format!("0c5a6c1e-{name}")
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageAnswer {
    #[prost(message, optional, tag = "1")]
    image: Option<Empty>,
}

#[derive(Clone, PartialEq, Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(btree_map = "string, string", tag = "6")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "7")]
    annotations: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<Linux>,
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
struct Linux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

#[derive(Clone, PartialEq, Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

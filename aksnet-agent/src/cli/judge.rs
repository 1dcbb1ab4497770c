//! The flags of what *judges*: `doctor`, `explain`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{
    settings::with_socket,
    value::{check, engine},
};
use crate::{
    config::{Effective, duration},
    exit::Failure,
    explain::question::Asked,
    policy::engine::Engine,
};

/// The flags of `doctor`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 nothing worse than info, 1 warning, 2 critical; what cannot be judged fails nothing. \
                  64 and above: it could not look (see docs/exit-codes.md).\n\n\
                  A recorded evidence file holds names of workloads, policies and services, and some addresses: of load \
                  balancers, of leaked pod addresses, of masquerading rules, and where a drop's reason names them."
)]
pub struct Doctor {
    /// Print the report as a JSON object
    #[arg(long)]
    pub json: bool,
    /// Only these checks; repeatable, or separated by commas
    #[arg(long = "check", value_name = "NAME", value_delimiter = ',', value_parser = check)]
    pub checks: Vec<String>,
    /// Print the checks and what they look at, and exit
    #[arg(long)]
    pub list: bool,
    /// Judge this recorded evidence; needs neither an agent nor a privilege
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "watch_for", "socket"])]
    pub evidence: Option<PathBuf>,
    /// Write the evidence to this file, too, for a support case
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// How long to watch when no agent runs: an unanswered connection shows after 10 s
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = duration::parse)]
    pub watch_for: Duration,
    /// The running agent's socket [default: as `run` would have it]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// TOML file with settings
    #[arg(long, value_name = "FILE", env = "AKSNET_CONFIG")]
    pub config: Option<PathBuf>,
}

impl Doctor {
    /// The effective config of programs that `doctor` loads itself.
    ///
    /// # Errors
    /// As [`Settings::effective`].
    pub fn effective(&self) -> Result<Effective, Failure> {
        with_socket(self.config.as_deref(), self.socket.as_deref())
    }
}

/// The flags of `explain`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 allowed, 1 denied, 2 not determined (a label, a named port or an address is not \
                  known); 64 usage, 65 bad manifest, 66 no such file or pod, 69 no API server, 78 unusable \
                  kubeconfig.\n\
                  Workloads (Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job, CronJob) stand \
                  for a pod of their name, or for their pods that run. Only networking.k8s.io/v1 policies are \
                  evaluated.\n\n\
                  Example: aksnet-agent explain shop/frontend shop/web 8080 -f manifests/"
)]
pub struct Explain {
    /// The client: a pod or workload as NAMESPACE/NAME, or an address
    #[arg(value_name = "FROM")]
    pub from: String,
    /// The server: a pod, workload or service as NAMESPACE/NAME, or an address
    #[arg(value_name = "TO")]
    pub to: String,
    /// The server's port, by number or name, TCP unless said: 8080, 53/udp; or icmp
    #[arg(value_name = "PORT[/PROTO]")]
    pub port: Asked,
    /// A file or directory with manifests, YAML or JSON; - for standard input; repeatable [default: ask the API]
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Who enforces the policies, where that makes a difference
    #[arg(long, value_name = "NAME", default_value = "kubernetes", value_parser = engine)]
    pub engine: Engine,
    /// The namespace of what names none
    #[arg(short = 'n', long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// It comes by a node port or load balancer with externalTrafficPolicy Cluster
    #[arg(long)]
    pub by_node_port: bool,
    /// Kubeconfig to ask the API with [default: this pod's service account]
    #[arg(long, value_name = "FILE", env = "AKSNET_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Which context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", env = "AKSNET_KUBE_CONTEXT")]
    pub kube_context: Option<String>,
}

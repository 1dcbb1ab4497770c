//! The flags of what has *flow records*: `flows`, `record`, `replay`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{
    Settings,
    settings::{captured, with_socket},
    value::{class, engine, nat},
};
use crate::{
    config::{Effective, duration},
    exit::Failure,
    flowlog::Filter,
    policy::engine::Engine,
};

/// Where flow records come from.
#[derive(Args, Debug)]
pub struct FlowSource {
    /// Without a running agent: capture packets instead of loading programs; without NAT times and drops
    #[arg(long)]
    pub capture: bool,
    /// The running agent's socket [default: as `run` would have it]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// TOML file with settings
    #[arg(long, value_name = "FILE", env = "AKSNET_CONFIG")]
    pub config: Option<PathBuf>,
}

impl FlowSource {
    /// The effective config of programs that are loaded for this command.
    ///
    /// # Errors
    /// As [`Settings::effective`].
    pub fn effective(&self) -> Result<Effective, Failure> {
        let effective = with_socket(self.config.as_deref(), self.socket.as_deref())?;
        Ok(captured(effective, self.capture))
    }
}

/// Which connections are shown.
#[derive(Args, Debug)]
pub struct FlowFilter {
    /// Only what comes from or goes to this Kubernetes namespace
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    #[expect(clippy::doc_markdown, reason = "it is the help's text")]
    /// Only these classes, e.g. pod_to_service
    #[arg(long, value_name = "CLASS", value_delimiter = ',', value_parser = class)]
    pub class: Vec<String>,
    /// Only these kinds of NAT: none, snat, dnat, both
    #[arg(long, value_name = "NAT", value_delimiter = ',', value_parser = nat)]
    pub nat: Vec<String>,
    /// Only these protocols, e.g. tcp
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub protocol: Vec<String>,
}

impl FlowFilter {
    /// As records are matched by it.
    #[must_use]
    pub fn filter(&self) -> Filter {
        Filter {
            namespace: self.namespace.clone(),
            class: self.class.clone(),
            nat: self.nat.clone(),
            protocol: self
                .protocol
                .iter()
                .map(|name| name.to_lowercase())
                .collect(),
        }
    }
}

/// The flags of `flows`.
#[derive(Args, Debug)]
pub struct Flows {
    /// Print each record as a JSON object
    #[arg(long)]
    pub json: bool,
    /// Show what ends from now on, and long connections each active timeout
    #[arg(long, short)]
    pub follow: bool,
    /// At most so many live connections and so many that ended lately; 0: all (without --follow)
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    /// With --follow: stop after so many records [default: go on until interrupted]
    #[arg(long, value_name = "N", requires = "follow")]
    pub count: Option<u64>,
    /// Which connections.
    #[command(flatten)]
    pub filter: FlowFilter,
    /// Where from.
    #[command(flatten)]
    pub source: FlowSource,
}

/// The flags of `record`.
#[derive(Args, Debug)]
pub struct Record {
    /// The file; a name that ends in .gz is compressed
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// Stop after this time, e.g. 5m [default: go on until interrupted]
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
    pub duration: Option<Duration>,
    /// Stop after so many records
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Which connections.
    #[command(flatten)]
    pub filter: FlowFilter,
    /// Where from.
    #[command(flatten)]
    pub source: FlowSource,
}

/// The flags of `replay`: those of `run` that say what addresses are, and its own.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 all was read, 65 something could not be (what could is shown), 64 usage, 66 no such file.\n\
                  Link types: Ethernet, raw IP (101, 12, 14, 228, 229), Linux cooked (SLL, SLL2). Files may be gzipped; - is \
                  standard input.\n\n\
                  Example: aksnet-agent replay node.pcapng --pod-cidr 10.244.0.0/16 --service-cidr 10.0.0.0/16 -f manifests/"
)]
pub struct Replay {
    /// A pcap or pcapng capture, or what `record` wrote; - for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print each record as a JSON object, and the summary as the last
    #[arg(long)]
    pub json: bool,
    /// Print the summary alone
    #[arg(long)]
    pub summary: bool,
    /// Print at most so many records
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// A file or directory with manifests (pods, services, nodes, policies), YAML or JSON; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    /// An address of the node itself; repeatable
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub node_address: Vec<std::net::IpAddr>,
    /// Who enforces the policies, where that makes a difference
    #[arg(long, value_name = "NAME", default_value = "kubernetes", value_parser = engine)]
    pub engine: Engine,
    /// Which connections.
    #[command(flatten)]
    pub filter: FlowFilter,
    /// What addresses are, as `run` has it.
    #[command(flatten)]
    pub settings: Settings,
}

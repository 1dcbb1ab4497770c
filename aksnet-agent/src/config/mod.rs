//! What the agent is told: values that are checked and typed, from flags, environment and file.
//!
//! [`settings`] is the one table from which the flags, the keys of the file and the environment variables
//! are made; [`mod@file`] reads a file into raw values, [`merge`] lays the sources over each other and keeps
//! where each value came from.

// The table of settings, and how their values are read.
pub mod settings;

pub mod duration;

mod value;

// Where values come from.
pub mod file;

pub mod merge;

pub mod suggest;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    conntrack::{FollowConfig, Limits},
    identify::runtime::Place,
    metrics::{MetricsConfig, OverheadBudget},
    node::pattern::Pattern,
};

pub use merge::{ConfigError, Effective, Origin};

/// The agent's settings; see the table in [`settings`] for what each means.
#[expect(
    clippy::struct_excessive_bools,
    reason = "settings that are on or off, each with a name of its own"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the admin HTTP server listens.
    pub listen: SocketAddr,
    /// The certificate that it shows; `None`: no TLS.
    pub tls_cert: Option<PathBuf>,
    /// Its private key.
    pub tls_key: Option<PathBuf>,
    /// The CAs of clients that are let in.
    pub tls_client_ca: Option<PathBuf>,
    /// What clients have to show.
    pub metrics_auth: MetricsAuth,
    /// Where the page for people is served; `None`: nowhere.
    pub page: Option<SocketAddr>,
    /// The local socket that `top` reads from.
    pub socket: PathBuf,
    /// Uplinks by name; empty: the devices of the default routes.
    pub uplink: Vec<String>,
    /// Pod interfaces by name or glob; empty: found by their peers, bridges and routes.
    pub pod_interface: Vec<Pattern>,
    /// How programs are attached.
    pub attach: Attach,
    /// This node's name in Kubernetes; empty: the host name.
    pub node_name: String,
    /// Where the container runtime is asked for the names of pods.
    pub cri_socket: Place,
    /// Whether the Kubernetes API is asked.
    pub kubernetes: Kubernetes,
    /// The file that says how; empty: as the pod's service account.
    pub kubeconfig: PathBuf,
    /// Its context; empty: its current one.
    pub kube_context: String,
    /// Whether pods of other nodes are watched.
    pub remote_pods: bool,
    /// Where pods live.
    pub pod_cidr: Vec<IpNet>,
    /// Where services' virtual addresses live.
    pub service_cidr: Vec<IpNet>,
    /// Where nodes live.
    pub node_cidr: Vec<IpNet>,
    /// The virtual network.
    pub vnet_cidr: Vec<IpNet>,
    /// Private endpoints.
    pub private_endpoint_cidr: Vec<IpNet>,
    /// Ranges that have a name of their own in labels.
    pub named_cidr: Vec<(String, IpNet)>,
    /// Frontends of load balancers.
    pub load_balancer: Vec<IpAddr>,
    /// Where the API server answers; port 0: any.
    pub api_server: Vec<SocketAddr>,
    /// Where the host's root directory is.
    pub host_root: PathBuf,
    /// Whether the instance metadata service is asked.
    pub imds: Imds,
    /// Where CNS is.
    pub cns_url: String,
    /// Cells in the flow table.
    pub flow_cells: u32,
    /// Entries in the table that takes the flows of full buckets.
    pub spill_entries: u32,
    /// One packet in this many is timed.
    pub sample: u32,
    /// So many first packets of each flow are timed as well.
    pub first_packets: u32,
    /// Time between sweeps.
    pub interval: Duration,
    /// A flow without packets for so long gives its cell back.
    pub idle_timeout: Duration,
    /// How long policies and labels must have been as they are when a connection begins, for it to be a gap.
    pub policy_grace: Duration,
    /// The most series a metric may have; what is beyond is folded into `other`.
    pub series_limit: usize,
    /// How often a long connection has a flow record.
    pub flow_active_timeout: Duration,
    /// Where an OpenTelemetry collector takes OTLP over HTTP; empty: nothing is sent.
    pub otlp_endpoint: String,
    /// Whether packets are captured instead of counted by programs.
    pub capture: bool,
    /// Whether the flow metrics name pods besides workloads.
    pub pod_labels: bool,
    /// NAT that costs a later packet of a connection more than this is flagged.
    pub nat_budget: Duration,
    /// NAT that costs the packet that opens a connection more than this is flagged.
    pub nat_budget_first: Duration,
    /// How the conntrack table is followed.
    pub conntrack: ConntrackMode,
    /// Time between dumps of the conntrack table, and between readings of its statistics.
    pub conntrack_interval: Duration,
    /// The most conntrack entries that are mirrored.
    pub conntrack_limit: u32,
    /// Ports of the masquerading rule; `None`: the kernel's own range.
    pub snat_ports: Option<u32>,
    /// Ports that Azure's load balancer keeps for this node; 0: by the number of nodes; `None`: not known.
    pub azure_snat_ports: Option<u32>,
    /// What the datapath's own log passes on.
    pub bpf_log: BpfLog,
    /// Whether the kernel accounts the programs' run time while the agent runs.
    pub bpf_stats: bool,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged: a level, or `tracing` directives.
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        let metrics = MetricsConfig::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9435)),
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            metrics_auth: MetricsAuth::Off,
            page: Some(SocketAddr::from(([127, 0, 0, 1], 9436))),
            socket: PathBuf::from("/run/aksnet/agent.sock"),
            uplink: Vec::new(),
            pod_interface: Vec::new(),
            attach: Attach::Auto,
            node_name: String::new(),
            cri_socket: Place::Look,
            kubernetes: Kubernetes::Auto,
            kubeconfig: PathBuf::new(),
            kube_context: String::new(),
            remote_pods: false,
            pod_cidr: Vec::new(),
            service_cidr: Vec::new(),
            node_cidr: Vec::new(),
            vnet_cidr: Vec::new(),
            private_endpoint_cidr: Vec::new(),
            named_cidr: Vec::new(),
            load_balancer: Vec::new(),
            api_server: Vec::new(),
            host_root: PathBuf::from("/"),
            imds: Imds::Auto,
            cns_url: "http://localhost:10090".to_owned(),
            flow_cells: 65_536,
            spill_entries: 16_384,
            sample: 64,
            first_packets: 2,
            interval: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(30),
            policy_grace: Duration::from_secs(10),
            series_limit: metrics.series_limit,
            flow_active_timeout: Duration::from_mins(1),
            otlp_endpoint: String::new(),
            capture: false,
            pod_labels: false,
            nat_budget: Duration::from_nanos(metrics.overhead_budget.established_ns),
            nat_budget_first: Duration::from_nanos(metrics.overhead_budget.first_ns),
            conntrack: ConntrackMode::Events,
            conntrack_interval: Duration::from_secs(15),
            conntrack_limit: 131_072,
            snat_ports: None,
            azure_snat_ports: None,
            bpf_log: BpfLog::Off,
            bpf_stats: false,
            log_format: LogFormat::Human,
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// What concerns the metrics.
    #[must_use]
    pub fn metrics(&self) -> MetricsConfig {
        // The bounds of the settings are far below 2^64 ns.
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        MetricsConfig {
            series_limit: self.series_limit,
            pod_labels: self.pod_labels,
            overhead_budget: OverheadBudget {
                first_ns: ns(self.nat_budget_first),
                established_ns: ns(self.nat_budget),
            },
        }
    }

    /// What concerns the conntrack table.
    #[must_use]
    pub fn conntrack(&self) -> FollowConfig {
        FollowConfig {
            mode: self.conntrack,
            interval: self.conntrack_interval,
            reconcile: FollowConfig::RECONCILE.max(self.conntrack_interval),
            limit: self.conntrack_limit as usize,
            limits: Limits {
                ports: self.snat_ports,
                // 0 is not known until somebody has counted the nodes.
                azure: self.azure_snat_ports.filter(|ports| *ports > 0),
            },
            receive_buffer: FollowConfig::RECEIVE_BUFFER,
            proc: PathBuf::from("/proc"),
        }
    }
}

/// An enum whose values have names on the command line.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// The names that can be written.
            pub const NAMES: &[&str] = &[$($text),+];

            /// The name of this one.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The one with this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

named! {
    /// How programs are attached to interfaces.
    Attach {
        /// tcx where the kernel has it, else clsact.
        Auto = "auto",
        /// tcx links only (kernel 6.6).
        Tcx = "tcx",
        /// Filters on a clsact qdisc only.
        Clsact = "clsact",
    }
}

named! {
    /// How the conntrack table is followed.
    ConntrackMode {
        /// By the kernel's events, and a dump now and then.
        Events = "events",
        /// By dumps alone.
        Dump = "dump",
        /// Not at all; only its statistics are read.
        Off = "off",
    }
}

named! {
    /// Whether the Kubernetes API is asked.
    Kubernetes {
        /// If there is a way to: a kubeconfig, or the service account of the agent's pod.
        Auto = "auto",
        /// Never.
        Off = "off",
    }
}

named! {
    /// What those who scrape have to show.
    MetricsAuth {
        /// Nothing, or a certificate where `tls_client_ca` is set.
        Off = "off",
        /// A bearer token, which the API server reviews.
        Token = "token",
    }
}

named! {
    /// The least severe of the datapath's own messages that is passed on.
    BpfLog {
        /// None: the code for them is not even in the programs.
        Off = "off",
        /// Errors.
        Error = "error",
        /// And warnings.
        Warn = "warn",
        /// And information.
        Info = "info",
        /// And everything else.
        Debug = "debug",
    }
}

named! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
    }
}

named! {
    /// Whether the instance metadata service is asked.
    Imds {
        /// On machines that say that they are Azure's.
        Auto = "auto",
        /// Never.
        Off = "off",
    }
}

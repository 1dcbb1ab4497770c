//! The one table of settings. Flags (`--pod-cidr`), keys of the config file (`pod_cidr`), environment
//! variables (`AKSNET_POD_CIDR`), their help, the effective config that is printed and logged: all are made
//! from it, so that they cannot drift apart.

use std::{path::PathBuf, time::Duration};

use super::{
    Attach, BpfLog, Config, ConntrackMode, Imds, Kubernetes, LogFormat, MetricsAuth, duration,
    value,
};
use crate::admin::named;
use crate::identify::runtime::Place;
use crate::node::pattern::Pattern;

/// One setting.
pub struct Setting {
    /// Its key in the file.
    pub key: &'static str,
    /// What stands for its value in the help.
    pub value_name: &'static str,
    /// How many values it takes.
    pub arity: Arity,
    /// Under which heading the help lists it.
    pub heading: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Reads its values: exactly one unless [`Arity::Many`].
    pub set: fn(&mut Config, &[String]) -> Result<(), String>,
    /// Writes its values so that `set` reads them back.
    pub get: fn(&Config) -> Vec<String>,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.key)
    }
}

/// How many values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// A flag: present or not, or with `=true` and `=false`.
    Switch,
    /// One.
    One,
    /// A list; repeated or comma-separated.
    Many,
}

impl Setting {
    /// The flag without its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// The environment variable.
    #[must_use]
    pub fn env(&self) -> String {
        format!("AKSNET_{}", self.key.to_ascii_uppercase())
    }
}

/// The setting with this key.
#[must_use]
pub fn by_key(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.key == key)
}

const OUTPUTS: &str = "Outputs";
const INTERFACES: &str = "Interfaces";
const KUBERNETES: &str = "Kubernetes";
const PLAN: &str = "Address plan (what is not given is taken from routes and addresses)";
const DATAPATH: &str = "Datapath";
const ACCOUNTS: &str = "Accounts";
const CONNTRACK: &str = "Conntrack and SNAT";
const LOG: &str = "Log";
const NODE: &str = "What the node is";

/// One bucket.
const MIN_CELLS: u32 = 4;
const _: () = assert!(MIN_CELLS as usize == aksnet_common::flow::WAYS);
/// 384 bytes each: 1.5 GiB.
const MAX_CELLS: u32 = 1 << 22;

fn all<T>(values: &[String], read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    values.iter().map(|v| read(v)).collect()
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn path(path: Option<&PathBuf>) -> Vec<String> {
    text(path.map(|path| path.display()))
}

fn text<T: ToString>(value: Option<T>) -> Vec<String> {
    vec![value.map_or_else(String::new, |v| v.to_string())]
}

/// A setting in one line per property.
macro_rules! setting {
    ($key:ident, $value_name:literal, $arity:ident, $heading:expr, $help:literal,
     |$v:ident| $read:expr, |$c:ident| $write:expr) => {
        Setting {
            key: stringify!($key),
            value_name: $value_name,
            arity: Arity::$arity,
            heading: $heading,
            help: $help,
            set: |config, $v| {
                config.$key = $read;
                Ok(())
            },
            get: |$c| $write,
        }
    };
}

/// All settings, in the order of the help.
pub static SETTINGS: &[Setting] = &[
    setting!(
        listen,
        "ADDRESS:PORT",
        One,
        OUTPUTS,
        "Where /metrics, /live, /ready and /status are served",
        |v| value::listen(&v[0])?,
        |c| vec![c.listen.to_string()]
    ),
    setting!(
        tls_cert,
        "PATH",
        One,
        OUTPUTS,
        "A certificate (PEM, with those between it and its CA): --listen is then https; read again when it changes",
        |v| named(&v[0]),
        |c| path(c.tls_cert.as_ref())
    ),
    setting!(
        tls_key,
        "PATH",
        One,
        OUTPUTS,
        "The private key of --tls-cert (PEM)",
        |v| named(&v[0]),
        |c| path(c.tls_key.as_ref())
    ),
    setting!(
        tls_client_ca,
        "PATH",
        One,
        OUTPUTS,
        "CAs (PEM): all but /live and /ready is then for clients with a certificate of one of them",
        |v| named(&v[0]),
        |c| path(c.tls_client_ca.as_ref())
    ),
    setting!(
        metrics_auth,
        "off|token",
        One,
        OUTPUTS,
        "token: all but /live and /ready is then for bearer tokens that may get the path, as the API server says",
        |v| value::choice(&v[0], MetricsAuth::NAMES, MetricsAuth::from_name)?,
        |c| vec![c.metrics_auth.name().to_owned()]
    ),
    setting!(
        page,
        "ADDRESS:PORT|off",
        One,
        OUTPUTS,
        "Where the page for people is served, or off; it names addresses of peers, so mind who can reach it",
        |v| value::page(&v[0])?,
        |c| vec![
            c.page
                .map_or_else(|| "off".to_owned(), |page| page.to_string())
        ]
    ),
    setting!(
        socket,
        "PATH",
        One,
        OUTPUTS,
        "The local socket from which `aksnet-agent top` reads",
        |v| value::socket(&v[0])?,
        |c| vec![c.socket.display().to_string()]
    ),
    setting!(
        series_limit,
        "N",
        One,
        OUTPUTS,
        "The most series a metric may have; what is beyond is counted in a series 'other'",
        |v| value::number(&v[0], 10, 1_000_000)? as usize,
        |c| vec![c.series_limit.to_string()]
    ),
    setting!(
        pod_labels,
        "true|false",
        Switch,
        OUTPUTS,
        "Has the flow metrics name pods (src_pod, dst_pod) besides workloads; mind series_limit",
        |v| value::flag(&v[0])?,
        |c| vec![c.pod_labels.to_string()]
    ),
    setting!(
        otlp_endpoint,
        "URL",
        One,
        OUTPUTS,
        "An OpenTelemetry collector's address (OTLP over HTTP), e.g. http://127.0.0.1:4318: is sent flow records and metrics; empty: nothing is sent",
        |v| value::otlp_url(&v[0])?,
        |c| vec![c.otlp_endpoint.clone()]
    ),
    setting!(
        uplink,
        "INTERFACE",
        Many,
        INTERFACES,
        "The node's ways out; else the devices of the default routes",
        |v| all(v, value::interface)?,
        |c| c.uplink.clone()
    ),
    setting!(
        pod_interface,
        "INTERFACE|GLOB",
        Many,
        INTERFACES,
        "The host sides of the pods' interfaces, e.g. 'veth*'; else found by peer, bridge, route and name",
        |v| all(v, Pattern::new)?,
        |c| texts(&c.pod_interface)
    ),
    setting!(
        attach,
        "HOW",
        One,
        INTERFACES,
        "auto, tcx or clsact; auto takes tcx where the kernel has it (6.6)",
        |v| value::choice(&v[0], Attach::NAMES, Attach::from_name)?,
        |c| vec![c.attach.name().to_owned()]
    ),
    setting!(
        node_name,
        "NAME",
        One,
        PLAN,
        "This node's name in Kubernetes; else the host name",
        |v| v[0].clone(),
        |c| vec![c.node_name.clone()]
    ),
    setting!(
        cri_socket,
        "PATH",
        One,
        PLAN,
        "The container runtime's socket, which tells the names of this node's pods; else the well-known ones are tried; 'off'",
        |v| Place::parse(&v[0])?,
        |c| vec![c.cri_socket.to_string()]
    ),
    setting!(
        kubernetes,
        "HOW",
        One,
        KUBERNETES,
        "auto or off; auto asks the API as --kubeconfig says, else as the service account of the agent's pod",
        |v| value::choice(&v[0], Kubernetes::NAMES, Kubernetes::from_name)?,
        |c| vec![c.kubernetes.name().to_owned()]
    ),
    setting!(
        kubeconfig,
        "PATH",
        One,
        KUBERNETES,
        "The file that says where the API is and who the agent is there",
        |v| PathBuf::from(&v[0]),
        |c| vec![c.kubeconfig.display().to_string()]
    ),
    setting!(
        kube_context,
        "NAME",
        One,
        KUBERNETES,
        "Which context of the kubeconfig; else its current one",
        |v| v[0].clone(),
        |c| vec![c.kube_context.clone()]
    ),
    setting!(
        remote_pods,
        "true|false",
        Switch,
        KUBERNETES,
        "Watches the pods of all other nodes too, for workloads that no service has; costs memory and the API server",
        |v| value::flag(&v[0])?,
        |c| vec![c.remote_pods.to_string()]
    ),
    setting!(
        pod_cidr,
        "CIDR",
        Many,
        PLAN,
        "Where the cluster's pods live",
        |v| all(v, value::cidr)?,
        |c| texts(&c.pod_cidr)
    ),
    setting!(
        service_cidr,
        "CIDR",
        Many,
        PLAN,
        "Where services' virtual addresses live; cannot be seen from routes",
        |v| all(v, value::cidr)?,
        |c| texts(&c.service_cidr)
    ),
    setting!(
        node_cidr,
        "CIDR",
        Many,
        PLAN,
        "Where the cluster's nodes live",
        |v| all(v, value::cidr)?,
        |c| texts(&c.node_cidr)
    ),
    setting!(
        vnet_cidr,
        "CIDR",
        Many,
        PLAN,
        "The virtual network and its peers; else the uplinks' subnets",
        |v| all(v, value::cidr)?,
        |c| texts(&c.vnet_cidr)
    ),
    setting!(
        private_endpoint_cidr,
        "CIDR",
        Many,
        PLAN,
        "Where private endpoints live",
        |v| all(v, value::cidr)?,
        |c| texts(&c.private_endpoint_cidr)
    ),
    setting!(
        named_cidr,
        "NAME=CIDR",
        Many,
        PLAN,
        "Ranges that get a name of their own in labels, e.g. onprem=10.50.0.0/16",
        |v| all(v, value::named_cidr)?,
        |c| c
            .named_cidr
            .iter()
            .map(|(name, net)| format!("{name}={net}"))
            .collect()
    ),
    setting!(
        load_balancer,
        "ADDRESS",
        Many,
        PLAN,
        "Frontends of load balancers, where Kubernetes' services do not tell",
        |v| all(v, value::address)?,
        |c| texts(&c.load_balancer)
    ),
    setting!(
        api_server,
        "ADDRESS:PORT",
        Many,
        PLAN,
        "Where the API server answers, where Kubernetes does not tell; port 0 stands for any",
        |v| all(v, value::api_server)?,
        |c| texts(&c.api_server)
    ),
    setting!(
        host_root,
        "PATH",
        One,
        NODE,
        "Where the host's root directory is, for what CNI plugins leave there (/etc/cni/net.d, /var/lib/cni, /run)",
        |v| value::directory(&v[0])?,
        |c| vec![c.host_root.display().to_string()]
    ),
    setting!(
        imds,
        "auto|off",
        One,
        NODE,
        "Asks Azure's instance metadata service (169.254.169.254) for the zone: auto does so on machines of Azure's only",
        |v| value::choice(&v[0], Imds::NAMES, Imds::from_name)?,
        |c| vec![c.imds.name().to_owned()]
    ),
    setting!(
        cns_url,
        "URL",
        One,
        NODE,
        "Where Azure's container networking service is asked for the pods' addresses, on nodes that have it",
        |v| value::cns_url(&v[0])?,
        |c| vec![c.cns_url.clone()]
    ),
    setting!(
        capture,
        "true|false",
        Switch,
        DATAPATH,
        "Captures packets instead of loading programs, for kernels that refuse them: dearer, without NAT times and drops",
        |v| value::flag(&v[0])?,
        |c| vec![c.capture.to_string()]
    ),
    setting!(
        flow_cells,
        "N",
        One,
        DATAPATH,
        "Cells in the flow table (384 bytes each), a power of two",
        |v| value::power_of_two(
            &v[0],
            MIN_CELLS,
            MAX_CELLS,
            "a packet finds its flow's cell by the low bits of a hash"
        )?,
        |c| vec![c.flow_cells.to_string()]
    ),
    setting!(
        spill_entries,
        "N",
        One,
        DATAPATH,
        "Entries in the table that takes flows whose bucket is full",
        |v| value::number(&v[0], 1, 1 << 22)?,
        |c| vec![c.spill_entries.to_string()]
    ),
    setting!(
        sample,
        "N",
        One,
        DATAPATH,
        "One packet in N is timed on the NAT path, a power of two; 1 times every packet",
        |v| value::power_of_two(
            &v[0],
            1,
            1 << 20,
            "the programs decide by the low bits of the packet's number"
        )?,
        |c| vec![c.sample.to_string()]
    ),
    setting!(
        first_packets,
        "N",
        One,
        DATAPATH,
        "So many first packets of each flow are timed, whatever --sample says",
        |v| value::number(&v[0], 0, 1 << 16)?,
        |c| vec![c.first_packets.to_string()]
    ),
    setting!(
        bpf_log,
        "LEVEL",
        One,
        DATAPATH,
        "Passes on the datapath's own messages: off, error, warn, info or debug",
        |v| value::choice(&v[0], BpfLog::NAMES, BpfLog::from_name)?,
        |c| vec![c.bpf_log.name().to_owned()]
    ),
    setting!(
        bpf_stats,
        "true|false",
        Switch,
        DATAPATH,
        "Has the kernel account the run time of BPF programs while the agent runs; makes each run dearer",
        |v| value::flag(&v[0])?,
        |c| vec![c.bpf_stats.to_string()]
    ),
    setting!(
        interval,
        "TIME",
        One,
        ACCOUNTS,
        "Time between sweeps of the flow table",
        // Below, a sweep could read a closing cell before the last packet has left it (QUIET_MS).
        |v| value::time(&v[0], Duration::from_millis(100), Duration::from_mins(1))?,
        |c| vec![duration::show(c.interval)]
    ),
    setting!(
        idle_timeout,
        "TIME",
        One,
        ACCOUNTS,
        "A flow without packets for so long gives its cell back",
        |v| value::time(&v[0], Duration::from_secs(1), Duration::from_hours(24))?,
        |c| vec![duration::show(c.idle_timeout)]
    ),
    setting!(
        flow_active_timeout,
        "TIME",
        One,
        ACCOUNTS,
        "A connection that goes on has a flow record each time this has passed; 0s: only when it ends",
        |v| value::time(&v[0], Duration::ZERO, Duration::from_hours(24))?,
        |c| vec![duration::show(c.flow_active_timeout)]
    ),
    setting!(
        policy_grace,
        "TIME",
        One,
        ACCOUNTS,
        "A connection that policies deny is a gap only if they and the pods' labels were so for this long when it began",
        |v| value::time(&v[0], Duration::ZERO, Duration::from_hours(1))?,
        |c| vec![duration::show(c.policy_grace)]
    ),
    setting!(
        nat_budget,
        "TIME",
        One,
        ACCOUNTS,
        "NAT that costs a later packet of a connection more than this is flagged in aksnet_nat_overhead_flagged",
        |v| value::time(&v[0], Duration::ZERO, Duration::from_secs(1))?,
        |c| vec![duration::show(c.nat_budget)]
    ),
    setting!(
        nat_budget_first,
        "TIME",
        One,
        ACCOUNTS,
        "The same for the packet that opens a connection, which walks the nat rules",
        |v| value::time(&v[0], Duration::ZERO, Duration::from_secs(1))?,
        |c| vec![duration::show(c.nat_budget_first)]
    ),
    setting!(
        conntrack,
        "HOW",
        One,
        CONNTRACK,
        "How the conntrack table is followed: events, dump or off",
        |v| value::choice(&v[0], ConntrackMode::NAMES, ConntrackMode::from_name)?,
        |c| vec![c.conntrack.name().to_owned()]
    ),
    setting!(
        conntrack_interval,
        "TIME",
        One,
        CONNTRACK,
        "Time between readings of the kernel's conntrack statistics, and between dumps with --conntrack dump",
        |v| value::time(&v[0], Duration::from_secs(1), Duration::from_hours(1))?,
        |c| vec![duration::show(c.conntrack_interval)]
    ),
    setting!(
        conntrack_limit,
        "N",
        One,
        CONNTRACK,
        "The most translated connections that are mirrored (up to 200 bytes each)",
        |v| value::number(&v[0], 1, 1 << 22)?,
        |c| vec![c.conntrack_limit.to_string()]
    ),
    setting!(
        snat_ports,
        "N",
        One,
        CONNTRACK,
        "How many ports the masquerading rule has if it has a range of its own; else what the kernel uses, 64512",
        |v| value::optional(&v[0], 1, 65_536)?,
        |c| text(c.snat_ports)
    ),
    setting!(
        azure_snat_ports,
        "N",
        One,
        CONNTRACK,
        "SNAT ports that Azure's load balancer keeps for this node; 0 for its default by the number of nodes",
        |v| value::optional(&v[0], 0, 64_000)?,
        |c| text(c.azure_snat_ports)
    ),
    setting!(
        log,
        "LEVEL",
        One,
        LOG,
        "off, error, warn, info, debug or trace; or directives such as warn,aksnet_agent::node=debug",
        |v| value::log_filter(&v[0])?,
        |c| vec![c.log.clone()]
    ),
    setting!(
        log_format,
        "FORMAT",
        One,
        LOG,
        "human or json",
        |v| value::choice(&v[0], LogFormat::NAMES, LogFormat::from_name)?,
        |c| vec![c.log_format.name().to_owned()]
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_config_has_one_setting() {
        // The Debug form of a struct names its fields.
        let debug = format!("{:#?}", Config::default());
        let fields: Vec<&str> = debug
            .lines()
            .filter(|l| l.starts_with("    ") && !l.starts_with("     "))
            .filter_map(|l| l.trim().split_once(':').map(|(name, _)| name))
            .collect();
        let mut keys: Vec<&str> = SETTINGS.iter().map(|s| s.key).collect();
        assert_eq!(fields.len(), keys.len());
        keys.sort_unstable();
        keys.dedup();
        for field in &fields {
            assert!(keys.contains(field), "{field} has no setting");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut config = Config {
            uplink: vec!["eth0".into()],
            pod_interface: vec![Pattern::new("azv*").unwrap()],
            pod_cidr: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00::/56".parse().unwrap(),
            ],
            named_cidr: vec![("onprem".into(), "10.50.0.0/16".parse().unwrap())],
            interval: Duration::from_millis(250),
            bpf_stats: true,
            ..Config::default()
        };
        let before = config.clone();
        for setting in SETTINGS {
            let written = (setting.get)(&config);
            (setting.set)(&mut config, &written).unwrap();
        }
        assert_eq!(config, before);
    }

    #[test]
    fn numbers_of_ports_may_be_left_open() {
        let set = |key: &str, text: &str| {
            let mut config = Config::default();
            let setting = by_key(key).expect("a setting");
            (setting.set)(&mut config, &[text.to_owned()])?;
            Ok::<_, String>((config.snat_ports, config.azure_snat_ports))
        };
        assert_eq!(set("snat_ports", ""), Ok((None, None)));
        assert_eq!(set("snat_ports", "2"), Ok((Some(2), None)));
        assert_eq!(set("azure_snat_ports", "0"), Ok((None, Some(0))));
        assert!(set("snat_ports", "0").is_err(), "a range has a port");
    }

    #[test]
    fn defaults_are_within_their_own_bounds() {
        let mut config = Config::default();
        for setting in SETTINGS {
            let written = (setting.get)(&config);
            (setting.set)(&mut config, &written).unwrap_or_else(|e| panic!("{}: {e}", setting.key));
        }
        assert_eq!(config, Config::default());
    }

    /// A setting's row in `docs/configuration.md`.
    fn row(setting: &Setting) -> String {
        let default = (setting.get)(&Config::default()).join(",");
        let default = if default.is_empty() {
            String::new()
        } else {
            format!("`{default}`")
        };
        let many = if setting.arity == Arity::Many {
            " (list)"
        } else {
            ""
        };
        let value = setting.value_name.replace('|', "\\|");
        let help = setting.help;
        format!(
            "| `{}` | {value}{many} | {default} | {help} |\n",
            setting.key
        )
    }

    #[test]
    fn the_page_has_every_setting_as_it_is() {
        let rows: String = SETTINGS.iter().map(row).collect();
        let page = include_str!("../../../docs/configuration.md");
        assert!(
            page.contains(&rows),
            "put these rows into docs/configuration.md:\n{rows}"
        );
    }
}

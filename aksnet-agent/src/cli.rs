//! The command line. The settings' flags are made from the table in [`crate::config::settings`]; what is
//! written here are the commands and what belongs to one command alone.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use serde::{Deserialize, Serialize};

use crate::{
    classify::Class,
    collect::cause::Cause,
    config::{
        Effective, duration, file,
        merge::{self, Given, Place},
        settings::{Arity, SETTINGS, Setting},
        suggest::hint,
    },
    doctor::CHECKS,
    exit::{Exit, Failure, OrExit},
    explain::question::Asked,
    flowlog::Filter,
    policy::engine::Engine,
};

/// Version and revision, as `--version` and `/status` show them.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from; `unknown` where the build did not say.
pub const REVISION: &str = match option_env!("AKSNET_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Shows what a Kubernetes node's NAT and network policy do to its pods' traffic.
#[derive(Parser, Debug)]
#[command(
    name = "aksnet-agent",
    disable_version_flag = true,
    after_help = "Exit codes: 0 ok, 64 bad flag or variable, 65 bad manifest or capture, 66 no such file or interface, 69 no agent, \
                  70 programs refused, 71 system call failed, 72 no BTF, 73 address or socket taken, \
                  77 not permitted, 78 bad config file; `explain`: 0 allowed, 1 denied, 2 not determined; `doctor`: 1 warning, 2 critical.\n\
                  Every flag of `run` is also a key of the config file (pod_cidr) and an environment \
                  variable (AKSNET_POD_CIDR); flag wins over variable over file."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Action>,
    /// Print the version and the revision it was built from
    #[arg(short = 'V', long)]
    pub version: bool,
}

/// What the agent can be asked to do.
#[derive(Subcommand, Debug)]
pub enum Action {
    /// Watch this node until SIGTERM
    Run(Settings),
    /// Show flows, workloads, NAT, drops and the node live: from the running agent, or from programs of its own when none
    /// runs
    Top(Top),
    /// Follow what is dropped, and why: from the running agent, or from programs of its own when none runs
    Drops(Drops),
    /// Show flow records, one for each connection: those that ended lately and the live ones, or as they end
    Flows(Flows),
    /// Write down what the running agent tells, or programs of its own, as a file that `replay` reads
    Record(Record),
    /// Show the flows of a capture (pcap, pcapng) or of a recorded session, without privilege
    Replay(Replay),
    /// Say whether network policies let one pod reach another, and why: from manifests, or from the API
    Explain(Explain),
    /// Look for the common faults of this node's networking: what is wrong, why, and what to do
    Doctor(Doctor),
    /// Print the effective config as a config file, each value with its origin, and exit
    Config(Settings),
    /// Print completions for a shell, e.g. `source <(aksnet-agent completions bash)`
    Completions(Completions),
    /// Print the manual page, or write one for each command into a directory
    Man(Man),
}

/// What `completions` is told.
#[derive(Args, Debug)]
pub struct Completions {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// What `man` is told.
#[derive(Args, Debug)]
pub struct Man {
    /// Write aksnet-agent.1, aksnet-agent-run.1 and so on into this directory, e.g. /usr/local/share/man/man1
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The flags of `top`.
#[derive(Args, Debug)]
#[command(
    after_help = "On a terminal it shows flows, workloads, NAT, drops and the node, with keys (press ?); where standard \
                  output is none, rows as with --raw. NO_COLOR is honoured. See docs/top.md."
)]
pub struct Top {
    /// Print rows for scripts and pipes, one line each, in place of the screen
    #[arg(long)]
    pub raw: bool,
    /// Print each row as a JSON object, in place of the screen
    #[arg(long)]
    pub json: bool,
    /// Seconds between looks
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub interval: f64,
    /// Stop after so many looks [default: go on until interrupted]
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Rows per look [default: 20, on the screen 1000]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// What makes a flow busy
    #[arg(long, value_enum, default_value_t = Sort::Bytes)]
    pub sort: Sort,
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

/// The flags of `drops`.
#[derive(Args, Debug)]
pub struct Drops {
    /// Print each record as a JSON object
    #[arg(long)]
    pub json: bool,
    /// Begin with what the running agent still has in memory
    #[arg(long)]
    pub recent: bool,
    /// Only these causes, e.g. policy
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = cause)]
    pub cause: Vec<Cause>,
    /// Only what comes from or goes to this Kubernetes namespace
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Stop after so many records [default: go on until interrupted]
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// The running agent's socket [default: as `run` would have it]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// TOML file with settings
    #[arg(long, value_name = "FILE", env = "AKSNET_CONFIG")]
    pub config: Option<PathBuf>,
}

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

fn one_of(what: &str, text: &str, names: &[&str]) -> Result<String, String> {
    if names.contains(&text) {
        return Ok(text.to_owned());
    }
    let hint = hint(text, names.iter().copied());
    Err(format!("no {what}; there are {}{hint}", names.join(", ")))
}

fn class(text: &str) -> Result<String, String> {
    one_of("class", text, &Class::ALL.map(Class::name))
}

fn nat(text: &str) -> Result<String, String> {
    one_of("kind of NAT", text, &["none", "snat", "dnat", "both"])
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

fn captured(mut effective: Effective, capture: bool) -> Effective {
    effective.config.capture |= capture;
    effective
}

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

fn check(text: &str) -> Result<String, String> {
    let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
    one_of("check", text, &names)
}

fn cause(text: &str) -> Result<Cause, String> {
    Cause::by_name(text).ok_or_else(|| {
        let names: Vec<&str> = Cause::ALL.into_iter().map(Cause::name).collect();
        format!("no cause; there are {}", names.join(", "))
    })
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

fn engine(text: &str) -> Result<Engine, String> {
    let names = || Engine::ALL.into_iter().map(Engine::name);
    Engine::from_name(text).ok_or_else(|| {
        let all: Vec<&str> = names().collect();
        format!("it is one of {}{}", all.join(", "), hint(text, names()))
    })
}

/// What rows are ordered by, greatest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Sort {
    /// Bytes per second since the last look.
    #[default]
    Bytes,
    /// Packets so far.
    Packets,
    /// Dropped packets so far.
    Drops,
    /// The slowest: median time on the NAT path.
    NatTime,
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|s| (0.1..=3600.0).contains(s))
        .ok_or_else(|| "takes seconds from 0.1 to 3600".to_owned())
}

/// What the command line says about the settings, not read yet.
#[derive(Debug, Default)]
pub struct Settings {
    config: Option<PathBuf>,
    given: Vec<(&'static str, Vec<String>)>,
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env("AKSNET_CONFIG")
            .hide_env(true)
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file with settings [env: AKSNET_CONFIG]");
        command.arg(config).args(SETTINGS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A setting's flag. Its value stays text: one reader serves flags, environment and file.
fn argument(setting: &Setting) -> Arg {
    let defaults = (setting.get)(&crate::config::Config::default()).join(",");
    let default = if defaults.is_empty() {
        String::new()
    } else {
        format!("[default: {defaults}] ")
    };
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.value_name)
        .help_heading(setting.heading)
        .help(format!(
            "{} {default}[env: {}]",
            setting.help,
            setting.env()
        ));
    match setting.arity {
        Arity::One => arg.action(ArgAction::Set),
        Arity::Many => arg.action(ArgAction::Append),
        Arity::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            config: matches.get_one("config").cloned(),
            given: SETTINGS
                .iter()
                .filter_map(|setting| {
                    let values = matches.get_many::<String>(setting.key)?;
                    Some((setting.key, values.cloned().collect()))
                })
                .collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Settings {
    /// The effective config: these flags over the environment over the file over the defaults.
    ///
    /// # Errors
    /// When the file cannot be read, or a value cannot be taken.
    pub fn effective(&self) -> Result<Effective, Failure> {
        let flags = self
            .given
            .iter()
            .filter_map(|(key, texts)| {
                let setting = crate::config::settings::by_key(key)?;
                Some(merge::given(setting, &Place::Flag, texts))
            })
            .collect();
        effective(self.config.as_deref(), flags)
    }
}

impl Top {
    /// Rows per look of `--raw`, unless told otherwise.
    pub const RAW_LIMIT: usize = 20;
    /// Rows per look of the screen, unless told otherwise.
    pub const SCREEN_LIMIT: usize = 1_000;

    /// Whether rows are printed rather than shown on a screen: somebody wants that, or there is no terminal that can.
    #[must_use]
    pub fn prints(&self, is_terminal: bool, term: Option<&std::ffi::OsStr>) -> bool {
        self.raw || self.json || !is_terminal || term.is_some_and(|term| term == "dumb")
    }

    /// The effective config of programs that `top` loads itself.
    ///
    /// # Errors
    /// As [`Settings::effective`].
    pub fn effective(&self) -> Result<Effective, Failure> {
        let effective = with_socket(self.config.as_deref(), self.socket.as_deref())?;
        Ok(captured(effective, self.capture))
    }
}

impl Drops {
    /// The effective config of programs that `drops` loads itself.
    ///
    /// # Errors
    /// As [`Settings::effective`].
    pub fn effective(&self) -> Result<Effective, Failure> {
        with_socket(self.config.as_deref(), self.socket.as_deref())
    }
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

fn with_socket(config: Option<&Path>, socket: Option<&Path>) -> Result<Effective, Failure> {
    let socket = socket.into_iter().filter_map(|path| {
        let setting = crate::config::settings::by_key("socket")?;
        Some(merge::given(
            setting,
            &Place::Flag,
            &[path.display().to_string()],
        ))
    });
    let mut effective = effective(config, socket.collect())?;
    // What looks for a while sends nothing: the agent does.
    effective.config.otlp_endpoint.clear();
    Ok(effective)
}

/// What clap has to say about a mistake, without the usage, in one line.
#[must_use]
pub fn in_one_line(error: &str) -> String {
    let error = error.strip_prefix("error: ").unwrap_or(error);
    let said: Vec<&str> = error
        .lines()
        .map(str::trim)
        .take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more information"))
        .filter(|l| !l.is_empty())
        .collect();
    format!("{}; see --help", said.join("; "))
}

fn effective(config: Option<&Path>, flags: Vec<Given>) -> Result<Effective, Failure> {
    let file = match config {
        None => Vec::new(),
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|e| {
                Failure::new(
                    Exit::NoInput,
                    format_args!("cannot read the config file {name}: {e}"),
                )
            })?;
            file::read(&name, &text).or_exit(Exit::Config)?
        }
    };
    let env = merge::from_env(|name| std::env::var(name).ok());
    merge::merge(vec![file, env, flags]).map_err(|error| {
        let exit = match error.place {
            Place::File { .. } => Exit::Config,
            Place::Flag | Place::Env => Exit::Usage,
        };
        Failure {
            exit,
            error: error.into(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(args: &[&str]) -> Effective {
        let args = ["aksnet-agent", "run"].iter().chain(args);
        match Cli::try_parse_from(args).unwrap().command {
            Some(Action::Run(settings)) => settings.effective().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mistake_on_the_command_line_is_one_line_with_the_suggestion() {
        let line = |args: &[&str]| {
            let args = ["aksnet-agent"].iter().chain(args);
            in_one_line(&Cli::try_parse_from(args).unwrap_err().to_string())
        };
        let unknown = line(&["run", "--upling", "eth0"]);
        assert!(
            unknown.starts_with("unexpected argument '--upling' found; "),
            "{unknown}"
        );
        assert!(unknown.contains("'--uplink'"), "{unknown}");
        assert_eq!(
            line(&["top", "--interval", "0"]),
            "invalid value '0' for '--interval <S>': takes seconds from 0.1 to 3600; see --help"
        );
        for args in [
            &["run", "--uplink"][..],
            &["walk"],
            &["top", "--sort", "size"],
        ] {
            assert_eq!(line(args).lines().count(), 1);
        }
    }

    #[test]
    fn every_setting_is_a_flag_a_key_and_a_variable_and_nothing_else_is() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let mut flags: Vec<&str> = run
            .get_arguments()
            .filter_map(Arg::get_long)
            .filter(|f| !["config", "help"].contains(f))
            .collect();
        flags.sort_unstable();
        let mut keys: Vec<String> = SETTINGS.iter().map(Setting::flag).collect();
        keys.sort_unstable();
        assert_eq!(flags, keys);
        for setting in SETTINGS {
            assert_eq!(
                setting.env(),
                format!("AKSNET_{}", setting.key.to_uppercase())
            );
            let value = "x".to_owned();
            let found = merge::from_env(|name| (name == setting.env()).then(|| value.clone()));
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].setting.key, setting.key);
            let read = file::read("f", &format!("{} = 'x'", setting.key)).unwrap();
            assert_eq!(read[0].setting.key, setting.key);
        }
    }

    #[test]
    fn lists_are_repeated_or_separated_by_commas() {
        let config = run(&["--uplink", "eth0", "--uplink=eth1,eth2"]).config;
        assert_eq!(config.uplink, ["eth0", "eth1", "eth2"]);
    }

    #[test]
    fn a_switch_needs_no_value() {
        assert!(run(&["--bpf-stats", "--sample", "1"]).config.bpf_stats);
        assert!(!run(&["--bpf-stats=false"]).config.bpf_stats);
    }

    #[test]
    fn bad_values_exit_by_where_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "sampel = 4\n").unwrap();
        let settings = Settings {
            config: Some(path.clone()),
            given: vec![],
        };
        let failure = settings.effective().unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(
            failure
                .to_string()
                .ends_with("agent.toml:1: unknown key 'sampel'; did you mean 'sample'?")
        );
        std::fs::write(&path, "").unwrap();
        let settings = Settings {
            config: Some(path),
            given: vec![("sample", vec!["5".into()])],
        };
        assert_eq!(settings.effective().unwrap_err().exit, Exit::Usage);
        let settings = Settings {
            config: Some(dir.path().join("none.toml")),
            given: vec![],
        };
        assert_eq!(settings.effective().unwrap_err().exit, Exit::NoInput);
    }
}

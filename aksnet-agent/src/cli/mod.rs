//! The command line. The settings' flags are made from the table in [`crate::config::settings`]; what is
//! written here are the commands and what belongs to one command alone.

// By what they are about.
mod flows;

mod judge;

mod live;

mod settings;

mod value;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use self::{
    flows::{FlowFilter, FlowSource, Flows, Record, Replay},
    judge::{Doctor, Explain},
    live::{Drops, Sort, Top},
    settings::Settings,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

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
}

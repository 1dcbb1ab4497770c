//! The flags of what is looked at *live*: `top`, `drops`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{
    settings::{captured, with_socket},
    value::{cause, seconds},
};
use crate::{collect::cause::Cause, config::Effective, exit::Failure};

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

impl Drops {
    /// The effective config of programs that `drops` loads itself.
    ///
    /// # Errors
    /// As [`Settings::effective`].
    pub fn effective(&self) -> Result<Effective, Failure> {
        with_socket(self.config.as_deref(), self.socket.as_deref())
    }
}

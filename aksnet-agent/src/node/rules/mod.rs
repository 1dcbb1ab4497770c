//! The node's packet filter, as far as it tells what the node is: which tables and chains there are, and the
//! rules of the few chains that matter.
//!
//! Rules live in two places that know nothing of each other, and both can be populated: `nf_tables`
//! ([`nft`], asked over [`nfnetlink`]) and the older `x_tables` ([`legacy`], asked over [`sockopt`]). No
//! program is run, no module is loaded and no table comes into being by asking. A source that cannot be read
//! is [`NotKnown`], never empty.

// Pure: bytes to values.
pub mod attribute;

pub mod extension;

pub mod nft;

pub mod legacy;

// Edges: who is asked.
pub mod nfnetlink;

pub mod sockopt;

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

/// Why something is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotKnown(pub String);

/// What a source says, or why it says nothing.
pub type Reading<T> = Result<T, NotKnown>;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6 in one table.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Anything else, by its number.
    Other(u8),
}

impl Family {
    /// By the number in netlink messages (`NFPROTO_*`, include/uapi/linux/netfilter.h).
    #[must_use]
    pub const fn of(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }

    /// The number in netlink messages.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Other(number) => number,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet => f.write_str("inet"),
            Self::Ip => f.write_str("ip"),
            Self::Ip6 => f.write_str("ip6"),
            Self::Other(number) => write!(f, "family {number}"),
        }
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// `nat`, `filter`, `kube-proxy`, ...
    pub name: String,
    /// The chains that were asked for and exist.
    pub chains: Vec<Chain>,
    /// Names of sets and maps; only read of tables that are not iptables'.
    pub sets: Vec<String>,
}

impl Table {
    /// The chain of this name.
    #[must_use]
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|c| c.name == name)
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets enter it; `None` if only by a jump.
    pub hook: Option<Hook>,
    /// Its rules, if they were asked for.
    pub rules: Vec<Rule>,
}

/// Where a chain hangs in a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `NF_INET_*`: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// Lower runs first. `x_tables` has none of its own.
    pub priority: Option<i32>,
    /// What becomes of a packet that no rule decides about: true if it is dropped.
    pub drops: bool,
}

/// A rule, reduced to what tells masquerading and enforcement apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The destination it is for, and whether that is inverted.
    pub destination: Option<(IpNet, bool)>,
    /// It is for destinations that are (or are not) addresses of this node (`addrtype`).
    pub to_local: Option<bool>,
    /// Its comment.
    pub comment: Option<String>,
    /// It has further conditions, which are not decoded.
    pub narrowed: bool,
    /// What it does.
    pub verdict: Verdict,
}

impl Rule {
    /// The destination of a rule that has no other condition.
    #[must_use]
    pub fn only_destination(&self) -> Option<IpNet> {
        match self.destination {
            Some((net, false)) if !self.narrowed && self.to_local.is_none() => Some(net),
            _ => None,
        }
    }
}

/// What a rule does to a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The next rule looks at it.
    #[default]
    Continue,
    /// It passes.
    Accept,
    /// It is lost.
    Drop,
    /// Back to the calling chain.
    Return,
    /// To another chain, and back.
    Jump(String),
    /// To another chain, for good.
    Goto(String),
    /// The source becomes an address of this node.
    Masquerade {
        /// The port is drawn at random (`--random-fully`).
        random_fully: bool,
    },
    /// Another target, by its name.
    Other(String),
}

/// A chain that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its table in iptables.
    pub table: &'static str,
    /// Its name.
    pub chain: &'static str,
    /// Whether its rules matter, too.
    pub rules: bool,
}

/// All that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `nf_tables`.
    pub nft: Reading<Vec<Table>>,
    /// `x_tables`, IPv4.
    pub legacy: Reading<Vec<Table>>,
    /// `x_tables`, IPv6.
    pub legacy6: Reading<Vec<Table>>,
}

impl Rules {
    /// Reads all sources in the calling thread's network namespace. Blocks for as long as the kernel takes to
    /// answer, which is bounded by the number of chains that are asked for and [`sockopt::MAX_TABLE`].
    #[must_use]
    pub fn read(wanted: &[Wanted]) -> Self {
        Self {
            nft: nfnetlink::read(wanted),
            legacy: sockopt::read(Family::Ip, wanted),
            legacy6: sockopt::read(Family::Ip6, wanted),
        }
    }

    /// The sources with their names.
    pub fn sources(&self) -> impl Iterator<Item = (&'static str, &Reading<Vec<Table>>)> {
        [
            ("nf_tables", &self.nft),
            ("x_tables for IPv4", &self.legacy),
            ("x_tables for IPv6", &self.legacy6),
        ]
        .into_iter()
    }

    /// The tables of every source that could be read, with the source's name.
    pub fn tables(&self) -> impl Iterator<Item = (&'static str, &Table)> {
        self.sources()
            .filter_map(|(source, tables)| Some((source, tables.as_ref().ok()?)))
            .flat_map(|(source, tables)| tables.iter().map(move |t| (source, t)))
    }

    /// Every chain of this name in the iptables table of this name, with where it is.
    pub fn chains<'a>(
        &'a self,
        table: &'a str,
        chain: &'a str,
    ) -> impl Iterator<Item = (&'static str, Family, &'a Chain)> + 'a {
        self.tables()
            .filter(move |(_, t)| t.name == table && matches!(t.family, Family::Ip | Family::Ip6))
            .filter_map(move |(source, t)| Some((source, t.family, t.chain(chain)?)))
    }

    /// Why what was not found may be there all the same: the sources that could not be read.
    #[must_use]
    pub fn unreadable(&self) -> Vec<String> {
        self.sources()
            .filter_map(|(source, tables)| {
                let why = tables.as_ref().err()?;
                Some(format!("{source} cannot be read: {why}"))
            })
            .collect()
    }
}

/// The range that an address and a mask of leading ones make; `None` for any other mask.
fn masked(address: IpAddr, mask: IpAddr) -> Option<IpNet> {
    IpNet::with_netmask(address, mask).ok().map(|n| n.trunc())
}

/// The text up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

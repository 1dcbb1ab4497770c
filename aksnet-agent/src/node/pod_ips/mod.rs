//! The node's *pod addresses*: how many it has handed out, and of how many. Each address manager keeps its
//! own account in its own place; each is read only where it is found, and one that cannot be read is missing
//! with the reason, never 0.

// The accounts.
pub mod host_local;

pub mod azure_vnet;

pub mod cns;

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    Snapshot,
    found::{conflist::Conflist, evidence},
};
use crate::config::Config;

/// An account of pod addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIps {
    /// Whose: `host_local`, `azure_vnet_ipam`, `azure_cns`, `pod_cidr`; with `_v6` behind it for IPv6.
    pub source: &'static str,
    /// How many are handed out.
    pub in_use: u64,
    /// Of how many; `None` where the account does not tell.
    pub limit: Option<u64>,
    /// Of those in use, how many belong to no sandbox, or else no pod, that still exists; `None` if neither is known.
    pub leaked: Option<u64>,
}

/// What the Kubernetes API says, if it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// The node's `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// How many pods on the node have an address of their own (not the node's).
    pub pods: u64,
}

/// Who can have a pod address on the node: what is handed out to nobody of them is leaked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Living {
    /// The sandboxes that the container runtime has, by their full ids; `None`: not known.
    pub sandboxes: Option<BTreeSet<String>>,
    /// The addresses of the node's pods by Kubernetes; `None`: not known.
    pub addresses: Option<BTreeSet<IpAddr>>,
}

/// An address that is handed out, and nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The address.
    pub address: IpAddr,
    /// The file that holds it, without the prefix under which the agent sees the host's.
    pub file: PathBuf,
    /// The container it was handed out to.
    pub container: String,
    /// When; wall time, seconds since 1970.
    pub since_unix_s: u64,
}

/// All accounts, and why others are missing that should be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Those that were read.
    pub accounts: Vec<PodIps>,
    /// Those that were found and could not be read: source and reason.
    pub skipped: Vec<(&'static str, String)>,
    /// Addresses that are handed out to nobody who is there.
    pub leaks: Vec<Leak>,
}

impl Accounts {
    /// For `/status`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let accounts: Vec<Value> = self
            .accounts
            .iter()
            .map(|a| {
                json!({
                    "source": a.source, "in_use": a.in_use, "limit": a.limit, "leaked": a.leaked,
                })
            })
            .collect();
        let skipped: Vec<Value> = self
            .skipped
            .iter()
            .map(|(source, why)| json!({"source": source, "because": why}))
            .collect();
        json!({"accounts": accounts, "skipped": skipped})
    }

    fn add(&mut self, source: &'static str, read: Result<Vec<PodIps>, String>) {
        match read {
            Ok(accounts) => self.accounts.extend(accounts),
            Err(why) => self.skipped.push((source, why)),
        }
    }
}

/// Reads all accounts. CNS has [`cns::PATIENCE`] to answer; files are read in place, on a thread for that.
pub async fn read(
    config: &Config,
    snapshot: &Snapshot,
    kubernetes: Option<&Kubernetes>,
    living: &Living,
) -> Accounts {
    let (root, snapshot, living) = (config.host_root.clone(), snapshot.clone(), living.clone());
    let files = tokio::task::spawn_blocking(move || {
        let mut accounts = Accounts::default();
        let conflist = match evidence::conflist(&root) {
            Ok(list) => list,
            Err(why) => {
                accounts.skipped.push(("cni", why.to_string()));
                None
            }
        };
        if let Some(read) = host_local::read(&root, conflist.as_ref(), &snapshot, &living) {
            let read = read.map(|(read, leaks)| {
                accounts.leaks = leaks;
                read
            });
            accounts.add("host_local", read);
        }
        if let Some(read) = azure_vnet::read(&root) {
            accounts.add("azure_vnet_ipam", read);
        }
        let asks_cns = cns::is_here(&root, conflist.as_ref());
        (accounts, asks_cns)
    });
    let (mut accounts, asks_cns) = files.await.unwrap_or_default();
    if asks_cns {
        accounts.add("azure_cns", cns::ask(&config.cns_url).await);
    }
    if let Some(kubernetes) = kubernetes {
        accounts.accounts.extend(by_pod_cidr(kubernetes));
    }
    accounts
}

/// The node's range against its pods: what every CNI with a range for each node comes down to.
fn by_pod_cidr(kubernetes: &Kubernetes) -> Option<PodIps> {
    // Pods have an address of each family, so the smaller range is the limit.
    let limit = kubernetes.pod_cidrs.iter().map(|net| usable(*net)).min()?;
    Some(PodIps {
        source: "pod_cidr",
        in_use: kubernetes.pods,
        limit: Some(limit),
        leaked: None,
    })
}

/// The addresses of a range that a pod can have: not the network's, not the gateway's, and not IPv4's
/// broadcast address.
fn usable(net: IpNet) -> u64 {
    between(first(net), last(net)).saturating_sub(1)
}

/// The first address that is not the network's.
fn first(net: IpNet) -> IpAddr {
    plus_one(net.network())
}

/// The last address that is not the broadcast's.
fn last(net: IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let broadcast = u32::from(net.broadcast());
            IpAddr::V4(broadcast.saturating_sub(1).into())
        }
        IpNet::V6(net) => IpAddr::V6(net.broadcast()),
    }
}

fn plus_one(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).saturating_add(1).into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).saturating_add(1).into()),
    }
}

/// How many addresses there are from one to another, both included.
fn between(start: IpAddr, end: IpAddr) -> u64 {
    match (start, end) {
        (IpAddr::V4(start), IpAddr::V4(end)) => {
            let (start, end) = (u64::from(u32::from(start)), u64::from(u32::from(end)));
            (end + 1).saturating_sub(start)
        }
        (IpAddr::V6(start), IpAddr::V6(end)) => {
            let (start, end) = (u128::from(start), u128::from(end));
            let count = end.saturating_add(1).saturating_sub(start);
            u64::try_from(count).unwrap_or(u64::MAX)
        }
        _ => 0,
    }
}

/// A file of a source that is not there: the source is not on this node.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

/// The network's own name is a part of a path: one that would lead elsewhere is none.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn network(conflist: Option<&Conflist>) -> Option<&str> {
    conflist.map(|c| c.name.as_str()).filter(|n| is_plain(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_24_has_room_for_253_pods() {
        assert_eq!(usable("10.244.0.0/24".parse().unwrap()), 253);
        assert_eq!(usable("10.244.0.0/32".parse().unwrap()), 0);
        assert_eq!(usable("0.0.0.0/0".parse().unwrap()), (1 << 32) - 3);
        assert_eq!(usable("fd00::/64".parse().unwrap()), u64::MAX - 1);
        assert_eq!(usable("::/0".parse().unwrap()), u64::MAX - 1);
    }

    #[test]
    fn pods_are_held_against_the_smaller_range() {
        let kubernetes = Kubernetes {
            pod_cidrs: vec![
                "10.244.0.0/24".parse().unwrap(),
                "fd00::/64".parse().unwrap(),
            ],
            pods: 7,
        };
        let account = by_pod_cidr(&kubernetes).unwrap();
        assert_eq!((account.in_use, account.limit), (7, Some(253)));
        assert_eq!(by_pod_cidr(&Kubernetes::default()), None);
    }
}

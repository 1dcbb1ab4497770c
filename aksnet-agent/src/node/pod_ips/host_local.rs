//! The account of the CNI plugin *host-local* (kubenet, kindnet, flannel): a directory for each network, with
//! a file for each address that is handed out, named by the address and beginning with the container's id.
//!
//! Layout: containernetworking/plugins, plugins/ipam/host-local/backend/disk.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use super::{PodIps, between, first, is_absent, last, network};
use crate::node::{
    Snapshot,
    address::Address,
    found::{
        conflist::{Conflist, Ipam, Range},
        evidence::read_up_to,
    },
};

/// Where addresses are kept unless the configuration says otherwise.
const DATA: &str = "/var/lib/cni/networks";
/// More than a /16 of addresses.
const MAX_FILES: usize = 100_000;
/// A container's id, an interface's name.
const MAX_FILE: u64 = 4096;

/// Reads the account; `None` where there is none.
#[must_use]
pub fn read(
    root: &Path,
    conflist: Option<&Conflist>,
    snapshot: &Snapshot,
    sandboxes: Option<&BTreeSet<String>>,
) -> Option<Result<Vec<PodIps>, String>> {
    let list = conflist?;
    // flannel's plugin delegates to host-local with ranges of its own making, under the list's name.
    let flannel = list.plugin("flannel").map(|plugin| &plugin.ipam);
    let ipam = list.ipam().filter(|i| i.kind == "host-local").or(flannel)?;
    let data = data(root, &ipam.data_dir);
    let directory = data.join(network(conflist)?);
    let held = match held(&directory) {
        Ok(held) => held,
        // Nothing was handed out yet. Where not even the plugin's own directory is there, it is more likely that the
        // agent was not given it to see.
        Err(e) if is_absent(&e) && data.is_dir() => BTreeSet::new(),
        Err(e) => return Some(Err(format!("{}: {e}", directory.display()))),
    };
    Some(Ok(accounts(ipam, snapshot, &held, |ip| {
        let file = directory.join(ip.to_string());
        Some(!sandboxes?.contains(&owner(&file)?))
    })))
}

/// Where the plugin keeps its networks; a configured path may lie below the host's root already.
fn data(root: &Path, configured: &str) -> PathBuf {
    let data = if configured.is_empty() {
        DATA
    } else {
        configured
    };
    if Path::new(data).starts_with(root) {
        PathBuf::from(data)
    } else {
        root.join(data.trim_start_matches('/'))
    }
}

/// The addresses that are handed out.
fn held(directory: &Path) -> std::io::Result<BTreeSet<IpAddr>> {
    let mut held = BTreeSet::new();
    for (n, entry) in fs::read_dir(directory)?.enumerate() {
        if n >= MAX_FILES {
            return Err(std::io::Error::other(format!(
                "more than {MAX_FILES} files"
            )));
        }
        // `lock` and `last_reserved_ip.0` are no addresses.
        if let Some(name) = entry?.file_name().to_str()
            && let Ok(ip) = name.parse()
        {
            held.insert(ip);
        }
    }
    Ok(held)
}

/// The container that has the address: the file's first line.
fn owner(file: &Path) -> Option<String> {
    let text = read_up_to(file, MAX_FILE).ok()?;
    let text = String::from_utf8_lossy(&text);
    Some(text.lines().next()?.trim().to_owned())
}

/// One account for each family.
fn accounts(
    ipam: &Ipam,
    snapshot: &Snapshot,
    held: &BTreeSet<IpAddr>,
    leaked: impl Fn(&IpAddr) -> Option<bool>,
) -> Vec<PodIps> {
    let mut ranges: Vec<&Range> = ipam.ranges.iter().flatten().collect();
    if !ipam.range.subnet.is_empty() {
        ranges.push(&ipam.range);
    }
    [(true, "host_local"), (false, "host_local_v6")]
        .into_iter()
        .filter_map(|(v4, source)| {
            let held: Vec<&IpAddr> = held.iter().filter(|ip| ip.is_ipv4() == v4).collect();
            let limits: Vec<u64> = ranges.iter().filter_map(|r| limit(r, v4)).collect();
            let limit = if limits.is_empty() {
                bridge(snapshot, v4).map(super::usable)
            } else {
                Some(limits.into_iter().fold(0, u64::saturating_add))
            };
            if limit.is_none() && held.is_empty() {
                return None;
            }
            let leaked: Option<Vec<bool>> = held.iter().map(|ip| leaked(ip)).collect();
            let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            Some(PodIps {
                source,
                in_use: count(held.len()),
                limit,
                leaked: leaked
                    .filter(|l| !l.is_empty())
                    .map(|l| count(l.iter().filter(|leaked| **leaked).count())),
            })
        })
        .collect()
}

/// The addresses of a range that host-local hands out: never the gateway's
/// (plugins/ipam/host-local/backend/allocator/range.go).
fn limit(range: &Range, v4: bool) -> Option<u64> {
    let net: IpNet = range.subnet.parse().ok()?;
    if net.addr().is_ipv4() != v4 {
        return None;
    }
    let within = |text: &str| text.parse().ok().filter(|ip| net.contains(ip));
    let start: IpAddr = within(&range.start).unwrap_or_else(|| first(net));
    let end: IpAddr = within(&range.end).unwrap_or_else(|| last(net));
    let gateway: IpAddr = within(&range.gateway).unwrap_or_else(|| first(net));
    let gateway = u64::from(start <= gateway && gateway <= end);
    Some(between(start, end).saturating_sub(gateway))
}

/// The subnet of the bridge that pods hang on, where no range is configured.
fn bridge(snapshot: &Snapshot, v4: bool) -> Option<IpNet> {
    let bridges = snapshot
        .links
        .iter()
        .filter(|l| ["cbr0", "cni0"].contains(&l.name.as_str()));
    let bridges: Vec<u32> = bridges.map(|l| l.index).collect();
    snapshot
        .addresses
        .iter()
        .filter(|a| bridges.contains(&a.index) && a.ip().is_ipv4() == v4)
        .find_map(Address::subnet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::kubenet;

    fn list(ipam: &str) -> Conflist {
        let text = format!(
            r#"{{"name": "kubenet", "plugins": [{{"type": "bridge", "bridge": "cbr0", "ipam": {ipam}}}]}}"#
        );
        Conflist::parse("10-containerd-net.conflist", text.as_bytes()).unwrap()
    }

    fn store(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("var/lib/cni/networks/kubenet");
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        root
    }

    const RANGES: &str = r#"{"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00::/112"}]]}"#;

    #[test]
    fn files_named_by_an_address_are_in_use() {
        let root = store(&[
            ("10.244.0.2", "aaa\r\neth0"),
            ("10.244.0.3", "bbb\r\neth0"),
            ("fd00::2", "aaa\r\neth0"),
            ("last_reserved_ip.0", "10.244.0.3"),
            ("lock", ""),
        ]);
        let list = list(RANGES);
        let read = read(root.path(), Some(&list), &Snapshot::default(), None);
        let [v4, v6] = &read.unwrap().unwrap()[..] else {
            panic!("one for each family")
        };
        assert_eq!(
            (v4.source, v4.in_use, v4.limit, v4.leaked),
            ("host_local", 2, Some(253), None)
        );
        assert_eq!(
            (v6.source, v6.in_use, v6.limit),
            ("host_local_v6", 1, Some(65_534))
        );
    }

    #[test]
    fn an_address_whose_container_is_gone_is_leaked() {
        let root = store(&[("10.244.0.2", "aaa\r\neth0"), ("10.244.0.3", "bbb\neth0")]);
        let sandboxes = BTreeSet::from(["bbb".to_owned()]);
        let list = list(RANGES);
        let read = read(
            root.path(),
            Some(&list),
            &Snapshot::default(),
            Some(&sandboxes),
        );
        assert_eq!(read.unwrap().unwrap()[0].leaked, Some(1));
    }

    #[test]
    fn without_a_range_the_bridge_has_the_limit() {
        let root = store(&[("10.244.0.2", "aaa")]);
        let list = list(r#"{"type": "host-local"}"#);
        let read = read(root.path(), Some(&list), &kubenet(), None);
        let accounts = read.unwrap().unwrap();
        assert_eq!((accounts[0].in_use, accounts[0].limit), (1, Some(253)));
    }

    #[test]
    fn flannel_hands_out_by_host_local() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("var/lib/cni/networks/cbr0");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("10.244.0.9"), "aaa").unwrap();
        let text = br#"{"name": "cbr0", "plugins": [{"type": "flannel", "delegate": {}}]}"#;
        let list = Conflist::parse("10-flannel.conflist", text).unwrap();
        let read = read(root.path(), Some(&list), &kubenet(), None);
        let accounts = read.unwrap().unwrap();
        assert_eq!((accounts[0].in_use, accounts[0].limit), (1, Some(253)));
    }

    #[test]
    fn a_node_without_host_local_has_no_account() {
        let root = store(&[("10.244.0.2", "aaa")]);
        let snapshot = Snapshot::default();
        assert_eq!(read(root.path(), None, &snapshot, None), None);
        let azure = list(r#"{"type": "azure-cns"}"#);
        assert_eq!(read(root.path(), Some(&azure), &snapshot, None), None);
    }

    #[test]
    fn a_store_that_is_no_directory_is_no_account_of_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/lib/cni/networks")).unwrap();
        // A link to itself cannot be opened.
        let link = root.path().join("var/lib/cni/networks/kubenet");
        std::os::unix::fs::symlink(&link, &link).unwrap();
        let list = list(RANGES);
        let read = read(root.path(), Some(&list), &Snapshot::default(), None);
        assert!(matches!(read, Some(Err(_))), "{read:?}");
    }

    #[test]
    fn a_store_that_the_agent_was_not_given_is_no_account_of_none() {
        let root = tempfile::tempdir().unwrap();
        let list = list(RANGES);
        let look = || read(root.path(), Some(&list), &Snapshot::default(), None);
        assert!(matches!(look(), Some(Err(_))), "{:?}", look());
        // The plugin makes its network's directory with the first pod.
        fs::create_dir_all(root.path().join("var/lib/cni/networks")).unwrap();
        let accounts = look().unwrap().unwrap();
        assert!(!accounts.is_empty() && accounts.iter().all(|a| a.in_use == 0));
    }

    #[test]
    fn part_of_a_range_is_a_smaller_limit() {
        let range = |start: &str, end: &str| Range {
            subnet: "10.1.0.0/24".into(),
            start: start.into(),
            end: end.into(),
            gateway: String::new(),
        };
        assert_eq!(limit(&range("10.1.0.10", "10.1.0.19"), true), Some(10));
        assert_eq!(limit(&range("", "10.1.0.10"), true), Some(9));
        assert_eq!(limit(&range("10.1.0.9", "10.1.0.1"), true), Some(0));
        assert_eq!(limit(&range("", ""), false), None);
    }
}

//! The account of the CNI plugin *host-local* (kubenet, kindnet, flannel): a directory for each network, with
//! a file for each address that is handed out, named by the address and beginning with the container's id.
//!
//! Layout: containernetworking/plugins, plugins/ipam/host-local/backend/disk.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;

use super::{Leak, Living, PodIps, between, first, is_absent, last, network};
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

/// A pod that is being made has its address before the runtime or Kubernetes tells of it: what is younger is no leak.
const LEAK_AGE: Duration = Duration::from_mins(5);

/// The account of each family, and what of them is leaked.
pub type Account = (Vec<PodIps>, Vec<Leak>);

/// Reads the account, and what of it is leaked; `None` where there is none.
#[must_use]
pub fn read(
    root: &Path,
    conflist: Option<&Conflist>,
    snapshot: &Snapshot,
    living: &Living,
) -> Option<Result<Account, String>> {
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
    let leaks = leaks(root, &directory, &held, living);
    let leaked = leaks
        .as_ref()
        .map(|leaks| leaks.iter().map(|leak| leak.address).collect());
    let accounts = accounts(ipam, snapshot, &held, leaked.as_ref());
    Some(Ok((accounts, leaks.unwrap_or_default())))
}

/// What is handed out to nobody; `None` where it is not known who is there.
fn leaks(
    root: &Path,
    directory: &Path,
    held: &BTreeSet<IpAddr>,
    living: &Living,
) -> Option<Vec<Leak>> {
    if living.sandboxes.is_none() && living.addresses.is_none() {
        return None;
    }
    let now = SystemTime::now();
    let leak = |address: &IpAddr| {
        let file = directory.join(address.to_string());
        let since = fs::metadata(&file).ok()?.modified().ok()?;
        // A file from the future is a young one.
        let old = now.duration_since(since).is_ok_and(|age| age >= LEAK_AGE);
        let container = owner(&file)?;
        // The runtime is asked about what the plugin has written down; Kubernetes knows addresses only.
        let lives = match (&living.sandboxes, &living.addresses) {
            (Some(sandboxes), _) => sandboxes.contains(&container),
            (None, Some(addresses)) => addresses.contains(address),
            (None, None) => true,
        };
        let since = since.duration_since(SystemTime::UNIX_EPOCH);
        (old && !lives).then(|| Leak {
            address: *address,
            file: on_the_host(root, &file),
            container,
            since_unix_s: since.map_or(0, |since| since.as_secs()),
        })
    };
    Some(held.iter().filter_map(leak).collect())
}

/// The path as the host has it.
fn on_the_host(root: &Path, file: &Path) -> PathBuf {
    let inside = file.strip_prefix(root).unwrap_or(file);
    Path::new("/").join(inside)
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
    leaked: Option<&BTreeSet<IpAddr>>,
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
            let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            Some(PodIps {
                source,
                in_use: count(held.len()),
                limit,
                leaked: leaked
                    .filter(|_| !held.is_empty())
                    .map(|leaked| count(held.iter().filter(|ip| leaked.contains(ip)).count())),
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
        let read = read(
            root.path(),
            Some(&list),
            &Snapshot::default(),
            &Living::default(),
        );
        let [v4, v6] = &read.unwrap().unwrap().0[..] else {
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

    /// The file of an address is from so long ago.
    fn age(root: &Path, address: &str, age: Duration) {
        let file = root.join("var/lib/cni/networks/kubenet").join(address);
        let file = fs::File::options().write(true).open(file).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    fn leaked(root: &Path, living: &Living) -> (Option<u64>, Vec<(String, String)>) {
        let read = read(root, Some(&list(RANGES)), &Snapshot::default(), living);
        let (accounts, leaks) = read.unwrap().unwrap();
        let leaks = leaks
            .into_iter()
            .map(|leak| (leak.file.display().to_string(), leak.container));
        (accounts[0].leaked, leaks.collect())
    }

    #[test]
    fn an_address_whose_container_is_gone_is_leaked_once_it_is_old() {
        let root = store(&[
            ("10.244.0.2", "aaa\r\neth0"),
            ("10.244.0.3", "bbb\neth0"),
            ("10.244.0.4", "ccc\neth0"),
        ]);
        for (address, minutes) in [("10.244.0.2", 6), ("10.244.0.3", 600), ("10.244.0.4", 4)] {
            age(root.path(), address, Duration::from_mins(minutes));
        }
        let living = Living {
            sandboxes: Some(BTreeSet::from(["bbb".to_owned()])),
            // What Kubernetes says does not count besides.
            addresses: Some(BTreeSet::from(["10.244.0.2".parse().unwrap()])),
        };
        let file = "/var/lib/cni/networks/kubenet/10.244.0.2".to_owned();
        let expected = (Some(1), vec![(file, "aaa".to_owned())]);
        assert_eq!(leaked(root.path(), &living), expected);
        assert_eq!(leaked(root.path(), &Living::default()), (None, vec![]));
    }

    #[test]
    fn without_a_runtime_an_address_that_no_pod_has_is_leaked() {
        let root = store(&[("10.244.0.2", "aaa"), ("10.244.0.3", "bbb")]);
        for address in ["10.244.0.2", "10.244.0.3"] {
            age(root.path(), address, Duration::from_hours(1));
        }
        let living = Living {
            sandboxes: None,
            addresses: Some(BTreeSet::from(["10.244.0.3".parse().unwrap()])),
        };
        let (count, leaks) = leaked(root.path(), &living);
        assert_eq!((count, leaks.len()), (Some(1), 1));
        assert!(leaks[0].0.ends_with("/10.244.0.2"), "{leaks:?}");
    }

    #[test]
    fn without_a_range_the_bridge_has_the_limit() {
        let root = store(&[("10.244.0.2", "aaa")]);
        let list = list(r#"{"type": "host-local"}"#);
        let read = read(root.path(), Some(&list), &kubenet(), &Living::default());
        let (accounts, _) = read.unwrap().unwrap();
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
        let read = read(root.path(), Some(&list), &kubenet(), &Living::default());
        let (accounts, _) = read.unwrap().unwrap();
        assert_eq!((accounts[0].in_use, accounts[0].limit), (1, Some(253)));
    }

    #[test]
    fn a_node_without_host_local_has_no_account() {
        let root = store(&[("10.244.0.2", "aaa")]);
        let snapshot = Snapshot::default();
        assert_eq!(read(root.path(), None, &snapshot, &Living::default()), None);
        let azure = list(r#"{"type": "azure-cns"}"#);
        assert_eq!(
            read(root.path(), Some(&azure), &snapshot, &Living::default()),
            None
        );
    }

    #[test]
    fn a_store_that_is_no_directory_is_no_account_of_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/lib/cni/networks")).unwrap();
        // A link to itself cannot be opened.
        let link = root.path().join("var/lib/cni/networks/kubenet");
        std::os::unix::fs::symlink(&link, &link).unwrap();
        let list = list(RANGES);
        let read = read(
            root.path(),
            Some(&list),
            &Snapshot::default(),
            &Living::default(),
        );
        assert!(matches!(read, Some(Err(_))), "{read:?}");
    }

    #[test]
    fn a_store_that_the_agent_was_not_given_is_no_account_of_none() {
        let root = tempfile::tempdir().unwrap();
        let list = list(RANGES);
        let look = || {
            read(
                root.path(),
                Some(&list),
                &Snapshot::default(),
                &Living::default(),
            )
        };
        assert!(matches!(look(), Some(Err(_))), "{:?}", look());
        // The plugin makes its network's directory with the first pod.
        fs::create_dir_all(root.path().join("var/lib/cni/networks")).unwrap();
        let (accounts, _) = look().unwrap().unwrap();
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

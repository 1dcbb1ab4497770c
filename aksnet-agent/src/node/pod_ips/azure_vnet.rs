//! The account of *azure-vnet-ipam* (Azure CNI, node subnet): a file with every address that the node has,
//! and whether it is in use.
//!
//! Layout: Azure/azure-container-networking, ipam/manager.go and ipam/pool.go.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use serde::Deserialize;

use super::{PodIps, is_absent};
use crate::node::found::evidence::read_up_to;

/// Where the file is, below the host's root.
pub const FILE: &str = "var/run/azure-vnet-ipam.json";
/// The same without the link that `/var/run` is: the link is not there where only directories are mounted.
const FILE_IN_RUN: &str = "run/azure-vnet-ipam.json";
/// 250 pods make some tens of kilobytes.
const MAX_FILE: u64 = 4 << 20;

#[derive(Deserialize)]
struct State {
    #[serde(rename = "IPAM")]
    ipam: Manager,
}

#[derive(Deserialize)]
struct Manager {
    #[serde(rename = "AddressSpaces")]
    spaces: BTreeMap<String, Space>,
}

#[derive(Deserialize)]
struct Space {
    #[serde(rename = "Pools")]
    pools: BTreeMap<String, Pool>,
}

#[derive(Deserialize)]
struct Pool {
    // Go writes an empty map as null.
    #[serde(rename = "Addresses")]
    addresses: Option<BTreeMap<String, Record>>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "Addr")]
    address: IpAddr,
    #[serde(rename = "InUse")]
    in_use: bool,
}

/// Reads the account; `None` where there is none.
#[must_use]
pub fn read(root: &Path) -> Option<Result<Vec<PodIps>, String>> {
    for file in [FILE, FILE_IN_RUN] {
        match read_up_to(&root.join(file), MAX_FILE) {
            Ok(text) => return Some(parse(&text).map_err(|e| format!("/{file}: {e}"))),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Some(Err(format!("/{file}: {e}"))),
        }
    }
    None
}

/// Reads the file's text.
///
/// # Errors
/// When it is not as it should be: half a file is no account.
pub fn parse(text: &[u8]) -> Result<Vec<PodIps>, String> {
    let state: State = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let records = state
        .ipam
        .spaces
        .into_values()
        .flat_map(|space| space.pools.into_values())
        .flat_map(|pool| pool.addresses.unwrap_or_default().into_values());
    Ok(count(
        records.map(|r| (r.address, r.in_use)),
        ["azure_vnet_ipam", "azure_vnet_ipam_v6"],
    ))
}

/// Counts by family; a family without addresses has no account.
pub(super) fn count(
    addresses: impl Iterator<Item = (IpAddr, bool)>,
    sources: [&'static str; 2],
) -> Vec<PodIps> {
    let mut counts = [(0u64, 0u64); 2];
    for (address, in_use) in addresses {
        let (used, all) = &mut counts[usize::from(address.is_ipv6())];
        *used += u64::from(in_use);
        *all += 1;
    }
    std::iter::zip(sources, counts)
        .filter(|(_, (_, all))| *all > 0)
        .map(|(source, (in_use, limit))| PodIps {
            source,
            in_use,
            limit: Some(limit),
            leaked: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = r#"{"IPAM": {"Version": "v1.4", "TimeStamp": "2026-01-01T00:00:00Z", "AddressSpaces": {
        "local": {"Id": "local", "Scope": 0, "Pools": {"10.224.0.0/16": {
            "Id": "10.224.0.0/16", "IfName": "eth0", "Gateway": "10.224.0.1", "IsIPv6": false, "Addresses": {
                "10.224.0.5": {"ID": "a", "Addr": "10.224.0.5", "InUse": true},
                "10.224.0.6": {"ID": "", "Addr": "10.224.0.6", "InUse": false},
                "10.224.0.7": {"ID": "b", "Addr": "10.224.0.7", "InUse": true}}},
            "10.225.0.0/16": {"Addresses": null}}}}}}"#;

    #[test]
    fn addresses_in_use_are_counted_of_all() {
        let accounts = parse(TEXT.as_bytes()).unwrap();
        assert_eq!(accounts.len(), 1);
        let account = &accounts[0];
        assert_eq!(
            (account.source, account.in_use, account.limit),
            ("azure_vnet_ipam", 2, Some(3))
        );
    }

    #[test]
    fn half_a_file_is_no_account() {
        assert!(parse(&TEXT.as_bytes()[..TEXT.len() / 2]).is_err());
        assert!(parse(b"{}").is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn the_file_is_found_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(root.path()), None);
        std::fs::create_dir_all(root.path().join("run")).unwrap();
        std::fs::write(root.path().join(FILE_IN_RUN), TEXT).unwrap();
        assert_eq!(read(root.path()).unwrap().unwrap().len(), 1);
        std::fs::write(root.path().join(FILE_IN_RUN), "{").unwrap();
        assert!(read(root.path()).unwrap().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}

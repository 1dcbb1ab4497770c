//! The account of *CNS*, Azure's container networking service (pod subnet and overlay): an HTTP server on the
//! node that lists the addresses it has, by state.
//!
//! Interface: Azure/azure-container-networking, `GetIPAddressesRequest` and `IPConfigurationStatus` in cns
//! (POST /debug/ipaddresses).

use std::{net::IpAddr, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use serde::Deserialize;

use super::{PodIps, azure_vnet::count};
use crate::node::{found::conflist::Conflist, http};

/// How long the answer may take.
pub const PATIENCE: Duration = Duration::from_secs(1);

const PATH: &str = "/debug/ipaddresses";
/// All states there are: those that are in use, and those that are not.
const REQUEST: &str =
    r#"{"IPConfigStateFilter":["Assigned","Available","PendingProgramming","PendingRelease"]}"#;
/// Some 300 bytes for each address, of which a node has some hundreds.
const MAX_ANSWER: usize = 4 << 20;
/// What CNS leaves on a node.
const TRACES: [&str; 3] = [
    "var/lib/azure-network/azure-cns.json",
    "var/run/azure-cns/azure-endpoints.json",
    "run/azure-cns/azure-endpoints.json",
];

#[derive(Deserialize)]
struct Answer {
    // Go writes an empty list as null.
    #[serde(rename = "IPConfigurationStatus")]
    addresses: Option<Vec<Address>>,
    #[serde(rename = "Response")]
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "ReturnCode")]
    code: i64,
    #[serde(rename = "Message", default)]
    message: String,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "IPAddress")]
    address: IpAddr,
    // Older ones write it with a capital.
    #[serde(alias = "State")]
    state: String,
}

/// Whether the node looks like one with CNS. No other is asked: the port may be somebody else's.
#[must_use]
pub fn is_here(root: &Path, conflist: Option<&Conflist>) -> bool {
    let configured = conflist
        .and_then(Conflist::ipam)
        .is_some_and(|ipam| ["azure-cns", "azure-ipam"].contains(&ipam.kind.as_str()));
    configured || TRACES.iter().any(|file| root.join(file).is_file())
}

/// Asks.
///
/// # Errors
/// Says why there is no account: refused, too slow, not understood.
pub async fn ask(url: &str) -> Result<Vec<PodIps>, String> {
    let uri: Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
    let authority = uri.authority().ok_or_else(|| format!("{url}: no host"))?;
    let port = authority.port_u16().unwrap_or(80);
    let request = hyper::Request::post(PATH)
        .header("Host", authority.as_str())
        .header("Content-Type", "application/json")
        .body(Full::new(Bytes::from_static(REQUEST.as_bytes())))
        .map_err(|e| e.to_string())?;
    let server = address(authority.host(), port).await?;
    let body = http::exchange(server, request, MAX_ANSWER, PATIENCE).await?;
    parse(&body)
}

/// `localhost` is asked of nobody: CNS listens on IPv4.
async fn address(host: &str, port: u16) -> Result<SocketAddr, String> {
    let host = host.trim_matches(['[', ']']);
    if host == "localhost" {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    if let Ok(ip) = host.parse() {
        return Ok(SocketAddr::new(ip, port));
    }
    let mut found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| format!("{host}: no answer about its name"))?
        .map_err(|e| format!("{host}: {e}"))?;
    found.next().ok_or_else(|| format!("{host}: no address"))
}

/// Reads the answer. In use are the addresses that pods have; the others are there for pods to come, or on
/// their way to or from the node.
///
/// # Errors
/// When it is not as it should be, or CNS reports an error.
pub fn parse(body: &[u8]) -> Result<Vec<PodIps>, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    if answer.response.code != 0 {
        let message: String = answer.response.message.chars().take(200).collect();
        return Err(format!("CNS answers {}: {message}", answer.response.code));
    }
    let addresses = answer.addresses.unwrap_or_default().into_iter();
    Ok(count(
        addresses.map(|a| (a.address, a.state == "Assigned")),
        ["azure_cns", "azure_cns_v6"],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BODY: &str = r#"{"IPConfigurationStatus": [
        {"state": "Assigned", "ID": "1", "IPAddress": "10.241.0.4", "LastStateTransition": "2026-01-01T00:00:00Z", "NCID": "n", "PodInfo": {"PodName": "a"}},
        {"state": "Available", "ID": "2", "IPAddress": "10.241.0.5", "NCID": "n", "PodInfo": null},
        {"State": "PendingRelease", "ID": "3", "IPAddress": "10.241.0.6"}],
        "Response": {"ReturnCode": 0, "Message": ""}}"#;

    #[test]
    fn assigned_addresses_are_in_use() {
        let accounts = parse(BODY.as_bytes()).unwrap();
        assert_eq!(accounts.len(), 1);
        assert_eq!((accounts[0].in_use, accounts[0].limit), (1, Some(3)));
    }

    #[test]
    fn an_error_is_no_account() {
        let body =
            r#"{"IPConfigurationStatus": null, "Response": {"ReturnCode": 1, "Message": "no"}}"#;
        assert_eq!(parse(body.as_bytes()).unwrap_err(), "CNS answers 1: no");
        assert!(parse(b"{}").is_err());
    }

    #[test]
    fn only_a_node_that_looks_like_it_is_asked() {
        let root = tempfile::tempdir().unwrap();
        assert!(!is_here(root.path(), None));
        let text = br#"{"name": "azure", "plugins": [{"type": "azure-vnet", "ipam": {"type": "azure-cns"}}]}"#;
        let list = Conflist::parse("15-azure.conflist", text).unwrap();
        assert!(is_here(root.path(), Some(&list)));
        std::fs::create_dir_all(root.path().join("var/lib/azure-network")).unwrap();
        std::fs::write(root.path().join(TRACES[0]), "{}").unwrap();
        assert!(is_here(root.path(), None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}

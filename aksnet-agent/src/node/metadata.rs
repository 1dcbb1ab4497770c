//! Azure's *instance metadata service*: an HTTP server at 169.254.169.254 that tells a virtual machine about
//! itself. Asked for the zone and for whether a standard load balancer is in front, and only by a machine that says it is
//! Azure's.
//!
//! Never through a proxy: the connection is made to the address itself, and nothing in the environment is
//! looked at. Documentation: learn.microsoft.com/azure/virtual-machines/instance-metadata-service.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use http_body_util::Empty;
use serde::Deserialize;

use super::{found::evidence::read_up_to, http};
use crate::{config::Imds, plan};

/// Where firmware says what the chassis is.
pub const ASSET_TAG: &str = "/sys/class/dmi/id/chassis_asset_tag";
/// What it says on every virtual machine of Azure's (cloud-init, `DataSourceAzure`).
pub const AZURE: &str = "7783-7084-3265-9085-8269-3286-77";
/// How long the answer may take.
pub const PATIENCE: Duration = Duration::from_secs(1);

const PATH: &str = "/metadata/instance/compute?api-version=2021-02-01&format=json";
const BALANCER: &str = "/metadata/loadbalancer?api-version=2020-10-01&format=json";
/// What stands in its answer where there is none, or a basic one: learn.microsoft.com/azure/load-balancer,
/// troubleshoot-load-balancer-imds.
const NO_BALANCER: &str = "No load balancer metadata is found";
/// The answer has some kilobytes; tags can make it longer.
const MAX_ANSWER: usize = 256 << 10;

/// What is of interest of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Compute {
    /// The region: `eastus2`.
    pub location: String,
    /// The number of the zone in it; empty for a machine in none.
    pub zone: String,
}

impl Compute {
    /// Reads the answer.
    ///
    /// # Errors
    /// When it is none, or holds what cannot be a region or a zone.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let compute: Self =
            serde_json::from_slice(body).map_err(|e| format!("not as documented: {e}"))?;
        let plain = |text: &str| {
            text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        // It becomes a label's value.
        if compute.location.is_empty() || !plain(&compute.location) || !plain(&compute.zone) {
            return Err("no region, or not one".to_owned());
        }
        Ok(compute)
    }

    /// The zone as Kubernetes names it, `eastus2-1`; empty for none.
    #[must_use]
    pub fn zone(&self) -> String {
        // Some answers hold a fault domain's number in its place: no zone is numbered 0.
        if self.zone.is_empty() || self.zone == "0" {
            return String::new();
        }
        format!("{}-{}", self.location.to_ascii_lowercase(), self.zone)
    }
}

/// Whether the machine says that it is Azure's.
#[must_use]
pub fn is_azure(asset_tag: &Path) -> bool {
    read_up_to(asset_tag, 4096).is_ok_and(|tag| tag.trim_ascii() == AZURE.as_bytes())
}

/// Whether it may be asked.
fn allowed(setting: Imds, asset_tag: &Path) -> Result<(), String> {
    if setting == Imds::Off {
        return Err("not asked, as configured".to_owned());
    }
    if !is_azure(asset_tag) {
        return Err("not asked: this machine does not say that it is on Azure".to_owned());
    }
    Ok(())
}

fn server() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(plan::METADATA), 80)
}

fn request(path: &str) -> Result<hyper::Request<Empty<bytes::Bytes>>, String> {
    hyper::Request::get(path)
        .header("Host", plan::METADATA.to_string())
        .header("Metadata", "true")
        .body(Empty::new())
        .map_err(|e| e.to_string())
}

/// Asks, if the setting allows it and the machine is Azure's. Takes [`PATIENCE`] at the longest.
///
/// # Errors
/// Says why nothing is known: not asked, refused, too slow, not understood.
pub async fn ask(setting: Imds, asset_tag: &Path) -> Result<Compute, String> {
    allowed(setting, asset_tag)?;
    let body = http::exchange(server(), request(PATH)?, MAX_ANSWER, PATIENCE).await?;
    Compute::parse(&body)
}

/// Asks whether a load balancer of the standard SKU is in front of the machine; the service does not know any other.
/// False: none is, or it is a basic one.
///
/// # Errors
/// As [`ask`].
pub async fn ask_balancer(setting: Imds, asset_tag: &Path) -> Result<bool, String> {
    allowed(setting, asset_tag)?;
    let asked = http::answer(server(), request(BALANCER)?, MAX_ANSWER, PATIENCE).await?;
    match asked {
        (hyper::StatusCode::OK, _) => Ok(true),
        // It also has a 404 for "not available right now".
        (hyper::StatusCode::NOT_FOUND, body)
            if String::from_utf8_lossy(&body).contains(NO_BALANCER) =>
        {
            Ok(false)
        }
        (status, _) => Err(format!("asked for the load balancer, it answered {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(body: &str) -> Result<String, String> {
        Compute::parse(body.as_bytes()).map(|c| c.zone())
    }

    #[test]
    fn region_and_number_make_the_zone() {
        let body = r#"{"location": "eastus2", "name": "aks-1", "zone": "1", "tagsList": []}"#;
        assert_eq!(zone(body).unwrap(), "eastus2-1");
    }

    #[test]
    fn a_machine_in_no_zone_has_none() {
        assert_eq!(zone(r#"{"location": "westus", "zone": ""}"#).unwrap(), "");
        assert_eq!(zone(r#"{"location": "westus", "zone": "0"}"#).unwrap(), "");
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for body in [
            "",
            "{}",
            "<html>",
            r#"{"location": "a b"}"#,
            r#"{"location": 3}"#,
        ] {
            assert!(zone(body).is_err(), "{body}");
        }
    }

    #[test]
    fn the_tag_tells_azure() {
        let directory = tempfile::tempdir().unwrap();
        let tag = directory.path().join("chassis_asset_tag");
        assert!(!is_azure(&tag));
        std::fs::write(&tag, format!("{AZURE}\n")).unwrap();
        assert!(is_azure(&tag));
        std::fs::write(&tag, "7783\n").unwrap();
        assert!(!is_azure(&tag));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Compute::parse(&bytes);
        }
    }
}

//! Segmentation and receive *offloads* of interfaces. With them on, frames between namespaces are up to 64 KiB and
//! stand for many packets; with them off, every frame is a packet as on the wire.

use anyhow::Result;

use super::netns::Netns;

/// What is switched together.
const FEATURES: [&str; 4] = ["gro", "gso", "tso", "tx"];

/// Switches GRO, GSO, TSO and (with them off) checksum offload of one interface.
///
/// # Errors
/// When there is no such interface, or it refuses.
pub fn set(netns: &Netns, interface: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    let words = ["-K", interface]
        .into_iter()
        .chain(FEATURES.iter().flat_map(|feature| [*feature, state]));
    netns.output("ethtool", words).map(drop)
}

//! Names that Kubernetes components derive by hashing: kube-proxy's chains, azure-vnet's veths, and what policy
//! engines call their chains and sets.

use std::fmt::Write as _;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// RFC 4648 base32 without padding, as far as 16 characters.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The 16 characters that end kube-proxy's chain names: base32 of the SHA-256 of `text`.
#[must_use]
pub fn chain_suffix(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    // 16 characters of 5 bits are the first 80 bits.
    let bits = digest
        .iter()
        .take(10)
        .fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    (0..16)
        .rev()
        .map(|at| char::from(BASE32[(bits >> (at * 5) & 31) as usize]))
        .collect()
}

/// The host veth that azure-vnet gives a pod: `azv` and the first 11 hex digits of SHA-1 of `namespace.pod`.
#[must_use]
pub fn azure_veth(namespace: &str, pod: &str) -> String {
    let digest = Sha1::digest(format!("{namespace}.{pod}").as_bytes());
    let hex = digest.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    format!("azv{}", &hex[..11])
}

/// The number that ends the names of Azure NPM's chains and sets: 32-bit FNV-1a (`npm/util/util.go`).
#[must_use]
pub fn npm(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// RFC 4648 base64 for file names.
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// So many characters as Felix ends its names with, at most 24: base64 of a SHA-256.
#[must_use]
pub fn felix(text: &str, length: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let bits = |part: &[u8]| {
        part.iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
    };
    digest
        .chunks_exact(3)
        .flat_map(|part| {
            let bits = bits(part);
            [18, 12, 6, 0].map(|shift| char::from(BASE64[(bits >> shift & 63) as usize]))
        })
        .take(length)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_suffix_is_what_kube_proxy_writes_for_the_kubernetes_service() {
        // KUBE-SVC-NPX46M4PTMTKRN6Y is on every cluster: default/kubernetes:https over TCP.
        assert_eq!(
            chain_suffix("default/kubernetes:httpstcp"),
            "NPX46M4PTMTKRN6Y"
        );
        assert_eq!(
            chain_suffix("kube-system/kube-dns:dnsudp"),
            "TCOU7JCQXEZGVUNU"
        );
    }

    #[test]
    fn azure_veth_has_the_length_of_an_interface_name() {
        assert_eq!(azure_veth("shop", "web-0").len(), 14);
        assert_ne!(azure_veth("shop", "web-0"), azure_veth("shop", "web-1"));
    }

    #[test]
    fn npm_hash_is_fnv_1a() {
        // The published test vectors of 32-bit FNV-1a.
        assert_eq!(
            (npm(""), npm("a"), npm("foobar")),
            (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968)
        );
    }

    #[test]
    fn felix_hash_has_the_length_asked_for() {
        // SHA-256 of nothing begins with e3 b0 c4.
        assert_eq!(felix("", 4), "47DE");
        assert_eq!(felix("x", 20).len(), 20);
    }
}

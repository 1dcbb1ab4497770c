//! What is on the *wire*: of `runtime.v1` the messages and fields that are read, by the numbers of
//! `k8s.io/cri-api`, `pkg/apis/runtime/v1/api.proto`. Other fields are skipped without being kept.
//!
//! Declared by hand, so that building needs no `protoc`; the field numbers of a published API do not change.

use std::collections::BTreeMap;

use prost::{DecodeError, Message};

use super::sandbox::Listed;

/// `VersionRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct VersionRequest {
    /// The version of CRI that kubelet asks for; it writes `0.1.0`, and runtimes do not look at it.
    #[prost(string, tag = "1")]
    pub(super) version: String,
}

/// `VersionResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct VersionResponse {
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
}

/// `ListPodSandboxRequest` without a filter: all, ready or not.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListPodSandboxRequest {}

/// `PodSandbox`, an item of `ListPodSandboxResponse`. The rest of it stands in `PodSandboxStatus` as well.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
}

/// `PodSandboxState`'s `SANDBOX_READY`; the only other one is `SANDBOX_NOTREADY`.
pub(super) const READY: i32 = 0;

/// `PodSandboxStatusRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
}

/// `PodSandboxStatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<PodSandboxStatus>,
}

/// `PodSandboxStatus`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxStatus {
    #[prost(message, optional, tag = "2")]
    pub(super) metadata: Option<PodSandboxMetadata>,
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
    #[prost(message, optional, tag = "5")]
    pub(super) network: Option<PodSandboxNetworkStatus>,
    #[prost(message, optional, tag = "6")]
    pub(super) linux: Option<LinuxPodSandboxStatus>,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(super) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "8")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

/// `PodSandboxNetworkStatus`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    pub(super) ip: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) additional_ips: Vec<PodIp>,
}

/// `PodIP`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodIp {
    #[prost(string, tag = "1")]
    pub(super) ip: String,
}

/// `LinuxPodSandboxStatus`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxPodSandboxStatus {
    #[prost(message, optional, tag = "1")]
    pub(super) namespaces: Option<Namespace>,
}

/// `Namespace`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Namespace {
    #[prost(message, optional, tag = "2")]
    pub(super) options: Option<NamespaceOption>,
}

/// `NamespaceOption`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NamespaceOption {
    #[prost(int32, tag = "1")]
    pub(super) network: i32,
}

/// `NamespaceMode`'s `NODE`.
pub(super) const NODE: i32 = 2;

/// More sandboxes than this are not believed: kubelet runs 250 pods at most on AKS, and keeps few dead ones.
pub(super) const MOST_SANDBOXES: usize = 16_384;

/// Why a list cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("the list of sandboxes ends in the middle of a field")]
    Cut,
    #[error("the list of sandboxes has a field of unknown form {0}")]
    Form(u8),
    #[error("a sandbox in the list: {0}")]
    Item(#[from] DecodeError),
    #[error("more than {MOST_SANDBOXES} sandboxes")]
    TooMany,
}

/// Reads a `ListPodSandboxResponse`, whose field 1 is a sandbox, again and again.
///
/// Not a declared message: two bytes on the wire would make an entry of a hundred in memory, without bound.
///
/// # Errors
/// When it is no such message, or too long.
pub(super) fn listed(mut bytes: &[u8]) -> Result<Vec<Listed>, Malformed> {
    let mut sandboxes = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let form = (tag & 7) as u8;
        let length = match form {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).map_err(|_| Malformed::Cut)?,
            5 => 4,
            _ => return Err(Malformed::Form(form)),
        };
        let (field, rest) = bytes.split_at_checked(length).ok_or(Malformed::Cut)?;
        bytes = rest;
        if tag != 1 << 3 | 2 {
            continue;
        }
        if sandboxes.len() == MOST_SANDBOXES {
            return Err(Malformed::TooMany);
        }
        let item = PodSandbox::decode(field)?;
        sandboxes.push(Listed {
            id: item.id.into(),
            ready: item.state == READY,
        });
    }
    Ok(sandboxes)
}

/// A variable-length integer (protobuf.dev, "Encoding"), at most ten bytes.
fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Malformed::Cut)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed::Cut)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The message as the schema has it, to be encoded by prost.
    #[derive(Clone, PartialEq, Message)]
    struct ListPodSandboxResponse {
        #[prost(message, repeated, tag = "1")]
        items: Vec<FullSandbox>,
        #[prost(uint64, tag = "9")]
        unknown: u64,
        #[prost(fixed32, tag = "10")]
        unknown_fixed: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    struct FullSandbox {
        #[prost(string, tag = "1")]
        id: String,
        #[prost(message, optional, tag = "2")]
        metadata: Option<PodSandboxMetadata>,
        #[prost(int32, tag = "3")]
        state: i32,
        #[prost(int64, tag = "4")]
        created_at: i64,
        #[prost(btree_map = "string, string", tag = "5")]
        labels: BTreeMap<String, String>,
    }

    fn full(id: &str, state: i32) -> FullSandbox {
        FullSandbox {
            id: id.to_owned(),
            metadata: Some(PodSandboxMetadata::default()),
            state,
            created_at: i64::MAX,
            labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_by_the_schema_is_read(
            items in prop::collection::vec(("[0-9a-f]{0,64}", 0..3_i32), 0..20),
            unknown: u64,
            unknown_fixed: u32,
        ) {
            let message = ListPodSandboxResponse {
                items: items.iter().map(|(id, state)| full(id, *state)).collect(),
                unknown,
                unknown_fixed,
            };
            let read = listed(&message.encode_to_vec()).unwrap();
            let expected: Vec<Listed> = items
                .iter()
                .map(|(id, state)| Listed { id: id.as_str().into(), ready: *state == 0 })
                .collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_bytes_are_a_short_list_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(read) = listed(&bytes) {
                prop_assert!(read.len() <= bytes.len());
            }
            let _no_panic = PodSandboxStatusResponse::decode(&bytes[..]);
        }

        #[test]
        fn a_list_cut_anywhere_is_an_error_or_shorter(cut in 0..80_usize) {
            let message = ListPodSandboxResponse {
                items: vec![full("0123", 0), full("4567", 1)],
                unknown: 0,
                unknown_fixed: 0,
            };
            let bytes = message.encode_to_vec();
            prop_assume!(cut < bytes.len());
            prop_assert!(listed(&bytes[..cut]).is_ok_and(|l| l.len() < 2) || listed(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn a_list_without_end_is_refused() {
        assert_eq!(
            listed(&[0x0a, 0].repeat(MOST_SANDBOXES + 1)),
            Err(Malformed::TooMany)
        );
        assert_eq!(
            listed(&[0x0a, 0].repeat(MOST_SANDBOXES)).map(|l| l.len()),
            Ok(MOST_SANDBOXES)
        );
        assert_eq!(listed(&[0xff; 11]), Err(Malformed::Cut));
        assert_eq!(
            listed(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            Err(Malformed::Cut)
        );
    }
}

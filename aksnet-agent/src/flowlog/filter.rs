//! A *filter*: which connections somebody wants to see. An empty one takes all.

use serde::{Deserialize, Serialize};

use super::record::FlowRecord;

/// See the module's header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Only what comes from or goes to this Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Only these classes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub class: Vec<String>,
    /// Only these kinds of NAT.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nat: Vec<String>,
    /// Only these protocols.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocol: Vec<String>,
}

impl Filter {
    /// Whether it takes everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it takes this one.
    #[must_use]
    pub fn takes(&self, record: &FlowRecord) -> bool {
        let one_of = |wanted: &[String], is: &String| wanted.is_empty() || wanted.contains(is);
        let of = |name: &String| record.from.namespace == *name || record.to.namespace == *name;
        self.namespace.as_ref().is_none_or(of)
            && one_of(&self.class, &record.class)
            && one_of(&self.nat, &record.nat)
            && one_of(&self.protocol, &record.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flowlog::record::tests::record;

    #[test]
    fn each_condition_must_hold_and_an_empty_one_does() {
        let of = |s: &str| vec![s.to_owned(), "else".to_owned()];
        let all = Filter {
            namespace: Some("shop".into()),
            class: of("pod_to_service"),
            nat: of("dnat"),
            protocol: of("tcp"),
        };
        assert!(Filter::default().takes(&record()) && all.takes(&record()));
        for not in [
            Filter {
                namespace: Some("other".into()),
                ..all.clone()
            },
            Filter {
                class: of("pod_to_pod"),
                ..all.clone()
            },
            Filter {
                nat: of("snat"),
                ..all.clone()
            },
            Filter {
                protocol: of("udp"),
                ..all.clone()
            },
        ] {
            assert!(!not.takes(&record()), "{not:?}");
        }
    }
}

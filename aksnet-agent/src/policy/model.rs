//! A *network policy* as the agent keeps it: selectors, rules and ports as plain values.
//!
//! It is `NetworkPolicySpec` of k8s.io/api `networking/v1/types.go` with its defaults filled in. What the API would
//! refuse, and an aggregated server or a manifest may hold all the same, has a meaning here: a part that cannot be
//! read matches nothing, so that no rule allows more than it says.

use ipnet::IpNet;

use crate::identify::object::Text;

/// A direction, as seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// From the pod.
    Egress,
    /// To the pod.
    Ingress,
}

impl Side {
    /// The value of the label `direction`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// A network policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace, whose pods it selects.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
    /// `podSelector`: which pods. The empty selector, and an absent one, is all of the namespace.
    pub pods: Selector,
    /// The rules for traffic to those pods: `None` where it says nothing of that direction (`policyTypes`), and no
    /// rule at all (`[]`, `null`, absent) where it allows nothing.
    pub ingress: Option<Box<[Rule]>>,
    /// The same for traffic from those pods.
    pub egress: Option<Box<[Rule]>>,
}

impl NetworkPolicy {
    /// The rules of a direction; `None`: it does not isolate in that direction.
    #[must_use]
    pub fn rules(&self, side: Side) -> Option<&[Rule]> {
        match side {
            Side::Egress => self.egress.as_deref(),
            Side::Ingress => self.ingress.as_deref(),
        }
    }
}

/// One rule: a flow that one of its peers *and* one of its ports match is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// `from` or `to`; empty: anybody.
    pub peers: Box<[Peers]>,
    /// `ports`; empty: any port of any protocol.
    pub ports: Box<[Ports]>,
}

/// One item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// `ipBlock`: addresses in `cidr` that are in none of `except`.
    Block {
        /// The range, with host bits cleared.
        cidr: IpNet,
        /// Ranges within that do not match.
        except: Box<[IpNet]>,
    },
    /// `podSelector`, `namespaceSelector`, or both.
    Pods {
        /// Whose namespace; `None`: the policy's own.
        namespaces: Option<Selector>,
        /// Which pods there; `None`: all.
        pods: Option<Selector>,
    },
    /// An item that cannot be read (an invalid CIDR, a peer that says nothing): nobody. With what is wrong with it.
    Nobody(Text),
}

/// One item of `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// IP protocol number: TCP 6 (the default), UDP 17, SCTP 132.
    pub protocol: u8,
    /// Which ports of it.
    pub port: Port,
}

/// The ports of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Any: `port` is absent.
    Any,
    /// From the first to the last, both included; the same twice without `endPort`.
    Range(u16, u16),
    /// The container port of that name, on the pod that is the flow's destination.
    Name(Text),
    /// It cannot be read (an unknown protocol, a port beyond 65535, `endPort` below `port`): none. With what is wrong.
    Nothing(Text),
}

/// A label selector (apimachinery `meta/v1` `LabelSelector`): all of its requirements must hold; the empty one matches
/// everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Selector(pub Box<[Requirement]>);

/// One requirement of a selector. An entry of `matchLabels` is [`Operator::In`] with one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Text,
    /// What is required of it.
    pub operator: Operator,
    /// The values, in order; none for `Exists` and `DoesNotExist`.
    pub values: Box<[Text]>,
}

/// What a requirement asks of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It has none of the values; an absent label has none, too.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// Nothing that is known: no label does that.
    Unknown,
}

impl Selector {
    /// Whether it matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it matches a pod or namespace with these labels.
    #[must_use]
    pub fn matches(&self, labels: &[(Text, Text)]) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    /// Whether it holds of these labels.
    #[must_use]
    pub fn holds(&self, labels: &[(Text, Text)]) -> bool {
        self.admits(label(labels, &self.key))
    }

    /// Whether it holds where its label has this value; `None`: there is no such label.
    #[must_use]
    pub fn admits(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|one| **one == *value);
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Unknown => false,
        }
    }
}

/// The value of a label.
#[must_use]
pub fn label<'a>(labels: &'a [(Text, Text)], key: &str) -> Option<&'a str> {
    let at = labels.binary_search_by(|(one, _)| (**one).cmp(key)).ok()?;
    Some(&labels[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify::object::Labels;

    fn holds(operator: Operator, values: &[&str], labels: &[(&str, &str)]) -> bool {
        let labels: Labels = labels
            .iter()
            .map(|(key, value)| (Text::from(*key), Text::from(*value)))
            .collect();
        let values = values.iter().map(|value| Text::from(*value)).collect();
        let requirement = Requirement {
            key: "app".into(),
            operator,
            values,
        };
        Selector(Box::new([requirement])).matches(&labels)
    }

    #[test]
    fn an_absent_label_is_in_nothing_and_not_in_everything() {
        let (web, other) = ([("a", "x"), ("app", "web")], [("b", "web")]);
        assert!(holds(Operator::In, &["db", "web"], &web));
        assert!(!holds(Operator::In, &["db"], &web) && !holds(Operator::In, &["web"], &other));
        assert!(!holds(Operator::NotIn, &["web"], &web));
        assert!(holds(Operator::NotIn, &["db"], &web) && holds(Operator::NotIn, &["web"], &other));
        assert!(holds(Operator::Exists, &[], &web) && !holds(Operator::Exists, &[], &other));
        assert!(!holds(Operator::DoesNotExist, &[], &web));
        assert!(holds(Operator::DoesNotExist, &[], &other));
        assert!(!holds(Operator::Unknown, &["web"], &web));
        assert!(Selector::default().matches(&Labels::from([])));
    }
}

//! Label values: symbols for names that are learnt at run time, fixed names for the rest.
//!
//! A symbol is a small number that stands for a string, so that a label set is a few words that compare and
//! hash fast. Symbols are never forgotten; the series budget bounds how many reach a series.

use std::{
    borrow::Cow,
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use aksnet_common::{flow::mix, packet, passage::NatKind};

use crate::{
    classify::{Class, Peer, Scope, Whois},
    identify::{index::Index, names::Name},
};

/// The value of an identity label in a series that stands for many.
pub const OTHER: &str = "other";

/// A string known to a [`Symbols`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(u32);

impl Symbol {
    /// The empty string: no value.
    pub const EMPTY: Self = Self(0);
    /// [`OTHER`].
    pub const OTHER: Self = Self(1);
}

/// The strings behind the symbols.
#[derive(Clone, Debug)]
pub struct Symbols {
    strings: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, Symbol>,
    /// Symbols of the index's names, as far as they were asked for since [`Self::forget_names`].
    names: HashMap<Name, Symbol, BuildHasherDefault<NameHasher>>,
}

/// Names are small numbers: nothing to hash, but spread them over the table's high bits, too.
#[derive(Clone, Copy, Debug, Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
        self.0 = mix(self.0);
    }
}

impl Default for Symbols {
    fn default() -> Self {
        let mut symbols = Self {
            strings: Vec::new(),
            numbers: HashMap::new(),
            names: HashMap::default(),
        };
        symbols.intern("");
        symbols.intern(OTHER);
        symbols
    }
}

impl Symbols {
    /// The symbol of a string.
    pub fn intern(&mut self, string: &str) -> Symbol {
        if let Some(symbol) = self.numbers.get(string) {
            return *symbol;
        }
        let Ok(number) = u32::try_from(self.strings.len()) else {
            return Symbol::OTHER;
        };
        let string: Arc<str> = string.into();
        self.strings.push(Arc::clone(&string));
        self.numbers.insert(string, Symbol(number));
        Symbol(number)
    }

    /// The symbol of one of the index's names. The index gives the numbers of names that are gone to others, so this
    /// holds for as long as the index is not changed: call [`Self::forget_names`] before.
    pub fn of_name(&mut self, index: &Index, name: Name) -> Symbol {
        if let Some(symbol) = self.names.get(&name) {
            return *symbol;
        }
        let symbol = self.intern(index.text(name));
        self.names.insert(name, symbol);
        symbol
    }

    /// The index may have changed.
    pub fn forget_names(&mut self) {
        self.names.clear();
    }

    /// The string of a symbol.
    #[must_use]
    pub fn get(&self, symbol: Symbol) -> &str {
        self.strings
            .get(symbol.0 as usize)
            .map_or("", AsRef::as_ref)
    }
}

/// One end of a flow, as labels name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Party {
    /// Kubernetes namespace.
    pub namespace: Symbol,
    /// Owning controller, node, or the address plan's name.
    pub workload: Symbol,
}

impl Party {
    /// The party of a series that stands for many.
    pub const OTHER: Self = Self {
        namespace: Symbol::OTHER,
        workload: Symbol::OTHER,
    };
}

/// A peer as labels name it.
pub fn party(symbols: &mut Symbols, whois: &Whois, peer: &Peer) -> Party {
    match peer.holder {
        Some(holder) => Party {
            namespace: symbols.of_name(whois.index, holder.namespace),
            workload: symbols.of_name(whois.index, holder.workload),
        },
        None => Party {
            namespace: Symbol::EMPTY,
            workload: symbols.intern(whois.plan.name(peer.site)),
        },
    }
}

/// A set of label values that identifies a series.
pub trait LabelSet: Copy + Eq + std::hash::Hash {
    /// The labels' names, in the order of their values.
    const NAMES: &'static [&'static str];

    /// The same set with [`OTHER`] for every label that comes from the cluster's size. What remains takes its
    /// values from short fixed lists.
    #[must_use]
    fn folded(self) -> Self;

    /// The values, in the order of the names.
    fn values(&self, symbols: &Symbols) -> Vec<String>;
}

/// The labels of the flow families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowLabels {
    /// Kind of traffic.
    pub class: Class,
    /// What the node's NAT did to the connection.
    pub nat: NatKind,
    /// How far it reaches.
    pub scope: Scope,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Who sent these packets.
    pub src: Party,
    /// To whom.
    pub dst: Party,
    /// The pod that sent these packets; empty unless labels for pods are switched on.
    pub src_pod: Symbol,
    /// The pod to which.
    pub dst_pod: Symbol,
}

impl FlowLabels {
    /// The labels' names where labels for pods are switched on.
    pub const WITH_PODS: &'static [&'static str] = &[
        "class",
        "nat",
        "scope",
        "protocol",
        "family",
        "src_namespace",
        "src_workload",
        "dst_namespace",
        "dst_workload",
        "src_pod",
        "dst_pod",
    ];
}

impl LabelSet for FlowLabels {
    const NAMES: &'static [&'static str] = &[
        "class",
        "nat",
        "scope",
        "protocol",
        "family",
        "src_namespace",
        "src_workload",
        "dst_namespace",
        "dst_workload",
    ];

    fn folded(self) -> Self {
        Self {
            src: Party::OTHER,
            dst: Party::OTHER,
            src_pod: other_if(self.src_pod),
            dst_pod: other_if(self.dst_pod),
            ..self
        }
    }

    fn values(&self, symbols: &Symbols) -> Vec<String> {
        let mut values: Vec<String> = vec![
            self.class.name().into(),
            nat_name(self.nat).into(),
            self.scope.name().into(),
            protocol_name(self.protocol).into(),
            family_name(self.family).into(),
        ];
        push_parties(&mut values, symbols, self.src, self.dst);
        values
    }
}

/// What a pod's label is folded to: nothing stays nothing.
fn other_if(pod: Symbol) -> Symbol {
    if pod == Symbol::EMPTY {
        pod
    } else {
        Symbol::OTHER
    }
}

/// Appends the identity labels of both ends.
pub(super) fn push_parties(values: &mut Vec<String>, symbols: &Symbols, src: Party, dst: Party) {
    for symbol in [src.namespace, src.workload, dst.namespace, dst.workload] {
        values.push(symbols.get(symbol).to_owned());
    }
}

/// The value of the label `nat`.
#[must_use]
pub const fn nat_name(nat: NatKind) -> &'static str {
    match nat {
        NatKind::None => "none",
        NatKind::Snat => "snat",
        NatKind::Dnat => "dnat",
        NatKind::Both => "both",
    }
}

/// The value of the label `family`.
#[must_use]
pub const fn family_name(family: u8) -> &'static str {
    match family {
        4 => "ipv4",
        6 => "ipv6",
        _ => "",
    }
}

/// The value of the label `protocol`: a name where one is common, else the number.
#[must_use]
pub fn protocol_name(protocol: u8) -> Cow<'static, str> {
    Cow::Borrowed(match protocol {
        packet::ICMP => "icmp",
        2 => "igmp",
        4 => "ipip",
        packet::TCP => "tcp",
        packet::UDP => "udp",
        packet::DCCP => "dccp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        packet::ICMPV6 => "icmpv6",
        packet::SCTP => "sctp",
        packet::UDPLITE => "udplite",
        other => return Cow::Owned(other.to_string()),
    })
}

/// The protocol that a label names.
#[must_use]
pub fn protocol_number(name: &str) -> Option<u8> {
    (0..=u8::MAX).find(|number| protocol_name(*number) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_has_one_symbol() {
        let mut symbols = Symbols::default();
        let a = symbols.intern("a");
        assert_eq!(symbols.intern("a"), a);
        assert_ne!(symbols.intern("b"), a);
        assert_eq!(symbols.get(a), "a");
        assert_eq!(symbols.intern(""), Symbol::EMPTY);
        assert_eq!(symbols.intern(OTHER), Symbol::OTHER);
    }
}

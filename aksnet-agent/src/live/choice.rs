//! The *choice*: a filter that was understood, and what it takes.

use std::{collections::HashMap, net::IpAddr};

use aksnet_common::{
    flow::{Addr, ColdCell, HotCell},
    passage::NatKind,
};

use super::{query::Filter, snapshot::Workload};
use crate::{
    classify::{Class, Scope, Whois},
    collect::{DropNames, Glance},
    config::suggest::hint,
    droplog::{DropRecord, End},
    identify::object::Moment,
    metrics::{
        labels::{nat_name, protocol_name},
        nat::NATS,
    },
    top::model::{Ends, Row, Who},
};

/// More words than this are no filter.
const WORDS: usize = 16;

/// A filter that was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Lower case.
    words: Vec<String>,
    classes: Vec<Class>,
    nats: Vec<NatKind>,
    namespace: Option<String>,
}

/// Which of the words were found: a bit each.
type Found = u32;

impl Choice {
    /// Understands a filter.
    ///
    /// # Errors
    /// Names the class or NAT that there is none of, or says that there are too many words.
    pub fn of(filter: &Filter) -> Result<Self, String> {
        let class = |name: &String| {
            let known = Class::ALL.into_iter().find(|class| class.name() == name);
            let names = || Class::ALL.into_iter().map(Class::name);
            known.ok_or_else(|| format!("no class '{name}'{}", hint(name, names())))
        };
        let nat = |name: &String| {
            let known = NATS.into_iter().find(|nat| nat_name(*nat) == name);
            known.ok_or_else(|| format!("no NAT '{name}': there are none, snat, dnat, both"))
        };
        let words: Vec<String> = filter
            .text
            .split_whitespace()
            .map(str::to_lowercase)
            .collect();
        if words.len() > WORDS {
            return Err(format!("a filter has at most {WORDS} words"));
        }
        Ok(Self {
            words,
            classes: filter.class.iter().map(class).collect::<Result<_, _>>()?,
            nats: filter.nat.iter().map(nat).collect::<Result<_, _>>()?,
            namespace: filter.namespace.clone().filter(|name| !name.is_empty()),
        })
    }

    pub(super) fn takes_kind(&self, class: Class, nat: NatKind) -> bool {
        (self.classes.is_empty() || self.classes.contains(&class))
            && (self.nats.is_empty() || self.nats.contains(&nat))
    }

    pub(super) fn takes_namespaces(&self, of: [&str; 2]) -> bool {
        self.namespace
            .as_deref()
            .is_none_or(|wanted| of.contains(&wanted))
    }

    /// Whether there are no words to find.
    pub(super) fn has_no_words(&self) -> bool {
        self.words.is_empty()
    }

    /// All words.
    fn all(&self) -> Found {
        (1 << self.words.len()) - 1
    }

    /// The words that are part of this text, in lower case.
    fn within(&self, text: &str) -> Found {
        let text = text.to_lowercase();
        self.which(|word| text.contains(word))
    }

    /// The words that are this, as a whole.
    fn exactly(&self, text: &str) -> Found {
        self.which(|word| word == text)
    }

    fn which(&self, fits: impl Fn(&str) -> bool) -> Found {
        let bit = |(at, word): (usize, &String)| Found::from(fits(word)) << at;
        self.words.iter().enumerate().map(bit).fold(0, |a, b| a | b)
    }

    fn within_ends(&self, ends: &Ends) -> Found {
        [(ends.src, ends.src_port), (ends.dst, ends.dst_port)]
            .map(|(address, port)| self.within_end(address, port))
            .into_iter()
            .fold(0, |a, b| a | b)
    }

    fn within_end(&self, address: IpAddr, port: u16) -> Found {
        self.within(&std::net::SocketAddr::new(address, port).to_string())
            | self.exactly(&port.to_string())
    }

    fn within_who(&self, who: &Who) -> Found {
        self.within(&format!("{}/{}", who.namespace, who.workload))
            | self.within(&format!("{}/{}", who.namespace, who.pod))
    }

    /// Whether it takes a row: slow, and complete.
    pub(crate) fn takes_row(&self, row: &Row) -> bool {
        let known = |of: &[&str], name: &str| of.is_empty() || of.contains(&name);
        let classes: Vec<&str> = self.classes.iter().map(|c| c.name()).collect();
        let nats: Vec<&str> = self.nats.iter().map(|n| nat_name(*n)).collect();
        if !known(&classes, &row.class)
            || !known(&nats, &row.nat)
            || !self.takes_namespaces([&row.from.namespace, &row.to.namespace])
        {
            return false;
        }
        if self.words.is_empty() {
            return true;
        }
        let whole = [
            &row.protocol,
            &row.nat,
            &row.scope,
            row.drop_cause.as_ref().unwrap_or(&row.protocol),
            row.drop_reason.as_ref().unwrap_or(&row.protocol),
        ];
        let part = [&row.class, &row.in_interface, &row.out_interface];
        let mut found = self.within_ends(&row.before)
            | row
                .after
                .as_ref()
                .map_or(0, |after| self.within_ends(after))
            | self.within_who(&row.from)
            | self.within_who(&row.to);
        for text in whole {
            found |= self.exactly(text);
        }
        for text in part {
            found |= self.within(text);
        }
        found == self.all()
    }

    /// Whether it may take a pair. Words may be found in a pair's flows alone, such as an address: a pair is left out
    /// only where its class or namespace says so.
    pub(crate) fn may_take_pair(&self, pair: &Workload) -> bool {
        let class = |class: &Class| pair.classes.iter().any(|name| name == class.name());
        (self.classes.is_empty() || self.classes.iter().any(class))
            && self.takes_namespaces([&pair.from.namespace, &pair.to.namespace])
    }

    /// Whether it takes a drop. Class and NAT of what was dropped are not in its record, so they do not choose.
    pub(crate) fn takes_record(&self, record: &DropRecord) -> bool {
        if !self.takes_namespaces([&record.src.namespace, &record.dst.namespace]) {
            return false;
        }
        if self.words.is_empty() {
            return true;
        }
        let end = |end: &End| {
            self.within_end(end.address, end.port)
                | self.within(&format!("{}/{}", end.namespace, end.workload))
                | self.within(&format!("{}/{}", end.namespace, end.pod))
        };
        let mut found = end(&record.src) | end(&record.dst);
        if let Some((address, port)) = record.dialled {
            found |= self.within_end(address, port);
        }
        for text in record.policies.iter().chain([
            &record.location,
            &record.reason,
            &record.in_interface,
            &record.out_interface,
        ]) {
            found |= self.within(text);
        }
        for text in [&record.protocol, &record.cause, &record.direction] {
            found |= self.exactly(text);
        }
        found == self.all()
    }
}

/// Finds the words in flows, with what was found before remembered: the same addresses and series come again and again.
pub(super) struct Finder<'a> {
    choice: &'a Choice,
    whois: &'a Whois<'a>,
    names: &'a DropNames,
    now: Moment,
    addresses: HashMap<Addr, Found>,
    kinds: HashMap<(Class, NatKind), Found>,
    interfaces: HashMap<u32, Found>,
    /// The words with a colon: an address with its port.
    sockets: bool,
}

impl<'a> Finder<'a> {
    pub(super) fn new(
        choice: &'a Choice,
        whois: &'a Whois<'a>,
        names: &'a DropNames,
        now: Moment,
    ) -> Self {
        Self {
            choice,
            whois,
            names,
            now,
            addresses: HashMap::new(),
            kinds: HashMap::new(),
            interfaces: HashMap::new(),
            sockets: choice.words.iter().any(|word| word.contains(':')),
        }
    }

    /// What is found in the names of a series, and in its reach.
    pub(super) fn in_series(&self, names: [(&str, &str); 2], scope: Scope) -> Found {
        let party = |(namespace, workload)| self.choice.within(&format!("{namespace}/{workload}"));
        party(names[0]) | party(names[1]) | self.choice.exactly(scope.name())
    }

    /// Whether all words are found, some of them by the flow's series.
    pub(super) fn finds(
        &mut self,
        found: Found,
        flow: &Glance,
        hot: &HotCell,
        cold: impl Fn() -> ColdCell,
    ) -> bool {
        let all = self.choice.all();
        let key = &hot.key;
        let mut found = found
            | self.in_kind(flow.class, flow.nat)
            | self.in_drops(flow)
            | self.choice.exactly(&protocol_name(key.protocol))
            | self.in_interface(key.ifindex)
            | self.at(key.src, key.src_port)
            | self.at(key.dst, key.dst_port);
        if found != all {
            let cold = cold();
            if cold.sequence != 0 && cold.sequence.is_multiple_of(2) {
                found |= self.at(cold.after.src, cold.after.src_port)
                    | self.at(cold.after.dst, cold.after.dst_port)
                    | self.in_interface(cold.exit_ifindex);
            }
        }
        found == all
    }

    fn in_kind(&mut self, class: Class, nat: NatKind) -> Found {
        let choice = self.choice;
        let found = || choice.within(class.name()) | choice.exactly(nat_name(nat));
        *self.kinds.entry((class, nat)).or_insert_with(found)
    }

    /// What is found in why packets of the flow were dropped.
    fn in_drops(&self, flow: &Glance) -> Found {
        if flow.drops == 0 {
            return 0;
        }
        self.choice.exactly(flow.drop_cause.name())
            | self.choice.exactly(&self.names.reason(flow.drop_reason))
    }

    fn in_interface(&mut self, ifindex: u32) -> Found {
        let (choice, plan) = (self.choice, self.whois.plan);
        *self
            .interfaces
            .entry(ifindex)
            .or_insert_with(|| choice.within(&plan.interface_name(ifindex)))
    }

    fn at(&mut self, address: Addr, port: u16) -> Found {
        let (choice, whois, now) = (self.choice, self.whois, self.now);
        let known = *self.addresses.entry(address).or_insert_with(|| {
            let who = Who::of(&whois.peer(address, 0, now), whois);
            choice.within(&IpAddr::from(address).to_string()) | choice.within_who(&who)
        });
        let by_port = choice.which(|word| word.parse() == Ok(port));
        if self.sockets {
            known | by_port | choice.within_end(address.into(), port)
        } else {
            known | by_port
        }
    }
}

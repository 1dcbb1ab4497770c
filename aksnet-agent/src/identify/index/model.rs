//! The index against a model of it: flat lists of who had what from when until when, in strings, and of all policies
//! there ever were, searched from end to end.

use proptest::prelude::*;

use super::*;
use crate::policy::{
    flow,
    model::{NetworkPolicy, Operator, Requirement, Selector},
};

/// Of one pod's account of one address. Moments are seconds.
#[derive(Clone, Debug)]
struct Span {
    kind: Kind,
    pod: String,
    /// Which object under that name.
    serial: usize,
    address: u8,
    from: u64,
    until: u64,
    found: bool,
    /// It has not been taken back.
    claimed: bool,
    /// It was made again after another pod had the address.
    disputed: bool,
}

#[derive(Clone, Debug)]
struct Live {
    kind: Kind,
    pod: String,
    uid: u8,
    seen: bool,
    serial: usize,
    label: u8,
    /// When it got that label.
    since: u64,
}

/// A policy's content from when until when.
#[derive(Clone, Debug)]
struct Rules {
    name: u8,
    content: u8,
    since: u64,
    until: u64,
    seen: bool,
}

impl Rules {
    fn is_live(&self) -> bool {
        self.until == u64::MAX
    }
}

/// Whom a policy of this content selects, and whether it isolates for egress.
fn means(content: u8) -> (u8, bool) {
    (content % 2, content >= 2)
}

#[derive(Debug, Default)]
struct Model {
    spans: Vec<Span>,
    live: Vec<Live>,
    rules: Vec<Rules>,
    relisting: Vec<Kind>,
    objects: usize,
    /// What policies say may have changed.
    changed: bool,
}

fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::LocalPod => 0,
        Kind::RemotePod => 1,
        _ => 2,
    }
}

fn rivals(a: Kind, b: Kind) -> bool {
    (rank(a) < 2) == (rank(b) < 2)
}

impl Model {
    fn apply(&mut self, kind: Kind, pod: &str, uid: u8, label: u8, addresses: &[u8], now: u64) {
        if self
            .live
            .iter()
            .any(|l| l.kind == kind && l.pod == pod && l.uid != uid)
        {
            self.delete(kind, pod, now);
        }
        let place = self
            .live
            .iter()
            .position(|l| l.kind == kind && l.pod == pod);
        let old = place.map(|place| self.live.remove(place));
        self.objects += usize::from(old.is_none());
        let same = old.as_ref().filter(|old| old.label == label);
        self.changed |= old.is_some() && same.is_none() && kind != Kind::RemotePod;
        let (pod, seen) = (pod.to_owned(), true);
        self.live.push(Live {
            kind,
            pod: pod.clone(),
            uid,
            seen,
            serial: old.as_ref().map_or(self.objects, |old| old.serial),
            label,
            since: same.map_or(now, |old| old.since),
        });
        self.take_back(kind, &pod, addresses, now);
        for address in addresses {
            self.claim(kind, &pod, *address, now);
        }
    }

    fn claim(&mut self, kind: Kind, pod: &str, address: u8, now: u64) {
        let mine =
            |s: &&mut Span| s.kind == kind && s.pod == pod && s.address == address && s.claimed;
        if let Some(mine) = self.spans.iter_mut().find(mine) {
            mine.disputed = mine.until != u64::MAX;
            return;
        }
        for s in &mut self.spans {
            if s.address == address && s.until == u64::MAX && rivals(s.kind, kind) && s.pod != pod {
                s.until = now;
            }
        }
        let live = self.live.iter().find(|l| l.kind == kind && l.pod == pod);
        let serial = live.map_or(0, |live| live.serial);
        let found = self.relisting.contains(&kind);
        self.open(kind, pod, serial, address, now, found);
    }

    fn open(&mut self, kind: Kind, pod: &str, serial: usize, address: u8, from: u64, found: bool) {
        self.spans.push(Span {
            kind,
            pod: pod.to_owned(),
            serial,
            address,
            from,
            until: u64::MAX,
            found,
            claimed: true,
            disputed: false,
        });
    }

    fn take_back(&mut self, kind: Kind, pod: &str, keeps: &[u8], now: u64) {
        let mut addresses: Vec<u8> = Vec::new();
        for s in &mut self.spans {
            if s.kind == kind && s.pod == pod && s.claimed && !keeps.contains(&s.address) {
                s.claimed = false;
                if s.until == u64::MAX {
                    s.until = now;
                    addresses.push(s.address);
                }
            }
        }
        for address in addresses {
            let here = |s: &&Span| s.address == address && rivals(s.kind, kind) && s.claimed;
            if self.spans.iter().filter(here).any(|s| s.until == u64::MAX) {
                continue;
            }
            let heir = self.spans.iter().rposition(|s| here(&s) && s.disputed);
            if let Some(heir) = heir {
                self.spans[heir].claimed = false;
                let heir = self.spans[heir].clone();
                self.open(heir.kind, &heir.pod, heir.serial, address, now, false);
            }
        }
    }

    fn delete(&mut self, kind: Kind, pod: &str, now: u64) {
        self.live.retain(|l| l.kind != kind || l.pod != pod);
        self.take_back(kind, pod, &[], now);
    }

    fn begin(&mut self, kind: Kind) {
        self.relisting.push(kind);
        for live in self.live.iter_mut().filter(|l| l.kind == kind) {
            live.seen = false;
        }
        if kind == Kind::Policy {
            self.rules.iter_mut().for_each(|rules| rules.seen = false);
        }
    }

    /// What a listing has not seen.
    fn settle(&mut self, kind: Kind) -> Vec<String> {
        if !self.relisting.contains(&kind) {
            return Vec::new();
        }
        self.relisting.retain(|k| *k != kind);
        let gone = self.live.iter().filter(|l| l.kind == kind && !l.seen);
        gone.map(|l| l.pod.clone()).collect()
    }

    fn find(&self, address: u8, at: u64) -> Option<(&Span, bool)> {
        let here = || {
            self.spans
                .iter()
                .filter(move |s| s.address == address && s.from < s.until)
        };
        let held = here()
            .filter(|s| s.from <= at && at < s.until)
            .min_by_key(|s| rank(s.kind));
        let next = here()
            .filter(|s| s.from > at)
            .min_by_key(|s| (s.from, rank(s.kind)))
            .filter(|s| s.found || (s.from - at) * 1_000_000_000 <= GRACE);
        Some((held.or(next)?, held.is_some()))
    }

    fn lookup(&self, address: u8, at: u64) -> Option<(String, bool)> {
        let (span, held) = self.find(address, at)?;
        let best = self
            .spans
            .iter()
            .filter(|s| s.address == address && s.pod == span.pod)
            .map(|s| s.kind)
            .min_by_key(|kind| rank(*kind))?;
        Some((format!("{} {}", best.name(), span.pod), held))
    }

    /// The object of whoever held an address, if it is still there, by the best account of it.
    fn object(&self, address: u8, at: u64) -> Option<&Live> {
        let (held, _) = self.find(address, at)?;
        let together = self.spans.iter().filter(|s| {
            (s.address == address && s.pod == held.pod)
                && (s.from < held.until && held.from < s.until)
        });
        let objects = together.filter_map(|s| {
            let mut live = self.live.iter();
            live.find(|l| l.kind == s.kind && l.serial == s.serial)
        });
        objects.min_by_key(|live| rank(live.kind))
    }

    /// The label of whoever held an address.
    fn party(&self, address: u8, at: u64) -> Option<String> {
        self.find(address, at)?;
        let object = self.object(address, at);
        Some(object.map_or(UNKNOWN.to_owned(), |live| live.label.to_string()))
    }

    /// A policy has this content, or none.
    fn policy(&mut self, name: u8, content: Option<u8>, now: u64) {
        let known = self
            .rules
            .iter_mut()
            .find(|r| r.name == name && r.is_live());
        let same = known.as_ref().map(|rules| rules.content) == content;
        if let Some(known) = known {
            known.seen = true;
            if !same {
                known.until = now;
            }
        }
        self.changed |= !same;
        if let (Some(content), false) = (content, same) {
            self.rules.push(Rules {
                name,
                content,
                since: now,
                until: u64::MAX,
                seen: true,
            });
        }
    }

    /// What a listing of policies has not seen.
    fn settle_policies(&mut self, now: u64) {
        if !self.relisting.contains(&Kind::Policy) {
            return;
        }
        self.relisting.retain(|kind| *kind != Kind::Policy);
        for rules in self.rules.iter_mut().filter(|r| r.is_live() && !r.seen) {
            rules.until = now;
            self.changed = true;
        }
    }

    /// Since when policies say the same of connections of an address's holder.
    fn settled(&self, address: u8, at: u64) -> u64 {
        let Some(live) = self.object(address, at) else {
            return 0;
        };
        let moments = self.rules.iter().filter_map(|rules| {
            let (label, egress) = means(rules.content);
            let moment = match rules.until {
                u64::MAX if egress => rules.since,
                u64::MAX => return None,
                until => until,
            };
            (label == live.label).then_some(moment)
        });
        moments.chain([live.since]).max().unwrap_or(0)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply {
        kind: Kind,
        pod: u8,
        uid: u8,
        label: u8,
        addresses: Vec<u8>,
        finished: bool,
    },
    Delete(Kind, u8),
    /// A policy's content; none: it is deleted.
    Policy(u8, Option<u8>),
    Begin(Kind),
    Settle(Kind),
    Expire,
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::LocalPod, Kind::RemotePod, Kind::Sandbox])
}

fn listed() -> impl Strategy<Value = Kind> {
    prop_oneof![3 => kinds(), 1 => Just(Kind::Policy)]
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let apply = (
        kinds(),
        0u8..4,
        0u8..2,
        0u8..2,
        prop::collection::btree_set(0u8..3, 0..3),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(kind, pod, uid, label, addresses, finished)| Step::Apply {
            kind,
            pod,
            uid,
            label,
            addresses: addresses.into_iter().collect(),
            finished,
        });
    let step = prop_oneof![
        8 => apply,
        4 => (kinds(), 0u8..4).prop_map(|(kind, pod)| Step::Delete(kind, pod)),
        4 => (0u8..3, prop::option::weighted(0.7, 0u8..4)).prop_map(|(name, content)| Step::Policy(name, content)),
        1 => listed().prop_map(Step::Begin),
        1 => listed().prop_map(Step::Settle),
        1 => Just(Step::Expire),
    ];
    prop::collection::vec((0u64..12, step), 1..24)
}

fn addr(n: u8) -> Addr {
    Addr::v4([10, 1, 0, n])
}

fn labels(label: u8) -> Labels {
    [("app".into(), label.to_string().into())].into()
}

fn pod(kind: Kind, name: &str, uid: u8, addresses: &[u8], finished: bool) -> Pod {
    Pod {
        kind,
        key_name: name.into(),
        namespace: "ns".into(),
        name: name.into(),
        uid: format!("uid-{uid}").into(),
        addresses: addresses.iter().map(|n| addr(*n)).collect(),
        workload: kind.name().into(),
        node: "n1".into(),
        host_network: false,
        finished,
        labels: Arc::default(),
        named_ports: Vec::new(),
        host_ports: Vec::new(),
    }
}

fn policy(name: u8, content: u8) -> NetworkPolicy {
    let (label, egress) = means(content);
    let requirement = Requirement {
        key: "app".into(),
        operator: Operator::In,
        values: Box::new([label.to_string().into()]),
    };
    NetworkPolicy {
        namespace: "ns".into(),
        name: name.to_string().into(),
        pods: Selector(Box::new([requirement])),
        ingress: Some(Box::default()),
        egress: egress.then(Box::default),
    }
}

/// Every policy in force: name, content, since when.
fn in_force(index: &Index) -> Vec<(String, NetworkPolicy, u64)> {
    let versions = index.policies().iter();
    let mut all: Vec<_> = versions
        .map(|v| {
            (
                v.policy.name.to_string(),
                v.policy.clone(),
                v.since / 1_000_000_000,
            )
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// The label of a pod that nobody knows any more.
const UNKNOWN: &str = "unknown";

/// The label of whoever is at an address.
fn label_of(who: flow::Who<'_>) -> String {
    let pod = who.pod();
    pod.map_or(UNKNOWN.to_owned(), |pod| pod.labels[0].1.to_string())
}

fn key(kind: Kind, name: &str) -> Key {
    Object::Pod(pod(kind, name, 0, &[], false)).key()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_index_answers_as_the_model_does(steps in steps()) {
        let mut index = Index::new("n1");
        let mut model = Model::default();
        for kind in Kind::ALL {
            index.settle(kind, 0);
        }
        let mut now = 0;
        for (later, step) in steps {
            // All of it within the time for which ended holders are kept.
            now += later;
            let at = now * 1_000_000_000;
            let generation = index.policy_generation();
            model.changed = false;
            match step {
                Step::Apply { kind, pod: n, uid, label, addresses, finished } => {
                    let name = format!("p{n}");
                    let object = Pod { labels: labels(label), ..pod(kind, &name, uid, &addresses, finished) };
                    index.apply(Object::Pod(object), at);
                    let held = if finished { &[][..] } else { &addresses };
                    model.apply(kind, &name, uid, label, held, now);
                }
                Step::Delete(kind, n) => {
                    let name = format!("p{n}");
                    index.delete(&key(kind, &name), at);
                    model.delete(kind, &name, now);
                }
                Step::Policy(name, Some(content)) => {
                    index.apply(Object::Policy(policy(name, content)), at);
                    model.policy(name, Some(content), now);
                }
                Step::Policy(name, None) => {
                    index.delete(&Object::Policy(policy(name, 0)).key(), at);
                    model.policy(name, None, now);
                }
                Step::Settle(Kind::Policy) => {
                    index.settle(Kind::Policy, at);
                    model.settle_policies(now);
                }
                Step::Begin(kind) => {
                    index.begin(kind);
                    model.begin(kind);
                }
                Step::Settle(kind) => {
                    let gone = model.settle(kind);
                    // Several that go at once may go in any order, which matters to a disputed address.
                    prop_assume!(gone.len() < 2);
                    index.settle(kind, at);
                    for name in gone {
                        model.delete(kind, &name, now);
                    }
                }
                Step::Expire => index.expire(at),
            }
            prop_assert_eq!(index.policy_generation() != generation, model.changed);
            let mut rules: Vec<_> = model.rules.iter().filter(|r| r.is_live())
                .map(|r| (r.name.to_string(), policy(r.name, r.content), r.since)).collect();
            rules.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(in_force(&index), rules);
            for address in 0..3 {
                for seconds in 0..=now + 1 {
                    let found = index.lookup(addr(address), seconds * 1_000_000_000).map(|holder| {
                        let (workload, pod) = (index.text(holder.workload), index.text(holder.pod));
                        (format!("{workload} {pod}"), holder.certain)
                    });
                    prop_assert_eq!(found, model.lookup(address, seconds), "{} at {}", address, seconds);
                    let moment = seconds * 1_000_000_000;
                    let party = index.party(addr(address), moment).map(label_of);
                    let known = model.party(address, seconds);
                    prop_assert_eq!(party, known, "{} at {}", address, seconds);
                    let settled = index.settled(addr(address), addr(99), moment) / 1_000_000_000;
                    prop_assert_eq!(settled, model.settled(address, seconds), "{} at {}", address, seconds);
                }
            }
        }
        for live in std::mem::take(&mut model.live) {
            index.delete(&key(live.kind, &live.pod), now * 1_000_000_000);
        }
        for name in 0..3 {
            index.delete(&Object::Policy(policy(name, 0)).key(), now * 1_000_000_000);
        }
        index.expire(Moment::MAX);
        prop_assert_eq!(index.names.len(), 1, "this node's name is all that is left");
        prop_assert_eq!(index.ledger.len(), 0);
    }
}

//! The index against a model of it: one flat list of who had what from when until when, in strings, searched from
//! end to end.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// Of one pod's account of one address. Moments are seconds.
#[derive(Clone, Debug)]
struct Span {
    kind: Kind,
    pod: String,
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
}

#[derive(Debug, Default)]
struct Model {
    spans: Vec<Span>,
    live: Vec<Live>,
    relisting: Vec<Kind>,
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
    fn apply(&mut self, kind: Kind, pod: &str, uid: u8, addresses: &[u8], now: u64) {
        if self
            .live
            .iter()
            .any(|l| l.kind == kind && l.pod == pod && l.uid != uid)
        {
            self.delete(kind, pod, now);
        }
        self.live.retain(|l| l.kind != kind || l.pod != pod);
        let (pod, seen) = (pod.to_owned(), true);
        self.live.push(Live {
            kind,
            pod: pod.clone(),
            uid,
            seen,
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
        self.open(kind, pod, address, now, self.relisting.contains(&kind));
    }

    fn open(&mut self, kind: Kind, pod: &str, address: u8, from: u64, found: bool) {
        self.spans.push(Span {
            kind,
            pod: pod.to_owned(),
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
                self.open(heir.kind, &heir.pod, address, now, false);
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

    fn lookup(&self, address: u8, at: u64) -> Option<(String, bool)> {
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
        let span = held.or(next)?;
        let best = self
            .spans
            .iter()
            .filter(|s| s.address == address && s.pod == span.pod)
            .map(|s| s.kind)
            .min_by_key(|kind| rank(*kind))?;
        Some((format!("{} {}", best.name(), span.pod), held.is_some()))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply {
        kind: Kind,
        pod: u8,
        uid: u8,
        addresses: Vec<u8>,
        finished: bool,
    },
    Delete(Kind, u8),
    Begin(Kind),
    Settle(Kind),
    Expire,
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::LocalPod, Kind::RemotePod, Kind::Sandbox])
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let apply = (
        kinds(),
        0u8..4,
        0u8..2,
        prop::collection::btree_set(0u8..3, 0..3),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(kind, pod, uid, addresses, finished)| Step::Apply {
            kind,
            pod,
            uid,
            addresses: addresses.into_iter().collect(),
            finished,
        });
    let step = prop_oneof![
        8 => apply,
        4 => (kinds(), 0u8..4).prop_map(|(kind, pod)| Step::Delete(kind, pod)),
        1 => kinds().prop_map(Step::Begin),
        1 => kinds().prop_map(Step::Settle),
        1 => Just(Step::Expire),
    ];
    prop::collection::vec((0u64..12, step), 1..24)
}

fn addr(n: u8) -> Addr {
    Addr::v4([10, 1, 0, n])
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
            match step {
                Step::Apply { kind, pod: n, uid, addresses, finished } => {
                    let name = format!("p{n}");
                    let object = pod(kind, &name, uid, &addresses, finished);
                    index.apply(Object::Pod(object), at);
                    let held = if finished { &[][..] } else { &addresses };
                    model.apply(kind, &name, uid, held, now);
                }
                Step::Delete(kind, n) => {
                    let name = format!("p{n}");
                    index.delete(&key(kind, &name), at);
                    model.delete(kind, &name, now);
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
            for address in 0..3 {
                for seconds in 0..=now + 1 {
                    let found = index.lookup(addr(address), seconds * 1_000_000_000).map(|holder| {
                        let (workload, pod) = (index.text(holder.workload), index.text(holder.pod));
                        (format!("{workload} {pod}"), holder.certain)
                    });
                    prop_assert_eq!(found, model.lookup(address, seconds), "{} at {}", address, seconds);
                }
            }
        }
        for live in std::mem::take(&mut model.live) {
            index.delete(&key(live.kind, &live.pod), now * 1_000_000_000);
        }
        index.expire(Moment::MAX);
        prop_assert_eq!(index.names.len(), 1, "this node's name is all that is left");
        prop_assert_eq!(index.ledger.len(), 0);
    }
}

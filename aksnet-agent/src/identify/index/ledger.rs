//! The *ledger*: every address with its tenures, those that have ended recently included.

use std::collections::{HashMap, VecDeque};

use aksnet_common::flow::Addr;

use super::{
    Name,
    hash::Mixing,
    tenure::{Standing, Tenure, Tenures, Who},
};
use crate::identify::{names::Names, object::Moment};

/// Ended tenures that are remembered at most. 218 pods end each second before one is forgotten early.
const ENDED: usize = 65_536;

/// The ledger.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    addresses: HashMap<Addr, Tenures, Mixing>,
    /// When tenures ended, in the order in which that was learned.
    ended: VecDeque<(Moment, Addr)>,
    /// How many were forgotten early.
    pub(super) crowded: u64,
}

/// When something was learned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) now: Moment,
    /// Its source lists for the first time: what it finds was there before.
    pub(super) first: bool,
    /// Its source lists anew.
    pub(super) found: bool,
}

impl Ledger {
    pub(super) fn of(&self, address: Addr) -> &[Tenure] {
        self.addresses.get(&address).map_or(&[], Tenures::all)
    }

    /// Whether an object holds an address for this pod.
    pub(super) fn names_pod(&self, address: Addr, owner: u64, pod: Name) -> bool {
        self.of(address).iter().any(|tenure| {
            tenure.owner == owner && tenure.standing != Standing::Ended && tenure.who.pod == pod
        })
    }

    /// An object has an address. Whether another one has it, too, and came later.
    pub(super) fn hold(
        &mut self,
        names: &mut Names,
        address: Addr,
        owner: u64,
        who: Who,
        sight: Sight,
    ) -> bool {
        let Some(tenures) = self.addresses.get_mut(&address) else {
            let from = if sight.first { 0 } else { sight.now };
            let tenure = begin(names, owner, who, from, sight.found);
            self.addresses.insert(address, Tenures::One(tenure));
            return false;
        };
        if let Some(mine) = tenures.of(owner, Some(&who)) {
            names.use_all(who.names());
            names.end_all(mine.who.names());
            mine.who = who;
            let again = mine.standing == Standing::Displaced;
            if again {
                mine.standing = Standing::Disputes;
            }
            return again;
        }
        for rival in tenures.all_mut() {
            if rival.standing == Standing::Holds
                && rival.who.rank.rivals(who.rank)
                && (rival.owner != owner && !rival.who.is_pod_of(&who))
            {
                rival.standing = Standing::Displaced;
                rival.until = sight.now.max(rival.from);
            }
        }
        let from = if sight.first {
            tenures.free_since(&who, owner)
        } else {
            sight.now
        };
        tenures.push(begin(names, owner, who, from, sight.found));
        false
    }

    /// An object no longer has an address. Who disputed it has it from now on.
    pub(super) fn release(&mut self, names: &mut Names, address: Addr, owner: u64, now: Moment) {
        let Some(tenures) = self.addresses.get_mut(&address) else {
            return;
        };
        let Some(mine) = tenures.of(owner, None) else {
            return;
        };
        let held = mine.standing == Standing::Holds;
        if held {
            mine.until = now.max(mine.from);
        }
        mine.standing = Standing::Ended;
        let (rank, until) = (mine.who.rank, mine.until);
        self.ended.push_back((until, address));
        let held = tenures
            .all()
            .iter()
            .any(|t| t.standing == Standing::Holds && t.who.rank.rivals(rank))
            || !held;
        let heir = tenures
            .all_mut()
            .iter_mut()
            .rev()
            .find(|t| t.standing == Standing::Disputes && t.who.rank.rivals(rank));
        if let (Some(heir), false) = (heir, held) {
            heir.standing = Standing::Ended;
            let (who, owner, was) = (heir.who, heir.owner, heir.until);
            let from = now.max(was);
            let tenure = begin(names, owner, who, from, false);
            tenures.push(tenure);
            self.ended.push_back((was, address));
        }
        while self.ended.len() > ENDED {
            self.crowded += 1;
            self.forget_first(names);
        }
    }

    /// Addresses with a tenure that is remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Forgets what ended before a moment.
    pub(super) fn expire(&mut self, names: &mut Names, before: Moment) {
        while self.ended.front().is_some_and(|(until, _)| *until < before) {
            self.forget_first(names);
        }
    }

    fn forget_first(&mut self, names: &mut Names) {
        let Some((until, address)) = self.ended.pop_front() else {
            return;
        };
        let Some(tenures) = self.addresses.get_mut(&address) else {
            return;
        };
        let any = tenures.retain(|tenure| {
            let stays = tenure.standing != Standing::Ended || tenure.until > until;
            if !stays {
                names.end_all(tenure.who.names());
            }
            stays
        });
        if !any {
            self.addresses.remove(&address);
        }
    }
}

fn begin(names: &mut Names, owner: u64, who: Who, from: Moment, found: bool) -> Tenure {
    names.use_all(who.names());
    Tenure {
        who,
        owner,
        from,
        until: Moment::MAX,
        found,
        standing: Standing::Holds,
    }
}

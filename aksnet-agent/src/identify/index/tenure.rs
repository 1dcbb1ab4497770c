//! A *tenure*: the time in which one object held one address, by one source's account.
//!
//! Times are when the agent learned of it, as the clocks of the cluster are not the node's. A tenure begins with
//! the object's first sight, which is later than the address's first packet can be: see [`at`] for what that
//! means to a flow that began before.

use aksnet_common::flow::Addr;

use super::{GRACE, Name, What};
use crate::identify::object::Moment;

/// Who says so: the first of these that knows an address is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Rank {
    /// A node's own address. A pod of the host network has it, too, and is not told apart.
    Node,
    LocalPod,
    RemotePod,
    Sandbox,
    Endpoint,
    /// Services, which share an address by their ports.
    Service,
}

impl Rank {
    /// Whether one address cannot be held by two objects of these ranks at once, so that a new one's coming is an
    /// old one's end. Other ranks are other accounts of the same address; there the better is believed.
    pub(super) const fn rivals(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Node, Self::Node)
                | (
                    Self::LocalPod | Self::RemotePod,
                    Self::LocalPod | Self::RemotePod
                )
                | (Self::Sandbox, Self::Sandbox)
                | (Self::Endpoint, Self::Endpoint)
        )
    }
}

/// Who holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) what: What,
    pub(super) rank: Rank,
    pub(super) namespace: Name,
    pub(super) workload: Name,
    pub(super) pod: Name,
    pub(super) node: Name,
    /// The zone that an endpoint slice tells.
    pub(super) zone: Name,
}

impl Who {
    pub(super) const fn names(&self) -> [Name; 5] {
        [
            self.namespace,
            self.workload,
            self.pod,
            self.node,
            self.zone,
        ]
    }

    /// Whether both are one pod, whichever source tells of it.
    pub(super) fn is_pod_of(&self, other: &Self) -> bool {
        !self.pod.is_empty() && self.pod == other.pod && self.namespace == other.namespace
    }

    /// Whether both are one holder by one source's account.
    fn is(&self, other: &Self) -> bool {
        match self.what {
            What::Node => self.node == other.node,
            What::Pod => self.is_pod_of(other),
            _ => self.namespace == other.namespace && self.workload == other.workload,
        }
    }
}

/// How a tenure stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The object has the address.
    Holds,
    /// Another object came to hold it, and this one has not said otherwise since.
    Displaced,
    /// Another object came to hold it, and this one says that it has it, too.
    Disputes,
    /// The object is gone, or has other addresses.
    Ended,
}

/// One tenure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenure {
    pub(super) who: Who,
    pub(super) owner: u64,
    /// The first moment of it.
    pub(super) from: Moment,
    /// The first moment after it.
    pub(super) until: Moment,
    /// Its object was found by listing anew after a gap: it may have come at any time in the gap.
    pub(super) found: bool,
    pub(super) standing: Standing,
}

/// The tenures of one address in the order in which they were made. One source's and a slice's lie side by side
/// in the table, as a lookup costs mostly what it waits for memory.
#[derive(Debug)]
pub(super) enum Tenures {
    One(Tenure),
    Two([Tenure; 2]),
    More(Vec<Tenure>),
}

impl Tenures {
    pub(super) fn all(&self) -> &[Tenure] {
        match self {
            Self::One(tenure) => std::slice::from_ref(tenure),
            Self::Two(tenures) => tenures,
            Self::More(tenures) => tenures,
        }
    }

    pub(super) fn all_mut(&mut self) -> &mut [Tenure] {
        match self {
            Self::One(tenure) => std::slice::from_mut(tenure),
            Self::Two(tenures) => tenures,
            Self::More(tenures) => tenures,
        }
    }

    pub(super) fn push(&mut self, tenure: Tenure) {
        match self {
            Self::One(first) => *self = Self::Two([*first, tenure]),
            Self::Two([first, second]) => *self = Self::More(vec![*first, *second, tenure]),
            Self::More(tenures) => tenures.push(tenure),
        }
    }

    /// Takes out those that are not to stay. Whether any stays.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Tenure) -> bool) -> bool {
        match self {
            Self::One(tenure) => return stays(tenure),
            Self::Two([first, second]) => match (stays(first), stays(second)) {
                (true, true) => {}
                (true, false) => *self = Self::One(*first),
                (false, true) => *self = Self::One(*second),
                (false, false) => return false,
            },
            Self::More(tenures) => {
                tenures.retain(stays);
                match tenures[..] {
                    [] => return false,
                    [one] => *self = Self::One(one),
                    [first, second] => *self = Self::Two([first, second]),
                    _ => {}
                }
            }
        }
        true
    }

    /// The tenure of an owner that has not ended, for the same holder.
    pub(super) fn of(&mut self, owner: u64, who: Option<&Who>) -> Option<&mut Tenure> {
        self.all_mut().iter_mut().rev().find(|tenure| {
            tenure.owner == owner
                && tenure.standing != Standing::Ended
                && who.is_none_or(|who| tenure.who.is(who))
        })
    }

    /// Since when no other holder is known, and not this owner by an earlier tenure.
    pub(super) fn free_since(&self, who: &Who, owner: u64) -> Moment {
        let stands_before = |tenure: &&Tenure| {
            tenure.owner == owner || tenure.who.rank.rivals(who.rank) && !tenure.who.is(who)
        };
        self.all()
            .iter()
            .filter(stands_before)
            .map(|tenure| tenure.until)
            .max()
            .unwrap_or(0)
    }
}

/// The tenure that a flow belongs to which began at a moment, and whether that is certain.
///
/// Who held the address then is certain. When nobody did, it is the next holder, whose object came late: within
/// [`GRACE`], or in a gap after which its source listed anew.
pub(super) fn at(tenures: &[Tenure], at: Moment) -> Option<(&Tenure, bool)> {
    let held = tenures
        .iter()
        .filter(|tenure| tenure.from <= at && at < tenure.until)
        .min_by_key(|tenure| (tenure.who.rank, tenure.from, tenure.owner));
    if let Some(tenure) = held {
        return Some((tenure, true));
    }
    tenures
        .iter()
        .filter(|tenure| tenure.from > at && tenure.from < tenure.until)
        .min_by_key(|tenure| (tenure.from, tenure.who.rank, tenure.owner))
        .filter(|tenure| tenure.found || tenure.from - at <= GRACE)
        .map(|tenure| (tenure, false))
}

/// Whether an address can be an object's own: neither of a link or host, nor a group's, nor none.
pub(super) fn is_holdable(address: Addr) -> bool {
    match address.into() {
        std::net::IpAddr::V4(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_broadcast()
                || a.is_link_local())
        }
        std::net::IpAddr::V6(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_unicast_link_local())
        }
    }
}

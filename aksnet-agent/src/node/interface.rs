//! An interface: a link that is watched, with its role; and what changes from one set of them to the next.

use std::collections::{BTreeMap, BTreeSet};

use aksnet_common::{packet, stats::Role};

/// A watched link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Interface index, unique at any one time.
    pub index: u32,
    /// As `ip link` shows it.
    pub name: String,
    /// A pod's, or a way out.
    pub role: Role,
    /// What frames begin with.
    pub link: packet::Link,
    /// The bridge whose port it is.
    pub bridge: Option<u32>,
}

/// What to do to get from what is attached to what should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// To be detached first. The device may be gone already.
    pub detach: Vec<u32>,
    /// To be attached then.
    pub attach: Vec<Interface>,
}

/// Compares. `deleted`: indices whose device was deleted in between: an index or a name that was used again
/// is not the interface that programs are attached to.
#[must_use]
pub fn changes<'n, 'w>(
    now: impl IntoIterator<Item = &'n Interface>,
    wanted: impl IntoIterator<Item = &'w Interface>,
    deleted: &BTreeSet<u32>,
) -> Changes {
    let now: BTreeMap<u32, &Interface> = now.into_iter().map(|i| (i.index, i)).collect();
    let wanted: BTreeMap<u32, &Interface> = wanted.into_iter().map(|i| (i.index, i)).collect();
    let stays = |i: &Interface| {
        !deleted.contains(&i.index)
            && now.get(&i.index).is_some_and(|n| *n == i)
            && wanted.get(&i.index).is_some_and(|w| *w == i)
    };
    Changes {
        detach: now
            .values()
            .filter(|i| !stays(i))
            .map(|i| i.index)
            .collect(),
        attach: wanted
            .values()
            .filter(|i| !stays(i))
            .map(|i| (*i).clone())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            role: Role::Pod,
            link: packet::Link::Ethernet,
            bridge: None,
        }
    }

    fn diff(now: &[Interface], wanted: &[Interface], deleted: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let changes = changes(now, wanted, &deleted.iter().copied().collect());
        let attach = changes.attach.iter().map(|i| i.index).collect();
        (changes.detach, attach)
    }

    #[test]
    fn comes_goes_stays() {
        let (a, b, c) = (pod(1, "a"), pod(2, "b"), pod(3, "c"));
        assert_eq!(
            diff(&[], &[a.clone(), b.clone()], &[]),
            (vec![], vec![1, 2])
        );
        assert_eq!(
            diff(&[a.clone(), b.clone()], &[b.clone(), c], &[]),
            (vec![1], vec![3])
        );
        assert_eq!(diff(&[a, b], &[], &[]), (vec![1, 2], vec![]));
    }

    #[test]
    fn a_name_that_is_used_again_is_another_interface() {
        assert_eq!(
            diff(&[pod(5, "veth0")], &[pod(9, "veth0")], &[]),
            (vec![5], vec![9])
        );
    }

    #[test]
    fn an_index_that_is_used_again_is_another_interface() {
        assert_eq!(
            diff(&[pod(5, "veth0")], &[pod(5, "veth1")], &[]),
            (vec![5], vec![5])
        );
        // Even under the same name: the kernel told that the old one was deleted.
        assert_eq!(
            diff(&[pod(5, "veth0")], &[pod(5, "veth0")], &[5]),
            (vec![5], vec![5])
        );
    }

    #[test]
    fn a_change_of_role_attaches_anew() {
        let uplink = Interface {
            role: Role::Uplink,
            ..pod(5, "eth1")
        };
        assert_eq!(diff(&[pod(5, "eth1")], &[uplink], &[]), (vec![5], vec![5]));
    }

    #[test]
    fn a_deleted_index_that_was_never_watched_changes_nothing() {
        assert_eq!(diff(&[pod(5, "a")], &[pod(5, "a")], &[7]), (vec![], vec![]));
    }
}

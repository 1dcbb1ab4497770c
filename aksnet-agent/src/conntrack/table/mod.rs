//! The *table*: a mirror of the conntrack entries that matter here, and what they use.
//!
//! Kept are entries with NAT, and those that use a port of Azure's load balancer; all others are the kernel's to count.
//! Fed by events (`New`, `Destroyed`) and by dumps, in any order and more than once: an entry is the same if its
//! original tuple, protocol and zone are. A dump replaces what it does not confirm. Bounded: beyond the limit entries
//! are only counted ([`Table::unmirrored`]), and what the table says of use is then a lower bound.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
};

use aksnet_common::{
    flow::Addr,
    packet::{TCP, UDP},
    passage::Tuple,
};
use hashbrown::HashTable;
use serde::Serialize;

use super::{
    message::{Entry, family_of},
    snat::{Limits, Pool, azure_use},
};

/// A mirrored entry, or a free place.
#[derive(Clone, Copy, Debug)]
struct Slot {
    entry: Entry,
    /// The last dump that showed it.
    dump: u8,
}

/// What an entry needs a port of its own for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Destination {
    node: Addr,
    to: Addr,
    port: u16,
    protocol: u8,
    pool: Pool,
}

/// How many ports of the node one protocol uses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PortUse {
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Different ports in use by NAT, on the node address that has most.
    pub in_use: u64,
    /// How many an address has.
    pub limit: u64,
    /// Of the destination that is nearest to running out: ports in use by ports there are.
    pub saturation: f64,
}

/// How many of Azure's ports one protocol uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AzureUse {
    /// IP protocol number.
    pub protocol: u8,
    /// Connections to the destination that has most.
    pub in_use: u64,
}

/// How many of a node address's ports are taken towards one destination.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DestinationUse {
    /// IP protocol number.
    pub protocol: u8,
    /// The address that connections leave the node with.
    pub node: Addr,
    /// Where to.
    pub to: Addr,
    /// Which port there.
    pub port: u16,
    /// Connections, each with a port of its own.
    pub in_use: u32,
    /// How many there can be.
    pub limit: u32,
}

/// The mirror.
#[derive(Debug)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_original: HashTable<u32>,
    /// Of entries with DNAT only.
    by_after: HashTable<u32>,
    hasher: RandomState,
    limit: usize,
    dump: u8,
    unmirrored: u64,

    ports: HashMap<(u8, Addr), HashMap<u16, u32>>,
    destinations: HashMap<Destination, u32>,
    azure: HashMap<(u8, Addr, u16), u32>,
    clients: HashMap<Addr, u32>,
}

impl Table {
    /// An empty table that mirrors at most `limit` entries.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_original: HashTable::new(),
            by_after: HashTable::new(),
            hasher: RandomState::new(),
            // Slots are numbered by 32 bits.
            limit: limit.min(u32::MAX as usize),
            dump: 0,
            unmirrored: 0,
            ports: HashMap::new(),
            destinations: HashMap::new(),
            azure: HashMap::new(),
            clients: HashMap::new(),
        }
    }

    /// How many entries it mirrors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_original.len()
    }

    /// Whether it mirrors none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_original.is_empty()
    }

    /// Entries that should be mirrored and are not, as the table is full. More than 0: uses are lower bounds.
    #[must_use]
    pub const fn unmirrored(&self) -> u64 {
        self.unmirrored
    }

    /// All mirrored entries.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.by_original
            .iter()
            .map(|at| &self.slots[*at as usize].entry)
    }

    /// There is this entry.
    pub fn add(&mut self, entry: &Entry) {
        if !matters(entry) {
            return;
        }
        let hash = self.hash(&entry.original, entry.protocol);
        if let Some(at) = self.find(hash, entry) {
            let slot = &mut self.slots[at as usize];
            slot.dump = self.dump;
            if slot.entry == *entry {
                return;
            }
            // A later connection with the same tuple, whose predecessor's end was missed.
            self.remove(at);
        }
        if self.len() >= self.limit {
            self.unmirrored += 1;
            return;
        }
        self.insert(hash, *entry);
    }

    /// There was this entry.
    pub fn destroy(&mut self, entry: &Entry) {
        let hash = self.hash(&entry.original, entry.protocol);
        match self.find(hash, entry) {
            Some(at) if self.slots[at as usize].entry.id == entry.id => self.remove(at),
            None if matters(entry) => self.unmirrored = self.unmirrored.saturating_sub(1),
            // Another id: the end of a predecessor, told late. Or of no concern.
            _ => {}
        }
    }

    /// A dump begins: what is [added](Self::add) until [`Self::end_dump`] is what there is.
    pub fn begin_dump(&mut self) {
        self.dump = self.dump.wrapping_add(1);
        self.unmirrored = 0;
    }

    /// A dump is complete: forgets what it did not show. After one that broke off, begin anew instead.
    pub fn end_dump(&mut self) {
        let gone: Vec<u32> = self
            .by_original
            .iter()
            .copied()
            .filter(|at| self.slots[*at as usize].dump != self.dump)
            .collect();
        for at in gone {
            self.remove(at);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.limit);
    }

    /// What a process had dialled whose packets leave the node with this tuple: its destination before DNAT. `None` for
    /// connections without DNAT, or not known.
    #[must_use]
    pub fn dialled(&self, protocol: u8, after: &Tuple) -> Option<Tuple> {
        let hash = self.hash(after, protocol);
        let same = |at: &u32| {
            let entry = &self.slots[*at as usize].entry;
            entry.protocol == protocol && entry.after == *after
        };
        let at = self.by_after.find(hash, same)?;
        Some(self.slots[*at as usize].entry.original)
    }

    /// Live source-translated connections of each client address.
    pub fn snat_connections(&self) -> impl Iterator<Item = (Addr, u64)> {
        self.clients
            .iter()
            .map(|(client, n)| (*client, u64::from(*n)))
    }

    /// Use of the node's ports, by protocol and family. TCP and UDP are always there, others if used.
    #[must_use]
    pub fn port_use(&self, limits: Limits) -> Vec<PortUse> {
        let mut uses: HashMap<(u8, u8), PortUse> = HashMap::new();
        let mut of = |protocol: u8, family: u8, see: &dyn Fn(&mut PortUse)| {
            see(uses.entry((protocol, family)).or_insert(PortUse {
                protocol,
                family,
                in_use: 0,
                limit: u64::from(Pool::Main.ports(protocol, limits)),
                saturation: 0.0,
            }));
        };
        for (protocol, family) in [(TCP, 4), (UDP, 4), (TCP, 6), (UDP, 6)] {
            of(protocol, family, &|_| {});
        }
        for ((protocol, node), ports) in &self.ports {
            of(*protocol, family_of(*node), &|u| {
                u.in_use = u.in_use.max(ports.len() as u64);
            });
        }
        for (key, n) in &self.destinations {
            let ratio = f64::from(*n) / f64::from(key.pool.ports(key.protocol, limits));
            of(key.protocol, family_of(key.node), &|u| {
                u.saturation = u.saturation.max(ratio);
            });
        }
        let mut uses: Vec<PortUse> = uses.into_values().collect();
        uses.sort_by_key(|u| (u.family, u.protocol));
        uses
    }

    /// The destinations that are nearest to running out of ports, the nearest first, at most `most`; and how many there
    /// are in all.
    #[must_use]
    pub fn busiest(&self, limits: Limits, most: usize) -> (Vec<DestinationUse>, usize) {
        let mut uses: Vec<DestinationUse> = self
            .destinations
            .iter()
            .map(|(key, n)| DestinationUse {
                protocol: key.protocol,
                node: key.node,
                to: key.to,
                port: key.port,
                in_use: *n,
                limit: key.pool.ports(key.protocol, limits),
            })
            .collect();
        let ratio = |u: &DestinationUse| f64::from(u.in_use) / f64::from(u.limit.max(1));
        let order = |a: &DestinationUse, b: &DestinationUse| {
            let ends = |u: &DestinationUse| (u.to.0, u.port, u.protocol, u.node.0);
            ratio(b)
                .total_cmp(&ratio(a))
                .then_with(|| ends(a).cmp(&ends(b)))
        };
        let all = uses.len();
        if most > 0 && all > most {
            uses.select_nth_unstable_by(most - 1, order);
        }
        uses.truncate(most);
        uses.sort_by(order);
        (uses, all)
    }

    /// Use of Azure's ports by TCP and by UDP.
    #[must_use]
    pub fn azure_use(&self) -> [AzureUse; 2] {
        [TCP, UDP].map(|protocol| AzureUse {
            protocol,
            in_use: self
                .azure
                .iter()
                .filter(|((p, _, _), _)| *p == protocol)
                .map(|(_, n)| u64::from(*n))
                .max()
                .unwrap_or(0),
        })
    }

    fn hash(&self, tuple: &Tuple, protocol: u8) -> u64 {
        self.hasher.hash_one((tuple, protocol))
    }

    /// The place of the entry with this one's identity.
    fn find(&self, hash: u64, entry: &Entry) -> Option<u32> {
        let same = |at: &u32| {
            let other = &self.slots[*at as usize].entry;
            (other.original, other.protocol, other.zone)
                == (entry.original, entry.protocol, entry.zone)
        };
        self.by_original.find(hash, same).copied()
    }

    fn insert(&mut self, hash: u64, entry: Entry) {
        let slot = Slot {
            entry,
            dump: self.dump,
        };
        let at = if let Some(at) = self.free.pop() {
            self.slots[at as usize] = slot;
            at
        } else {
            let Ok(at) = u32::try_from(self.slots.len()) else {
                return;
            };
            self.slots.push(slot);
            at
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.by_original.insert_unique(hash, at, |at| {
            let entry = &slots[*at as usize].entry;
            hasher.hash_one((entry.original, entry.protocol))
        });
        if entry.is_dnat() {
            let by_after = |entry: &Entry| hasher.hash_one((entry.after, entry.protocol));
            self.by_after.insert_unique(by_after(&entry), at, |at| {
                by_after(&slots[*at as usize].entry)
            });
        }
        self.count(&entry, true);
    }

    fn remove(&mut self, at: u32) {
        let entry = self.slots[at as usize].entry;
        let hash = self.hash(&entry.original, entry.protocol);
        if let Ok(found) = self.by_original.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        if entry.is_dnat() {
            let hash = self.hash(&entry.after, entry.protocol);
            if let Ok(found) = self.by_after.find_entry(hash, |other| *other == at) {
                found.remove();
            }
        }
        self.free.push(at);
        self.count(&entry, false);
    }

    fn count(&mut self, entry: &Entry, more: bool) {
        if let Some(key) = azure_use(entry) {
            step(&mut self.azure, key, more);
        }
        if !entry.is_snat() {
            return;
        }
        step(&mut self.clients, entry.original.src, more);
        let Tuple {
            src,
            dst,
            src_port,
            dst_port,
        } = entry.after;
        let Some(pool) = Pool::of(entry.protocol, src_port) else {
            return;
        };
        let destination = Destination {
            node: src,
            to: dst,
            port: dst_port,
            protocol: entry.protocol,
            pool,
        };
        step(&mut self.destinations, destination, more);
        let node = (entry.protocol, src);
        let ports = self.ports.entry(node).or_default();
        step(ports, src_port, more);
        if ports.is_empty() {
            self.ports.remove(&node);
        }
    }
}

/// Whether an entry is mirrored.
fn matters(entry: &Entry) -> bool {
    entry.original != entry.after || azure_use(entry).is_some()
}

/// Counts one more or one less; what is at 0 is gone.
fn step<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: K, more: bool) {
    if more {
        *counts.entry(key).or_default() += 1;
    } else if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;

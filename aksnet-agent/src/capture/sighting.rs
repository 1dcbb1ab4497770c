//! A *sighting*: a packet on one interface, in one direction. A forwarded packet is seen at least twice: where it enters
//! the node and where it leaves it, perhaps with other addresses. Sightings of one packet are found by their fingerprint
//! (`aksnet_common::passage`), and the packet is counted once.
//!
//! - The first sighting *in* counts. Where the direction is not known, the first one does.
//! - A further one on another interface is the same packet: it has been bridged, or it leaves. How it leaves is its
//!   translation; the time in between is what the NAT path took, if the capture's clock can be trusted with that.
//! - One that was only seen to leave was sent by the node itself. That is known when nothing has come in for [`WINDOW_NS`].
//! - The same fingerprint on the same interface in the same direction is another packet: sent again.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use aksnet_common::{
    flow::{Addr, FlowKey, ORIGIN_ENTER, ORIGIN_NODE},
    packet::Parsed,
    passage::Tuple,
};

use super::{
    link::Direction,
    table::{Table, Ticket},
};
use crate::plan::{Place, Plan};

/// Sightings further apart are of different packets.
pub const WINDOW_NS: u64 = 1_000_000_000;
/// The same where the interface is not known, so that a packet sent again cannot be told from one seen again.
const NAMELESS_WINDOW_NS: u64 = 1_000_000;

/// So many packets are waited for at the most, however many come within the window or without a time.
const MOST: usize = 1 << 18;

/// A bridge takes its copy at once.
const COPY_NS: u64 = 1_000_000;

/// See the module's header.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// When, in nanoseconds of the capture's clock.
    pub ns: u64,
    /// On which interface; 0: not known.
    pub ifindex: u32,
    /// Which way.
    pub direction: Direction,
    /// Its headers.
    pub parsed: Parsed,
    /// What NAT leaves alone of it.
    pub fingerprint: u64,
}

impl Sighting {
    fn tuple(&self) -> Tuple {
        self.parsed.key.tuple()
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Seen to leave; it may be the node's own.
    Held(Sighting),
    /// Counted; `None` if it has no cell.
    Counted(Option<Ticket>),
}

/// One packet.
#[derive(Clone, Debug)]
struct Passing {
    began_ns: u64,
    latest_ns: u64,
    tuple: Tuple,
    seen: Vec<(u32, Direction)>,
    /// As what it was seen to leave, if it was.
    left: Option<Tuple>,
    state: State,
}

/// What became of sightings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Packets that were counted.
    pub packets: u64,
    /// Sightings of packets that were counted already.
    pub again: u64,
}

/// Pairs sightings, and counts packets. See the module's header.
#[derive(Debug)]
pub struct Pairing {
    passing: HashMap<u64, Vec<Passing>>,
    /// Fingerprints by when they were first seen.
    queue: VecDeque<(u64, u64)>,
    /// Whether the time between two sightings means something.
    timed: bool,
    seen: Seen,
}

impl Pairing {
    /// `timed`: the clock is that of the capture, not of whoever reads it.
    #[must_use]
    pub fn new(timed: bool) -> Self {
        Self {
            passing: HashMap::new(),
            queue: VecDeque::new(),
            timed,
            seen: Seen::default(),
        }
    }

    /// What became of all sightings so far.
    #[must_use]
    pub const fn seen(&self) -> Seen {
        self.seen
    }

    /// Takes a sighting.
    pub fn see(&mut self, table: &mut Table, sighting: &Sighting) {
        self.expire(table, sighting.ns);
        let at = (sighting.ifindex, sighting.direction);
        let group = self.passing.entry(sighting.fingerprint).or_default();
        let likeness = |passing: &Passing| likeness(&passing.tuple, &sighting.tuple());
        let same = (0..group.len())
            .filter(|i| group[*i].may_be(sighting))
            .max_by_key(|i| (likeness(&group[*i]), std::cmp::Reverse(*i)));
        let Some(same) = same else {
            let state = if sighting.direction == Direction::Out {
                State::Held(*sighting)
            } else {
                self.seen.packets += 1;
                State::Counted(count(table, sighting, ORIGIN_ENTER))
            };
            group.push(Passing {
                began_ns: sighting.ns,
                latest_ns: sighting.ns,
                tuple: sighting.tuple(),
                seen: vec![at],
                left: None,
                state,
            });
            self.queue.push_back((sighting.ns, sighting.fingerprint));
            return;
        };
        let passing = &mut group[same];
        let took = self
            .timed
            .then(|| sighting.ns.saturating_sub(passing.began_ns));
        passing.latest_ns = sighting.ns;
        passing.seen.push(at);
        self.seen.again += 1;
        match (passing.state, sighting.direction) {
            // By one more device on its way out.
            (State::Held(_), Direction::Out) => passing.state = State::Held(*sighting),
            // Seen to leave before it was seen to come: whoever reads reads several interfaces.
            (State::Held(left), _) => {
                self.seen.packets += 1;
                let ticket = count(table, sighting, ORIGIN_ENTER);
                if let Some(ticket) = ticket {
                    table.leave(ticket, &left.tuple(), left.ifindex, None, false);
                }
                passing.tuple = sighting.tuple();
                passing.left = Some(left.tuple());
                passing.state = State::Counted(ticket);
            }
            // By one more device on its way in: a bridge's port, and the bridge.
            (State::Counted(_), Direction::In) => {}
            (State::Counted(ticket), _) => {
                if let Some(ticket) = ticket {
                    table.leave(
                        ticket,
                        &sighting.tuple(),
                        sighting.ifindex,
                        took,
                        passing.left.is_some(),
                    );
                }
                passing.left = Some(sighting.tuple());
            }
        }
    }

    /// Lets go of packets of which nothing more will be seen; those that only left are the node's own.
    pub fn expire(&mut self, table: &mut Table, now: u64) {
        while let Some((began, fingerprint)) = self.queue.front().copied() {
            if began.saturating_add(WINDOW_NS) > now && self.queue.len() < MOST {
                break;
            }
            self.queue.pop_front();
            self.let_go(table, fingerprint);
        }
    }

    /// The capture has ended.
    pub fn finish(&mut self, table: &mut Table) {
        while let Some((_, fingerprint)) = self.queue.pop_front() {
            self.let_go(table, fingerprint);
        }
    }

    /// Lets go of the oldest with this fingerprint.
    fn let_go(&mut self, table: &mut Table, fingerprint: u64) {
        let Some(group) = self.passing.get_mut(&fingerprint) else {
            return;
        };
        if group.is_empty() {
            return;
        }
        let passing = group.remove(0);
        if group.is_empty() {
            self.passing.remove(&fingerprint);
        }
        if let State::Held(sighting) = passing.state {
            self.seen.packets += 1;
            count(table, &sighting, ORIGIN_NODE);
        }
    }
}

impl Passing {
    /// Whether a sighting may be of this packet.
    fn may_be(&self, sighting: &Sighting) -> bool {
        let after = sighting.ns.saturating_sub(self.latest_ns);
        if sighting.direction == Direction::In
            && let Some(left) = self.left
        {
            // A promiscuous bridge takes a copy of what goes from port to port, after that (kubenet). Whatever else comes
            // in is on its way back, as through a load balancer outside.
            let met = self
                .seen
                .iter()
                .any(|(ifindex, _)| *ifindex == sighting.ifindex);
            let copied = [left, self.tuple].contains(&sighting.tuple());
            return copied && after < COPY_NS && (!met || sighting.ifindex == 0);
        }
        // What is never routed is never translated: two hosts say the same to the same group.
        if is_local(&sighting.tuple()) && self.tuple != sighting.tuple() {
            return false;
        }
        // A bridge's port and the bridge: nobody translates a source on the way in, and another pod has another.
        let source = |tuple: &Tuple| (tuple.src, tuple.src_port);
        let came_in = matches!(self.state, State::Counted(_));
        if sighting.direction == Direction::In
            && came_in
            && source(&self.tuple) != source(&sighting.tuple())
        {
            return false;
        }
        if sighting.ifindex == 0 {
            let same_way = self.seen.iter().any(|(_, way)| *way == sighting.direction);
            let translated =
                sighting.direction == Direction::Unknown && self.tuple != sighting.tuple();
            return !same_way
                || after < NAMELESS_WINDOW_NS
                    && (translated || sighting.direction != Direction::Unknown);
        }
        !self.seen.contains(&(sighting.ifindex, sighting.direction))
    }
}

/// Whether a packet stays on its link: link-local, or for a group.
fn is_local(tuple: &Tuple) -> bool {
    let link = |address: Addr| Plan::default_place(address) == Place::Link;
    // The node's own services at link-local IPv4 addresses (DNS cache, metadata) are translated as any other.
    let routed =
        |address: Addr| matches!(IpAddr::from(address), IpAddr::V4(v4) if v4.is_link_local());
    [tuple.src, tuple.dst]
        .into_iter()
        .any(|address| link(address) && !routed(address))
}

/// How many of its addresses and ports a packet still has.
fn likeness(before: &Tuple, now: &Tuple) -> u32 {
    u32::from(before.src == now.src)
        + u32::from(before.dst == now.dst)
        + u32::from(before.src_port == now.src_port)
        + u32::from(before.dst_port == now.dst_port)
}

fn count(table: &mut Table, sighting: &Sighting, origin: u8) -> Option<Ticket> {
    let key = FlowKey {
        ifindex: sighting.ifindex,
        origin,
        ..sighting.parsed.key
    };
    table.count(&key, &sighting.parsed, sighting.ns)
}

#[cfg(test)]
mod tests {
    use aksnet_common::packet::UDP;
    use proptest::prelude::*;

    use super::*;
    use crate::{capture::table::Shared, collect::source::Source as _};

    const POD: u32 = 3;
    const BRIDGE: u32 = 4;
    const UPLINK: u32 = 2;

    fn sighting(ns: u64, ifindex: u32, direction: Direction, src: u8) -> Sighting {
        Sighting {
            ns,
            ifindex,
            direction,
            parsed: Parsed {
                key: FlowKey {
                    src: Addr::v4([10, 0, 0, src]),
                    dst: Addr::v4([1, 1, 1, 1]),
                    src_port: 5,
                    dst_port: 53,
                    protocol: UDP,
                    family: 4,
                    ..FlowKey::default()
                },
                l3_offset: 0,
                l3_len: 100,
                l4_offset: 20,
                payload_len: 72,
                ip_id: 1,
                fragment_offset: 0,
                tcp_flags: 0,
                icmp_echo: false,
                tcp_seq: 0,
            },
            fingerprint: 77,
        }
    }

    fn play(sightings: &[Sighting]) -> (Shared, Seen) {
        let table = Shared::new(Table::new(100, 10));
        let mut pairing = Pairing::new(true);
        for sighting in sightings {
            pairing.see(&mut table.lock(), sighting);
        }
        pairing.finish(&mut table.lock());
        let seen = pairing.seen();
        (table, seen)
    }

    fn packets_and_again(packets: u64, again: u64) -> Seen {
        Seen { packets, again }
    }

    #[test]
    fn a_forwarded_packet_is_counted_once_with_its_translation_and_time() {
        let (table, seen) = play(&[
            sighting(1_000, POD, Direction::In, 1),
            sighting(1_500, BRIDGE, Direction::In, 1),
            sighting(4_000, UPLINK, Direction::Out, 9),
        ]);
        assert_eq!(seen, packets_and_again(1, 2));
        let (hot, cold) = (table.hot(0), table.cold(0));
        assert_eq!((hot.skbs, hot.bytes, hot.key.ifindex), (1, 100, POD));
        assert_eq!(
            cold.after.src,
            sighting(0, 0, Direction::In, 9).parsed.key.src
        );
        assert_eq!(
            (cold.exits, cold.sum_ns, cold.exit_ifindex),
            (1, [3_000, 0], UPLINK)
        );
    }

    #[test]
    fn a_bridges_copy_is_no_packet_and_one_that_comes_back_is() {
        let (_, seen) = play(&[
            sighting(1_000, POD, Direction::In, 1),
            sighting(2_000, POD + 2, Direction::Out, 9),
            sighting(2_100, BRIDGE, Direction::In, 9),
        ]);
        assert_eq!(seen, packets_and_again(1, 2));
        let (_, seen) = play(&[
            sighting(1_000, POD, Direction::In, 1),
            sighting(2_000, UPLINK, Direction::Out, 9),
            sighting(9_000, UPLINK, Direction::In, 9),
            sighting(9_500, POD + 2, Direction::Out, 9),
        ]);
        assert_eq!(seen, packets_and_again(2, 2));
    }

    #[test]
    fn sightings_may_come_in_the_wrong_order() {
        let (table, seen) = play(&[
            sighting(1_000, UPLINK, Direction::Out, 9),
            sighting(1_001, POD, Direction::In, 1),
        ]);
        assert_eq!(seen, packets_and_again(1, 1));
        assert_eq!(table.hot(0).key.ifindex, POD);
        assert_eq!(table.cold(0).exit_ifindex, UPLINK);
    }

    #[test]
    fn what_only_leaves_is_the_nodes_own() {
        let (table, seen) = play(&[
            sighting(1_000, BRIDGE, Direction::Out, 1),
            sighting(1_001, POD, Direction::Out, 1),
        ]);
        assert_eq!(seen, packets_and_again(1, 1));
        assert_eq!(
            (table.hot(0).key.origin, table.hot(0).key.ifindex),
            (ORIGIN_NODE, POD)
        );
    }

    #[test]
    fn a_packet_sent_again_is_another_one() {
        let (table, seen) = play(&[
            sighting(1_000, POD, Direction::In, 1),
            sighting(2_000, UPLINK, Direction::Out, 1),
            sighting(5_000, POD, Direction::In, 1),
            sighting(6_000, UPLINK, Direction::Out, 1),
        ]);
        assert_eq!(seen, packets_and_again(2, 2));
        assert_eq!((table.hot(0).skbs, table.cold(0).exits), (2, 2));
        let (_, seen) = play(&[
            sighting(1_000, POD, Direction::In, 1),
            sighting(1_000 + WINDOW_NS, UPLINK, Direction::Out, 1),
        ]);
        assert_eq!(seen.packets, 2, "too late to be the same");
    }

    #[test]
    fn what_is_said_to_a_group_on_the_link_is_never_translated() {
        let to_group = |ns, direction, src| {
            let mut sighting = sighting(ns, POD, direction, src);
            sighting.parsed.key.dst = Addr::v4([224, 0, 0, 22]);
            sighting
        };
        let (table, seen) = play(&[
            to_group(1_000, Direction::In, 1),
            to_group(2_000, Direction::Out, 9),
        ]);
        assert_eq!(seen, packets_and_again(2, 0));
        assert_eq!((table.cold(0).exits, table.cold(1).exits), (0, 0));
    }

    #[test]
    fn without_directions_the_first_sighting_counts() {
        let (table, seen) = play(&[
            sighting(1_000, POD, Direction::Unknown, 1),
            sighting(2_000, UPLINK, Direction::Unknown, 9),
        ]);
        assert_eq!(
            (seen.packets, table.hot(0).skbs, table.cold(0).exits),
            (1, 1, 1)
        );
        // One interface alone: every packet is one.
        let (_, seen) = play(&[
            sighting(1_000, 0, Direction::Unknown, 1),
            sighting(2_000, 0, Direction::Unknown, 1),
        ]);
        assert_eq!(seen.packets, 2);
    }

    #[test]
    fn the_same_datagram_of_two_pods_is_two_packets() {
        let (table, seen) = play(&[
            sighting(1_000, POD, Direction::In, 1),
            sighting(1_100, POD + 2, Direction::In, 2),
            sighting(1_200, UPLINK, Direction::Out, 2),
            sighting(1_300, UPLINK, Direction::Out, 1),
        ]);
        assert_eq!(seen, packets_and_again(2, 2));
        let exits: Vec<_> = (0..2).map(|cell| table.cold(cell).after.src).collect();
        let own: Vec<_> = (0..2).map(|cell| table.hot(cell).key.src).collect();
        assert_eq!(exits, own, "each left as itself");
    }

    #[test]
    fn a_capture_without_times_waits_for_so_many_packets_only() {
        let table = Shared::new(Table::new(100, 10));
        let mut pairing = Pairing::new(true);
        for fingerprint in 0..MOST as u64 + 1_000 {
            let sighting = Sighting {
                fingerprint,
                ..sighting(7, POD, Direction::In, 1)
            };
            pairing.see(&mut table.lock(), &sighting);
        }
        assert_eq!((pairing.queue.len(), pairing.passing.len()), (MOST, MOST));
        assert_eq!(pairing.seen().packets, MOST as u64 + 1_000);
    }

    proptest! {
        #[test]
        fn every_sighting_is_a_packet_or_one_again(
            all in prop::collection::vec((0u64..3_000_000_000, 0u32..4, 0u8..3, 0u8..3, 0u64..4), 0..60),
        ) {
            let mut all: Vec<Sighting> = all.into_iter().map(|(ns, ifindex, way, src, print)| {
                let way = [Direction::In, Direction::Out, Direction::Unknown][usize::from(way)];
                Sighting { fingerprint: print + 1, ..sighting(ns, ifindex, way, src) }
            }).collect();
            all.sort_by_key(|sighting| sighting.ns);
            let (table, seen) = play(&all);
            prop_assert_eq!(seen.packets + seen.again, all.len() as u64);
            let counted: u64 = (0..table.cells()).map(|cell| table.counts(cell).0).sum();
            prop_assert_eq!(counted, seen.packets);
        }
    }
}

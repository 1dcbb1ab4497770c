//! The mirror against a plain list of entries.

use std::collections::BTreeMap;

use aksnet_common::packet::ICMP;
use proptest::prelude::*;

use super::*;

const NODE: [u8; 4] = [10, 224, 0, 4];
const OUTSIDE: [u8; 4] = [203, 0, 113, 10];

fn tuple(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16) -> Tuple {
    Tuple {
        src: Addr::v4(src),
        dst: Addr::v4(dst),
        src_port,
        dst_port,
    }
}

fn entry(original: Tuple, after: Tuple) -> Entry {
    Entry {
        original,
        after,
        id: 1,
        zone: 0,
        protocol: TCP,
    }
}

/// A pod to the outside, by this node port.
fn egress(pod: u8, port: u16, node_port: u16, to: [u8; 4]) -> Entry {
    entry(
        tuple([10, 244, 0, pod], port, to, 443),
        tuple(NODE, node_port, to, 443),
    )
}

/// The node to a service.
fn dialled(port: u16) -> Entry {
    entry(
        tuple(NODE, port, [10, 0, 0, 10], 80),
        tuple(NODE, port, [10, 244, 0, 3], 8080),
    )
}

fn tcp4(table: &Table, limits: Limits) -> PortUse {
    let uses = table.port_use(limits);
    *uses
        .iter()
        .find(|u| (u.protocol, u.family) == (TCP, 4))
        .expect("always there")
}

#[test]
fn a_port_serves_many_destinations_but_runs_out_for_one() {
    let mut table = Table::new(100);
    for (pod, port, to) in [(2, 5000, 10), (3, 5001, 10), (4, 5000, 11), (5, 5000, 12)] {
        table.add(&egress(pod, 5000, port, [203, 0, 113, to]));
    }
    let limits = Limits {
        ports: Some(4),
        azure: None,
    };
    let u = tcp4(&table, limits);
    assert_eq!((u.in_use, u.limit), (2, 4));
    assert!((u.saturation - 0.5).abs() < 1e-9, "two of four towards .10");
    assert!((tcp4(&table, Limits::default()).saturation - 2.0 / 64_512.0).abs() < 1e-12);
}

#[test]
fn an_unchanged_port_is_in_use_as_any_other() {
    let mut table = Table::new(100);
    table.add(&egress(2, 40_000, 40_000, OUTSIDE));
    assert_eq!(tcp4(&table, Limits::default()).in_use, 1);
    table.destroy(&egress(2, 40_000, 40_000, OUTSIDE));
    assert_eq!(tcp4(&table, Limits::default()).in_use, 0);
    assert!(table.is_empty());
}

#[test]
fn low_ports_run_out_in_their_own_range() {
    let mut table = Table::new(1000);
    for port in 600..812 {
        table.add(&egress(2, port, port, OUTSIDE));
    }
    let u = tcp4(&table, Limits::default());
    assert!((u.saturation - 0.5).abs() < 1e-9, "212 of 424: {u:?}");
}

#[test]
fn what_was_dialled_is_found_by_how_it_leaves() {
    let mut table = Table::new(100);
    let (connection, other) = (dialled(40_000), dialled(40_001));
    table.add(&connection);
    assert_eq!(
        table.dialled(TCP, &connection.after),
        Some(connection.original)
    );
    assert_eq!(
        table.dialled(17, &connection.after),
        None,
        "another protocol"
    );
    assert_eq!(table.dialled(TCP, &other.after), None);
    table.add(&egress(2, 1, 5000, OUTSIDE));
    assert_eq!(
        table.dialled(TCP, &egress(2, 1, 5000, OUTSIDE).after),
        None,
        "no DNAT"
    );
    table.destroy(&connection);
    assert_eq!(table.dialled(TCP, &connection.after), None);
}

#[test]
fn icmp_identifiers_are_ports() {
    let mut table = Table::new(100);
    let mut ping = egress(2, 77, 78, OUTSIDE);
    ping.protocol = ICMP;
    table.add(&ping);
    let uses = table.port_use(Limits::default());
    let icmp = uses.iter().find(|u| u.protocol == ICMP).expect("in use");
    assert_eq!((icmp.in_use, icmp.limit), (1, 65_536));
}

#[test]
fn entries_without_nat_are_kept_only_if_azure_translates_them() {
    let mut table = Table::new(100);
    let inside = tuple([10, 244, 0, 2], 1000, [10, 244, 0, 3], 80);
    table.add(&entry(inside, inside));
    assert!(table.is_empty());
    let out = tuple(NODE, 1000, OUTSIDE, 443);
    table.add(&entry(out, out));
    assert_eq!((table.len(), table.azure_use()[0].in_use), (1, 1));
    assert_eq!(
        tcp4(&table, Limits::default()).in_use,
        0,
        "not by the node's NAT"
    );
}

#[test]
fn a_reused_tuple_survives_the_late_end_of_its_predecessor() {
    let mut table = Table::new(100);
    let (old, mut new) = (dialled(1), dialled(1));
    new.id = 2;
    new.after.dst = Addr::v4([10, 244, 0, 9]);
    table.add(&old);
    table.add(&new);
    table.destroy(&old);
    assert_eq!(table.dialled(TCP, &new.after), Some(new.original));
    assert_eq!(table.dialled(TCP, &old.after), None);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_dump_forgets_what_it_does_not_show() {
    let mut table = Table::new(100);
    table.add(&dialled(1));
    table.add(&dialled(2));
    table.begin_dump();
    table.add(&dialled(2));
    table.add(&dialled(3));
    table.end_dump();
    let mut ports: Vec<u16> = table.entries().map(|e| e.original.src_port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [2, 3]);
}

#[test]
fn beyond_the_limit_entries_are_only_counted_and_a_dump_counts_anew() {
    let mut table = Table::new(2);
    for port in 1..=5 {
        table.add(&dialled(port));
    }
    assert_eq!((table.len(), table.unmirrored()), (2, 3));
    table.destroy(&dialled(5));
    assert_eq!((table.len(), table.unmirrored()), (2, 2));
    table.begin_dump();
    for port in 1..=3 {
        table.add(&dialled(port));
    }
    table.end_dump();
    assert_eq!((table.len(), table.unmirrored()), (2, 1));
}

#[test]
fn connections_are_counted_by_client() {
    let mut table = Table::new(100);
    for (pod, port) in [(2, 1), (2, 2), (3, 1)] {
        table.add(&egress(pod, port, 5000 + port, OUTSIDE));
    }
    table.add(&dialled(9));
    let counts: BTreeMap<Addr, u64> = table.snat_connections().collect();
    let expected = [(2, 2), (3, 1)].map(|(pod, n)| (Addr::v4([10, 244, 0, pod]), n));
    assert_eq!(counts, expected.into());
}

#[derive(Clone, Debug)]
enum Step {
    Add(Entry),
    Destroy(Entry),
    Dump(Vec<Entry>),
}

/// Few different tuples, so that they meet.
fn any_entry() -> impl Strategy<Value = Entry> {
    (
        0u8..3,
        0u16..4,
        0u8..4,
        1u32..3,
        prop::sample::select(vec![6u8, 17, 1]),
        0u16..2,
    )
        .prop_map(|(pod, port, nat, id, protocol, zone)| {
            let original = tuple([10, 244, 0, pod], port, OUTSIDE, 80);
            let mut after = original;
            if nat & 1 != 0 {
                after.src = Addr::v4(NODE);
            }
            if nat & 2 != 0 {
                after.dst = Addr::v4([10, 244, 0, 9]);
            }
            Entry {
                original,
                after,
                id,
                zone,
                protocol,
            }
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_entry().prop_map(Step::Add),
        3 => any_entry().prop_map(Step::Destroy),
        1 => prop::collection::vec(any_entry(), 0..12).prop_map(Step::Dump),
    ]
}

type Identity = (Tuple, u8, u16);

fn identity(e: &Entry) -> Identity {
    (e.original, e.protocol, e.zone)
}

proptest! {
    #[test]
    fn the_mirror_and_its_sums_are_those_of_a_plain_list(steps in prop::collection::vec(any_step(), 0..60)) {
        let mut table = Table::new(1000);
        let mut model: BTreeMap<Identity, Entry> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add(e) => {
                    table.add(&e);
                    if matters(&e) { model.insert(identity(&e), e); }
                }
                Step::Destroy(e) => {
                    table.destroy(&e);
                    if model.get(&identity(&e)).is_some_and(|m| m.id == e.id) { model.remove(&identity(&e)); }
                }
                Step::Dump(entries) => {
                    table.begin_dump();
                    model.clear();
                    for e in entries {
                        table.add(&e);
                        if matters(&e) { model.insert(identity(&e), e); }
                    }
                    table.end_dump();
                }
            }
        }
        let mirrored: BTreeMap<Identity, Entry> = table.entries().map(|e| (identity(e), *e)).collect();
        prop_assert_eq!(&mirrored, &model);
        prop_assert_eq!(table.len(), model.len());

        let mut clients: BTreeMap<Addr, u64> = BTreeMap::new();
        for e in model.values().filter(|e| e.is_snat()) {
            *clients.entry(e.original.src).or_default() += 1;
        }
        prop_assert_eq!(table.snat_connections().collect::<BTreeMap<_, _>>(), clients);
        for e in model.values() {
            let found = table.dialled(e.protocol, &e.after);
            let same = |m: &&Entry| m.is_dnat() && (m.protocol, m.after) == (e.protocol, e.after);
            prop_assert_eq!(found.is_some(), model.values().any(|m| same(&m)));
            if let Some(original) = found {
                prop_assert!(model.values().filter(same).any(|m| m.original == original));
            }
        }
        // Nothing is left behind when all are gone.
        table.begin_dump();
        table.end_dump();
        prop_assert!(table.is_empty() && table.ports.is_empty() && table.destinations.is_empty());
        prop_assert!(table.azure.is_empty() && table.clients.is_empty() && table.by_after.is_empty());
    }

    #[test]
    fn the_limit_holds(limit in 0usize..10, ports in prop::collection::vec(1u16..40, 0..80)) {
        let mut table = Table::new(limit);
        for port in &ports {
            table.add(&dialled(*port));
        }
        prop_assert!(table.len() <= limit && table.slots.len() <= limit);
    }
}

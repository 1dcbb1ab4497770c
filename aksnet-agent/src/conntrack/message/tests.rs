//! Messages as the kernel writes them, and as it never would.

use proptest::prelude::*;

use super::*;

fn nest(kind: u16, inner: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | 0x8000, &inner.concat())
}

fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(HEADER + payload.len())
        .unwrap()
        .to_ne_bytes()
        .to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(7u32.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

fn ports(src: u16, dst: u16) -> Vec<Vec<u8>> {
    vec![
        attribute(2, &src.to_be_bytes()),
        attribute(3, &dst.to_be_bytes()),
    ]
}

fn echo(id: u16, kind: u8) -> Vec<Vec<u8>> {
    vec![
        attribute(4, &id.to_be_bytes()),
        attribute(5, &[kind]),
        attribute(6, &[0]),
    ]
}

fn side(kind: u16, src: [u8; 4], dst: [u8; 4], protocol: u8, l4: &[Vec<u8>]) -> Vec<u8> {
    let l4 = [&[attribute(1, &[protocol])], l4].concat();
    nest(
        kind,
        &[
            nest(1, &[attribute(1, &src), attribute(2, &dst)]),
            nest(2, &l4),
        ],
    )
}

/// A pod that dials a service and is masqueraded.
fn masqueraded() -> Vec<u8> {
    [
        vec![2, 0, 0, 0],
        side(1, [10, 244, 0, 2], [10, 0, 0, 10], 6, &ports(40_000, 80)),
        side(
            2,
            [203, 0, 113, 9],
            [10, 224, 0, 4],
            6,
            &ports(8080, 50_000),
        ),
        attribute(12, &0xdead_beef_u32.to_be_bytes()),
    ]
    .concat()
}

fn only(bytes: &[u8]) -> Message {
    let mut messages = Messages::new(bytes);
    let message = messages.next().expect("a message");
    assert_eq!(messages.next(), None);
    message
}

fn tuple(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16) -> Tuple {
    Tuple {
        src: Addr::v4(src),
        dst: Addr::v4(dst),
        src_port,
        dst_port,
    }
}

#[test]
fn an_entry_says_how_its_packets_leave() {
    let Body::New(entry) = only(&message(CT_NEW, 0x600, &masqueraded())).body else {
        panic!("an entry")
    };
    assert_eq!(
        entry.original,
        tuple([10, 244, 0, 2], 40_000, [10, 0, 0, 10], 80)
    );
    assert_eq!(
        entry.after,
        tuple([10, 224, 0, 4], 50_000, [203, 0, 113, 9], 8080)
    );
    assert_eq!(
        (entry.id, entry.zone, entry.protocol, entry.family()),
        (0xdead_beef, 0, 6, 4)
    );
    assert_eq!(entry.nat(), NatKind::Both);
    let destroyed = only(&message(CT_DELETE, 0, &masqueraded())).body;
    assert_eq!(destroyed, Body::Destroyed(entry));
}

#[test]
fn an_echo_request_is_not_translated_by_being_answered() {
    let payload = |reply_id| {
        [
            vec![2, 0, 0, 0],
            side(1, [10, 244, 0, 2], [8, 8, 8, 8], ICMP, &echo(77, 8)),
            side(2, [8, 8, 8, 8], [10, 244, 0, 2], ICMP, &echo(reply_id, 0)),
        ]
        .concat()
    };
    let entry = |id| match only(&message(CT_NEW, 0, &payload(id))).body {
        Body::New(entry) => entry,
        other => panic!("{other:?}"),
    };
    assert_eq!(entry(77).nat(), NatKind::None);
    assert_eq!(
        entry(77).original.dst_port,
        0x0800,
        "type and code, as in a flow's key"
    );
    assert_eq!(
        entry(78).nat(),
        NatKind::Snat,
        "the identifier is ICMP's port"
    );
}

#[test]
fn a_zone_is_the_entrys_or_the_original_directions() {
    let plain = [masqueraded(), attribute(18, &5u16.to_be_bytes())].concat();
    let Body::New(entry) = only(&message(CT_NEW, 0, &plain)).body else {
        panic!("an entry")
    };
    assert_eq!(entry.zone, 5);
}

#[test]
fn statistics_and_table_size_are_read_and_what_lacks_is_not_known() {
    let cpu = [
        vec![0; 4],
        attribute(9, &3u32.to_be_bytes()),
        attribute(10, &[1]),
    ]
    .concat();
    assert_eq!(
        only(&message(CT_GET_STATS_CPU, 2, &cpu)).body,
        Body::Cpu(CpuReading {
            insert_failed: Some(3),
            drop: None,
            early_drop: None
        })
    );
    let size = [vec![0; 4], attribute(1, &9u32.to_be_bytes())].concat();
    assert_eq!(
        only(&message(CT_GET_STATS, 0, &size)).body,
        Body::Table(TableSize {
            entries: Some(9),
            limit: None
        })
    );
}

#[test]
fn the_end_the_errors_and_the_interruption_are_told() {
    assert_eq!(
        only(&message(DONE, 2, &0i32.to_ne_bytes())).body,
        Body::Done(0)
    );
    assert_eq!(
        only(&message(ERROR, 0, &(-1i32).to_ne_bytes())).body,
        Body::Error(1)
    );
    assert_eq!(
        only(&message(ERROR, 0, &i32::MIN.to_ne_bytes())).body,
        Body::Error(i32::MAX)
    );
    assert!(only(&message(DONE, 0x12, &[])).interrupted);
    assert_eq!(only(&message(99, 0, &[1, 2, 3])).body, Body::Other);
}

#[test]
fn an_entry_that_lacks_a_part_is_unreadable_and_not_another_entry() {
    let original = || side(1, [10, 0, 0, 1], [10, 0, 0, 2], 6, &ports(1, 2));
    let reply = |protocol| side(2, [10, 0, 0, 2], [10, 0, 0, 1], protocol, &ports(2, 1));
    let body =
        |parts: &[Vec<u8>]| only(&message(CT_NEW, 0, &[vec![0; 4], parts.concat()].concat())).body;
    assert!(matches!(body(&[original(), reply(6)]), Body::New(_)));
    assert_eq!(body(&[original()]), Body::Unreadable);
    assert_eq!(body(&[reply(6)]), Body::Unreadable);
    assert_eq!(
        body(&[original(), reply(17)]),
        Body::Unreadable,
        "two protocols"
    );
    assert_eq!(only(&message(CT_NEW, 0, &[2])).body, Body::Unreadable);
}

#[test]
fn a_lookup_names_the_reply() {
    let after = tuple([10, 224, 0, 4], 50_000, [203, 0, 113, 9], 8080);
    let asked = lookup(7, TCP, &after).expect("TCP has ports");
    let reply = side(
        2,
        [203, 0, 113, 9],
        [10, 224, 0, 4],
        6,
        &ports(8080, 50_000),
    );
    assert_eq!(
        asked,
        message(CT_GET, REQUEST, &[vec![2, 0, 0, 0], reply].concat())
    );
    assert_eq!(lookup(7, ICMP, &after), None);
}

#[test]
fn several_messages_of_a_datagram_are_read_in_order() {
    let bytes = [
        message(CT_NEW, 2, &masqueraded()),
        message(DONE, 2, &0i32.to_ne_bytes()),
    ]
    .concat();
    let bodies: Vec<_> = Messages::new(&bytes).map(|m| m.body).collect();
    assert!(
        matches!(bodies[..], [Body::New(_), Body::Done(0)]),
        "{bodies:?}"
    );
}

/// Two messages as the kernel (6.18) sent them: a masqueraded TCP connection in a dump, and the end of an IPv6 echo.
/// Captured in a network namespace of its own; little-endian, as the machines that the agent runs on.
const DUMPED: &[u8] = include_bytes!("dumped.bin");
const DESTROYED: &[u8] = include_bytes!("destroyed.bin");

#[test]
fn what_a_kernel_sent_is_read() {
    let Body::New(entry) = only(DUMPED).body else {
        panic!("an entry")
    };
    assert_eq!(
        (entry.protocol, entry.family(), entry.nat()),
        (6, 4, NatKind::Snat)
    );
    assert_eq!(entry.after.dst, Addr::v4([203, 0, 113, 10]));
    let Body::Destroyed(entry) = only(DESTROYED).body else {
        panic!("the end of an entry")
    };
    assert_eq!(
        (entry.protocol, entry.family(), entry.nat()),
        (ICMPV6, 6, NatKind::None)
    );
    assert_eq!(entry.original.dst_port, 0x8000, "an echo request");
}

proptest! {
    #[test]
    fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let read = Messages::new(&bytes).count();
        prop_assert!(read <= bytes.len() / HEADER + 1);
    }

    #[test]
    fn a_damaged_message_is_read_to_an_end(
        which in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = if which { DUMPED } else { DESTROYED }.to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        for message in Messages::new(&bytes) {
            if let Body::New(entry) | Body::Destroyed(entry) = message.body {
                prop_assert_eq!(family_of(entry.original.src), family_of(entry.after.dst));
            }
        }
    }

    #[test]
    fn every_cut_of_a_message_is_unreadable_or_less(cut in 1usize..200) {
        let bytes = message(CT_NEW, 0, &masqueraded());
        let cut = cut.min(bytes.len() - 1);
        let body = only(&bytes[..cut]).body;
        prop_assert_eq!(body, Body::Unreadable);
    }
}

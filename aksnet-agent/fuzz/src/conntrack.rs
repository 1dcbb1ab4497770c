//! Any datagram of ctnetlink: its messages end, and what they say keeps the mirror's sums right.

use aksnet_agent::conntrack::{
    Limits, Table,
    message::{Body, Messages, lookup},
};

/// Small, so that it is full.
const LIMIT: usize = 8;

pub(crate) fn run(bytes: &[u8]) {
    let mut table = Table::new(LIMIT);
    let mut messages = 0;
    for message in Messages::new(bytes) {
        messages += 1;
        match message.body {
            Body::New(entry) => {
                assert_eq!(entry.nat() as u8 != 0, entry.is_snat() || entry.is_dnat());
                let _request = lookup(1, entry.protocol, &entry.after);
                table.add(&entry);
            }
            Body::Destroyed(entry) => table.destroy(&entry),
            Body::Done(_) => {
                table.begin_dump();
                table.end_dump();
            }
            Body::Cpu(_) | Body::Table(_) | Body::Error(_) | Body::Other | Body::Unreadable => {}
        }
        assert!(table.len() <= LIMIT);
    }
    assert!(messages <= bytes.len() / 16 + 1, "{messages} messages");
    let limits = Limits::default();
    let _use = (
        table.port_use(limits),
        table.busiest(limits, 4),
        table.azure_use(),
    );
    assert_eq!(table.entries().count(), table.len());
    let all: Vec<_> = table.entries().copied().collect();
    for entry in &all {
        table.destroy(entry);
    }
    assert!(table.is_empty());
    assert_eq!(table.snat_connections().count(), 0, "nothing is left of it");
    assert!(table.port_use(limits).iter().all(|one| one.in_use == 0));
}

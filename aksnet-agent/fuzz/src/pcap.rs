//! Any file that `replay` is given, as a capture: gzip, pcap and pcapng, then every frame through the table, the pairing
//! and the sweeps to flow records.

use std::io::Cursor;

use aksnet_agent::{
    capture::{
        file::{self, Input, Item},
        replay::Replay,
    },
    config::Config,
    identify::index::Index,
    policy::engine::Engine,
};

pub(crate) fn run(bytes: &[u8]) {
    let Ok(Input::Capture(input)) = file::open(Cursor::new(bytes.to_vec())) else {
        return;
    };
    let config = Config {
        flow_cells: 256,
        spill_entries: 64,
        ..Config::default()
    };
    let node = [[10, 224, 0, 4].into()];
    let mut replay = Replay::new(&config, Index::new("node"), &node, Engine::Kubernetes);
    let (mut packets, mut counted) = (0_u64, 0_u64);
    let mut told = |record: aksnet_agent::flowlog::FlowRecord| {
        counted += record.packets();
        assert!(!record.line().contains('\n'));
    };
    let ended = file::read(input, |item| {
        packets += u64::from(matches!(item, Item::Packet(_)));
        replay.take(&item, &mut told);
    });
    replay.finish(&mut told);
    let tally = replay.tally();
    assert_eq!(tally.packets, packets);
    let unread = tally.passed_over
        + tally.beheaded
        + tally.skipped.values().sum::<u64>()
        + tally.link_types.values().sum::<u64>();
    assert!(counted + unread <= packets, "{counted} of {tally:?}");
    if let Some(why) = ended.damaged {
        assert_eq!(why.lines().count(), 1, "{why}");
    }
}

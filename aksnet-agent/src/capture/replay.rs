//! A *replay*: a capture played through the table, the sweeps, the joining and the classes that the agent uses, by the
//! capture's own clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aksnet_common::{flow::Addr, packet, passage::fingerprint, stats::Skip};
use ipnet::IpNet;

use super::{
    file::{Item, Record},
    link::{self, Direction, Unread},
    sighting::{Pairing, Seen, Sighting},
    table::{Shared, Table},
};
use crate::{
    classify::Whois,
    collect::{CollectConfig, Collector, DropNames, Now, Recording},
    config::Config,
    flowlog::FlowRecord,
    identify::index::Index,
    metrics::{Metrics, labels::protocol_number},
    node::{Context, Node, Snapshot, address::Address, link::Link, pattern::Pattern},
    policy::{
        engine::Engine,
        evaluate::Outcome,
        flow::{End, Flow},
        index::When,
        words::Named,
    },
};

/// Interface names that mean a pod, where nothing else is said: `docs/node.md`.
const POD_NAMES: [&str; 5] = ["veth*", "azv*", "cali*", "lxc*", "eni*"];
/// A silence longer than an interval is swept so many times: what is idle ends, however long it is.
const SWEEPS_OF_SILENCE: u64 = 64;
/// So many sweeps it takes until a flow without news is looked at for being idle.
const SWEEPS_OF_A_PACKET: u32 = 3;
/// A file of one link type after the other is no capture.
const LINK_TYPES: usize = 64;
/// More interfaces than a node of 250 pods has. Those beyond are counted without a name: a file may describe one for each
/// packet, and what they mean together is found out anew for each.
const INTERFACES: usize = 1_024;
const NS_IN_MS: u64 = 1_000_000;

/// What of a capture was read, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets in the file.
    pub packets: u64,
    /// Packets of the loopback device, and what is not IP.
    pub passed_over: u64,
    /// Packets of which the capture kept only the beginning, and that were counted all the same.
    pub cut: u64,
    /// Packets whose headers the capture cut off.
    pub beheaded: u64,
    /// Packets that contradict themselves, by reason: the agent counts them under the same.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Packets of link types that are not known, by type; the rest under -1.
    pub link_types: BTreeMap<i32, u64>,
    /// What became of the sightings.
    pub seen: Seen,
}

/// See the module's header.
pub struct Replay {
    config: Config,
    node_name: String,
    snapshot: Snapshot,
    /// Those of the snapshot's links that are the loopback device.
    loopback: BTreeSet<u32>,
    /// As of the latest sweep: what was met since is not in it.
    node: Node,
    /// Whether anything was met since.
    met: bool,
    index: Index,
    engine: Engine,
    table: Shared,
    pairing: Pairing,
    collector: Collector,
    names: DropNames,
    /// The capture's time.
    clock: u64,
    swept: Option<u64>,
    tally: Tally,
}

impl Replay {
    /// A replay in which addresses mean what the config and the index say.
    #[must_use]
    pub fn new(config: &Config, index: Index, node_addresses: &[IpAddr], engine: Engine) -> Self {
        let mut config = config.clone();
        if config.pod_interface.is_empty() {
            let names = POD_NAMES.iter().filter_map(|name| Pattern::new(name).ok());
            config.pod_interface = names.collect();
        }
        let addresses = node_addresses.iter().map(|address| Address {
            index: 0,
            net: IpNet::from(*address),
        });
        let snapshot = Snapshot {
            addresses: addresses.collect(),
            ..Snapshot::default()
        };
        let node_name = config.node_name.clone();
        let ms = |time: std::time::Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let collect = CollectConfig {
            idle_ms: ms(config.idle_timeout),
            policy_grace_ms: ms(config.policy_grace),
            active_ms: ms(config.flow_active_timeout),
            // Nothing more will be told of names than is known at the start.
            name_wait_ms: 0,
            ..CollectConfig::default()
        };
        let metrics = Metrics::new(config.metrics());
        Self {
            node: Node::describe(&snapshot, &config, &node_name, &Context::default()),
            table: Shared::new(Table::new(config.flow_cells, config.spill_entries)),
            pairing: Pairing::new(true),
            collector: Collector::new(collect, metrics, 0),
            names: DropNames::new([], []),
            config,
            node_name,
            snapshot,
            loopback: BTreeSet::new(),
            met: false,
            index,
            engine,
            clock: 0,
            swept: None,
            tally: Tally::default(),
        }
    }

    /// What was read so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally {
            seen: self.pairing.seen(),
            ..self.tally.clone()
        }
    }

    /// Takes what comes next; `told` is given the records that are ready by then.
    pub fn take(&mut self, item: &Item<'_>, told: &mut dyn FnMut(FlowRecord)) {
        match item {
            Item::Interface(number, name) => self.meet(*number, name),
            Item::Packet(record) => self.packet(record, told),
        }
    }

    /// The capture describes an interface.
    fn meet(&mut self, index: u32, name: &str) {
        if name.is_empty()
            || self.snapshot.links.len() >= INTERFACES
            || self.snapshot.link(index).is_some()
        {
            return;
        }
        self.met = true;
        if name == "lo" {
            self.loopback.insert(index);
        }
        self.snapshot.links.push(Link {
            index,
            name: name.to_owned(),
            kind: String::new(),
            master: None,
            peer_elsewhere: true,
            layer: Some(packet::Link::Ethernet),
            loopback: name == "lo",
            up: true,
            mac: Vec::new(),
            below: None,
        });
    }

    fn packet(&mut self, record: &Record<'_>, told: &mut dyn FnMut(FlowRecord)) {
        self.tally.packets += 1;
        // A packet may be a little older than the one before, if several CPUs wrote.
        let ns = record.ns.unwrap_or(self.clock);
        self.advance(ns, told);
        let frame = match link::frame(record.link_type, record.packet) {
            Ok(frame) => frame,
            Err(Unread::NotIp | Unread::Loopback) => {
                self.tally.passed_over += 1;
                return;
            }
            Err(Unread::Truncated) => {
                self.cannot_read(Skip::TruncatedLink, record);
                return;
            }
            Err(Unread::LinkType(link_type)) => {
                let types = &mut self.tally.link_types;
                let known = types.contains_key(&link_type) || types.len() < LINK_TYPES;
                *types.entry(if known { link_type } else { -1 }).or_default() += 1;
                return;
            }
        };
        let ifindex = if frame.ifindex == 0 {
            record.interface
        } else {
            frame.ifindex
        };
        if self.loopback.contains(&ifindex) {
            self.tally.passed_over += 1;
            return;
        }
        let parsed = match packet::parse(&frame.packet, frame.link) {
            Ok(parsed) => parsed,
            Err(Skip::NotIp) => {
                self.tally.passed_over += 1;
                return;
            }
            Err(why) => {
                self.cannot_read(why, record);
                return;
            }
        };
        self.tally.cut += u64::from(record.packet.is_cut());
        let direction = match frame.direction {
            Direction::Unknown => record.direction,
            known => known,
        };
        let sighting = Sighting {
            ns,
            ifindex,
            direction,
            fingerprint: fingerprint(&frame.packet, &parsed),
            parsed,
        };
        self.pairing.see(&mut self.table.lock(), &sighting);
    }

    fn cannot_read(&mut self, why: Skip, record: &Record<'_>) {
        if record.packet.is_cut() {
            self.tally.beheaded += 1;
        } else {
            *self.tally.skipped.entry(why.name()).or_default() += 1;
        }
        self.table.lock().skip(why, record.packet.length);
    }

    /// The capture's time is this, or later.
    fn advance(&mut self, ns: u64, told: &mut dyn FnMut(FlowRecord)) {
        self.clock = self.clock.max(ns);
        let interval = u64::try_from(self.config.interval.as_nanos())
            .unwrap_or(u64::MAX)
            .max(NS_IN_MS);
        let Some(mut swept) = self.swept else {
            self.swept = Some(self.clock);
            return;
        };
        // The first sweeps after a packet date it and read what it left; a long silence after that only ends what is idle.
        let mut step = interval;
        let mut sweeps = 0;
        while self.clock - swept >= step {
            swept += step;
            self.sweep(swept, false, told);
            sweeps += 1;
            if sweeps >= SWEEPS_OF_A_PACKET {
                step = step.max((self.clock - swept) / SWEEPS_OF_SILENCE);
            }
        }
        self.swept = Some(swept);
    }

    /// The capture has ended: tells the rest.
    pub fn finish(&mut self, told: &mut dyn FnMut(FlowRecord)) {
        self.pairing.finish(&mut self.table.lock());
        let end = self.clock.max(self.swept.unwrap_or_default());
        self.sweep(end, true, told);
    }

    fn sweep(&mut self, ns: u64, last: bool, told: &mut dyn FnMut(FlowRecord)) {
        if !last {
            self.pairing.expire(&mut self.table.lock(), ns);
        }
        if std::mem::take(&mut self.met) {
            self.node = Node::describe(
                &self.snapshot,
                &self.config,
                &self.node_name,
                &Context::default(),
            );
        }
        let now = Now {
            monotonic_ns: ns,
            unix_ms: ns / NS_IN_MS,
        };
        let whois = Whois {
            plan: &self.node.plan,
            index: &self.index,
            translations: None,
        };
        self.collector.record(Recording::All, &self.node_name);
        if last {
            self.collector
                .finish(&mut self.table, now, whois, &self.names);
        } else {
            self.collector
                .sweep(&mut self.table, now, whois, &self.names);
        }
        let (records, _none) = self.collector.take_flows();
        for mut record in records {
            judge(&mut record, &whois, self.engine);
            told(record);
        }
    }
}

/// Says of a flow what the policies do, if there are any.
pub fn judge(record: &mut FlowRecord, whois: &Whois<'_>, engine: Engine) {
    let policies = whois.index.policies();
    if policies.is_empty() {
        return;
    }
    let Some(protocol) = protocol_number(&record.protocol) else {
        return;
    };
    // As policies see it: before SNAT, and after DNAT.
    let to = record.after.unwrap_or(record.before);
    let at = record.start_ms.saturating_mul(NS_IN_MS);
    let end = |address: IpAddr| End {
        address,
        who: whois.party(Addr::from(address), at),
    };
    let flow = Flow {
        src: end(record.before.src),
        dst: end(to.dst),
        protocol,
        port: match protocol {
            packet::TCP | packet::UDP | packet::SCTP => to.dst_port,
            _ => 0,
        },
        by_node_port: matches!(record.class.as_str(), "node_port" | "load_balancer"),
    };
    let verdict = policies.evaluate(&flow, When::At(at), engine);
    let outcome = verdict.outcome();
    record.verdict = Some(
        match outcome {
            Outcome::Allowed => "allowed",
            Outcome::Denied => "denied",
            Outcome::Undetermined => "undetermined",
        }
        .to_owned(),
    );
    if outcome == Outcome::Allowed {
        return;
    }
    for judgement in [&verdict.egress, &verdict.ingress] {
        if judgement.outcome() == outcome {
            for policy in judgement.policies() {
                let name = Named(policy).to_string();
                if !record.policies.contains(&name) {
                    record.policies.push(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::capture::file;

    /// A capture of one frame, as pcap and as pcapng.
    fn captures() -> [Vec<u8>; 2] {
        let mut frame = vec![2; 12];
        frame.extend([
            8, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 244, 0, 5, 1, 1, 1, 1,
        ]);
        frame.extend([0, 7, 0, 53, 0, 8, 0, 0]);
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        let mut pcap = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        pcap.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
        pcap.extend([0, 0, 0, 100, 1, 0, 0, 0]);
        pcap.extend([length, length].concat());
        pcap.extend(&frame);
        let block = |kind: u32, mut body: Vec<u8>| {
            body.resize(body.len().next_multiple_of(4), 0);
            let length = u32::try_from(body.len() + 12).unwrap().to_le_bytes();
            [&kind.to_le_bytes()[..], &length, &body, &length].concat()
        };
        let mut section = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        section.extend([1, 0, 0, 0]);
        section.extend([0xff; 8]);
        let mut packet = vec![0; 12];
        packet.extend([length, length].concat());
        packet.extend(&frame);
        let interface = vec![
            1, 0, 0, 0, 0, 0, 4, 0, 2, 0, 4, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0,
        ];
        let pcapng = [
            block(0x0a0d_0d0a, section),
            block(1, interface),
            block(6, packet),
        ]
        .concat();
        [pcap, pcapng]
    }

    fn play(bytes: &[u8]) -> (Vec<FlowRecord>, Tally, file::Ended) {
        let index = Index::new("");
        let mut replay = Replay::new(&Config::default(), index, &[], Engine::Kubernetes);
        let mut records = Vec::new();
        let ended = file::read(bytes, |item| {
            replay.take(&item, &mut |record| records.push(record));
        });
        replay.finish(&mut |record| records.push(record));
        (records, replay.tally(), ended)
    }

    /// 8,000 of them took minutes, as each was looked at together with all before.
    #[test]
    fn a_capture_of_nothing_but_interfaces_is_looked_at_once() {
        let index = Index::new("");
        let mut replay = Replay::new(&Config::default(), index, &[], Engine::Kubernetes);
        for number in 1..=60_000 {
            let name = format!("veth{number}");
            replay.take(&file::Item::Interface(number, &name), &mut |_| {});
            assert!(replay.met, "put off until a sweep");
        }
        assert_eq!(replay.snapshot.links.len(), INTERFACES);
        replay.finish(&mut |_| {});
        assert!(!replay.met);
    }

    #[test]
    fn both_formats_give_the_packet() {
        for capture in captures() {
            let (records, tally, ended) = play(&capture);
            assert_eq!(ended, file::Ended::default());
            assert_eq!(
                (records.len(), tally.packets, tally.seen.packets),
                (1, 1, 1)
            );
            assert_eq!(records[0].protocol, "udp");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_bytes_are_played_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (records, tally, _) = play(&bytes);
            let counted: u64 = records.iter().map(FlowRecord::packets).sum();
            prop_assert_eq!(counted, tally.seen.packets);
        }

        #[test]
        fn a_damaged_capture_is_played_as_far_as_it_goes(
            which in 0usize..2,
            copies in 1usize..4,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let capture = &captures()[which];
            // Several of the same: of pcap the packet alone, of pcapng the section.
            let again = if which == 0 { &capture[24..] } else { &capture[..] };
            let mut bytes = capture.clone();
            for _ in 1..copies {
                bytes.extend(again);
            }
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            let (records, tally, _) = play(&bytes);
            let counted: u64 = records.iter().map(FlowRecord::packets).sum();
            prop_assert_eq!(counted, tally.seen.packets);
        }
    }
}

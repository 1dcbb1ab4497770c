//! What a record says of a connection, and of what found no cell.

use aksnet_common::{
    flow::{ColdCell, FlowKey, HotCell, SpillStats},
    packet::TCP,
    passage::Tuple,
};

use super::{Pair, Recording};
use crate::{
    classify::{Verdict, Whois, classify},
    collect::{
        cause::DropNames,
        delta::CLOSED,
        join::{self, Side},
        judge::{Half, facts},
        source::Source,
        sweep::{Collector, Sweep, milliseconds},
    },
    flowlog::{
        Counts, End, FlowRecord,
        record::{Signs, flag_letters},
    },
    metrics::{
        histogram::PathTimes,
        labels::{nat_name, protocol_name},
    },
    top::model::{Who, both_stages, stage, timing},
};

impl Collector {
    fn counts<S: Source>(&self, source: &S, cell: u32) -> Counts {
        let hot = source.hot(cell);
        let base = self.export.bases.get(&cell).copied().unwrap_or_default();
        let (packets, bytes) = (hot.skbs + hot.gso_packets, hot.bytes + hot.gso_bytes);
        let flags = u8::try_from(hot.tcp_flags & 0xff).unwrap_or_default();
        Counts {
            packets: packets.saturating_sub(base.packets),
            bytes: bytes.saturating_sub(base.bytes),
            total_packets: packets,
            total_bytes: bytes,
            drops: self.links[cell as usize].drops,
            retransmits: u64::from(hot.retransmits),
            tcp_flags: flag_letters(flags),
        }
    }

    /// When a cell's counters last changed, by the collector's clock.
    fn last_change(&self, cell: u32) -> u32 {
        let seen = &self.seen[cell as usize];
        if seen.has(CLOSED) {
            self.links[cell as usize].ended
        } else {
            seen.changed
        }
    }

    /// All that is known of a connection.
    pub(super) fn connection<S: Source>(
        &self,
        source: &S,
        whois: &Whois,
        names: &DropNames,
        cell: u32,
        end: End,
    ) -> FlowRecord {
        let Pair { originator, reply } = self.pair_of(cell);
        let cells = [originator, reply];
        let half = Half::read(source, cell);
        let other = self.partner(cell).map(|other| Half::read(source, other));
        let facts = facts(&half, self.side(cell), other.as_ref(), whois);
        let verdict = classify(&facts, whois);
        let hot = |cell: Option<u32>| cell.map(|cell| source.hot(cell)).unwrap_or_default();
        let cold = |cell: Option<u32>| cell.map(|cell| source.cold(cell)).unwrap_or_default();
        let (forth, back) = (hot(originator), hot(reply));
        let links = || {
            cells
                .into_iter()
                .flatten()
                .map(|cell| &self.links[cell as usize])
        };
        let dropped = links()
            .filter(|link| link.drops > 0)
            .max_by_key(|link| link.dropped_ns);
        let flags = |hot: &HotCell| u8::try_from(hot.tcp_flags & 0xff).unwrap_or_default();
        let tcp = half.hot.key.protocol == TCP;
        let signs = Signs {
            tcp,
            has_replies: join::has_replies(&half.hot.key),
            opened: tcp && forth.connections > 0,
            accepted: tcp && back.syn_ns != 0,
            forward_flags: flags(&forth),
            reply_flags: flags(&back),
            answered: reply.is_some(),
            dropped: dropped.is_some(),
        };
        let ms = cells
            .into_iter()
            .flatten()
            .map(|cell| self.last_change(cell));
        let now = milliseconds(
            self.now
                .monotonic_ns
                .saturating_sub(self.started_ns.unwrap_or_default()),
        );
        let ago = ms.map(|ms| now.wrapping_sub(ms)).min().unwrap_or(0);
        let (first, established) = times(&cold(originator), &cold(reply));
        let interface = |index| whois.plan.interface_name(index);
        let policies = cells
            .into_iter()
            .flatten()
            .filter_map(|cell| self.export.policies.get(&cell));
        let start_ms = self.unix_ms(facts.began);
        FlowRecord {
            start_ms,
            // The wall clock may have been set back meanwhile.
            end_ms: self
                .now
                .unix_ms
                .saturating_sub(u64::from(ago))
                .max(start_ms),
            end,
            in_interface: interface(facts.client_ifindex),
            out_interface: if facts.to_node {
                String::new()
            } else {
                interface(facts.server_ifindex)
            },
            forward: originator
                .map(|cell| self.counts(source, cell))
                .unwrap_or_default(),
            reply: reply.map(|cell| self.counts(source, cell)),
            connections: u64::from(if originator.is_some() {
                forth.connections
            } else {
                0
            }),
            outcome: signs.outcome().to_owned(),
            first: timing(&first),
            established: timing(&established),
            drop_reason: dropped.map(|link| names.reason(link.drop_reason)),
            drop_cause: dropped.map(|link| link.drop_cause.name().to_owned()),
            policies: policies.flatten().cloned().collect(),
            ..self.named(
                whois,
                &verdict,
                half.hot.key.protocol,
                &facts.before,
                facts.after,
            )
        }
    }

    /// A record with names and addresses alone.
    fn named(
        &self,
        whois: &Whois,
        verdict: &Verdict,
        protocol: u8,
        before: &Tuple,
        after: Option<Tuple>,
    ) -> FlowRecord {
        FlowRecord {
            start_ms: 0,
            end_ms: 0,
            end: End::Live,
            node: self.export.node.clone(),
            class: verdict.class.name().to_owned(),
            nat: nat_name(verdict.nat).to_owned(),
            scope: verdict.scope.name().to_owned(),
            protocol: protocol_name(protocol).into_owned(),
            in_interface: String::new(),
            out_interface: String::new(),
            from: Who::of(&verdict.client, whois),
            to: Who::of(&verdict.server, whois),
            before: (*before).into(),
            after: after.map(Into::into),
            forward: Counts::default(),
            reply: None,
            connections: 0,
            outcome: String::new(),
            first: None,
            established: None,
            drop_reason: None,
            drop_cause: None,
            policies: Vec::new(),
            verdict: None,
        }
    }

    /// Records what found no cell, and so has neither times nor a translation.
    pub(in crate::collect) fn record_spilled<S: Source>(
        &mut self,
        source: &S,
        sweep: &Sweep,
        key: &FlowKey,
        stats: &SpillStats,
        side: Side,
    ) {
        if self.export.recording != Recording::All || !self.export.room() {
            return;
        }
        let hot = HotCell {
            key: *key,
            first_ns: sweep.now.monotonic_ns,
            ..HotCell::default()
        };
        let half = Half::new(hot, &ColdCell::default());
        let partner = self.mirror(source, &half, u32::MAX);
        let other = partner.map(|cell| Half::read(source, cell));
        let facts = facts(&half, side, other.as_ref(), &sweep.whois);
        let verdict = classify(&facts, &sweep.whois);
        let (packets, bytes) = (
            stats.skbs + stats.gso_packets,
            stats.bytes + stats.gso_bytes,
        );
        let counts = Counts {
            packets,
            bytes,
            total_packets: packets,
            total_bytes: bytes,
            tcp_flags: flag_letters(u8::try_from(stats.tcp_flags & 0xff).unwrap_or_default()),
            ..Counts::default()
        };
        let (forward, reply) = match side {
            Side::Originator => (counts, None),
            Side::Reply => (Counts::default(), Some(counts)),
        };
        let interface = |index| sweep.whois.plan.interface_name(index);
        let record = FlowRecord {
            start_ms: self.now.unix_ms.saturating_sub(u64::from(self.interval_ms)),
            end_ms: self.now.unix_ms,
            end: End::Spilled,
            in_interface: interface(facts.client_ifindex),
            out_interface: interface(facts.server_ifindex),
            forward,
            reply,
            outcome: "not_known".to_owned(),
            ..self.named(
                &sweep.whois,
                &verdict,
                key.protocol,
                &facts.before,
                facts.after,
            )
        };
        self.export.records.push(record);
    }
}

/// Times of what opens connections, and of all else: the first packet of an answer opens nothing.
fn times(forth: &ColdCell, back: &ColdCell) -> (PathTimes, PathTimes) {
    let mut later = stage(forth, 1);
    later.add(&both_stages(back));
    (stage(forth, 0), later)
}

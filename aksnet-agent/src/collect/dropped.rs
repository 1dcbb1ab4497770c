//! Drops: each is joined with its flow, attributed, counted by cause and policy, and written down for the drop log.

use std::{cell::LazyCell, net::IpAddr};

use aksnet_common::{
    cell::{LIVE, PHASE},
    drops::{DropKey, DropStats},
    flow::{Addr, HotCell},
    passage::Tuple,
    stats::Role,
    tracked::Tracking,
};

use super::{
    attribute::{Attribution, Because, Evidence, Opinion, attribute, depends_on_table},
    cause::{Cause, Direction, cause},
    denial::{self, Asked, Judge, Judged, label, words},
    join::{self, Side},
    judge::Half,
    report::{Found, RECORDS},
    source::Source,
    sweep::{Collector, Sweep},
};
use crate::{
    classify::{Peer, Whois},
    droplog::{DropRecord, End},
    metrics::{
        DropLabels,
        labels::{party, protocol_name},
        policy::{Confidence, DeniedLabels},
    },
    plan::Place,
    policy::{engine::Engine, model},
};

/// For how long a drop without a live flow is remembered for `top`, in nanoseconds.
const ORPHAN_AGE_NS: u64 = 60_000_000_000;
/// How many kinds of them.
const ORPHANS: usize = 256;

/// Drops of one tuple, reason and place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    key: DropKey,
    stats: DropStats,
    /// Whether the conntrack table was full, where that matters; `None`: not known.
    table_full: Option<bool>,
}

/// A drop's ends as policies see them: who sent it, before the node translated the source, and to whom, after it
/// translated the destination.
struct Ends {
    src: (Addr, u16),
    dst: (Addr, u16),
    client: Peer,
    server: Peer,
    /// What the client had dialled, where the node has replaced that.
    dialled: Option<(Addr, u16)>,
    source_translated: bool,
}

impl Ends {
    fn asked(&self, protocol: u8) -> Asked {
        Asked {
            src: (self.src.0, self.client),
            dst: (self.dst.0, self.server),
            protocol,
            port: denial::port(protocol, self.dst.1),
        }
    }
}

impl Collector {
    pub(super) fn fold_drops<S: Source>(
        &mut self,
        source: &S,
        sweep: &mut Sweep,
        drops: Vec<(DropKey, DropStats)>,
    ) {
        let now = sweep.now.monotonic_ns;
        self.orphans
            .drops
            .retain(|_, (stats, _)| stats.last_ns.saturating_add(ORPHAN_AGE_NS) > now);
        let waited = std::mem::take(&mut self.orphans.young);
        let mut judge = Judge::default();
        let tracking = self.circumstances.tracking;
        // Asked now, as some drops wait for the name of their flow; and once, as it hardly changes within a sweep.
        let full = LazyCell::new(|| source.conntrack_is_full());
        let taken = drops.into_iter().map(|(key, stats)| Dropped {
            key,
            stats,
            table_full: (tracking && depends_on_table(key.state))
                .then(|| *full)
                .flatten(),
        });
        for drop in waited.into_iter().chain(taken) {
            if !sweep.last && self.is_of_young_flow(source, &drop.stats) {
                self.orphans.young.push(drop);
                continue;
            }
            sweep.report.drops += 1;
            self.fold_drop(source, sweep, &mut judge, &drop);
        }
    }

    fn fold_drop<S: Source>(
        &mut self,
        source: &S,
        sweep: &mut Sweep,
        judge: &mut Judge,
        drop: &Dropped,
    ) {
        let (key, stats) = (&drop.key, &drop.stats);
        let packets = stats.skbs + stats.gso_packets;
        let bytes = stats.bytes + stats.gso_bytes;
        let cell = self.dropped_flow(source, key, stats);
        let ends = self.drop_ends(source, &sweep.whois, key, stats, cell);
        let engine = self.circumstances.engine;
        let asked = ends.asked(key.key.protocol);
        let reason = sweep.names.reason(key.reason);
        let symbol = sweep.names.symbol(key.location);
        let judged = may_be_policy(cause(&reason, symbol), engine)
            .then(|| judge.ask(&sweep.whois, engine, &asked, sweep.now.monotonic_ns));
        let attribution = attribute(&self.evidence(drop, &ends, judged, &reason, symbol));
        let connections = self.attempts.count(key, stats, sweep.now.monotonic_ns);

        let whois = &sweep.whois;
        let symbols = &mut sweep.families.symbols;
        let (src, dst) = (
            party(symbols, whois, &ends.client),
            party(symbols, whois, &ends.server),
        );
        let side = attribution.side();
        let direction = match side {
            Some(model::Side::Egress) => Direction::Egress,
            Some(model::Side::Ingress) => Direction::Ingress,
            None => Direction::between(ends.client.place(), ends.server.place()),
        };
        let labels = DropLabels {
            reason: symbols.intern(&reason),
            cause: attribution.cause,
            direction,
            src,
            dst,
        };
        sweep.families.drops.add(labels, packets, bytes);
        let denied = side.map(|side| {
            let policies = judged.map_or(&[][..], |judged| &judged.side(side).policies);
            (side, policies, confidence(attribution, policies.len()))
        });
        if let Some((side, policies, confidence)) = denied {
            let labels = DeniedLabels {
                side,
                policy: symbols.intern(&label(policies)),
                confidence,
                engine: engine_label(engine),
                src,
                dst,
            };
            sweep.families.policy.deny(labels, packets, connections);
        }
        if self.records.len() < RECORDS {
            let (policies, confidence) = match denied {
                Some((_, policies, confidence)) => (policies.to_vec(), confidence.name()),
                None => (Vec::new(), ""),
            };
            let record = DropRecord {
                unix_ms: self.unix_ms(stats.last_ns),
                packets,
                bytes,
                connections,
                cause: attribution.cause.name().to_owned(),
                reason,
                location: symbol.to_owned(),
                direction: direction.name().to_owned(),
                protocol: protocol_name(key.key.protocol).into_owned(),
                src: end(whois, ends.src, &ends.client),
                dst: end(whois, ends.dst, &ends.server),
                dialled: ends.dialled.map(|(address, port)| (address.into(), port)),
                in_interface: whois.plan.interface_name(key.iif),
                out_interface: out_interface(whois, key, stats),
                mark: key.mark,
                engine: engine_label(engine).to_owned(),
                policies,
                confidence: confidence.to_owned(),
                why: words(attribution, engine, judged, &asked, whois),
            };
            let address = key.location;
            self.records.push(Found { record, address });
        }
        self.accounted.dropped_packets += packets;
        self.accounted.dropped_bytes += bytes;
        if let Some(cell) = cell {
            let link = &mut self.links[cell as usize];
            link.drops += packets;
            link.drop_reason = key.reason;
            link.drop_cause = attribution.cause;
            link.dropped_ns = link.dropped_ns.max(stats.last_ns);
            if let Some((_, policies, _)) = denied.filter(|(_, policies, _)| !policies.is_empty()) {
                self.export.denied(cell, policies);
            }
        } else {
            self.remember_orphan(*key, stats, attribution.cause);
        }
    }

    fn evidence<'a>(
        &self,
        drop: &Dropped,
        ends: &Ends,
        judged: Option<&Judged>,
        reason: &'a str,
        symbol: &'a str,
    ) -> Evidence<'a> {
        let (key, stats) = (&drop.key, &drop.stats);
        let opinion = |side| judged.map_or(Opinion::None, |judged| judged.side(side).opinion);
        Evidence {
            reason,
            symbol,
            mark: key.mark,
            engine: self.circumstances.engine,
            state: key.state,
            source_translated: ends.source_translated,
            tracking: self.circumstances.tracking,
            table_full: drop.table_full,
            ttl: stats.ttl,
            dst: ends.server.place(),
            dst_port: ends.dst.1,
            protocol: key.key.protocol,
            egress: opinion(model::Side::Egress),
            ingress: opinion(model::Side::Ingress),
        }
    }

    /// Whether the passage names a cell whose flow was not judged yet.
    fn is_of_young_flow<S: Source>(&self, source: &S, stats: &DropStats) -> bool {
        let cell = stats
            .cell
            .checked_sub(1)
            .and_then(|c| u32::try_from(c).ok());
        cell.is_some_and(|cell| !self.known(cell) && source.state(cell) & PHASE == LIVE)
    }

    /// The flow that a dropped packet belonged to, if it is live.
    fn dropped_flow<S: Source>(
        &self,
        source: &S,
        drop: &DropKey,
        stats: &DropStats,
    ) -> Option<u32> {
        // The passage names the cell, unless that has been another's since.
        if let Some(cell) = stats.cell.checked_sub(1)
            && let Ok(cell) = u32::try_from(cell)
            && self.known(cell)
        {
            let hot = source.hot(cell);
            if hot.first_ns <= stats.last_ns && hot.key.protocol == drop.key.protocol {
                return Some(cell);
            }
        }
        let hash = join::hash(&drop.key, &drop.key.tuple(), self.seed);
        let known = |cell: &u32| self.known(*cell);
        let same = |hot: &HotCell| {
            (hot.key.protocol, hot.key.family) == (drop.key.protocol, drop.key.family)
        };
        if let Some(cell) = self.after.get(hash).filter(known) {
            let half = Half::read(source, cell);
            if same(&half.hot) && half.after == Some(drop.key.tuple()) {
                return Some(cell);
            }
        }
        if let Some(cell) = self.before.get(hash).filter(known) {
            let hot = source.hot(cell);
            if same(&hot) && hot.key.tuple() == drop.key.tuple() {
                return Some(cell);
            }
        }
        // What was dialled, where the packet's own addresses are already others.
        let dialled = original(drop, stats)?;
        let cell = self.before.get(join::hash(&drop.key, &dialled, self.seed));
        let cell = cell.filter(known)?;
        let hot = source.hot(cell);
        (same(&hot) && hot.key.tuple() == dialled).then_some(cell)
    }

    /// Who sent it and to whom.
    fn drop_ends<S: Source>(
        &self,
        source: &S,
        whois: &Whois,
        drop: &DropKey,
        stats: &DropStats,
        cell: Option<u32>,
    ) -> Ends {
        let own = drop.key.tuple();
        // As the client sent it: conntrack knows, or else the flow that it came in by.
        let side = cell.map(|cell| self.side(cell));
        let before = original(drop, stats).or_else(|| {
            let cell = cell.filter(|_| side == Some(Side::Originator))?;
            Some(source.hot(cell).key.tuple())
        });
        let before = before.unwrap_or(own);
        let source_translated = (before.src, before.src_port) != (own.src, own.src_port);
        let dialled = (before.dst, before.dst_port);
        let (src, dst) = drop_peers(drop, stats, before.src, whois);
        let (client, server) = match (cell, side) {
            (Some(cell), Some(side)) => {
                let (half, verdict) = self.verdict(source, whois, cell);
                let (from, to) = match side {
                    Side::Originator => (verdict.client, verdict.server),
                    Side::Reply => (verdict.server, verdict.client),
                };
                // The flow's translation is not known where no packet of it was seen to leave: then its far end is who
                // was dialled, and the dropped packet itself knows better.
                let left_for = half.after.unwrap_or(half.hot.key.tuple()).dst;
                (from, if left_for == own.dst { to } else { dst })
            }
            _ => (src, dst),
        };
        Ends {
            src: (before.src, before.src_port),
            dst: (own.dst, own.dst_port),
            client,
            server,
            dialled: (dialled != (own.dst, own.dst_port)).then_some(dialled),
            source_translated,
        }
    }

    /// Remembers a drop without a flow; when there are too many kinds, the oldest makes room.
    fn remember_orphan(&mut self, key: DropKey, stats: &DropStats, cause: Cause) {
        let drops = &mut self.orphans.drops;
        if !drops.contains_key(&key) && drops.len() >= ORPHANS {
            let oldest = drops.iter().min_by_key(|(_, (s, _))| s.last_ns);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                drops.remove(&oldest);
            }
        }
        let (sum, latest) = drops.entry(key).or_insert((DropStats::default(), cause));
        sum.add(stats);
        *latest = cause;
    }
}

/// Whether policies have to be asked.
const fn may_be_policy(cause: Cause, engine: Engine) -> bool {
    match cause {
        Cause::Firewall => true,
        Cause::Other => matches!(engine, Engine::Cilium),
        _ => false,
    }
}

/// How sure the policies' names are.
fn confidence(attribution: Attribution, policies: usize) -> Confidence {
    match (attribution.because, policies) {
        (_, 0) => Confidence::Unexplained,
        (Because::Denied(_), 1) => Confidence::Exact,
        _ => Confidence::Candidates,
    }
}

/// The value of the label `engine`: empty where it is not known.
const fn engine_label(engine: Engine) -> &'static str {
    match engine {
        Engine::Kubernetes => "",
        engine => engine.name(),
    }
}

/// The tuple with which the dropped packet's sender had sent it, as conntrack has it: the connection's original one if
/// the packet goes that way.
fn original(drop: &DropKey, stats: &DropStats) -> Option<Tuple> {
    let forth = matches!(drop.state.tracking(), Tracking::New | Tracking::Established);
    let known = drop.state.dialled_is_known() && stats.dialled_protocol == drop.key.protocol;
    (forth && known).then_some(stats.dialled)
}

/// The ends of a dropped packet by its addresses and interfaces; `src` is its source before the node translated it.
pub(super) fn drop_peers(
    drop: &DropKey,
    stats: &DropStats,
    src: Addr,
    whois: &Whois,
) -> (Peer, Peer) {
    let key = &drop.key;
    let at_pod = |peer: Peer, ifindex: u32| match peer.place() {
        Place::Link | Place::ThisNode | Place::LocalDns => peer,
        _ if whois.plan.role(ifindex) == Some(Role::Pod) => peer.local_pod(),
        _ => peer,
    };
    let client = whois.peer(src, key.src_port, stats.last_ns);
    let server = whois.peer(key.dst, key.dst_port, stats.last_ns);
    // Where it was to leave: by its route, or by its device, which is where it came in until it has left FORWARD.
    let out = match stats.oif {
        0 if key.ifindex != drop.iif => key.ifindex,
        oif => oif,
    };
    (at_pod(client, drop.iif), at_pod(server, out))
}

fn out_interface(whois: &Whois, key: &DropKey, stats: &DropStats) -> String {
    match stats.oif {
        0 if key.key.ifindex != key.iif => whois.plan.interface_name(key.key.ifindex),
        // The loopback device: delivered on the node.
        0 | 1 => String::new(),
        oif => whois.plan.interface_name(oif),
    }
}

fn end(whois: &Whois, (address, port): (Addr, u16), peer: &Peer) -> End {
    End {
        address: IpAddr::from(address),
        port,
        namespace: whois.namespace(peer).to_owned(),
        workload: whois.workload(peer).to_owned(),
        pod: whois.pod(peer).to_owned(),
    }
}

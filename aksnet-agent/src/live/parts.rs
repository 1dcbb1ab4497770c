//! The parts of a snapshot that are not about single flows: what NAT costs, what the node is, what is dropped.

use std::{collections::HashMap, sync::Arc};

use aksnet_common::{
    flow::{STAGE_ESTABLISHED, STAGE_FIRST},
    passage::NatKind,
};

use super::{
    choice::Choice,
    snapshot::{
        ByDestination, Causes, Conntrack, Drops, Nat, NatCost, Node, PodAddresses, Ports, Program,
        Synced,
    },
};
use crate::{
    classify::{Class, Whois},
    collect::Glance,
    conntrack::table::DestinationUse,
    droplog::DropRecord,
    identify::object::Moment,
    metrics::{
        Families,
        histogram::PathTimes,
        labels::{family_name, nat_name, protocol_name},
        nat::{MIN_SAMPLES, NATS},
    },
    top::model::{Who, timing},
};

/// What flows of one class and NAT do.
#[derive(Clone, Copy, Default)]
struct Doing {
    connections: u64,
    packets: f64,
    bytes: f64,
}

/// Sums by class and NAT.
pub(super) struct Kinds(Vec<[Doing; NATS.len()]>);

impl Kinds {
    pub(super) fn new() -> Self {
        Self(vec![<[Doing; NATS.len()]>::default(); Class::ALL.len()])
    }

    pub(super) fn add(&mut self, flow: &Glance) {
        let doing = &mut self.0[flow.class as usize][flow.nat as usize];
        doing.connections += u64::from(flow.connection);
        doing.packets += flow.rates.0;
        doing.bytes += flow.rates.1;
    }

    /// What each kind of NAT does and costs.
    pub(super) fn cost(&self, families: &Families) -> Nat {
        let of = |class: Class, nat: NatKind| {
            let times = [STAGE_FIRST, STAGE_ESTABLISHED]
                .map(|stage| families.nat.recent(class, nat, stage));
            (self.0[class as usize][nat as usize], times)
        };
        let mut classes = Vec::new();
        let mut kinds = NATS.map(|nat| (nat, Doing::default(), [PathTimes::default(); 2]));
        for class in Class::ALL {
            for (nat, doing, times) in &mut kinds {
                let (some, taken) = of(class, *nat);
                doing.connections += some.connections;
                doing.packets += some.packets;
                doing.bytes += some.bytes;
                times[0].add(&taken[0]);
                times[1].add(&taken[1]);
                if some.connections > 0 || taken.iter().any(|times| times.count() > 0) {
                    classes.push((class, *nat, some, taken));
                }
            }
        }
        let base = kinds[NatKind::None as usize].2.map(|times| median(&times));
        Nat {
            kinds: kinds
                .into_iter()
                .map(|(nat, doing, times)| row("", nat, doing, &times, base))
                .collect(),
            classes: classes
                .into_iter()
                .map(|(class, nat, doing, times)| row(class.name(), nat, doing, &times, base))
                .collect(),
            ..Nat::default()
        }
    }
}

fn median(times: &PathTimes) -> Option<f64> {
    (times.count() >= MIN_SAMPLES)
        .then(|| times.quantile(0.5))
        .flatten()
}

fn row(
    class: &str,
    nat: NatKind,
    doing: Doing,
    times: &[PathTimes; 2],
    base: [Option<f64>; 2],
) -> NatCost {
    let over = |stage: usize| match nat {
        NatKind::None => None,
        _ => Some(median(&times[stage])? - base[stage]?),
    };
    NatCost {
        nat: nat_name(nat).to_owned(),
        class: class.to_owned(),
        connections: doing.connections,
        packets_per_second: doing.packets,
        bytes_per_second: doing.bytes,
        first: timing(&times[0]),
        established: timing(&times[1]),
        first_overhead_ns: over(0),
        established_overhead_ns: over(1),
    }
}

/// Names the destinations.
pub(super) fn destinations(
    uses: &[DestinationUse],
    whois: &Whois,
    now: Moment,
) -> Vec<ByDestination> {
    let named = |u: &DestinationUse| ByDestination {
        protocol: protocol_name(u.protocol).into_owned(),
        node: u.node.into(),
        to: u.to.into(),
        port: u.port,
        who: Who::of(&whois.peer(u.to, u.port, now), whois),
        in_use: u.in_use.into(),
        limit: u.limit.into(),
    };
    uses.iter().map(named).collect()
}

/// What the node is, and what of it is used up.
pub(super) fn node(families: &Families) -> Node {
    let info = |at: usize| families.node.info().get(at).cloned().unwrap_or_default();
    let now = families.conntrack.now();
    let ports = |protocol: u8, family: &str, in_use: u64, limit: u64, saturation: f64| Ports {
        protocol: protocol_name(protocol).into_owned(),
        family: family.to_owned(),
        in_use,
        limit,
        saturation,
    };
    let azure_limit = u64::from(now.azure_limit.unwrap_or(0));
    Node {
        name: info(0),
        cni: info(1),
        policy_engine: info(2),
        proxy_mode: info(3),
        kernel: info(4),
        zone: info(5),
        conntrack: Conntrack {
            entries: now.size.entries,
            limit: now.size.limit,
            insert_failed: now.counters.insert_failed,
            drop: now.counters.drop,
            early_drop: now.counters.early_drop,
        },
        snat_ports: now.ports.as_ref().map(|uses| {
            uses.iter()
                .map(|u| {
                    let family = family_name(u.family);
                    ports(u.protocol, family, u.in_use, u.limit, u.saturation)
                })
                .collect()
        }),
        azure_snat_ports: now
            .azure
            .into_iter()
            .flatten()
            .map(|u| {
                let saturation = ratio(u.in_use, azure_limit);
                ports(
                    u.protocol,
                    family_name(4),
                    u.in_use,
                    azure_limit,
                    saturation,
                )
            })
            .collect(),
        pod_ips: families
            .node
            .pod_ips
            .iter()
            .map(|account| PodAddresses {
                source: account.source.to_owned(),
                in_use: account.in_use,
                limit: account.limit,
                leaked: account.leaked,
            })
            .collect(),
        programs: families
            .agent
            .programs
            .iter()
            .map(|((program, hook), up)| Program {
                program: program.clone(),
                hook: hook.clone(),
                up: *up,
            })
            .collect(),
        flow_cells: families.agent.entries,
        flow_cells_limit: families.agent.limit,
        sources: families
            .identity
            .synced
            .iter()
            .map(|(source, synced)| Synced {
                source: (*source).to_owned(),
                synced: *synced,
            })
            .collect(),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of ports are far below 2^52"
)]
fn ratio(in_use: u64, limit: u64) -> f64 {
    if limit == 0 {
        0.0
    } else {
        in_use as f64 / limit as f64
    }
}

/// The latest drops that are chosen, and the last minute's causes. `kept` has the oldest first.
pub(super) fn drops(
    kept: &[Arc<DropRecord>],
    choice: &Choice,
    limit: usize,
    now_unix_ms: u64,
) -> Drops {
    let takes = |record: &&Arc<DropRecord>| choice.takes_record(record);
    let chosen: Vec<&Arc<DropRecord>> = kept.iter().rev().filter(takes).collect();
    let mut causes: HashMap<(&str, String), (u64, u64)> = HashMap::new();
    for record in kept {
        if record.unix_ms + 60_000 >= now_unix_ms {
            let key = (record.cause.as_str(), record.policies.join(","));
            let sum = causes.entry(key).or_default();
            sum.0 += record.packets;
            sum.1 += record.connections;
        }
    }
    let mut causes: Vec<Causes> = causes
        .into_iter()
        .map(|((cause, policy), (packets, connections))| Causes {
            cause: cause.to_owned(),
            policy,
            packets,
            connections,
        })
        .collect();
    causes.sort_by(|a, b| {
        b.packets
            .cmp(&a.packets)
            .then_with(|| (&a.cause, &a.policy).cmp(&(&b.cause, &b.policy)))
    });
    Drops {
        matching: chosen.len() as u64,
        records: (chosen.into_iter().take(limit))
            .map(|r| (**r).clone())
            .collect(),
        causes,
    }
}

//! *Gathering*: the evidence from what the agent holds anyway: its metrics, the survey, the index of names, the conntrack
//! follower, the drop log, the board. Nothing is asked of the node for it.

mod counted;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use prometheus::proto::MetricFamily;
use serde_json::Value;

use super::{
    evidence::{
        Account, Agent, Balanced, Conntrack, Evidence, Fact, Leak, Masquerade, Node, PodIps,
        Policies, Ports, Program, SCHEMA, Source,
    },
    history::History,
    tally::{Tally, What, gauges},
};
use crate::{
    bpf::status::{ProgramState, ProgramStatus},
    cli::VERSION,
    conntrack,
    droplog::DropRecord,
    identify::{
        index::Index,
        object::{Kind, Moment, Service},
        sink::Status,
    },
    metrics::labels::{family_name, protocol_name},
    node::found::{Finding, Found},
    policy::{flow::Who, index::When, model::Side},
    survey::Surveyed,
};

/// What the accounts have at hand.
pub struct Held<'a> {
    /// All metric families.
    pub families: &'a [MetricFamily],
    /// What was counted before.
    pub history: &'a History,
    /// Now, as the history has it.
    pub now: Instant,
    /// The names.
    pub index: &'a Index,
    /// Now, as the index has it.
    pub moment: Moment,
    /// How the sources of names are doing.
    pub sources: &'a BTreeMap<Kind, Status>,
    /// What the conntrack follower knows.
    pub conntrack: &'a conntrack::Snapshot,
    /// The latest survey.
    pub surveyed: Option<&'a Surveyed>,
    /// The drop log's records, oldest first.
    pub records: &'a [Arc<DropRecord>],
    /// This node's name.
    pub node_name: &'a str,
}

/// All evidence but what the board has: see [`add_board`].
#[must_use]
pub fn gather(held: &Held<'_>) -> Evidence {
    let (age, before) = held.history.window(held.now);
    let tally = Tally::take(held.families);
    let since = |what| tally.since(what, before);
    let opened = |what| since(what).map(|(key, n)| (key[0].clone(), n)).collect();
    let (flagged, judged) = counted::flagged(held.families);
    let mut evidence = Evidence {
        schema: SCHEMA,
        taken_unix_s: unix_seconds(),
        window_s: age.as_secs_f64(),
        agent: agent(held),
        node: node(held),
        pod_ips: pod_ips(held),
        balanced: balanced(held),
        policies: policies(held),
        denials: counted::denials(held, &tally, before),
        gaps: counted::gaps(&tally, before),
        drops: counted::drops(held, &tally, before),
        conntrack: conntrack(held),
        snat_ports: snat_ports(held.conntrack),
        snat_users: counted::users(held.families),
        opened: opened(What::Opened),
        opened_to: opened(What::OpenedTo),
        anomalies: counted::anomalies(&tally, before),
        scope_bytes: opened(What::Scope),
        cross_zone: counted::first_rows(counted::pairs(&tally, What::CrossZone, before)),
        unanswered: counted::pairs(&tally, What::Unanswered, before),
        probes: counted::probes(&tally, before),
        nat_flagged: flagged,
        nat_judged: judged,
    };
    evidence.agent.overflow = since(What::Overflow)
        .map(|(_, count)| count)
        .next()
        .unwrap_or_default();
    evidence
}

/// Adds what the board knows: how the programs and the life are doing.
pub fn add_board(evidence: &mut Evidence, status: &Value, programs: &[ProgramStatus]) {
    let agent = &mut evidence.agent;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    VERSION.clone_into(&mut agent.version);
    agent.uptime_s = status["uptime_seconds"].as_u64().unwrap_or_default();
    agent.ready = status["ready"] == true;
    agent.not_ready_because = text(&status["not_ready_because"]);
    agent.sweep_error = text(&status["sweep_error"]);
    let kubernetes = &status["sources"]["kubernetes"];
    agent.asks_kubernetes = kubernetes["asked"] == true;
    agent.asks_not_because = text(&kubernetes["because"]);
    let watched = status["interfaces"]["watched"].as_array();
    agent.unattached = watched
        .into_iter()
        .flatten()
        .filter(|watched| watched["attach"] != "attached")
        .map(|watched| {
            let part = |key: &str| text(&watched[key]).unwrap_or_default();
            let (name, attach, reason) = (part("name"), part("attach"), part("reason"));
            format!("{name}: {attach} {reason}").trim_end().to_owned()
        })
        .collect();
    agent.programs = programs.iter().map(program).collect();
}

fn program(status: &ProgramStatus) -> Program {
    Program {
        program: status.program.clone(),
        hook: status.hook.clone(),
        up: status.up,
        state: match &status.state {
            ProgramState::Loaded => "loaded, attached to nothing".to_owned(),
            ProgramState::Attached => "attached".to_owned(),
            ProgramState::Unsupported(why) => format!("not supported: {why}"),
            ProgramState::Failed(why) => format!("failed: {why}"),
        },
    }
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "these gauges are counts of things"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

fn gauge(families: &[MetricFamily], name: &str) -> u64 {
    let first = gauges(families, name, &[]).next();
    first.map_or(0, |(_, value)| whole(value))
}

fn agent(held: &Held<'_>) -> Agent {
    Agent {
        flow_cells: gauge(held.families, "aksnet_agent_flow_map_entries"),
        flow_cells_limit: gauge(held.families, "aksnet_agent_flow_map_limit"),
        sources: held
            .sources
            .iter()
            .map(|(kind, status)| {
                let source = Source {
                    synced: status.synced,
                    connected: status.connected,
                    last_error: status.last_error.clone(),
                };
                (kind.name().to_owned(), source)
            })
            .collect(),
        known_node: held
            .index
            .synced(Kind::Node)
            .then(|| held.index.this_node().is_some()),
        ..Agent::default()
    }
}

fn fact<T>(finding: &Finding<T>, value: impl Fn(&T) -> String) -> Fact {
    Fact {
        value: finding.value.as_ref().map(value),
        because: finding.evidence.clone(),
    }
}

fn node(held: &Held<'_>) -> Node {
    let mut node = Node {
        name: held.node_name.to_owned(),
        ..Node::default()
    };
    let Some(surveyed) = held.surveyed else {
        return node;
    };
    let Found {
        cni,
        proxy_mode,
        policy_engine,
        masquerade,
        zone,
        kernel,
        ..
    } = &surveyed.found;
    let name = |value: &&'static str| (*value).to_owned();
    node.cni = fact(cni, name);
    node.policy_engine = fact(policy_engine, name);
    node.proxy_mode = fact(proxy_mode, name);
    node.zone = fact(zone, String::clone);
    node.kernel.clone_from(kernel);
    node.standard_balancer = surveyed.standard_balancer;
    node.masquerade = Masquerade {
        known: masquerade.value.is_some(),
        because: masquerade.evidence.clone(),
        ..Masquerade::default()
    };
    if let Some(Some(found)) = &masquerade.value {
        node.masquerade.agent = Some(found.agent.to_owned());
        found.chain.clone_into(&mut node.masquerade.chain);
        node.masquerade.spared = found.spared.iter().map(ToString::to_string).collect();
        node.masquerade.random_fully = found.random_fully;
    }
    node
}

fn pod_ips(held: &Held<'_>) -> PodIps {
    let Some(surveyed) = held.surveyed else {
        return PodIps::default();
    };
    let ips = &surveyed.pod_ips;
    PodIps {
        known: true,
        accounts: ips
            .accounts
            .iter()
            .map(|account| Account {
                source: account.source.to_owned(),
                in_use: account.in_use,
                limit: account.limit,
                leaked: account.leaked,
            })
            .collect(),
        skipped: ips
            .skipped
            .iter()
            .map(|(source, why)| ((*source).to_owned(), why.clone()))
            .collect(),
        leaks: ips
            .leaks
            .iter()
            .map(|leak| Leak {
                address: leak.address,
                file: leak.file.display().to_string(),
                container: leak.container.clone(),
                since_unix_s: leak.since_unix_s,
            })
            .collect(),
    }
}

/// The name under which a pending service is remembered.
#[must_use]
pub fn service_key(service: &Service) -> (String, String) {
    (service.namespace.to_string(), service.name.to_string())
}

fn balanced(held: &Held<'_>) -> Option<Vec<Balanced>> {
    if !held.index.synced(Kind::Service) {
        return None;
    }
    let services = held.index.services().filter(|s| s.load_balancer);
    let mut balanced: Vec<Balanced> = services
        .map(|service| {
            let pending = !service.has_ingress;
            let (waited, before) = held.history.pending(held.now, &service_key(service));
            Balanced {
                service: format!("{}/{}", service.namespace, service.name),
                pending,
                pending_s: if pending { waited.as_secs() } else { 0 },
                pending_before: pending && before,
                local: service.local,
                frontends: service.frontends.iter().map(|a| (*a).into()).collect(),
                node_ports: service
                    .ports
                    .iter()
                    .map(|port| port.node_port)
                    .filter(|port| *port != 0)
                    .collect(),
                health_check_port: service.health_check_port,
            }
        })
        .collect();
    balanced.sort_by(|a, b| a.service.cmp(&b.service));
    Some(balanced)
}

fn policies(held: &Held<'_>) -> Option<Policies> {
    let index = held.index;
    // Without pods of its own an agent does not know what selects them.
    if !index.synced(Kind::Policy) || !index.synced(Kind::LocalPod) {
        return None;
    }
    let policies = index.policies();
    let mut selecting: BTreeMap<String, u64> = BTreeMap::new();
    for pod in index.pods_on_node() {
        if pod.host_network || pod.finished {
            continue;
        }
        let Some(address) = pod.addresses.first() else {
            continue;
        };
        let Some(Who::Pod(party)) = index.party(*address, held.moment) else {
            continue;
        };
        let mut names: Vec<String> = [Side::Ingress, Side::Egress]
            .into_iter()
            .flat_map(|side| policies.isolating(&party, side, When::At(held.moment)))
            .map(|version| format!("{}/{}", version.policy.namespace, version.policy.name))
            .collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            *selecting.entry(name).or_default() += 1;
        }
    }
    Some(Policies {
        known: policies.len() as u64,
        selecting,
    })
}

fn conntrack(held: &Held<'_>) -> Conntrack {
    let snapshot = held.conntrack;
    let counters = &snapshot.counters;
    Conntrack {
        table_known: snapshot.table_known,
        statistics_known: snapshot.statistics_known,
        entries: snapshot.size.entries,
        limit: snapshot.size.limit,
        insert_failed: held
            .history
            .kernel(counters.insert_failed, |c| c.insert_failed),
        drop: held.history.kernel(counters.drop, |c| c.drop),
        early_drop: held.history.kernel(counters.early_drop, |c| c.early_drop),
    }
}

#[expect(clippy::cast_precision_loss, reason = "ports are far fewer than 2^52")]
fn snat_ports(snapshot: &conntrack::Snapshot) -> Option<Vec<Ports>> {
    let node = snapshot.ports.as_ref()?.iter().map(|used| Ports {
        of: "node".to_owned(),
        protocol: protocol_name(used.protocol).into_owned(),
        family: family_name(used.family).to_owned(),
        in_use: used.in_use,
        limit: used.limit,
        saturation: used.saturation,
    });
    let limit = snapshot.azure_limit;
    let azure = snapshot.azure.iter().flatten().filter_map(|used| {
        let limit = u64::from(limit?);
        Some(Ports {
            of: "azure".to_owned(),
            protocol: protocol_name(used.protocol).into_owned(),
            family: "ipv4".to_owned(),
            in_use: used.in_use,
            limit,
            saturation: used.in_use as f64 / limit.max(1) as f64,
        })
    });
    Some(node.chain(azure).collect())
}

//! Where the agent's life posts how it is doing, and the admin server and the socket read it. What is
//! posted is plain and small; nobody who reads can hold up the life.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    attachments::Attachments,
    bpf::status::ProgramStatus,
    cli::{REVISION, VERSION},
    config::Effective,
    live::Health,
    node::{Node, knowledge::What},
};

/// A life that has not turned for so long beyond its interval is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// Why the agent is not ready yet, or any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet, or not at the moment.
    Waiting(String),
    /// Programs are attached, and a first sweep is done.
    Ready,
}

struct Posted {
    readiness: Readiness,
    beat: Instant,
    programs: Vec<ProgramStatus>,
    interfaces: Value,
    plan: Value,
    survey: Value,
    sources: Value,
    tables: Value,
    sweep_error: Option<String>,
}

/// The board.
pub struct Board {
    started: Instant,
    config: Value,
    stuck: Duration,
    posted: Mutex<Posted>,
    sweeps: watch::Sender<u64>,
}

impl Board {
    /// An empty one.
    #[must_use]
    pub fn new(effective: &Effective) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            config: effective.to_json(),
            stuck: STUCK + effective.config.interval,
            posted: Mutex::new(Posted {
                readiness: Readiness::Waiting("starting".to_owned()),
                beat: now,
                programs: Vec::new(),
                interfaces: Value::Null,
                plan: Value::Null,
                survey: Value::Null,
                sources: Value::Null,
                tables: Value::Null,
                sweep_error: None,
            }),
            sweeps: watch::Sender::new(0),
        }
    }

    fn posted(&self) -> MutexGuard<'_, Posted> {
        // Fields are replaced whole, so what a panicking writer left is still good.
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts what was found and how it is attached.
    pub fn post_node(&self, node: &Node, attachments: &Attachments, programs: Vec<ProgramStatus>) {
        let interfaces = interfaces(node, attachments);
        let plan = plan(node);
        let mut posted = self.posted();
        posted.interfaces = interfaces;
        posted.plan = plan;
        posted.programs = programs;
    }

    /// Posts what a survey of the node says.
    pub fn post_survey(&self, survey: Value) {
        self.posted().survey = survey;
    }

    /// Posts how the sources of names and translations are doing.
    pub fn post_sources(&self, sources: Value) {
        self.posted().sources = sources;
    }

    /// Posts how the programs are doing.
    pub fn post_programs(&self, programs: Vec<ProgramStatus>) {
        self.posted().programs = programs;
    }

    /// Posts the outcome of a sweep: how full the tables are, or why it failed.
    pub fn post_sweep(&self, outcome: Result<Value, String>) {
        let mut posted = self.posted();
        match outcome {
            Ok(tables) => {
                posted.tables = tables;
                posted.sweep_error = None;
            }
            Err(error) => posted.sweep_error = Some(error),
        }
        drop(posted);
        self.sweeps.send_modify(|sweeps| *sweeps += 1);
    }

    /// How many sweeps there were, failed ones included, and word of each further one.
    pub fn sweeps(&self) -> watch::Receiver<u64> {
        self.sweeps.subscribe()
    }

    /// Posts whether the agent is ready. True if that is news.
    pub fn post_readiness(&self, readiness: Readiness) -> bool {
        let mut posted = self.posted();
        let news = posted.readiness != readiness;
        posted.readiness = readiness;
        news
    }

    /// The life has turned.
    pub fn beat(&self) {
        self.posted().beat = Instant::now();
    }

    /// Whether the agent is ready.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.posted().readiness.clone()
    }

    /// Whether the life still turns.
    ///
    /// # Errors
    /// Says for how long it has not.
    pub fn alive(&self) -> Result<(), String> {
        let still = self.posted().beat.elapsed();
        if still < self.stuck {
            Ok(())
        } else {
            Err(format!(
                "the agent's loop has not turned for {} s",
                still.as_secs()
            ))
        }
    }

    /// How each program is doing.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramStatus> {
        self.posted().programs.clone()
    }

    /// In short, for those who look at flows.
    #[must_use]
    pub fn health(&self) -> Health {
        let posted = self.posted();
        let (ready, not_ready_because) = match &posted.readiness {
            Readiness::Ready => (true, String::new()),
            Readiness::Waiting(why) => (false, why.clone()),
        };
        Health {
            version: VERSION.to_owned(),
            revision: REVISION.to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready,
            not_ready_because,
            sweeps: *self.sweeps.borrow(),
            sweep_error: posted.sweep_error.clone().unwrap_or_default(),
        }
    }

    /// All of it, for `/status`.
    #[must_use]
    pub fn status(&self) -> Value {
        let posted = self.posted();
        let (ready, reason) = match &posted.readiness {
            Readiness::Ready => (true, None),
            Readiness::Waiting(why) => (false, Some(why)),
        };
        json!({
            "version": VERSION,
            "revision": REVISION,
            "uptime_seconds": self.started.elapsed().as_secs(),
            "ready": ready,
            "not_ready_because": reason,
            "programs": posted.programs,
            "interfaces": posted.interfaces,
            "tables": posted.tables,
            "sweeps": *self.sweeps.borrow(),
            "sweep_error": posted.sweep_error,
            "node": posted.survey,
            "sources": posted.sources,
            "plan": posted.plan,
            "config": self.config,
        })
    }
}

fn interfaces(node: &Node, attachments: &Attachments) -> Value {
    let watched: Vec<Value> = node
        .watched
        .iter()
        .map(|w| {
            let i = &w.interface;
            let state = attachments.states().find(|(a, _)| a.index == i.index);
            let mut shown = json!({
                "index": i.index,
                "name": i.name,
                "role": i.role.name(),
                "link": format!("{:?}", i.link).to_lowercase(),
                "because": w.why,
            });
            let state = state.and_then(|(_, s)| serde_json::to_value(s).ok());
            if let (Some(shown), Some(Value::Object(state))) = (shown.as_object_mut(), state) {
                shown.extend(state);
            }
            shown
        })
        .collect();
    let passed_over: Vec<Value> = node
        .passed_over
        .iter()
        .map(|p| json!({"name": p.name, "because": p.why}))
        .collect();
    json!({"watched": watched, "passed_over": passed_over})
}

/// What the node knows of addresses. Of single pods, how many: `/status` is for whoever reaches the port.
fn plan(node: &Node) -> Value {
    let (pods, others): (Vec<_>, Vec<_>) = node
        .facts
        .iter()
        .partition(|fact| matches!(fact.what, What::LocalPod(_)));
    let mut shown: Vec<Value> = others
        .iter()
        .map(|f| json!({"is": f.what.name(), "net": f.net, "source": f.source}))
        .collect();
    if let Some(pod) = pods.first() {
        let v4 = pods.iter().filter(|f| f.net.addr().is_ipv4()).count();
        shown.push(json!({
            "is": pod.what.name(),
            "addresses": {"v4": v4, "v6": pods.len() - v4},
            "source": "routes to single addresses on pods' interfaces",
        }));
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attachments::tests::Fake,
        bpf::{attach_error::AttachError, datapath::Datapath},
        config::{Config, merge},
        node,
    };

    #[test]
    fn status_tells_programs_interfaces_plan_and_config() {
        let effective = merge::merge(vec![]).unwrap();
        let board = Board::new(&effective);
        let node = Node::describe(
            &node::tests::kubenet(),
            &Config::default(),
            "aks-1",
            &node::Context::default(),
        );
        let mut fake = Fake::default();
        fake.answer("veth99887766", AttachError::Rejected("no room".into()));
        let mut attachments = Attachments::default();
        attachments.reconcile(&mut fake, node.interfaces(), &[].into(), Instant::now());
        board.post_node(&node, &attachments, fake.programs());
        board.post_sweep(Ok(json!({"flows": {"entries": 3, "limit": 65536}})));
        let status = board.status();
        assert_eq!(status["ready"], false);
        assert_eq!(status["not_ready_because"], "starting");
        assert_eq!(status["programs"][0]["program"], "enter");
        assert_eq!(status["programs"][0]["state"], "attached");
        let watched = &status["interfaces"]["watched"];
        assert_eq!(watched[0]["name"], "eth0");
        assert_eq!(watched[0]["role"], "uplink");
        assert_eq!(watched[0]["attach"], "attached");
        assert_eq!(watched[2]["attach"], "rejected");
        assert_eq!(watched[2]["reason"], "no room");
        assert_eq!(status["interfaces"]["passed_over"][2]["name"], "cbr0");
        assert_eq!(status["tables"]["flows"]["entries"], 3);
        assert_eq!(status["config"]["listen"]["origin"], "default");
        let plan = status["plan"].as_array().unwrap();
        assert!(plan.contains(&json!({
            "is": "local_pod_cidr", "net": "10.244.0.0/24", "source": "subnet of bridge cbr0"
        })));
    }

    #[test]
    fn status_counts_pods_and_does_not_list_their_addresses() {
        let mut node = Node::describe(
            &node::tests::kubenet(),
            &Config::default(),
            "aks-1",
            &node::Context::default(),
        );
        for pod in ["10.244.0.7/32", "10.244.0.8/32", "fd00::7/128"] {
            node.facts.push(node::knowledge::Fact {
                what: What::LocalPod(9),
                net: pod.parse().unwrap(),
                source: "route on azv1".to_owned(),
            });
        }
        let shown = plan(&node);
        assert!(!shown.to_string().contains("10.244.0.7"), "{shown}");
        let of = |is: &str| {
            let plan = shown.as_array().unwrap();
            plan.iter().find(|fact| fact["is"] == is).cloned().unwrap()
        };
        assert_eq!(of("local_pod")["addresses"], json!({"v4": 2, "v6": 1}));
        assert!(of("local_pod_cidr")["net"].is_string());
    }
}

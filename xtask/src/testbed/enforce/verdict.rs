//! The *verdict program*: what kindnet and kube-network-policies run on the node. It answers a queue by the policies it
//! was told of, and counts what it denies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use super::flow::Flow;
use super::nfqueue::{Answer, Queue};
use super::queue;
use super::{Isolation, Side};
use crate::testbed::lock;
use crate::testbed::netns::Netns;

/// How long it waits for packets before it looks whether it is to end.
const ROUND: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    policies: Mutex<Vec<Isolation>>,
    denied: Mutex<BTreeMap<(String, Side), u64>>,
    total: Mutex<BTreeMap<Side, u64>>,
}

/// A running program. It ends when dropped.
#[derive(Debug)]
pub struct VerdictProgram {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl VerdictProgram {
    /// Starts it on a node. Without policies it accepts everything.
    ///
    /// # Errors
    /// When the queue cannot be bound.
    pub fn start(netns: &Netns, queue: queue::Queue) -> Result<Self> {
        let bound = Queue::bind(netns, queue.number)?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new()
            .name(format!("queue {}", queue.number))
            .spawn({
                let shared = Arc::clone(&shared);
                move || serve(bound, &shared)
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// From now on it decides by these. What it has counted is forgotten.
    pub fn decide_by(&self, policies: Vec<Isolation>) {
        *lock(&self.shared.policies) = policies;
        lock(&self.shared.denied).clear();
        lock(&self.shared.total).clear();
    }

    /// The packets denied on a side: by this policy (`namespace/policy`, alone or with others), or in all.
    #[must_use]
    pub fn denied(&self, policy: Option<&str>, side: Side) -> u64 {
        let count = match policy {
            Some(policy) => lock(&self.shared.denied)
                .get(&(policy.to_owned(), side))
                .copied(),
            None => lock(&self.shared.total).get(&side).copied(),
        };
        count.unwrap_or_default()
    }
}

fn serve(mut bound: Queue, shared: &Shared) -> Result<()> {
    while !shared.stop.load(Ordering::SeqCst) {
        for waiting in bound.receive(ROUND)? {
            // What it cannot read it lets pass, as the engine does in its default, fail-open.
            let denied = Flow::parse(&waiting.packet)
                .map(|flow| flow.denied_by(&lock(&shared.policies)))
                .unwrap_or_default();
            // Counted first: whoever notices the answer finds it counted.
            let answer = if let Some((_, side)) = denied.first() {
                *lock(&shared.total).entry(*side).or_default() += 1;
                for by in denied {
                    *lock(&shared.denied).entry(by).or_default() += 1;
                }
                Answer::Drop
            } else {
                Answer::Accept
            };
            bound.answer(&waiting, answer)?;
        }
    }
    Ok(())
}

impl Drop for VerdictProgram {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

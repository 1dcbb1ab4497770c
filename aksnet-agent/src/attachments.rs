//! Which interfaces the programs are attached to, and what to do about those they are not. Takes the wanted
//! set and the time, drives a [`Datapath`]; no netlink, no clock of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    bpf::{attach_error::AttachError, datapath::Datapath},
    node::interface::{self, Interface},
};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(1);

/// How it stands with one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "attach", rename_all = "snake_case")]
pub enum State {
    /// Both programs are attached.
    Attached,
    /// They never can be.
    Unsupported {
        /// What is missing.
        reason: String,
    },
    /// The kernel refused, and will be asked again.
    Rejected {
        /// What it said.
        reason: String,
        /// How often it was asked.
        attempts: u32,
        /// When it will be asked again.
        #[serde(skip)]
        retry: Instant,
    },
}

/// All watched interfaces.
#[derive(Debug, Default)]
pub struct Attachments {
    interfaces: BTreeMap<u32, (Interface, State)>,
}

impl Attachments {
    /// Detaches from what is not wanted any more and attaches to what is new. One interface's failure never
    /// stops the others. `deleted`: see [`interface::changes`].
    pub fn reconcile<'a>(
        &mut self,
        datapath: &mut dyn Datapath,
        wanted: impl IntoIterator<Item = &'a Interface>,
        deleted: &BTreeSet<u32>,
        now: Instant,
    ) {
        let present = self.interfaces.values().map(|(i, _)| i);
        let changes = interface::changes(present, wanted, deleted);
        for index in changes.detach {
            datapath.detach(index);
            if let Some((interface, _)) = self.interfaces.remove(&index) {
                tracing::debug!("detached from {} ({index})", interface.name);
            }
        }
        for interface in changes.attach {
            self.attach(datapath, interface, 0, now);
        }
    }

    /// Asks again for the interfaces whose time has come.
    pub fn retry(&mut self, datapath: &mut dyn Datapath, now: Instant) {
        let due: Vec<(Interface, u32)> = self
            .interfaces
            .values()
            .filter_map(|(interface, state)| match state {
                State::Rejected {
                    attempts, retry, ..
                } if *retry <= now => Some((interface.clone(), *attempts)),
                _ => None,
            })
            .collect();
        for (interface, attempts) in due {
            self.attach(datapath, interface, attempts, now);
        }
    }

    /// When [`Attachments::retry`] has something to do next.
    #[must_use]
    pub fn next_retry(&self) -> Option<Instant> {
        self.interfaces
            .values()
            .filter_map(|(_, state)| match state {
                State::Rejected { retry, .. } => Some(*retry),
                _ => None,
            })
            .min()
    }

    fn attach(
        &mut self,
        datapath: &mut dyn Datapath,
        interface: Interface,
        attempts: u32,
        now: Instant,
    ) {
        let Interface {
            index, ref name, ..
        } = interface;
        let state = match datapath.attach(&interface) {
            Ok(()) => {
                tracing::info!("watching {name} ({index}) as {}", interface.role.name());
                State::Attached
            }
            Err(AttachError::InterfaceGone) => {
                tracing::debug!("{name} ({index}) was gone before it could be watched");
                self.interfaces.remove(&index);
                return;
            }
            Err(AttachError::Unsupported(reason)) => {
                tracing::warn!("cannot watch {name} ({index}): {reason}");
                State::Unsupported { reason }
            }
            Err(AttachError::Rejected(reason)) => {
                let wait = LAST_RETRY.min(FIRST_RETRY * 2u32.saturating_pow(attempts));
                tracing::warn!("cannot watch {name} ({index}), again in {wait:?}: {reason}");
                State::Rejected {
                    reason,
                    attempts: attempts + 1,
                    retry: now + wait,
                }
            }
        };
        self.interfaces.insert(index, (interface, state));
    }

    /// Detaches from everything.
    pub fn detach_all(&mut self, datapath: &mut dyn Datapath) {
        for index in std::mem::take(&mut self.interfaces).into_keys() {
            datapath.detach(index);
        }
    }

    /// Each interface and how it stands with it.
    pub fn states(&self) -> impl Iterator<Item = (&Interface, &State)> {
        self.interfaces.values().map(|(i, s)| (i, s))
    }

    /// `None` if at least one interface is attached, or none is wanted; else why there is nothing to see.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let mut reason = None;
        for (interface, state) in self.states() {
            let why = match state {
                State::Attached => return None,
                State::Unsupported { reason } | State::Rejected { reason, .. } => reason.clone(),
            };
            reason.get_or_insert(format!(
                "not attached to any interface; {}: {why}",
                interface.name
            ));
        }
        reason
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bpf::status::{ProgramState, ProgramStatus};
    use aksnet_common::{packet, stats::Role};
    use std::sync::{Arc, Mutex};

    /// Answers as it is told, and remembers what it was asked.
    #[derive(Clone, Default)]
    pub(crate) struct Fake(pub(crate) Arc<Mutex<Inner>>);

    #[derive(Default)]
    pub(crate) struct Inner {
        pub(crate) answers: BTreeMap<String, AttachError>,
        pub(crate) attached: BTreeMap<u32, String>,
        pub(crate) log: Vec<String>,
    }

    impl Fake {
        pub(crate) fn answer(&self, name: &str, error: AttachError) {
            self.0
                .lock()
                .unwrap()
                .answers
                .insert(name.to_owned(), error);
        }

        pub(crate) fn attached(&self) -> Vec<String> {
            self.0.lock().unwrap().attached.values().cloned().collect()
        }

        pub(crate) fn log(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap().log)
        }
    }

    impl Datapath for Fake {
        fn attach(&mut self, interface: &Interface) -> Result<(), AttachError> {
            let mut inner = self.0.lock().unwrap();
            inner.log.push(format!("+{}", interface.name));
            if let Some(error) = inner.answers.get(&interface.name) {
                return Err(error.clone());
            }
            inner
                .attached
                .insert(interface.index, interface.name.clone());
            Ok(())
        }

        fn detach(&mut self, ifindex: u32) {
            let mut inner = self.0.lock().unwrap();
            inner.log.push(format!("-{ifindex}"));
            inner.attached.remove(&ifindex);
        }

        fn programs(&self) -> Vec<ProgramStatus> {
            let interfaces = self.0.lock().unwrap().attached.len();
            vec![ProgramStatus {
                program: "enter".to_owned(),
                hook: "tcx_ingress".to_owned(),
                state: ProgramState::Attached,
                up: interfaces > 0,
                interfaces,
            }]
        }
    }

    fn pod(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            role: Role::Pod,
            link: packet::Link::Ethernet,
            bridge: None,
        }
    }

    #[test]
    fn one_failure_does_not_stop_the_others() {
        let mut fake = Fake::default();
        fake.answer("b", AttachError::Rejected("no room".into()));
        fake.answer("c", AttachError::InterfaceGone);
        let mut all = Attachments::default();
        let wanted = [pod(1, "a"), pod(2, "b"), pod(3, "c"), pod(4, "d")];
        all.reconcile(&mut fake, &wanted, &BTreeSet::new(), Instant::now());
        assert_eq!(fake.attached(), ["a", "d"]);
        // What is gone is not remembered: should the name come back, it is new.
        assert_eq!(all.states().count(), 3);
        assert_eq!(all.trouble(), None);
    }

    #[test]
    fn what_was_rejected_is_tried_again_ever_more_rarely() {
        let mut fake = Fake::default();
        fake.answer("a", AttachError::Rejected("busy".into()));
        let mut all = Attachments::default();
        let mut now = Instant::now();
        all.reconcile(&mut fake, &[pod(1, "a")], &BTreeSet::new(), now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let next = all.next_retry().unwrap();
            waits.push((next - now).as_secs());
            all.retry(
                &mut fake,
                next.checked_sub(Duration::from_millis(1)).unwrap(),
            );
            now = next;
            all.retry(&mut fake, now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(fake.log().len(), 9);
        assert!(all.trouble().unwrap().ends_with("a: busy"));
        fake.0.lock().unwrap().answers.clear();
        all.retry(&mut fake, all.next_retry().unwrap());
        assert_eq!(
            (fake.attached(), all.next_retry()),
            (vec!["a".to_owned()], None)
        );
    }

    #[test]
    fn what_cannot_be_is_not_tried_again() {
        let mut fake = Fake::default();
        fake.answer("a", AttachError::Unsupported("no clsact".into()));
        let mut all = Attachments::default();
        all.reconcile(&mut fake, &[pod(1, "a")], &BTreeSet::new(), Instant::now());
        assert_eq!(all.next_retry(), None);
        assert!(all.trouble().is_some());
    }

    #[test]
    fn the_old_is_detached_before_the_new_is_attached() {
        let mut fake = Fake::default();
        let mut all = Attachments::default();
        let now = Instant::now();
        all.reconcile(
            &mut fake,
            &[pod(1, "a"), pod(2, "b")],
            &BTreeSet::new(),
            now,
        );
        fake.log();
        all.reconcile(
            &mut fake,
            &[pod(2, "b"), pod(3, "a")],
            &BTreeSet::from([2]),
            now,
        );
        assert_eq!(fake.log(), ["-1", "-2", "+b", "+a"]);
        all.detach_all(&mut fake);
        assert!(fake.attached().is_empty());
    }
}

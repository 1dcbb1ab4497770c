//! A *case*: the question about one client and one server, found in the scene. A question about a workload or a service
//! has a case for each of its pods.

use std::net::{IpAddr, Ipv4Addr};

use aksnet_common::packet::{ICMP, ICMPV6};

use super::{
    Scene,
    party::{Meant, Party, listed},
};
use crate::{
    exit::{Exit, Failure},
    explain::{question::Asked, report::outcome},
    policy::{
        engine::Engine,
        evaluate::Outcome,
        flow::{End, Flow, Pod as PolicyPod, Who},
        index::When,
    },
};

/// Not known.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Every case of a question.
#[derive(Debug)]
pub struct Cases<'s> {
    scene: &'s Scene,
    /// What was asked for.
    asked: (&'s str, &'s str),
    from: Vec<Party<'s>>,
    /// Each with its port.
    to: Vec<(Party<'s>, u16)>,
    protocol: u8,
    by_node_port: bool,
    /// What is to be known about the answer.
    pub notes: Vec<String>,
}

/// One client and one server.
#[derive(Clone, Copy, Debug)]
pub struct Case<'c> {
    scene: &'c Scene,
    from: &'c Party<'c>,
    to: &'c Party<'c>,
    protocol: u8,
    port: u16,
    by_node_port: bool,
}

impl Scene {
    /// Finds who is meant, and by which port.
    ///
    /// # Errors
    /// When a name is nobody's, or has no such port.
    pub fn cases<'s>(
        &'s self,
        from: &'s str,
        to: &'s str,
        asked: &Asked,
        by_node_port: bool,
    ) -> Result<Cases<'s>, Failure> {
        let mut notes = Vec::new();
        let mut cases = Cases {
            scene: self,
            asked: (from, to),
            from: self.clients(from, &mut notes)?,
            to: self.servers(to, asked, &mut notes)?,
            protocol: asked.protocol,
            by_node_port,
            notes,
        };
        if cases.pairs().any(|case| cases.is_left_out(&case)) {
            cases
                .notes
                .push("what a pod sends to itself is left out: it is always allowed".to_owned());
        }
        let parties = cases.from.iter().chain(cases.to.iter().map(|(to, _)| to));
        self.remark(parties, &mut cases.notes);
        Ok(cases)
    }

    /// What the answer leaves open.
    fn remark<'p>(&self, parties: impl Iterator<Item = &'p Party<'p>>, notes: &mut Vec<String>) {
        for party in parties {
            match &party.who {
                Meant::Node(None) => notes.push(format!(
                    "{} uses its node's network, and which node is not known: taken for another one than the pod's",
                    party.label
                )),
                Meant::Pod(pod) if !self.namespaces.contains_key(&pod.namespace) => notes.push(format!(
                    "namespace {} is not among the objects: of its labels only its name is known",
                    pod.namespace
                )),
                _ => {}
            }
        }
        notes.dedup();
        for (kind, count) in &self.unread {
            notes.push(format!("{count} of kind {kind}: not evaluated"));
        }
        if self.policies.is_empty() {
            notes.push("there is no network policy among the objects".to_owned());
        }
    }
}

impl Cases<'_> {
    fn pairs(&self) -> impl Iterator<Item = Case<'_>> {
        let with = move |from| {
            self.to.iter().map(move |(to, port)| Case {
                scene: self.scene,
                from,
                to,
                protocol: self.protocol,
                port: *port,
                by_node_port: self.by_node_port,
            })
        };
        self.from.iter().flat_map(with)
    }

    /// A pod always reaches itself; that is of interest only where nothing else is asked.
    fn is_left_out(&self, case: &Case<'_>) -> bool {
        self.from.len() + self.to.len() > 2 && case.flow().is_to_itself()
    }

    /// The first case, if the verdict is the same in all.
    ///
    /// # Errors
    /// When it is not; the error tells which pods differ.
    pub fn common(&self, engine: Engine) -> Result<Case<'_>, Failure> {
        let mut groups: Vec<(Outcome, Vec<Case<'_>>)> = Vec::new();
        for case in self.pairs().filter(|case| !self.is_left_out(case)) {
            let verdict = self
                .scene
                .policies
                .evaluate(&case.flow(), When::At(0), engine);
            let outcome = verdict.outcome();
            match groups.iter_mut().find(|(of, _)| *of == outcome) {
                Some((_, cases)) => cases.push(case),
                None => groups.push((outcome, vec![case])),
            }
        }
        if let [(_, cases)] = &*groups
            && let Some(first) = cases.first()
        {
            return Ok(*first);
        }
        let (from, to) = self.asked;
        let name = |case: &Case<'_>| match (self.from.len(), self.to.len()) {
            (1, _) => case.to.label.clone(),
            (_, 1) => case.from.label.clone(),
            _ => format!("{} -> {}", case.from.label, case.to.label),
        };
        let who = match (self.from.len(), self.to.len()) {
            (1, _) => format!("{to} stands"),
            (_, 1) => format!("{from} stands"),
            _ => format!("{from} and {to} stand"),
        };
        let verdicts = groups.iter().map(|(of, cases)| {
            let names = listed(cases.iter().map(name));
            format!("{}: {names}", outcome(*of))
        });
        let verdicts: Vec<String> = verdicts.collect();
        let verdicts = verdicts.join("; ");
        Err(Failure::new(
            Exit::Usage,
            format_args!(
                "{who} for several pods, and the verdict is not the same for all; {verdicts}; name one of them"
            ),
        ))
    }
}

impl<'c> Case<'c> {
    /// The flow that is asked about.
    #[must_use]
    pub fn flow(&self) -> Flow<'c> {
        let (src, dst) = self.addresses();
        Flow {
            src: self.end(self.from, self.to, src),
            dst: self.end(self.to, self.from, dst),
            protocol: match self.protocol {
                ICMP if self.to.addresses.first().is_some_and(IpAddr::is_ipv6) => ICMPV6,
                other => other,
            },
            port: self.port,
            by_node_port: self.by_node_port,
        }
    }

    /// An address of each, of one family if they share one.
    fn addresses(&self) -> (IpAddr, IpAddr) {
        let (from, to) = (&self.from.addresses, &self.to.addresses);
        for src in from {
            if let Some(dst) = to.iter().find(|dst| dst.is_ipv4() == src.is_ipv4()) {
                return (*src, *dst);
            }
        }
        let first = |all: &[IpAddr]| all.first().copied().unwrap_or(NO_ADDRESS);
        (first(from), first(to))
    }

    fn end(&self, party: &'c Party<'c>, other: &Party<'_>, address: IpAddr) -> End<'c> {
        let who = match &party.who {
            Meant::Pod(pod) => Who::Pod(PolicyPod {
                namespace: &pod.namespace,
                name: &pod.name,
                labels: &pod.labels,
                namespace_labels: self.scene.namespaces.get(&pod.namespace).map(|one| &**one),
                named_ports: Some(&pod.named_ports),
            }),
            Meant::UnknownPod => Who::UnknownPod,
            Meant::Node(node) => Who::Node {
                this: match (node, &other.who) {
                    (Some(node), Meant::Pod(pod)) => *pod.node == **node && !node.is_empty(),
                    _ => false,
                },
            },
            Meant::External => Who::External,
        };
        End { address, who }
    }
}

//! A *session*: what an agent told, as a file: lines of JSON, each complete by itself. `docs/records.md` has the format.

use std::{
    collections::BTreeSet,
    io::{BufRead, Read as _},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    droplog::DropRecord,
    escaped::Escaped,
    flowlog::FlowRecord,
    identify::{index::Index, object::Text},
    policy::model::Side,
};

// Writing it, so that it is whole whenever that ends.
pub mod writer;

/// The version of the format: what this one cannot read has another.
pub const VERSION: u32 = 1;
/// No line is longer; the head has a line for each name in the cluster.
const LONGEST: u64 = 256 << 20;

/// A line of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first.
    Session(Head),
    /// One connection.
    Flow(Box<FlowRecord>),
    /// Packets that were dropped.
    Drop(Box<DropRecord>),
    /// Records that were not written, as they came too fast.
    Missed(Missed),
    /// The last, unless the recorder was killed.
    End(Ending),
}

/// What a recording begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// [`VERSION`].
    pub format: u32,
    /// The agent's version and revision.
    pub agent: String,
    /// When it began; wall time, milliseconds since 1970.
    pub started_ms: u64,
    /// What the agent knows: names, policies, and as `/status` has it the node's findings and the address plan.
    pub knows: Value,
}

/// How many records are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// Flow records.
    pub flows: u64,
    /// Drops.
    pub drops: u64,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// When; wall time, milliseconds since 1970.
    pub ended_ms: u64,
    /// Why, in words.
    pub because: String,
    /// Flow records that were written.
    pub flows: u64,
    /// Drops that were written.
    pub drops: u64,
    /// Those that were not.
    pub missed: Missed,
}

/// What a session's head has of the names and policies that are known.
#[must_use]
pub fn of_index(index: &Index) -> Value {
    let text = |address: aksnet_common::flow::Addr| std::net::IpAddr::from(address).to_string();
    let pods = index.pods().map(|pod| {
        json!({
            "namespace": index.text(pod.namespace),
            "pod": index.text(pod.pod),
            "workload": index.text(pod.workload),
            "node": index.text(pod.node),
            "addresses": pod.addresses.iter().copied().map(text).collect::<Vec<_>>(),
        })
    });
    // Where the runtime alone tells of pods.
    let told: BTreeSet<(&str, &str)> = index
        .pods()
        .map(|pod| (index.text(pod.namespace), index.text(pod.pod)))
        .collect();
    let sandboxes = index
        .pods_on_node()
        .filter(|pod| !told.contains(&(&*pod.namespace, &*pod.name)))
        .map(|pod| {
            json!({
                "namespace": &*pod.namespace,
                "pod": &*pod.name,
                "workload": &*pod.workload,
                "node": &*pod.node,
                "addresses": pod.addresses.iter().copied().map(text).collect::<Vec<_>>(),
            })
        });
    let services = index.services().map(|service| {
        let addresses = service
            .cluster
            .iter()
            .chain(&service.frontends)
            .chain(&service.external);
        json!({
            "namespace": &*service.namespace,
            "service": &*service.name,
            "addresses": addresses.copied().map(text).collect::<Vec<_>>(),
        })
    });
    let nodes = index.nodes().map(|node| {
        json!({
            "node": &*node.name,
            "zone": &*node.zone,
            "addresses": node.addresses.iter().copied().map(text).collect::<Vec<_>>(),
        })
    });
    let policies = index.policies().iter().map(|version| &version.policy);
    let policies: BTreeSet<(Text, Text, bool, bool)> = policies
        .map(|policy| {
            let isolates = |side| policy.rules(side).is_some();
            let (ingress, egress) = (isolates(Side::Ingress), isolates(Side::Egress));
            (
                policy.namespace.clone(),
                policy.name.clone(),
                ingress,
                egress,
            )
        })
        .collect();
    let policies = policies.into_iter().map(|(namespace, name, ingress, egress)| {
        json!({"namespace": &*namespace, "name": &*name, "ingress": ingress, "egress": egress})
    });
    json!({
        "pods": pods.chain(sandboxes).collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
        "policies": policies.collect::<Vec<_>>(),
    })
}

/// Reads a session's lines, until one of them cannot be read.
///
/// # Errors
/// Which line is wrong, and how; what came before was taken.
pub fn read(mut input: impl BufRead, mut take: impl FnMut(Line)) -> Result<(), String> {
    let mut line = Vec::new();
    let mut number = 0_u64;
    loop {
        number += 1;
        line.clear();
        let read = input.by_ref().take(LONGEST).read_until(b'\n', &mut line);
        match read {
            Ok(0) if number == 1 => return Err("it is empty".to_owned()),
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(format!("line {number}: it cannot be read further: {error}")),
        }
        if line.last() != Some(&b'\n') {
            return Err(format!("line {number}: it is cut off"));
        }
        let parsed: Line = match serde_json::from_slice(&line) {
            Ok(parsed) => parsed,
            Err(error) => {
                return Err(format!(
                    "line {number}: it is no line of a recorded session: {}",
                    Escaped(&error.to_string())
                ));
            }
        };
        match (&parsed, number) {
            (Line::Session(head), 1) if head.format != VERSION => {
                let format = head.format;
                return Err(format!(
                    "line 1: the format's version is {format}, and this agent reads {VERSION}: use the version that \
                     wrote it ({})",
                    Escaped(&head.agent)
                ));
            }
            (Line::Session(_), 1) => {}
            (_, 1) => return Err("line 1: it does not begin as a recorded session does".to_owned()),
            (Line::Session(_), _) => return Err(format!("line {number}: another session begins")),
            _ => {}
        }
        take(parsed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{droplog, flowlog};

    fn head() -> Line {
        Line::Session(Head {
            format: VERSION,
            agent: "0.1.0 (abc)".to_owned(),
            started_ms: 5,
            knows: json!({"node": "n"}),
        })
    }

    fn text(lines: &[Line]) -> String {
        lines
            .iter()
            .map(|line| serde_json::to_string(line).unwrap() + "\n")
            .collect()
    }

    fn all(text: &[u8]) -> (Vec<Line>, Result<(), String>) {
        let mut lines = Vec::new();
        let read = read(text, |line| lines.push(line));
        (lines, read)
    }

    #[test]
    fn lines_read_back() {
        let lines = [
            head(),
            Line::Flow(Box::new(flowlog::record::tests::record())),
            Line::Drop(Box::new(droplog::record::tests::record())),
            Line::Missed(Missed { flows: 1, drops: 2 }),
        ];
        assert_eq!(all(text(&lines).as_bytes()), (lines.to_vec(), Ok(())));
        assert!(text(&lines).starts_with(r#"{"session":{"format":1,"#));
    }

    #[test]
    fn a_file_that_is_wrong_says_where_and_gives_what_came_before() {
        let good = text(&[head(), Line::Missed(Missed::default())]);
        let cut = &good[..good.len() - 3];
        let (lines, error) = all(cut.as_bytes());
        assert_eq!(
            (lines.len(), error),
            (1, Err("line 2: it is cut off".to_owned()))
        );
        let newer = good.replace(r#""format":1"#, r#""format":2"#);
        assert!(
            all(newer.as_bytes())
                .1
                .unwrap_err()
                .contains("version is 2, and this agent reads 1")
        );
        assert!(all(b"").1.unwrap_err().contains("empty"));
        assert!(
            all(b"{}\n")
                .1
                .unwrap_err()
                .starts_with("line 1: it is no line")
        );
        let error = all(b"{\"two\\nlines\\u001b[2J\":1}\n").1.unwrap_err();
        assert!(error.contains("`two\\nlines\\u{1b}[2J`"), "{error}");
        assert!(
            all(text(&[Line::Missed(Missed::default())]).as_bytes())
                .1
                .is_err()
        );
        assert!(
            all(text(&[head(), head()]).as_bytes())
                .1
                .unwrap_err()
                .contains("another session")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _either = all(&bytes);
            let mut after_head = text(&[head()]).into_bytes();
            after_head.extend(bytes);
            prop_assert!(!all(&after_head).0.is_empty());
        }
    }
}

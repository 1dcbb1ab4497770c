//! `aksnet-agent replay`: the flows of a capture or of a recorded session, without privilege.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, BufRead, Read, Write},
};

use serde::Serialize;
use serde_json::json;

use super::flows;
use crate::{
    capture::{
        file::{self, Ended, Input},
        replay::{Replay, Tally, judge},
    },
    classify::Whois,
    cli,
    config::Config,
    exit::{Exit, Failure, OrExit as _},
    explain::manifest,
    flowlog::{Filter, FlowRecord},
    identify::{
        index::Index,
        object::{Kind, Object},
        reduce::Reducer,
    },
    node::{Context, Node, Snapshot},
    session::{self, Line},
};

/// Shows the flows of a file, and what they come to.
///
/// # Errors
/// See `docs/exit-codes.md`. What could be read is shown first.
pub fn replay(args: &cli::Replay, config: &Config) -> Result<(), Failure> {
    let name = args.file.display().to_string();
    let index = names(args, config)?;
    let unreadable =
        |error: io::Error| Failure::new(Exit::NoInput, format_args!("cannot read {name}: {error}"));
    let input: Box<dyn Read + Send> = if args.file.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        let about = std::fs::metadata(&args.file).map_err(unreadable)?;
        if about.is_dir() {
            return Err(unreadable(io::ErrorKind::IsADirectory.into()));
        }
        Box::new(File::open(&args.file).map_err(unreadable)?)
    };
    let mut shown = Shown {
        out: io::stdout().lock(),
        filter: args.filter.filter(),
        json: args.json,
        left: if args.summary {
            0
        } else {
            args.limit.unwrap_or(u64::MAX)
        },
        sums: Sums::default(),
        failed: None,
    };
    let trouble = match file::open(input) {
        Ok(Input::Session(lines)) => session(args, config, &index, lines, &mut shown),
        Ok(Input::Capture(input)) => capture(args, config, index, input, &mut shown),
        // A compressed file whose beginning is damaged.
        Err(error) => vec![format!("it cannot be read: {error}")],
    };
    shown.finish(&name)?;
    if trouble.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Data,
        format_args!("{name}: {}", trouble.join("; ")),
    ))
}

/// Plays a capture; what is wrong with it.
fn capture(
    args: &cli::Replay,
    config: &Config,
    index: Index,
    input: Box<dyn BufRead + Send>,
    shown: &mut Shown<impl Write>,
) -> Vec<String> {
    let mut replay = Replay::new(config, index, &args.node_address, args.engine);
    let ended = file::read(input, |item| {
        replay.take(&item, &mut |record| shown.record(&record));
    });
    replay.finish(&mut |record| shown.record(&record));
    let tally = replay.tally();
    let trouble = trouble(&tally, &ended);
    shown.sums.capture = Some(tally);
    trouble
}

fn trouble(tally: &Tally, ended: &Ended) -> Vec<String> {
    let mut trouble = Vec::new();
    if tally.beheaded > 0 {
        trouble.push(format!(
            "{} packets are cut off within their headers: capture with a larger snapshot length (tcpdump -s 128)",
            tally.beheaded
        ));
    }
    for (link_type, packets) in &tally.link_types {
        trouble.push(if *link_type == -1 {
            format!("{packets} packets have further link types")
        } else {
            format!(
                "{packets} packets have link type {link_type}, which is not read: capture Ethernet, raw IP or Linux cooked \
                 (tcpdump -i any)"
            )
        });
    }
    if ended.strays > 0 {
        trouble.push(format!(
            "{} packets are of interfaces that it does not describe",
            ended.strays
        ));
    }
    trouble.extend(ended.damaged.clone());
    trouble
}

/// Shows a recorded session; what is wrong with it.
fn session(
    args: &cli::Replay,
    config: &Config,
    index: &Index,
    lines: Box<dyn BufRead + Send>,
    shown: &mut Shown<impl Write>,
) -> Vec<String> {
    let node = Node::describe(
        &Snapshot::default(),
        config,
        &config.node_name,
        &Context::default(),
    );
    let whois = Whois {
        plan: &node.plan,
        index,
        translations: None,
    };
    let mut whole = false;
    let read = session::read(lines, |line| match line {
        Line::Session(head) => {
            shown.sums.session = Some(format!("{} on {}", head.agent, head.knows["node"]));
        }
        Line::Flow(mut record) => {
            judge(&mut record, &whois, args.engine);
            shown.record(&record);
        }
        Line::Drop(record) => {
            let json = args.json.then(|| json!({"drop": record}).to_string());
            shown.sums.drops += record.packets;
            shown.line(&json.unwrap_or_else(|| format!("drop {}", record.line())));
        }
        Line::Missed(missed) => shown.sums.missed += missed.flows + missed.drops,
        Line::End(_) => whole = true,
    });
    if read.is_ok() && !whole {
        eprintln!(
            "aksnet-agent: {}: the recorder was killed; its last second may be missing",
            args.file.display()
        );
    }
    read.err().into_iter().collect()
}

/// The objects of the manifests.
fn names(args: &cli::Replay, config: &Config) -> Result<Index, Failure> {
    let mut index = Index::new(&config.node_name);
    let mut reducer = Reducer::default();
    for path in &args.files {
        for document in manifest::read(path)? {
            take(
                &mut index,
                &mut reducer,
                &config.node_name,
                &document.value,
                &document.place,
                "",
            );
        }
    }
    for kind in [
        Kind::Service,
        Kind::Slice,
        Kind::Node,
        Kind::Namespace,
        Kind::Policy,
    ] {
        index.settle(kind, 0);
    }
    Ok(index)
}

fn take(
    index: &mut Index,
    reducer: &mut Reducer,
    node_name: &str,
    value: &serde_json::Value,
    place: &str,
    kind: &str,
) {
    let kind = value["kind"].as_str().unwrap_or(kind);
    if let (Some(of), Some(items)) = (kind.strip_suffix("List"), value["items"].as_array()) {
        for item in items {
            take(index, reducer, node_name, item, place, of);
        }
        return;
    }
    let here = value["spec"]["nodeName"].as_str() == Some(node_name);
    let read_as = match kind {
        "Pod" if here => Kind::LocalPod,
        "Pod" => Kind::RemotePod,
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::Slice,
        "Node" => Kind::Node,
        "Namespace" => Kind::Namespace,
        "NetworkPolicy"
            if value["apiVersion"]
                .as_str()
                .is_none_or(|api| api.starts_with("networking.k8s.io/")) =>
        {
            Kind::Policy
        }
        _ => return,
    };
    let mut value = value.clone();
    let cluster_wide = matches!(read_as, Kind::Node | Kind::Namespace);
    if !cluster_wide && value["metadata"]["namespace"].is_null() && value["metadata"].is_object() {
        value["metadata"]["namespace"] = "default".into();
    }
    // What serde_json wrote it reads.
    let Ok(kept) = reducer.object(read_as, value.to_string().as_bytes()) else {
        return;
    };
    if !kept.odd.is_empty() {
        let (odd, label) = (kept.odd.join(", "), &kept.label);
        eprintln!(
            "aksnet-agent: warning: {place}: {kind} {label}: cannot be read and is left out: {odd}"
        );
    }
    if let Some(object) = kept.object {
        let object: Object = object;
        index.apply(object, 0);
    }
}

/// What records come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Sum {
    flows: u64,
    packets: u64,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Sums {
    /// Connections: a long one has several records.
    all: Sum,
    class: BTreeMap<String, Sum>,
    nat: BTreeMap<String, Sum>,
    verdict: BTreeMap<String, Sum>,
    drops: u64,
    missed: u64,
    capture: Option<Tally>,
    session: Option<String>,
}

impl Sums {
    fn add(&mut self, record: &FlowRecord) {
        let verdict = record.verdict.as_deref().unwrap_or("");
        for sum in [
            &mut self.all,
            self.class.entry(record.class.clone()).or_default(),
            self.nat.entry(record.nat.clone()).or_default(),
            self.verdict.entry(verdict.to_owned()).or_default(),
        ] {
            sum.flows += u64::from(record.end != crate::flowlog::End::Active);
            sum.packets += record.packets();
            sum.bytes += record.bytes();
        }
    }

    fn json(&self) -> serde_json::Value {
        let mut summary = json!({
            "all": self.all,
            "class": self.class,
            "nat": self.nat,
            "dropped_packets": self.drops,
            "missed_records": self.missed,
        });
        if self.has_verdicts() {
            summary["verdict"] = json!(self.verdict);
        }
        if let Some(tally) = &self.capture {
            summary["capture"] = json!({
                "packets": tally.packets,
                "counted": tally.seen.packets,
                "seen_again": tally.seen.again,
                "passed_over": tally.passed_over,
                "cut_and_counted": tally.cut,
                "cut_within_headers": tally.beheaded,
                "skipped": tally.skipped,
                "unknown_link_type": tally.link_types,
            });
        }
        json!({"summary": summary})
    }

    fn has_verdicts(&self) -> bool {
        self.verdict.keys().any(|verdict| !verdict.is_empty())
    }

    fn text(&self, name: &str) -> String {
        let mut text = format!("{name}: {}\n", sum(&self.all));
        if let Some(session) = &self.session {
            let _ = writeln!(text, "  recorded by aksnet-agent {session}");
        }
        if let Some(tally) = &self.capture {
            let _ = write!(
                text,
                "  {} packets in the file: {} counted, {} seen again",
                tally.packets, tally.seen.packets, tally.seen.again
            );
            let further = [
                ("not IP or loopback", tally.passed_over),
                ("cut within their headers", tally.beheaded),
                ("of unknown link types", tally.link_types.values().sum()),
            ];
            let further = further.iter().filter(|(_, n)| *n > 0);
            let mut further: Vec<String> = further.map(|(what, n)| format!("{n} {what}")).collect();
            further.extend(tally.skipped.iter().map(|(why, n)| format!("{n} {why}")));
            for part in &further {
                let _ = write!(text, ", {part}");
            }
            text.push('\n');
            if tally.cut > 0 {
                let _ = writeln!(
                    text,
                    "  {} packets are cut off behind their headers, and counted in full",
                    tally.cut
                );
            }
        }
        if self.drops > 0 {
            let _ = writeln!(text, "  {} packets dropped", self.drops);
        }
        if self.missed > 0 {
            let _ = writeln!(
                text,
                "  {} records came too fast and are missing",
                self.missed
            );
        }
        for (what, sums) in [
            ("class", &self.class),
            ("nat", &self.nat),
            ("policies", &self.verdict),
        ] {
            if what == "policies" && !self.has_verdicts() {
                continue;
            }
            let _ = writeln!(text, "by {what}:");
            for (value, one) in sums {
                let value = if value.is_empty() {
                    "say nothing"
                } else {
                    value
                };
                let _ = writeln!(text, "  {value:<18} {}", sum(one));
            }
        }
        text
    }
}

fn sum(sum: &Sum) -> String {
    format!(
        "{} flows, {} packets, {} bytes",
        sum.flows, sum.packets, sum.bytes
    )
}

/// What is printed, and what it comes to.
struct Shown<W> {
    out: W,
    filter: Filter,
    json: bool,
    left: u64,
    sums: Sums,
    failed: Option<io::Error>,
}

impl<W: Write> Shown<W> {
    fn record(&mut self, record: &FlowRecord) {
        if !self.filter.takes(record) {
            return;
        }
        self.sums.add(record);
        if self.left > 0
            && let Ok(line) = flows::text(record, self.json)
        {
            self.line(&line);
        }
    }

    fn line(&mut self, line: &str) {
        if self.left == 0 || self.failed.is_some() {
            return;
        }
        self.left -= 1;
        self.failed = writeln!(self.out, "{line}").err();
    }

    fn finish(&mut self, name: &str) -> Result<(), Failure> {
        let summary = if self.json {
            format!("{}\n", self.sums.json())
        } else {
            self.sums.text(name)
        };
        let failed = match self.failed.take() {
            Some(error) => Err(error),
            None => self
                .out
                .write_all(summary.as_bytes())
                .and_then(|()| self.out.flush()),
        };
        match failed {
            // Nobody reads any more (`replay f | head`).
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).or_exit(Exit::Os),
            _ => Ok(()),
        }
    }
}

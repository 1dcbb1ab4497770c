//! `aksnet-agent doctor`: what is wrong with the node, judged by what the running agent knows, by what programs of its own
//! see for a while where none runs, or by a file.

use std::{
    fmt::Write as _,
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    agent::Load,
    cli::Doctor,
    commands::{alone::alone, print, runtime},
    config::Effective,
    doctor::{
        CHECKS, Evidence, Severity,
        evidence::SCHEMA,
        examine,
        text::{self, Style},
    },
    exit::{Exit, Failure, OrExit},
    preflight,
    socket::client::Client,
};

/// No file of evidence is longer.
const MAX_FILE: u64 = 64 << 20;

/// Prints the table of checks.
///
/// # Errors
/// When nobody reads, or the terminal is gone.
pub fn list() -> Result<(), Failure> {
    let longest = CHECKS.iter().map(|check| check.name.len()).max();
    let width = longest.unwrap_or_default();
    let mut lines = String::new();
    for check in CHECKS {
        let _ = writeln!(lines, "{:width$}  {}", check.name, check.looks_at);
    }
    print(lines.as_bytes())
}

/// Reads recorded evidence.
///
/// # Errors
/// When the file cannot be read, is no evidence, or is of a newer agent.
pub fn read(path: &Path) -> Result<Evidence, Failure> {
    let shown = path.display();
    let unreadable = |error: io::Error| {
        Failure::new(
            Exit::NoInput,
            format_args!("cannot read the evidence file {shown}: {error}"),
        )
    };
    let bad = |what: String| Failure::new(Exit::Data, format_args!("{shown}: {what}"));
    // A pipe or a device does not tell its length beforehand.
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    let read = file.take(MAX_FILE + 1).read_to_end(&mut text);
    if read.map_err(unreadable)? as u64 > MAX_FILE {
        return Err(bad(format!(
            "longer than {MAX_FILE} bytes, so no evidence of `doctor --record`"
        )));
    }
    let evidence: Evidence = serde_json::from_slice(&text).map_err(|error| {
        bad(format!(
            "no evidence as `doctor --record` writes it: {error}"
        ))
    })?;
    match evidence.schema {
        0 => Err(bad(
            "no evidence as `doctor --record` writes it: it has no schema; a report of --json is none".to_owned(),
        )),
        1..=SCHEMA => Ok(evidence),
        newer => Err(bad(format!(
            "schema {newer} is of a newer agent, this one reads up to {SCHEMA}; judge it with that agent"
        ))),
    }
}

/// Asks the running agent; where none runs, loads the programs and watches for so long.
///
/// # Errors
/// See `docs/exit-codes.md`.
pub fn ask(
    watch_for: Duration,
    effective: &Effective,
    load: impl Load,
) -> Result<Evidence, Failure> {
    if let Some(client) = Client::connect(&effective.config.socket)? {
        return client.evidence();
    }
    preflight::check()?;
    eprintln!(
        "aksnet-agent: no agent is running: watching this node for {:.0} s",
        watch_for.as_secs_f64()
    );
    runtime()?.block_on(watch(watch_for, effective, load))
}

/// With programs of its own.
async fn watch(
    watch_for: Duration,
    effective: &Effective,
    load: impl Load,
) -> Result<Evidence, Failure> {
    let found = Arc::new(Mutex::new(None));
    let (keep, socket) = (found.clone(), effective.config.socket.clone());
    alone(effective, load, |_, mut sweeps| async move {
        // Before the first sweep nothing is counted, and the node is not surveyed.
        if sweeps.wait_for(|sweep| *sweep > 0).await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(watch_for).await;
        // It answers there as an agent does, so that there is one way to gather.
        let asked = tokio::task::spawn_blocking(move || {
            Client::connect(&socket)?.map(Client::evidence).transpose()
        });
        let evidence = asked.await.or_exit(Exit::Software)??;
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = evidence;
        Ok(())
    })
    .await?;
    let evidence = found.lock().unwrap_or_else(PoisonError::into_inner).take();
    evidence
        .ok_or_else(|| Failure::new(Exit::Unavailable, "interrupted before the end of the look"))
}

/// Judges, prints, and keeps the evidence if that is asked for. Gives the worst severity.
///
/// # Errors
/// When the file cannot be written, or the terminal is gone.
pub fn judge(args: &Doctor, evidence: &Evidence) -> Result<Severity, Failure> {
    if let Some(path) = &args.record {
        record(path, evidence)?;
    }
    let report = examine(evidence, &args.checks);
    let text = if args.json {
        let mut json = serde_json::to_string_pretty(&report).or_exit(Exit::Software)?;
        json.push('\n');
        json
    } else {
        text::render(&report, evidence, style())
    };
    print(text.as_bytes())?;
    Ok(report.worst)
}

fn record(path: &Path, evidence: &Evidence) -> Result<(), Failure> {
    let mut json = serde_json::to_vec_pretty(evidence).or_exit(Exit::Software)?;
    json.push(b'\n');
    let shown = path.display();
    // Names and addresses are nobody else's business.
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(&json))
        .map_err(|error| {
            Failure::new(
                Exit::CantCreate,
                format_args!("cannot write the evidence to {shown}: {error}"),
            )
        })?;
    eprintln!(
        "aksnet-agent: wrote the evidence to {shown}; it names workloads, policies and services, and has addresses in it"
    );
    Ok(())
}

fn style() -> Style {
    let terminal = io::stdout().is_terminal();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let columns = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    Style {
        width: columns.filter(|_| terminal).unwrap_or(text::WIDTH),
        colour: terminal && !plain,
    }
}

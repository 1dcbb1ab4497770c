//! `aksnet-agent record`: what the running agent tells, or programs that are loaded for as long as it records, as a file
//! that `replay` reads.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::{alone::alone, flows::filter_takes, runtime, stop_signal};
use crate::{
    agent::Load,
    cli::{REVISION, Record, VERSION},
    config::Effective,
    droplog,
    exit::{Exit, Failure},
    flowlog::{self, Filter},
    preflight,
    session::{self, Head, Line, Missed, writer::Writer},
    socket::{
        client::Client,
        protocol::{DropsQuery, FlowsQuery},
    },
};

/// How often what waits is written.
const FLUSH: Duration = Duration::from_secs(1);

/// Records until `--for`, `--count`, a signal, or the agent's end.
///
/// # Errors
/// See `docs/exit-codes.md`. What was written is whole.
pub fn record(args: &Record, effective: &Effective, load: impl Load) -> Result<(), Failure> {
    let path = &effective.config.socket;
    match Client::connect(path)? {
        Some(client) => from_agent(args, effective, client),
        None => from_own(args, effective, load),
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn create(args: &Record, knows: Value) -> Result<Writer, Failure> {
    let head = Head {
        format: session::VERSION,
        agent: format!("{VERSION} ({REVISION})"),
        started_ms: now_ms(),
        knows,
    };
    Writer::create(&args.file, args.force, head)
}

fn ended(args: &Record, writer: Writer, because: &str) -> Result<(), Failure> {
    let ending = writer.end(now_ms(), because)?;
    let missed = ending.missed.flows + ending.missed.drops;
    let missed = if missed > 0 {
        format!("; {missed} came too fast and are missing")
    } else {
        String::new()
    };
    eprintln!(
        "aksnet-agent: {because}: {} flow records and {} drops are in {}{missed}",
        ending.flows,
        ending.drops,
        args.file.display()
    );
    Ok(())
}

/// What a recorder hears.
enum Told {
    Line(Line),
    /// The agent tells no more.
    Over(Failure),
    Stop(String),
}

fn flow_line(news: &flowlog::News) -> Line {
    match news {
        flowlog::News::Record(record) => Line::Flow(Box::new((**record).clone())),
        flowlog::News::Missed(flows) => Line::Missed(Missed {
            flows: *flows,
            drops: 0,
        }),
    }
}

fn drop_line(filter: &Filter, news: &droplog::News) -> Option<Line> {
    match news {
        droplog::News::Record(record) => {
            let of = |name: &String| record.src.namespace == *name || record.dst.namespace == *name;
            let protocols = &filter.protocol;
            let taken = filter.namespace.as_ref().is_none_or(of)
                && (protocols.is_empty() || protocols.contains(&record.protocol));
            taken.then(|| Line::Drop(Box::new((**record).clone())))
        }
        droplog::News::Missed(drops) => Some(Line::Missed(Missed {
            flows: 0,
            drops: *drops,
        })),
    }
}

/// From the running agent: one connection for each of the two, as each is a stream of its own.
fn from_agent(args: &Record, effective: &Effective, client: Client) -> Result<(), Failure> {
    let path = &effective.config.socket;
    let again = || {
        let gone = || {
            Failure::new(
                Exit::Unavailable,
                "the agent has ended; start it again, or look at its log",
            )
        };
        Client::connect(path)?.ok_or_else(gone)
    };
    let filter = args.filter.filter();
    let flows = client.flows(FlowsQuery {
        follow: true,
        limit: 0,
        filter: filter.clone(),
    })?;
    let drops = again()?.drops(DropsQuery { recent: false })?;
    let mut writer = create(args, again()?.session()?)?;

    let (tell, told) = mpsc::sync_channel(1_024);
    let from_flows = tell.clone();
    let flows = move || {
        for news in flows {
            let told = match news {
                Ok(news) => Told::Line(flow_line(&news)),
                Err(failure) => Told::Over(failure),
            };
            if from_flows.send(told).is_err() {
                return;
            }
        }
        let over = Failure::new(Exit::Unavailable, "the agent has ended");
        let _nobody = from_flows.send(Told::Over(over));
    };
    let from_drops = tell.clone();
    let drops = move || {
        for news in drops {
            // That the agent has ended the other one says, which hears of its last sweep.
            let Ok(news) = news else { return };
            if let Some(line) = drop_line(&filter, &news)
                && from_drops.send(Told::Line(line)).is_err()
            {
                return;
            }
        }
    };
    std::thread::spawn(flows);
    std::thread::spawn(drops);
    let runtime = runtime()?;
    let stop = runtime.block_on(async { stop_signal() })?;
    runtime.spawn(async move {
        let signal = stop.await;
        let _late =
            tokio::task::spawn_blocking(move || tell.send(Told::Stop(signal.to_owned()))).await;
    });

    let until = args.duration.map(|duration| Instant::now() + duration);
    let mut flushed = Instant::now();
    let because = loop {
        if args.count.is_some_and(|count| writer.written() >= count) {
            break "the number asked for".to_owned();
        }
        let now = Instant::now();
        if until.is_some_and(|until| now >= until) {
            break "the time asked for".to_owned();
        }
        if now.duration_since(flushed) >= FLUSH {
            writer.flush()?;
            flushed = now;
        }
        let wait = until.map_or(FLUSH, |until| FLUSH.min(until - now));
        match told.recv_timeout(wait) {
            Ok(Told::Line(line)) => writer.line(&line)?,
            Ok(Told::Stop(signal)) => break signal,
            Ok(Told::Over(failure)) => {
                ended(args, writer, "the agent has ended")?;
                return Err(failure);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break "the agent has ended".to_owned(),
        }
    };
    ended(args, writer, &because)?;
    // The readers wait for a word of the agent; nothing else waits for them.
    runtime.shutdown_background();
    Ok(())
}

/// What is left of the logs once the agent has ended.
#[derive(Default)]
struct Rest {
    flows: Option<flowlog::Following>,
    drops: Option<droplog::Following>,
    writer: Option<Writer>,
    because: Option<&'static str>,
}

/// From programs of its own.
fn from_own(args: &Record, effective: &Effective, load: impl Load) -> Result<(), Failure> {
    preflight::check_for(&effective.config)?;
    let filter = args.filter.filter();
    let rest: Arc<tokio::sync::Mutex<Rest>> = Arc::default();
    let state = rest.clone();
    let lived = runtime()?.block_on(alone(effective, load, |top, _sweeps| {
        let filter = &filter;
        async move {
            let mut rest = state.lock().await;
            let Rest {
                flows,
                drops,
                writer,
                because,
            } = &mut *rest;
            let flows = flows.insert(top.flow_log().follow());
            let drops = drops.insert(top.drop_log().follow(false));
            let writer = writer.insert(create(args, top.session())?);
            let mut flush = tokio::time::interval(FLUSH);
            let over = async {
                match args.duration {
                    Some(duration) => tokio::time::sleep(duration).await,
                    None => std::future::pending().await,
                }
            };
            let mut over = std::pin::pin!(over);
            loop {
                if args.count.is_some_and(|count| writer.written() >= count) {
                    *because = Some("the number asked for");
                    return Ok(());
                }
                tokio::select! {
                    () = &mut over => {
                        *because = Some("the time asked for");
                        return Ok(());
                    }
                    Some(news) = flows.next() => {
                        if filter_takes(filter, &news) {
                            writer.line(&flow_line(&news))?;
                        }
                    }
                    Some(news) = drops.next() => {
                        if let Some(line) = drop_line(filter, &news) {
                            writer.line(&line)?;
                        }
                    }
                    _ = flush.tick() => writer.flush()?,
                }
            }
        }
    }));
    lived?;
    let mut rest = rest.blocking_lock();
    let Rest {
        flows,
        drops,
        writer,
        because,
    } = &mut *rest;
    let Some(mut writer) = writer.take() else {
        // It was stopped before it began.
        return Ok(());
    };
    while args.count.is_none_or(|count| writer.written() < count)
        && let Some(news) = flows.as_mut().and_then(flowlog::Following::next_now)
    {
        if filter_takes(&filter, &news) {
            writer.line(&flow_line(&news))?;
        }
    }
    while args.count.is_none_or(|count| writer.written() < count)
        && let Some(news) = drops.as_mut().and_then(droplog::Following::next_now)
    {
        if let Some(line) = drop_line(&filter, &news) {
            writer.line(&line)?;
        }
    }
    let because = because.unwrap_or("a signal");
    ended(args, writer, because)
}

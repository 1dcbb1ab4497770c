//! `aksnet-agent flows`: what connections did, from the running agent, or from programs that are loaded for as long as
//! somebody looks.

use std::sync::Arc;

use tokio::sync::{Mutex, watch::Receiver};

use crate::{
    agent::Load,
    cli::Flows,
    commands::{alone::alone, reader, runtime},
    config::Effective,
    exit::{Exit, Failure, OrExit},
    flowlog::{self, FlowRecord, News},
    preflight,
    socket::{
        client::Client,
        protocol::{FlowsQuery, LiveSource},
    },
};

/// Shows the flows that ended lately and the live ones; with `--follow` what ends from now on, until `--count` records,
/// the end of the pipe, or a signal.
///
/// # Errors
/// See `docs/exit-codes.md`.
pub fn flows(args: &Flows, effective: &Effective, load: impl Load) -> Result<(), Failure> {
    let filter = args.filter.filter();
    let mut printer = Printer {
        json: args.json,
        left: args.count.unwrap_or(u64::MAX),
    };
    let query = FlowsQuery {
        follow: false,
        limit: args.limit,
        filter: filter.clone(),
    };
    let path = &effective.config.socket;
    if let Some(client) = Client::connect(path)? {
        reader::end_when_gone()?;
        if !args.follow {
            return printer.all(client.flows(query)?);
        }
        let query = FlowsQuery {
            follow: true,
            ..query
        };
        printer.all(client.flows(query)?)?;
        if printer.left > 0 && !printer.closed() {
            return Err(Failure::new(
                Exit::Unavailable,
                "the agent has ended; start it again, or look at its log",
            ));
        }
        return Ok(());
    }
    preflight::check_for(&effective.config)?;
    // What the last sweep finds is heard after the agent has ended.
    let shared = Arc::new(Mutex::new((printer, None)));
    let state = shared.clone();
    runtime()?.block_on(async {
        let shows = |top: Arc<dyn LiveSource>, mut sweeps: Receiver<u64>| async move {
            let (printer, following) = &mut *state.lock().await;
            if !args.follow {
                // Of one sweep, what was seen so far is judged; of the second, what it did.
                let _ended = sweeps.wait_for(|sweep| *sweep > 1).await.map(drop);
                let flows = flowlog::snapshot(&*top, &query.filter, query.limit);
                return printer.all(
                    flows
                        .into_iter()
                        .map(|flow| Ok(News::Record(Arc::new(flow)))),
                );
            }
            let following = following.insert(top.flow_log().follow());
            while printer.left > 0
                && let Some(news) = following.next().await
            {
                if filter_takes(&query.filter, &news) && printer.print(&news)?.is_none() {
                    break;
                }
            }
            Ok(())
        };
        alone(effective, load, |top, sweeps| {
            reader::until_gone(shows(top, sweeps))
        })
        .await
    })?;
    let (printer, following) = &mut *shared.blocking_lock();
    while printer.left > 0
        && let Some(news) = following.as_mut().and_then(flowlog::Following::next_now)
    {
        if filter_takes(&filter, &news) && printer.print(&news)?.is_none() {
            break;
        }
    }
    Ok(())
}

/// Whether news are to be shown; what was missed always is.
pub(super) fn filter_takes(filter: &flowlog::Filter, news: &News) -> bool {
    match news {
        News::Record(record) => filter.takes(record),
        News::Missed(_) => true,
    }
}

struct Printer {
    json: bool,
    left: u64,
}

impl Printer {
    /// Nobody reads any more.
    const fn closed(&self) -> bool {
        self.left == 0
    }

    fn all(&mut self, news: impl Iterator<Item = Result<News, Failure>>) -> Result<(), Failure> {
        for news in news {
            if self.left == 0 {
                break;
            }
            if self.print(&news?)?.is_none() {
                self.left = 0;
                break;
            }
        }
        Ok(())
    }

    /// One piece of news. `None` when nobody reads any more (`flows | head`).
    fn print(&mut self, news: &News) -> Result<Option<()>, Failure> {
        let record = match news {
            News::Record(record) => record,
            News::Missed(missed) => {
                eprintln!(
                    "aksnet-agent: {missed} flow records came faster than they were read; the metrics have their counts"
                );
                return Ok(Some(()));
            }
        };
        self.left -= 1;
        reader::print(format!("{}\n", text(record, self.json)?).as_bytes())
    }
}

/// A record as it is printed.
pub(super) fn text(record: &FlowRecord, json: bool) -> Result<String, Failure> {
    if json {
        serde_json::to_string(record).or_exit(Exit::Software)
    } else {
        Ok(record.line())
    }
}

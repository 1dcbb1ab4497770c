//! `aksnet-agent drops`: what is dropped, as it happens, from the running agent, or from programs that are loaded for as
//! long as somebody looks.

use crate::{
    agent::Load,
    cli::Drops,
    commands::{alone::alone, reader, runtime},
    config::Effective,
    droplog::{DropRecord, News},
    exit::{Exit, Failure, OrExit},
    preflight,
    socket::{client::Client, protocol::DropsQuery},
};

/// Shows drops until `--count` of them, the end of the pipe, or a signal.
///
/// # Errors
/// See `docs/exit-codes.md`.
pub fn drops(args: &Drops, effective: &Effective, load: impl Load) -> Result<(), Failure> {
    let mut printer = Printer {
        filter: Filter {
            causes: args.cause.iter().map(|cause| cause.name()).collect(),
            namespace: args.namespace.clone(),
        },
        json: args.json,
        left: args.count.unwrap_or(u64::MAX),
    };
    if let Some(client) = Client::connect(&effective.config.socket)? {
        reader::end_when_gone()?;
        let mut news = client.drops(DropsQuery {
            recent: args.recent,
        })?;
        while printer.left > 0
            && let Some(news) = news.next()
        {
            if printer.print(&news?)?.is_none() {
                break;
            }
        }
        return Ok(());
    }
    preflight::check()?;
    runtime()?.block_on(alone(effective, load, |top, _sweeps| {
        reader::until_gone(async move {
            let mut following = top.drop_log().follow(true);
            while printer.left > 0
                && let Some(news) = following.next().await
            {
                if printer.print(&news)?.is_none() {
                    break;
                }
            }
            Ok(())
        })
    }))
}

/// Which records are shown.
struct Filter {
    causes: Vec<&'static str>,
    namespace: Option<String>,
}

impl Filter {
    fn takes(&self, record: &DropRecord) -> bool {
        let caused = self.causes.is_empty() || self.causes.contains(&record.cause.as_str());
        let of = |namespace: &String| {
            record.src.namespace == *namespace || record.dst.namespace == *namespace
        };
        caused && self.namespace.as_ref().is_none_or(of)
    }
}

struct Printer {
    filter: Filter,
    json: bool,
    left: u64,
}

impl Printer {
    /// One piece of news. `None` when nobody reads any more (`drops | head`).
    fn print(&mut self, news: &News) -> Result<Option<()>, Failure> {
        let line = match news {
            News::Record(record) if self.filter.takes(record) => {
                self.left -= 1;
                if self.json {
                    serde_json::to_string(&**record).or_exit(Exit::Software)?
                } else {
                    record.line()
                }
            }
            News::Record(_) => return Ok(Some(())),
            News::Missed(missed) => {
                eprintln!(
                    "aksnet-agent: {missed} drops came faster than they were read; the metrics have them"
                );
                return Ok(Some(()));
            }
        };
        reader::print(format!("{line}\n").as_bytes())
    }
}

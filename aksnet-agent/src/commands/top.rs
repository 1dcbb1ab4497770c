//! `aksnet-agent top --raw`: the busiest flows, one line each, from the running agent, or from programs
//! that are loaded for as long as somebody looks.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch::Receiver;

use crate::{
    agent::Load,
    cli::Top,
    commands::{alone::alone, reader, runtime},
    config::Effective,
    exit::Failure,
    preflight,
    socket::{
        client::Client,
        protocol::{LiveSource, TopQuery},
    },
};

/// Turns the rows of one look into lines.
pub type RowsText = fn(&[Value]) -> String;

/// Shows rows until `--count` looks, the end of the pipe, or a signal.
///
/// # Errors
/// See `docs/exit-codes.md`.
pub fn top(
    args: &Top,
    effective: &Effective,
    text: RowsText,
    load: impl Load,
) -> Result<(), Failure> {
    let query = TopQuery {
        interval: args.interval,
        limit: args.limit.unwrap_or(Top::RAW_LIMIT),
        sort: args.sort,
    };
    let mut printer = Printer {
        text: if args.json { json_lines } else { text },
        left: args.count.unwrap_or(u64::MAX),
    };
    if let Some(client) = Client::connect(&effective.config.socket)? {
        reader::end_when_gone()?;
        let mut looks = client.top(query)?;
        while printer.left > 0
            && let Some(rows) = looks.next()
        {
            if printer.print(&rows?)?.is_none() {
                break;
            }
        }
        return Ok(());
    }
    preflight::check_for(&effective.config)?;
    let mut effective = effective.clone();
    // Rows are no fresher than the sweeps.
    let config = &mut effective.config;
    config.interval = config.interval.min(query.interval());
    runtime()?.block_on(watch(&effective, &query, printer, load))
}

/// With programs of its own.
async fn watch(
    effective: &Effective,
    query: &TopQuery,
    mut printer: Printer,
    load: impl Load,
) -> Result<(), Failure> {
    let looks = |top: Arc<dyn LiveSource>, mut sweeps: Receiver<u64>| async move {
        let mut rows = top.open();
        let _before = rows.rows(query);
        // A rate is what came between two sweeps, and the two timers start at different moments: each look waits
        // for a sweep of its own, so that none has the rows of the one before.
        let mut seen = 1;
        while printer.left > 0 {
            tokio::time::sleep(query.interval()).await;
            let Ok(sweep) = sweeps.wait_for(|sweep| *sweep > seen).await else {
                break;
            };
            seen = *sweep;
            drop(sweep);
            if printer.print(&rows.rows(query))?.is_none() {
                break;
            }
        }
        Ok(())
    };
    alone(effective, load, |top, sweeps| {
        reader::until_gone(looks(top, sweeps))
    })
    .await
}

/// Rows as JSON, one object per line.
#[must_use]
pub fn json_lines(rows: &[Value]) -> String {
    rows.iter()
        .flat_map(|row| [row.to_string(), "\n".to_owned()])
        .collect()
}

struct Printer {
    text: RowsText,
    left: u64,
}

impl Printer {
    /// One look. `None` when nobody reads any more (`top --raw | head`).
    fn print(&mut self, rows: &[Value]) -> Result<Option<()>, Failure> {
        self.left -= 1;
        reader::print((self.text)(rows).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        attachments::tests::Fake,
        cli::Sort,
        commands::run::tests::{Accounts, effective, load, network},
        node::{netlink::Netlink, tests::netns},
    };

    /// How many sweeps there were at each look.
    static LOOKS: Mutex<Vec<u64>> = Mutex::new(Vec::new());

    #[test]
    fn without_an_agent_it_watches_for_as_long_as_it_looks() {
        netns::run(|pod| async move {
            let dir = tempfile::tempdir().unwrap();
            let effective = effective(dir.path());
            network(&Netlink::open().unwrap(), pod).await;
            let (fake, accounts) = (Fake::default(), Accounts::default());
            let query = TopQuery {
                interval: 0.2,
                limit: 3,
                sort: Sort::Bytes,
            };
            let printer = Printer {
                text: |rows| {
                    LOOKS
                        .lock()
                        .unwrap()
                        .push(rows[0]["sweeps"].as_u64().unwrap());
                    String::new()
                },
                left: 4,
            };
            let seen = fake.clone();
            let watched = move |c: &_, n: &_, b: &_| {
                assert!(seen.attached().is_empty());
                load(&seen, &accounts)(c, n, b)
            };
            watch(&effective, &query, printer, watched).await.unwrap();
            let looks = LOOKS.lock().unwrap().clone();
            assert_eq!(looks.len(), 4);
            assert!(looks[0] >= 2, "a rate needs two sweeps: {looks:?}");
            assert!(
                looks.is_sorted_by(|a, b| a < b),
                "none is shown twice: {looks:?}"
            );
            assert!(fake.attached().is_empty(), "nothing stays attached");
            assert_eq!(fake.log().iter().filter(|l| *l == "+veth0").count(), 1);
            assert!(!effective.config.socket.exists());
        });
    }
}

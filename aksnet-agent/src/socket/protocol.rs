//! What is said over the socket.
//!
//! ```text
//! > {"top":{"interval":1.0,"limit":20,"sort":"bytes"}}
//! < {"rows":[{...},{...}]}            one line each interval, until the client hangs up
//! > {"drops":{"recent":true}}
//! < {"drop":{...}}                    one line for each, as they come, until the client hangs up
//! < {"missed":12}                     so many came faster than the client read them
//! > {"flows":{"follow":false,"limit":20,"filter":{"class":["pod_to_service"]}}}
//! < {"flow":{...}}                    one line for each live or lately ended connection; with follow, as they end
//! < {"missed":12}
//! < "done"                            no more follow
//! > "session"
//! < {"session":{...}}                 what a recording begins with
//! > "doctor"
//! < {"evidence":{...}}
//! > {"live":{"limit":200,"filter":{"namespace":"shop"}}}
//! < {"live":{...}}                    a snapshot at once, and one each interval, until the client hangs up;
//! > {"live":{"sort":"drops"}}         another question replaces the one before, and is answered at once
//! > "status"
//! < {"status":{...}}
//! < {"error":"..."}                   to anything else
//! ```

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    cli::Sort,
    doctor::Evidence,
    droplog::{DropLog, DropRecord},
    flowlog::{Filter, FlowLog, FlowRecord},
    live::{LiveQuery, Snapshot},
};

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The busiest flows, again and again.
    Top(TopQuery),
    /// Drops as they happen.
    Drops(DropsQuery),
    /// Flow records.
    Flows(FlowsQuery),
    /// What a recording begins with.
    Session,
    /// All views of the node, again and again. Another such request replaces this one.
    Live(LiveQuery),
    /// What `/status` shows.
    Status,
    /// What `doctor` judges by.
    Doctor,
}

/// Which rows, how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopQuery {
    /// Seconds between looks.
    pub interval: f64,
    /// Rows per look.
    pub limit: usize,
    /// What makes a flow busy.
    #[serde(default)]
    pub sort: Sort,
}

/// Which drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropsQuery {
    /// First those that the agent still has in memory.
    pub recent: bool,
}

/// Which flow records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowsQuery {
    /// As connections end, and those of long ones; else the live ones now, and the latest that ended.
    pub follow: bool,
    /// At most so many of each, without `follow`; 0: all.
    #[serde(default)]
    pub limit: usize,
    /// Which connections.
    #[serde(default)]
    pub filter: Filter,
}

impl TopQuery {
    /// The time between looks, within reason.
    #[must_use]
    pub fn interval(&self) -> Duration {
        LiveQuery::every(self.interval)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// One look.
    Rows(Vec<Value>),
    /// One drop.
    Drop(Box<DropRecord>),
    /// One connection.
    Flow(Box<FlowRecord>),
    /// What a recording begins with.
    Session(Value),
    /// No more will come.
    Done,
    /// So many drops or flow records came faster than they were read.
    Missed(u64),
    /// All views of the node at one moment.
    Live(Box<Snapshot>),
    /// What `/status` shows.
    Status(Value),
    /// What `doctor` judges by.
    Evidence(Box<Evidence>),
    /// The request was not understood.
    Error(String),
}

/// Where rows and drops come from.
pub trait LiveSource: Send + Sync {
    /// What was dropped.
    fn drop_log(&self) -> Arc<DropLog>;

    /// What connections did.
    fn flow_log(&self) -> Arc<FlowLog>;

    /// The live connections that the filter takes, the largest first, at most so many; 0: all.
    fn live_flows(&self, filter: &Filter, limit: usize) -> Vec<FlowRecord>;

    /// Names and policies that are known, for the head of a recording.
    fn session(&self) -> Value;

    /// A reader of its own for each client: rows are what happened since its last look.
    fn open(&self) -> Box<dyn TopReader>;

    /// What `doctor` judges by, as far as the accounts have it.
    fn evidence(&self) -> Evidence {
        Evidence::default()
    }
}

/// One client's view.
pub trait TopReader: Send {
    /// The busiest flows since the call before; the first call has nothing to compare with.
    fn rows(&mut self, query: &TopQuery) -> Vec<Value>;

    /// All views of the node, as of the last sweep.
    ///
    /// # Errors
    /// Says what of the query is not understood.
    fn live(&mut self, query: &LiveQuery) -> Result<Snapshot, String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let top = r#"{"top":{"interval":1.0,"limit":20,"sort":"nat_time"}}"#;
        let request: Request = serde_json::from_str(top).unwrap();
        assert_eq!(
            request,
            Request::Top(TopQuery {
                interval: 1.0,
                limit: 20,
                sort: Sort::NatTime
            })
        );
        assert_eq!(
            serde_json::from_str::<Request>("\"status\"").unwrap(),
            Request::Status
        );
        let live: Request = serde_json::from_str(r#"{"live":{"limit":9}}"#).unwrap();
        let expected = LiveQuery {
            limit: 9,
            ..LiveQuery::default()
        };
        assert_eq!(live, Request::Live(expected));
        let drops: Request = serde_json::from_str(r#"{"drops":{"recent":true}}"#).unwrap();
        assert_eq!(drops, Request::Drops(DropsQuery { recent: true }));
    }

    #[test]
    fn intervals_stay_within_reason() {
        for (given, taken) in [
            (0.0, 0.1),
            (-5.0, 0.1),
            (f64::NAN, 1.0),
            (2.0, 2.0),
            (1e9, 3600.0),
        ] {
            let query = TopQuery {
                interval: given,
                limit: 1,
                sort: Sort::Bytes,
            };
            assert_eq!(query.interval(), Duration::from_secs_f64(taken), "{given}");
        }
    }
}

//! The *flow log*: one record for each connection that ends, and for long ones one each active timeout, as IPFIX (RFC
//! 7011, RFC 5102) and Hubble have them, for whoever follows. While nobody does, it keeps the latest few only.

// One connection, and how it reads.
pub mod record;

// Which records are wanted.
pub mod filter;

// The latest, and those who follow.
mod log;

/// The live connections that the filter takes, and before them those that ended lately, oldest first: at most so many of
/// each; 0: all.
#[must_use]
pub fn snapshot(source: &dyn LiveSource, filter: &Filter, limit: usize) -> Vec<FlowRecord> {
    let recent = source.flow_log().recent();
    let mut shown: Vec<FlowRecord> = recent
        .iter()
        .filter(|record| filter.takes(record))
        .map(|record| (**record).clone())
        .collect();
    if limit > 0 && shown.len() > limit {
        shown.drain(..shown.len() - limit);
    }
    shown.extend(source.live_flows(filter, limit));
    shown
}

use crate::socket::protocol::LiveSource;

pub use self::{
    filter::Filter,
    log::{BEHIND, FlowLog, Following, News},
    record::{Counts, End, FlowRecord},
};

//! What is answered over the socket, from the accounts as the last sweep left them.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};

use super::{Accounts, Counting};
use crate::{
    classify::Whois,
    cli,
    doctor::{
        Evidence,
        gather::{self, Held},
    },
    droplog::DropLog,
    flowlog::{Filter, FlowLog, FlowRecord},
    identify::shared,
    live::{self, LiveQuery},
    session,
    socket::protocol::{LiveSource, TopQuery, TopReader},
    top,
};

impl<S: Counting> LiveSource for Accounts<S> {
    fn drop_log(&self) -> Arc<DropLog> {
        self.lock().drops.clone()
    }

    fn flow_log(&self) -> Arc<FlowLog> {
        self.lock().flows.clone()
    }

    fn live_flows(&self, filter: &Filter, limit: usize) -> Vec<FlowRecord> {
        let inner = self.lock();
        let index = inner.sources.names.read();
        let whois = Whois {
            plan: &inner.plan,
            index: &index,
            translations: Some(inner.sources.conntrack.as_ref()),
        };
        // A filter goes by names, which only the records have.
        let most = if filter.is_empty() { limit } else { 0 };
        let mut flows = inner
            .collector
            .live_connections(&inner.source, &whois, &inner.names, most);
        flows.retain(|flow| filter.takes(flow));
        if limit > 0 {
            flows.truncate(limit);
        }
        flows
    }

    fn session(&self) -> Value {
        let inner = self.lock();
        let mut session = session::of_index(&inner.sources.names.read());
        session["node"] = json!(inner.node_name);
        session["engine"] = json!(inner.engine.name());
        session["capture"] = json!(S::IS_CAPTURE);
        session
    }

    fn open(&self) -> Box<dyn TopReader> {
        Box::new(self.clone())
    }

    fn evidence(&self) -> Evidence {
        let mut inner = self.lock();
        // What is counted at longer intervals is as old as that.
        inner.slow = None;
        inner.look_around(false);
        let families = inner.collector.metrics().registry().gather();
        let index = inner.sources.names.read();
        gather::gather(&Held {
            families: &families,
            history: &inner.history,
            now: Instant::now(),
            index: &index,
            moment: shared::now(),
            sources: &inner.sources.names.sources(),
            conntrack: &inner.sources.conntrack.snapshot(),
            surveyed: inner.surveyed.as_ref(),
            records: &inner.drops.recent(),
            node_name: &inner.sources.node_name,
        })
    }
}

impl<S: Counting> TopReader for Accounts<S> {
    fn rows(&mut self, query: &TopQuery) -> Vec<Value> {
        let sort = match query.sort {
            cli::Sort::Bytes => top::Sort::Bytes,
            cli::Sort::Packets => top::Sort::Packets,
            cli::Sort::NatTime => top::Sort::NatTime,
            cli::Sort::Drops => top::Sort::Drops,
        };
        let inner = self.lock();
        let query = top::Query {
            limit: query.limit,
            sort,
        };
        let index = inner.sources.names.read();
        let whois = Whois {
            plan: &inner.plan,
            index: &index,
            translations: Some(inner.sources.conntrack.as_ref()),
        };
        top::rows(&inner.collector, &inner.source, &whois, &inner.names, query)
            .iter()
            .filter_map(|row| serde_json::to_value(row).ok())
            .collect()
    }

    fn live(&mut self, query: &LiveQuery) -> Result<live::Snapshot, String> {
        // Before the accounts are locked: sweeps do not wait for this.
        let (sources, log) = {
            let inner = self.lock();
            (inner.sources.clone(), inner.drops.clone())
        };
        let outside = live::Outside {
            destinations: sources.conntrack.busiest(query.limit()),
            records: log.recent(),
        };
        let inner = self.lock();
        let index = sources.names.read();
        let whois = Whois {
            plan: &inner.plan,
            index: &index,
            translations: Some(sources.conntrack.as_ref()),
        };
        let view = live::View {
            collector: &inner.collector,
            source: &inner.source,
            whois: &whois,
            names: &inner.names,
            now: shared::now(),
        };
        view.look(query, &outside)
    }
}

//! A *quiet* node: two pods that talk, and nothing else on its wires, so that whatever goes wrong around the agent, what
//! they say afterwards has to be counted exactly.

use anyhow::{Result, ensure};
use xtask::testbed::{
    Builder, Testbed,
    traffic::{Tcp, TcpServer},
};

use crate::{
    life::Agent,
    truth::{Truth, count_own},
};

/// The node, and the server in its second pod.
pub struct Quiet {
    pub bed: Testbed,
    pub server: TcpServer,
}

impl Quiet {
    pub fn build() -> Result<Self> {
        Self::on(Testbed::azure_overlay())
    }

    /// On this kind of node.
    pub fn on(node: Builder) -> Result<Self> {
        let bed = node.offloads(false).build()?;
        let (client, web) = (bed.pod(0), bed.pod(1));
        let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        count_own(&bed)?;
        Tcp::to(server.address()).run(client.netns())?;
        bed.settle()?;
        bed.pin_neighbours()?;
        Ok(Self { bed, server })
    }

    /// Makes so many connections, one after the other; returns their number.
    pub fn talk(&self, connections: u32) -> Result<u64> {
        let report = Tcp::to(self.server.address())
            .connections(connections)
            .run(self.bed.pod(0).netns())?;
        self.server.settle()?;
        ensure!(report.connections == u64::from(connections), "{report:?}");
        Ok(report.connections)
    }

    /// So many connections are counted as the kernel counts them.
    pub fn is_counted(&self, agent: &Agent, connections: u32) -> Result<()> {
        self.is_counted_after(agent, || self.talk(connections))
    }

    /// The traffic of `work`, which returns how many connections it made, is counted as the kernel counts it, and each
    /// handshake is measured.
    pub fn is_counted_after(
        &self,
        agent: &Agent,
        work: impl FnOnce() -> Result<u64>,
    ) -> Result<()> {
        let (was, truth) = (agent.settled()?, Truth::now(&self.bed)?);
        let made = work()?;
        let is = agent.settled()?;
        let truth = Truth::now(&self.bed)?.since(truth);
        for (metric, counted) in [
            ("aksnet_flow_packets_total", truth.packets),
            ("aksnet_flow_bytes_total", truth.bytes),
            ("aksnet_flow_connections_total", made),
            ("aksnet_tcp_handshake_seconds_count", made),
        ] {
            let here = is.count(metric, &[]) - was.count(metric, &[]);
            ensure!(here == counted, "{metric}: {here}, and truly {counted}");
        }
        Ok(())
    }
}

//! *Short connections*: connect, one byte there and back, close; many thousands, as fast as goes.
//!
//! The client closes first, so the ports in `TIME_WAIT` are its own: with `n` destination addresses it may make about
//! 64,000 × `n` connections within a minute, and no more are asked of it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::super::netns::Netns;
use super::PATIENCE;
use super::tcp::{dial, finish};

/// Source ports that one destination can be given before they repeat, with a margin.
const PORTS: usize = 60_000;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct ShortConnections {
    to: Vec<SocketAddr>,
    count: usize,
    parallel: usize,
    limit: Duration,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShortReport {
    /// Connections made and closed.
    pub connections: u64,
    /// From the first connect to the last close.
    pub elapsed: Duration,
}

impl ShortConnections {
    /// So many connections, in turn to each of these echo servers.
    #[must_use]
    pub fn to(to: impl IntoIterator<Item = SocketAddr>, count: usize) -> Self {
        Self {
            to: to.into_iter().collect(),
            count,
            parallel: 4,
            limit: Duration::from_mins(2),
        }
    }

    /// So many at a time. Default: 4.
    #[must_use]
    pub fn parallel(self, parallel: usize) -> Self {
        Self {
            parallel: parallel.max(1),
            ..self
        }
    }

    /// At most this long. Default: two minutes.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Runs it in a namespace, to its end.
    ///
    /// # Errors
    /// When a connection fails, time runs out, or there are too few destinations for so many.
    pub fn run(&self, netns: &Netns) -> Result<ShortReport> {
        let possible = self.to.len() * PORTS;
        ensure!(
            self.count <= possible,
            "{} connections need more than {} destinations",
            self.count,
            self.to.len()
        );
        let start = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.parallel)
                .map(|worker| {
                    scope.spawn(move || netns.run(|| self.every_nth(worker, start + self.limit)))
                })
                .collect();
            let mut connections = 0;
            for worker in workers {
                connections += worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            anyhow::Ok(ShortReport {
                connections,
                elapsed: start.elapsed(),
            })
        })
        .with_context(|| format!("short connections from {}", netns.name()))
    }

    fn every_nth(&self, first: usize, deadline: Instant) -> Result<u64> {
        let mut made = 0;
        for number in (first..self.count).step_by(self.parallel) {
            ensure!(
                Instant::now() < deadline,
                "time ran out after {made} connections of one worker"
            );
            let mut stream = dial(self.to[number % self.to.len()], None, PATIENCE)?;
            let mut byte = [b'a'];
            stream.write_all(&byte)?;
            stream
                .read_exact(&mut byte)
                .context("the server does not answer")?;
            stream.shutdown(Shutdown::Write)?;
            finish(stream)?;
            made += 1;
        }
        Ok(made)
    }
}

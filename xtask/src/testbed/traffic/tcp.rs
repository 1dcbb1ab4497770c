//! A *TCP client*: so many connections, so many bytes each, closed without resets.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{SockType, SockaddrStorage};

use super::super::netns::Netns;
use super::{PATIENCE, open};

/// How much is sent before the echo of it is read: less than any socket buffer, so that neither side blocks.
const CHUNK: usize = 16 * 1024;

/// How an attempt to connect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connect {
    /// It stands.
    Connected,
    /// A reset, or an ICMP port unreachable, came back.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// An ICMP unreachable of another kind came back, or there is no route.
    Unreachable,
}

/// Tries one connection, closes it at once, and says how it went.
///
/// # Errors
/// When the socket cannot be made, or fails in another way.
pub fn connect(netns: &Netns, to: SocketAddr, timeout: Duration) -> Result<Connect> {
    attempt(netns, None, to, timeout)
}

/// The same from one of several addresses of a host.
///
/// # Errors
/// When the socket cannot be made or bound, or fails in another way.
pub fn connect_from(
    netns: &Netns,
    from: IpAddr,
    to: SocketAddr,
    timeout: Duration,
) -> Result<Connect> {
    attempt(netns, Some(SocketAddr::new(from, 0)), to, timeout)
}

fn attempt(
    netns: &Netns,
    from: Option<SocketAddr>,
    to: SocketAddr,
    timeout: Duration,
) -> Result<Connect> {
    netns.run(|| match dial(to, from, timeout) {
        Ok(stream) => {
            stream.shutdown(Shutdown::Write)?;
            finish(stream)?;
            Ok(Connect::Connected)
        }
        Err(error) => match error.downcast_ref::<Errno>() {
            Some(Errno::ECONNREFUSED) => Ok(Connect::Refused),
            Some(Errno::EINPROGRESS | Errno::EAGAIN | Errno::ETIMEDOUT) => Ok(Connect::TimedOut),
            Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES | Errno::EPERM) => {
                Ok(Connect::Unreachable)
            }
            _ => Err(error),
        },
    })
}

pub(super) fn dial(
    to: SocketAddr,
    source: Option<SocketAddr>,
    timeout: Duration,
) -> Result<TcpStream> {
    let fd = open(to, SockType::Stream, source, timeout)?;
    nix::sys::socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("cannot connect to {to}"))?;
    let stream = TcpStream::from(fd);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Waits until the other side has closed too.
pub(super) fn finish(mut stream: TcpStream) -> Result<()> {
    let mut rest = [0; 64];
    match stream
        .read(&mut rest)
        .context("the other side does not close")?
    {
        0 => Ok(()),
        more => bail!("{more} bytes came that nobody asked for"),
    }
}

/// What a client is to do.
#[derive(Debug, Clone)]
pub struct Tcp {
    to: SocketAddr,
    connections: u32,
    bytes: usize,
    parallel: u32,
    echo: bool,
    source: Option<SocketAddr>,
}

/// What a client did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpReport {
    /// Connections made and closed.
    pub connections: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// From the first connect to the last close.
    pub elapsed: Duration,
}

impl Tcp {
    /// One connection of 100 bytes each way to an echo server.
    #[must_use]
    pub fn to(to: impl Into<SocketAddr>) -> Self {
        Self {
            to: to.into(),
            connections: 1,
            bytes: 100,
            parallel: 1,
            echo: true,
            source: None,
        }
    }

    /// So many connections, one after the other unless [`Self::parallel`].
    #[must_use]
    pub fn connections(self, connections: u32) -> Self {
        Self {
            connections,
            ..self
        }
    }

    /// So many bytes in each, each way.
    #[must_use]
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// So many connections at a time.
    #[must_use]
    pub fn parallel(self, parallel: u32) -> Self {
        Self {
            parallel: parallel.max(1),
            ..self
        }
    }

    /// Only sends, to a server that only takes.
    #[must_use]
    pub fn one_way(self) -> Self {
        Self {
            echo: false,
            ..self
        }
    }

    /// From this address and port. With a port, connections to one destination must differ in it.
    #[must_use]
    pub fn from(self, ip: impl Into<IpAddr>, port: u16) -> Self {
        Self {
            source: Some(SocketAddr::new(ip.into(), port)),
            ..self
        }
    }

    /// Runs it in a namespace, to its end.
    ///
    /// # Errors
    /// When a connection fails or hangs.
    pub fn run(&self, netns: &Netns) -> Result<TcpReport> {
        let start = Instant::now();
        let mut total = TcpReport::default();
        std::thread::scope(|scope| {
            let share = |worker: u32| {
                self.connections / self.parallel
                    + u32::from(worker < self.connections % self.parallel)
            };
            let workers: Vec<_> = (0..self.parallel)
                .map(|worker| {
                    scope.spawn(move || netns.run(|| self.connections_in_turn(share(worker))))
                })
                .collect();
            for worker in workers {
                let report = worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                total.connections += report.connections;
                total.sent += report.sent;
                total.received += report.received;
            }
            anyhow::Ok(TcpReport {
                elapsed: start.elapsed(),
                ..total
            })
        })
        .with_context(|| format!("TCP from {} to {}", netns.name(), self.to))
    }

    fn connections_in_turn(&self, count: u32) -> Result<TcpReport> {
        let mut report = TcpReport::default();
        let data = vec![0x61; CHUNK.max(if self.echo { 0 } else { 256 * 1024 })];
        let mut reply = vec![0; CHUNK];
        for _ in 0..count {
            let mut stream = dial(self.to, self.source, PATIENCE)?;
            let mut left = self.bytes;
            while left > 0 {
                let part = left.min(if self.echo { CHUNK } else { data.len() });
                stream
                    .write_all(&data[..part])
                    .context("the other side does not take")?;
                report.sent += part as u64;
                if self.echo {
                    stream
                        .read_exact(&mut reply[..part])
                        .context("the other side does not answer")?;
                    report.received += part as u64;
                }
                left -= part;
            }
            stream.shutdown(Shutdown::Write)?;
            finish(stream)?;
            report.connections += 1;
        }
        Ok(report)
    }
}

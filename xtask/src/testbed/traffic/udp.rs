//! *UDP* exchanges: so many datagrams each way, every one answered before the next flight is sent.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{SockType, SockaddrStorage};

use super::super::netns::Netns;
use super::{PATIENCE, open};

#[derive(Debug, Default)]
struct Seen {
    stop: AtomicBool,
    datagrams: AtomicU64,
    bytes: AtomicU64,
    peers: Mutex<Vec<SocketAddr>>,
}

/// A server that sends every datagram back, until it is dropped.
#[derive(Debug)]
pub struct UdpServer {
    address: SocketAddr,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Starts it in a namespace.
    ///
    /// # Errors
    /// When the address cannot be bound there.
    pub fn echo(netns: &Netns, address: impl Into<SocketAddr>) -> Result<Self> {
        let address = address.into();
        let socket = netns.run(|| {
            UdpSocket::bind(address)
                .with_context(|| format!("cannot bind {address} in {}", netns.name()))
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let address = socket.local_addr()?;
        let seen = Arc::new(Seen::default());
        let thread = std::thread::Builder::new()
            .name(format!("udp {address}"))
            .spawn({
                let seen = Arc::clone(&seen);
                move || serve(&socket, &seen)
            })?;
        Ok(Self {
            address,
            seen,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams received.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.seen.datagrams.load(Ordering::SeqCst)
    }

    /// Payload bytes received.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.seen.bytes.load(Ordering::SeqCst)
    }

    /// The clients' addresses as they arrived here, each once.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.seen
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn serve(socket: &UdpSocket, seen: &Seen) {
    let mut buffer = vec![0; 65_536];
    while !seen.stop.load(Ordering::SeqCst) {
        // A timeout, or an ICMP error of an earlier answer: neither ends the server.
        let Ok((count, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        seen.datagrams.fetch_add(1, Ordering::SeqCst);
        seen.bytes.fetch_add(count as u64, Ordering::SeqCst);
        {
            let mut peers = seen.peers.lock().unwrap_or_else(PoisonError::into_inner);
            // Most often the last one again.
            if peers.last() != Some(&peer) && !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        let _ = socket.send_to(&buffer[..count], peer);
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a client is to do.
#[derive(Debug, Clone)]
pub struct Udp {
    to: SocketAddr,
    datagrams: u32,
    size: usize,
    flight: u32,
    source: Option<SocketAddr>,
    answered: bool,
}

/// What a client did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UdpReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams received.
    pub received: u64,
    /// From the first to the last.
    pub elapsed: Duration,
}

impl Udp {
    /// One datagram of 100 bytes, answered by an echo server.
    #[must_use]
    pub fn to(to: impl Into<SocketAddr>) -> Self {
        Self {
            to: to.into(),
            datagrams: 1,
            size: 100,
            flight: 1,
            source: None,
            answered: true,
        }
    }

    /// So many datagrams.
    #[must_use]
    pub fn datagrams(self, datagrams: u32) -> Self {
        Self { datagrams, ..self }
    }

    /// Of so many payload bytes; above the MTU the kernel makes fragments of each.
    #[must_use]
    pub fn size(self, size: usize) -> Self {
        Self { size, ..self }
    }

    /// So many on their way before answers are awaited.
    #[must_use]
    pub fn flight(self, flight: u32) -> Self {
        Self {
            flight: flight.max(1),
            ..self
        }
    }

    /// From this address and port.
    #[must_use]
    pub fn from(self, ip: impl Into<IpAddr>, port: u16) -> Self {
        Self {
            source: Some(SocketAddr::new(ip.into(), port)),
            ..self
        }
    }

    /// Without waiting for answers, as where a policy drops them.
    #[must_use]
    pub fn unanswered(self) -> Self {
        Self {
            answered: false,
            ..self
        }
    }

    /// Runs it in a namespace, to its end.
    ///
    /// # Errors
    /// When an answer does not come.
    pub fn run(&self, netns: &Netns) -> Result<UdpReport> {
        netns
            .run(|| self.exchange())
            .with_context(|| format!("UDP from {} to {}", netns.name(), self.to))
    }

    fn exchange(&self) -> Result<UdpReport> {
        let start = Instant::now();
        let fd = open(self.to, SockType::Datagram, self.source, PATIENCE)?;
        nix::sys::socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(self.to))?;
        let socket = UdpSocket::from(fd);
        let data = vec![0x75; self.size];
        let mut reply = vec![0; 65_536];
        let mut report = UdpReport::default();
        let mut left = self.datagrams;
        while left > 0 {
            let flight = left.min(self.flight);
            for _ in 0..flight {
                // An ICMP error of an earlier one is reported here once; it says nothing about this one.
                if let Err(error) = socket.send(&data) {
                    ensure!(!self.answered, "cannot send: {error}");
                    socket.send(&data)?;
                }
                report.sent += 1;
            }
            for _ in 0..if self.answered { flight } else { 0 } {
                let count = socket
                    .recv(&mut reply)
                    .with_context(|| format!("no answer to datagram {}", report.received + 1))?;
                ensure!(
                    count == self.size,
                    "an answer of {count} bytes to {}",
                    self.size
                );
                report.received += 1;
            }
            left -= flight;
        }
        Ok(UdpReport {
            elapsed: start.elapsed(),
            ..report
        })
    }
}

//! A *TCP server* for many connections at once, on one thread.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::super::netns::Netns;
use super::PATIENCE;

/// The number by which epoll tells the listener; connections have their descriptor's.
const LISTENER: u64 = u64::MAX;

/// What a server does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    /// Sends it back.
    Echo,
    /// Takes it, and closes when the client has.
    Sink,
}

#[derive(Debug, Default)]
struct Seen {
    stop: AtomicBool,
    connections: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    peers: Mutex<Vec<SocketAddr>>,
}

/// A TCP server in a namespace. It closes a connection after its client did, so that neither side resets, and stops
/// when dropped.
#[derive(Debug)]
pub struct TcpServer {
    address: SocketAddr,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl TcpServer {
    /// A server that sends back what it gets.
    ///
    /// # Errors
    /// When the address cannot be bound in the namespace.
    pub fn echo(netns: &Netns, address: impl Into<SocketAddr>) -> Result<Self> {
        Self::start(netns, address.into(), Behaviour::Echo)
    }

    /// A server that only takes.
    ///
    /// # Errors
    /// When the address cannot be bound in the namespace.
    pub fn sink(netns: &Netns, address: impl Into<SocketAddr>) -> Result<Self> {
        Self::start(netns, address.into(), Behaviour::Sink)
    }

    fn start(netns: &Netns, address: SocketAddr, behaviour: Behaviour) -> Result<Self> {
        netns.sysctl("net.core.somaxconn", "4096")?;
        let listener = netns.run(|| {
            TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address} in {}", netns.name()))
        })?;
        // The standard library listens with a backlog of 128; a second call widens it.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096)?)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let thread = std::thread::Builder::new()
            .name(format!("tcp {address}"))
            .spawn({
                let seen = Arc::clone(&seen);
                move || Loop::new(listener, behaviour, &seen)?.run()
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

    /// Connections accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Bytes received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.seen.received.load(Ordering::SeqCst)
    }

    /// Bytes sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.seen.sent.load(Ordering::SeqCst)
    }

    /// The clients' addresses as they arrived here, oldest first.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.seen
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until every connection is closed, so that counts hold still.
    ///
    /// # Errors
    /// When connections stay open.
    pub fn settle(&self) -> Result<()> {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.seen.closed.load(Ordering::SeqCst) < self.connections() {
            if std::time::Instant::now() > deadline {
                let open = self.connections() - self.seen.closed.load(Ordering::SeqCst);
                bail!(
                    "{open} connections of the server {} stay open",
                    self.address
                );
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection, and what it still has to send.
struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
}

struct Loop<'a> {
    listener: TcpListener,
    behaviour: Behaviour,
    seen: &'a Seen,
    epoll: Epoll,
    connections: HashMap<u64, Connection>,
    buffer: Vec<u8>,
}

impl<'a> Loop<'a> {
    fn new(listener: TcpListener, behaviour: Behaviour, seen: &'a Seen) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            listener,
            behaviour,
            seen,
            epoll,
            connections: HashMap::new(),
            buffer: vec![0; 256 * 1024],
        })
    }

    fn run(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        while !self.seen.stop.load(Ordering::SeqCst) {
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(20_u8)) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error).context("epoll"),
            };
            for event in &events[..count] {
                if event.data() == LISTENER {
                    self.accept()?;
                } else {
                    self.serve(event.data())?;
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let (stream, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The client left before it was accepted.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let token = u64::try_from(stream.as_raw_fd())?;
            self.epoll
                .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
            self.connections.insert(
                token,
                Connection {
                    stream,
                    pending: Vec::new(),
                },
            );
            self.seen
                .peers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(peer);
            self.seen.connections.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn serve(&mut self, token: u64) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&token) else {
            return Ok(());
        };
        let waited = !connection.pending.is_empty();
        let open = serve(connection, self.behaviour, self.seen, &mut self.buffer);
        let waits = !connection.pending.is_empty();
        if !open {
            // Closing the descriptor takes it out of epoll.
            self.connections.remove(&token);
            self.seen.closed.fetch_add(1, Ordering::SeqCst);
        } else if waits != waited {
            let interest = if waits {
                EpollFlags::EPOLLOUT
            } else {
                EpollFlags::EPOLLIN
            };
            self.epoll
                .modify(&connection.stream, &mut EpollEvent::new(interest, token))?;
        }
        Ok(())
    }
}

/// Moves what can be moved now. False when the connection is over.
fn serve(
    connection: &mut Connection,
    behaviour: Behaviour,
    seen: &Seen,
    buffer: &mut [u8],
) -> bool {
    // A few rounds, so that one busy connection does not starve the others.
    for _ in 0..16 {
        while !connection.pending.is_empty() {
            match connection.stream.write(&connection.pending) {
                Ok(count) => {
                    connection.pending.drain(..count);
                    seen.sent.fetch_add(count as u64, Ordering::SeqCst);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        match connection.stream.read(buffer) {
            Ok(0) => return false,
            Ok(count) => {
                seen.received.fetch_add(count as u64, Ordering::SeqCst);
                if behaviour == Behaviour::Echo {
                    connection.pending.extend_from_slice(&buffer[..count]);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
    }
    true
}

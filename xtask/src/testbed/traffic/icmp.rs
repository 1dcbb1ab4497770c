//! *Pings*: so many ICMP echo requests, each answered before the next.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto,
    socket,
};

use super::super::frame::checksum;
use super::super::netns::Netns;
use super::{PATIENCE, set_timeouts};

/// Octets of the ICMP header.
const HEADER: usize = 8;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Ping {
    to: IpAddr,
    count: u16,
    size: usize,
    identifier: u16,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u64,
    /// Answers received.
    pub received: u64,
}

impl Ping {
    /// One echo request of 56 payload bytes.
    #[must_use]
    pub fn to(to: impl Into<IpAddr>) -> Self {
        Self {
            to: to.into(),
            count: 1,
            size: 56,
            identifier: 0x4158,
        }
    }

    /// So many requests.
    #[must_use]
    pub fn count(self, count: u16) -> Self {
        Self { count, ..self }
    }

    /// Of so many payload bytes.
    #[must_use]
    pub fn size(self, size: usize) -> Self {
        Self { size, ..self }
    }

    /// With this identifier, which stands where TCP has ports.
    #[must_use]
    pub fn identifier(self, identifier: u16) -> Self {
        Self { identifier, ..self }
    }

    /// Runs it in a namespace, to its end.
    ///
    /// # Errors
    /// When an answer does not come.
    pub fn run(&self, netns: &Netns) -> Result<PingReport> {
        netns
            .run(|| self.exchange())
            .with_context(|| format!("ping from {} to {}", netns.name(), self.to))
    }

    fn exchange(&self) -> Result<PingReport> {
        let (family, protocol) = match self.to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .context("cannot make a raw socket")?;
        set_timeouts(&fd, PATIENCE)?;
        let mut report = PingReport::default();
        for sequence in 0..self.count {
            let request = self.request(sequence);
            let to = SockaddrStorage::from(SocketAddr::new(self.to, 0));
            sendto(fd.as_raw_fd(), &request, &to, MsgFlags::empty())?;
            report.sent += 1;
            self.await_answer(&fd, sequence)?;
            report.received += 1;
        }
        Ok(report)
    }

    fn request(&self, sequence: u16) -> Vec<u8> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut request = vec![kind, 0, 0, 0];
        request.extend(self.identifier.to_be_bytes());
        request.extend(sequence.to_be_bytes());
        request.resize(HEADER + self.size, 0x69);
        if self.to.is_ipv4() {
            let sum = checksum(&[&request]);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        request
    }

    /// A raw socket gets all ICMP of the namespace: what is not the answer is passed over.
    fn await_answer(&self, fd: &OwnedFd, sequence: u16) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 65_536];
        loop {
            ensure!(Instant::now() < deadline, "no answer to request {sequence}");
            let count = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .with_context(|| format!("no answer to request {sequence}"))?;
            // IPv4 raw sockets give the IP header too.
            let (skip, kind) = if self.to.is_ipv4() {
                (usize::from(buffer[0] & 15) * 4, 0)
            } else {
                (0, 129)
            };
            let Some(message) = buffer[..count].get(skip..) else {
                continue;
            };
            let same = message.len() == HEADER + self.size
                && message[0] == kind
                && message[4..6] == self.identifier.to_be_bytes()
                && message[6..8] == sequence.to_be_bytes();
            if same {
                return Ok(());
            }
        }
    }
}

//! Real *traffic* of known counts, made in-process by sockets that live in the right namespaces.
//!
//! Servers run until they are dropped and say what they saw; clients are described, run to their end, and say what
//! they moved. Everything is bounded in count and in time: what hangs becomes an error that names it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

mod flood;
mod icmp;
mod raw;
mod server;
mod short;
mod tcp;
mod udp;

pub use flood::Flood;
pub use icmp::{Ping, PingReport};
pub use raw::{FrameSocket, RawIp, send_packets};
pub use server::TcpServer;
pub use short::{ShortConnections, ShortReport};
pub use tcp::{Connect, Tcp, TcpReport, connect, connect_from};
pub use udp::{Udp, UdpReport, UdpServer};

/// How long a step may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket for an address's family, in the namespace of the calling thread, bound if a source is given. Reads and
/// writes (and so connects) give up after `timeout`.
fn open(
    to: SocketAddr,
    kind: SockType,
    source: Option<SocketAddr>,
    timeout: Duration,
) -> Result<OwnedFd> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)
        .context("cannot make a socket")?;
    set_timeouts(&fd, timeout)?;
    if let Some(source) = source {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(
            std::os::fd::AsRawFd::as_raw_fd(&fd),
            &SockaddrStorage::from(source),
        )
        .with_context(|| format!("cannot bind {source}"))?;
    }
    Ok(fd)
}

fn set_timeouts(fd: &OwnedFd, timeout: Duration) -> Result<()> {
    let seconds = libc::time_t::try_from(timeout.as_secs())?;
    let timeout = TimeVal::new(seconds, libc::suseconds_t::from(timeout.subsec_micros()));
    setsockopt(fd, sockopt::SendTimeout, &timeout)?;
    setsockopt(fd, sockopt::ReceiveTimeout, &timeout)?;
    Ok(())
}

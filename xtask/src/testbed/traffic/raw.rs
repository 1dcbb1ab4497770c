//! *Raw* traffic: whole frames on an interface, and IP packets of any protocol.

use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};

use super::super::frame::Packet;
use super::super::netns::Netns;

/// A packet socket on one interface: what it sends leaves exactly as given.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
    address: libc::sockaddr_ll,
}

impl FrameSocket {
    /// Opens it in a namespace.
    ///
    /// # Errors
    /// When there is no such interface, or the caller is not root.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        let name = CString::new(interface)?;
        netns.run(|| {
            // SAFETY: a plain system call with constant arguments; the descriptor it returns is checked and owned.
            let fd =
                unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
            let fd = Errno::result(fd).context("cannot make a packet socket")?;
            // SAFETY: `fd` was returned just now and belongs to nobody else.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: `name` is a C string that lives through the call.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            anyhow::ensure!(index != 0, "no interface {interface} in {}", netns.name());
            let address = libc::sockaddr_ll {
                sll_family: u16::try_from(libc::AF_PACKET)?,
                sll_protocol: 0,
                sll_ifindex: i32::try_from(index)?,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 6,
                sll_addr: [0; 8],
            };
            Ok(Self { fd, address })
        })
    }

    /// From now on frames go to the interface itself, past its queue.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn bypass_queue(&self) -> Result<()> {
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of_val(&on))?;
        // SAFETY: the option's value is valid for its length and outlives the call.
        let set = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                std::ptr::from_ref(&on).cast(),
                length,
            )
        };
        Errno::result(set).context("cannot bypass the queue")?;
        Ok(())
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(super) fn address(&self) -> libc::sockaddr_ll {
        self.address
    }

    /// Sends one frame, from its Ethernet header on.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
        // SAFETY: the frame and the address are valid for their lengths, which are given, and outlive the call; a
        // packet socket reads a sockaddr_ll.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&self.address).cast(),
                length,
            )
        };
        let sent = Errno::result(sent).context("cannot send a frame")?;
        anyhow::ensure!(
            usize::try_from(sent)? == frame.len(),
            "a frame was sent in part"
        );
        Ok(())
    }
}

/// A raw IP socket of one protocol: the kernel makes the IP header, finds the way, and fragments.
#[derive(Debug)]
pub struct RawIp {
    fd: OwnedFd,
    to: IpAddr,
}

impl RawIp {
    /// Opens it in a namespace, towards an address, for an IP protocol number (132 is SCTP, 47 is GRE).
    ///
    /// # Errors
    /// When the caller is not root.
    pub fn open(netns: &Netns, to: impl Into<IpAddr>, protocol: u8) -> Result<Self> {
        let to = to.into();
        let family = if to.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        netns.run(|| {
            // SAFETY: a plain system call with constant arguments; the descriptor it returns is checked and owned.
            let fd = unsafe {
                libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into())
            };
            let fd = Errno::result(fd).context("cannot make a raw socket")?;
            // SAFETY: `fd` was returned just now and belongs to nobody else.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok(Self { fd, to })
        })
    }

    /// Sends one packet with this payload (from the transport header on).
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, payload: &[u8]) -> Result<()> {
        let to = SockaddrStorage::from(SocketAddr::new(self.to, 0));
        sendto(self.fd.as_raw_fd(), payload, &to, MsgFlags::empty())
            .context("cannot send a packet")?;
        Ok(())
    }
}

/// Sends a packet made by hand, its IP header included, so many times, from a namespace that finds its way.
///
/// # Errors
/// When the caller is not root, there is no way, or the packet does not fit the first link.
pub fn send_packets(netns: &Netns, packet: &Packet, count: u16) -> Result<()> {
    // Of this protocol the kernel takes the header as it is given.
    let socket = RawIp::open(netns, packet.destination(), HEADER_INCLUDED)?;
    let octets = packet.build();
    (0..count).try_for_each(|_| socket.send(&octets))
}

/// `IPPROTO_RAW`.
const HEADER_INCLUDED: u8 = 255;

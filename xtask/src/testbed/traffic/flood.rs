//! A *flood*: UDP frames as fast as one processor sends them, from many flows in turn, straight onto an interface.
//!
//! The frames skip the sender's own stack and queue: what is left to measure is the way that they go afterwards, which
//! the sending processor walks for each of them within the same system call.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::super::frame::{Frame, Mac, Packet};
use super::super::netns::Netns;
use super::raw::FrameSocket;

/// Frames handed over in one system call.
const BATCH: usize = 64;

/// Source ports used, from [`FIRST_PORT`] on; further flows go to further destination ports.
const PORTS: u32 = 50_000;
const FIRST_PORT: u32 = 10_000;

/// Where the UDP header begins.
const UDP: usize = 34;

/// Frames of 64 bytes of payload from one interface.
pub struct Flood {
    socket: FrameSocket,
    frames: Vec<Vec<u8>>,
    flows: u32,
    next: u32,
    destination_port: u16,
}

impl Flood {
    /// Between two addresses, from a pod's interface to its gateway's hardware address.
    ///
    /// # Errors
    /// When there is no such interface, or the caller is not root.
    pub fn open(
        netns: &Netns,
        interface: &str,
        stations: [Mac; 2],
        addresses: [Ipv4Addr; 2],
        destination_port: u16,
    ) -> Result<Self> {
        let socket = FrameSocket::open(netns, interface)?;
        socket.bypass_queue()?;
        let ends = addresses.map(|address| SocketAddr::from((address, 0)));
        let mut frame = Frame::new(
            stations[0],
            stations[1],
            Packet::udp(ends[0], ends[1], &[0; 64]),
        )
        .build();
        // No checksum: it would change with the ports.
        frame[UDP + 6..UDP + 8].fill(0);
        Ok(Self {
            socket,
            frames: vec![frame; BATCH],
            flows: 1,
            next: 0,
            destination_port,
        })
    }

    /// From now on packets of so many flows, in turn.
    ///
    /// # Panics
    /// With more flows than there are ports.
    pub fn set_flows(&mut self, flows: u32) {
        assert!(
            flows / PORTS + u32::from(self.destination_port) < 65_536 && flows > 0,
            "{flows} flows"
        );
        self.flows = flows;
        self.next = 0;
    }

    /// Sends so many packets, rounded up to whole batches, and says how long one took.
    ///
    /// # Errors
    /// When the kernel does not take one.
    ///
    /// # Panics
    /// Never: the batch is a small number.
    pub fn send(&mut self, packets: u32) -> Result<Duration> {
        let batch = u32::try_from(BATCH)?;
        let batches = packets.div_ceil(batch);
        let start = Instant::now();
        for _ in 0..batches {
            for frame in &mut self.frames {
                let source = u16::try_from(FIRST_PORT + self.next % PORTS)?;
                let destination = self.destination_port + u16::try_from(self.next / PORTS)?;
                frame[UDP..UDP + 2].copy_from_slice(&source.to_be_bytes());
                frame[UDP + 2..UDP + 4].copy_from_slice(&destination.to_be_bytes());
                self.next = if self.next + 1 == self.flows {
                    0
                } else {
                    self.next + 1
                };
            }
            send_all(&self.socket, &mut self.frames)?;
        }
        Ok(start.elapsed() / (batches * batch))
    }
}

/// Hands over all frames.
fn send_all(socket: &FrameSocket, frames: &mut [Vec<u8>]) -> Result<()> {
    let mut parts: [libc::iovec; BATCH] = std::array::from_fn(|i| libc::iovec {
        iov_base: frames[i].as_mut_ptr().cast(),
        iov_len: frames[i].len(),
    });
    let mut address = socket.address();
    let length = libc::socklen_t::try_from(size_of_val(&address))?;
    let mut messages: [libc::mmsghdr; BATCH] = std::array::from_fn(|i| {
        // SAFETY: a message header is integers and pointers, for which zeros are a value.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = std::ptr::from_mut(&mut address).cast();
        message.msg_hdr.msg_namelen = length;
        message.msg_hdr.msg_iov = &raw mut parts[i];
        message.msg_hdr.msg_iovlen = 1;
        message
    });
    let mut done = 0;
    while done < BATCH {
        // SAFETY: the headers, the address and the frames they point to outlive the call; the kernel only reads them
        // and writes `msg_len`.
        let sent = unsafe {
            libc::sendmmsg(
                socket.fd().as_raw_fd(),
                messages[done..].as_mut_ptr(),
                u32::try_from(BATCH - done)?,
                0,
            )
        };
        match Errno::result(sent) {
            Ok(sent) => {
                ensure!(sent > 0, "no frame was taken");
                done += usize::try_from(sent)?;
            }
            // The device's or the socket's queue is full for a moment.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot send frames"),
        }
    }
    Ok(())
}

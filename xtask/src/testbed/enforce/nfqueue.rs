//! An *NFQUEUE* as a program sees it: packets that a rule holds back, each to be accepted or dropped.
//!
//! Spoken over netlink directly (`linux/netfilter/nfnetlink_queue.h`): it takes five messages, and the crates that
//! offer them give no way to wait with a timeout, or want a C library.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

use crate::testbed::netns::Netns;
use crate::testbed::nfnetlink::{attribute, request};

/// Messages of `NFNL_SUBSYS_QUEUE`, with the subsystem in the high byte.
const PACKET: u16 = 0x300;
const VERDICT: u16 = 0x301;
const CONFIG: u16 = 0x302;

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLMSG_ERROR`.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const ERROR: u16 = 2;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
}

/// A packet that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// By what the kernel knows it.
    pub id: u32,
    /// The packet from its IP header on.
    pub packet: Vec<u8>,
}

/// A bound queue. Closing it lets the rules do what they do without a program.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    number: u16,
    buffer: Vec<u8>,
}

impl Queue {
    /// Binds a queue of a namespace.
    ///
    /// # Errors
    /// When another program has it, or the kernel has no NFQUEUE.
    pub fn bind(netns: &Netns, number: u16) -> Result<Self> {
        let fd = netns.run(|| {
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkNetFilter,
            )?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok(fd)
        })?;
        setsockopt(&fd, sockopt::RcvBuf, &(4 << 20))?;
        let mut queue = Self {
            fd,
            number,
            buffer: vec![0; 1 << 17],
        };
        let mut configure = || -> Result<()> {
            // NFQA_CFG_CMD: bind. NFQA_CFG_PARAMS: copy whole packets. NFQA_CFG_QUEUE_MAXLEN.
            queue.ask(&attribute(1, &[1, 0, 0, 0]))?;
            queue.ask(&attribute(2, &[0, 0, 0xff, 0xff, 2]))?;
            queue.ask(&attribute(3, &4096_u32.to_be_bytes()))
        };
        configure().with_context(|| format!("cannot bind NFQUEUE {number} in {}", netns.name()))?;
        Ok(queue)
    }

    /// The packets that have come, waiting for the first at most this long.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive(&mut self, timeout: Duration) -> Result<Vec<Waiting>> {
        let mut ready = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::try_from(timeout)?) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => bail!("cannot wait for packets: {error}"),
        }
        match recv(
            self.fd.as_raw_fd(),
            &mut self.buffer,
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(count) => Ok(packets(&self.buffer[..count])),
            // Some were lost for want of room; the kernel treats them as the rule says.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error).context("cannot receive packets"),
        }
    }

    /// Lets a packet go, or drops it.
    ///
    /// # Errors
    /// When the kernel does not take the answer.
    pub fn answer(&self, waiting: &Waiting, answer: Answer) -> Result<()> {
        let verdict: u32 = match answer {
            Answer::Drop => 0,
            Answer::Accept => 1,
        };
        // NFQA_VERDICT_HDR
        let attributes = attribute(
            2,
            &[verdict.to_be_bytes(), waiting.id.to_be_bytes()].concat(),
        );
        self.send(VERDICT, REQUEST, &attributes)
    }

    /// Sends a setting and waits for the kernel's word on it.
    fn ask(&mut self, attributes: &[u8]) -> Result<()> {
        self.send(CONFIG, REQUEST | ACK, attributes)?;
        let count = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        match acknowledged(&self.buffer[..count]) {
            Some(0) => Ok(()),
            Some(error) => Err(Errno::from_raw(-error).into()),
            None => bail!("the kernel did not answer"),
        }
    }

    fn send(&self, kind: u16, flags: u16, attributes: &[u8]) -> Result<()> {
        let message = request(kind, flags, 0, self.number, attributes);
        let sent = send(self.fd.as_raw_fd(), &message, MsgFlags::empty())?;
        ensure!(sent == message.len(), "a message was sent in part");
        Ok(())
    }
}

/// The messages of a datagram: kind, and what follows the netlink header.
fn messages(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    let mut messages = Vec::new();
    while let Some(header) = rest.get(..16) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = rest.get(16..length) else {
            break;
        };
        messages.push((kind, body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// The kernel's word: 0, or a negative error number.
fn acknowledged(datagram: &[u8]) -> Option<i32> {
    let (_, body) = messages(datagram)
        .into_iter()
        .find(|(kind, _)| *kind == ERROR)?;
    Some(i32::from_ne_bytes(body.get(..4)?.try_into().ok()?))
}

/// The packets in a datagram.
fn packets(datagram: &[u8]) -> Vec<Waiting> {
    let of_queue = messages(datagram)
        .into_iter()
        .filter(|(kind, _)| *kind == PACKET);
    of_queue
        .filter_map(|(_, body)| {
            let (mut id, mut packet) = (None, Vec::new());
            let mut rest = body.get(4..)?;
            while let Some(header) = rest.get(..4) {
                let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
                let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
                let value = rest.get(4..length)?;
                match kind {
                    // NFQA_PACKET_HDR
                    1 => id = Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?)),
                    // NFQA_PAYLOAD
                    10 => packet = value.to_vec(),
                    _ => {}
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
            Some(Waiting { id: id?, packet })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_found_among_other_messages() {
        let message = |kind: u16, body: &[u8]| {
            let mut octets = u32::try_from(16 + body.len())
                .unwrap()
                .to_ne_bytes()
                .to_vec();
            octets.extend(kind.to_ne_bytes());
            octets.extend([0; 10]);
            octets.extend(body);
            octets.resize(octets.len().next_multiple_of(4), 0);
            octets
        };
        let mut body = vec![2, 0, 0, 102];
        body.extend(attribute(1, &[0, 0, 0, 7, 8, 0, 4]));
        body.extend(attribute(10, &[0x45, 0, 0]));
        let datagram = [message(ERROR, &[0; 20]), message(PACKET, &body)].concat();
        let waiting = Waiting {
            id: 7,
            packet: vec![0x45, 0, 0],
        };
        assert_eq!(packets(&datagram), [waiting]);
        assert_eq!(acknowledged(&datagram), Some(0));
        for length in 0..datagram.len() {
            let _ = (
                packets(&datagram[..length]),
                acknowledged(&datagram[..length]),
            );
        }
    }
}

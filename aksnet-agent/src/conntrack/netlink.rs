//! The sockets to ctnetlink: the only place of this module that asks the kernel.
//!
//! A socket belongs to the network namespace of the thread that opened it. Requests need `CAP_NET_ADMIN`.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom,
            sendto, setsockopt, socket,
            sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use aksnet_common::passage::Tuple;

use super::{
    message::{Body, Entry, Messages, Request, lookup},
    stats::{CpuReading, TableSize},
};

/// Room for the largest datagram: the kernel fills dumps to 32 KiB at most (`netlink_dump` in
/// `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 64 << 10;
/// How long the kernel may keep a request waiting.
const PATIENCE_MS: i64 = 2_000;
/// `NFNLGRP_CONNTRACK_NEW` and `NFNLGRP_CONNTRACK_DESTROY`, groups 1 and 3, as bits.
const GROUPS: u32 = 1 | 1 << 2;

/// A socket on which the kernel tells of new and of destroyed entries.
#[derive(Debug)]
pub(super) struct Events {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// What came of reading events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// Nothing is left.
    Empty,
    /// Nothing is left, and the kernel has dropped events since the last time.
    Lost,
}

impl Events {
    /// Listens, with so many bytes for events that wait to be read.
    pub(super) fn open(receive_buffer: usize) -> io::Result<Self> {
        let socket = open(SockFlag::SOCK_NONBLOCK)?;
        // Beyond the limit of sockets where that is allowed. A small buffer is no reason to stop: it overflows sooner.
        if setsockopt(&socket, RcvBufForce, &receive_buffer).is_err() {
            let _ = setsockopt(&socket, RcvBuf, &receive_buffer);
        }
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Reads what waits, at most `most` datagrams, and gives `see` each datagram.
    pub(super) fn drain(
        &mut self,
        most: usize,
        mut see: impl FnMut(Messages<'_>),
    ) -> io::Result<Drained> {
        let mut drained = Drained::Empty;
        for _ in 0..most {
            match receive(&self.socket, &mut self.buffer) {
                Ok(n) => see(Messages::new(&self.buffer[..n])),
                Err(Errno::EAGAIN) => break,
                Err(Errno::ENOBUFS) => drained = Drained::Lost,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(drained)
    }
}

/// How an answer ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It is one message.
    One,
    /// It is a dump, with an end of its own.
    Many,
}

/// A socket for requests.
#[derive(Debug)]
pub(super) struct Requests {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Requests {
    pub(super) fn open() -> io::Result<Self> {
        let socket = open(SockFlag::empty())?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(PATIENCE_MS))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM],
            sequence: 0,
        })
    }

    /// Asks for all entries and gives `see` each datagram of the answer. False: the dump is not of one state.
    pub(super) fn entries(&mut self, see: impl FnMut(Messages<'_>)) -> io::Result<bool> {
        self.ask(Request::Entries, see)
    }

    /// The entry whose packets leave the node with this tuple, if there is one.
    pub(super) fn entry(&mut self, protocol: u8, after: &Tuple) -> io::Result<Option<Entry>> {
        let Some(bytes) = lookup(self.next(), protocol, after) else {
            return Ok(None);
        };
        let mut found = None;
        let asked = self.exchange(&bytes, Answer::One, |messages| {
            for message in messages {
                if let Body::New(entry) = message.body {
                    found = Some(entry);
                }
            }
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            asked => asked.map(|_| found),
        }
    }

    /// Statistics of all CPUs, in their order.
    pub(super) fn cpus(&mut self) -> io::Result<Vec<CpuReading>> {
        let mut readings = Vec::new();
        self.ask(Request::Cpus, |messages| {
            readings.extend(messages.filter_map(|m| match m.body {
                Body::Cpu(reading) => Some(reading),
                _ => None,
            }));
        })?;
        Ok(readings)
    }

    /// How full the table is. What the kernel does not tell stays unknown.
    pub(super) fn table(&mut self) -> io::Result<TableSize> {
        let mut size = TableSize::default();
        self.ask(Request::Table, |messages| {
            for message in messages {
                if let Body::Table(told) = message.body {
                    size = told;
                }
            }
        })?;
        Ok(size)
    }

    fn ask(&mut self, request: Request, see: impl FnMut(Messages<'_>)) -> io::Result<bool> {
        let bytes = request.bytes(self.next());
        let answer = match request {
            Request::Entries | Request::Cpus => Answer::Many,
            Request::Table => Answer::One,
        };
        self.exchange(&bytes, answer, see)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn exchange(
        &mut self,
        bytes: &[u8],
        answer: Answer,
        mut see: impl FnMut(Messages<'_>),
    ) -> io::Result<bool> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty())?;
        let mut consistent = true;
        loop {
            let n = match receive(&self.socket, &mut self.buffer) {
                Ok(n) => n,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            };
            let messages = Messages::new(&self.buffer[..n]);
            // An answer to an earlier request, which was given up.
            if messages
                .clone()
                .next()
                .is_none_or(|m| m.sequence != self.sequence)
            {
                continue;
            }
            let mut end = None;
            for message in messages.clone() {
                consistent &= !message.interrupted && message.body != Body::Unreadable;
                match message.body {
                    Body::Done(errno) | Body::Error(errno) => end = Some(errno),
                    _ if answer == Answer::One => end = Some(0),
                    _ => {}
                }
            }
            see(messages);
            match end {
                None => {}
                Some(0) => return Ok(consistent),
                Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

fn open(flags: SockFlag) -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?)
}

/// Receives a datagram; those that are not the kernel's are empty.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    let (n, from) = recvfrom::<NetlinkAddr>(socket.as_raw_fd(), buffer)?;
    Ok(if from.is_some_and(|from| from.pid() == 0) {
        n.min(buffer.len())
    } else {
        0
    })
}

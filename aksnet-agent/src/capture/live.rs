//! *Taps*: packets captured on the node's interfaces (`AF_PACKET`, through pnet), where the kernel refuses programs.
//!
//! Each interface has two sockets: one for what comes in and one for what goes out, told apart by a classic BPF filter
//! on the packet's kind, as a packet itself does not say which way it went. Whoever reads them copies the first bytes of
//! every packet to user space: that is what this costs, and why it is only done on request.

use std::{
    collections::BTreeMap,
    os::fd::IntoRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use aksnet_common::{
    packet::{self, Link},
    passage::fingerprint,
};
use nix::sys::socket::{setsockopt, sockopt};
use pnet::datalink::{self, Channel, DataLinkReceiver, NetworkInterface};
use socket2::{Domain, SockFilter, Socket, Type};

use super::{
    link::{Captured, Direction},
    sighting::{Pairing, Sighting},
    table::{Shared, Table},
};
use crate::{
    bpf::{
        attach_error::AttachError,
        status::{ProgramState, ProgramStatus},
    },
    identify::shared::now,
    node::interface::Interface,
};

/// What is missing, in the words of every place that says so.
pub const WITHOUT: &str = "packets are captured, not counted by programs: no times on the NAT path, no drops, and what \
                           comes faster than it is read is not counted";

/// How the taps are called in `/status` and `aksnet_program_up`.
const PROGRAM: &str = "capture";
const HOOK: &str = "af_packet";

/// The longest packet: what the kernel aggregates comes in one piece.
const LONGEST: usize = 65_536 + 64;
/// How often a reader looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);
/// How much may wait for a reader that has no CPU: some thousand packets. Only `CAP_NET_ADMIN` gives that; without, it is
/// what `net.core.rmem_max` allows.
const RECEIVE_BUFFER: usize = 8 << 20;

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u32 = 4;

/// Begins: taps, and the table in which they count.
#[must_use]
pub fn start(cells: u32, spill_entries: u32) -> (Taps, Shared) {
    let table = Shared::new(Table::new(cells, spill_entries));
    let taps = Taps {
        pairing: Arc::new(Mutex::new(Pairing::new(false))),
        table: table.clone(),
        by_interface: BTreeMap::new(),
        ending: Vec::new(),
    };
    (taps, table)
}

/// The taps of all watched interfaces. Dropping it ends them, and counts what was still waited for.
#[derive(Debug)]
pub struct Taps {
    pairing: Arc<Mutex<Pairing>>,
    table: Shared,
    by_interface: BTreeMap<u32, Tap>,
    /// Readers that have been told to end: each looks a few times in a second only, and nobody waits for one by one.
    ending: Vec<JoinHandle<()>>,
}

/// Dropping it tells its readers to end.
#[derive(Debug)]
struct Tap {
    over: Arc<AtomicBool>,
    readers: Vec<JoinHandle<()>>,
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        let tapped: Vec<u32> = self.by_interface.keys().copied().collect();
        for ifindex in tapped {
            self.detach(ifindex);
        }
        for reader in self.ending.drain(..) {
            let _panicked = reader.join();
        }
        let mut pairing = self.pairing.lock().unwrap_or_else(PoisonError::into_inner);
        pairing.finish(&mut self.table.lock());
    }
}

impl Taps {
    /// Taps an interface.
    ///
    /// # Errors
    /// When the interface has gone, or the kernel refuses.
    pub fn attach(&mut self, interface: &Interface) -> Result<(), AttachError> {
        self.detach(interface.index);
        let over = Arc::new(AtomicBool::new(false));
        let mut tap = Tap {
            over: over.clone(),
            readers: Vec::new(),
        };
        for direction in [Direction::In, Direction::Out] {
            let reader = Reader {
                receiver: open(interface, direction)?,
                ifindex: interface.index,
                link: interface.link,
                direction,
                pairing: self.pairing.clone(),
                table: self.table.clone(),
                over: over.clone(),
            };
            let thread = std::thread::Builder::new().name("capture".to_owned());
            let started = thread.spawn(move || reader.run());
            tap.readers
                .push(started.map_err(|error| AttachError::Rejected(error.to_string()))?);
        }
        self.by_interface.insert(interface.index, tap);
        Ok(())
    }

    /// Ends an interface's tap: nothing that arrives from now on is counted.
    pub fn detach(&mut self, ifindex: u32) {
        self.ending.retain(|reader| !reader.is_finished());
        if let Some(mut tap) = self.by_interface.remove(&ifindex) {
            self.ending.append(&mut tap.readers);
        }
    }

    /// As programs are shown: the tap, and what there is none of.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramStatus> {
        let status = |program: &str, hook: &str, state, interfaces: usize| ProgramStatus {
            program: program.to_owned(),
            hook: hook.to_owned(),
            up: interfaces > 0,
            state,
            interfaces,
        };
        let interfaces = self.by_interface.len();
        let tapped = if interfaces > 0 {
            ProgramState::Attached
        } else {
            ProgramState::Loaded
        };
        let missing = || ProgramState::Unsupported("packets are captured (--capture)".to_owned());
        vec![
            status(PROGRAM, HOOK, tapped, interfaces),
            status("aksnet_enter_pod", "capture", missing(), 0),
            status("aksnet_exit_pod", "capture", missing(), 0),
            status("aksnet_drop", "capture", missing(), 0),
        ]
    }
}

/// A filter that takes what goes out, or all else (`SKF_AD_PKTTYPE` of `linux/filter.h`).
fn filter(direction: Direction) -> [SockFilter; 4] {
    const LOAD_ABSOLUTE_BYTE: u16 = 0x30;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const PACKET_KIND: u32 = 0xffff_f000 + 4;
    let (yes, no) = match direction {
        Direction::Out => (u32::MAX, 0),
        Direction::In | Direction::Unknown => (0, u32::MAX),
    };
    [
        SockFilter::new(LOAD_ABSOLUTE_BYTE, 0, 0, PACKET_KIND),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, OUTGOING),
        SockFilter::new(RETURN, 0, 0, yes),
        SockFilter::new(RETURN, 0, 0, no),
    ]
}

fn open(
    interface: &Interface,
    direction: Direction,
) -> Result<Box<dyn DataLinkReceiver>, AttachError> {
    let refused = |error: std::io::Error| match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => AttachError::InterfaceGone,
        _ => AttachError::Rejected(format!("cannot capture: {error}")),
    };
    // Without a protocol it hears nothing before it is bound: pnet binds it to one interface and all protocols.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(refused)?;
    socket.attach_filter(&filter(direction)).map_err(refused)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket
            .set_recv_buffer_size(RECEIVE_BUFFER)
            .map_err(refused)?;
    }
    let config = datalink::Config {
        read_buffer_size: LONGEST,
        write_buffer_size: 0,
        read_timeout: Some(LOOK),
        promiscuous: false,
        // pnet closes it, also where it fails.
        socket_fd: Some(socket.into_raw_fd()),
        ..datalink::Config::default()
    };
    let target = NetworkInterface {
        name: interface.name.clone(),
        description: String::new(),
        index: interface.index,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    match datalink::channel(&target, config).map_err(refused)? {
        Channel::Ethernet(_, receiver) => Ok(receiver),
        _ => Err(AttachError::Unsupported(
            "pnet gives another kind of channel".to_owned(),
        )),
    }
}

/// Reads one socket.
struct Reader {
    receiver: Box<dyn DataLinkReceiver>,
    ifindex: u32,
    link: Link,
    direction: Direction,
    pairing: Arc<Mutex<Pairing>>,
    table: Shared,
    over: Arc<AtomicBool>,
}

impl Reader {
    fn run(mut self) {
        while !self.over.load(Ordering::Relaxed) {
            match self.receiver.next() {
                // Another tap of the same interface may have it as well.
                Ok(_) if self.over.load(Ordering::Relaxed) => break,
                Ok(frame) => {
                    let packet = Captured {
                        bytes: frame,
                        length: u32::try_from(frame.len()).unwrap_or(u32::MAX),
                    };
                    let parsed = packet::parse(&packet, self.link);
                    let print = parsed
                        .as_ref()
                        .map_or(0, |parsed| fingerprint(&packet, parsed));
                    let length = packet.length;
                    let mut pairing = self.pairing.lock().unwrap_or_else(PoisonError::into_inner);
                    match parsed {
                        Ok(parsed) => {
                            let sighting = Sighting {
                                ns: now(),
                                ifindex: self.ifindex,
                                direction: self.direction,
                                parsed,
                                fingerprint: print,
                            };
                            pairing.see(&mut self.table.lock(), &sighting);
                        }
                        // What leaves is skipped where it came in, or is the node's own ARP and the like.
                        Err(why) if self.direction == Direction::In => {
                            self.table.lock().skip(why, length);
                        }
                        Err(_) => {}
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::TimedOut
                            | std::io::ErrorKind::WouldBlock
                            | std::io::ErrorKind::Interrupted
                    ) =>
                {
                    let mut pairing = self.pairing.lock().unwrap_or_else(PoisonError::into_inner);
                    pairing.expire(&mut self.table.lock(), now());
                }
                // The interface is down or has gone; whoever follows interfaces says which.
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn nobody_waits_for_the_readers_one_after_the_other() {
        let (mut taps, _table) = start(16, 16);
        let mut packets = Vec::new();
        for ifindex in 1..=20 {
            // A reader that waits for a packet.
            let (packet, waits) = mpsc::channel::<()>();
            let wait = move || {
                let _told = waits.recv_timeout(Duration::from_secs(20));
            };
            let tap = Tap {
                over: Arc::default(),
                readers: vec![std::thread::spawn(wait)],
            };
            let over = tap.over.clone();
            taps.by_interface.insert(ifindex, tap);
            taps.detach(ifindex);
            assert!(over.load(Ordering::Relaxed), "it is told to end");
            packets.push(packet);
        }
        let waiting = taps.ending.iter().filter(|reader| !reader.is_finished());
        assert_eq!(waiting.count(), 20);
        drop(packets);
        drop(taps);
    }
}

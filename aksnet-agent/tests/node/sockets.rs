//! Drops by sockets of the node: what such a socket has taken has lost its device, and is counted all the same.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
};

use aksnet_common::{
    packet::{ACK, TCP, UDP},
    stats::Event,
    tracked::Tracking,
};
use anyhow::{Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use xtask::testbed::{
    Testbed,
    traffic::{TcpServer, Udp},
};

use crate::{
    evidence::{send_tcp, tuple},
    watch::{Watch, every_packet, node_ip, turn},
};

/// Datagrams of each of two senders.
const SENT: u32 = 500;

/// Takes what has arrived.
fn arrived(socket: &UdpSocket) -> Result<u64> {
    socket.set_nonblocking(true)?;
    let mut count = 0;
    loop {
        match socket.recv(&mut [0; 2048]) {
            Ok(_) => count += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn datagrams_that_a_full_buffer_of_the_node_refuses_are_drops_for_that_reason() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let client = bed.pod(0);
    let from = bed.node().link(client.veth())?.index;
    for family in bed.families() {
        let address = SocketAddr::new(node_ip(&bed, family)?, 7100);
        let socket = bed.node().netns().run(|| Ok(UdpSocket::bind(address)?))?;
        setsockopt(&socket, RcvBuf, &8192)?;
        let mut watch = Watch::start(&bed, &every_packet())?;
        // Two at a time from two ports, so that they also meet at the socket.
        std::thread::scope(|scope| {
            let send = || {
                Udp::to(address)
                    .datagrams(SENT)
                    .size(1000)
                    .unanswered()
                    .run(client.netns())
            };
            let other = scope.spawn(send);
            send()?;
            other.join().expect("no panic")
        })?;
        bed.settle()?;
        let received = arrived(&socket)?;
        let refused = u64::from(SENT) * 2 - received;
        ensure!(received > 0 && refused > 0, "{received} arrived");
        let full = watch.kernel.reason_number("socket_rcvbuff");
        let mut sums = (0, 0);
        for (key, stats) in watch.drops()? {
            if (key.key.protocol, key.key.dst_port) == (UDP, 7100) {
                assert_eq!(Some(key.reason), full);
                assert_eq!((key.iif, key.key.ifindex), (from, from));
                sums = (sums.0 + stats.skbs, sums.1 + stats.passages);
            }
        }
        assert_eq!(sums, (refused, refused), "each had entered");
    }
    Ok(())
}

#[test]
fn a_segment_that_a_connection_of_the_node_does_not_take_is_a_drop_and_an_old_one_is_not()
-> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let client = bed.pod(0);
    let from = bed.node().link(client.veth())?.index;
    for family in bed.families() {
        let address = SocketAddr::new(node_ip(&bed, family)?, 7200);
        let server = TcpServer::echo(bed.node().netns(), address)?;
        let stream = client.netns().run(|| Ok(TcpStream::connect(address)?))?;
        let local = stream.local_addr()?;
        let mut watch = Watch::start(&bed, &every_packet())?;
        let noise = watch.event(Event::DropNoise);
        // Of two numbers that are half of all apart, one lies ahead of the window and one behind it.
        let tuple = tuple(local.ip(), local.port(), address.ip(), address.port());
        for seq in [0, 1 << 31] {
            send_tcp(client.netns(), &tuple, ACK, seq)?;
        }
        bed.settle()?;
        let number = watch.kernel.reason_number("tcp_old_sequence");
        if number.is_none() {
            println!("skipped: this kernel has one reason for both, which is noise");
            return Ok(());
        }
        let drops: Vec<_> = watch
            .drops()?
            .iter()
            .filter(|(k, _)| k.key.protocol == TCP)
            .copied()
            .collect();
        let [(key, stats)] = drops.as_slice() else {
            panic!("one drop: {drops:#?}")
        };
        assert_eq!(watch.kernel.reason_name(key.reason), "tcp_invalid_sequence");
        assert_eq!((key.key.tuple(), stats.skbs), (tuple, 1));
        assert_eq!((key.iif, key.key.ifindex), (from, from));
        assert_eq!(
            key.state.tracking(),
            Tracking::NoEntry,
            "TCP has let go of it"
        );
        assert!(watch.event(Event::DropNoise) > noise);
        drop(stream);
        server.settle()?;
    }
    Ok(())
}

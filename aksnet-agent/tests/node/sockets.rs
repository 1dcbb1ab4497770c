//! Drops by sockets of the node: what such a socket has taken has lost its device, and is counted all the same.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use aksnet_agent::bpf::LoadOptions;
use aksnet_common::packet::{TCP, UDP};
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt::RcvBuf};
use xtask::testbed::{
    Testbed,
    traffic::{Connect, Udp, connect},
};

use crate::watch::{Watch, node_ip, turn};

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
    const SENT: u32 = 500;
    let bed = Testbed::kind().dual_stack(true).build()?;
    let client = bed.pod(0);
    let from = bed.node().link(client.veth())?.index;
    for family in bed.families() {
        let address = SocketAddr::new(node_ip(&bed, family)?, 7100);
        let socket = bed.node().netns().run(|| Ok(UdpSocket::bind(address)?))?;
        setsockopt(&socket, RcvBuf, &8192)?;
        let mut watch = Watch::start(&bed, &LoadOptions::default())?;
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
        assert_eq!(
            watch.dropped_for("socket_rcvbuff")?,
            refused,
            "{:#?}",
            watch.drops()?
        );
        for (key, stats) in watch.drops()? {
            assert_eq!((key.key.protocol, key.key.dst_port), (UDP, 7100));
            assert_eq!((key.iif, key.key.ifindex), (from, from));
            assert_eq!(stats.passages, stats.skbs, "each had entered");
        }
    }
    Ok(())
}

#[test]
fn a_connection_for_which_a_listener_of_the_node_has_no_room_is_a_drop() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().dual_stack(true).build()?;
    let client = bed.pod(0);
    for family in bed.families() {
        let address = SocketAddr::new(node_ip(&bed, family)?, 7200);
        let listener = bed.node().netns().run(|| Ok(TcpListener::bind(address)?))?;
        listen(&listener, Backlog::new(1)?)?;
        let mut watch = Watch::start(&bed, &LoadOptions::default())?;
        let mut refused = 0;
        for _ in 0..5 {
            let outcome = connect(client.netns(), address, Duration::from_millis(200));
            refused += u32::from(!matches!(outcome, Ok(Connect::Connected)));
        }
        ensure!(refused > 0, "the listener took all");
        let drops = watch.drops()?.to_vec();
        println!("{drops:#?}");
        let of_port = drops
            .iter()
            .find(|(k, _)| (k.key.protocol, k.key.dst_port) == (TCP, 7200));
        let (key, _) = of_port.with_context(|| format!("a drop: {drops:#?}"))?;
        println!("{}", watch.kernel.reason_name(key.reason));
    }
    Ok(())
}

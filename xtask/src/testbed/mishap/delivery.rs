//! Packets that reach the last step and are lost there: the next hop does not answer, nobody listens, whoever listens
//! does not read, the link's queue is full.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{BOTH, Loss, Mishap, Sender};
use crate::testbed::bed::Testbed;
use crate::testbed::frame::Packet;
use crate::testbed::plan::{Family, Flavour, nth};
use crate::testbed::service::Transport;
use crate::testbed::traffic::send_packets;

pub(super) const MISHAPS: &[Mishap] = &[
    Mishap::new("neighbour does not answer", "neighbour", BOTH, neighbour),
    Mishap::new("closed TCP port", "socket", BOTH, closed_tcp),
    Mishap::new("closed UDP port", "socket", BOTH, closed_udp),
    Mishap::new("socket buffer full", "socket", BOTH, buffer_full),
    Mishap::new("queue full", "queue", BOTH, queue_full),
];

/// How long the kernel may take to give a neighbour up, or a queue to run empty.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pod's address that no pod has any more. Behind a bridge pods would look for it themselves; there it is a VNet
/// host that calls it.
fn neighbour(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let range = bed
        .node()
        .plan()
        .pods
        .of(family)
        .context("pods of the family")?;
    let gone = nth(range, 200).context("the range has as many")?;
    let bridged = bed.plan().flavour == Flavour::Kubenet;
    let device = if bridged {
        "cbr0".to_owned()
    } else {
        bed.pod(1).veth().to_owned()
    };
    let ip = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let node = sender.node();
    let vm = bed
        .plan()
        .vm
        .of(family)
        .context("the family is the cluster's")?;
    let (from, source, interface) = if bridged {
        let source = SocketAddr::new(vm, super::CLIENT_PORT);
        (bed.vm(), source, bed.node().uplink().to_owned())
    } else {
        (sender.pod.netns(), sender.source(), sender.interface()?)
    };
    let probing = |count: &str, wait: &str| -> Result<()> {
        node.sysctl(&format!("net/{ip}/neigh/{device}/mcast_solicit"), count)?;
        node.sysctl(&format!("net/{ip}/neigh/{device}/retrans_time_ms"), wait)
    };
    let lose = || {
        let to = SocketAddr::new(gone, 9000);
        let datagram = Packet::udp(source, to, &super::number().to_be_bytes());
        let before = sender.unreachable_sent()?;
        send_packets(from, &datagram, packets)?;
        let deadline = Instant::now() + PATIENCE;
        while !node
            .output("ip", ["neigh", "show", &gone.to_string()])?
            .contains("FAILED")
        {
            ensure!(Instant::now() < deadline, "{gone} is not given up");
            std::thread::sleep(Duration::from_millis(20));
        }
        bed.settle()?;
        Ok(Loss {
            packets: packets.into(),
            transport: Transport::Udp,
            source,
            destination: to,
            interface: interface.clone(),
            counted: Some(("ICMP errors", sender.unreachable_sent()? - before)),
        })
    };
    super::with(
        || probing("1", "100"),
        || {
            sender.with_every_error(|| {
                if bridged {
                    lose()
                } else {
                    sender.with_route(&format!("{gone} dev {device}"), lose)
                }
            })
        },
        || probing("3", "1000"),
    )
}

fn closed_tcp(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    sender.lose_syns(of_node(bed, family, 9)?, packets, "resets sent", || {
        sender.counter("Tcp.OutRsts", "Tcp.OutRsts")
    })
}

fn closed_udp(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    sender.lose_datagrams(of_node(bed, family, 9)?, packets, "NoPorts", || {
        sender.counter("Udp.NoPorts", "Udp6NoPorts")
    })
}

/// A socket of the node with a small buffer that nobody reads. The first few datagrams fit.
fn buffer_full(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let to = of_node(bed, family, 9001)?;
    let socket = sender.node().run(|| Ok(UdpSocket::bind(to)?))?;
    // The kernel makes the least that it allows of it.
    setsockopt(&socket, sockopt::RcvBuf, &1)?;
    socket.set_nonblocking(true)?;
    let mut loss = sender.lose_datagrams(to, packets, "RcvbufErrors", || {
        sender.counter("Udp.RcvbufErrors", "Udp6RcvbufErrors")
    })?;
    while socket.recv(&mut [0; 64]).is_ok() {
        loss.packets -= 1;
    }
    ensure!(loss.packets > 0, "all {packets} datagrams fit: send more");
    Ok(loss)
}

/// An uplink that takes less than is sent. The first few packets are sent, and some wait.
fn queue_full(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let to = sender.outside(9002)?;
    // It answers nobody: the answers' answers would fill the queue too.
    let receiver = bed.outside().run(|| Ok(UdpSocket::bind(to)?))?;
    receiver.set_nonblocking(true)?;
    let (node, uplink) = (sender.node(), bed.node().uplink());
    let shaped = || -> Result<[u64; 3]> {
        let json = node.output("tc", ["-s", "-j", "qdisc", "show", "dev", uplink])?;
        let queues: serde_json::Value = serde_json::from_str(&json)?;
        let number = |key: &str| {
            queues[0][key]
                .as_u64()
                .with_context(|| format!("no {key} in {json}"))
        };
        Ok([number("drops")?, number("packets")?, number("backlog")?])
    };
    let tc = |text: &str| node.output("tc", text.split(' ')).map(drop);
    super::with(
        || {
            tc(&format!(
                "qdisc add dev {uplink} root tbf rate 64kbit burst 1600 limit 1600"
            ))
        },
        || {
            let datagram = Packet::udp(sender.source(), to, &[0; 400]);
            send_packets(sender.pod.netns(), &datagram, packets)?;
            let deadline = Instant::now() + PATIENCE;
            let dropped = loop {
                let [drops, sent, backlog] = shaped()?;
                // A program that judges packets may still have some of them.
                if backlog == 0 && drops + sent >= packets.into() {
                    break drops;
                }
                ensure!(Instant::now() < deadline, "the queue does not run empty");
                std::thread::sleep(Duration::from_millis(20));
            };
            bed.settle()?;
            ensure!(dropped > 0, "all {packets} packets fit: send more");
            let mut arrived = 0;
            while receiver.recv(&mut [0; 512]).is_ok() {
                arrived += 1;
            }
            Ok(Loss {
                packets: dropped,
                transport: Transport::Udp,
                source: sender.source(),
                destination: to,
                interface: sender.interface()?,
                counted: Some(("did not arrive", u64::from(packets) - arrived)),
            })
        },
        || tc(&format!("qdisc del dev {uplink} root")),
    )
}

fn of_node(bed: &Testbed, family: Family, port: u16) -> Result<SocketAddr> {
    let ip = bed.node().address().of(family);
    Ok(SocketAddr::new(
        ip.context("the node has the family")?,
        port,
    ))
}

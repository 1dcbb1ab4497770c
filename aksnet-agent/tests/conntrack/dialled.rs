//! What a process of the node itself had dialled.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use aksnet_agent::{config::ConntrackMode, conntrack::FollowConfig};
use aksnet_common::{packet::TCP, passage::Tuple};
use anyhow::{Context as _, Result, ensure};
use xtask::testbed::{Service, Testbed, traffic::TcpServer};

use crate::follow::{config, follow, turn, wait};

fn tuple(src: SocketAddr, dst: SocketAddr) -> Tuple {
    Tuple {
        src: src.ip().into(),
        dst: dst.ip().into(),
        src_port: src.port(),
        dst_port: dst.port(),
    }
}

#[test]
fn a_host_process_that_dialled_a_service_is_found_by_its_packets() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let (netns, web) = (bed.node().netns(), bed.pod(0));
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let service =
        bed.add_service(Service::cluster_ip("shop", "web", 80).endpoints([server.address()]))?;
    let follower = follow(netns, config(ConntrackMode::Events))?;
    let (stream, local) = netns.run(|| {
        let mut stream = TcpStream::connect(service.address())?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        let local = stream.local_addr()?;
        Ok((stream, local))
    })?;
    // How the packets leave the node is how the endpoint sees them.
    let peer = *server.peers().first().context("the server was dialled")?;
    let after = tuple(peer, server.address());
    let dialled = tuple(local, service.address());
    wait("the entry is mirrored", || {
        Ok(follower.with_table(|t| t.dialled(TCP, &after)) == Some(dialled))
    })?;
    ensure!(dialled.dst != after.dst, "the destination was replaced");
    ensure!(follower.dialled(TCP, &after) == Some(dialled));

    // One whose mirror is older than the connection asks the kernel.
    let stale = follow(
        netns,
        FollowConfig {
            limit: 0,
            ..config(ConntrackMode::Dump)
        },
    )?;
    wait("the first dump", || Ok(stale.status().dumps > 0))?;
    ensure!(stale.status().mirrored == 0);
    ensure!(stale.dialled(TCP, &after) == Some(dialled));
    let other = Tuple {
        src_port: after.src_port ^ 1,
        ..after
    };
    ensure!(stale.dialled(TCP, &other).is_none(), "no such connection");
    // Nobody redirected a connection that went to the endpoint itself.
    let direct = netns.run(|| Ok(TcpStream::connect(server.address())?))?;
    let there = tuple(direct.local_addr()?, server.address());
    ensure!(stale.dialled(TCP, &there).is_none(), "not redirected");
    drop(stream);
    Ok(())
}

//! Connection tracking *filled*: entries made by hand over ctnetlink, many at once.
//!
//! `nf_conntrack_max` is the machine's and may not be touched by a test; the count against it is each namespace's own.
//! So a table is filled by filling it.

use std::os::fd::AsRawFd as _;

use anyhow::Result;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};

use super::netns::Netns;
use super::nfnetlink::{attribute, request};

/// `IPS_CONFIRMED`, and `IPS_SEEN_REPLY | IPS_ASSURED`: an assured entry is not evicted.
const CONFIRMED: u32 = 8;
const ASSURED: u32 = 2 | 4;

fn tuple(kind: u16, src: [u8; 4], dst: [u8; 4], src_port: u16, dst_port: u16) -> Vec<u8> {
    let nest = |kind: u16, parts: &[Vec<u8>]| attribute(kind | 0x8000, &parts.concat());
    let addresses = nest(1, &[attribute(1, &src), attribute(2, &dst)]);
    let ports = nest(
        2,
        &[
            attribute(1, &[17]),
            attribute(2, &src_port.to_be_bytes()),
            attribute(3, &dst_port.to_be_bytes()),
        ],
    );
    nest(kind, &[addresses, ports])
}

/// Makes `count` UDP entries without NAT that live for ten minutes; assured ones are not evicted to make room.
///
/// # Errors
/// When the kernel does not take them.
pub fn fill(netns: &Netns, count: u32, assured: bool) -> Result<()> {
    let status = if assured {
        CONFIRMED | ASSURED
    } else {
        CONFIRMED
    };
    netns.run(|| {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        let kernel = NetlinkAddr::new(0, 0);
        let mut batch = Vec::new();
        for n in 0..count {
            let [_, a, b, c] = n.to_be_bytes();
            let (src, dst) = ([10, 99, a, b], [10, 98, 0, c]);
            let attributes = [
                tuple(1, src, dst, 1000, 2000),
                tuple(2, dst, src, 2000, 1000),
                attribute(3, &status.to_be_bytes()),
                attribute(7, &600u32.to_be_bytes()),
            ]
            .concat();
            // IPCTNL_MSG_CT_NEW; REQUEST, EXCL, CREATE; AF_INET.
            batch.extend(request(0x100, 0x601, 2, 0, &attributes));
            if n % 128 == 127 || n + 1 == count {
                sendto(socket.as_raw_fd(), &batch, &kernel, MsgFlags::empty())?;
                batch.clear();
            }
        }
        Ok(())
    })
}

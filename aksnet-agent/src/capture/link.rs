//! *Link types*: what a captured frame begins with, after the registry at <https://www.tcpdump.org/linktypes.html>.

use aksnet_common::packet::{Link, Packet};

/// Which way a packet went when it was seen, from the node's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Into the node.
    In,
    /// Out of it.
    Out,
    /// The capture does not say.
    Unknown,
}

/// A captured packet: its first bytes, and how long it was.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'a> {
    /// What was kept of it.
    pub bytes: &'a [u8],
    /// Its length on the wire.
    pub length: u32,
}

impl Captured<'_> {
    /// Whether not all of it was kept.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.bytes.len() < self.length as usize
    }
}

impl Packet for Captured<'_> {
    type Head<'a>
        = &'a [u8]
    where
        Self: 'a;

    fn len(&self) -> u32 {
        self.length
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes
            .get(offset as usize..)?
            .first_chunk::<N>()
            .copied()
    }

    fn head<const N: usize>(&self) -> Option<&[u8]> {
        self.bytes.get(..N)
    }
}

/// A frame without what only captures have.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// From the Ethernet or IP header on.
    pub packet: Captured<'a>,
    /// Which of the two.
    pub link: Link,
    /// As the frame itself says.
    pub direction: Direction,
    /// The interface's index, as the frame itself says; 0: it does not.
    pub ifindex: u32,
}

/// Why a frame is not looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Not a packet of IP, or one within the node (loopback).
    NotIp,
    /// Of the loopback device.
    Loopback,
    /// Ends within the link layer's header.
    Truncated,
    /// A link type that is not known here.
    LinkType(i32),
}

const ETHERNET: i32 = 1;
/// BSD's numbers for raw IP, which some systems write into files as they are.
const DLT_RAW: [i32; 2] = [12, 14];
const RAW: i32 = 101;
const LINUX_SLL: i32 = 113;
const IPV4: i32 = 228;
const IPV6: i32 = 229;
const LINUX_SLL2: i32 = 276;

const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_VLAN: [u16; 2] = [0x8100, 0x88a8];
const ARPHRD_LOOPBACK: u16 = 772;
/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u16 = 4;

/// Whether frames of this link type can be read.
#[must_use]
pub fn is_known(link_type: i32) -> bool {
    [ETHERNET, RAW, LINUX_SLL, IPV4, IPV6, LINUX_SLL2].contains(&link_type)
        || DLT_RAW.contains(&link_type)
}

/// Takes the capture's own header off a frame.
///
/// # Errors
/// Why it is not looked into.
pub fn frame(link_type: i32, packet: Captured<'_>) -> Result<Frame<'_>, Unread> {
    let plain = |link| Frame {
        packet,
        link,
        direction: Direction::Unknown,
        ifindex: 0,
    };
    match link_type {
        ETHERNET => Ok(plain(Link::Ethernet)),
        RAW | IPV4 | IPV6 => Ok(plain(Link::Ip)),
        _ if DLT_RAW.contains(&link_type) => Ok(plain(Link::Ip)),
        LINUX_SLL => {
            let [kind, device, protocol] = [0, 2, 14].map(|at| half(&packet, at));
            cooked(packet, 16, kind, device, protocol, Some(0))
        }
        LINUX_SLL2 => {
            let [protocol, device] = [0, 8].map(|at| half(&packet, at));
            let kind = packet.read::<1>(10).map(|[kind]| u16::from(kind));
            let ifindex = packet.read::<4>(4).map(u32::from_be_bytes);
            cooked(packet, 20, kind, device, protocol, ifindex)
        }
        other => Err(Unread::LinkType(other)),
    }
}

fn half(packet: &Captured<'_>, at: u32) -> Option<u16> {
    packet.read::<2>(at).map(u16::from_be_bytes)
}

/// Linux "cooked" headers: kind of packet, kind of device, Ethernet type, and the IP header behind it.
fn cooked(
    packet: Captured<'_>,
    header: u32,
    kind: Option<u16>,
    device: Option<u16>,
    protocol: Option<u16>,
    ifindex: Option<u32>,
) -> Result<Frame<'_>, Unread> {
    let (Some(kind), Some(device), Some(mut protocol), Some(ifindex)) =
        (kind, device, protocol, ifindex)
    else {
        return Err(Unread::Truncated);
    };
    if device == ARPHRD_LOOPBACK {
        return Err(Unread::Loopback);
    }
    let mut at = header;
    while ETH_VLAN.contains(&protocol) && at < header + 8 {
        protocol = half(&packet, at + 2).ok_or(Unread::Truncated)?;
        at += 4;
    }
    if !matches!(protocol, ETH_IPV4 | ETH_IPV6) {
        return Err(Unread::NotIp);
    }
    let bytes = packet.bytes.get(at as usize..).ok_or(Unread::Truncated)?;
    Ok(Frame {
        packet: Captured {
            bytes,
            length: packet.length.saturating_sub(at),
        },
        link: Link::Ip,
        direction: if kind == OUTGOING {
            Direction::Out
        } else {
            Direction::In
        },
        ifindex,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn captured(bytes: &[u8]) -> Captured<'_> {
        Captured {
            bytes,
            length: u32::try_from(bytes.len()).unwrap(),
        }
    }

    #[test]
    fn cooked_frames_tell_direction_and_interface() {
        let mut sll = vec![0, 4, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 8, 0];
        sll.extend([0x45, 0]);
        let read = frame(LINUX_SLL, captured(&sll)).unwrap();
        assert_eq!((read.direction, read.ifindex), (Direction::Out, 0));
        assert_eq!((read.packet.bytes, read.packet.length), (&[0x45, 0][..], 2));
        let mut sll2 = vec![
            0x81, 0, 0, 0, 0, 0, 0, 7, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0,
        ];
        sll2.extend([0, 5, 0x86, 0xdd, 0x60]);
        let read = frame(LINUX_SLL2, captured(&sll2)).unwrap();
        assert_eq!((read.direction, read.ifindex), (Direction::In, 7));
        assert_eq!(read.packet.bytes, [0x60]);
        sll2[8..10].copy_from_slice(&ARPHRD_LOOPBACK.to_be_bytes());
        assert_eq!(
            frame(LINUX_SLL2, captured(&sll2)).unwrap_err(),
            Unread::Loopback
        );
        assert_eq!(
            frame(LINUX_SLL, captured(&sll[..15])).unwrap_err(),
            Unread::Truncated
        );
        assert_eq!(
            frame(147, captured(&sll)).unwrap_err(),
            Unread::LinkType(147)
        );
    }

    proptest! {
        #[test]
        fn no_frame_is_too_odd(
            link_type in prop::sample::select(vec![1, 12, 14, 101, 113, 228, 229, 276, 0]),
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            more in 0u32..100,
        ) {
            let length = u32::try_from(bytes.len()).unwrap() + more;
            if let Ok(frame) = frame(link_type, Captured { bytes: &bytes, length }) {
                let parsed = aksnet_common::packet::parse(&frame.packet, frame.link);
                if let Ok(parsed) = parsed {
                    let _any = aksnet_common::passage::fingerprint(&frame.packet, &parsed);
                }
            }
        }
    }
}

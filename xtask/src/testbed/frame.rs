//! A *frame* built by hand, for what sockets do not send: VLAN tags, fragments, odd protocols, broken headers.

use std::net::{IpAddr, SocketAddr};

/// A hardware address.
pub type Mac = [u8; 6];

/// Reads `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn parse_mac(text: &str) -> Option<Mac> {
    let octets: Vec<u8> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    octets.try_into().ok()
}

/// The Internet checksum (RFC 1071) over these parts in turn; all but the last of even length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// An Ethernet frame around an IP packet, being put together.
#[derive(Debug, Clone)]
pub struct Frame {
    source: Mac,
    destination: Mac,
    tags: Vec<(u16, u16)>,
    packet: Packet,
}

impl Frame {
    /// A frame from one station to another.
    #[must_use]
    pub fn new(source: Mac, destination: Mac, packet: Packet) -> Self {
        Self {
            source,
            destination,
            tags: Vec::new(),
            packet,
        }
    }

    /// With one more 802.1Q tag inside those before.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.tags.push((0x8100, id));
        self
    }

    /// With one more 802.1ad (service) tag.
    #[must_use]
    pub fn service_vlan(mut self, id: u16) -> Self {
        self.tags.push((0x88a8, id));
        self
    }

    /// Its octets.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut octets = [self.destination, self.source].concat();
        for (kind, id) in &self.tags {
            octets.extend(kind.to_be_bytes());
            octets.extend(id.to_be_bytes());
        }
        let kind: u16 = if self.packet.source.is_ipv4() {
            0x0800
        } else {
            0x86dd
        };
        octets.extend(kind.to_be_bytes());
        octets.extend(self.packet.build());
        octets
    }
}

/// An IP packet.
#[derive(Debug, Clone)]
pub struct Packet {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    identification: u16,
    /// Offset in octets, and whether more fragments follow.
    fragment: Option<(u16, bool)>,
    hops: u8,
    whole: bool,
    payload: Vec<u8>,
}

/// The TCP flag that opens a connection.
pub const SYN: u8 = 0x02;

/// The TCP flag of every later segment.
pub const ACK: u8 = 0x10;

impl Packet {
    /// A packet of any protocol.
    ///
    /// # Panics
    /// When the addresses are of different families.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "one family");
        Self {
            source,
            destination,
            protocol,
            identification: 1,
            fragment: None,
            hops: 64,
            whole: false,
            payload,
        }
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Self {
        let length = u16::try_from(8 + data.len()).unwrap_or(u16::MAX);
        let mut datagram: Vec<u8> = [source.port(), destination.port(), length, 0]
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect();
        datagram.extend(data);
        let sum = match transport_checksum(source.ip(), destination.ip(), 17, &datagram) {
            0 => u16::MAX,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        Self::new(source.ip(), destination.ip(), 17, datagram)
    }

    /// A TCP segment without data, with these flags and this sequence number.
    #[must_use]
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8, seq: u32) -> Self {
        let mut segment: Vec<u8> = [source.port(), destination.port()]
            .iter()
            .flat_map(|port| port.to_be_bytes())
            .collect();
        // Sequence and acknowledgement numbers, header length, flags, window, checksum, urgent pointer.
        segment.extend(seq.to_be_bytes());
        segment.extend(0x0506_0708_u32.to_be_bytes());
        segment.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        let sum = transport_checksum(source.ip(), destination.ip(), 6, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        Self::new(source.ip(), destination.ip(), 6, segment)
    }

    /// With so many hops left to go.
    #[must_use]
    pub fn hops(self, hops: u8) -> Self {
        Self { hops, ..self }
    }

    /// Not to be fragmented on its way (in IPv6 no packet is).
    #[must_use]
    pub fn whole(self) -> Self {
        Self {
            whole: true,
            ..self
        }
    }

    /// Where it goes.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// With this identification, which fragments of one packet share.
    #[must_use]
    pub fn identification(self, identification: u16) -> Self {
        Self {
            identification,
            ..self
        }
    }

    /// In fragments of at most `size` payload octets, a multiple of 8.
    ///
    /// # Panics
    /// When `size` is no multiple of 8.
    #[must_use]
    pub fn fragments(&self, size: usize) -> Vec<Self> {
        assert!(
            size > 0 && size.is_multiple_of(8),
            "fragments begin at multiples of 8"
        );
        let parts = self.payload.chunks(size).enumerate();
        let count = self.payload.len().div_ceil(size);
        parts
            .map(|(at, part)| Self {
                fragment: Some((u16::try_from(at * size).unwrap_or(u16::MAX), at + 1 < count)),
                payload: part.to_vec(),
                ..self.clone()
            })
            .collect()
    }

    /// Its octets, from the IP header on.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let (offset, more) = self.fragment.unwrap_or((0, false));
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = u16::try_from(20 + self.payload.len()).unwrap_or(u16::MAX);
                let flags = (offset / 8)
                    | if more { 0x2000 } else { 0 }
                    | if self.whole { 0x4000 } else { 0 };
                let mut octets = vec![0x45, 0];
                octets.extend(
                    [length, self.identification, flags]
                        .iter()
                        .flat_map(|word| word.to_be_bytes()),
                );
                octets.extend([self.hops, self.protocol, 0, 0]);
                octets.extend(source.octets());
                octets.extend(destination.octets());
                let sum = checksum(&[&octets]);
                octets[10..12].copy_from_slice(&sum.to_be_bytes());
                octets.extend(&self.payload);
                octets
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extension = if self.fragment.is_some() { 8 } else { 0 };
                let length = u16::try_from(extension + self.payload.len()).unwrap_or(u16::MAX);
                let mut octets = vec![0x60, 0, 0, 0];
                octets.extend(length.to_be_bytes());
                octets.extend([if extension > 0 { 44 } else { self.protocol }, self.hops]);
                octets.extend(source.octets());
                octets.extend(destination.octets());
                if extension > 0 {
                    octets.extend([self.protocol, 0]);
                    octets.extend((offset | u16::from(more)).to_be_bytes());
                    octets.extend(u32::from(self.identification).to_be_bytes());
                }
                octets.extend(&self.payload);
                octets
            }
            _ => Vec::new(),
        }
    }
}

/// An SCTP packet that opens an association (INIT), from its common header on: such that connection tracking takes it
/// as new.
#[must_use]
pub fn sctp_init(source_port: u16, destination_port: u16) -> Vec<u8> {
    let mut packet: Vec<u8> = [source_port, destination_port]
        .iter()
        .flat_map(|port| port.to_be_bytes())
        .collect();
    // Verification tag and checksum.
    packet.extend([0; 8]);
    // INIT, no flags, 20 octets: tag, window, streams out and in, first sequence number.
    packet.extend([1, 0, 0, 20]);
    packet.extend(0x0a0b_0c0d_u32.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes());
    packet.extend([0, 10, 0, 10]);
    packet.extend(1_u32.to_be_bytes());
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// CRC-32C (Castagnoli), which SCTP has for a checksum.
fn crc32c(octets: &[u8]) -> u32 {
    !octets.iter().fold(u32::MAX, |crc, octet| {
        (0..8).fold(crc ^ u32::from(*octet), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// The checksum of UDP, TCP and ICMPv6: over a pseudo header and the segment.
#[must_use]
pub fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    segment: &[u8],
) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u32::try_from(segment.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    checksum(&[
        &octets(source),
        &octets(destination),
        &[0, protocol],
        &length,
        segment,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(from: &str, to: &str, data: &[u8]) -> Packet {
        Packet::udp(from.parse().unwrap(), to.parse().unwrap(), data)
    }

    #[test]
    fn checksums_of_a_built_datagram_come_out_as_zero() {
        let packet = datagram("10.0.0.1:1000", "10.0.0.2:53", b"odd").build();
        assert_eq!(checksum(&[&packet[..20]]), 0);
        let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert_eq!(transport_checksum(from, to, 17, &packet[20..]), 0);
    }

    #[test]
    fn segments_have_a_checksum_and_what_was_asked_for() {
        let (from, to) = (
            "10.0.0.1:1000".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
        );
        let packet = Packet::tcp(from, to, SYN, 0x0102_0304)
            .hops(3)
            .whole()
            .build();
        assert_eq!(transport_checksum(from.ip(), to.ip(), 6, &packet[20..]), 0);
        assert_eq!((packet[8], packet[6], packet[33]), (3, 0x40, SYN));
        assert_eq!(packet[24..28], [1, 2, 3, 4]);
    }

    #[test]
    fn fragments_together_are_the_payload() {
        for (from, to, header) in [
            ("10.0.0.1:1", "10.0.0.2:2", 20),
            ("[fd00::1]:1", "[fd00::2]:2", 48),
        ] {
            let packet = datagram(from, to, &[7; 100]);
            let fragments = packet.fragments(48);
            let joined: Vec<u8> = fragments
                .iter()
                .flat_map(|part| part.build()[header..].to_vec())
                .collect();
            assert_eq!((fragments.len(), joined), (3, packet.payload));
        }
    }

    #[test]
    fn tags_stand_between_addresses_and_type() {
        let frame = Frame::new([1; 6], [2; 6], datagram("10.0.0.1:1", "10.0.0.2:2", b""))
            .service_vlan(5)
            .vlan(6)
            .build();
        assert_eq!(frame[12..22], [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0]);
    }

    #[test]
    fn crc32c_has_its_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn macs_are_read() {
        assert_eq!(
            parse_mac("aa:00:0b:01:02:ff"),
            Some([0xaa, 0, 0x0b, 1, 2, 0xff])
        );
        assert_eq!(parse_mac("aa:00"), None);
    }
}

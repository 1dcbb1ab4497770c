//! Any packet, and what NAT and forwarding make of it: the fingerprint stays, and another packet has another.
//!
//! An input begins with what is written over the packet ([`Rewrite`]); the rest is the frame.

use aksnet_common::{
    flow::KEY_FRAGMENT,
    packet::{DCCP, ICMP, ICMPV6, Link, Parsed, SCTP, TCP, UDP, UDPLITE, parse},
    passage::fingerprint,
};

use super::packet::Scattered;

/// What NAT writes over a packet: addresses, ports, and what it passes on changed.
struct Rewrite<'b> {
    src: &'b [u8; 16],
    dst: &'b [u8; 16],
    ports: &'b [u8; 4],
    /// TTL, DSCP, two bytes for checksums.
    forwarded: &'b [u8; 4],
}

impl<'b> Rewrite<'b> {
    fn split(bytes: &'b [u8]) -> Option<(Self, &'b [u8])> {
        let (src, rest) = bytes.split_first_chunk()?;
        let (dst, rest) = rest.split_first_chunk()?;
        let (ports, rest) = rest.split_first_chunk()?;
        let (forwarded, frame) = rest.split_first_chunk()?;
        let rewrite = Self {
            src,
            dst,
            ports,
            forwarded,
        };
        Some((rewrite, frame))
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let Some((rewrite, frame)) = Rewrite::split(bytes) else {
        return;
    };
    for link in [Link::Ethernet, Link::Ip] {
        if let Ok(parsed) = parse(&frame, link) {
            check(&rewrite, frame, link, &parsed);
        }
    }
}

fn check(rewrite: &Rewrite<'_>, frame: &[u8], link: Link, parsed: &Parsed) {
    let before = fingerprint(&frame, parsed);
    assert_ne!(before, 0, "0 is no fingerprint");
    assert_eq!(before, fingerprint(&Scattered(frame), parsed));

    let mut after = frame.to_vec();
    network(rewrite, &mut after, parsed);
    transport(rewrite, &mut after, parsed);
    let again = parse(&&after[..], link).expect("readable as before");
    assert_eq!(
        before,
        fingerprint(&&after[..], &again),
        "{parsed:?} is not recognised after NAT: {again:?}"
    );
    if parsed.l3_len <= 0xffff {
        let (from, to) = (parsed.l3_offset, parsed.l3_offset + parsed.l3_len);
        let bare = &after[from as usize..to as usize];
        let again = parse(&bare, Link::Ip).expect("readable without link layer and padding");
        assert_eq!(before, fingerprint(&bare, &again), "{parsed:?}");
    }

    // One step of the sum is a bijection, so that this holds of all, and not of most.
    if parsed.key.family == 4 {
        let at = parsed.l3_offset as usize + 4;
        after[at] ^= 1;
        let other = parse(&&after[..], link).expect("readable as before");
        assert_ne!(before, fingerprint(&&after[..], &other), "{parsed:?}");
    }
}

fn write(into: &mut [u8], at: u32, bytes: &[u8]) {
    let at = at as usize;
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

fn network(rewrite: &Rewrite<'_>, packet: &mut [u8], parsed: &Parsed) {
    let at = parsed.l3_offset;
    let [ttl, class, check @ ..] = rewrite.forwarded;
    if parsed.key.family == 4 {
        write(packet, at + 1, &[*class]);
        write(packet, at + 8, &[*ttl]);
        write(packet, at + 10, check);
        write(packet, at + 12, &rewrite.src[..4]);
        write(packet, at + 16, &rewrite.dst[..4]);
    } else {
        let first = [0x60 | class >> 4, class << 4];
        write(packet, at, &first);
        write(packet, at + 7, &[*ttl]);
        write(packet, at + 8, rewrite.src);
        write(packet, at + 24, rewrite.dst);
    }
}

fn transport(rewrite: &Rewrite<'_>, packet: &mut [u8], parsed: &Parsed) {
    if parsed.key.flags & KEY_FRAGMENT != 0 {
        return;
    }
    let at = parsed.l4_offset;
    let check = &rewrite.forwarded[2..];
    let sum = match parsed.key.protocol {
        TCP => at + 16,
        UDP | UDPLITE | DCCP => at + 6,
        SCTP => {
            write(packet, at + 10, check);
            at + 8
        }
        ICMP | ICMPV6 if (parsed.key.protocol == ICMP) == (parsed.key.family == 4) => {
            icmp(rewrite, packet, parsed);
            return;
        }
        _ => return,
    };
    write(packet, at, rewrite.ports);
    write(packet, sum, check);
}

/// The identifier is NAT's port; an error message holds the tuple of the packet that it is about.
fn icmp(rewrite: &Rewrite<'_>, packet: &mut [u8], parsed: &Parsed) {
    let at = parsed.l4_offset;
    write(packet, at + 2, &rewrite.forwarded[2..]);
    write(packet, at + 4, &rewrite.ports[..2]);
    if parsed.icmp_echo {
        return;
    }
    let within = [&rewrite.src[..], rewrite.dst, rewrite.ports].concat();
    let room = within.len().min(parsed.payload_len as usize);
    write(packet, at + 8, &within[..room]);
}

//! Truncated, contradictory and random frames: each is one flow or one skipped packet, never a guess.

use std::collections::BTreeMap;

use aksnet_agent::bpf::LoadOptions;
use aksnet_common::{
    flow::FlowKey,
    packet::{self, Link},
    stats::Skip,
};

use crate::{
    frame::{ACK, DESTINATION, FRAGMENT, Frame, QINQ, SYN, Transport, VLAN},
    headers::{A4, A6, B4, B6, bytes, expect_flow, expect_skip, flows, small},
    rig::{self, HOOKS, Hook, LO, Rig, Skb},
};

/// The kernel's test run reads the IP addresses of a frame that announces IP, and newer ones refuse a frame
/// that is too short for them. Behind a VLAN tag it looks no further.
fn refused_by_the_kernel(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.len() < 34,
        Some([0x86, 0xdd]) => frame.len() < 54,
        _ => false,
    }
}

/// Runs it unless the kernel does not make such a packet.
#[track_caller]
fn run(rig: &mut Rig, hook: Hook, frame: &[u8]) -> bool {
    let ran = rig.try_run(hook, frame, Skb::default());
    assert!(ran || refused_by_the_kernel(frame), "{frame:x?}");
    ran
}

#[test]
fn a_frame_cut_anywhere_is_skipped_unless_only_padding_is_lost() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS {
            for (name, frame) in flows() {
                // Behind a tag the kernel's own test run looks at nothing, so that every length gets to the
                // programs.
                let tags: &[&[u16]] = match hook.link {
                    Link::Ethernet => &[&[VLAN], &[QINQ, VLAN]],
                    Link::Ip => &[&[]],
                };
                for tags in tags {
                    let frame = frame.clone().tags(tags).padding(4);
                    let whole = bytes(&frame, hook);
                    let link = match hook.link {
                        Link::Ethernet => frame.link_len(),
                        Link::Ip => 0,
                    };
                    for len in 14..whole.len() {
                        if !run(&mut rig, hook, &whole[..len]) {
                            continue;
                        }
                        let name = format!("{name} with {} tags cut to {len}", tags.len());
                        if len < link {
                            expect_skip(&mut rig, &name, Skip::TruncatedLink, len);
                        } else if len < link + frame.ip_len() {
                            expect_skip(&mut rig, &name, Skip::TruncatedIp, len);
                        } else {
                            expect_flow(&mut rig, hook, &name, &frame);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn an_untagged_frame_cut_anywhere_is_skipped_as_truncated() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS.into_iter().filter(|h| h.link == Link::Ethernet) {
            for (name, frame) in flows() {
                let whole = frame.ethernet();
                for len in 14..whole.len() {
                    if run(&mut rig, hook, &whole[..len]) {
                        let name = format!("{name} cut to {len}");
                        expect_skip(&mut rig, &name, Skip::TruncatedIp, len);
                    }
                }
            }
        }
    });
}

/// What an IP packet of `len` bytes, that says so itself, is to be of all the bytes of `frame`.
fn shortened(frame: &Frame, len: usize) -> Result<(), Skip> {
    let rest = len.checked_sub(frame.header_len()).ok_or({
        // The options of IPv4 are part of a header whose length is given; IPv6's are headers of their own.
        if frame.is_ipv4() {
            Skip::BadLength
        } else {
            Skip::TruncatedIp
        }
    })?;
    if frame.piece.is_some_and(|p| p.offset != 0) {
        return Ok(());
    }
    let more_fragments = frame.piece.is_some_and(|p| p.more);
    match frame.transport {
        Transport::Tcp { .. } if rest < 20 => Err(Skip::TruncatedTransport),
        Transport::Tcp { .. } if rest < frame.transport_len() && !more_fragments => {
            Err(Skip::BadTransport)
        }
        Transport::Tcp { .. } => Ok(()),
        _ if rest < frame.transport_len() => Err(Skip::TruncatedTransport),
        _ => Ok(()),
    }
}

/// An IP length that ends within a header: what lies behind it is padding and must not be read as headers.
#[test]
fn an_ip_length_that_ends_within_a_header_is_skipped() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS {
            for (name, frame) in flows() {
                let whole = bytes(&frame, hook);
                let link = match hook.link {
                    Link::Ethernet => frame.link_len(),
                    Link::Ip => 0,
                };
                let fixed = if frame.is_ipv4() { 20 } else { 40 };
                for len in fixed..frame.ip_len() {
                    let mut changed = whole.clone();
                    if frame.is_ipv4() {
                        changed[link + 2..link + 4].copy_from_slice(&(len as u16).to_be_bytes());
                    } else {
                        let payload = (len - 40) as u16;
                        changed[link + 4..link + 6].copy_from_slice(&payload.to_be_bytes());
                    }
                    let name = format!("{name} of {len} bytes");
                    // Once with the rest as padding, once without.
                    for end in [changed.len(), link + len] {
                        if !run(&mut rig, hook, &changed[..end]) {
                            continue;
                        }
                        if let Err(reason) = shortened(&frame, len) {
                            expect_skip(&mut rig, &name, reason, end);
                            continue;
                        }
                        let seen = rig.take();
                        let hot = seen.flow().hot;
                        assert_eq!(hot.key, frame.key(LO, hook.origin), "{name}");
                        assert_eq!((hot.skbs, hot.bytes), (1, len as u64), "{name}");
                        assert_eq!(seen.skips(), 0, "{name}");
                    }
                }
            }
        }
    });
}

/// Bytes that are changed, by offset from the IP header.
type Changes<'a> = &'a [(usize, u8)];
/// A frame, what is changed in it, and why it is skipped.
type Contradiction = (&'static str, Frame, Vec<(usize, u8)>, Skip);

fn contradictions() -> Vec<Contradiction> {
    let v4 = || Frame::tcp(A4, B4, ACK);
    let v6 = || Frame::tcp(A6, B6, ACK);
    let mut table = Vec::new();
    let mut rows = |reason: Skip, rows: &[(&'static str, Frame, Changes)]| {
        let rows = rows.iter().cloned();
        table.extend(rows.map(|(name, frame, set)| (name, frame, set.to_vec(), reason)));
    };
    let short = Frame::udp(A4, B4).payload(4);
    rows(
        Skip::BadLength,
        &[
            ("ipv4, header of 0 bytes", v4(), &[(0, 0x40)]),
            ("ipv4, header of 16 bytes", v4(), &[(0, 0x44)]),
            ("ipv4, length 0", v4(), &[(2, 0), (3, 0)]),
            ("ipv4, length 19", v4(), &[(2, 0), (3, 19)]),
            ("ipv4, header longer than all", short, &[(0, 0x4f)]),
        ],
    );
    let extended = || v6().extensions(&[DESTINATION]);
    let nested = Frame::other(A6, B6, FRAGMENT).payload(4).piece(0, true);
    rows(
        Skip::TruncatedIp,
        &[
            ("ipv4, a byte longer than the frame", v4(), &[(3, 73)]),
            ("ipv4, of 65535 bytes", v4(), &[(2, 255), (3, 255)]),
            ("ipv6, a byte longer than the frame", v6(), &[(5, 53)]),
            ("ipv6, of 65535 bytes", v6(), &[(4, 255), (5, 255)]),
            ("ipv6 extension beyond the packet", extended(), &[(41, 200)]),
            ("ipv6 extension, a byte too long", extended(), &[(41, 8)]),
            ("ipv6 fragment header, cut", nested, &[]),
        ],
    );
    rows(
        Skip::TruncatedTransport,
        &[("ipv6 tcp, length 0", v6(), &[(4, 0), (5, 0)])],
    );
    let (v4_short, v6_short) = (v4().payload(4), v6().payload(36));
    let first = v4().piece(0, true);
    rows(
        Skip::BadTransport,
        &[
            ("ipv4 tcp, offset 0", v4(), &[(32, 0x00)]),
            ("ipv4 tcp, offset 4", v4(), &[(32, 0x40)]),
            ("ipv4 tcp, offset beyond all", v4_short, &[(32, 0x70)]),
            ("ipv6 tcp, offset 4", v6(), &[(52, 0x4f)]),
            ("ipv6 tcp, offset beyond all", v6_short, &[(52, 0xf0)]),
            ("ipv4 tcp fragment, offset 4", first, &[(32, 0x40)]),
        ],
    );
    for version in 0..16_u8 {
        if version != 4 {
            let changed = [(0, version << 4 | 5)];
            rows(Skip::BadVersion, &[("not ipv4", v4(), &changed)]);
        }
        if version != 6 {
            rows(
                Skip::BadVersion,
                &[("not ipv6", v6(), &[(0, version << 4)])],
            );
        }
    }
    table
}

#[test]
fn contradictory_headers_are_skipped_for_what_they_are() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS {
            for (name, frame, changes, reason) in contradictions() {
                if hook.link == Link::Ip && reason == Skip::BadVersion {
                    // Nothing but the packet itself tells its version there.
                    continue;
                }
                let mut bytes = bytes(&frame, hook);
                let link = match hook.link {
                    Link::Ethernet => frame.link_len(),
                    Link::Ip => 0,
                };
                for (at, value) in changes {
                    bytes[link + at] = value;
                }
                rig.run(hook, &bytes, Skb::default());
                expect_skip(&mut rig, name, reason, bytes.len());
            }
        }
    });
}

/// A small generator: the same numbers on every run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 32) as usize % n
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Runs frames through a program and compares what the maps hold with what the shared parser says of the
/// same bytes in user space.
fn agrees_with_the_parser(rig: &mut Rig, hook: Hook, frames: impl Iterator<Item = Vec<u8>>) {
    let mut flows: BTreeMap<FlowKey, (u64, u64)> = BTreeMap::new();
    let mut skips = [(0, 0); Skip::COUNT as usize];
    for frame in frames {
        if !run(rig, hook, &frame) {
            continue;
        }
        match packet::parse(&frame.as_slice(), hook.link) {
            Ok(parsed) => {
                let key = FlowKey {
                    ifindex: LO,
                    origin: hook.origin,
                    ..parsed.key
                };
                let sum = flows.entry(key).or_default();
                sum.0 += 1;
                sum.1 += u64::from(parsed.l3_len);
            }
            Err(reason) => {
                skips[reason as usize].0 += 1;
                skips[reason as usize].1 += frame.len() as u64;
            }
        }
    }
    let seen = rig.take();
    assert_eq!(seen.by_key(), flows, "{}", hook.program);
    assert_eq!(
        seen.skipped.map(|s| (s.skbs, s.bytes)),
        skips,
        "{}",
        hook.program
    );
    assert!(seen.overflow.iter().all(|o| o.skbs == 0));
}

#[test]
fn random_bytes_pass_on_and_are_counted_once_each() {
    let options = LoadOptions {
        flow_cells: 4096,
        ..small()
    };
    rig::with(&options, |mut rig| {
        for (i, hook) in HOOKS.into_iter().enumerate() {
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 + i as u64);
            agrees_with_the_parser(
                &mut rig,
                hook,
                (0..3_000).map(|_| {
                    let len = 14 + numbers.below(150);
                    let mut frame = numbers.bytes(len);
                    // Else hardly one in 30,000 would look like IP.
                    let announced = [&[0x08, 0x00][..], &[0x86, 0xdd], &[0x81, 0x00]];
                    if hook.link == Link::Ethernet && numbers.below(4) != 0 {
                        frame[12..14].copy_from_slice(announced[numbers.below(3)]);
                    }
                    frame
                }),
            );
        }
    });
}

#[test]
fn real_frames_with_random_damage_are_counted_once_each() {
    let options = LoadOptions {
        flow_cells: 4096,
        ..small()
    };
    rig::with(&options, |mut rig| {
        let table = flows();
        let tags: [&[u16]; 4] = [&[], &[VLAN], &[QINQ, VLAN], &[VLAN, VLAN, VLAN]];
        for (i, hook) in HOOKS.into_iter().enumerate() {
            let mut numbers = Numbers(0xd1b5_4a32_d192_ed03 + i as u64);
            agrees_with_the_parser(
                &mut rig,
                hook,
                (0..10_000).map(|_| {
                    let frame = table[numbers.below(table.len())].1.clone();
                    let frame = frame.tags(tags[numbers.below(4)]).padding(numbers.below(8));
                    let mut bytes = bytes(&frame, hook);
                    for _ in 0..numbers.below(4) {
                        let at = numbers.below(bytes.len().min(100));
                        bytes[at] = match numbers.below(3) {
                            0 => bytes[at] ^ 1 << numbers.below(8),
                            1 => 0,
                            _ => numbers.next() as u8,
                        };
                    }
                    if numbers.below(4) == 0 {
                        let len = 14 + numbers.below(bytes.len() - 14);
                        bytes.truncate(len);
                    }
                    bytes
                }),
            );
        }
    });
}

/// A frame of the least length that the kernel makes.
#[test]
fn an_ethernet_header_alone_is_skipped() {
    rig::with(&small(), |mut rig| {
        for hook in HOOKS.into_iter().filter(|h| h.link == Link::Ethernet) {
            let frame = Frame::tcp(A4, B4, SYN).ethernet();
            for (kind, reason) in [
                (0x0800_u16, Skip::TruncatedIp),
                (0x86dd, Skip::TruncatedIp),
                (VLAN, Skip::TruncatedLink),
                (QINQ, Skip::TruncatedLink),
                (0x0806, Skip::NotIp),
            ] {
                let mut header = frame[..14].to_vec();
                header[12..].copy_from_slice(&kind.to_be_bytes());
                if run(&mut rig, hook, &header) {
                    expect_skip(&mut rig, &format!("{kind:x}"), reason, 14);
                }
            }
        }
    });
}

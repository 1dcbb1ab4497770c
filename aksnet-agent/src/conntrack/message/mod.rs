//! A *message* of ctnetlink, as values: a new or destroyed entry, a CPU's statistics, the table's size.
//!
//! Layouts are those of `include/uapi/linux/netlink.h`, `linux/netfilter/nfnetlink.h` and
//! `linux/netfilter/nfnetlink_conntrack.h`: headers in the machine's byte order, values in network byte order. The
//! parser takes any bytes: what it cannot read is [`Body::Unreadable`], and it never reads beyond what is there.

use aksnet_common::{
    flow::Addr,
    packet::{DCCP, ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE},
    passage::{NatKind, Tuple},
};

use super::stats::{CpuReading, TableSize};

const HEADER: usize = 16;
const GENERIC: usize = 4;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NFNL_SUBSYS_CTNETLINK << 8`.
const CTNETLINK: u16 = 1 << 8;
const CT_NEW: u16 = CTNETLINK;
const CT_GET: u16 = CTNETLINK | 1;
const CT_DELETE: u16 = CTNETLINK | 2;
const CT_GET_STATS_CPU: u16 = CTNETLINK | 4;
const CT_GET_STATS: u16 = CTNETLINK | 5;

const NESTED: u16 = 0x8000;

const REQUEST: u16 = 1;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const DUMP: u16 = 0x300;
/// The table changed in a way that may have hidden entries from a dump.
const DUMP_INTERRUPTED: u16 = 0x10;

/// A conntrack entry, as far as the agent needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As the client sent it. Of ICMP the source port is the identifier and the destination port type and code, as in
    /// a flow's key.
    pub original: Tuple,
    /// The same packet as it leaves the node, after NAT: the expected reply turned round.
    pub after: Tuple,
    /// The kernel's name for the entry; hashed, so not quite unique among many.
    pub id: u32,
    /// Conntrack zone of the original direction; 0 unless somebody made zones.
    pub zone: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl Entry {
    /// What NAT does to the connection: by the tuples and not by the status bits, which IPVS does not set.
    #[must_use]
    pub fn nat(&self) -> NatKind {
        NatKind::between(&self.original, &self.after)
    }

    /// Whether the source is rewritten.
    #[must_use]
    pub fn is_snat(&self) -> bool {
        matches!(self.nat(), NatKind::Snat | NatKind::Both)
    }

    /// Whether the destination is rewritten.
    #[must_use]
    pub fn is_dnat(&self) -> bool {
        matches!(self.nat(), NatKind::Dnat | NatKind::Both)
    }

    /// 4 or 6.
    #[must_use]
    pub fn family(&self) -> u8 {
        family_of(self.original.src)
    }
}

/// 4 for a mapped IPv4 address, else 6.
#[must_use]
pub fn family_of(address: Addr) -> u8 {
    if address.0[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
        4
    } else {
        6
    }
}

/// One netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The request that it answers; 0 in events.
    pub sequence: u32,
    /// Whether the kernel says that the dump is not of one state.
    pub interrupted: bool,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is this entry.
    New(Entry),
    /// There was this entry, and is no more.
    Destroyed(Entry),
    /// Statistics of one CPU.
    Cpu(CpuReading),
    /// Entries in the table, and the limit.
    Table(TableSize),
    /// The end of a dump, with an error number or 0.
    Done(i32),
    /// A request failed with this error number; 0 acknowledges it.
    Error(i32),
    /// Of no concern here.
    Other,
    /// Not what a message looks like.
    Unreadable,
}

/// The messages of a datagram. Ends at the first that has no readable header.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Of this datagram.
    #[must_use]
    pub const fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl Iterator for Messages<'_> {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        if self.rest.is_empty() {
            return None;
        }
        let whole = ne32(self.rest, 0)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n >= HEADER)
            .and_then(|n| self.rest.get(..n));
        let Some(whole) = whole else {
            self.rest = &[];
            return Some(Message {
                sequence: 0,
                interrupted: false,
                body: Body::Unreadable,
            });
        };
        let next = whole.len().next_multiple_of(4).min(self.rest.len());
        self.rest = &self.rest[next..];
        let kind = ne16(whole, 4).unwrap_or(0);
        let flags = ne16(whole, 6).unwrap_or(0);
        Some(Message {
            sequence: ne32(whole, 8).unwrap_or(0),
            interrupted: flags & DUMP_INTERRUPTED != 0,
            body: body(kind, &whole[HEADER..]),
        })
    }
}

fn body(kind: u16, payload: &[u8]) -> Body {
    let number = |payload| {
        ne32(payload, 0)
            .map(u32::cast_signed)
            .map(i32::saturating_neg)
    };
    match kind {
        ERROR => number(payload).map_or(Body::Unreadable, Body::Error),
        // Without a number it is an end all the same.
        DONE => Body::Done(number(payload).unwrap_or(0)),
        CT_NEW => entry(payload).map_or(Body::Unreadable, Body::New),
        CT_DELETE => entry(payload).map_or(Body::Unreadable, Body::Destroyed),
        CT_GET_STATS_CPU => generic(payload).map_or(Body::Unreadable, |attributes| {
            let mut reading = CpuReading::default();
            for (kind, value) in attributes {
                // CTA_STATS_INSERT_FAILED, CTA_STATS_DROP, CTA_STATS_EARLY_DROP
                match kind {
                    9 => reading.insert_failed = be32(value),
                    10 => reading.drop = be32(value),
                    11 => reading.early_drop = be32(value),
                    _ => {}
                }
            }
            Body::Cpu(reading)
        }),
        CT_GET_STATS => generic(payload).map_or(Body::Unreadable, |attributes| {
            let mut size = TableSize::default();
            for (kind, value) in attributes {
                // CTA_STATS_GLOBAL_ENTRIES, CTA_STATS_GLOBAL_MAX_ENTRIES
                match kind {
                    1 => size.entries = be32(value).map(u64::from),
                    2 => size.limit = be32(value).map(u64::from),
                    _ => {}
                }
            }
            Body::Table(size)
        }),
        _ => Body::Other,
    }
}

/// The attributes behind `struct nfgenmsg`.
fn generic(payload: &[u8]) -> Option<Attributes<'_>> {
    payload.get(GENERIC..).map(Attributes)
}

/// The attributes of a message or of a nest. Ends at the first that is not whole.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        /// Without the bits for nesting and byte order.
        const TYPE: u16 = 0x3fff;
        let length = usize::from(ne16(self.0, 0)?);
        let kind = ne16(self.0, 2)? & TYPE;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// One direction of an entry.
#[derive(Default)]
struct Direction {
    src: Option<Addr>,
    dst: Option<Addr>,
    protocol: Option<u8>,
    src_port: u16,
    dst_port: u16,
    identifier: u16,
    /// ICMP type and code.
    message: [u8; 2],
    zone: Option<u16>,
}

fn entry(payload: &[u8]) -> Option<Entry> {
    let (mut original, mut reply) = (None, None);
    let (mut id, mut zone) = (0, None);
    for (kind, value) in generic(payload)? {
        // CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE
        match kind {
            1 => original = Some(direction(value)?),
            2 => reply = Some(direction(value)?),
            12 => id = be32(value)?,
            18 => zone = be16(value),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    let protocol = original.protocol?;
    let (src, dst) = (original.src?, original.dst?);
    let (reply_src, reply_dst) = (reply.src?, reply.dst?);
    if reply.protocol? != protocol || [dst, reply_src].map(family_of) != [family_of(src); 2] {
        return None;
    }
    let message = u16::from_be_bytes(original.message);
    let icmp = protocol == ICMP || protocol == ICMPV6;
    let ports = if icmp {
        // The type is not translated. The reply's type is another, which does not concern how the packet leaves.
        [(original.identifier, message), (reply.identifier, message)]
    } else {
        [
            (original.src_port, original.dst_port),
            (reply.dst_port, reply.src_port),
        ]
    };
    let tuple = |src, dst, (src_port, dst_port)| Tuple {
        src,
        dst,
        src_port,
        dst_port,
    };
    Some(Entry {
        original: tuple(src, dst, ports[0]),
        after: tuple(reply_dst, reply_src, ports[1]),
        id,
        zone: zone.or(original.zone).unwrap_or(0),
        protocol,
    })
}

fn direction(nest: &[u8]) -> Option<Direction> {
    let mut direction = Direction::default();
    for (kind, value) in Attributes(nest) {
        match kind {
            // CTA_TUPLE_IP: CTA_IP_V4_SRC, _DST, CTA_IP_V6_SRC, _DST
            1 => {
                for (kind, value) in Attributes(value) {
                    match kind {
                        1 => direction.src = Some(Addr::v4(value.try_into().ok()?)),
                        2 => direction.dst = Some(Addr::v4(value.try_into().ok()?)),
                        3 => direction.src = Some(Addr(value.try_into().ok()?)),
                        4 => direction.dst = Some(Addr(value.try_into().ok()?)),
                        _ => {}
                    }
                }
            }
            // CTA_TUPLE_PROTO: CTA_PROTO_NUM, _SRC_PORT, _DST_PORT, ICMP and ICMPv6: _ID, _TYPE, _CODE
            2 => {
                for (kind, value) in Attributes(value) {
                    match kind {
                        1 => direction.protocol = value.first().copied(),
                        2 => direction.src_port = be16(value)?,
                        3 => direction.dst_port = be16(value)?,
                        4 | 7 => direction.identifier = be16(value)?,
                        5 | 8 => direction.message[0] = *value.first()?,
                        6 | 9 => direction.message[1] = *value.first()?,
                        _ => {}
                    }
                }
            }
            // CTA_TUPLE_ZONE
            3 => direction.zone = be16(value),
            _ => {}
        }
    }
    Some(direction)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn ne16(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_ne_bytes)
}

fn ne32(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}

fn be16(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_be_bytes)
}

fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// All entries, of both families.
    Entries,
    /// Statistics of every CPU.
    Cpus,
    /// Entries in the table, and the limit.
    Table,
}

impl Request {
    /// The message that asks it.
    #[must_use]
    pub fn bytes(self, sequence: u32) -> Vec<u8> {
        let (kind, flags) = match self {
            Self::Entries => (CT_GET, REQUEST | DUMP),
            Self::Cpus => (CT_GET_STATS_CPU, REQUEST | DUMP),
            Self::Table => (CT_GET_STATS, REQUEST),
        };
        // AF_UNSPEC, which is all families.
        write(kind, flags, sequence, 0, &[])
    }
}

/// The message that asks for the one entry whose packets leave the node with this tuple. `None` for protocols without
/// ports, which take more than a tuple to name.
#[must_use]
pub fn lookup(sequence: u32, protocol: u8, after: &Tuple) -> Option<Vec<u8>> {
    if !matches!(protocol, TCP | UDP | UDPLITE | SCTP | DCCP) {
        return None;
    }
    let nest = |kind: u16, parts: [Vec<u8>; 2]| attribute(kind | NESTED, &parts.concat());
    // The reply goes the other way.
    let addresses = if family_of(after.src) == 4 {
        [(1, &after.dst.0[12..]), (2, &after.src.0[12..])]
    } else {
        [(3, &after.dst.0[..]), (4, &after.src.0[..])]
    };
    let ports = [(2, after.dst_port), (3, after.src_port)];
    let ports = ports.map(|(kind, port)| attribute(kind, &port.to_be_bytes()));
    let protocol = [attribute(1, &[protocol]), ports.concat()];
    let ends = [
        nest(1, addresses.map(|(kind, address)| attribute(kind, address))),
        nest(2, protocol),
    ];
    let family = if family_of(after.src) == 4 {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // CTA_TUPLE_REPLY
    let payload = nest(2, ends);
    Some(write(
        CT_GET,
        REQUEST,
        sequence,
        u8::try_from(family).ok()?,
        &payload,
    ))
}

fn write(kind: u16, flags: u16, sequence: u32, family: u8, payload: &[u8]) -> Vec<u8> {
    // Requests are short.
    let length = u32::try_from(HEADER + GENERIC + payload.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

/// An attribute of a request, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests;

//! Captures in files: pcap (microseconds, nanoseconds, either byte order) and pcapng, plain or gzipped.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
};

use flate2::bufread::MultiGzDecoder;
use pcap_parser::{
    Block, PcapBlockOwned, PcapError,
    traits::{PcapNGPacketBlock as _, PcapReaderIterator},
};

use super::link::{Captured, Direction};

/// What is read at once; a block may be longer.
const BUFFER: usize = 1 << 20;
/// No block of a capture is longer: tcpdump's largest snapshot is 256 KiB.
const LARGEST: usize = 1 << 24;
/// More interfaces than any node has: a damaged file may describe one in each block.
const INTERFACES: usize = 65_536;

/// More reads than it takes to fill the largest buffer.
const STALLED: u32 = 64;

const NS: u128 = 1_000_000_000;

/// A packet of a capture.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Nanoseconds since 1970; `None`: the capture does not say.
    pub ns: Option<u64>,
    /// The link type.
    pub link_type: i32,
    /// The number of its interface in the file, from 1; 0 where a file has no interfaces.
    pub interface: u32,
    /// As the block says.
    pub direction: Direction,
    /// The frame.
    pub packet: Captured<'a>,
}

/// What a capture says.
#[derive(Debug)]
pub enum Item<'a> {
    /// An interface: its number from 1, and its name; empty: not given.
    Interface(u32, &'a str),
    /// A packet.
    Packet(Record<'a>),
}

/// How reading ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Why it ended before the end of the file: where, and what is wrong there.
    pub damaged: Option<String>,
    /// Packets whose interface the file does not describe.
    pub strays: u64,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    number: u32,
    link_type: i32,
    snaplen: u32,
    /// Units in a second.
    units: u128,
    offset_seconds: i64,
}

/// What a file begins with decides how it is read.
pub enum Input {
    /// A capture.
    Capture(Box<dyn BufRead + Send>),
    /// Lines of JSON, as `record` writes them.
    Session(Box<dyn BufRead + Send>),
}

/// Looks at how the input begins, beneath gzip.
///
/// # Errors
/// When it cannot be read.
pub fn open(input: impl Read + Send + 'static) -> std::io::Result<Input> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    let zipped = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let mut input: Box<dyn BufRead + Send> = if zipped {
        Box::new(BufReader::with_capacity(
            1 << 16,
            MultiGzDecoder::new(input),
        ))
    } else {
        Box::new(input)
    };
    Ok(if input.fill_buf()?.first() == Some(&b'{') {
        Input::Session(input)
    } else {
        Input::Capture(input)
    })
}

/// Remembers why reading failed: the parser says only that it did.
struct Noting<R> {
    input: R,
    failed: std::sync::Arc<std::sync::Mutex<Option<String>>>,
}

impl<R: Read> Read for Noting<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.input.read(into).inspect_err(|error| {
            if let Ok(mut failed) = self.failed.lock() {
                *failed = Some(error.to_string());
            }
        })
    }
}

/// Reads a capture to its end, or to where it is damaged.
pub fn read(input: impl Read + Send, mut take: impl FnMut(Item<'_>)) -> Ended {
    let mut ended = Ended::default();
    let failed = std::sync::Arc::default();
    let input = Noting {
        input: Filling(input),
        failed: std::sync::Arc::clone(&failed),
    };
    let why = |error: &PcapError<&[u8]>| match error {
        PcapError::ReadError => {
            let failed = failed.lock().ok().and_then(|failed| failed.clone());
            format!("it cannot be read further: {}", failed.unwrap_or_default())
        }
        PcapError::UnexpectedEof | PcapError::Incomplete(_) => {
            "the file ends within a block".to_owned()
        }
        PcapError::HeaderNotRecognized => "it is neither a pcap nor a pcapng file".to_owned(),
        PcapError::Eof => "the file is empty".to_owned(),
        PcapError::BufferTooSmall => format!("a block claims to be longer than {LARGEST} bytes"),
        PcapError::NomError(..) | PcapError::OwnedNomError(..) => {
            "a block contradicts itself: its lengths or its version are wrong".to_owned()
        }
    };
    let mut reader = match pcap_parser::create_reader(BUFFER, input) {
        Ok(reader) => reader,
        Err(error) => {
            ended.damaged = Some(why(&error));
            return ended;
        }
    };
    let mut blocks = Blocks::default();
    let mut capacity = BUFFER;
    // Times that more was read without a block.
    let mut stalled = 0;
    loop {
        stalled += 1;
        if stalled > STALLED {
            ended.damaged = Some(at(reader.as_ref(), "no block, however much is read"));
            return ended;
        }
        if blocks.plain.is_none() && is_too_short(reader.as_ref()) {
            let why = "a block claims to be shorter than its own head";
            ended.damaged = Some(at(reader.as_ref(), why));
            return ended;
        }
        match reader.next() {
            Ok((length, block)) => {
                blocks.take(block, &mut ended, &mut take);
                reader.consume(length);
                stalled = 0;
                if length == 0 {
                    ended.damaged = Some(at(reader.as_ref(), "a block of no length"));
                    return ended;
                }
            }
            Err(PcapError::Eof) => return ended,
            Err(PcapError::Incomplete(_)) => {
                if let Err(error) = reader.refill() {
                    let why = why(&error);
                    ended.damaged = Some(at(reader.as_ref(), &why));
                    return ended;
                }
            }
            Err(PcapError::BufferTooSmall) if capacity < LARGEST => {
                capacity *= 2;
                if !reader.grow(capacity) {
                    ended.damaged = Some(at(reader.as_ref(), "no memory for its block"));
                    return ended;
                }
                let _then_incomplete = reader.refill();
            }
            Err(error) => {
                let why = why(&error);
                ended.damaged = Some(at(reader.as_ref(), &why));
                return ended;
            }
        }
    }
}

/// The shortest block of a pcapng has its type and twice its length.
const SHORTEST: u32 = 12;

/// Whether the next block of a pcapng says that it is shorter than that. The parser (0.17.0, `ng_block_parser`) takes that
/// from the length of a process information block without having looked. In the other byte order such a length is
/// [`LARGEST`] or more.
fn is_too_short(reader: &(dyn PcapReaderIterator + Send)) -> bool {
    let length = reader.data().get(4..).and_then(|data| data.first_chunk());
    reader.consumed() > 0
        && length.is_some_and(|length| {
            u32::from_le_bytes(*length).min(u32::from_be_bytes(*length)) < SHORTEST
        })
}

fn at(reader: &(dyn PcapReaderIterator + Send), why: &str) -> String {
    format!("at byte {}: {why}", reader.consumed())
}

/// A reader that gives as much as was asked for: the parser takes what it gets first for the whole header.
struct Filling<R>(R);

impl<R: Read> Read for Filling<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match self.0.read(&mut into[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // What came before is given first; the error comes again.
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

#[derive(Default)]
struct Blocks {
    /// A plain pcap's only one.
    plain: Option<Interface>,
    /// Those of the section.
    interfaces: Vec<Interface>,
    /// Numbers by name: sections describe the same interfaces again.
    numbers: BTreeMap<String, u32>,
    count: u32,
}

impl Blocks {
    fn take(
        &mut self,
        block: PcapBlockOwned<'_>,
        ended: &mut Ended,
        take: &mut impl FnMut(Item<'_>),
    ) {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let nanoseconds = header.is_nanosecond_precision();
                self.plain = Some(Interface {
                    number: 0,
                    // The upper half may hold the length of a frame check sequence.
                    link_type: header.network.0 & 0xffff,
                    snaplen: header.snaplen,
                    units: if nanoseconds { NS } else { 1_000_000 },
                    offset_seconds: 0,
                });
            }
            PcapBlockOwned::Legacy(block) => {
                let Some(interface) = self.plain else {
                    ended.strays += 1;
                    return;
                };
                let units = u128::from(block.ts_sec) * interface.units + u128::from(block.ts_usec);
                let captured = captured(block.data, block.caplen, block.origlen);
                take(Item::Packet(interface.record(
                    Some(units),
                    Direction::Unknown,
                    captured,
                )));
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => self.interfaces.clear(),
            PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                if self.interfaces.len() >= INTERFACES {
                    return;
                }
                let name = block.if_name().and_then(Result::ok).unwrap_or_default();
                let name = name.trim_end_matches('\0');
                let number = self.number(name);
                let name = if number == 0 { "" } else { name };
                self.interfaces.push(Interface {
                    number,
                    link_type: block.linktype.0,
                    snaplen: block.snaplen,
                    units: units(block.if_tsresol),
                    offset_seconds: block.if_tsoffset,
                });
                take(Item::Interface(number, name));
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
                let interface = usize::try_from(block.if_id)
                    .ok()
                    .and_then(|id| self.interfaces.get(id));
                let Some(interface) = interface else {
                    ended.strays += 1;
                    return;
                };
                let units = u128::from(block.ts_high) << 32 | u128::from(block.ts_low);
                let captured = captured(block.data, block.caplen, block.origlen);
                let big_endian = block.big_endian();
                // epb_flags (RFC draft, 4.3.1): the two lowest bits are 01 for inbound, 10 for outbound.
                let flags = block.options.iter().find(|option| option.code.0 == 2);
                let flags = flags.and_then(|option| option.value().first_chunk::<4>());
                let flags = flags.map_or(0, |bytes| {
                    if big_endian {
                        u32::from_be_bytes(*bytes)
                    } else {
                        u32::from_le_bytes(*bytes)
                    }
                });
                let direction = match flags & 3 {
                    1 => Direction::In,
                    2 => Direction::Out,
                    _ => Direction::Unknown,
                };
                take(Item::Packet(interface.record(
                    Some(units),
                    direction,
                    captured,
                )));
            }
            PcapBlockOwned::NG(Block::SimplePacket(block)) => {
                let Some(interface) = self.interfaces.first() else {
                    ended.strays += 1;
                    return;
                };
                // Its captured length is not given: all, or what the interface's snapshot length leaves.
                let kept = match interface.snaplen {
                    0 => block.origlen,
                    snaplen => block.origlen.min(snaplen),
                };
                let captured = captured(block.data, kept, block.origlen);
                take(Item::Packet(interface.record(
                    None,
                    Direction::Unknown,
                    captured,
                )));
            }
            // Statistics, names, comments.
            PcapBlockOwned::NG(_) => {}
        }
    }

    fn number(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            self.count += 1;
            return self.count;
        }
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        // Each section may describe others, however long the file is.
        if self.numbers.len() >= INTERFACES {
            return 0;
        }
        self.count += 1;
        self.numbers.insert(name.to_owned(), self.count);
        self.count
    }
}

impl Interface {
    fn record<'a>(
        &self,
        units: Option<u128>,
        direction: Direction,
        packet: Captured<'a>,
    ) -> Record<'a> {
        let ns = units.map(|units| {
            let ns = units.saturating_mul(NS) / self.units;
            let offset = i128::from(self.offset_seconds) * 1_000_000_000;
            let ns = i128::try_from(ns)
                .unwrap_or(i128::MAX)
                .saturating_add(offset);
            // Sums of times stay within 64 bits.
            u64::try_from(ns.max(0))
                .unwrap_or(u64::MAX)
                .min(u64::MAX / 4)
        });
        Record {
            ns,
            link_type: self.link_type,
            interface: self.number,
            direction,
            packet,
        }
    }
}

fn captured(data: &[u8], kept: u32, length: u32) -> Captured<'_> {
    let kept = data.len().min(kept as usize);
    let bytes = &data[..kept];
    // A length below what was captured is a writer's mistake.
    let length = length.max(u32::try_from(kept).unwrap_or(u32::MAX));
    Captured { bytes, length }
}

/// Units in a second: a power of ten, or of two if the highest bit is set (`if_tsresol`).
fn units(resolution: u8) -> u128 {
    let power = u32::from(resolution & 0x7f);
    if resolution & 0x80 == 0 {
        10u128.pow(power.min(30))
    } else {
        1 << power.min(100)
    }
}

//! A flow: one direction of one connection, as it enters the node.
//!
//! It is identified by what the packet says before any NAT (addresses, ports, protocol), by the interface
//! it was counted on, and by where it came from: through that interface, or from the node itself. The
//! replies of a connection are a flow of their own; the agent joins the two.

use crate::passage::Tuple;

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96`; network byte order.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// The mapped form of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3],
        ])
    }

    /// The mapped form of an IPv4 address as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub const fn mapped(raw: u32) -> Self {
        // Little-endian, as asserted at the crate's root: the address is the word's upper half.
        Self::of_words(0, (raw as u64) << 32 | 0xffff_0000)
    }

    /// An address from its two halves as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn of_words(first: u64, second: u64) -> Self {
        // SAFETY: sixteen bytes either way, and any bytes are an address.
        Self(unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>([first, second]) })
    }

    /// The address's two halves as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u64; 2] {
        // SAFETY: sixteen bytes either way, and any bytes are integers.
        unsafe { core::mem::transmute::<[u8; 16], [u64; 2]>(self.0) }
    }
}

#[cfg(any(test, feature = "user"))]
extern crate std;

#[cfg(any(test, feature = "user"))]
impl From<Addr> for std::net::IpAddr {
    fn from(a: Addr) -> Self {
        std::net::Ipv6Addr::from(a.0).to_canonical()
    }
}

#[cfg(any(test, feature = "user"))]
impl From<std::net::IpAddr> for Addr {
    fn from(a: std::net::IpAddr) -> Self {
        match a {
            std::net::IpAddr::V4(a) => Self::v4(a.octets()),
            std::net::IpAddr::V6(a) => Self(a.octets()),
        }
    }
}

/// The packet came in through the interface (tc ingress).
pub const ORIGIN_ENTER: u8 = 0;
/// The node itself sent the packet (tc egress with no incoming interface).
pub const ORIGIN_NODE: u8 = 1;

/// A later fragment: it has no ports, and is accounted to the pair of addresses.
pub const KEY_FRAGMENT: u8 = 1;

/// What identifies a flow. 48 bytes, compared and hashed as six 64-bit words.
///
/// Ports are in host byte order. For ICMP and `ICMPv6` echo, `src_port` is the identifier, and `dst_port`
/// is `type << 8 | code` for every ICMP message; protocols without ports have zeros.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowKey {
    /// Source address before any NAT.
    pub src: Addr,
    /// Destination address before any NAT.
    pub dst: Addr,
    /// Source port, host byte order.
    pub src_port: u16,
    /// Destination port, host byte order.
    pub dst_port: u16,
    /// The interface on which the packet was counted.
    pub ifindex: u32,
    /// IP protocol number (IANA), after any IPv6 extension headers.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// [`ORIGIN_ENTER`] or [`ORIGIN_NODE`].
    pub origin: u8,
    /// [`KEY_FRAGMENT`] or 0.
    pub flags: u8,
    /// Always zero, so that keys compare as words.
    #[doc(hidden)]
    pub padding: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 48);

impl FlowKey {
    /// The key as six words, for hashing and comparing.
    #[inline(always)]
    #[must_use]
    pub fn words(&self) -> &[u64; 6] {
        // SAFETY: FlowKey is 48 bytes, 8-aligned, and has no implicit padding (see the assertion and the
        // named `padding` field), so all of it is initialised and valid as integers.
        unsafe { &*core::ptr::from_ref(self).cast::<[u64; 6]>() }
    }

    /// The key of the same packet, counted on an interface with an origin. Put together from whole words: a
    /// key written field by field and then read by words would make the processor wait for its own stores.
    #[inline(always)]
    #[must_use]
    pub const fn counted_on(&self, ifindex: u32, origin: u8) -> Self {
        let [src, dst] = [self.src.words(), self.dst.words()];
        let ports = self.src_port as u64 | (self.dst_port as u64) << 16 | (ifindex as u64) << 32;
        let kind = self.protocol as u64
            | (self.family as u64) << 8
            | (origin as u64) << 16
            | (self.flags as u64) << 24;
        // SAFETY: 48 bytes either way (asserted above), and any bytes are a key; the fields' places in the last
        // two words are those of a little-endian machine (asserted at the crate's root).
        unsafe {
            core::mem::transmute::<[u64; 6], Self>([src[0], src[1], dst[0], dst[1], ports, kind])
        }
    }

    /// The addresses and ports alone.
    #[inline(always)]
    #[must_use]
    pub fn tuple(&self) -> Tuple {
        Tuple {
            src: self.src,
            dst: self.dst,
            src_port: self.src_port,
            dst_port: self.dst_port,
        }
    }

    /// A 64-bit hash of the key. `seed` is chosen by the agent at load time, so that nobody outside can
    /// aim packets at one bucket.
    ///
    /// Two lanes over three words each, six independent multiplications, then one finaliser over both: every
    /// packet waits for this before it can look for its flow. The lanes are turned against each other, as IPv4
    /// addresses vary in their words' upper halves only. The lower halves of the addresses, of which an IPv6
    /// host may choose every bit, have secret multipliers: with known ones, a change of the ports could be made
    /// good in the address, whatever the seed.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, seed: u64) -> u64 {
        const K: [u64; 6] = [
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
            0xd6e8_feb8_6659_fd93,
            0xa076_1d64_78bd_642f,
            0xe703_7ed1_a0b4_28db,
        ];
        let w = self.words();
        let a = (w[0] ^ seed).wrapping_mul(K[0])
            ^ w[1].wrapping_mul((K[1] ^ seed) | 1)
            ^ w[4].wrapping_mul(K[2]);
        let b = (w[2].wrapping_add(seed)).wrapping_mul(K[3])
            ^ w[3].wrapping_mul((K[4] ^ seed) | 1)
            ^ w[5].wrapping_mul(K[5]);
        mix(a ^ b.rotate_left(32))
    }
}

/// A bijective finaliser: every input bit reaches every output bit.
#[inline(always)]
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 32;
    x = x.wrapping_mul(0x0e98_46af_9b1a_615d);
    x ^= x >> 32;
    x = x.wrapping_mul(0x0e98_46af_9b1a_615d);
    x ^ (x >> 28)
}

/// Cells in one bucket: the places a flow may stand in.
pub const WAYS: usize = 4;

/// What every packet of a flow touches: two cache lines, the first read, the second written.
///
/// All counters only grow while a cell is live; the agent takes differences. `skbs` counts what the kernel
/// handles as one packet; a GSO/GRO super-packet adds the further wire packets it stands for to
/// `gso_packets`, and their headers to `gso_bytes`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct HotCell {
    /// The cell's state word, see [`crate::cell`].
    pub state: u64,
    /// Whose cell this is; valid while the state says so.
    pub key: FlowKey,
    /// `CLOCK_MONOTONIC` nanoseconds of the packet that claimed the cell.
    pub first_ns: u64,

    /// Packets as the kernel handles them (one per `sk_buff`).
    pub skbs: u64,
    /// Their bytes, IP length.
    pub bytes: u64,
    /// Wire packets beyond `skbs` for which super-packets stood.
    pub gso_packets: u64,
    /// IP bytes of the headers of those further packets.
    pub gso_bytes: u64,
    /// `jiffies`, low 32 bits, at the last packet.
    pub last_jiffies: u32,
    /// TCP flags seen, OR of the header's flag byte.
    pub tcp_flags: u32,
    /// Connections opened: distinct SYNs; for other protocols 1 at the claim.
    pub connections: u32,
    /// TCP: the highest sequence number seen, end of segment.
    pub max_seq: u32,
    /// TCP: wire packets with payload that lay wholly below `max_seq`, and repeated SYNs.
    pub retransmits: u32,
    /// TCP: sequence number of the latest SYN.
    pub syn_seq: u32,
    /// `CLOCK_MONOTONIC` nanoseconds of the latest SYN or SYN-ACK that was not a repetition; 0 without.
    pub syn_ns: u64,
}

const _: () = assert!(size_of::<HotCell>() == 128);

/// One element of the `FLOWS` map.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// The cells a flow that hashes here may stand in.
    pub cells: [HotCell; WAYS],
}

/// Which packets of a flow are timed besides its SYNs: count-based selection (RFC 5475, 5.1), by their number in its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// One of so many, less one; a power of two, less one.
    pub mask: u32,
    /// Before that, so many first packets.
    pub first: u32,
}

impl Sampling {
    /// Every packet.
    pub const EVERY: Self = Self { mask: 0, first: 0 };

    /// Whether the packet is timed that found `number` others in [`HotCell::skbs`].
    #[inline(always)]
    #[must_use]
    pub const fn selects(self, number: u64) -> bool {
        number & self.mask as u64 == 0 || number < self.first as u64
    }

    /// Whether any is timed of those that brought [`HotCell::skbs`] from one count to another.
    #[inline]
    #[must_use]
    pub const fn selects_any(self, from: u64, to: u64) -> bool {
        to > from && (from < self.first as u64 || (to - 1) & !(self.mask as u64) >= from)
    }
}

/// Buckets of a NAT-path histogram: bucket `i` holds times of `[2^(i+8), 2^(i+9))` ns; the first also what
/// is shorter, the last also what is longer.
pub const TIME_BUCKETS: usize = 16;

/// The packet that opens a connection: it walks the nat rules.
pub const STAGE_FIRST: usize = 0;
/// Any later packet: conntrack already knows the translation.
pub const STAGE_ESTABLISHED: usize = 1;

/// The histogram bucket of a time on the NAT path.
#[inline(always)]
#[must_use]
pub const fn time_bucket(ns: u64) -> usize {
    if ns < 512 {
        return 0;
    }
    let bits = 63 - ns.leading_zeros() as usize;
    let bucket = bits - 8;
    if bucket >= TIME_BUCKETS {
        TIME_BUCKETS - 1
    } else {
        bucket
    }
}

/// The exclusive upper bound of a histogram bucket in nanoseconds; `None` for the last, which has none.
#[must_use]
pub const fn time_bucket_bound(bucket: usize) -> Option<u64> {
    if bucket + 1 >= TIME_BUCKETS {
        None
    } else {
        Some(1 << (bucket + 9))
    }
}

/// What only timed packets of a flow touch; same index as the flow's [`HotCell`].
///
/// `sequence` guards the fields from `after` to `translations`: odd while a program writes them, so a
/// reader that sees it odd or changed reads again.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct ColdCell {
    /// Seqlock of the translation below. 0: no translation seen yet.
    pub sequence: u64,
    /// The tuple with which the flow left the node, or with which it was dropped.
    pub after: Tuple,
    /// The interface it left through; 0 if it was dropped.
    pub exit_ifindex: u32,
    /// [`crate::passage::NatKind`] as a number.
    pub nat: u32,
    /// How often the translation changed after the first was seen.
    pub translations: u32,
    /// Timed packets that left the node.
    pub exits: u64,
    /// Nanoseconds on the NAT path, summed, by stage.
    pub sum_ns: [u64; 2],
    /// Timed packets by stage and [`time_bucket`].
    pub times: [[u32; TIME_BUCKETS]; 2],
    /// Timed packets that were dropped.
    pub drops: u64,
    /// The kernel's reason for the latest of these drops.
    pub drop_reason: u32,
    #[doc(hidden)]
    pub padding: u32,
    #[doc(hidden)]
    pub reserved: u64,
}

const _: () = assert!(size_of::<ColdCell>() == 256);

/// Counters of a flow that found no cell (value of the spill maps), and of those that found no spill entry
/// either (per interface class).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpillStats {
    /// As [`HotCell::skbs`].
    pub skbs: u64,
    /// As [`HotCell::bytes`].
    pub bytes: u64,
    /// As [`HotCell::gso_packets`].
    pub gso_packets: u64,
    /// As [`HotCell::gso_bytes`].
    pub gso_bytes: u64,
    /// As [`HotCell::tcp_flags`].
    pub tcp_flags: u64,
    /// SYNs; for other protocols 1 for the entry.
    pub connections: u64,
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C) structs of integers without implicit padding (their sizes are asserted above or
    // every field is a u64): any bytes are a valid value and every byte is initialised.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SpillStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Bucket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ColdCell {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_buckets_cover_every_value_once() {
        assert_eq!(time_bucket(0), 0);
        assert_eq!(time_bucket(511), 0);
        assert_eq!(time_bucket(512), 1);
        assert_eq!(time_bucket(1023), 1);
        assert_eq!(time_bucket(1024), 2);
        assert_eq!(time_bucket(u64::MAX), TIME_BUCKETS - 1);
        for bucket in 0..TIME_BUCKETS - 1 {
            let bound = time_bucket_bound(bucket).expect("has a bound");
            assert_eq!(time_bucket(bound - 1), bucket);
            assert_eq!(time_bucket(bound), bucket + 1);
        }
        assert_eq!(time_bucket_bound(TIME_BUCKETS - 1), None);
    }

    #[test]
    fn hash_depends_on_every_field_and_on_the_seed() {
        let base = FlowKey {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([10, 0, 0, 2]),
            src_port: 1,
            dst_port: 2,
            ifindex: 3,
            protocol: 6,
            family: 4,
            origin: 0,
            flags: 0,
            padding: 0,
        };
        let h = base.hash(7);
        assert_ne!(h, base.hash(8));
        for other in [
            FlowKey {
                src: base.dst,
                dst: base.src,
                ..base
            },
            FlowKey {
                src_port: 2,
                dst_port: 1,
                ..base
            },
            FlowKey { ifindex: 4, ..base },
            FlowKey {
                protocol: 17,
                ..base
            },
            FlowKey {
                origin: ORIGIN_NODE,
                ..base
            },
            FlowKey {
                flags: KEY_FRAGMENT,
                ..base
            },
        ] {
            assert_ne!(h, other.hash(7));
        }
    }

    #[test]
    fn hash_spreads_sequential_flows_evenly_over_buckets() {
        let buckets = 4096_u16;
        let mut load = vec![0u32; buckets.into()];
        for i in 0..buckets * 2 {
            let [high, low] = i.to_be_bytes();
            let key = FlowKey {
                src: Addr::v4([10, 244, high, low]),
                dst: Addr::v4([10, 0, 0, 10]),
                src_port: 40000,
                dst_port: 53,
                ifindex: 7,
                protocol: 17,
                family: 4,
                ..FlowKey::default()
            };
            // As the programs choose the bucket.
            let bucket = key.hash(0) >> 32 & u64::from(buckets - 1);
            load[usize::try_from(bucket).expect("masked")] += 1;
        }
        // Mean 2: a bucket of more than 12 has a probability below 1e-6 under a fair hash.
        assert!(
            load.iter().all(|&n| n <= 12),
            "worst bucket has {:?}",
            load.iter().max()
        );
    }

    #[test]
    fn a_range_of_packets_has_a_timed_one_when_one_of_them_is() {
        for mask in [0, 1, 7, 63] {
            for first in [0, 1, 4, 9] {
                let sampling = Sampling { mask, first };
                for from in 0..140 {
                    for to in from..140 {
                        let any = (from..to).any(|number| sampling.selects(number));
                        assert_eq!(
                            sampling.selects_any(from, to),
                            any,
                            "{sampling:?} {from}..{to}"
                        );
                    }
                }
            }
        }
        assert!(!Sampling { mask: 63, first: 4 }.selects_any(9, 3));
    }
}

//! What was not given a flow of its own, and why. Per-CPU counters, summed by the agent.

/// Why a packet was not accounted to a flow. The number is the index into the `SKIPPED` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Skip {
    /// Not IPv4 or IPv6 (ARP, LLDP, ...).
    NotIp = 0,
    /// Ends within the link-layer header or its VLAN tags.
    TruncatedLink,
    /// More than two VLAN tags.
    TooManyTags,
    /// Ends within the IP header, or is shorter than the IP header says.
    TruncatedIp,
    /// The IP version is not the one the link layer announced.
    BadVersion,
    /// The IP header length or total length contradicts itself.
    BadLength,
    /// More IPv6 extension headers than are walked.
    TooManyExtensions,
    /// Ends within the TCP, UDP, SCTP or ICMP header.
    TruncatedTransport,
    /// A TCP data offset below 5 or beyond the packet.
    BadTransport,
}

impl Skip {
    /// How many reasons there are.
    pub const COUNT: u32 = 9;

    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NotIp,
        Self::TruncatedLink,
        Self::TooManyTags,
        Self::TruncatedIp,
        Self::BadVersion,
        Self::BadLength,
        Self::TooManyExtensions,
        Self::TruncatedTransport,
        Self::BadTransport,
    ];

    /// The name under which it is exported.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::TruncatedLink => "truncated_link",
            Self::TooManyTags => "too_many_vlan_tags",
            Self::TruncatedIp => "truncated_ip",
            Self::BadVersion => "bad_ip_version",
            Self::BadLength => "bad_ip_length",
            Self::TooManyExtensions => "too_many_ipv6_extensions",
            Self::TruncatedTransport => "truncated_transport",
            Self::BadTransport => "bad_tcp_header",
        }
    }
}

/// Which kind of watched interface a program is attached to. The number indexes the `OVERFLOW` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// The host side of a pod's veth.
    Pod = 0,
    /// A node's way out.
    Uplink = 1,
}

impl Role {
    /// How many there are.
    pub const COUNT: u32 = 2;
    /// All, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Pod, Self::Uplink];
    /// The name under which it is exported.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Uplink => "uplink",
        }
    }
}

/// Events of the datapath itself. The number is the index into the `EVENTS` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Event {
    /// ENTER: a passage was left.
    PassageLeft = 0,
    /// ENTER: a passage nothing had taken was overwritten.
    PassageReplaced,
    /// EXIT: a packet's passage was found.
    ExitMatched,
    /// EXIT: a forwarded packet had no passage (only looked for while something is pending).
    ExitUnmatched,
    /// EXIT: a forwarded packet had no parseable header.
    ExitSkipped,
    /// DROP: a packet on a watched interface was dropped.
    Dropped,
    /// DROP: such a packet's passage was found.
    DropMatched,
    /// DROP: filtered as noise by its reason (purges, closed sockets, copies for other hosts).
    DropNoise,
    /// DROP: a copy that a promiscuous bridge made of a packet that went its way (kubenet), dropped on purpose.
    DropCopy,
    /// DROP: the packet's headers could not be read or parsed.
    DropUnreadable,
    /// DROP: the table of drops was full, counted here only.
    DropOverflow,
    /// A cell was claimed.
    CellClaimed,
    /// A bucket was full: the packet went to the spill map.
    Spilled,
    /// The spill map was full as well: the packet went to the overflow counters.
    Overflowed,
}

impl Event {
    /// How many there are.
    pub const COUNT: u32 = 14;
    /// All, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::PassageLeft,
        Self::PassageReplaced,
        Self::ExitMatched,
        Self::ExitUnmatched,
        Self::ExitSkipped,
        Self::Dropped,
        Self::DropMatched,
        Self::DropNoise,
        Self::DropCopy,
        Self::DropUnreadable,
        Self::DropOverflow,
        Self::CellClaimed,
        Self::Spilled,
        Self::Overflowed,
    ];
    /// The name under which it is reported.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PassageLeft => "passage_left",
            Self::PassageReplaced => "passage_replaced",
            Self::ExitMatched => "exit_matched",
            Self::ExitUnmatched => "exit_unmatched",
            Self::ExitSkipped => "exit_skipped",
            Self::Dropped => "dropped",
            Self::DropMatched => "drop_matched",
            Self::DropNoise => "drop_noise",
            Self::DropCopy => "drop_copy",
            Self::DropUnreadable => "drop_unreadable",
            Self::DropOverflow => "drop_overflow",
            Self::CellClaimed => "cell_claimed",
            Self::Spilled => "spilled",
            Self::Overflowed => "overflowed",
        }
    }
}

/// Counters of one kind of skipped packet; value of the `SKIPPED` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkipStats {
    /// Packets as the kernel handles them.
    pub skbs: u64,
    /// Bytes of the frame.
    pub bytes: u64,
}

#[cfg(feature = "user")]
// SAFETY: repr(C), every field is a u64.
unsafe impl aya::Pod for SkipStats {}

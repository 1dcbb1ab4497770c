//! What the running kernel says of itself: struct offsets, drop reasons and tracepoint arguments from its
//! BTF, symbols from `/proc/kallsyms`. Decided by what is there, never by a version number.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use aksnet_common::{probe_config::Offsets, tracked::CT_TUPLE_LAYOUT};
use anyhow::{Context as _, Result, bail};
use btf_rs::Btf;

use types::{drop_reasons, has_struct, member, nested, tracepoint_arguments};

// Questions to BTF.
mod types;

/// Where the kernel shows its types.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel calls the types of its module for connection tracking, beside [`VMLINUX_BTF`].
const CONNTRACK_MODULE: &str = "nf_conntrack";

/// Reasons that stand for no loss: the packet was consumed, was a copy for another host that a promiscuous
/// bridge port took in, or was queued on a socket that is being closed; and what a TCP socket of the node does
/// with a segment whose data it has already, or with a reset that does not fit the connection, which it ignores. Without the `SKB_` and
/// `SKB_DROP_REASON_` prefixes of include/net/dropreason-core.h.
pub const NOISE: [&str; 10] = [
    "NOT_DROPPED_YET",
    "CONSUMED",
    "OTHERHOST",
    "QUEUE_PURGE",
    "SOCKET_CLOSE",
    "TCP_OLD_DATA",
    "TCP_OLD_SEQUENCE",
    "TCP_OLD_ACK",
    "TCP_OFOMERGE",
    "TCP_RESET",
];

/// What the programs and the metrics need to know of the running kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Struct offsets for the programs.
    pub offsets: Offsets,
    /// `enum skb_drop_reason`: number to name, in lower case without prefix.
    pub reasons: BTreeMap<u32, String>,
    /// Reasons that are noise, as a bit map over the numbers below 256.
    pub noise: [u64; 4],
    /// Whether the kernel has types for the drop tracepoint at all.
    pub has_drop_tracepoint: bool,
    /// Why the programs cannot read conntrack's entries, so that drops come without the tuple that was dialled;
    /// `None` where they can.
    pub conntrack_unreadable: Option<String>,
}

impl Kernel {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    /// When the kernel has none, or a struct lacks a member that the programs read.
    pub fn read() -> Result<Self> {
        Self::from_btf_file(Path::new(VMLINUX_BTF))
    }

    /// Reads a BTF file.
    ///
    /// # Errors
    /// As [`Kernel::read`].
    pub fn from_btf_file(path: &Path) -> Result<Self> {
        let btf = Btf::from_file(path).with_context(|| {
            format!(
                "cannot read the kernel's type information at {}: aksnet needs a kernel built with \
                 CONFIG_DEBUG_INFO_BTF (every AKS and kind node has one)",
                path.display()
            )
        })?;
        Self::from_btf(&btf, &path.with_file_name(CONNTRACK_MODULE))
    }

    /// `module`: where conntrack's types are, should it be a module.
    fn from_btf(btf: &Btf, module: &Path) -> Result<Self> {
        let mut offsets = Offsets {
            skb_len: member(btf, "sk_buff", "len")?,
            skb_head: member(btf, "sk_buff", "head")?,
            skb_data: member(btf, "sk_buff", "data")?,
            skb_tail: member(btf, "sk_buff", "tail")?,
            skb_end: member(btf, "sk_buff", "end")?,
            skb_network_header: member(btf, "sk_buff", "network_header")?,
            skb_mac_header: member(btf, "sk_buff", "mac_header")?,
            skb_dev: member(btf, "sk_buff", "dev")?,
            skb_iif: member(btf, "sk_buff", "skb_iif")?,
            skb_mark: member(btf, "sk_buff", "mark")?,
            shinfo_gso_size: member(btf, "skb_shared_info", "gso_size")?,
            shinfo_gso_segs: member(btf, "skb_shared_info", "gso_segs")?,
            dev_ifindex: member(btf, "net_device", "ifindex")?,
            dev_net: member(btf, "net_device", "nd_net")?,
            dev_addr: member(btf, "net_device", "dev_addr")?,
            net_inum: member(btf, "net", "ns")? + member(btf, "ns_common", "inum")?,
            ..Offsets::default()
        };
        let arguments = tracepoint_arguments(btf, "kfree_skb");
        let is_argument = |number: usize, kind: &str| {
            arguments
                .as_deref()
                .and_then(|a| a.get(number))
                .is_some_and(|k| k == kind)
        };
        // skb, location, the reason since 5.17 (and in backports), and the socket since 6.11.
        if is_argument(2, "skb_drop_reason") {
            offsets.kfree_skb_reason_arg = 2;
            // A pointer has no name of its own.
            if arguments.as_deref().is_some_and(|a| a.len() == 4)
                && let Ok(offset) = member(btf, "sock_common", "skc_net")
            {
                offsets.kfree_skb_sock_arg = 3;
                offsets.sock_net = offset;
            }
        }
        if let (Ok(route), Ok(device)) = (
            member(btf, "sk_buff", "_skb_refdst"),
            member(btf, "dst_entry", "dev"),
        ) {
            (offsets.skb_refdst, offsets.dst_dev) = (route, device);
        }
        let conntrack_unreadable = conntrack(btf, module, &mut offsets)
            .err()
            .map(|error| format!("{error:#}"));
        let reasons = drop_reasons(btf);
        Ok(Self {
            offsets,
            noise: noise(&reasons),
            reasons,
            has_drop_tracepoint: arguments.is_some(),
            conntrack_unreadable,
        })
    }

    /// The number of a drop reason.
    #[must_use]
    pub fn reason_number(&self, name: &str) -> Option<u32> {
        self.reasons
            .iter()
            .find(|(_, n)| *n == name)
            .map(|(&number, _)| number)
    }

    /// For the programs: the number of 'no reason given', and [`u32::MAX`] where TCP's reasons are not told apart.
    #[must_use]
    pub fn not_specified(&self) -> u32 {
        match self.reason_number("tcp_old_data") {
            Some(_) => self.reason_number("not_specified").unwrap_or(0),
            None => u32::MAX,
        }
    }

    /// The name of a drop reason. Numbers from 2^16 on belong to a subsystem (mac80211, Open vSwitch), and
    /// are named by it and their number there.
    #[must_use]
    pub fn reason_name(&self, reason: u32) -> String {
        match self.reasons.get(&reason) {
            Some(name) => name.clone(),
            None if reason >> 16 != 0 => format!("subsystem_{}_{}", reason >> 16, reason & 0xffff),
            None => format!("reason_{reason}"),
        }
    }
}

/// Where conntrack's entry is on a packet, and what the programs read of it. What is not found stays 0, and the
/// programs leave it alone.
///
/// # Errors
/// When the kernel has no conntrack, or its types cannot be read, or are not laid out as the programs take them.
fn conntrack(btf: &Btf, module: &Path, offsets: &mut Offsets) -> Result<()> {
    offsets.skb_nfct = member(btf, "sk_buff", "_nfct")
        .context("this kernel has no connection tracking (CONFIG_NF_CONNTRACK)")?;
    let split;
    let btf = if has_struct(btf, "nf_conn") {
        btf
    } else {
        split = Btf::from_split_file(module, btf).with_context(|| {
            format!(
                "nf_conntrack is a module whose types cannot be read at {}: load it before aksnet starts \
                 (modprobe nf_conntrack), and build it with CONFIG_DEBUG_INFO_BTF_MODULES",
                module.display()
            )
        })?;
        &split
    };
    let tuple =
        member(btf, "nf_conn", "tuplehash")? + member(btf, "nf_conntrack_tuple_hash", "tuple")?;
    let status = member(btf, "nf_conn", "status")?;
    let layout = tuple_layout(btf)?;
    if layout != CT_TUPLE_LAYOUT {
        bail!(
            "struct nf_conntrack_tuple of this kernel is laid out as {layout:?}, and aksnet knows {CT_TUPLE_LAYOUT:?}"
        );
    }
    (offsets.ct_status, offsets.ct_original) = (status, tuple);
    Ok(())
}

/// As [`CT_TUPLE_LAYOUT`], from the running kernel.
fn tuple_layout(btf: &Btf) -> Result<[u32; 6]> {
    let own = |name| member(btf, "nf_conntrack_tuple", name);
    let (src, dst) = (own("src")?, own("dst")?);
    let of_src = |name| Ok::<_, anyhow::Error>(src + member(btf, "nf_conntrack_man", name)?);
    let of_dst =
        |name| Ok::<_, anyhow::Error>(dst + nested(btf, "nf_conntrack_tuple", "dst", name)?);
    Ok([
        of_src("u3")?,
        of_src("u")?,
        of_src("l3num")?,
        of_dst("u3")?,
        of_dst("u")?,
        of_dst("protonum")?,
    ])
}

/// Before a kernel has this reason, a keep-alive probe and a segment from nowhere have the same:
/// [`INVALID_SEQUENCE`], which then is noise.
const OLD_SEQUENCE: &str = "tcp_old_sequence";
const INVALID_SEQUENCE: &str = "tcp_invalid_sequence";

fn noise(reasons: &BTreeMap<u32, String>) -> [u64; 4] {
    let told_apart = reasons.values().any(|name| name == OLD_SEQUENCE);
    let mut bits = [0; 4];
    for (&reason, name) in reasons.range(..256) {
        if NOISE.iter().any(|n| n.eq_ignore_ascii_case(name))
            || (!told_apart && name == INVALID_SEQUENCE)
        {
            bits[reason as usize / 64] |= 1 << (reason % 64);
        }
    }
    bits
}

/// The kernel's functions by start address, from `/proc/kallsyms`; none where it hides them
/// (`kernel.kptr_restrict`). One line at a time: the whole table would cost 10 MB.
pub fn text_symbols() -> impl Iterator<Item = (u64, String)> {
    let file = File::open("/proc/kallsyms").ok();
    file.into_iter()
        .flat_map(|file| BufReader::new(file).lines().map_while(Result::ok))
        .filter_map(|line| text_symbol(&line))
}

fn text_symbol(line: &str) -> Option<(u64, String)> {
    let mut words = line.split_ascii_whitespace();
    let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
    let address = u64::from_str_radix(address, 16).ok()?;
    (address != 0 && matches!(kind, "t" | "T" | "w" | "W")).then(|| (address, name.to_owned()))
}

/// Inode number of this thread's network namespace, as `struct net` has it.
///
/// # Errors
/// When `/proc` is not there.
pub fn own_netns() -> Result<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata("/proc/thread-self/ns/net")
        .context("cannot read /proc/thread-self/ns/net, this process's network namespace")?;
    u32::try_from(metadata.ino()).context("the network namespace's inode number is beyond 32 bits")
}

/// How many CPUs the kernel may ever use (`/sys/devices/system/cpu/possible`).
///
/// # Errors
/// When the kernel does not say.
pub fn possible_cpus() -> Result<u32> {
    let count = aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
    u32::try_from(count).context("more CPUs than a map index can name")
}

#[cfg(test)]
mod tests;

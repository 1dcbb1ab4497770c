//! What the running kernel says of itself: struct offsets, drop reasons and tracepoint arguments from its
//! BTF, symbols from `/proc/kallsyms`. Decided by what is there, never by a version number.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use aksnet_common::probe_config::Offsets;
use anyhow::{Context as _, Result, bail};
use btf_rs::{Btf, Type};

/// Where the kernel shows its types.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Reasons that stand for no loss: the packet was consumed, was a copy for another host that a promiscuous
/// bridge port took in, or was queued on a socket that is being closed. Without the `SKB_` and
/// `SKB_DROP_REASON_` prefixes of include/net/dropreason-core.h.
pub const NOISE: [&str; 5] = [
    "NOT_DROPPED_YET",
    "CONSUMED",
    "OTHERHOST",
    "QUEUE_PURGE",
    "SOCKET_CLOSE",
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
        Self::from_btf(&btf)
    }

    fn from_btf(btf: &Btf) -> Result<Self> {
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
            kfree_skb_reason_arg: 0,
        };
        let arguments = tracepoint_arguments(btf, "kfree_skb");
        // skb, location, and the reason since 5.17 (and in backports).
        if arguments
            .as_deref()
            .and_then(|a| a.get(2))
            .is_some_and(|kind| kind == "skb_drop_reason")
        {
            offsets.kfree_skb_reason_arg = 2;
        }
        let reasons = drop_reasons(btf);
        Ok(Self {
            offsets,
            noise: noise(&reasons),
            reasons,
            has_drop_tracepoint: arguments.is_some(),
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

fn noise(reasons: &BTreeMap<u32, String>) -> [u64; 4] {
    let mut bits = [0; 4];
    for (&reason, name) in reasons.range(..256) {
        if NOISE.iter().any(|n| n.eq_ignore_ascii_case(name)) {
            bits[reason as usize / 64] |= 1 << (reason % 64);
        }
    }
    bits
}

/// Byte offset of a member, looked for in anonymous structs and unions as well.
fn member(btf: &Btf, of: &str, name: &str) -> Result<u32> {
    let types = btf
        .resolve_types_by_name(of)
        .with_context(|| format!("the kernel's BTF has no struct {of}"))?;
    for kind in &types {
        if let Type::Struct(s) = kind
            && let Some(bits) = search(btf, s, name)?
        {
            return Ok(bits / 8);
        }
    }
    bail!("struct {of} of this kernel has no member {name}, which aksnet reads")
}

fn search(btf: &Btf, of: &btf_rs::Struct, name: &str) -> Result<Option<u32>> {
    for m in &of.members {
        let found = btf.resolve_name(m).unwrap_or_default();
        if found == name {
            return Ok(Some(m.bit_offset()));
        }
        if found.is_empty()
            && let Type::Struct(inner) | Type::Union(inner) = btf.resolve_chained_type(m)?
            && let Some(bits) = search(btf, &inner, name)?
        {
            return Ok(Some(m.bit_offset() + bits));
        }
    }
    Ok(None)
}

/// Type names of a tracepoint's arguments; `None` if the kernel has no such tracepoint.
fn tracepoint_arguments(btf: &Btf, name: &str) -> Option<Vec<String>> {
    let types = btf
        .resolve_types_by_name(&format!("btf_trace_{name}"))
        .ok()?;
    let Type::Typedef(typedef) = types.first()? else {
        return None;
    };
    let Type::Ptr(pointer) = btf.resolve_chained_type(typedef).ok()? else {
        return None;
    };
    let Type::FuncProto(proto) = btf.resolve_chained_type(&pointer).ok()? else {
        return None;
    };
    let names = proto.parameters.iter().skip(1).map(|p| {
        let kind = btf.resolve_chained_type(p);
        kind.ok()
            .and_then(|t| t.as_btf_type().and_then(|t| btf.resolve_name(t).ok()))
            .unwrap_or_default()
    });
    Some(names.collect())
}

fn drop_reasons(btf: &Btf) -> BTreeMap<u32, String> {
    let mut reasons = BTreeMap::new();
    for kind in btf
        .resolve_types_by_name("skb_drop_reason")
        .unwrap_or_default()
    {
        if let Type::Enum(e) = kind {
            for m in &e.members {
                let Ok(name) = btf.resolve_name(m) else {
                    continue;
                };
                let short = name
                    .strip_prefix("SKB_DROP_REASON_")
                    .or_else(|| name.strip_prefix("SKB_"))
                    .unwrap_or(&name);
                if !matches!(short, "MAX" | "SUBSYS_MASK") {
                    reasons.insert(m.val(), short.to_ascii_lowercase());
                }
            }
        }
    }
    reasons
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
        .context("cannot read this process's network namespace")?;
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
mod tests {
    use super::*;

    #[test]
    fn functions_are_read_and_data_and_hidden_addresses_are_not() {
        let read = |line| text_symbol(line);
        assert_eq!(
            read("0000000000001000 T first"),
            Some((0x1000, "first".to_owned()))
        );
        assert_eq!(
            read("0000000000002000 t second [mod]"),
            Some((0x2000, "second".to_owned()))
        );
        assert_eq!(read("0000000000001010 d data"), None);
        assert_eq!(read("0000000000000000 T hidden"), None);
        assert_eq!(read("nonsense"), None);
    }

    #[test]
    fn noise_is_a_bit_for_each_reason_of_the_list() {
        let reasons = BTreeMap::from([
            (1, "consumed".to_owned()),
            (12, "netfilter_drop".to_owned()),
            (70, "otherhost".to_owned()),
        ]);
        assert_eq!(noise(&reasons), [1 << 1, 1 << 6, 0, 0]);
    }

    #[test]
    fn unnamed_reasons_are_named_by_their_number() {
        let kernel = Kernel {
            offsets: Offsets::default(),
            reasons: BTreeMap::from([(12, "netfilter_drop".to_owned())]),
            noise: [0; 4],
            has_drop_tracepoint: true,
        };
        assert_eq!(kernel.reason_name(12), "netfilter_drop");
        assert_eq!(kernel.reason_name(200), "reason_200");
        assert_eq!(kernel.reason_name(0x3_0005), "subsystem_3_5");
    }

    #[test]
    fn running_kernel_has_what_the_programs_read() {
        if !Path::new(VMLINUX_BTF).exists() {
            println!("skipped: this kernel has no BTF");
            return;
        }
        let kernel = Kernel::read().expect("offsets");
        assert!(kernel.offsets.skb_head > 0 && kernel.offsets.skb_network_header > 0);
        assert!(kernel.has_drop_tracepoint);
        if kernel.offsets.kfree_skb_reason_arg != 0 {
            assert!(
                kernel.reasons.values().any(|n| n == "netfilter_drop"),
                "{:?}",
                kernel.reasons
            );
        }
        assert!(own_netns().expect("namespace") > 0);
    }
}

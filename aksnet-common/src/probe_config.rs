//! What the agent tells the programs before it loads them, as read-only globals: the kernel's verifier
//! treats them as constants, so what is switched off costs nothing.

/// Names of the globals, for `EbpfLoader::override_global`.
pub mod global {
    /// [`super::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// [`super::Offsets`].
    pub const OFFSETS: &str = "OFFSETS";
}

/// How the datapath behaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seed of the flow hash.
    pub hash_seed: u64,
    /// Buckets in FLOWS minus one; buckets are a power of two.
    pub bucket_mask: u32,
    /// A flow's packet is timed when its number has none of these bits: 0 times every packet, 63 one in 64.
    pub sample_mask: u32,
    /// This many first packets of a flow are always timed.
    pub first_packets: u32,
    /// Inode number of the network namespace the agent watches (`/proc/self/ns/net`).
    pub netns: u32,
    /// The kernel's number for a netfilter verdict (`SKB_DROP_REASON_NETFILTER_DROP`); 0 where it has none.
    pub netfilter_drop: u32,
    /// The kernel's number for drops without a reason (`SKB_DROP_REASON_NOT_SPECIFIED`). A drop by a socket counts
    /// for a reason above it only; `u32::MAX` where the kernel does not tell TCP's reasons apart, so that data
    /// that came twice would look like a loss.
    pub not_specified: u32,
    /// Bit `r` set: drops for reason `r` are noise. Reasons from 256 on (subsystems') never are.
    pub noise: [u64; 4],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hash_seed: 0,
            bucket_mask: 16_383,
            sample_mask: 63,
            first_packets: 2,
            netns: 0,
            netfilter_drop: 0,
            not_specified: u32::MAX,
            noise: [0; 4],
        }
    }
}

/// Byte offsets of kernel struct members, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `sk_buff.len` (u32).
    pub skb_len: u32,
    /// `sk_buff.head` (pointer).
    pub skb_head: u32,
    /// `sk_buff.data` (pointer).
    pub skb_data: u32,
    /// `sk_buff.tail` (u32 offset from head).
    pub skb_tail: u32,
    /// `sk_buff.end` (u32 offset from head): `skb_shared_info` lies there.
    pub skb_end: u32,
    /// `sk_buff.network_header` (u16 offset from head).
    pub skb_network_header: u32,
    /// `sk_buff.mac_header` (u16 offset from head).
    pub skb_mac_header: u32,
    /// `sk_buff.dev` (pointer).
    pub skb_dev: u32,
    /// `sk_buff.skb_iif` (int).
    pub skb_iif: u32,
    /// `sk_buff.mark` (u32).
    pub skb_mark: u32,
    /// `skb_shared_info.gso_size` (u16).
    pub shinfo_gso_size: u32,
    /// `skb_shared_info.gso_segs` (u16).
    pub shinfo_gso_segs: u32,
    /// `net_device.ifindex` (int).
    pub dev_ifindex: u32,
    /// `net_device.nd_net` (pointer to `struct net`).
    pub dev_net: u32,
    /// `net_device.dev_addr` (pointer to the hardware address).
    pub dev_addr: u32,
    /// `net.ns.inum` (unsigned int).
    pub net_inum: u32,
    /// Number of the tracepoint's argument that holds the reason; 0 where the kernel has none.
    pub kfree_skb_reason_arg: u32,
    /// Number of the tracepoint's argument that holds the receiving socket; 0 where the kernel has none.
    pub kfree_skb_sock_arg: u32,
    /// `sock_common.skc_net` (pointer to `struct net`), from the start of a `struct sock`; 0 where not known.
    pub sock_net: u32,
    /// `sk_buff._skb_refdst` (unsigned long: pointer to `dst_entry`, lowest bit a flag); 0 where not known.
    pub skb_refdst: u32,
    /// `dst_entry.dev` (pointer); of use only with `skb_refdst`, and may itself be 0.
    pub dst_dev: u32,
    /// `sk_buff._nfct` (unsigned long: pointer to `nf_conn`, lowest three bits `enum ip_conntrack_info`); 0 where
    /// the kernel has no conntrack.
    pub skb_nfct: u32,
    /// `nf_conn.status` (unsigned long); 0 where not known.
    pub ct_status: u32,
    /// `nf_conn.tuplehash[0].tuple` (`nf_conntrack_tuple`, laid out as [`crate::tracked::CT_TUPLE_LAYOUT`]); 0
    /// where not known.
    pub ct_original: u32,
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), integers only, no implicit padding: 8 + 6 * 4 + 4 * 8 bytes.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: repr(C), every field is a u32.
    unsafe impl aya::Pod for super::Offsets {}
}

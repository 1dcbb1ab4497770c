//! What the agent set before it loaded the programs. The reads are volatile so that the compiler does not
//! put in the defaults; the verifier then treats the frozen map's values as constants.

use aksnet_common::probe_config::{Offsets, Settings};

// SAFETY: the only symbol of this name in the object; the agent sets it by that.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    hash_seed: 0,
    bucket_mask: 0,
    sample_mask: 0,
    first_packets: 0,
    netns: 0,
    netfilter_drop: 0,
    not_specified: 0,
    noise: [0; 4],
};

// SAFETY: as above.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    skb_len: 0,
    skb_head: 0,
    skb_data: 0,
    skb_tail: 0,
    skb_end: 0,
    skb_network_header: 0,
    skb_mac_header: 0,
    skb_dev: 0,
    skb_iif: 0,
    skb_mark: 0,
    shinfo_gso_size: 0,
    shinfo_gso_segs: 0,
    dev_ifindex: 0,
    dev_net: 0,
    dev_addr: 0,
    net_inum: 0,
    kfree_skb_reason_arg: 0,
    kfree_skb_sock_arg: 0,
    sock_net: 0,
    skb_refdst: 0,
    dst_dev: 0,
    skb_nfct: 0,
    ct_status: 0,
    ct_original: 0,
};

macro_rules! getters {
    ($from:ident: $($name:ident: $kind:ty),+ $(,)?) => {$(
        #[inline(always)]
        pub fn $name() -> $kind {
            // SAFETY: a reference to a field of a static is valid for reads.
            unsafe { core::ptr::read_volatile(&raw const $from.$name) }
        }
    )+};
}

getters!(SETTINGS: hash_seed: u64, bucket_mask: u32, sample_mask: u32, first_packets: u32, netns: u32, netfilter_drop: u32, not_specified: u32);
getters!(OFFSETS:
    skb_len: u32, skb_head: u32, skb_data: u32, skb_tail: u32, skb_end: u32, skb_network_header: u32,
    skb_dev: u32, skb_iif: u32, skb_mark: u32,
    shinfo_gso_size: u32, shinfo_gso_segs: u32, dev_ifindex: u32, dev_net: u32, dev_addr: u32, skb_mac_header: u32, net_inum: u32,
    kfree_skb_reason_arg: u32, kfree_skb_sock_arg: u32, sock_net: u32,
    skb_refdst: u32, dst_dev: u32, skb_nfct: u32, ct_status: u32, ct_original: u32,
);

/// Whether drops for this reason are noise.
#[inline(always)]
pub fn is_noise(reason: u32) -> bool {
    if reason >= 256 {
        return false;
    }
    let word = (reason >> 6) as usize & 3;
    // SAFETY: the index is below 4, the length of the array.
    let bits =
        unsafe { core::ptr::read_volatile((&raw const SETTINGS.noise).cast::<u64>().add(word)) };
    bits >> (reason & 63) & 1 != 0
}

//! The two kinds of `sk_buff` a program sees, as [`Packet`]s: the context of a tc program, and a dropped
//! one that is only a kernel address.

use aksnet_common::packet::{Head, Packet};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_probe_read_kernel, bpf_skb_load_bytes},
};

use crate::config;

/// A packet in a tc program.
pub struct TcPacket {
    skb: *mut __sk_buff,
}

impl TcPacket {
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    #[inline(always)]
    pub fn skb(&self) -> *mut __sk_buff {
        self.skb
    }

    /// The interface the program runs on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).ifindex }
    }

    /// The interface the packet came in through; 0 when the node sent it.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).ingress_ifindex }
    }

    /// Wire packets for which this one stands, `payload` bytes in all.
    #[inline(always)]
    pub fn segments(&self, payload: u32) -> u32 {
        // SAFETY: as above.
        let (segs, size) = unsafe { ((*self.skb).gso_segs, (*self.skb).gso_size) };
        segments(segs, size, payload)
    }
}

/// `gso_segs` where the kernel knows it, else from the sizes (a guest's or a raw socket's GSO packet comes
/// with `gso_segs` 0: `include/linux/virtio_net.h`, `SKB_GSO_DODGY`).
#[inline(always)]
fn segments(segs: u32, size: u32, payload: u32) -> u32 {
    if segs != 0 {
        segs
    } else if size != 0 && payload > size {
        payload.div_ceil(size)
    } else {
        1
    }
}

impl Packet for TcPacket {
    type Head<'a> = Direct;

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the helper writes N bytes into `bytes` or fails; it reads parts that are not linear, too.
        let failed = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        if failed == 0 { Some(bytes) } else { None }
    }

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<Direct> {
        // SAFETY: the context is valid; the bounds are those that the verifier checks.
        let (start, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        if start + N > end {
            return None;
        }
        Some(Direct(start))
    }
}

/// Packet bytes in place. The loads are written out, as they may be unaligned: the compiler would split
/// them into bytes, but the verifier lets them pass on machines that can do them, which amd64 and arm64 are.
#[derive(Clone, Copy)]
pub struct Direct(usize);

macro_rules! load {
    ($name:ident: $kind:ty, $class:ident, $size:literal) => {
        #[inline(always)]
        fn $name<const AT: usize>(self) -> $kind {
            let value: $kind;
            // SAFETY: `head` compared the end of the packet with an offset beyond AT, which the verifier checks.
            unsafe {
                core::arch::asm!(
                    concat!("{v} = *(", $size, " *)({p} + {at})"),
                    p = in(reg) self.0, at = const AT, v = out($class) value,
                    options(pure, readonly, nostack)
                );
            }
            value
        }
    };
}

impl Head for Direct {
    #[inline(always)]
    fn byte<const AT: usize>(self) -> u8 {
        // SAFETY: as below; a byte is always aligned.
        unsafe { *((self.0 + AT) as *const u8) }
    }
    #[inline(always)]
    fn half<const AT: usize>(self) -> u16 {
        Narrow(self.0).half::<AT>() as u16
    }
    load!(word: u32, wreg, "u32");
    load!(double: u64, reg, "u64");
}

/// Loads whose value is narrower than a register.
struct Narrow(usize);

impl Narrow {
    load!(half: u32, wreg, "u16");
}

/// Reads a value of kernel memory; `None` where it is not mapped.
#[inline(always)]
pub fn kernel<T: Copy + Default>(at: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the helper writes size_of::<T>() bytes or fails; T is a plain integer or array of such.
    let failed = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            at as *const _,
        )
    };
    if failed == 0 { Some(value) } else { None }
}

/// A packet that the kernel is about to free, from its IP header on.
#[derive(Clone, Copy)]
pub struct DroppedPacket {
    ip: u64,
    linear: u32,
    len: u32,
    segs: u32,
    size: u32,
}

impl DroppedPacket {
    /// `None` where it has no IP header yet, or the struct cannot be read.
    #[inline(always)]
    pub fn new(skb: u64) -> Option<Self> {
        let field = |offset: u32| skb + u64::from(offset);
        let head: u64 = kernel(field(config::skb_head()))?;
        let data: u64 = kernel(field(config::skb_data()))?;
        let len: u32 = kernel(field(config::skb_len()))?;
        let tail: u32 = kernel(field(config::skb_tail()))?;
        let end: u32 = kernel(field(config::skb_end()))?;
        let network: u16 = kernel(field(config::skb_network_header()))?;
        let network = u32::from(network);
        if network == 0 || network >= tail {
            return None;
        }
        // `data` may stand before the IP header (at the link layer) or behind it (at the transport layer).
        let ahead = data.wrapping_sub(head) as u32;
        let shared = head + u64::from(end);
        let segs: u16 = kernel(shared + u64::from(config::shinfo_gso_segs()))?;
        let size: u16 = kernel(shared + u64::from(config::shinfo_gso_size()))?;
        Some(Self {
            ip: head + u64::from(network),
            linear: tail - network,
            len: len.wrapping_add(ahead).wrapping_sub(network),
            segs: u32::from(segs),
            size: u32::from(size),
        })
    }

    /// Wire packets for which this one stands.
    #[inline(always)]
    pub fn segments(&self, payload: u32) -> u32 {
        segments(self.segs, self.size, payload)
    }
}

impl Packet for DroppedPacket {
    type Head<'a> = Direct;

    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        if offset + N as u32 > self.linear {
            return None;
        }
        let mut bytes = [0u8; N];
        // SAFETY: as in `kernel`.
        let failed = unsafe {
            bpf_probe_read_kernel(
                bytes.as_mut_ptr().cast(),
                N as u32,
                (self.ip + u64::from(offset)) as *const _,
            )
        };
        if failed == 0 { Some(bytes) } else { None }
    }

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<Direct> {
        None
    }
}

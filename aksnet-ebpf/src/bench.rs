//! What only the benchmarks load: programs that do nothing, as the baseline, and programs that make one
//! test frame stand for many flows. The agent never loads these.
//!
//! A test run repeats one frame, and what a program writes into it is there at the next repetition. So the
//! frame itself says at [`FLOWS`] how many flows it is to stand for, and carries the number of the next one.

use aksnet_common::{
    flow::{HotCell, ORIGIN_ENTER, WAYS, mix},
    packet::Link,
    stats::Role,
};
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_STOLEN, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    account::{At, account},
    atomic, config,
    exit::leave_node,
    maps,
    skb::TcPacket,
};

/// Offset in the frame of the number of flows (u32).
const FLOWS: usize = 80;
/// Offset of the number of the flow that the frame is to be next (u32).
const NEXT: usize = 84;
/// Offset of the number of packets so far (u32).
const PACKETS: usize = 88;
/// Offset of how far each packet is ahead of the one before in its TCP stream (u32).
const STRIDE: usize = 92;
/// The shortest frame these programs take.
const LENGTH: usize = 96;

/// Packet memory; offsets are constants below [`LENGTH`]. Written out, as fields of headers lie unaligned.
#[derive(Clone, Copy)]
struct Frame(usize);

impl Frame {
    #[inline(always)]
    fn half<const AT: usize>(self) -> u32 {
        let value: u32;
        // SAFETY: `vary` has compared the frame's end with LENGTH.
        unsafe {
            core::arch::asm!("{v} = *(u16 *)({p} + {at})", p = in(reg) self.0, at = const AT, v = out(wreg) value);
        }
        value
    }

    #[inline(always)]
    fn word<const AT: usize>(self) -> u32 {
        let value: u32;
        // SAFETY: as in `half`.
        unsafe {
            core::arch::asm!("{v} = *(u32 *)({p} + {at})", p = in(reg) self.0, at = const AT, v = out(wreg) value);
        }
        value
    }

    #[inline(always)]
    fn set_half<const AT: usize>(self, value: u32) {
        // SAFETY: as in `half`.
        unsafe {
            core::arch::asm!("*(u16 *)({p} + {at}) = {v}", p = in(reg) self.0, at = const AT, v = in(reg) u64::from(value));
        }
    }

    #[inline(always)]
    fn set_word<const AT: usize>(self, value: u32) {
        // SAFETY: as in `half`.
        unsafe {
            core::arch::asm!("*(u32 *)({p} + {at}) = {v}", p = in(reg) self.0, at = const AT, v = in(reg) u64::from(value));
        }
    }

    #[inline(always)]
    fn set_double<const AT: usize>(self, value: u64) {
        // SAFETY: as in `half`.
        unsafe {
            core::arch::asm!("*(u64 *)({p} + {at}) = {v}", p = in(reg) self.0, at = const AT, v = in(reg) value);
        }
    }
}

/// Makes the frame the next flow's next packet: another source address, sequence number and IPv4
/// identification. Fields are written as wide as ENTER reads them, so that the baseline pays for that, too. Returns the
/// flow's number.
#[inline(always)]
fn vary(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid; the bounds are those that the verifier checks.
    let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    if start + LENGTH > end {
        return 0;
    }
    let frame = Frame(start);
    let flow = frame.word::<NEXT>();
    let packets = frame.word::<PACKETS>();
    let next = if flow + 1 >= frame.word::<FLOWS>() {
        0
    } else {
        flow + 1
    };
    frame.set_word::<NEXT>(next);
    frame.set_word::<PACKETS>(packets.wrapping_add(1));
    let sequence = packets.wrapping_mul(frame.word::<STRIDE>()).swap_bytes();
    if frame.half::<12>() == 0x0008 {
        frame.set_half::<18>(packets & 0xffff);
        frame.set_word::<26>(flow);
        frame.set_word::<38>(sequence);
    } else {
        frame.set_double::<30>(u64::from(flow));
        frame.set_word::<58>(sequence);
    }
    flow
}

/// Does nothing: what a hook costs by itself.
#[classifier]
pub fn aksnet_empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Takes every packet away, and not as a drop: the end of a measured path.
#[classifier]
pub fn aksnet_bench_sink(_ctx: TcContext) -> i32 {
    TC_ACT_STOLEN
}

/// Varies the frame: the baseline of the two below.
#[classifier]
pub fn aksnet_bench_empty(ctx: TcContext) -> i32 {
    vary(ctx.skb.skb);
    TC_ACT_UNSPEC
}

/// Varies the frame, and adds to one cell of the flow table for each flow: what this machine's memory costs whoever
/// counts exactly, in one place per flow, on any CPU.
#[classifier]
pub fn aksnet_bench_touch(ctx: TcContext) -> i32 {
    let number = mix(u64::from(vary(ctx.skb.skb)));
    if let Some(bucket) = maps::FLOWS.get_ptr_mut(number as u32 & config::bucket_mask()) {
        // SAFETY: a live map value; the mask keeps the way within the bucket.
        unsafe {
            let cell = (&raw mut (*bucket).cells)
                .cast::<HotCell>()
                .add((number >> 62) as usize & (WAYS - 1));
            atomic::add(&raw mut (*cell).skbs, 1);
        }
    }
    TC_ACT_UNSPEC
}

/// Varies the frame, and is ENTER.
#[classifier]
pub fn aksnet_bench_enter(ctx: TcContext) -> i32 {
    vary(ctx.skb.skb);
    account(
        ctx.skb.skb,
        At::new(Role::Pod, ORIGIN_ENTER, Link::Ethernet),
    );
    TC_ACT_UNSPEC
}

/// Varies the frame, and is ENTER and then EXIT.
#[classifier]
pub fn aksnet_bench_passage(ctx: TcContext) -> i32 {
    vary(ctx.skb.skb);
    account(
        ctx.skb.skb,
        At::new(Role::Pod, ORIGIN_ENTER, Link::Ethernet),
    );
    leave_node(&TcPacket::new(ctx.skb.skb), Link::Ethernet, Role::Pod);
    TC_ACT_UNSPEC
}

//! The kernel side of aksnet, in the order in which a packet meets it.
//!
//! Every program passes every packet on: observation never changes a packet's fate.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    unreachable_pub,
    reason = "one binary: `pub` here says what another module uses"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "lengths and indices here are 32-bit by the kernel's own types, and sequence numbers wrap"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the attribute macros of aya give a program its context by value"
)]
#![expect(
    clippy::inline_always,
    reason = "what is not inlined costs a call per packet, and the verifier loses what it knew"
)]

mod atomic;

mod config;

mod skb;

mod maps;

mod account;

mod spill;

mod passage;

mod enter;

mod exit;

mod drops;

mod bench;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: nothing here can panic (no indexing without a constant bound, no unwrap), and the verifier
    // would refuse the endless loop that the other choice is.
    unsafe { core::hint::unreachable_unchecked() }
}

/// GPL-compatible, as helpers like `bpf_probe_read_kernel` ask for it.
// SAFETY: the only symbol of this name, in the section from which the licence is read.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

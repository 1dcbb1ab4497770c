//! Atomic instructions of the BPF machine, which Rust's `core::sync::atomic` does not offer for this
//! target: `AtomicU64` has only loads and stores there.
//!
//! The instructions that fetch are fully ordered, plain `add` and `or` are relaxed
//! (Documentation/bpf/standardization/instruction-set.rst, "Atomic operations"; kernel 5.12 or later).

use core::arch::asm;

/// Adds to a 64-bit word.
///
/// # Safety
/// `at` must point to an aligned `u64` in map memory.
#[inline(always)]
pub unsafe fn add(at: *mut u64, n: u64) {
    // SAFETY: the caller says that `at` is valid; the instruction touches nothing else.
    unsafe { asm!("lock *(u64 *)({at} + 0) += {n}", at = in(reg) at, n = in(reg) n) }
}

/// Adds to a 64-bit word and returns what it was.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn fetch_add(at: *mut u64, n: u64) -> u64 {
    let mut value = n;
    // SAFETY: as in `add`.
    unsafe {
        asm!("{v} = atomic_fetch_add((u64 *)({at} + 0), {v})", at = in(reg) at, v = inout(reg) value);
    }
    value
}

/// Adds to a 32-bit word.
///
/// # Safety
/// `at` must point to an aligned `u32` in map memory.
#[inline(always)]
pub unsafe fn add32(at: *mut u32, n: u32) {
    // SAFETY: as in `add`.
    unsafe { asm!("lock *(u32 *)({at} + 0) += {n}", at = in(reg) at, n = in(wreg) n) }
}

/// Sets bits of a 32-bit word.
///
/// # Safety
/// As [`add32`].
#[inline(always)]
pub unsafe fn or32(at: *mut u32, bits: u32) {
    // SAFETY: as in `add`.
    unsafe { asm!("lock *(u32 *)({at} + 0) |= {n}", at = in(reg) at, n = in(wreg) bits) }
}

/// Sets a 64-bit word to `new` if it is `old`; returns what it was.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> u64 {
    let was;
    // SAFETY: as in `add`; the machine's compare register is r0.
    unsafe {
        asm!("r0 = cmpxchg_64({at} + 0, r0, {new})", at = in(reg) at, new = in(reg) new, inout("r0") old => was);
    }
    was
}

//! The pages of a `BPF_F_MMAPABLE` array map, shared with the programs: the agent's side of the cells.
//!
//! All shared memory is touched through atomics, field by field: the programs change it at any time.

use std::{
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering, fence},
};

use aksnet_common::{
    cell::{self, Cells},
    flow::{Bucket, ColdCell, FlowKey, HotCell, WAYS},
};
use anyhow::{Context as _, Result};
use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

/// An array map's values, mapped.
struct Mapped<T> {
    pages: MmapRaw,
    len: usize,
    _values: PhantomData<T>,
}

impl<T> Mapped<T> {
    /// # Errors
    /// When the kernel refuses the mapping (the map is not mmapable, or memory is short).
    fn new(map: &MapData, len: usize) -> Result<Self> {
        let bytes = len * size_of::<T>();
        let pages = MmapOptions::new()
            .len(bytes)
            .map_raw(map.fd().as_fd().as_raw_fd())
            .with_context(|| format!("cannot map {bytes} bytes of a BPF array"))?;
        Ok(Self {
            pages,
            len,
            _values: PhantomData,
        })
    }

    fn value(&self, index: usize) -> *mut T {
        assert!(index < self.len, "index {index} of {}", self.len);
        // SAFETY: the index is within the mapping, which lives as long as `self`.
        unsafe { self.pages.as_mut_ptr().cast::<T>().add(index) }
    }
}

/// The flow table: FLOWS and TIMES.
pub struct FlowTable {
    buckets: Mapped<Bucket>,
    cold: Mapped<ColdCell>,
}

// SAFETY: the mapping is plain shared memory without thread affinity, and every access is atomic.
unsafe impl Send for FlowTable {}
// SAFETY: as above.
unsafe impl Sync for FlowTable {}

/// A word of shared memory as an atomic.
///
/// # Safety
/// `at` must be 8-aligned and valid for as long as the result is used.
unsafe fn word<'a>(at: *const u64) -> &'a AtomicU64 {
    // SAFETY: as the caller says; AtomicU64 has the layout of u64.
    unsafe { AtomicU64::from_ptr(at.cast_mut()) }
}

/// Copies `N` words of shared memory one by one.
///
/// # Safety
/// `at` must be 8-aligned and valid for `N` words.
unsafe fn copy<const N: usize>(at: *const u64) -> [u64; N] {
    // SAFETY: the index is below N.
    std::array::from_fn(|i| unsafe { word(at.add(i)) }.load(Ordering::Relaxed))
}

const HOT_WORDS: usize = size_of::<HotCell>() / 8;
const COLD_WORDS: usize = size_of::<ColdCell>() / 8;

impl FlowTable {
    /// Maps the two arrays of `cells` cells.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(flows: &MapData, times: &MapData, cells: u32) -> Result<Self> {
        let cells = cells as usize;
        Ok(Self {
            buckets: Mapped::new(flows, cells / WAYS)?,
            cold: Mapped::new(times, cells)?,
        })
    }

    /// How many cells there are.
    #[must_use]
    pub fn cells(&self) -> u32 {
        u32::try_from(self.cold.len).unwrap_or(u32::MAX)
    }

    fn hot_ptr(&self, cell: u32) -> *mut HotCell {
        let bucket = self.buckets.value(cell as usize / WAYS);
        // SAFETY: the way is below WAYS, the length of the array within the mapped bucket.
        unsafe {
            (&raw mut (*bucket).cells)
                .cast::<HotCell>()
                .add(cell as usize % WAYS)
        }
    }

    /// The state word of a cell.
    #[must_use]
    pub fn state(&self, cell: u32) -> u64 {
        // SAFETY: a mapped, 64-aligned cell.
        unsafe { word(&raw const (*self.hot_ptr(cell)).state) }.load(Ordering::Acquire)
    }

    /// Packets and bytes of a cell.
    #[must_use]
    pub fn counts(&self, cell: u32) -> (u64, u64) {
        let hot = self.hot_ptr(cell);
        // SAFETY: as above.
        unsafe {
            (
                word(&raw const (*hot).skbs).load(Ordering::Relaxed),
                word(&raw const (*hot).bytes).load(Ordering::Relaxed),
            )
        }
    }

    /// A copy of a cell.
    #[must_use]
    pub fn hot(&self, cell: u32) -> HotCell {
        // SAFETY: a mapped cell of HOT_WORDS words; any words are a valid HotCell (integers only, size
        // asserted in aksnet-common).
        unsafe { std::mem::transmute::<[u64; HOT_WORDS], HotCell>(copy(self.hot_ptr(cell).cast())) }
    }

    /// A copy of a cell's timed half; its `sequence` is odd if no whole translation could be read.
    #[must_use]
    pub fn cold(&self, cell: u32) -> ColdCell {
        let at: *const u64 = self.cold.value(cell as usize).cast();
        let mut words = [0; COLD_WORDS];
        for _ in 0..8 {
            let (before, after);
            // SAFETY: a mapped cell of COLD_WORDS words; `sequence` is its first.
            unsafe {
                before = word(at).load(Ordering::Acquire);
                words = copy(at);
                fence(Ordering::Acquire);
                after = word(at).load(Ordering::Relaxed);
            }
            words[0] = before | u64::from(before != after);
            if before == after && before & 1 == 0 {
                break;
            }
        }
        // SAFETY: any words are a valid ColdCell (integers only, size asserted in aksnet-common).
        unsafe { std::mem::transmute::<[u64; COLD_WORDS], ColdCell>(words) }
    }

    /// Timed packets of a cell that left or were dropped.
    #[must_use]
    pub fn timed(&self, cell: u32) -> u64 {
        let cold = self.cold.value(cell as usize);
        // SAFETY: a mapped, 64-aligned cell.
        unsafe {
            word(&raw const (*cold).exits).load(Ordering::Relaxed)
                + word(&raw const (*cold).drops).load(Ordering::Relaxed)
        }
    }

    /// Lets no further packet join a cell.
    #[must_use]
    pub fn close(&self, cell: u32) -> bool {
        cell::close(&BucketCells(self, cell), cell as usize % WAYS)
    }

    /// Clears a closing cell and gives it back.
    pub fn free(&self, cell: u32) {
        if self.state(cell) & cell::PHASE != cell::CLOSING {
            return;
        }
        let hot: *const u64 = self.hot_ptr(cell).cast();
        let cold: *const u64 = self.cold.value(cell as usize).cast();
        // SAFETY: mapped cells of these many words. The state word, the first, is left for `cell::free`.
        unsafe {
            for i in 1..HOT_WORDS {
                word(hot.add(i)).store(0, Ordering::Relaxed);
            }
            for i in 0..COLD_WORDS {
                word(cold.add(i)).store(0, Ordering::Relaxed);
            }
        }
        cell::free(&BucketCells(self, cell), cell as usize % WAYS);
    }
}

/// The bucket that a cell belongs to, for the shared protocol.
struct BucketCells<'a>(&'a FlowTable, u32);

impl BucketCells<'_> {
    fn cell(&self, way: usize) -> *mut HotCell {
        assert!(way < WAYS, "way {way}");
        let bucket = self.0.buckets.value(self.1 as usize / WAYS);
        // SAFETY: the way is below WAYS, the length of the array within the mapped bucket.
        unsafe { (&raw mut (*bucket).cells).cast::<HotCell>().add(way) }
    }
}

impl Cells for BucketCells<'_> {
    fn state(&self, way: usize) -> u64 {
        // SAFETY: a mapped cell.
        unsafe { word(&raw const (*self.cell(way)).state) }.load(Ordering::Acquire)
    }

    fn swap_state(&self, way: usize, old: u64, new: u64) -> u64 {
        // SAFETY: a mapped cell.
        let state = unsafe { word(&raw const (*self.cell(way)).state) };
        match state.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(was) | Err(was) => was,
        }
    }

    fn key_is(&self, way: usize, key: &FlowKey) -> bool {
        // SAFETY: a mapped cell; six words of key.
        let words: [u64; 6] = unsafe { copy((&raw const (*self.cell(way)).key).cast()) };
        words == *key.words()
    }

    fn write_key(&self, way: usize, key: &FlowKey) {
        // SAFETY: a mapped cell that the caller has claimed; six words of key.
        unsafe {
            let to: *const u64 = (&raw const (*self.cell(way)).key).cast();
            for (i, &w) in key.words().iter().enumerate() {
                word(to.add(i)).store(w, Ordering::Relaxed);
            }
        }
    }
}

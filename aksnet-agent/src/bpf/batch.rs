//! Emptying a hash map many entries at a time: aya knows the commands for single entries only, which are three system
//! calls for each.

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
};

use anyhow::{Result, bail, ensure};
use aya::{
    Pod,
    maps::{Map, MapData},
};

/// `BPF_MAP_LOOKUP_AND_DELETE_BATCH` of `enum bpf_cmd` (include/uapi/linux/bpf.h, 5.6).
const LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;

/// How many entries one call takes at first.
const ENTRIES: u32 = 4_096;

/// `union bpf_attr`, as the batch commands read it (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Batch {
    /// Where the last call ended, or null; the place of a bucket, four bytes.
    from: u64,
    /// Where this one ends.
    to: u64,
    keys: u64,
    values: u64,
    /// How many there is room for; then, how many there were.
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// A hash map of the programs that is only ever emptied.
pub(super) struct Emptied<K, V> {
    map: MapData,
    _entries: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> TryFrom<Map> for Emptied<K, V> {
    type Error = anyhow::Error;

    /// # Errors
    /// When it is no hash map, or its entries are of other sizes.
    fn try_from(map: Map) -> Result<Self> {
        let Map::HashMap(map) = map else {
            bail!("not a hash map: {map:?}");
        };
        let info = map.info()?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        let ours = (size_of::<K>(), size_of::<V>());
        ensure!(sizes == ours, "entries of {sizes:?} bytes, not {ours:?}");
        Ok(Self {
            map,
            _entries: PhantomData,
        })
    }
}

impl<K: Pod, V: Pod> Emptied<K, V> {
    /// Moves every entry to `all`. Nobody may write the map any more.
    ///
    /// # Errors
    /// When the kernel refuses; what was taken until then is in `all`.
    pub(super) fn move_to(&mut self, all: &mut Vec<(K, V)>) -> io::Result<()> {
        let mut room = ENTRIES;
        // A place that the kernel wrote, from the second call on.
        let (mut from, mut to) = (None::<u32>, 0_u32);
        loop {
            let mut keys = Vec::<MaybeUninit<K>>::with_capacity(room as usize);
            let mut values = Vec::<MaybeUninit<V>>::with_capacity(room as usize);
            let mut batch = Batch {
                from: from.as_ref().map_or(0, |from| ptr::from_ref(from) as u64),
                to: &raw mut to as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: room,
                map: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
                ..Batch::default()
            };
            // SAFETY: the kernel reads `Batch`, which is as long as is said, and writes at most `count` keys and
            // values, for which there is room as their sizes are the map's, and four bytes at `to`: a hash map's
            // places are u32 (kernel/bpf/hashtab.c, 6.12, `__htab_map_lookup_and_delete_batch`).
            let result = unsafe {
                libc::syscall(
                    libc::SYS_bpf,
                    LOOKUP_AND_DELETE_BATCH,
                    &raw mut batch,
                    size_of::<Batch>(),
                )
            };
            let error = (result < 0).then(io::Error::last_os_error);
            let errno = error.as_ref().and_then(io::Error::raw_os_error);
            let ended = errno == Some(libc::ENOENT);
            if errno == Some(libc::ENOSPC) && batch.count == 0 {
                // One bucket of the map holds more than there is room for.
                room = room.saturating_mul(2);
                continue;
            }
            if let Some(error) = error.filter(|_| !ended) {
                return Err(error);
            }
            let count = batch.count as usize;
            // SAFETY: the kernel has written so many of each, and any bytes are a value of a `Pod`.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
                all.extend(
                    keys.iter()
                        .zip(&values)
                        .map(|(key, value)| (key.assume_init_read(), value.assume_init_read())),
                );
            }
            if ended {
                return Ok(());
            }
            from = Some(to);
        }
    }
}

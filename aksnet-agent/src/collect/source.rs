//! Where counts are read from: the maps of the running programs, or a fake in tests.

use aksnet_common::{
    drops::{DropKey, DropStats},
    flow::{ColdCell, FlowKey, HotCell, Sampling, SpillStats},
    stats::{Event, Role, Skip, SkipStats},
};

/// The counters of one moment that are not per flow. All of them only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that found neither a cell nor a spill entry, by [`Role`].
    pub overflow: [SpillStats; Role::COUNT as usize],
    /// Packets that were not accounted, by [`Skip`].
    pub skipped: [SkipStats; Skip::COUNT as usize],
    /// Events of the datapath, by [`Event`].
    pub events: [u64; Event::COUNT as usize],
}

/// The kernel side's tables as one sweep reads them.
pub trait Source {
    /// How many cells there are; indices below are less than this. It may grow at any moment, and never shrinks: who
    /// looks at all cells asks once.
    fn cells(&self) -> u32;

    /// How many cells there can be.
    fn limit(&self) -> u32 {
        self.cells()
    }

    /// The state word of a cell; see [`aksnet_common::cell`]. One load, no system call.
    fn state(&self, cell: u32) -> u64;

    /// Packets and bytes of a cell so far (`skbs`, `bytes`): a cheap look at whether anything changed.
    fn counts(&self, cell: u32) -> (u64, u64);

    /// A copy of the cell. Each field is read by itself, so a packet may lie between two of them; the next
    /// sweep sees it whole.
    fn hot(&self, cell: u32) -> HotCell;

    /// A copy of the cell's timed half; the translation in it is of one piece (its seqlock was even and
    /// unchanged), or, where a program kept writing, `sequence` is odd and the translation is not to be used.
    fn cold(&self, cell: u32) -> ColdCell;

    /// How many packets of the cell were timed so far, those that left and those that were dropped: a cheap
    /// look at whether anything changed in its timed half.
    fn timed(&self, cell: u32) -> u64 {
        let cold = self.cold(cell);
        cold.exits + cold.drops
    }

    /// Which packets are timed. The timed half of a cell is elsewhere in memory, and costs a sweep over many flows as
    /// much as all the rest: it is left alone where no packet can have changed it.
    fn sampling(&self) -> Sampling {
        Sampling::EVERY
    }

    /// Lets no further packet join the cell. False if it was not live.
    fn close(&self, cell: u32) -> bool;

    /// Clears and gives back a closing cell. Must be called at least
    /// [`aksnet_common::cell::QUIET_MS`] after [`Source::close`], when its last counts were read.
    fn free(&self, cell: u32);

    /// What was spilled since the last call, complete and each packet once.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    fn take_spill(&mut self) -> anyhow::Result<Vec<(FlowKey, SpillStats)>>;

    /// The counters that are not per flow.
    ///
    /// # Errors
    /// When the kernel refuses to read a map.
    fn totals(&self) -> anyhow::Result<Totals>;

    /// Whether the connection table is full, or was when the drops that were taken last happened; `None`: not known.
    fn conntrack_is_full(&self) -> Option<bool> {
        None
    }

    /// What was dropped since the last call, complete and each packet once. `cell` and `last_ns` are those of
    /// the latest drop, the other fields are sums.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    fn take_drops(&mut self) -> anyhow::Result<Vec<(DropKey, DropStats)>>;
}

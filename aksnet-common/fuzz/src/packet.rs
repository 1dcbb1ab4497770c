//! A *packet* whose bytes cannot be had in place, as in the programs: only the slow way of reading it works.

use aksnet_common::packet::Packet;

#[derive(Clone, Copy)]
pub(crate) struct Scattered<'b>(pub(crate) &'b [u8]);

impl Packet for Scattered<'_> {
    type Head<'h>
        = &'h [u8]
    where
        Self: 'h;

    fn len(&self) -> u32 {
        u32::try_from(self.0.len()).expect("inputs are short")
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.read(offset)
    }

    fn head<const N: usize>(&self) -> Option<&[u8]> {
        None
    }
}
